"""Compressed streams: told by their first bytes, inflated a piece at a time."""

from __future__ import annotations

import bz2
import lzma
import zlib
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol

from prefect_diffah.engine.errors import InvalidArchive, Unsupported
from prefect_diffah.engine.storage import CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["MAGIC_LENGTH", "Compression", "bounded", "compression_of", "inflated"]

Compression = Literal["gzip", "bzip2", "xz", "zstd"]

MAGIC_LENGTH = 6
"""Bytes that ``compression_of`` needs to see."""
MAX_RATIO = 1100
"""Bytes that a compressed byte may become; gzip reaches 1032."""
FREE_SIZE = 1024 * 1024 * 1024
"""Bytes up to which a stream may inflate whatever its ratio."""
_MAGIC: dict[bytes, Compression] = {b"\x1f\x8b\x08": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_XZ_MEMORY = 512 * 1024 * 1024
"""Bytes of memory that an xz stream may ask for (``xz -9`` asks for 65 MiB)."""
_ZSTD_SLICE = 1024
"""Bytes handed to the zstandard package at a time."""


def compression_of(head: bytes) -> Compression | None:
    """What compresses a stream that begins with ``head``; None if nothing known does."""
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def bounded(chunks: Iterable[bytes], stored: int, what: str) -> Iterator[bytes]:
    """Inflated ``chunks``, as long as they may honestly come from ``stored`` compressed bytes.

    Raises:
        InvalidArchive: there are more.
    """
    size, most = 0, max(FREE_SIZE, MAX_RATIO * stored)
    for chunk in chunks:
        size += len(chunk)
        if size > most:
            raise InvalidArchive(f"the {what} inflates without end: {stored} bytes to more than {most}", stored=stored)
        yield chunk


def inflated(chunks: Iterable[bytes], compression: Compression, what: str = "stream") -> Iterator[bytes]:
    """The content of a compressed stream, in pieces of some MiB at most, whatever its ratio.

    Concatenated streams are read as one, as their tools do.

    Args:
        what: how errors call the stream.

    Raises:
        InvalidArchive: damaged, or truncated.
        Unsupported: zstd, where this Python has no decoder.
    """
    try:
        match compression:
            case "gzip":
                yield from _streams(chunks, _Gzip)
            case "bzip2":
                yield from _streams(chunks, bz2.BZ2Decompressor)
            case "xz":
                yield from _streams(chunks, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY))
            case "zstd":
                yield from _zstd(chunks)
    except (zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
        raise InvalidArchive(f"the {what} is damaged: {compression}: {error}", compression=compression) from error
    except OSError as error:
        # bz2 says that data is invalid by an OSError without a number
        if error.errno is not None:
            raise
        raise InvalidArchive(f"the {what} is damaged: {compression}: {error}", compression=compression) from error


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """zlib's decompressor with the interface of bz2's and lzma's."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


def _streams(chunks: Iterable[bytes], new: Callable[[], _Decoder]) -> Iterator[bytes]:
    decoder: _Decoder | None = None
    for chunk in chunks:
        left = chunk
        while left or not (decoder is None or decoder.eof or decoder.needs_input):
            if decoder is None or decoder.eof:
                if decoder is not None and not (left := left.lstrip(b"\0")):
                    break  # padding
                decoder = new()
            out = decoder.decompress(left, CHUNK)
            left = decoder.unused_data if decoder.eof else b""
            if out:
                yield out
    if decoder is None or not decoder.eof:
        raise EOFError("it ends too early")


def _zstd(chunks: Iterable[bytes]) -> Iterator[bytes]:
    decoder, failure = _zstd_decoder()
    # the zstandard package's cannot be told how much to hand out, only how much
    # it is given: four bytes make at most a block of 128 KiB
    slices = (chunk[at : at + _ZSTD_SLICE] for chunk in chunks for at in range(0, len(chunk), _ZSTD_SLICE))
    try:
        yield from _streams(slices, decoder)
    except failure as error:
        raise ValueError(error) from error


def _zstd_decoder() -> tuple[Callable[[], _Decoder], type[Exception]]:
    """Python's own decoder (3.14), or that of the zstandard package."""
    with suppress(ImportError):
        own = import_module("compression.zstd")
        return own.ZstdDecompressor, own.ZstdError
    try:
        package = import_module("zstandard")
    except ImportError as error:
        raise Unsupported(
            "this is compressed by zstd, and this Python has no decoder for it",
            next_action="Decompress it first (zstd -d), install the zstandard package, or use Python 3.14.",
        ) from error
    return lambda: _Zstandard(package.ZstdDecompressor().decompressobj()), package.ZstdError


class _Zstandard:
    """The zstandard package's decompressor with the interface of bz2's and lzma's."""

    needs_input = True

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    @property
    def eof(self) -> bool:
        return bool(self._inner.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._inner.unused_data)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return bytes(self._inner.decompress(data))
