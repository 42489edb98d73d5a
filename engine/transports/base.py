"""What a transport is: a place that images are read from, or written to.

One file a transport. ``open_reader`` and ``open_writer`` choose it. Readers
and writers are opened where they are used and closed at the end of the block;
they are not picklable. Methods are safe to call from several threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from prefect_diffah.engine.model import Model
from prefect_diffah.engine.oci import Descriptor, Digest

__all__ = ["DEFAULT_OPTIONS", "BlobSource", "ImageReader", "ImageWriter", "OutgoingImage", "WriteOptions", "Written"]


class BlobSource(Protocol):
    """Anything that hands out blobs by descriptor."""

    def stream(self, descriptor: Descriptor) -> AbstractContextManager[Iterator[bytes]]:
        """The blob's bytes, checked against digest and size as they are read.

        Raises:
            NotFound: it is not here.
            DigestMismatch, SizeMismatch: it is something else.
        """


class ImageReader(BlobSource, Protocol):
    """A place that images are read from."""

    notes: tuple[str, ...]
    """What the user should know of this image: a synthesized manifest, a digest that cannot survive."""

    def root(self) -> tuple[Descriptor, bytes]:
        """What the reference names: a manifest or an index, and its bytes.

        Raises:
            NotFound: no image of that tag or digest.
            InvalidOptions: the place holds several and the reference chooses none.
        """

    def entries(self) -> Sequence[Descriptor]:
        """Every root in this place that can be listed without asking a registry for its catalogue: those of index.json; else the root alone."""

    def document(self, descriptor: Descriptor) -> bytes:
        """A manifest, index or config, whole and verified; over 4 MiB is SizeMismatch."""

    def holds(self, descriptor: Descriptor) -> bool:
        """Whether ``stream`` would find this blob, told without reading it."""

    def close(self) -> None: ...
    def __enter__(self) -> ImageReader: ...
    def __exit__(self, *exc: object) -> None: ...


@dataclass(frozen=True)
class OutgoingImage:
    """One image tree ready to be written: documents in hand, blobs elsewhere."""

    name: str
    """``app:v2``; what it is called where a place needs a name."""
    root: Descriptor
    documents: dict[Digest, bytes]
    """Raw bytes of the root and of every manifest below it."""
    manifests: tuple[Descriptor, ...]
    """Their descriptors, children before parents, root last."""
    blobs: tuple[Descriptor, ...]
    """Configs and layers, each once, in the order of the manifests."""
    mountable_from: tuple[str, ...] = ()
    """``host/repository`` names where a registry may find the blobs already."""


@dataclass(frozen=True)
class WriteOptions:
    """How to write."""

    force: bool = False
    """Replace an output that holds something else."""
    workers: int = 4
    """Blobs transferred at a time."""
    mtime: int = 0
    """Time of archive members, seconds since 1970."""


DEFAULT_OPTIONS = WriteOptions()


class Written(Model):
    """What became of an output."""

    location: str
    status: Literal["written", "unchanged"]
    """``unchanged``: it held exactly this already."""
    root: Digest | None = None
    """The digest that the image has there; None where it cannot survive."""
    bytes_written: int
    size: int | None = None
    """Bytes of the output, where it is one file."""
    notes: tuple[str, ...] = ()


class ImageWriter(Protocol):
    """A place that images are written to."""

    def check(self, image: OutgoingImage, *, force: bool) -> bool:
        """Whether the place already holds exactly this, told before any work is done.

        Raises:
            OutputExists: it holds something else, and ``force`` is not given.
            AccessDenied, NotFound: it cannot be written to (what can be told without writing).
        """

    def obtain(self, image: OutgoingImage, descriptor: Descriptor) -> bool:
        """Whether the place has this blob, or can be made to without bytes from here (a cross-repository mount)."""

    def write(self, image: OutgoingImage, blobs: BlobSource, options: WriteOptions) -> Written:
        """Write the image; it appears whole or not at all.

        Blobs that the place has already are not asked of ``blobs``.
        """

    def close(self) -> None: ...
    def __enter__(self) -> ImageWriter: ...
    def __exit__(self, *exc: object) -> None: ...
