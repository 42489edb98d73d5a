"""Tar archives whose every byte is known before one is written.

A layout is a list of members, each either given bytes or a blob named by its
digest. Where every byte lies follows from it, so the same layout writes an
archive, tells its size, and checks an archive that exists.

Canonical form: USTAR (POSIX.1-1988), PAX records (POSIX.1-2001) only where
USTAR cannot hold a name or size; mode 0644; no owner; one time for all
members; two zero blocks, padded to 10,240 bytes.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from prefect_diffah.engine.errors import InvalidArchive
from prefect_diffah.engine.oci import Digest, verified
from prefect_diffah.engine.storage import chunks_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

__all__ = ["Blob", "Member", "TarLayout"]

BLOCK = tarfile.BLOCKSIZE
RECORD = tarfile.RECORDSIZE
_USTAR_SIZE = 0o77777777777


@dataclass(frozen=True)
class Blob:
    """Content that is somewhere else until it is written."""

    digest: Digest
    size: int


@dataclass(frozen=True)
class Member:
    """A regular file of the archive."""

    name: str
    content: bytes | Blob

    @property
    def size(self) -> int:
        return self.content.size if isinstance(self.content, Blob) else len(self.content)


@dataclass(frozen=True)
class TarLayout:
    """Members in order, and the one time (seconds since 1970) they all carry."""

    members: tuple[Member, ...]
    mtime: int = 0

    def segments(self) -> Iterator[bytes | Blob]:
        """The archive from first to last byte: literal bytes, and blobs in their places."""
        written = 0
        for member in self.members:
            padding = bytes(-member.size % BLOCK)
            header = self._header(member)
            if isinstance(member.content, Blob):
                yield header
                yield member.content
                if padding:
                    yield padding
            else:
                yield header + member.content + padding
            written += len(header) + member.size + len(padding)
        yield bytes(2 * BLOCK + (-(written + 2 * BLOCK)) % RECORD)

    @property
    def size(self) -> int:
        """Bytes of the whole archive."""
        return sum(segment.size if isinstance(segment, Blob) else len(segment) for segment in self.segments())

    def stream(self, open_blob: Callable[[Blob], AbstractContextManager[Iterable[bytes]]]) -> Iterator[bytes]:
        """The archive's bytes; ``open_blob`` gives the content of each blob, verified."""
        for segment in self.segments():
            if isinstance(segment, Blob):
                with open_blob(segment) as chunks:
                    yield from chunks
            else:
                yield segment

    def check(self, file: IO[bytes], *, blobs: bool = True) -> None:
        """Compare ``file``, from its start to its end, with this layout.

        Args:
            file: seekable.
            blobs: whether to hash the blobs too, not only what lies around them.

        Raises:
            InvalidArchive: another byte than expected, too short or too long.
            DigestMismatch: a blob's content is not that of its digest.
        """
        offset = 0
        file.seek(0)
        for segment in self.segments():
            if isinstance(segment, Blob):
                if blobs:
                    before = file.tell()
                    for _ in verified(chunks_of(file, segment.size), segment.digest, segment.size):
                        pass
                    assert file.tell() == before + segment.size
                else:
                    file.seek(segment.size, 1)
                offset += segment.size
            else:
                actual = file.read(len(segment))
                if actual != segment:
                    at = next((i for i, (a, b) in enumerate(zip(actual, segment, strict=False)) if a != b), len(actual))
                    what = "it ends there" if at == len(actual) and len(actual) < len(segment) else "a byte differs"
                    raise InvalidArchive(f"the archive is not what its contents say it must be: at byte {offset + at} {what}", offset=offset + at)
                offset += len(segment)
        if file.read(1):
            raise InvalidArchive(f"the archive goes on after its end at byte {offset}", offset=offset)

    def _header(self, member: Member) -> bytes:
        info = tarfile.TarInfo(member.name)
        info.size, info.mtime, info.mode = member.size, self.mtime, 0o644
        try:
            if member.size <= _USTAR_SIZE:
                return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
        except ValueError:
            pass  # the name does not fit
        return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")
