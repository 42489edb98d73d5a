"""Manifests, indexes and image configs (image-spec 1.1; Docker image manifest v2 schema 2).

The raw bytes are the truth: each parsed document keeps them, and they are
what travels.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from prefect_diffah.engine.errors import InvalidDocument, PlatformError, SizeMismatch, Unsupported
from prefect_diffah.engine.model import Model
from prefect_diffah.engine.oci import mediatypes
from prefect_diffah.engine.oci.descriptor import Descriptor
from prefect_diffah.engine.oci.digest import Digest
from prefect_diffah.engine.oci.platform import Platform

__all__ = ["MAX_CONFIG", "MAX_MANIFEST", "ImageConfig", "Index", "Manifest", "load_json", "parse_document"]

MAX_MANIFEST = 4 * 1024 * 1024
"""Bytes; what registries must accept at least (distribution-spec, "Pushing Manifests"), and the most read here."""
MAX_CONFIG = 4 * 1024 * 1024
"""Bytes of an image config that are read at most."""

_GENERIC = ("", "application/json", "text/plain", "application/octet-stream", "binary/octet-stream")
_TELLTALE = ("schemaVersion", "mediaType", "manifests", "config", "layers", "fsLayers", "artifactType", "subject")
_T = TypeVar("_T", bound=Model)


class _Document(Model):
    raw: bytes = Field(exclude=True, repr=False)
    media_type: str
    artifact_type: str | None = None
    subject: Descriptor | None = None
    annotations: dict[str, str] = {}

    def descriptor(self, algorithm: str = "sha256") -> Descriptor:
        """This document's own descriptor, with a digest of ``algorithm``."""
        return Descriptor(media_type=self.media_type, digest=Digest.of(self.raw, algorithm), size=len(self.raw), artifact_type=self.artifact_type)


class Manifest(_Document):
    """An image manifest: one config, layers from the base upwards."""

    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def is_image(self) -> bool:
        """Whether the config is an image config, so that platform and diffIDs exist."""
        return self.config.media_type in mediatypes.CONFIGS


class Index(_Document):
    """An image index, or Docker's manifest list."""

    manifests: tuple[Descriptor, ...]

    def choose(self, platform: Platform | None, what: str = "this index") -> Descriptor:
        """The entry that suits ``platform`` best; the earliest of equals.

        Raises:
            PlatformError: none was asked for, or none suits.
        """
        images = [entry for entry in self.manifests if entry.artifact_type is None and not (entry.platform and entry.platform.os == "unknown")]
        offered = [str(entry.platform.normalized()) for entry in images if entry.platform]
        listed = ", ".join(offered) or "none named"
        if platform is None:
            raise PlatformError(f"{what} holds images for several platforms: {listed}", next_action="Choose one of them with --platform.", platforms=offered)
        ranked = [(rank, place, entry) for place, entry in enumerate(images) if entry.platform and (rank := platform.rank(entry.platform)) is not None]
        if not ranked:
            raise PlatformError(f"{what} has no image for {platform}; it has: {listed}", next_action="Choose one of the listed platforms.", platforms=offered)
        return min(ranked, key=lambda item: item[:2])[2]


class _RootFS(Model):
    diff_ids: tuple[Digest, ...] = Field(default=(), alias="diff_ids")


class ImageConfig(Model):
    """The parts of an image config (image-spec, config.md) that deltas need."""

    os: str = ""
    architecture: str = ""
    variant: str = ""
    os_version: str = Field(default="", alias="os.version")
    rootfs: _RootFS = _RootFS()

    @classmethod
    def parse(cls, raw: bytes) -> ImageConfig:
        """Raises: InvalidDocument."""
        return _validate(cls, load_json(raw, "image config"), "image config")

    @property
    def platform(self) -> Platform | None:
        if not self.os or not self.architecture:
            return None
        return Platform(os=self.os, architecture=self.architecture, variant=self.variant, os_version=self.os_version).normalized()

    @property
    def diff_ids(self) -> tuple[Digest, ...]:
        """Digests of the uncompressed layers, from the base upwards."""
        return self.rootfs.diff_ids


def parse_document(raw: bytes, media_type: str | None = None) -> Manifest | Index:
    """A manifest or index from its bytes.

    Args:
        raw: the document, at most ``MAX_MANIFEST`` bytes.
        media_type: what its descriptor or Content-Type said it is, if anything.

    Raises:
        SizeMismatch: too large.
        InvalidDocument: not JSON, breaks its schema, or its fields contradict
            its media type (CVE-2021-41190).
        Unsupported: schema 1, or not a manifest at all.
    """
    if len(raw) > MAX_MANIFEST:
        raise SizeMismatch(f"a manifest of {len(raw)} bytes is over the limit of {MAX_MANIFEST}", size=len(raw), limit=MAX_MANIFEST)
    declared = (media_type or "").partition(";")[0].strip().lower()
    data = load_json(raw, "manifest")
    for key in data:
        if key not in _TELLTALE and key.lower() in [name.lower() for name in _TELLTALE]:
            raise InvalidDocument(f"a manifest with a member {key!r}, which some readers take for another", member=key)
    if data.get("schemaVersion") == 1 or declared in mediatypes.DOCKER_SCHEMA1:
        raise Unsupported(
            "this is a Docker schema 1 manifest, a format that was retired and is not read here",
            next_action="Push the image again with a current tool, or convert it: skopeo copy --format oci.",
        )
    own = data.get("mediaType") or ""
    if own and declared not in _GENERIC and own != declared:
        raise InvalidDocument(f"a document served as {declared} says that it is {own}", declared=declared, actual=own)
    kind = own or (declared if declared not in _GENERIC else "")
    if not kind:
        kind = mediatypes.OCI_INDEX if "manifests" in data else mediatypes.OCI_MANIFEST
    if kind not in mediatypes.INDEXES + mediatypes.MANIFESTS:
        raise Unsupported(f"{kind} is not a kind of manifest that is read here", media_type=kind)
    for member in ("config", "layers", "fsLayers") if kind in mediatypes.INDEXES else ("manifests", "fsLayers"):
        if member in data:
            raise InvalidDocument(f"a document of type {kind} must not have {member!r}", media_type=kind, member=member)
    if data.get("schemaVersion") != 2:
        raise InvalidDocument(f"a document of type {kind} must have schemaVersion 2, not {data.get('schemaVersion')!r}", media_type=kind)
    data = data | {"raw": raw, "mediaType": kind}
    return _validate(Index, data, kind) if kind in mediatypes.INDEXES else _validate(Manifest, data, kind)


def load_json(raw: bytes, what: str) -> dict[str, Any]:
    """The JSON object in ``raw``.

    Raises:
        InvalidDocument: not UTF-8, not JSON, not an object.
    """
    try:
        data = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidDocument(f"the {what} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise InvalidDocument(f"the {what} is not a JSON object")
    return data


def _validate(model: type[_T], data: dict[str, Any], what: str) -> _T:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise InvalidDocument(f"{what}: {describe(error)}") from error


def describe(error: ValidationError) -> str:
    """The first problem of a pydantic error, in one line, without the input."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'document'}: {first['msg']}"
