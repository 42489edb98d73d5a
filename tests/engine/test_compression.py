"""Streams told by their first bytes and inflated a piece at a time."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import sys
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_diffah.engine import compression
from prefect_diffah.engine.compression import MAGIC_LENGTH, Compression, compression_of, inflated
from prefect_diffah.engine.errors import InvalidArchive, Unsupported
from prefect_diffah.engine.storage import CHUNK


def zstd(data: bytes) -> bytes:
    zstandard = pytest.importorskip("zstandard", reason="no zstd encoder: the zstandard package is not installed")
    return bytes(zstandard.ZstdCompressor(write_checksum=True).compress(data))


METHODS: dict[Compression, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": partial(lzma.compress, preset=0), "zstd": zstd}
every_method = pytest.mark.parametrize("method", METHODS)


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@every_method
@given(parts=st.lists(st.binary(max_size=300), min_size=1, max_size=3), size=st.integers(1, 500))
def test_however_it_is_cut_and_concatenated(method: Compression, parts: list[bytes], size: int) -> None:
    data = b"".join(map(METHODS[method], parts))
    assert compression_of(data[:MAGIC_LENGTH]) == method
    assert b"".join(inflated(cut(data, size), method)) == b"".join(parts)


@every_method
def test_pieces_are_small_whatever_the_ratio(method: Compression) -> None:
    data = METHODS[method](bytes(32 * 1024 * 1024))
    assert len(data) < 100_000
    sizes = list(map(len, inflated([data], method)))
    assert sum(sizes) == 32 * 1024 * 1024
    assert max(sizes) <= 33 * CHUNK if method == "zstd" else max(sizes) <= CHUNK


@every_method
@given(at=st.integers(1, 5000))
def test_truncated_anywhere(method: Compression, at: int) -> None:
    data = METHODS[method](os.urandom(6000))
    with pytest.raises(InvalidArchive, match="the layer is damaged"):
        list(inflated(cut(data[:at], 100), method, "layer"))


@every_method
def test_altered(method: Compression) -> None:
    data = bytearray(METHODS[method](os.urandom(20_000)))
    data[len(data) // 2] ^= 8
    with pytest.raises(InvalidArchive):
        list(inflated([bytes(data)], method))


@every_method
@pytest.mark.parametrize("head", [0, 4])
def test_something_else(method: Compression, head: int) -> None:
    with pytest.raises(InvalidArchive):
        list(inflated([METHODS[method](b"content")[:head] + b"something else entirely"], method))


@every_method
def test_nothing(method: Compression) -> None:
    with pytest.raises(InvalidArchive):
        list(inflated([], method))


def test_padding_after_the_end() -> None:
    assert b"".join(inflated([gzip.compress(b"a") + bytes(100), bytes(500)], "gzip")) == b"a"


@pytest.mark.parametrize("head", [b"", b"\x1f", b"index.json", b"BZ", b"\x1f\x8b\x07", b"\x28\xb5\x2f"])
def test_what_is_not_compressed(head: bytes) -> None:
    assert compression_of(head) is None


def test_an_xz_stream_that_asks_for_much_memory() -> None:
    # lzma.compress(b"small", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 2**30}]), which takes seconds
    data = bytes.fromhex("fd377a585a000004e6d6b44602002101240000005e1fc7f9010004736d616c6c000000003c6fbc74c574128400011d05b82d80af1fb6f37d010000000004595a")
    with pytest.raises(InvalidArchive, match=r"[Mm]emory"):
        list(inflated([data], "xz"))


def test_no_zstd_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("zstandard", "compression", "compression.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Unsupported, match="zstd") as caught:
        list(inflated([b"\x28\xb5\x2f\xfd"], "zstd"))
    assert "zstandard" in caught.value.next_action


def test_faults_of_the_source_pass_through() -> None:
    def broken() -> object:
        yield gzip.compress(b"content")[:5]
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        list(inflated(broken(), "gzip"))  # type: ignore[arg-type]


def test_a_stream_that_inflates_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "FREE_SIZE", 100_000)
    passed: list[int] = []
    endless = bz2.compress(bytes(10_000_000))
    with pytest.raises(InvalidArchive, match="inflates without end"):
        passed.extend(map(len, compression.bounded(inflated([endless], "bzip2"), len(endless), "layer")))
    assert sum(passed) <= 100_000
    honest = gzip.compress(bytes(10_000_000))
    assert sum(map(len, compression.bounded(inflated([honest], "gzip"), len(honest), "layer"))) == 10_000_000
