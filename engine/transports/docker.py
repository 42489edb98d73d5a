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
from prefect_diffah.engine.errors import (
    DiffahError,
    DigestMismatch,
    Interrupted,
    InvalidOptions,
    NetworkError,
    NotFound,
    RequestError,
    SizeMismatch,
    SurroundingsError,
    Unsupported,
)
from prefect_diffah.engine.oci import MAX_CONFIG, MAX_MANIFEST, Descriptor, Digest, Reference, mediatypes, parse_document, verified
from prefect_diffah.engine.progress import cancelled
from prefect_diffah.engine.registry import (
    PATIENCE,
    EitherEvent,
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
_Opened = Callable[[int], tuple[Repository, Iterator[bytes]]]
_DOCUMENTS = mediatypes.INDEXES + mediatypes.MANIFESTS


class RegistryReader:
    """An image in a registry; its mirrors are asked first.

    Args:
        patience: how long failures are borne.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, reference: Reference, access: Access = DEFAULT_ACCESS, *, patience: Patience = PATIENCE) -> None:
        self._reference = reference
        if (event := cancelled()) is not None:
            patience = dataclasses.replace(patience, cancelled=event)
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
            return self._first(lambda place: _whole(place, descriptor), avoid=descriptor.digest)
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

            def opened(start: int) -> tuple[Repository, Iterator[bytes]]:
                return self._first(lambda place: (place, stack.enter_context(place.blob(descriptor.digest, descriptor.size, start))), avoid=descriptor.digest)

            yield self._checked(descriptor, opened(0), opened)

    def _checked(self, descriptor: Descriptor, first: tuple[Repository, Iterator[bytes]], opened: _Opened) -> Iterator[bytes]:
        """The blob's bytes, verified. Where wrong ones came from a mirror, trying again can help: it is not asked for this blob again.

        Raises: DigestMismatch, SizeMismatch; NetworkError where a mirror had a part in it.
        """
        mirrors: list[Repository] = []
        try:
            yield from verified(self._pieces(descriptor, first, opened, mirrors), descriptor.digest, descriptor.size)
        except (DigestMismatch, SizeMismatch) as error:
            if not mirrors:
                raise
            for mirror in mirrors:
                mirror.connection.damaged.add(descriptor.digest)
            names = ", ".join(map(str, mirrors))
            raise NetworkError(
                f"{error.message}; the mirror {names} sent it",
                next_action="Try again; if it stays so, repair the mirror, or take it out of registries.conf.",
                digest=descriptor.digest,
                mirrors=names,
            ) from error

    def _pieces(self, descriptor: Descriptor, first: tuple[Repository, Iterator[bytes]], opened: _Opened, mirrors: list[Repository]) -> Iterator[bytes]:
        """The blob's bytes; where a mirror breaks off, the next place goes on. ``mirrors`` gets those that bytes came from."""
        (place, chunks), seen = first, 0
        while True:
            is_mirror = place is not self._places[-1]
            failure: DiffahError = NetworkError(f"{descriptor.digest} ends early")
            try:
                for chunk in chunks:
                    if is_mirror and place not in mirrors:
                        mirrors.append(place)
                    seen += len(chunk)
                    yield chunk
                if not is_mirror or seen >= descriptor.size:
                    return
            except DiffahError as error:
                if not is_mirror or isinstance(error, Interrupted):
                    raise
                failure = error
            self._pass_over(place, failure, for_good=True)
            place, chunks = opened(seen)

    def _first(self, ask: Callable[[Repository], _T], avoid: Digest | None = None) -> _T:
        return next(self._each(ask, avoid))

    def _each(self, ask: Callable[[Repository], _T], avoid: Digest | None = None) -> Iterator[_T]:
        """What each place answers; a mirror's failure is passed over, the registry's own is raised.

        Args:
            avoid: a blob that mirrors which damaged it are not asked for.
        """
        for place in list(self._places):
            is_mirror = place is not self._places[-1]
            if is_mirror and avoid in place.connection.damaged:
                continue
            try:
                answer = ask(place)
            except DiffahError as error:
                if not is_mirror or isinstance(error, Interrupted):
                    raise
                self._pass_over(place, error, for_good=isinstance(error, SurroundingsError))
            else:
                yield answer

    def _pass_over(self, mirror: Repository, error: DiffahError, *, for_good: bool) -> None:
        _log.warning("the mirror %s is passed over: %s", mirror, error.message)
        if for_good:
            with contextlib.suppress(ValueError):
                self._places.remove(mirror)

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
        event = cancelled()
        self._stop = threading.Event() if event is None else EitherEvent(event)
        self._repository = connect_for_writing(reference.where, access, patience=dataclasses.replace(patience, cancelled=self._stop))
        self._present: set[Digest] = set()
        self._unmountable: set[Digest] = set()

    def check(self, image: OutgoingImage, *, force: bool) -> bool:
        self._require_own_digest(image)
        if self._is_complete(image, force=force):
            return True
        can_push(self._repository)
        return False

    def obtain(self, image: OutgoingImage, descriptor: Descriptor) -> bool:
        if self._has(descriptor.digest):
            return True
        if any(mount_blob(self._repository, descriptor.digest, origin) for origin in self._origins(image)):
            self._present.add(descriptor.digest)
            return True
        self._unmountable.add(descriptor.digest)
        return False

    def write(self, image: OutgoingImage, blobs: BlobSource, options: WriteOptions) -> Written:
        self._require_own_digest(image)
        if self._is_complete(image, force=options.force):
            return Written(location=str(self._reference), status="unchanged", root=image.root.digest, bytes_written=0)
        pushed = self._in_parallel(lambda descriptor: self._push(image, descriptor, blobs), image.blobs, options.workers)
        notes = [
            f"the foreign layer {descriptor.digest} is not there, only its URLs: nobody here has it"
            for descriptor, size in zip(image.blobs, pushed, strict=True)
            if size is None
        ]
        for descriptor in image.manifests:
            if self._repository.manifest_digest(descriptor.digest) is None:
                self._put(image, descriptor, descriptor.digest)
        root: Digest | None = image.root.digest
        if self._reference.tag is not None and self._put(image, image.root, self._reference.tag) not in (None, root):
            # a tag stands for the registry's own choice of algorithm
            notes.append(f"the tag {self._reference.tag} names the image by another digest there, though it has {root} too")
            root = None
        return Written(location=str(self._reference), status="written", root=root, bytes_written=sum(size or 0 for size in pushed), notes=tuple(notes))

    def _put(self, image: OutgoingImage, descriptor: Descriptor, reference: str | Digest) -> Digest | None:
        try:
            return self._repository.put_manifest(reference, image.documents[descriptor.digest], descriptor.media_type)
        except RequestError as error:
            algorithm = descriptor.digest.algorithm
            if type(error) is not RequestError:
                raise
            if any(_may_stay_elsewhere(blob) for blob in image.blobs):
                # distribution's own words are that a blob is unknown
                action = "Have the registry accept manifests with URLs (distribution: validation.manifests.urls.allow), or write to another place."
                raise RequestError(error.message, next_action=action, **error.details) from error
            if algorithm == "sha256":
                raise
            raise Unsupported(
                f"{self._reference.registry} does not take a manifest whose digest is {algorithm}: {error.message}",
                next_action="Write it to oci-archive:, oci: or dir:, or to a registry that knows this algorithm.",
                digest=descriptor.digest,
            ) from error

    def _is_complete(self, image: OutgoingImage, *, force: bool) -> bool:
        """A registry takes no manifest whose parts it lacks, so that the root's presence tells of all; ``force`` asks for each, since parts can be lost."""
        if self._repository.manifest_digest(self._reference.tag or image.root.digest) != image.root.digest:
            return False
        return not force or (
            all(self._repository.manifest_digest(descriptor.digest) is not None for descriptor in image.manifests)
            and all(self._has(descriptor.digest) for descriptor in image.blobs)
        )

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

    def _push(self, image: OutgoingImage, descriptor: Descriptor, blobs: BlobSource) -> int | None:
        """Bytes sent; None for a foreign layer that neither side has."""
        digest = descriptor.digest
        if self._has(digest):
            return 0
        origins = [] if digest in self._unmountable else self._origins(image)
        if any(mount_blob(self._repository, digest, origin) for origin in origins[:-1]):
            return 0

        absent = False

        @contextlib.contextmanager
        def source() -> Iterator[Iterator[bytes]]:
            nonlocal absent
            with contextlib.ExitStack() as stack:
                try:
                    chunks = stack.enter_context(blobs.stream(descriptor))
                except NotFound:
                    absent = _may_stay_elsewhere(descriptor)
                    raise
                yield self._until_stopped(chunks)

        try:
            return upload_blob(self._repository, digest, descriptor.size, source, mount_from=origins[-1] if origins else None)
        except NotFound:
            if not absent:
                raise
            return None

    def _until_stopped(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            if self._stop.is_set():
                raise Interrupted("given up: the run was cancelled, or another transfer failed")
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


def _whole(place: Repository, descriptor: Descriptor) -> bytes:
    with place.blob(descriptor.digest, descriptor.size) as chunks:
        return b"".join(verified(chunks, descriptor.digest, descriptor.size))


def _may_stay_elsewhere(descriptor: Descriptor) -> bool:
    return mediatypes.is_foreign(descriptor.media_type) and bool(descriptor.urls)
