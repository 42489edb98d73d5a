"""``docker://``: images in registries."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

from prefect_diffah.engine.access import DEFAULT_ACCESS, Access
from prefect_diffah.engine.errors import DiffahError, Interrupted, InvalidOptions, SizeMismatch, SurroundingsError
from prefect_diffah.engine.oci import MAX_CONFIG, MAX_MANIFEST, Descriptor, Digest, Reference, mediatypes, parse_document, verified
from prefect_diffah.engine.registry import (
    PATIENCE,
    Patience,
    Repository,
    can_push,
    connect_for_reading,
    connect_for_writing,
    mount_blob,
    upload_blob,
)
from prefect_diffah.engine.transports.base import BlobSource, OutgoingImage, WriteOptions, Written

__all__ = ["RegistryReader", "RegistryWriter"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_DOCUMENTS = mediatypes.INDEXES + mediatypes.MANIFESTS


class RegistryReader:
    """An image in a registry; its mirrors are asked first.

    Args:
        patience: how long failures are borne.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, reference: Reference, access: Access = DEFAULT_ACCESS, *, patience: Patience = PATIENCE) -> None:
        self._reference = reference
        self._places = list(connect_for_reading(reference.where, access, by_digest=reference.digest is not None, patience=patience))
        self._lock = threading.Lock()
        self._root: tuple[Descriptor, bytes] | None = None

    def root(self) -> tuple[Descriptor, bytes]:
        with self._lock:
            if self._root is None:
                wanted = self._reference.digest or self._reference.tag or "latest"
                raw, content_type = self._first(lambda place: place.manifest(wanted))
                document = parse_document(raw, content_type)
                found = document.descriptor(self._reference.digest.algorithm if self._reference.digest else "sha256")
                self._root = found, raw
            return self._root

    def entries(self) -> Sequence[Descriptor]:
        return (self.root()[0],)

    def document(self, descriptor: Descriptor) -> bytes:
        limit = MAX_MANIFEST if descriptor.media_type in _DOCUMENTS else MAX_CONFIG
        if descriptor.size > limit:
            raise SizeMismatch(
                f"{descriptor.digest} of {descriptor.size} bytes is over the limit of {limit}", digest=descriptor.digest, size=descriptor.size, limit=limit
            )
        if descriptor.media_type not in _DOCUMENTS:
            with self.stream(descriptor) as chunks:
                return b"".join(chunks)
        if self._root is not None and self._root[0].digest == descriptor.digest:
            raw = self._root[1]
        else:
            raw, _ = self._first(lambda place: place.manifest(descriptor.digest))
        return b"".join(verified([raw], descriptor.digest, descriptor.size, "manifest"))

    def holds(self, descriptor: Descriptor) -> bool:
        if descriptor.media_type in _DOCUMENTS:
            return any(self._each(lambda place: place.manifest_digest(descriptor.digest) is not None))
        return any(self._each(lambda place: place.has_blob(descriptor.digest)))

    @contextlib.contextmanager
    def stream(self, descriptor: Descriptor) -> Iterator[Iterator[bytes]]:
        if descriptor.media_type in _DOCUMENTS:
            yield iter((self.document(descriptor),))
            return
        with contextlib.ExitStack() as stack:
            chunks = self._first(lambda place: stack.enter_context(place.blob(descriptor.digest, descriptor.size)))
            yield verified(chunks, descriptor.digest, descriptor.size)

    def _first(self, ask: Callable[[Repository], _T]) -> _T:
        return next(self._each(ask))

    def _each(self, ask: Callable[[Repository], _T]) -> Iterator[_T]:
        """What each place answers; a mirror's failure is passed over, the registry's own is raised."""
        for place in list(self._places):
            try:
                answer = ask(place)
            except DiffahError as error:
                if place is self._places[-1]:
                    raise
                _log.warning("the mirror %s is passed over: %s", place, error.message)
                if isinstance(error, SurroundingsError):
                    with contextlib.suppress(ValueError):
                        self._places.remove(place)
            else:
                yield answer

    def close(self) -> None:
        pass

    def __enter__(self) -> RegistryReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class RegistryWriter:
    """A place for an image in a registry.

    Args:
        patience: how long failures are borne.
    """

    def __init__(self, reference: Reference, access: Access = DEFAULT_ACCESS, *, patience: Patience = PATIENCE) -> None:
        self._reference = reference
        self._stop = threading.Event()
        self._repository = connect_for_writing(reference.where, access, patience=dataclasses.replace(patience, cancelled=self._stop))
        self._present: set[Digest] = set()
        self._unmountable: set[Digest] = set()

    def check(self, image: OutgoingImage, *, force: bool) -> bool:
        self._require_own_digest(image)
        if self._is_complete(image):
            return True
        can_push(self._repository)
        return False

    def obtain(self, image: OutgoingImage, descriptor: Descriptor) -> bool:
        if _stays_elsewhere(descriptor) or self._has(descriptor.digest):
            return True
        if any(mount_blob(self._repository, descriptor.digest, origin) for origin in self._origins(image)):
            self._present.add(descriptor.digest)
            return True
        self._unmountable.add(descriptor.digest)
        return False

    def write(self, image: OutgoingImage, blobs: BlobSource, options: WriteOptions) -> Written:
        self._require_own_digest(image)
        if self._is_complete(image):
            return self._written(image, "unchanged", 0)
        wanted = [descriptor for descriptor in image.blobs if not _stays_elsewhere(descriptor)]
        sent = sum(self._in_parallel(lambda descriptor: self._push(image, descriptor, blobs), wanted, options.workers))
        for descriptor in image.manifests:
            if self._repository.manifest_digest(descriptor.digest) is None:
                self._put(image, descriptor, descriptor.digest)
        if self._reference.tag is not None:
            self._put(image, image.root, self._reference.tag)
        return self._written(image, "written", sent)

    def _written(self, image: OutgoingImage, status: str, size: int) -> Written:
        return Written(location=str(self._reference), status=status, root=image.root.digest, bytes_written=size)

    def _put(self, image: OutgoingImage, descriptor: Descriptor, reference: str | Digest) -> None:
        self._repository.put_manifest(reference, image.documents[descriptor.digest], descriptor.media_type)

    def _is_complete(self, image: OutgoingImage) -> bool:
        """A registry takes no manifest whose parts it lacks, so that the root's presence tells of all."""
        return self._repository.manifest_digest(self._reference.tag or image.root.digest) == image.root.digest

    def _require_own_digest(self, image: OutgoingImage) -> None:
        if self._reference.digest not in (None, image.root.digest):
            raise InvalidOptions(
                f"{self._reference} names a digest, but the image's is {image.root.digest}",
                next_action="Push to a tag, or leave tag and digest to the image itself.",
                digest=image.root.digest,
            )

    def _has(self, digest: Digest) -> bool:
        if digest not in self._present and self._repository.has_blob(digest):
            self._present.add(digest)
        return digest in self._present

    def _origins(self, image: OutgoingImage) -> list[str]:
        """Repositories of this registry that blobs may be mounted from."""
        own = self._reference.registry
        names = (name.partition("/") for name in image.mountable_from)
        return list(dict.fromkeys(repository for host, _, repository in names if host == own and repository not in ("", self._reference.repository)))

    def _push(self, image: OutgoingImage, descriptor: Descriptor, blobs: BlobSource) -> int:
        digest = descriptor.digest
        if self._has(digest):
            return 0
        origins = [] if digest in self._unmountable else self._origins(image)
        if any(mount_blob(self._repository, digest, origin) for origin in origins[:-1]):
            return 0

        @contextlib.contextmanager
        def source() -> Iterator[Iterator[bytes]]:
            with blobs.stream(descriptor) as chunks:
                yield self._until_stopped(chunks)

        return upload_blob(self._repository, digest, descriptor.size, source, mount_from=origins[-1] if origins else None)

    def _until_stopped(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            if self._stop.is_set():
                raise Interrupted("given up, because another transfer failed")
            yield chunk

    def _in_parallel(self, work: Callable[[Descriptor], _T], items: Iterable[Descriptor], workers: int) -> list[_T]:
        """``work`` on every item; the first failure stops the others and is raised."""
        with ThreadPoolExecutor(max(1, workers), thread_name_prefix="push") as pool:
            futures = [pool.submit(contextvars.copy_context().run, work, item) for item in items]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                failed = [future for future in done if future.exception() is not None]
                return [future.result() for future in (failed or futures)]
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def close(self) -> None:
        self._stop.set()

    def __enter__(self) -> RegistryWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _stays_elsewhere(descriptor: Descriptor) -> bool:
    return mediatypes.is_foreign(descriptor.media_type) and bool(descriptor.urls)
