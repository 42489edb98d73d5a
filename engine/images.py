"""Image trees: what a reference names, read and checked, without its layers."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

from prefect_diffah.engine.access import DEFAULT_ACCESS, Access
from prefect_diffah.engine.errors import InvalidDocument, InvalidOptions, InvalidReference, PlatformError, Unsupported
from prefect_diffah.engine.model import Model
from prefect_diffah.engine.oci import MAX_CONFIG, MAX_MANIFEST, Descriptor, Digest, ImageConfig, Index, Manifest, Platform, Reference, parse_document
from prefect_diffah.engine.storage import FileLocation
from prefect_diffah.engine.transports import ImageReader, open_reader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefect_diffah.engine.store import Store

__all__ = ["ImageName", "ImageTree", "Place", "TreeManifest", "fetch_manifest", "read_manifest_file"]

_NAME = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+|/)[a-z0-9]+)*", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)


class Place(Model):
    """A reference, and how it is reached."""

    reference: Reference
    access: Access = DEFAULT_ACCESS
    workdir: str | None = None

    def open(self) -> ImageReader:
        return open_reader(self.reference, self.access, self.workdir)

    def __str__(self) -> str:
        return str(self.reference)


class ImageName(Model):
    """What an image is called where it arrives: ``app:v2``, no host."""

    name: str
    tag: str | None = None

    @classmethod
    def parse(cls, text: str) -> ImageName:
        """Raises: InvalidReference."""
        name, _, tag = text.partition(":")
        if not _NAME.fullmatch(name) or (":" in text and not _TAG.fullmatch(tag)):
            raise InvalidReference(f"not an image name: {text[:200]!r}", next_action="Write NAME[:TAG], without a host: app:v2.")
        return cls(name=name, tag=tag or None)

    def __str__(self) -> str:
        return f"{self.name}:{self.tag}" if self.tag else self.name


class TreeManifest(Model):
    """One image manifest of a tree."""

    descriptor: Descriptor
    parent: Digest | None = None
    config: Descriptor
    layers: tuple[Descriptor, ...]
    diff_ids: tuple[Digest, ...] = ()
    """One a layer, or none where they are not known."""

    def diff_id(self, layer: int) -> Digest | None:
        return self.diff_ids[layer] if self.diff_ids else None


class ImageTree(Model):
    """A root descriptor and the manifests below it."""

    name: ImageName
    root: Descriptor
    manifests: tuple[TreeManifest, ...]
    notes: tuple[str, ...] = ()

    @property
    def platform(self) -> Platform | None:
        return self.root.platform

    @property
    def stored_blobs(self) -> tuple[Descriptor, ...]:
        """Manifests and configs, which the store holds."""
        return tuple(blob for manifest in self.manifests for blob in (manifest.descriptor, manifest.config))


def fetch_manifest(place: Place, store: Store, platform: Platform | None = None, *, match: bool = True) -> ImageTree:
    """Read the image that ``place`` names: one manifest and its config, into the store.

    Args:
        platform: which image of an index.
        match: whether a single manifest must be of that platform too.

    Raises:
        NotFound, AccessDenied, NetworkError …: it cannot be read.
        PlatformError: an index and no ``platform``, or none that suits.
        InvalidDocument, DigestMismatch …: what is there is not an image.
    """
    with place.open() as reader, _named(place):
        descriptor, raw = reader.root()
        document = parse_document(raw, descriptor.media_type)
        if isinstance(document, Index):
            descriptor = document.choose(platform, str(place))
            raw = reader.document(descriptor)
            document = parse_document(raw, descriptor.media_type)
            if isinstance(document, Index):
                raise InvalidDocument("an index inside an index", next_action="Name the inner index by its digest.")
        config_raw = _config(reader, store, document)
        store.put_bytes(document.config, config_raw)
        store.put_bytes(descriptor, raw)
        tree = _tree(document, descriptor.digest, config_raw, _name(place.reference), reader.notes)
    if platform and match and tree.platform and platform.rank(tree.platform) is None:
        raise PlatformError(f"{place} is for {tree.platform}, not for {platform}", next_action=f"Use --platform {tree.platform}, or another image.")
    return tree


def read_manifest_file(location: FileLocation) -> ImageTree:
    """An image of which only the manifest is known (``skopeo inspect --raw``, ``dir:``'s manifest.json).

    Raises:
        NotFound: no such file.
        InvalidDocument: not an image manifest.
    """
    with _named(location):
        raw = location.read(MAX_MANIFEST + 1)
        document = parse_document(raw)
    if isinstance(document, Index):
        raise InvalidOptions(f"{location} is an index, not the manifest of one image", next_action="Save the manifest of one platform.")
    return _tree(document, Digest.of(raw), None, ImageName(name="baseline"), ())


@contextlib.contextmanager
def _named(where: Place | FileLocation) -> Iterator[None]:
    """Say in errors about a document where it was."""
    try:
        yield
    except (InvalidDocument, Unsupported) as error:
        raise type(error)(f"{where}: {error.message}", next_action=error.next_action, **error.details) from error


def _config(reader: ImageReader, store: Store, document: Manifest) -> bytes:
    if store.has(document.config):
        return store.read(document.config, MAX_CONFIG)
    return reader.document(document.config)


def _tree(document: Manifest, digest: Digest, config_raw: bytes | None, name: ImageName, notes: tuple[str, ...]) -> ImageTree:
    diff_ids: tuple[Digest, ...] = ()
    platform = None
    if config_raw is not None and document.is_image:
        config = ImageConfig.parse(config_raw)
        diff_ids, platform = config.diff_ids, config.platform
        if len(diff_ids) != len(document.layers):
            raise InvalidDocument(
                f"the config names {len(diff_ids)} layers, the manifest {len(document.layers)}", config=document.config.digest, layers=len(document.layers)
            )
    descriptor = Descriptor(media_type=document.media_type, digest=digest, size=len(document.raw), platform=platform)
    manifest = TreeManifest(descriptor=descriptor, config=document.config, layers=document.layers, diff_ids=diff_ids)
    return ImageTree(name=name, root=descriptor, manifests=(manifest,), notes=notes)


def _name(reference: Reference) -> ImageName:
    try:
        return ImageName.parse(reference.short_name)
    except InvalidReference:
        return ImageName(name="image")
