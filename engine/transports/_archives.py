"""Writing an image as one archive, whose every byte is known beforehand."""

from __future__ import annotations

import tarfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prefect_diffah.engine.access import DEFAULT_ACCESS, Access
from prefect_diffah.engine.errors import ContentError, NotFound, OutputExists
from prefect_diffah.engine.storage import FileLocation
from prefect_diffah.engine.tarlayout import Blob, Member, TarLayout
from prefect_diffah.engine.transports import _layout as layout
from prefect_diffah.engine.transports.base import Written

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefect_diffah.engine.oci import Descriptor, Reference
    from prefect_diffah.engine.transports.base import BlobSource, OutgoingImage, WriteOptions

__all__ = ["ArchiveWriter"]


class ArchiveWriter(layout.Opened):
    """An ``ImageWriter`` of an OCI image layout in a tar, on any fsspec filesystem."""

    def __init__(self, reference: Reference, access: Access = DEFAULT_ACCESS) -> None:
        self._reference = reference
        self._location = FileLocation(reference.where, access)

    def metadata(self, image: OutgoingImage) -> dict[str, bytes]:
        """The files of the archive that are not blobs, by name."""
        raise NotImplementedError

    def notes(self, image: OutgoingImage) -> tuple[str, ...]:
        """What the user should know of the image in such an archive."""
        return ()

    def check(self, image: OutgoingImage, *, force: bool) -> bool:
        layout.require_digest(image, self._reference)
        where, plain = str(self._location), self._tar(image, 0)
        if self._location.is_null:
            return False
        try:
            size = self._location.size()
        except NotFound:
            return False
        if self._location.is_dir():
            raise OutputExists(f"{where} is a folder", next_action="Choose a file as the output.", path=where)
        if size == plain.size:
            try:
                with self._location.translated("read"), self._location.open() as file:
                    # archives of one image differ in nothing but the time that their members carry
                    TarLayout(plain.members, _time_of(file.read(tarfile.BLOCKSIZE))).check(file)
                return True
            except ContentError:
                pass
        if not force:
            raise OutputExists(f"{where} holds something else", path=where)
        return False

    def obtain(self, image: OutgoingImage, descriptor: Descriptor) -> bool:
        return False

    def write(self, image: OutgoingImage, blobs: BlobSource, options: WriteOptions) -> Written:
        if self.check(image, force=options.force):
            size = self._location.size()
            return Written(location=str(self._reference), status="unchanged", root=image.root.digest, bytes_written=0, size=size, notes=self.notes(image))
        tar = self._tar(image, options.mtime)
        descriptors = {descriptor.digest: descriptor for descriptor in image.blobs}

        @contextmanager
        def opened(blob: Blob) -> Iterator[Iterator[bytes]]:
            with blobs.stream(descriptors[blob.digest]) as chunks:
                yield chunks

        with self._location.replacing(tar.size) as file:
            for chunk in tar.stream(opened):
                file.write(chunk)
        return Written(location=str(self._reference), status="written", root=image.root.digest, bytes_written=tar.size, size=tar.size, notes=self.notes(image))

    def _tar(self, image: OutgoingImage, mtime: int) -> TarLayout:
        contents: dict[str, bytes | Blob] = {layout.blob_name(blob.digest): Blob(blob.digest, blob.size) for blob in image.blobs}
        contents |= {layout.blob_name(manifest.digest): image.documents[manifest.digest] for manifest in image.manifests}
        names = [*sorted(metadata := self.metadata(image)), *sorted(contents)]
        return TarLayout(tuple(Member(name, metadata.get(name) or contents[name]) for name in names), mtime)


def _time_of(header: bytes) -> int:
    """The time that the first member carries; 0 if that is no header."""
    try:
        return int(tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").mtime)
    except (tarfile.HeaderError, ValueError):
        return 0
