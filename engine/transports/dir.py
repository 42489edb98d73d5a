"""skopeo's plain folder: ``dir:PATH`` (containers/image, directory/directory_dest.go).

``version``, ``manifest.json``, blobs named by their hexadecimal digits, and
``HEX.manifest.json`` for the manifests below an index.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prefect_diffah.engine.access import DEFAULT_ACCESS, Access
from prefect_diffah.engine.errors import InvalidArchive, NotFound, OutputExists
from prefect_diffah.engine.oci import MAX_MANIFEST, Descriptor, Digest, parse_document
from prefect_diffah.engine.storage import FileLocation
from prefect_diffah.engine.transports import _folders as folders
from prefect_diffah.engine.transports import _layout as layout
from prefect_diffah.engine.transports.base import Written

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prefect_diffah.engine.oci import Reference
    from prefect_diffah.engine.transports.base import BlobSource, OutgoingImage, WriteOptions

__all__ = ["DirReader", "DirWriter"]

VERSION, VERSION_CONTENT = "version", b"Directory Transport Version: 1.1\n"
MANIFEST = "manifest.json"
_KNOWN = re.compile(rb"Directory Transport Version: 1\.\d+\n")
_OURS = re.compile(r"[0-9a-f]{64}(?:[0-9a-f]{64})?(?:\.manifest\.json)?|(?:[0-9a-f]{64}\.)?signature-\d+", re.ASCII)


class DirReader(layout.Opened):
    """Reads the image of a folder, on any fsspec filesystem."""

    notes: tuple[str, ...] = ()

    def __init__(self, reference: Reference, access: Access = DEFAULT_ACCESS) -> None:
        self._files = layout.FolderFiles(FileLocation(reference.where, access))
        where = self._files.location
        try:
            raw = self._files.read(MANIFEST, MAX_MANIFEST)
        except NotFound as error:
            if not where.exists():
                raise NotFound(f"{where} is not there", path=str(where)) from error
            raise InvalidArchive(
                f"{where} is not an image of dir: it has no {MANIFEST}", next_action="Check what it is; an OCI image layout is oci:.", path=str(where)
            ) from error
        if _version(self._files) == "other":
            raise InvalidArchive(f"{where} has a version of dir: that is not known here", path=str(where))
        self._root = parse_document(raw).descriptor()
        self._raw = raw

    def root(self) -> tuple[Descriptor, bytes]:
        return self._root, self._raw

    def entries(self) -> Sequence[Descriptor]:
        return (self._root,)

    def document(self, descriptor: Descriptor) -> bytes:
        return layout.read_document(self.stream, descriptor)

    def holds(self, descriptor: Descriptor) -> bool:
        return self._files.size(self._name(descriptor.digest)) == descriptor.size

    @contextmanager
    def stream(self, descriptor: Descriptor) -> Iterator[Iterator[bytes]]:
        name = self._name(descriptor.digest)
        if self._files.size(name) is None:
            raise NotFound(f"{self._files.location} has no blob {descriptor.digest}", digest=descriptor.digest, path=str(self._files.location))
        with layout.checked(self._files.chunks(name), descriptor) as chunks:
            yield chunks

    def _name(self, digest: Digest) -> str:
        if digest == self._root.digest or (digest.algorithm != self._root.digest.algorithm and digest.matches(self._raw)):
            return MANIFEST
        return digest.hex if self._files.size(digest.hex) is not None else f"{digest.hex}.manifest.json"


class DirWriter(layout.Opened):
    """Writes an image into a folder, on any fsspec filesystem.

    A local folder is made anew and appears by rename; on object stores the
    manifest is written last. Another image of dir: is replaced by force only,
    a folder with anything else never.
    """

    def __init__(self, reference: Reference, access: Access = DEFAULT_ACCESS) -> None:
        self._reference = reference
        self._location = FileLocation(reference.where, access)
        self._files = layout.FolderFiles(self._location)

    def check(self, image: OutgoingImage, *, force: bool) -> bool:
        layout.require_digest(image, self._reference)
        if self._location.is_null:
            return False
        if _version(self._files) != "known":
            folders.replaceable(self._location, force=force)
            return False
        if foreign := sorted(name for name in self._names() if name not in (VERSION, MANIFEST) and not _OURS.fullmatch(name)):
            raise OutputExists(
                f"{self._location} is a folder with other content, which is never deleted: {foreign[0]}",
                next_action="Choose another output, or remove the folder yourself.",
                path=str(self._location),
            )
        try:
            same = self._files.read(MANIFEST, MAX_MANIFEST) == image.documents[image.root.digest]
        except NotFound:
            # what a killed run leaves on an object store
            same = self._location.local is None
        if not same and not force:
            raise OutputExists(f"{self._location} holds another image", path=str(self._location))
        return same and self._files.size(MANIFEST) is not None and all(folders.verifies(self._location.child(name), d) for name, d in _named(image))

    def obtain(self, image: OutgoingImage, descriptor: Descriptor) -> bool:
        return self._location.local is None and folders.verifies(self._location.child(descriptor.digest.hex), descriptor)

    def write(self, image: OutgoingImage, blobs: BlobSource, options: WriteOptions) -> Written:
        if self.check(image, force=options.force):
            return Written(location=str(self._reference), status="unchanged", root=image.root.digest, bytes_written=0)
        if self._location.is_null:
            written = folders.drained(image, blobs)
        elif self._location.local is None:
            written = self._fill(self._location, image, blobs)
            self._tidy(image)
        else:
            with folders.appearing(self._location, folders.total_size(image), replace=self._location.exists()) as folder:
                written = self._fill(folder, image, blobs)
        return Written(location=str(self._reference), status="written", root=image.root.digest, bytes_written=written)

    def _fill(self, folder: FileLocation, image: OutgoingImage, blobs: BlobSource) -> int:
        # the version first: it makes what a killed run leaves behind known for dir:
        written = folders.put(folder.child(VERSION), VERSION_CONTENT)
        for descriptor in image.blobs:
            if not self.obtain(image, descriptor):
                written += folders.put_blob(folder.child(descriptor.digest.hex), blobs, descriptor)
        for name, descriptor in _named(image)[len(image.blobs) :]:
            written += folders.put(folder.child(name), image.documents[descriptor.digest])
        return written

    def _tidy(self, image: OutgoingImage) -> None:
        """Remove what another image left here: its blobs, and signatures that would be taken for this one's."""
        wanted = {name for name, _ in _named(image)}
        for name in self._names():
            if name not in wanted and _OURS.fullmatch(name):
                self._location.child(name).remove()

    def _names(self) -> list[str]:
        return folders.names_in(self._location)


def _named(image: OutgoingImage) -> list[tuple[str, Descriptor]]:
    """Every file of the image: blobs, manifests below the root, the root."""
    blobs = [(blob.digest.hex, blob) for blob in image.blobs]
    children = [(f"{manifest.digest.hex}.manifest.json", manifest) for manifest in image.manifests if manifest.digest != image.root.digest]
    return [*blobs, *children, (MANIFEST, image.root)]


def _version(files: layout.FolderFiles) -> str:
    """``known``, ``other``, or ``absent``: what the folder's version file says."""
    try:
        return "known" if _KNOWN.fullmatch(files.read(VERSION, 1024)) else "other"
    except NotFound:
        return "absent"
