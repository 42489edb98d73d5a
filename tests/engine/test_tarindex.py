"""Untrusted tars: what is accepted, what is refused, and that nothing else ever happens."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import shutil
import tarfile
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_diffah.engine import tarindex
from prefect_diffah.engine.errors import InvalidArchive, NoSpace, NotFound, SizeMismatch
from prefect_diffah.engine.storage import FileLocation
from prefect_diffah.engine.tarindex import TarIndex

Member = tuple[str, bytes] | tarfile.TarInfo

CONTENTS = {"index.json": b'{"a":1}', "blobs/sha256/" + "0" * 64: bytes(range(256)) * 5, "empty": b"", "d" * 120 + "/" + "e" * 130: b"long"}


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def tar(*members: Member, format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as out:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                out.addfile(member)
            else:
                out.addfile(entry(member[0], size=len(member[1])), io.BytesIO(member[1]))
    return buffer.getvalue()


@pytest.fixture
def index(tmp_path: Path) -> Callable[..., TarIndex]:
    def made(data: bytes, workdir: Path | None = None, *, links: bool = False) -> TarIndex:
        path = tmp_path / f"{uuid.uuid4().hex}.tar"
        path.write_bytes(data)
        return TarIndex(FileLocation(str(path)), str(workdir) if workdir else None, links=links)

    return made


def read(data: bytes, *, links: bool = False) -> dict[str, bytes]:
    """Every member's content, from an archive that is on no disk."""
    location = FileLocation(f"memory://{uuid.uuid4().hex}")
    with location.replacing() as file:
        file.write(data)
    try:
        with TarIndex(location, links=links) as found:
            return {name: b"".join(found.chunks(name)) for name in found.members}
    finally:
        location.remove()


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_and_their_content(format: int) -> None:
    assert read(tar(entry("blobs", tarfile.DIRTYPE), *CONTENTS.items(), entry("blobs/", tarfile.DIRTYPE), format=format)) == CONTENTS


def test_names_are_normalised() -> None:
    assert read(tar(entry("./", tarfile.DIRTYPE), ("./a", b"1"), (".//b/./c", b"2"))) == {"a": b"1", "b/c": b"2"}


def test_reading(index: Callable[..., TarIndex]) -> None:
    with index(tar(("a", b"12345"))) as found:
        assert found.size("a") == 5
        assert found.size("b") is None
        assert found.read("a", 5) == b"12345"
        with pytest.raises(SizeMismatch):
            found.read("a", 4)
        with pytest.raises(NotFound):
            found.read("b", 4)


LINKS = [entry("here", tarfile.SYMTYPE, "real"), entry("d/up", tarfile.SYMTYPE, "../real"), entry("d/hard", tarfile.LNKTYPE, "real")]


def test_links_are_followed_where_they_are_asked_for() -> None:
    content = read(tar(("real", b"content"), *LINKS, entry("chain", tarfile.SYMTYPE, "d/up")), links=True)
    assert content == dict.fromkeys(["real", "here", "d/up", "d/hard", "chain"], b"content")


@pytest.mark.parametrize("link", LINKS, ids=lambda link: link.name)
def test_links_are_refused_otherwise(link: tarfile.TarInfo) -> None:
    with pytest.raises(InvalidArchive, match="link"):
        read(tar(("real", b"content"), link))


@pytest.mark.parametrize(
    "link",
    [
        entry("a", tarfile.SYMTYPE, "../real"),
        entry("a", tarfile.SYMTYPE, "/real"),
        entry("d/a", tarfile.SYMTYPE, "../../real"),
        entry("d/a", tarfile.SYMTYPE, "x/../../../d/real"),
        entry("a", tarfile.LNKTYPE, "../real"),
        entry("d/a", tarfile.LNKTYPE, "../real"),
        entry("a", tarfile.SYMTYPE, "a"),
        entry("a", tarfile.LNKTYPE, "a"),
        entry("a", tarfile.SYMTYPE, "nowhere"),
        entry("a", tarfile.SYMTYPE, ""),
        entry("a", tarfile.SYMTYPE, "re\x01al"),
        entry("real", tarfile.SYMTYPE, "other"),
    ],
    ids=lambda link: f"{link.name}-{link.linkname!r}",
)
def test_links_out_of_it_in_circles_and_to_nothing(link: tarfile.TarInfo) -> None:
    with pytest.raises(InvalidArchive):
        read(tar(("real", b"content"), link), links=True)


def test_a_circle_of_links() -> None:
    circle = [entry("a", tarfile.SYMTYPE, "b"), entry("b", tarfile.SYMTYPE, "c"), entry("c", tarfile.SYMTYPE, "a")]
    with pytest.raises(InvalidArchive, match="circle"):
        read(tar(*circle), links=True)


def test_a_long_chain_of_links() -> None:
    chain = [entry(f"l{n}", tarfile.SYMTYPE, f"l{n + 1}") for n in range(100)]
    with pytest.raises(InvalidArchive, match="circle"):
        read(tar(*chain, ("l100", b"")), links=True)


@pytest.mark.parametrize(
    "member",
    [
        ("/absolute", b""),
        ("../up", b""),
        ("a/../../up", b""),
        ("a/../b", b""),
        ("a\nb", b""),
        ("a\x7fb", b""),
        ("a", b"duplicate"),
        ("./a", b"duplicate"),
        ("folder", b"of the same name"),
        (".", b"no name"),
        entry("a", tarfile.DIRTYPE),
        entry("..", tarfile.DIRTYPE),
        entry("/", tarfile.DIRTYPE),
        entry("x", tarfile.CHRTYPE),
        entry("x", tarfile.BLKTYPE),
        entry("x", tarfile.FIFOTYPE),
        entry("x", tarfile.CONTTYPE),
        entry("x", b"Z"),
    ],
    ids=lambda member: f"{member.name}-{member.type}" if isinstance(member, tarfile.TarInfo) else repr(member[0]),
)
def test_what_is_refused(member: Member) -> None:
    with pytest.raises(InvalidArchive):
        read(tar(entry("folder", tarfile.DIRTYPE), ("a", b"first"), member), links=True)


def test_names_that_are_not_utf8() -> None:
    data = bytearray(tar(("abc", b"1"), format=tarfile.USTAR_FORMAT))
    data[1] = 0xFF
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))
    with pytest.raises(InvalidArchive, match="UTF-8"):
        read(bytes(data))


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_sparse_members(version: str) -> None:
    info = entry("sparse", size=1024)
    major, minor = version.split(".")
    info.pax_headers = {
        "0.0": {"GNU.sparse.size": "4096", "GNU.sparse.offset": "0", "GNU.sparse.numbytes": "512"},
        "0.1": {"GNU.sparse.map": "0,512", "GNU.sparse.size": "4096", "GNU.sparse.name": "x"},
        "1.0": {"GNU.sparse.major": major, "GNU.sparse.minor": minor, "GNU.sparse.realsize": "4096", "GNU.sparse.name": "x"},
    }[version]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as out:
        out.addfile(info, io.BytesIO(b"1\n0\n512\n".ljust(1024, b"\0")))
    with pytest.raises(InvalidArchive):
        read(buffer.getvalue())


def test_a_sparse_map_that_is_cut_off() -> None:
    info = bytearray(entry("sparse", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    info[482] = 1
    info[148:156] = b"%06o\0 " % (sum(info[:148]) + 8 * 32 + sum(info[156:512]))
    with pytest.raises(InvalidArchive):
        read(bytes(info))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("size", [65 * 1024, 2**40])
def test_extended_headers_of_great_size(kind: bytes, size: int) -> None:
    header = entry("x", kind, size=size).tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(InvalidArchive):
        read(header + bytes(min(size, 100 * 1024)) + tar(("a", b"1")))


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, b"Z"])
@pytest.mark.parametrize("size", [-1, -512, -1024])
def test_negative_sizes(kind: bytes, size: int) -> None:
    info = bytearray(entry("x", kind).tobuf(tarfile.GNU_FORMAT))
    info[124:136] = size.to_bytes(12, "big", signed=True)
    info[148:156] = b"%06o\0 " % (sum(info[:148]) + 8 * 32 + sum(info[156:512]))
    with pytest.raises(InvalidArchive):
        read(tar(("a", b"1"))[:1024] + bytes(info) + bytes(1024))


def test_more_headers_in_a_row_than_can_be_followed() -> None:
    name = entry("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=2).tobuf(tarfile.GNU_FORMAT) + b"a\0".ljust(512, b"\0")
    with pytest.raises(InvalidArchive):
        read(name * 3000 + tar(("a", b"1")))


def test_a_member_larger_than_the_file() -> None:
    with pytest.raises(InvalidArchive, match="beyond its end"):
        read(entry("a", size=2**33).tobuf(tarfile.GNU_FORMAT) + bytes(1024))


def test_too_many_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tarindex, "MAX_MEMBERS", 3)
    members = [(name, b"") for name in "abcd"]
    assert len(read(tar(*members[:3]))) == 3
    with pytest.raises(InvalidArchive, match="more than 3"):
        read(tar(*members))


@pytest.mark.parametrize("data", [b"", b"x", b"x" * 511, b"x" * 512, b"x" * 2000, b'{"not":"a tar"}', b"PK\3\4" + bytes(600)])
def test_what_is_no_tar(data: bytes) -> None:
    with pytest.raises(InvalidArchive):
        read(data)


def test_an_empty_tar() -> None:
    assert read(bytes(10240)) == {}


ARCHIVE = tar(*CONTENTS.items())
END = len(ARCHIVE.rstrip(b"\0")) + (-len(ARCHIVE.rstrip(b"\0")) % 512) + 512
"""Up to here every byte is needed: the members, and one block of zeros."""


@settings(max_examples=150)
@given(st.integers(0, len(ARCHIVE)))
def test_truncated_anywhere(at: int) -> None:
    if at >= END:
        assert read(ARCHIVE[:at]) == CONTENTS
    else:
        with pytest.raises(InvalidArchive):
            read(ARCHIVE[:at])


@settings(max_examples=300)
@given(st.integers(0, len(ARCHIVE) - 1), st.integers(0, 7))
def test_one_bit_changed_anywhere(at: int, bit: int) -> None:
    data = bytearray(ARCHIVE)
    data[at] ^= 1 << bit
    try:
        content = read(bytes(data), links=True)
    except InvalidArchive:
        return
    # a header has a checksum, PAX records and content do not: what differs differs there
    assert sum(content.get(name) != expected for name, expected in CONTENTS.items()) <= 1


@settings(max_examples=200)
@given(st.binary(max_size=3000), st.integers(0, 6))
def test_noise_after_a_header(noise: bytes, kind: int) -> None:
    header = entry("a", [b"0", b"x", b"g", b"L", b"K", b"S", b"5"][kind], size=len(noise)).tobuf(tarfile.GNU_FORMAT)
    with contextlib.suppress(InvalidArchive):
        read(header + noise + bytes(-len(noise) % 512 + 1024), links=True)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
class TestCompressed:
    def test_it_is_read(self, tmp_path: Path, compress: Callable[[bytes], bytes], index: Callable[..., TarIndex]) -> None:
        with index(compress(ARCHIVE), tmp_path / "work") as found:
            assert {name: b"".join(found.chunks(name)) for name in found.members} == CONTENTS
            assert os.listdir(tmp_path / "work") == []

    def test_damaged(self, compress: Callable[[bytes], bytes], index: Callable[..., TarIndex]) -> None:
        data = bytearray(compress(os.urandom(20_000) + ARCHIVE))
        data[len(data) // 2] ^= 0x20
        with pytest.raises(InvalidArchive):
            index(bytes(data))

    def test_truncated(self, compress: Callable[[bytes], bytes], index: Callable[..., TarIndex]) -> None:
        with pytest.raises(InvalidArchive, match="damaged"):
            index(compress(ARCHIVE)[:-5])

    def test_something_else_inside(self, compress: Callable[[bytes], bytes], index: Callable[..., TarIndex]) -> None:
        with pytest.raises(InvalidArchive):
            index(compress(b"no tar" * 200))

    def test_no_room_to_inflate(self, compress: Callable[[bytes], bytes], index: Callable[..., TarIndex], monkeypatch: pytest.MonkeyPatch) -> None:
        # every look finds less room, as where the archive itself fills the disk
        free = iter(range(30 * 1024 * 1024, 0, -1024 * 1024))
        monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": next(free)})())
        with pytest.raises(NoSpace):
            index(compress(bytes(40 * 1024 * 1024)))


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_threads_do_not_disturb_each_other(compress: Callable[[bytes], bytes], index: Callable[..., TarIndex]) -> None:
    contents = {f"m{n}": bytes([n]) * 3_000_000 for n in range(4)}

    def whole(name: str) -> bool:
        return b"".join(found.chunks(name)) == contents[name]

    with index(compress(tar(*contents.items()))) as found, ThreadPoolExecutor(4) as pool:
        assert all(pool.map(whole, list(contents) * 4))


def test_cut_short_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar(("a", bytes(5_000_000))))
    with TarIndex(FileLocation(str(path))) as found:
        os.truncate(path, 2_000_000)
        with pytest.raises(InvalidArchive, match="cut short"):
            list(found.chunks("a"))


class TestShared:
    """Steps of one run open the same archive again and again."""

    def put(self, path: Path, data: bytes, *, age: int = 60) -> FileLocation:
        path.write_bytes(data)
        then = path.stat().st_mtime - age
        os.utime(path, (then, then))
        return FileLocation(str(path))

    def test_a_compressed_archive_is_decompressed_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        inflations: list[str] = []
        inflated = tarindex.inflated
        monkeypatch.setattr(tarindex, "inflated", lambda *args: inflations.append("") or inflated(*args))
        location = self.put(tmp_path / "a.tar.gz", gzip.compress(tar(*CONTENTS.items())))
        for _ in range(3):
            with TarIndex.shared(location) as opened:
                assert {name: opened.read(name, 10_000) for name in CONTENTS} == CONTENTS
        assert len(inflations) == 1

    def test_a_file_that_changed_is_indexed_anew(self, tmp_path: Path) -> None:
        first = TarIndex.shared(self.put(tmp_path / "a.tar", tar(("old", b"1"))))
        second = TarIndex.shared(self.put(tmp_path / "a.tar", tar(("new", b"2")), age=30))
        assert (list(first.members), list(second.members)) == (["old"], ["new"])

    def test_a_file_that_may_be_changing_is_not_remembered(self, tmp_path: Path) -> None:
        location = self.put(tmp_path / "a.tar", tar(("old", b"1")), age=0)
        assert TarIndex.shared(location) is not TarIndex.shared(location)

    def test_with_and_without_links_are_different_matters(self, tmp_path: Path) -> None:
        location = self.put(tmp_path / "a.tar", tar(("file", b"1"), entry("link", tarfile.SYMTYPE, "file")))
        assert TarIndex.shared(location, links=True).read("link", 10) == b"1"
        with pytest.raises(InvalidArchive):
            TarIndex.shared(location)

    def test_threads_that_open_one_archive_decompress_it_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        inflations: list[str] = []
        inflated = tarindex.inflated
        monkeypatch.setattr(tarindex, "inflated", lambda *args: inflations.append("") or inflated(*args))
        location = self.put(tmp_path / "a.tar.gz", gzip.compress(tar(*CONTENTS.items())))
        with ThreadPoolExecutor(8) as pool:
            indexes = list(pool.map(lambda _: TarIndex.shared(location), range(8)))
        assert len(inflations) == len(set(map(id, indexes))) == 1

    def test_one_decompressed_copy_is_kept(self, tmp_path: Path) -> None:
        for number in range(3):
            TarIndex.shared(self.put(tmp_path / f"{number}.tar.gz", gzip.compress(tar(("file", b"1")))))
        assert len([index for index in tarindex._recent.values() if index._spool is not None]) == 1

    def test_few_are_kept_and_those_in_use_stay_open(self, tmp_path: Path) -> None:
        used = TarIndex.shared(self.put(tmp_path / "used.tar.gz", gzip.compress(tar(("file", b"1")))))
        for number in range(tarindex.RECENT + 1):
            TarIndex.shared(self.put(tmp_path / f"{number}.tar", tar(("file", b"2"))))
        assert len(tarindex._recent) == tarindex.RECENT
        assert used.read("file", 10) == b"1"
