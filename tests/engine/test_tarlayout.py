"""Archives whose bytes are known beforehand: as other tools read them, and checked to the bit."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_diffah.engine.errors import ContentError, DigestMismatch, InvalidArchive, SizeMismatch
from prefect_diffah.engine.oci import Digest
from prefect_diffah.engine.tarlayout import Blob, Member, TarLayout

names = st.one_of(
    st.from_regex(r"[a-z]{1,20}", fullmatch=True),
    st.builds("blobs/sha256/{}".format, st.from_regex(r"[0-9a-f]{64}", fullmatch=True)),
    st.builds("blobs/sha512/{}".format, st.from_regex(r"[0-9a-f]{128}", fullmatch=True)),
    st.text("äöü/語", min_size=1, max_size=90).map(lambda name: f"x{name.strip('/')}x"),
)
contents = st.dictionaries(names, st.tuples(st.booleans(), st.one_of(st.binary(max_size=40), st.binary(min_size=500, max_size=1100))), max_size=6)


def laid_out(content: dict[str, tuple[bool, bytes]], mtime: int = 0) -> tuple[TarLayout, bytes]:
    """A layout, some of its members blobs, and the archive it writes."""
    blobs = {Digest.of(data): data for _, data in content.values()}
    members = tuple(Member(name, Blob(Digest.of(data), len(data)) if is_blob else data) for name, (is_blob, data) in content.items())
    layout = TarLayout(members, mtime)

    @contextlib.contextmanager
    def opened(blob: Blob) -> Iterator[list[bytes]]:
        data = blobs[blob.digest]
        yield [data[:10], data[10:]]

    return layout, b"".join(layout.stream(opened))


@given(contents, st.integers(0, 2**31))
def test_other_tools_read_it(content: dict[str, tuple[bool, bytes]], mtime: int) -> None:
    layout, archive = laid_out(content, mtime)
    assert layout.size == len(archive)
    assert len(archive) % 10240 == 0
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert {member.name: tar.extractfile(member).read() for member in tar} == {name: data for name, (_, data) in content.items()}  # type: ignore[union-attr]
        assert {(member.mode, member.uid, member.gid, member.uname, member.gname, member.mtime) for member in tar} <= {(0o644, 0, 0, "", "", mtime)}
    layout.check(io.BytesIO(archive))


ONE, ARCHIVE = laid_out({"index.json": (False, b"{}"), "blobs/sha256/aa": (True, bytes(range(256)) * 3), "z" * 120: (True, b""), "last": (True, b"x" * 512)})
BLOB_AT = ARCHIVE.index(bytes(range(256)))


@settings(max_examples=300)
@given(st.integers(0, len(ARCHIVE) - 1), st.integers(0, 7))
def test_one_bit_changed_anywhere_is_found(at: int, bit: int) -> None:
    altered = bytearray(ARCHIVE)
    altered[at] ^= 1 << bit
    with pytest.raises((InvalidArchive, DigestMismatch)) as caught:
        ONE.check(io.BytesIO(bytes(altered)))
    if isinstance(caught.value, InvalidArchive):
        assert caught.value.details["offset"] == at


@settings(max_examples=100)
@given(st.integers(0, len(ARCHIVE) - 1))
def test_truncated_anywhere_is_found(at: int) -> None:
    with pytest.raises((InvalidArchive, SizeMismatch)):
        ONE.check(io.BytesIO(ARCHIVE[:at]))


def test_more_after_the_end_is_found() -> None:
    with pytest.raises(InvalidArchive, match="goes on"):
        ONE.check(io.BytesIO(ARCHIVE + b"\0"))


def test_without_hashing_only_what_lies_around_the_blobs_counts() -> None:
    altered = bytearray(ARCHIVE)
    altered[BLOB_AT] ^= 1
    ONE.check(io.BytesIO(bytes(altered)), blobs=False)
    with pytest.raises(DigestMismatch):
        ONE.check(io.BytesIO(bytes(altered)))
    altered[BLOB_AT - 1] ^= 1
    with pytest.raises(InvalidArchive):
        ONE.check(io.BytesIO(bytes(altered)), blobs=False)


def test_the_file_is_checked_from_its_start() -> None:
    file = io.BytesIO(ARCHIVE)
    file.read(100)
    ONE.check(file)


@pytest.mark.parametrize("size", [0o77777777777, 0o77777777777 + 1, 2**40])
def test_members_of_8_gib_and_more(size: int) -> None:
    layout = TarLayout((Member("blob", Blob(Digest.of(b""), size)), Member("after", b"x")))
    header = next(segment for segment in layout.segments() if isinstance(segment, bytes))
    is_pax = size > 0o77777777777
    assert header[156:157] == (tarfile.XHDTYPE if is_pax else tarfile.REGTYPE)
    assert tarfile.TarInfo.frombuf(header[:512], "utf-8", "strict").size == (size if not is_pax else len(f" size={size}\n") + 2)
    assert layout.size % 10240 == 0
    assert layout.size > size


def test_pax_only_where_ustar_cannot() -> None:
    _, short = laid_out({"blobs/sha256/" + "a" * 64: (False, b"")})
    _, long = laid_out({"blobs/sha512/" + "a" * 128: (False, b"")})
    assert short[257:263] == long[257:263] == b"ustar\0"
    assert (short[156:157], long[156:157]) == (tarfile.REGTYPE, tarfile.XHDTYPE)


def test_a_blob_that_fails_fails_the_stream() -> None:
    layout = TarLayout((Member("blob", Blob(Digest.of(b"x"), 1)),))

    @contextlib.contextmanager
    def opened(blob: Blob) -> Iterator[list[bytes]]:
        raise DigestMismatch("not those bytes")
        yield []

    with pytest.raises(ContentError):
        list(layout.stream(opened))
