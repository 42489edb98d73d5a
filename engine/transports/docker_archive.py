"""What ``docker save`` writes: ``docker-archive:PATH[:NAME[:TAG]]``.

Since Docker 25 that is an OCI image layout with a manifest.json beside it, and
so it is written here, over the compressed blobs: the digest survives. Older
archives, and those of podman and skopeo, keep neither manifest nor compressed
layers; theirs is made up by the rule of containers/image
(docker/internal/tarfile/src.go), so that skopeo names the same digest.
"""

from __future__ import annotations

import json
import posixpath
from contextlib import contextmanager
from threading import RLock
from typing import TYPE_CHECKING

from pydantic import Field, TypeAdapter, ValidationError

from prefect_diffah.engine.access import DEFAULT_ACCESS, Access
from prefect_diffah.engine.compression import MAGIC_LENGTH, bounded, compression_of, inflated
from prefect_diffah.engine.errors import InvalidArchive, InvalidDocument, InvalidOptions, NotFound, Unsupported
from prefect_diffah.engine.model import Model
from prefect_diffah.engine.oci import MAX_CONFIG, MAX_MANIFEST, Descriptor, Digest, ImageConfig, Manifest, Reference, mediatypes, parse_document
from prefect_diffah.engine.oci.documents import describe
from prefect_diffah.engine.storage import FileLocation
from prefect_diffah.engine.tarindex import TarIndex
from prefect_diffah.engine.transports import _layout as layout
from prefect_diffah.engine.transports._archives import ArchiveWriter

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from prefect_diffah.engine.compression import Compression
    from prefect_diffah.engine.transports.base import ImageReader, OutgoingImage

__all__ = ["DockerArchiveReader", "DockerArchiveWriter"]

MANIFEST = "manifest.json"


class DockerArchiveReader(layout.Opened):
    """Reads images of an archive. ``notes`` is complete once ``root`` was called."""

    def __init__(self, reference: Reference, access: Access = DEFAULT_ACCESS, workdir: str | None = None) -> None:
        self._files = TarIndex.shared(FileLocation(reference.where, access), workdir, links=True)
        try:
            self._images = self._reader(reference)
        except BaseException:
            self._files.close()
            raise

    def _reader(self, reference: Reference) -> ImageReader:
        saved = self._files.size(MANIFEST) is not None
        if self._files.size(layout.INDEX) is not None and self._files.size(layout.LAYOUT) is not None:
            inside = layout.LayoutReader(self._files, reference)
            if not saved or _is_whole(inside):
                return inside
        if not saved:
            raise InvalidArchive(
                f"{reference.where} is not an archive of `docker save`: it has no {MANIFEST}",
                next_action="Check what it is; an OCI layout in a tar is oci-archive:.",
                path=reference.where,
            )
        return _SavedImages(self._files, reference)

    @property
    def notes(self) -> tuple[str, ...]:
        return self._images.notes

    @notes.setter
    def notes(self, notes: tuple[str, ...]) -> None:
        self._images.notes = notes

    def root(self) -> tuple[Descriptor, bytes]:
        return self._images.root()

    def entries(self) -> Sequence[Descriptor]:
        return self._images.entries()

    def document(self, descriptor: Descriptor) -> bytes:
        return self._images.document(descriptor)

    def holds(self, descriptor: Descriptor) -> bool:
        return self._images.holds(descriptor)

    @contextmanager
    def stream(self, descriptor: Descriptor) -> Iterator[Iterator[bytes]]:
        with self._images.stream(descriptor) as chunks:
            yield chunks

    def close(self) -> None:
        self._files.close()


def _is_whole(inside: layout.LayoutReader) -> bool:
    """Whether the layout's manifests name the layers that their configs name.

    Docker 25.0 wrote manifests that list foreign layers only.
    """
    for entry in inside.entries():
        if entry.media_type not in mediatypes.MANIFESTS or not inside.holds(entry):
            continue
        try:
            manifest = parse_document(inside.document(entry), entry.media_type)
        except InvalidDocument:
            return False
        assert isinstance(manifest, Manifest)
        if manifest.is_image and inside.holds(manifest.config):
            config = ImageConfig.parse(inside.document(manifest.config))
            if len(config.diff_ids) != len(manifest.layers):
                return False
    return True


class _SavedItem(Model):
    """An image of manifest.json."""

    config: str = Field(alias="Config")
    repo_tags: tuple[str, ...] = Field(default=(), alias="RepoTags")
    layers: tuple[str, ...] = Field(default=(), alias="Layers")


class _SavedImages(layout.Opened):
    """Images that are known by manifest.json alone: an ``ImageReader``.

    Layers are named by their diffIDs and handed out uncompressed.
    """

    def __init__(self, files: TarIndex, reference: Reference) -> None:
        self._files, self._reference = files, reference
        self._where = str(files.location)
        self.notes: tuple[str, ...] = (f"{self._where} holds its layers uncompressed, under their diffIDs: digests of compressed layers are not found in it",)
        try:
            self._items = TypeAdapter(tuple[_SavedItem, ...]).validate_json(files.read(MANIFEST, MAX_MANIFEST))
        except ValidationError as error:
            raise InvalidDocument(f"{MANIFEST} of {self._where}: {describe(error)}") from error
        self._documents: dict[Digest, bytes] = {}
        self._layers: dict[Digest, str] = {}
        self._images = [self._register(item) for item in self._items]
        self._sizes = files.inflated_sizes
        self._lock = RLock()

    def root(self) -> tuple[Descriptor, bytes]:
        descriptor, raw = self._image(self._chosen())
        manifest = parse_document(raw)
        assert isinstance(manifest, Manifest)
        self.notes = (
            f"{self._where} keeps no manifest: {descriptor.digest} is made up from its config and layers, as skopeo does it, "
            "and is not the digest that a registry has",
            f"layers are checked by their diffIDs: {', '.join(dict.fromkeys(layer.digest for layer in manifest.layers)) or 'none'}",
        )
        return descriptor, raw

    def entries(self) -> Sequence[Descriptor]:
        return [self._image(number)[0] for number in range(len(self._items))]

    def document(self, descriptor: Descriptor) -> bytes:
        return layout.read_document(self.stream, descriptor)

    def holds(self, descriptor: Descriptor) -> bool:
        if (document := self._document(descriptor)) is not None:
            return len(document) == descriptor.size
        name = self._layers.get(descriptor.digest)
        return name is not None and self._size(name) == descriptor.size

    @contextmanager
    def stream(self, descriptor: Descriptor) -> Iterator[Iterator[bytes]]:
        chunks: Iterator[bytes]
        if (document := self._document(descriptor)) is not None:
            chunks = iter((document,))
        elif (name := self._layers.get(descriptor.digest)) is not None:
            chunks = self._uncompressed(name)
        else:
            raise NotFound(f"{self._where} has no blob {descriptor.digest}", digest=descriptor.digest, path=self._where)
        with layout.checked(chunks, descriptor) as verified:
            yield verified

    def _document(self, descriptor: Descriptor) -> bytes | None:
        if descriptor.digest not in self._documents and descriptor.media_type == mediatypes.DOCKER_MANIFEST:
            self.entries()
        return self._documents.get(descriptor.digest)

    def _chosen(self) -> int:
        tag, digest = self._reference.tag, self._reference.digest
        names = [name for item in self._items for name in item.repo_tags]
        candidates = list(range(len(self._items)))
        if tag is not None:
            wanted = layout.full_name(tag)
            candidates = [n for n in candidates if any(name == tag or (wanted and layout.full_name(name) == wanted) for name in self._items[n].repo_tags)]
        if digest is not None:
            candidates = [n for n in candidates if self._image(n)[0].digest == digest]
        if not candidates:
            what = f"no image {tag or digest}" if tag or digest else "no image"
            raise NotFound(f"{self._where} holds {what}; it has: {', '.join(names) or 'none with a name'}", path=self._where, names=names)
        if len(candidates) > 1 and len({self._items[n].config for n in candidates}) > 1:
            raise InvalidOptions(
                f"{self._where} holds several images: {', '.join(names) or 'none with a name'}",
                next_action="Choose one: append :NAME:TAG or @DIGEST to the reference.",
                path=self._where,
                tags=names,
            )
        return candidates[0]

    def _register(self, item: _SavedItem) -> tuple[bytes, tuple[Digest, ...]]:
        """Learn where an image's config and layers are. Returns: the config and the diffIDs."""
        name = posixpath.normpath(item.config)
        if self._files.size(name) is None:
            raise InvalidArchive(f"{self._where} lacks the config {name}", path=self._where, member=name)
        config = self._files.read(name, MAX_CONFIG)
        diff_ids = ImageConfig.parse(config).diff_ids
        if len(diff_ids) != len(item.layers):
            raise InvalidArchive(f"{self._where} lists {len(item.layers)} layers where its config has {len(diff_ids)}", path=self._where)
        for diff_id, layer in zip(diff_ids, map(posixpath.normpath, item.layers), strict=True):
            if self._files.size(layer) is None:
                raise InvalidArchive(f"{self._where} lacks the layer {layer}", path=self._where, member=layer)
            # of copies of a layer any will do: its diffID is checked
            self._layers.setdefault(diff_id, layer)
        self._documents[Digest.of(config)] = config
        return config, diff_ids

    def _image(self, number: int) -> tuple[Descriptor, bytes]:
        """The manifest made up for an image of manifest.json."""
        config, diff_ids = self._images[number]
        # members in the order of containers/image's structs, as Go marshals them
        manifest = {
            "schemaVersion": 2,
            "mediaType": mediatypes.DOCKER_MANIFEST,
            "config": {"mediaType": mediatypes.DOCKER_CONFIG, "size": len(config), "digest": Digest.of(config)},
            "layers": [{"mediaType": mediatypes.DOCKER_LAYER_GZIP, "size": self._size(self._layers[diff_id]), "digest": diff_id} for diff_id in diff_ids],
        }
        raw = json.dumps(manifest, separators=(",", ":")).encode()
        descriptor = Descriptor(media_type=mediatypes.DOCKER_MANIFEST, digest=Digest.of(raw), size=len(raw))
        self._documents[descriptor.digest] = raw
        return descriptor, raw

    def _size(self, layer: str) -> int:
        """Bytes of a layer's tar; counted once if it is compressed."""
        with self._lock:
            if layer not in self._sizes:
                self._sizes[layer] = self._counted(layer)
            return self._sizes[layer]

    def _counted(self, layer: str) -> int:
        stored = self._files.size(layer) or 0
        if self._compression(layer) is None:
            return stored
        return sum(map(len, bounded(self._uncompressed(layer), stored, f"layer {layer} of {self._where}")))

    def _compression(self, layer: str) -> Compression | None:
        chunks = self._files.chunks(layer)
        head = next(chunks, b"")
        chunks.close()
        return compression_of(head[:MAGIC_LENGTH])

    def _uncompressed(self, layer: str) -> Generator[bytes]:
        compression = self._compression(layer)
        stored = self._files.chunks(layer)
        try:
            yield from stored if compression is None else inflated(stored, compression, f"layer {layer} of {self._where}")
        finally:
            stored.close()


class DockerArchiveWriter(ArchiveWriter):
    """Writes one image as today's ``docker save``: index.json, manifest.json, oci-layout, then the blobs by name.

    Every method raises Unsupported for an index, for an artifact, and for an
    image whose foreign layers are not at hand.
    """

    def metadata(self, image: OutgoingImage) -> dict[str, bytes]:
        manifest = self._manifest(image)
        name = layout.full_name(self._reference.tag or image.name)
        if name is None:
            raise InvalidOptions(
                f"{self._reference.tag or image.name!r} cannot be an image's name in an archive of `docker save`",
                next_action="Name it like app:v2, or registry.example.com/team/app:v2.",
            )
        saved = {
            "Config": layout.blob_name(manifest.config.digest),
            "RepoTags": [name.removeprefix("docker.io/").removeprefix("library/") if name.startswith("docker.io/") else name],
            "Layers": [layout.blob_name(layer.digest) for layer in manifest.layers],
        }
        entry = layout.index_entry(image, {layout.IMAGE_NAME: name, layout.REF_NAME: name.rpartition(":")[2]})
        return {
            layout.INDEX: layout.new_index([entry]),
            MANIFEST: json.dumps([saved], separators=(",", ":")).encode(),
            layout.LAYOUT: layout.LAYOUT_CONTENT,
        }

    def _manifest(self, image: OutgoingImage) -> Manifest:
        document = parse_document(image.documents[image.root.digest], image.root.media_type)
        if not isinstance(document, Manifest):
            raise Unsupported(
                "an archive of `docker save` holds the image of one platform, not an index",
                next_action="Choose a platform, or write the index as oci-archive, oci or dir.",
            )
        if not document.is_image:
            raise Unsupported(
                f"an artifact with a config of type {document.config.media_type} cannot be an archive of `docker save`",
                next_action="Write it as oci-archive, oci or dir.",
                media_type=document.config.media_type,
            )
        at_hand = {blob.digest for blob in image.blobs}
        if missing := [layer for layer in document.layers if layer.digest not in at_hand]:
            raise Unsupported(
                f"layer {missing[0].digest} is not kept with the image, and an archive of `docker save` cannot do without it",
                next_action="Write the image as oci-archive, oci or dir.",
                digest=missing[0].digest,
            )
        return document
