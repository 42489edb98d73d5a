"""Content-addressed blobs and step records, on any fsspec filesystem.

    blobs/ALGORITHM/AB/ABCDEF…      a blob, named by its digest
    records/STEP/KEY.json           what a step made of given inputs

Blobs are put whole or not at all and verified both ways, so any number of
processes may share a store: whoever comes second writes the same bytes. A
record is valid while every blob that it names is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from functools import wraps
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from pydantic import ValidationError

from prefect_diffah.engine.access import DEFAULT_ACCESS, Access
from prefect_diffah.engine.errors import ContentError, NotFound, SizeMismatch, StorageError
from prefect_diffah.engine.model import Model, canonical_json
from prefect_diffah.engine.oci import Descriptor, Digest, verified
from prefect_diffah.engine.storage import PART, FileLocation, chunks_of, remove_abandoned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Pruned", "Recorded", "Store", "default_store", "record_key", "record_of", "recorded"]

P = ParamSpec("P")
T = TypeVar("T")
RECORD_LIMIT = 16 * 1024 * 1024
ABANDONED = 24 * 3600
"""Seconds after which an unfinished file belongs to nobody."""


def default_store() -> str:
    """``PREFECT_DIFFAH_STORE``, or a folder in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.environ.get("PREFECT_DIFFAH_STORE") or os.path.join(cache, "prefect-diffah")


class Recorded(Model):
    """A step's result that is recorded."""

    @property
    def stored_blobs(self) -> tuple[Descriptor, ...]:
        """The blobs in the store that it stands on."""
        raise NotImplementedError


class Pruned(Model):
    """What ``prune`` removed, and what is left, in blobs and bytes."""

    removed: int
    removed_bytes: int
    left: int
    left_bytes: int


class Store:
    """A store at ``url``. Small and picklable: it holds no open file.

    Raises (all methods): NotFound, AccessDenied, NoSpace, StorageError.
    """

    def __init__(self, url: str, access: Access = DEFAULT_ACCESS) -> None:
        self.root = FileLocation(url, access)

    @property
    def url(self) -> str:
        return self.root.url

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.root.url, self.root.access)

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def _blob(self, digest: Digest) -> FileLocation:
        return self.root.child(f"blobs/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}")

    def has(self, descriptor: Descriptor) -> bool:
        """Whether the blob is here, judged by name and size."""
        try:
            return self._blob(descriptor.digest).size() == descriptor.size
        except NotFound:
            return False

    holds = has

    def put(self, descriptor: Descriptor, chunks: Iterable[bytes]) -> None:
        """Keep a blob. Nothing is kept when ``chunks`` are not what the descriptor says.

        Raises:
            DigestMismatch, SizeMismatch: they are not.
        """
        with self._blob(descriptor.digest).replacing(descriptor.size) as file:
            for chunk in verified(chunks, descriptor.digest, descriptor.size):
                file.write(chunk)

    def put_bytes(self, descriptor: Descriptor, data: bytes) -> None:
        """Keep a small blob, unless it is here already."""
        if not self.has(descriptor):
            self.put(descriptor, [data])

    @contextlib.contextmanager
    def stream(self, descriptor: Descriptor) -> Iterator[Iterator[bytes]]:
        """The blob's bytes, verified as they are read.

        Raises:
            NotFound: it is not here.
            StorageError: the copy here is damaged; it is removed, so that the
                next run makes it anew.
        """
        location = self._blob(descriptor.digest)
        try:
            opened = location.open()
        except NotFound as error:
            raise NotFound(
                f"the store {self.url} has no blob {descriptor.digest}", next_action="Run it again: what is missing is made anew.", digest=descriptor.digest
            ) from error
        with location.translated("read"), opened as file:
            yield self._sound(location, file, descriptor)

    def _sound(self, location: FileLocation, file: IO[bytes], descriptor: Descriptor) -> Iterator[bytes]:
        try:
            yield from verified(chunks_of(file), descriptor.digest, descriptor.size, "the stored blob")
        except ContentError as error:
            location.remove()
            raise StorageError(
                f"the store's copy of {descriptor.digest} was damaged and has been removed: {error.message}",
                next_action="Run it again; check the disk that holds the store.",
                transient=False,
                digest=descriptor.digest,
            ) from error

    def read(self, descriptor: Descriptor, limit: int) -> bytes:
        """A small blob, whole.

        Raises:
            SizeMismatch: over ``limit`` bytes.
        """
        if descriptor.size > limit:
            raise SizeMismatch(f"{descriptor.digest} has {descriptor.size} bytes, over the limit of {limit}", digest=descriptor.digest, limit=limit)
        with self.stream(descriptor) as chunks:
            return b"".join(chunks)

    def _record(self, key: str) -> FileLocation:
        return self.root.child(f"records/{key}.json")

    def get_record(self, key: str) -> dict[str, Any] | None:
        """What was recorded under ``key``; None if nothing was, or a blob it stands on is gone."""
        try:
            record = json.loads(self._record(key).read(RECORD_LIMIT))
            blobs = [Descriptor.model_validate(blob) for blob in record["blobs"]]
            value = record["value"]
        except (NotFound, ValueError, KeyError, TypeError):
            return None
        return value if isinstance(value, dict) and all(self.has(blob) for blob in blobs) else None

    def put_record(self, key: str, value: dict[str, Any], blobs: Iterable[Descriptor]) -> None:
        """Record ``value`` under ``key``, standing on ``blobs``."""
        data = canonical_json({"value": value, "blobs": [blob.model_dump(mode="json", exclude_defaults=True) for blob in blobs]})
        with self._record(key).replacing(len(data)) as file:
            file.write(data)

    def prune(self, max_bytes: int, *, dry_run: bool = False) -> Pruned:
        """Remove the blobs written longest ago until at most ``max_bytes`` are left.

        Records that stand on a removed blob go too, and what writers that
        were killed left more than a day ago.
        """
        blobs: list[tuple[float, int, str]] = []
        records: list[str] = []
        folder, record_folder = f"{self.root.child('blobs').path}/", f"{self.root.child('records').path}/"
        with self.root.translated("prune"):
            found = self.root.fs.find(self.root.path, detail=True) if self.root.exists() else {}
            for path, info in found.items():
                age_key = info.get("mtime") or info.get("LastModified") or info.get("created") or 0
                written = float(age_key.timestamp() if hasattr(age_key, "timestamp") else age_key)
                if path.endswith(PART):
                    # an upload to an object store leaves no such file
                    if written < time.time() - ABANDONED and not dry_run and self.root.local is not None:
                        remove_abandoned(Path(path))
                elif path.startswith(folder):
                    blobs.append((written, int(info["size"]), path))
                elif path.startswith(record_folder):
                    records.append(path.removeprefix(record_folder).removesuffix(".json"))
            blobs.sort()
            total, removed, removed_bytes = sum(size for _, size, _ in blobs), 0, 0
            for _, size, path in blobs:
                if total - removed_bytes <= max_bytes:
                    break
                if not dry_run:
                    with contextlib.suppress(FileNotFoundError):
                        self.root.fs.rm_file(path)
                removed, removed_bytes = removed + 1, removed_bytes + size
            if not dry_run:
                for key in records:
                    if self.get_record(key) is None:
                        self._record(key).remove()
        return Pruned(removed=removed, removed_bytes=removed_bytes, left=len(blobs) - removed, left_bytes=total - removed_bytes)


def record_key(step: str, version: int, inputs: dict[str, Any]) -> str:
    """``STEP/SHA-256`` of the canonical JSON of step, version and inputs: digests and options that change bytes, never places or credentials."""
    return f"{step}/{Digest.of(canonical_json([step, version, inputs])).hex}"


R = TypeVar("R", bound=Recorded)


def recorded(
    version: int, model: type[R], inputs: Callable[[T], dict[str, Any]]
) -> Callable[[Callable[Concatenate[T, Store, P], R]], Callable[Concatenate[T, Store, P], R]]:
    """Make a function ``(item, store, …)`` a step whose results are kept in the store.

    Args:
        version: raised whenever the step would make something else of the same inputs.
        model: what it returns.
        inputs: what its result depends on, as JSON, from its item.
    """

    def decorate(function: Callable[Concatenate[T, Store, P], R]) -> Callable[Concatenate[T, Store, P], R]:
        name = function.__name__

        @wraps(function)
        def step(item: T, store: Store, /, *args: P.args, **kwargs: P.kwargs) -> R:
            key = record_key(name, version, inputs(item))
            known = store.get_record(key)
            if known is not None:
                with contextlib.suppress(ValidationError):
                    return model.model_validate(known)
            result = function(item, store, *args, **kwargs)
            store.put_record(key, result.model_dump(mode="json", exclude_defaults=True), result.stored_blobs)
            return result

        setattr(step, "record_of", lambda item: record_key(name, version, inputs(item)))  # noqa: B010
        return step

    return decorate


def record_of(step: Callable[..., Any], item: Any) -> str | None:
    """The key under which ``step`` keeps its result for ``item``; None for steps that keep none."""
    find = getattr(step, "record_of", None)
    return None if find is None else str(find(item))
