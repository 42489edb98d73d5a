"""OCI image layouts in folders (image-spec 1.1, image-layout.md): ``oci:PATH[:TAG][@DIGEST]``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_diffah.engine.access import DEFAULT_ACCESS, Access
from prefect_diffah.engine.errors import NotFound
from prefect_diffah.engine.oci import MAX_MANIFEST
from prefect_diffah.engine.storage import FileLocation
from prefect_diffah.engine.transports import _folders as folders
from prefect_diffah.engine.transports import _layout as layout
from prefect_diffah.engine.transports.base import Written

if TYPE_CHECKING:
    from prefect_diffah.engine.oci import Descriptor, Digest, Reference
    from prefect_diffah.engine.transports.base import BlobSource, OutgoingImage, WriteOptions

__all__ = ["OCILayoutReader", "OCILayoutWriter"]


class OCILayoutReader(layout.LayoutReader):
    """Reads images of a layout, on any fsspec filesystem."""

    def __init__(self, reference: Reference, access: Access = DEFAULT_ACCESS) -> None:
        super().__init__(layout.FolderFiles(FileLocation(reference.where, access)), reference)


class OCILayoutWriter(layout.Opened):
    """Writes images into a layout, on any fsspec filesystem.

    A local folder that is not there appears by rename. A layout that exists
    gains blobs, each atomically, and its index.json is replaced last; so it is
    on object stores, where folders cannot be renamed. Tags move.
    """

    def __init__(self, reference: Reference, access: Access = DEFAULT_ACCESS) -> None:
        self._reference = reference
        self._location = FileLocation(reference.where, access)
        self._files = layout.FolderFiles(self._location)
        self._verified: set[Digest] = set()

    def check(self, image: OutgoingImage, *, force: bool) -> bool:
        layout.require_digest(image, self._reference)
        if self._location.is_null or not self._is_layout(force=force):
            return False
        return self._names(image) and all(self._holds(descriptor) for descriptor in (*image.manifests, *image.blobs))

    def obtain(self, image: OutgoingImage, descriptor: Descriptor) -> bool:
        return not self._location.is_null and self._holds(descriptor)

    def write(self, image: OutgoingImage, blobs: BlobSource, options: WriteOptions) -> Written:
        notes = layout.layout_notes(image)
        if self.check(image, force=options.force):
            return Written(location=str(self._reference), status="unchanged", root=image.root.digest, bytes_written=0, notes=notes)
        if self._location.is_null:
            written = folders.drained(image, blobs)
        elif self._location.local is None or self._is_layout(force=options.force):
            written = self._add(self._location, image, blobs)
        else:
            a_file = self._location.exists() and not self._location.is_dir()
            with folders.appearing(self._location, folders.total_size(image), replace=a_file) as folder:
                written = self._add(folder, image, blobs)
        return Written(location=str(self._reference), status="written", root=image.root.digest, bytes_written=written, notes=notes)

    def _add(self, folder: FileLocation, image: OutgoingImage, blobs: BlobSource) -> int:
        # the version first: it makes what a killed run leaves behind known for a layout
        written = folders.put(folder.child(layout.LAYOUT), layout.LAYOUT_CONTENT) if self._files.size(layout.LAYOUT) is None else 0
        for descriptor in image.blobs:
            if not self._holds(descriptor):
                written += folders.put_blob(folder.child(layout.blob_name(descriptor.digest)), blobs, descriptor)
        for descriptor in image.manifests:
            if not self._holds(descriptor):
                written += folders.put(folder.child(layout.blob_name(descriptor.digest)), image.documents[descriptor.digest])
        if (index := self._new_index(image)) is not None:
            written += folders.put(folder.child(layout.INDEX), index)
        return written

    def _is_layout(self, *, force: bool) -> bool:
        """Whether a layout is there already. Raises: OutputExists when something else is."""
        if self._files.size(layout.LAYOUT) is None and self._files.size(layout.INDEX) is None:
            folders.replaceable(self._location, force=force)
            return False
        layout.require_layout_version(self._files)
        return True

    def _index(self) -> bytes | None:
        try:
            return self._files.read(layout.INDEX, MAX_MANIFEST)
        except NotFound:
            return None

    def _names(self, image: OutgoingImage) -> bool:
        tag, index = layout.tag_of(image, self._reference), self._index()
        named = [entry.digest for entry in layout.parse_index(index).manifests if entry.annotations.get(layout.REF_NAME) == tag] if index else []
        return named == [image.root.digest]

    def _new_index(self, image: OutgoingImage) -> bytes | None:
        """The index.json to write; None where it names the image already."""
        if self._names(image):
            return None
        entry = layout.index_entry(image, {layout.REF_NAME: layout.tag_of(image, self._reference)})
        index = self._index()
        return layout.new_index([entry]) if index is None else layout.tagged(index, entry)

    def _holds(self, descriptor: Descriptor) -> bool:
        if descriptor.digest not in self._verified:
            if not folders.verifies(self._location.child(layout.blob_name(descriptor.digest)), descriptor):
                return False
            self._verified.add(descriptor.digest)
        return True
