"""OCI image layouts in a tar: ``oci-archive:PATH[:TAG][@DIGEST]``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_diffah.engine.access import DEFAULT_ACCESS, Access
from prefect_diffah.engine.storage import FileLocation
from prefect_diffah.engine.tarindex import TarIndex
from prefect_diffah.engine.transports import _layout as layout
from prefect_diffah.engine.transports._archives import ArchiveWriter

if TYPE_CHECKING:
    from prefect_diffah.engine.oci import Reference
    from prefect_diffah.engine.transports.base import OutgoingImage

__all__ = ["OCIArchiveReader", "OCIArchiveWriter"]


class OCIArchiveReader(layout.LayoutReader):
    """Reads images of an archive, whatever the order and compression of its members."""

    def __init__(self, reference: Reference, access: Access = DEFAULT_ACCESS, workdir: str | None = None) -> None:
        files = TarIndex.shared(FileLocation(reference.where, access), workdir)
        try:
            super().__init__(files, reference)
        except BaseException:
            files.close()
            raise


class OCIArchiveWriter(ArchiveWriter):
    """Writes an image as an archive: index.json, oci-layout, then the blobs by name."""

    def metadata(self, image: OutgoingImage) -> dict[str, bytes]:
        entry = layout.index_entry(image, {layout.REF_NAME: layout.tag_of(image, self._reference)})
        return {layout.INDEX: layout.new_index([entry]), layout.LAYOUT: layout.LAYOUT_CONTENT}

    def notes(self, image: OutgoingImage) -> tuple[str, ...]:
        return layout.layout_notes(image)
