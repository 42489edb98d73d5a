"""Reading tar archives that nobody vouches for.

Only an index of the members is made, by Python's own parser; nothing is ever
extracted. What an image archive has no use for is refused: absolute names and
``..``, control characters, duplicates, devices, sparse files, members that
reach beyond the file, and links unless they are asked for.
"""

from __future__ import annotations

import os
import posixpath
import tarfile
import tempfile
import time
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import IO, TYPE_CHECKING

from prefect_diffah.engine.compression import MAGIC_LENGTH, bounded, compression_of, inflated
from prefect_diffah.engine.errors import InvalidArchive, NotFound, SizeMismatch
from prefect_diffah.engine.storage import CHUNK, FileLocation, chunks_of, require_room

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    from prefect_diffah.engine.compression import Compression

__all__ = ["MAX_MEMBERS", "Extent", "TarIndex"]

MAX_MEMBERS = 100_000
"""Members of an archive that are listed at most; an image has one a blob and a few more."""
RECENT = 8
"""Indexes that a process keeps for whoever opens the same archive again."""
_SETTLED = 2.0
"""Seconds without a change after which a local file's time tells it from a later version."""
_LARGEST_HEADER = 64 * 1024
"""Bytes of an extended header (a long name, PAX records) that are read at most."""


@dataclass(frozen=True)
class Extent:
    """Where a member's content lies in the archive, in bytes."""

    offset: int
    size: int


class TarIndex:
    """The members of a tar archive, by name, and their content.

    A compressed archive is told by its first bytes and decompressed into an
    unnamed temporary file. Methods are safe to call from several threads.

    Args:
        location: the archive, on any filesystem that can seek.
        workdir: folder for the decompressed copy; the system's if None.
        links: whether symbolic and hard links are followed, to members of the
            same archive; otherwise they are refused.

    Raises:
        NotFound, AccessDenied, StorageError: it cannot be opened.
        InvalidArchive: truncated, not a tar, or hostile.
        NoSpace: the decompressed copy does not fit.
        Unsupported: compressed by zstd, and no decoder is at hand.
    """

    def __init__(self, location: FileLocation, workdir: str | None = None, *, links: bool = False) -> None:
        self.location = location
        self.inflated_sizes: dict[str, int] = {}
        """What a reader found out of compressed members, in bytes, by name."""
        self._shared = False
        self._spool: IO[bytes] | None = None
        try:
            with location.translated("read"), location.open(sequential=False) as file:
                compression = compression_of(file.read(MAGIC_LENGTH))
                if compression is None:
                    self.members = self._index(file, links)
            if compression is not None:
                self._spool = self._spooled(compression, workdir)
                self.members = self._index(self._spool, links)
        except BaseException:
            self.close()
            raise

    @classmethod
    def shared(cls, location: FileLocation, workdir: str | None = None, *, links: bool = False) -> TarIndex:
        """An index that this process may have made before, of the same file as it still is.

        Each step of a run opens its archives anew; listing members costs a
        request a member on object stores, and a compressed archive is
        decompressed whole. Closing a shared index does nothing: it goes when
        younger ones take its place and nobody uses it any more.
        """
        mark = _mark(location)
        if mark is None:
            return cls(location, workdir, links=links)
        key = (*mark, links)
        with _recent_lock:
            building = _building.setdefault(key, Lock())
        with building:
            with _recent_lock:
                index = _recent.get(key)
            if index is None:
                index = cls(location, workdir, links=links)
                index._shared = True
            with _recent_lock:
                _building.pop(key, None)
                _recent[key] = index
                _recent.move_to_end(key)
                if index._spool is not None:
                    # decompressed copies take room on disk: one is kept
                    for other in [other for other, kept in _recent.items() if kept._spool is not None and kept is not index]:
                        del _recent[other]
                while len(_recent) > RECENT:
                    _recent.popitem(last=False)
        return index

    members: Mapping[str, Extent]
    """Regular files, and links resolved to them, by normalised name, in the order of the archive."""

    def size(self, name: str) -> int | None:
        """Bytes of a member; None if there is none of this name."""
        found = self.members.get(name)
        return None if found is None else found.size

    def chunks(self, name: str) -> Generator[bytes]:
        """A member's content.

        Raises:
            NotFound: no such member.
            InvalidArchive: the archive became shorter while it was read.
        """
        extent = self.members.get(name)
        if extent is None:
            raise NotFound(f"{self.location} has no {name}", path=str(self.location), member=name)
        return self._chunks(extent)

    def read(self, name: str, limit: int) -> bytes:
        """A small member, whole.

        Raises:
            NotFound: no such member.
            SizeMismatch: it is larger than ``limit`` bytes.
        """
        size = self.size(name)
        if size is not None and size > limit:
            raise SizeMismatch(f"{name} in {self.location} has {size} bytes, over the limit of {limit}", member=name, size=size, limit=limit)
        return b"".join(self.chunks(name))

    def close(self) -> None:
        """Give the decompressed copy's room back, unless it is shared."""
        if self._spool is not None and not self._shared:
            self._spool.close()

    def __enter__(self) -> TarIndex:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _chunks(self, extent: Extent) -> Generator[bytes]:
        read = 0
        with self._reading(extent) as chunks:
            for chunk in chunks:
                read += len(chunk)
                yield chunk
        if read < extent.size:
            raise InvalidArchive(f"{self.location} was cut short while it was read", path=str(self.location))

    @contextmanager
    def _reading(self, extent: Extent) -> Iterator[Iterator[bytes]]:
        if self._spool is not None:
            yield _positioned(self._spool.fileno(), extent)
            return
        with self.location.translated("read"), self.location.open() as file:
            file.seek(extent.offset)
            yield chunks_of(file, extent.size)

    def _spooled(self, compression: Compression, workdir: str | None) -> IO[bytes]:
        folder = Path(workdir or tempfile.gettempdir())
        place = FileLocation(str(folder))
        with place.translated("write"):
            folder.mkdir(parents=True, exist_ok=True)
            spool = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed with the index
        try:
            what = f"archive {self.location}"
            with self.location.open() as file:
                for chunk in bounded(inflated(_reads(self.location, file), compression, what), self.location.size(), what):
                    require_room(folder, len(chunk))
                    with place.translated("write"):
                        spool.write(chunk)
            with place.translated("write"):
                spool.flush()
        except BaseException:
            spool.close()
            raise
        return spool

    def _index(self, file: IO[bytes], links: bool) -> Mapping[str, Extent]:
        end = file.seek(0, os.SEEK_END)
        file.seek(0)
        where = str(self.location)
        if end == 0:
            raise InvalidArchive(f"{where} is empty", path=where)
        try:
            with tarfile.open(fileobj=_Guarded(file), mode="r:", errorlevel=2) as tar:  # type: ignore[call-overload]
                found = _Members(where, end, links)
                while (member := tar.next()) is not None:
                    found.add(member)
                    tar.members.clear()
                file.seek(tar.offset)
        except (tarfile.TarError, ValueError, LookupError, ArithmeticError, EOFError, RecursionError) as error:
            raise InvalidArchive(f"{where} is not a whole tar archive: {error}", path=where) from error
        # the parser takes a damaged header, and a missing end, for the end
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise InvalidArchive(f"{where} is damaged or truncated: at byte {tar.offset} is neither a member nor the end mark", path=where, offset=tar.offset)
        return found.resolved()


_recent: OrderedDict[tuple[object, ...], TarIndex] = OrderedDict()
_building: dict[tuple[object, ...], Lock] = {}
_recent_lock = Lock()


def _mark(location: FileLocation) -> tuple[object, ...] | None:
    """What changes when the file does; None where nothing can be relied on."""
    if location.local is not None:
        with location.translated("read"):
            found = location.local.stat()
        # a file as young as this may change again without its time moving
        settled = time.time() - found.st_mtime > _SETTLED
        return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns) if settled else None
    with location.translated("read"):
        info = location.fs.info(location.path)
    tag = info.get("ETag") or info.get("etag")
    return (location.url, info["size"], tag, repr(location.access.options)) if tag else None


class _Members:
    """Collects the members of one archive, and refuses what has no place there."""

    def __init__(self, where: str, end: int, links: bool) -> None:
        self._where, self._end, self._links = where, end, links
        self._files: dict[str, Extent | str] = {}
        self._folders: set[str] = set()
        self._count, self._last = 0, -1

    def add(self, member: tarfile.TarInfo) -> None:
        self._count += 1
        if self._count > MAX_MEMBERS:
            raise self._refused(f"more than {MAX_MEMBERS} members")
        # headers with a negative size would lead the parser round in circles
        if member.size < 0 or member.offset <= self._last:
            raise self._refused(f"a member of {member.size} bytes")
        self._last = member.offset
        name = self._normalised(member.name)
        if member.isdir():
            if name in self._files:
                raise self._refused(f"a folder and a file of the one name {name!r}")
            self._folders.add(name)
            return
        if name == ".":
            raise self._refused("a file without a name")
        if name in self._files or name in self._folders:
            raise self._refused(f"two members of the name {name!r}")
        if member.type in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            if not self._links:
                raise self._refused(f"a link, {name!r}")
            base = posixpath.dirname(name) if member.issym() else ""
            self._files[name] = self._normalised(member.linkname, base)
        elif member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse():
            if member.offset_data + member.size > self._end:
                raise InvalidArchive(f"{self._where} is truncated: {name} reaches beyond its end", path=self._where, member=name)
            self._files[name] = Extent(member.offset_data, member.size)
        else:
            raise self._refused(f"{name!r}, which is neither a file nor a folder (type {member.type!r})")

    def resolved(self) -> dict[str, Extent]:
        """Every name's extent, links followed to their ends."""
        extents: dict[str, Extent] = {}
        for name in self._files:
            seen = [name]
            while isinstance(target := self._files.get(seen[-1]), str):
                if target in seen or len(seen) > 16:
                    raise self._refused(f"links that lead in a circle at {name!r}")
                seen.append(target)
            if target is None:
                raise self._refused(f"a link {name!r} to {seen[-1]!r}, which is not in it")
            extents[name] = target
        return extents

    def _normalised(self, name: str, base: str = "") -> str:
        shown = ascii(name[:200])
        if any(ord(character) < 32 or ord(character) == 127 or 0xD800 <= ord(character) < 0xE000 for character in name):
            raise self._refused(f"a name with control characters or not in UTF-8: {shown}")
        if not name or name.startswith("/"):
            raise self._refused(f"an absolute or empty name: {shown}")
        if base == "" and ".." in name.split("/"):
            raise self._refused(f"a name that leads out of it: {shown}")
        return posixpath.normpath(posixpath.join(base, name))

    def _refused(self, what: str) -> InvalidArchive:
        return InvalidArchive(f"{self._where} has {what}, which an image archive must not have", path=self._where)


class _Guarded:
    """The file as tarfile sees it, which reads an extended header whole whatever size it claims."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def _positioned(handle: int, extent: Extent) -> Iterator[bytes]:
    """Read without moving the file's own position, which threads share."""
    offset, end = extent.offset, extent.offset + extent.size
    while offset < end and (chunk := os.pread(handle, min(CHUNK, end - offset), offset)):
        offset += len(chunk)
        yield chunk


def _reads(location: FileLocation, file: IO[bytes]) -> Iterator[bytes]:
    with location.translated("read"):
        yield from chunks_of(file)
