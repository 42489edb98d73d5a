"""Real images made from a seed: tars of files, configs, manifests, indexes, layouts.

The same arguments give the same bytes on one machine (gzip's output depends on
the zlib that Python was built with).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prefect_diffah.engine.errors import NotFound, Unsupported
from prefect_diffah.engine.oci import Descriptor, Digest, ImageConfig, Platform, mediatypes, verified
from prefect_diffah.engine.transports.base import OutgoingImage

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

__all__ = [
    "Compression",
    "GeneratedImage",
    "GeneratedLayer",
    "Media",
    "image_of",
    "index_of",
    "layer_of",
    "next_version",
    "random_image",
    "random_layer",
    "write_layout",
]

Compression = Literal["gzip", "none", "zstd"]
Media = Literal["oci", "docker"]

_LAYER_TYPES: dict[tuple[Media, Compression], str] = {
    ("oci", "gzip"): mediatypes.OCI_LAYER_GZIP,
    ("oci", "none"): mediatypes.OCI_LAYER,
    ("oci", "zstd"): mediatypes.OCI_LAYER_ZSTD,
    ("docker", "gzip"): mediatypes.DOCKER_LAYER_GZIP,
    ("docker", "none"): mediatypes.DOCKER_LAYER,
}
_COMPRESSIONS = {media_type: compression for (_, compression), media_type in _LAYER_TYPES.items()}


@dataclass(frozen=True)
class GeneratedLayer:
    """A layer: its bytes as stored, and the digest of its tar."""

    content: bytes
    diff_id: Digest
    compression: Compression


@dataclass(frozen=True)
class GeneratedImage:
    """One image, or one index of several, with all bytes in memory. Also a ``BlobSource``."""

    root: Descriptor
    documents: dict[Digest, bytes]
    """Every manifest and index, the root's included."""
    manifests: tuple[Descriptor, ...]
    """Their descriptors, children before parents, root last."""
    blobs: dict[Digest, bytes]
    """Configs and layers."""
    layers: tuple[Descriptor, ...]
    """From the base upwards; for an index those of all its images, each once."""
    config: Descriptor
    """For an index that of its first image."""

    @property
    def manifest(self) -> bytes:
        """The root's raw bytes."""
        return self.documents[self.root.digest]

    @property
    def diff_ids(self) -> tuple[Digest, ...]:
        """Digests of the uncompressed layers."""
        return ImageConfig.parse(self.blobs[self.config.digest]).diff_ids

    @contextmanager
    def stream(self, descriptor: Descriptor) -> Iterator[Iterator[bytes]]:
        """A blob or document, in pieces. Raises: NotFound."""
        content = self.blobs.get(descriptor.digest, self.documents.get(descriptor.digest))
        if content is None:
            raise NotFound(f"blob {descriptor.digest} is not in this image", digest=descriptor.digest)
        pieces = (content[at : at + 64 * 1024] for at in range(0, len(content), 64 * 1024))
        yield verified(pieces, descriptor.digest, descriptor.size)

    def outgoing(self, name: str) -> OutgoingImage:
        """This image as a writer takes it."""
        described: dict[Digest, Descriptor] = {}
        for manifest in self.manifests:
            data = json.loads(self.documents[manifest.digest])
            if "config" in data:
                for blob in (data["config"], *data["layers"]):
                    described.setdefault(Digest(blob["digest"]), Descriptor.model_validate(blob))
        return OutgoingImage(name=name, root=self.root, documents=dict(self.documents), manifests=self.manifests, blobs=tuple(described.values()))


def random_layer(seed: int | str, size: int = 20_000, compression: Compression = "gzip") -> GeneratedLayer:
    """A tar of about a dozen files, half of them text.

    Args:
        size: bytes of all files together.

    Raises:
        Unsupported: zstd, where this Python has no encoder (3.14's own, or the zstandard package).
    """
    chance = random.Random(f"layer {seed}")
    folder = f"opt/{chance.randbytes(4).hex()}"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        directory = tarfile.TarInfo(folder)
        directory.type, directory.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(directory)
        for number in range(12):
            length = size // 12 + (size % 12 if number == 0 else 0)
            content = chance.randbytes(length // 2 + 1).hex().encode()[:length] if number % 2 else chance.randbytes(length)
            info = tarfile.TarInfo(f"{folder}/file-{number:02d}")
            info.size, info.mode = len(content), 0o644
            tar.addfile(info, io.BytesIO(content))
    return layer_of(buffer.getvalue(), compression)


def layer_of(tar: bytes, compression: Compression = "gzip") -> GeneratedLayer:
    """A layer of this tar. Raises: Unsupported, as ``random_layer``."""
    return GeneratedLayer(_compress(tar, compression), Digest.of(tar), compression)


def image_of(
    layers: Sequence[GeneratedLayer],
    media: Media = "oci",
    platform: str = "linux/amd64",
    config: Mapping[str, Any] | None = None,
    *,
    algorithm: str = "sha256",
) -> GeneratedImage:
    """An image of these layers, the base first.

    Args:
        config: members added to, or put in the place of, those of the image config.
        algorithm: of every digest but the diffIDs.
    """
    blobs: dict[Digest, bytes] = {}

    def blob(content: bytes, media_type: str) -> Descriptor:
        digest = Digest.of(content, algorithm)
        blobs[digest] = content
        return Descriptor(media_type=media_type, digest=digest, size=len(content))

    target = Platform.parse(platform)
    image_config: dict[str, Any] = {
        "created": "1970-01-01T00:00:00Z",
        "architecture": target.architecture,
        "os": target.os,
        "config": {"Cmd": ["/bin/true"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": f"layer {number}"} for number, _ in enumerate(layers)],
    }
    if target.variant:
        image_config["variant"] = target.variant
    config_type = mediatypes.OCI_CONFIG if media == "oci" else mediatypes.DOCKER_CONFIG
    config_descriptor = blob(json.dumps(image_config | dict(config or {})).encode(), config_type)
    descriptors = tuple(blob(layer.content, _layer_type(media, layer.compression)) for layer in layers)
    manifest_type = mediatypes.OCI_MANIFEST if media == "oci" else mediatypes.DOCKER_MANIFEST
    manifest = {
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": _plain(config_descriptor),
        "layers": [_plain(descriptor) for descriptor in descriptors],
    }
    raw = json.dumps(manifest, indent=3).encode()
    root = Descriptor(media_type=manifest_type, digest=Digest.of(raw, algorithm), size=len(raw))
    return GeneratedImage(root, {root.digest: raw}, (root,), blobs, descriptors, config_descriptor)


def random_image(
    seed: int | str,
    layers: int = 3,
    layer_size: int = 20_000,
    media: Media = "oci",
    platform: str = "linux/amd64",
    compression: Compression = "gzip",
    *,
    algorithm: str = "sha256",
) -> GeneratedImage:
    """An image of random layers, ``layer_size`` bytes of files in each."""
    return image_of([random_layer(f"{seed} {number}", layer_size, compression) for number in range(layers)], media, platform, algorithm=algorithm)


def next_version(image: GeneratedImage, seed: int | str, changed: int = 1) -> GeneratedImage:
    """``image`` with its top ``changed`` layers replaced by others of about their sizes."""
    config = json.loads(image.blobs[image.config.digest])
    kept = len(image.layers) - changed
    if not 0 <= kept <= len(image.layers):
        raise ValueError(f"cannot change {changed} of {len(image.layers)} layers")
    layers = []
    for number, (descriptor, diff_id) in enumerate(zip(image.layers, image.diff_ids, strict=True)):
        compression = _COMPRESSIONS[descriptor.media_type]
        if number < kept:
            layers.append(GeneratedLayer(image.blobs[descriptor.digest], diff_id, compression))
        else:
            layers.append(random_layer(f"{seed} {number}", descriptor.size, compression))
    platform = "/".join(filter(None, (config["os"], config["architecture"], config.get("variant"))))
    media: Media = "docker" if image.root.media_type == mediatypes.DOCKER_MANIFEST else "oci"
    return image_of(layers, media, platform, {"created": _moment(seed)}, algorithm=image.root.digest.algorithm)


def index_of(images: Mapping[str, GeneratedImage], media: Media = "oci") -> GeneratedImage:
    """An index of images by platform (``linux/arm64``); a Docker manifest list for ``docker``."""
    index_type = mediatypes.OCI_INDEX if media == "oci" else mediatypes.DOCKER_INDEX
    entries = []
    for name, image in images.items():
        platform = Platform.parse(name)
        entries.append(_plain(image.root) | {"platform": {k: v for k, v in platform.model_dump().items() if v}})
    raw = json.dumps({"schemaVersion": 2, "mediaType": index_type, "manifests": entries}, indent=3).encode()
    members = list(images.values())
    root = Descriptor(media_type=index_type, digest=Digest.of(raw, members[0].root.digest.algorithm), size=len(raw))
    return GeneratedImage(
        root=root,
        documents={digest: document for image in members for digest, document in image.documents.items()} | {root.digest: raw},
        manifests=(*dict.fromkeys(descriptor for image in members for descriptor in image.manifests), root),
        blobs={digest: blob for image in members for digest, blob in image.blobs.items()},
        layers=tuple(dict.fromkeys(layer for image in members for layer in image.layers)),
        config=members[0].config,
    )


def write_layout(path: str | os.PathLike[str], images: Mapping[str, GeneratedImage]) -> Path:
    """Write an OCI image layout (image-spec, image-layout.md) that holds ``images`` by tag."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for tag, image in images.items():
        for digest, content in (image.documents | image.blobs).items():
            place = folder / "blobs" / digest.algorithm / digest.hex
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        entries.append(_plain(image.root) | {"annotations": {"org.opencontainers.image.ref.name": tag}})
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "mediaType": mediatypes.OCI_INDEX, "manifests": entries}))
    return folder


def _plain(descriptor: Descriptor) -> dict[str, Any]:
    return {"mediaType": descriptor.media_type, "digest": str(descriptor.digest), "size": descriptor.size}


def _layer_type(media: Media, compression: Compression) -> str:
    try:
        return _LAYER_TYPES[media, compression]
    except KeyError as error:
        raise Unsupported(f"{media} images have no layers compressed by {compression}") from error


def _moment(seed: int | str) -> str:
    number = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:3], "big")
    return f"1970-01-{number % 28 + 1:02d}T{number // 28 % 24:02d}:{number // 672 % 60:02d}:00Z"


def _compress(plain: bytes, compression: Compression) -> bytes:
    if compression == "none":
        return plain
    if compression == "gzip":
        return gzip.compress(plain, mtime=0)
    for module in ("compression.zstd", "zstandard"):
        with suppress(ImportError):
            return bytes(import_module(module).compress(plain))
    raise Unsupported("this Python has no zstd encoder", next_action="Use Python 3.14, or install the zstandard package.")
