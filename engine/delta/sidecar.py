"""The sidecar, ``diffah.json``: what a delta holds and what it requires. Specified in FORMAT.md."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from pydantic import Field, JsonValue, StrictBool, StrictInt, ValidationError, model_validator

from prefect_diffah.engine.delta.plan import BaselineImage, Role
from prefect_diffah.engine.errors import InvalidArchive, InvalidDocument, InvalidReference, UnsupportedVersion
from prefect_diffah.engine.images import ImageName
from prefect_diffah.engine.model import ByteCount, Model, canonical_json
from prefect_diffah.engine.oci import Descriptor, Digest, Platform, mediatypes
from prefect_diffah.engine.oci.documents import describe, load_json

__all__ = ["KNOWN_FEATURES", "MAX_SIDECAR", "VERSION", "Method", "Payload", "Sidecar", "SidecarBlob", "SidecarImage", "SidecarManifest", "Source"]

VERSION = "v1"
KNOWN_FEATURES: frozenset[str] = frozenset()
"""Entries of ``requires`` that this version can handle."""
MAX_SIDECAR = 64 * 1024 * 1024
"""Bytes of a sidecar that are read at most."""

Travels = Literal["carried", "patched", "required"]


class Tool(Model):
    name: str
    version: str


class SidecarManifest(Model):
    """A node of an image tree."""

    digest: Digest
    parent: Digest | None = None
    chosen: StrictBool = True


class SidecarReferrer(Model):
    """Something that refers to an image: a signature, an SBOM."""

    descriptor: Descriptor
    subject: Digest
    tag: str | None = None


class SidecarImage(Model):
    """A target: an image tree and the baselines it was compared with."""

    name: str
    tags: tuple[str, ...] = ()
    target: Descriptor
    manifests: tuple[SidecarManifest, ...] = Field(min_length=1)
    omitted: tuple[Descriptor, ...] = ()
    referrers: tuple[SidecarReferrer, ...] = ()
    baselines: tuple[BaselineImage, ...] = ()

    @property
    def image_name(self) -> ImageName:
        return ImageName.parse(f"{self.name}:{self.tags[0]}" if self.tags else self.name)

    @model_validator(mode="after")
    def _named(self) -> SidecarImage:
        try:
            for name in (self.name, *(f"{self.name}:{tag}" for tag in self.tags)):
                ImageName.parse(name)
        except InvalidReference as error:
            raise ValueError(error.message) from error
        if ":" in self.name:
            raise ValueError(f"a tag in the name {self.name!r}")
        return self


class Method(Model):
    """How a blob is rebuilt from its payloads and sources."""

    name: str
    version: StrictInt = 1
    params: dict[str, JsonValue] = {}


class Source(Model):
    """A blob that another is rebuilt from: a baseline's, or one of this archive."""

    digest: Digest
    size: ByteCount
    diff_id: Digest | None = Field(default=None, alias="diffID")


class SidecarBlob(Model):
    """A blob of a target image, and how it gets to the receiver."""

    descriptor: Descriptor
    role: Role
    diff_id: Digest | None = Field(default=None, alias="diffID")
    uncompressed_size: ByteCount | None = None
    travels: Travels
    method: Method | None = None
    payloads: tuple[Digest, ...] = ()
    sources: tuple[Source, ...] = ()
    reason: str | None = None
    encoder: str | None = None
    stats: dict[str, JsonValue] = {}

    @property
    def digest(self) -> Digest:
        return self.descriptor.digest

    @property
    def size(self) -> int:
        return self.descriptor.size


class Payload(Model):
    """A blob of the archive that others are rebuilt from."""

    digest: Digest
    size: ByteCount
    media_type: str
    encoding: Literal["identity", "zstd"]
    uncompressed_size: ByteCount | None = None

    @property
    def descriptor(self) -> Descriptor:
        """As a layer of the delta's artifact manifest."""
        return Descriptor(media_type=self.media_type, digest=self.digest, size=self.size)


class Sidecar(Model):
    """The whole. Its consistency is checked when it is made, by hand or from bytes."""

    media_type: Literal["application/vnd.diffah.delta.config.v1+json"] = "application/vnd.diffah.delta.config.v1+json"
    version: Literal["v1"] = "v1"
    requires: tuple[str, ...] = ()
    tool: Tool
    images: tuple[SidecarImage, ...] = Field(min_length=1)
    blobs: tuple[SidecarBlob, ...] = Field(min_length=1)
    payloads: tuple[Payload, ...] = Field(min_length=1)
    annotations: dict[str, str] = {}

    @classmethod
    def parse(cls, raw: bytes) -> Sidecar:
        """Raises: InvalidDocument, InvalidArchive; UnsupportedVersion for what a newer tool wrote."""
        data = load_json(raw, "diffah.json")
        version, wanted = data.get("version"), data.get("requires")
        if version != VERSION:
            shown = version[:40] if isinstance(version, str) else "none"
            raise UnsupportedVersion(f"this delta has version {shown!r}; this tool reads {VERSION}", version=shown)
        unknown = sorted({entry[:80] for entry in wanted if isinstance(entry, str) and entry not in KNOWN_FEATURES}) if isinstance(wanted, list) else []
        if unknown:
            raise UnsupportedVersion(f"this delta needs features that this tool does not have: {', '.join(unknown)}", features=unknown)
        if not _is_canonical(data, raw):
            raise InvalidDocument("diffah.json is not in its canonical form")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise InvalidDocument(f"diffah.json: {describe(error)}") from error

    @cached_property
    def raw(self) -> bytes:
        """Canonical JSON; below the top level, what is at its default is left out."""
        always = {"mediaType": self.media_type, "version": self.version, "requires": list(self.requires), "annotations": self.annotations}
        return canonical_json(self.model_dump(mode="json", exclude_defaults=True) | always)

    @cached_property
    def by_digest(self) -> dict[Digest, SidecarBlob]:
        return {blob.digest: blob for blob in self.blobs}

    @cached_property
    def payload_by_digest(self) -> dict[Digest, Payload]:
        return {payload.digest: payload for payload in self.payloads}

    @property
    def required(self) -> tuple[SidecarBlob, ...]:
        """What the receiver must find in its baselines to use as it is."""
        return tuple(blob for blob in self.blobs if blob.travels == "required")

    @property
    def platform(self) -> Platform | None:
        return self.images[0].target.platform

    @model_validator(mode="after")
    def _consistent(self) -> Sidecar:
        blobs, payloads = self.by_digest, self.payload_by_digest
        if len(blobs) != len(self.blobs) or len(payloads) != len(self.payloads):
            raise InvalidArchive("diffah.json: a blob or payload is listed twice")
        for image in self.images:
            nodes = {node.digest for node in image.manifests}
            if image.target.digest not in nodes:
                raise InvalidArchive(f"diffah.json: {image.name}'s target {image.target.digest} is not among its manifests")
            root = blobs.get(image.target.digest)
            if root and (root.descriptor.media_type, root.size) != (image.target.media_type, image.target.size):
                raise InvalidArchive(f"diffah.json: {image.name}'s target {image.target.digest} is described in two ways")
            for node in image.manifests:
                listed = blobs.get(node.digest)
                if listed is None or listed.role != "manifest" or listed.travels != "carried":
                    raise InvalidArchive(f"diffah.json: manifest {node.digest} of {image.name} does not travel")
                if node.parent is not None and node.parent not in nodes:
                    raise InvalidArchive(f"diffah.json: manifest {node.digest} hangs under {node.parent}, which is not in its tree")
        used: set[Digest] = set()
        for blob in self.blobs:
            if not set(blob.payloads) <= payloads.keys():
                raise InvalidArchive(f"diffah.json: blob {blob.digest} names a payload that is not listed")
            if (blob.travels == "required") != (not blob.payloads):
                raise InvalidArchive(f"diffah.json: blob {blob.digest} is {blob.travels} and has {len(blob.payloads)} payloads")
            identity = blob.method is not None and (blob.method.name, blob.method.version) == ("identity", 1)
            if blob.travels == "carried" and not (identity and blob.payloads == (blob.digest,) and payloads[blob.digest].size == blob.size):
                raise InvalidArchive(f"diffah.json: blob {blob.digest} travels in a way that its requires do not name")
            used.update(blob.payloads)
        if used != payloads.keys():
            raise InvalidArchive("diffah.json: a payload belongs to no blob")
        if unnamed := self._features() - set(self.requires):
            raise InvalidArchive(f"diffah.json makes use of what its requires do not name: {', '.join(sorted(unnamed))}")
        self._acyclic()
        return self

    def _features(self) -> set[str]:
        """What a reader must know to make anything of this, as ``requires`` calls it."""
        return (
            {"index" for blob in self.blobs if blob.role == "manifest" and blob.descriptor.media_type in mediatypes.INDEXES}
            | {"patch.v1" for blob in self.blobs if blob.travels == "patched"}
            | {"referrers" for image in self.images if image.referrers}
            | {"zstd" for payload in self.payloads if payload.encoding == "zstd"}
        )

    def _acyclic(self) -> None:
        """Every chain of sources within this archive ends."""
        done: set[Digest] = set()
        for start in self.blobs:
            path: dict[Digest, None] = {}
            stack = [(start.digest, False)]
            while stack:
                digest, leaving = stack.pop()
                if leaving:
                    done.add(path.popitem()[0])
                    continue
                if digest in done or digest not in self.by_digest:
                    continue
                if digest in path:
                    raise InvalidArchive(f"diffah.json: blob {digest} is rebuilt from itself")
                path[digest] = None
                stack.append((digest, True))
                stack.extend((source.digest, False) for source in self.by_digest[digest].sources)


def _is_canonical(data: object, raw: bytes) -> bool:
    try:
        return canonical_json(data) == raw
    except (ValueError, RecursionError):
        return False  # NaN, or half a surrogate pair
