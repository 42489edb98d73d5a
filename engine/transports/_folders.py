"""Folders that appear whole, and the files that are put into them."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_diffah.engine.errors import DigestMismatch, NotFound, OutputExists, SizeMismatch
from prefect_diffah.engine.oci import verified
from prefect_diffah.engine.storage import FileLocation, chunks_of, require_room, sync_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prefect_diffah.engine.oci import Descriptor
    from prefect_diffah.engine.transports.base import BlobSource, OutgoingImage

__all__ = ["appearing", "drained", "names_in", "put", "put_blob", "replaceable", "total_size", "verifies"]


@contextmanager
def appearing(location: FileLocation, size: int, *, replace: bool = False) -> Iterator[FileLocation]:
    """A local folder to fill, which takes ``location``'s place when the block ends well, and vanishes otherwise.

    Args:
        size: bytes that will be put into it.
        replace: whether what is at ``location`` is removed once the new folder can take its place; an empty one always is.

    Raises:
        OutputExists: something appeared there meanwhile.
        NoSpace: not enough room for ``size`` bytes.
    """
    assert location.local is not None
    target = Path(os.path.realpath(location.local))
    prefix, mark = f".{target.name[:200]}.", secrets.token_hex(6)
    temporary, aside = (target.with_name(f"{prefix}{mark}.{suffix}") for suffix in ("part", "old"))
    with location.translated("write"):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target.parent, prefix)
        require_room(target.parent, size)
        try:
            with _created(temporary):
                yield FileLocation(str(temporary))
                for folder, _, _ in os.walk(temporary):
                    sync_folder(Path(folder))
                _take_place(temporary, target, aside if replace else None)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(target.parent)


@contextmanager
def _created(folder: Path) -> Iterator[None]:
    """A new folder, locked as long as the block lasts. A lock ends with its process, so one that is free marks what a killed one left."""
    while True:
        folder.mkdir()
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with suppress(OSError):  # a filesystem without locks: nobody can take this for abandoned
                fcntl.flock(handle, fcntl.LOCK_EX)
            if folder.exists():
                yield
                return
            # between creation and lock somebody took it for abandoned
        finally:
            os.close(handle)


@contextmanager
def _claimed(folder: Path) -> Iterator[bool]:
    """Try to hold the folder's lock. It ends with this process, so a lock that is free marks what a killed one left."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _remove_abandoned(parent: Path, prefix: str) -> None:
    for entry in parent.iterdir():
        if entry.name.startswith(prefix) and entry.name.endswith(".part"):
            with suppress(OSError), _claimed(entry) as free:
                if free:
                    shutil.rmtree(entry)


def _take_place(temporary: Path, target: Path, aside: Path | None) -> None:
    try:
        temporary.rename(target)
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        if aside is None:
            raise OutputExists(f"{target} appeared while the image was written", path=str(target)) from error
    target.rename(aside)
    try:
        temporary.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        with suppress(OSError):
            aside.unlink()


def put(place: FileLocation, content: bytes) -> int:
    """Write a small file. Returns: its bytes."""
    with place.replacing(len(content)) as file:
        file.write(content)
    return len(content)


def put_blob(place: FileLocation, blobs: BlobSource, descriptor: Descriptor) -> int:
    """Write a blob. Returns: its bytes."""
    with blobs.stream(descriptor) as chunks, place.replacing(descriptor.size) as file:
        for chunk in chunks:
            file.write(chunk)
    return descriptor.size


def verifies(place: FileLocation, descriptor: Descriptor) -> bool:
    """Whether the file is there and is what ``descriptor`` says, told by reading it."""
    try:
        if place.size() != descriptor.size:
            return False
        with place.translated("read"), place.open() as file:
            for _ in verified(chunks_of(file), descriptor.digest, descriptor.size):
                pass
    except (NotFound, SizeMismatch, DigestMismatch):
        return False
    return True


def names_in(location: FileLocation) -> list[str]:
    """What a folder holds directly, by name."""
    with location.translated("look into"):
        location.fs.invalidate_cache(location.path)
        paths = [path.rstrip("/") for path in location.fs.ls(location.path, detail=False)]
    # object stores may list the folder's own placeholder
    return [path.rpartition("/")[2] for path in paths if path != location.path.rstrip("/")]


def replaceable(location: FileLocation, *, force: bool) -> bool:
    """Whether a new folder may take the place of what is at ``location``, which is not an image.

    Raises:
        OutputExists: it may not, or not without ``force``.
    """
    if not location.exists():
        return True
    if location.is_dir():
        if not names_in(location):
            return True
        raise OutputExists(
            f"{location} is a folder with other content, which is never deleted",
            next_action="Choose another output, or remove the folder yourself.",
            path=str(location),
        )
    if location.local is None or not force:
        raise OutputExists(f"{location} is a file", path=str(location))
    return True


def drained(image: OutgoingImage, blobs: BlobSource) -> int:
    """Read every blob and write nothing, for the null device. Returns: the bytes read."""
    return sum(sum(map(len, _streamed(blobs, descriptor))) for descriptor in image.blobs)


def _streamed(blobs: BlobSource, descriptor: Descriptor) -> Iterable[bytes]:
    with blobs.stream(descriptor) as chunks:
        yield from chunks


def total_size(image: OutgoingImage) -> int:
    """Bytes of an image's documents and blobs."""
    return sum(map(len, image.documents.values())) + sum(descriptor.size for descriptor in image.blobs)
