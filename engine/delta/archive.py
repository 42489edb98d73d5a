"""The delta as an OCI artifact, and as a tar whose every byte follows from the sidecar. Specified in FORMAT.md."""

from __future__ import annotations

import contextlib
import tarfile
from dataclasses import dataclass
from functools import cached_property
from typing import IO, TYPE_CHECKING

from prefect_diffah.engine.delta.sidecar import MAX_SIDECAR, Sidecar
from prefect_diffah.engine.errors import InvalidArchive, InvalidDocument, InvalidOptions, NotFound, SizeMismatch
from prefect_diffah.engine.images import Place
from prefect_diffah.engine.model import canonical_json
from prefect_diffah.engine.oci import Descriptor, Digest, Index, Manifest, mediatypes, parse_document
from prefect_diffah.engine.storage import FileLocation
from prefect_diffah.engine.tarlayout import Blob, Member, TarLayout
from prefect_diffah.engine.transports import ImageReader, OutgoingImage

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SIDECAR_NAME", "DeltaArtifact", "DeltaReader", "open_delta", "payload_from"]

SIDECAR_NAME = "diffah.json"
REF_NAME = "org.opencontainers.image.ref.name"
TARGETS = "vnd.diffah.targets"


@dataclass(frozen=True)
class DeltaArtifact:
    """What follows from a sidecar's bytes: the artifact manifest, the index, the archive."""

    sidecar: Sidecar
    sidecar_raw: bytes

    @classmethod
    def of(cls, sidecar_raw: bytes) -> DeltaArtifact:
        """Raises: InvalidDocument, InvalidArchive, UnsupportedVersion."""
        return cls(Sidecar.parse(sidecar_raw), sidecar_raw)

    @cached_property
    def config(self) -> Descriptor:
        return Descriptor(media_type=mediatypes.DELTA_CONFIG, digest=Digest.of(self.sidecar_raw), size=len(self.sidecar_raw))

    @cached_property
    def _metadata(self) -> frozenset[Digest]:
        return frozenset(payload for blob in self.sidecar.blobs if blob.role in ("manifest", "config") for payload in blob.payloads)

    @cached_property
    def layers(self) -> tuple[Descriptor, ...]:
        """Everything that import reads: manifests and configs first, then the other payloads, each sorted by digest."""
        ordered = sorted(self.sidecar.payloads, key=lambda payload: (payload.digest not in self._metadata, payload.digest))
        return tuple(payload.descriptor for payload in ordered)

    @cached_property
    def manifest_raw(self) -> bytes:
        return canonical_json(
            {
                "schemaVersion": 2,
                "mediaType": mediatypes.OCI_MANIFEST,
                "artifactType": mediatypes.DELTA,
                "config": _plain(self.config),
                "layers": [_plain(layer) for layer in self.layers],
                "annotations": {TARGETS: " ".join(image.target.digest for image in self.sidecar.images)},
            }
        )

    @cached_property
    def manifest(self) -> Descriptor:
        return Descriptor(media_type=mediatypes.OCI_MANIFEST, digest=Digest.of(self.manifest_raw), size=len(self.manifest_raw), artifact_type=mediatypes.DELTA)

    def layout(self, mtime: int = 0) -> TarLayout:
        """The archive in its canonical form."""
        entry = _plain(self.manifest) | {"artifactType": mediatypes.DELTA, "annotations": {REF_NAME: "delta"}}
        index = canonical_json({"schemaVersion": 2, "mediaType": mediatypes.OCI_INDEX, "manifests": [entry]})
        count = len(self._metadata)
        own = {self.manifest.digest: self.manifest_raw, self.config.digest: self.sidecar_raw}
        metadata: list[Member] = [Member(_path(digest), raw) for digest, raw in own.items()]
        metadata += [Member(_path(layer.digest), Blob(layer.digest, layer.size)) for layer in self.layers[:count]]
        payloads = [Member(_path(layer.digest), Blob(layer.digest, layer.size)) for layer in self.layers[count:]]
        head = [Member(SIDECAR_NAME, self.sidecar_raw), Member("index.json", index), Member("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')]
        return TarLayout((*head, *sorted(metadata, key=lambda member: member.name), *payloads), mtime)

    def outgoing(self, name: str) -> OutgoingImage:
        """The artifact as something that a transport can write."""
        return OutgoingImage(name, self.manifest, {self.manifest.digest: self.manifest_raw}, (self.manifest,), (self.config, *self.layers))


class DeltaReader:
    """An opened delta.

    Attributes:
        artifact: its sidecar and what follows from it.
        canonical: whether every byte around the blobs was compared with what
            the sidecar says; False for re-packs, where digests alone speak.
    """

    def __init__(self, place: Place, reader: ImageReader, artifact: DeltaArtifact, manifest: Descriptor, mtime: int | None) -> None:
        self.place, self.artifact, self.manifest = place, artifact, manifest
        self.canonical = mtime is not None
        self._reader, self._mtime = reader, mtime

    @property
    def sidecar(self) -> Sidecar:
        return self.artifact.sidecar

    @contextlib.contextmanager
    def stream(self, descriptor: Descriptor) -> Iterator[Iterator[bytes]]:
        """A payload's bytes, verified. Raises: InvalidArchive if it is not there."""
        with payload_from(self._reader, self.place, descriptor) as chunks:
            yield chunks

    def check(self) -> None:
        """Read the whole delta and compare every byte.

        Raises:
            InvalidArchive, DigestMismatch, SizeMismatch.
        """
        if self._mtime is not None:
            location = FileLocation(self.place.reference.where, self.place.access)
            with location.translated("read"), location.open() as file:
                self.artifact.layout(self._mtime).check(file)
            return
        for layer in self.artifact.layers:
            with self.stream(layer) as chunks:
                for _ in chunks:
                    pass


@contextlib.contextmanager
def payload_from(reader: ImageReader, place: Place, descriptor: Descriptor) -> Iterator[Iterator[bytes]]:
    """A payload's bytes, verified, from a delta at ``place`` that was opened as ``reader`` and whose sidecar has been checked.

    Raises:
        InvalidArchive: it is not there.
    """
    with contextlib.ExitStack() as stack:
        try:
            chunks = stack.enter_context(reader.stream(descriptor))
        except NotFound as error:
            raise InvalidArchive(f"{place} lacks {descriptor.digest}, which its sidecar names", digest=descriptor.digest) from error
        yield chunks


@contextlib.contextmanager
def open_delta(place: Place) -> Iterator[DeltaReader]:
    """Open a delta: a canonical archive, or what a copying tool made of one.

    Raises:
        NotFound, AccessDenied …: it cannot be read.
        InvalidArchive, InvalidDocument, …: damaged, or not a delta.
        UnsupportedVersion: made by a newer tool.
    """
    first = _first_member(place)
    with place.open() as reader:
        if first is not None:
            sidecar_raw, mtime = first
            artifact = DeltaArtifact.of(sidecar_raw)
            location = FileLocation(place.reference.where, place.access)
            with location.translated("read"), location.open(sequential=False) as file:
                artifact.layout(mtime).check(file, blobs=False)
            if (place.reference.tag or place.reference.digest) and reader.root()[0].digest != artifact.manifest.digest:
                raise NotFound(f"{place.reference.where} holds the delta {artifact.manifest.digest}, not {place}", digest=artifact.manifest.digest)
            yield DeltaReader(place, reader, artifact, artifact.manifest, mtime)
        else:
            descriptor, manifest = _find(place, reader)
            artifact = DeltaArtifact.of(_sidecar(reader, manifest.config))
            listed = {layer.digest: layer.size for layer in manifest.layers}
            missing = [layer.digest for layer in artifact.layers if listed.get(layer.digest) != layer.size]
            if missing:
                raise InvalidArchive(f"{place}: the delta's manifest lacks payloads that its sidecar names: {', '.join(missing)}", missing=missing)
            yield DeltaReader(place, reader, artifact, descriptor, None)


def _find(place: Place, reader: ImageReader) -> tuple[Descriptor, Manifest]:
    """The delta among what ``place`` holds, told by its artifactType, or by its config where a tool dropped that."""
    reference = place.reference
    if reference.transport == "docker" or reference.tag or reference.digest:
        descriptor, raw = reader.root()
        roots = [(descriptor, raw)]
    else:
        roots = [(entry, reader.document(entry)) for entry in reader.entries() if entry.media_type in mediatypes.MANIFESTS]
    found: dict[Digest, tuple[Descriptor, Manifest]] = {}
    for descriptor, raw in roots:
        document = parse_document(raw, descriptor.media_type)
        if not isinstance(document, Index) and (document.artifact_type == mediatypes.DELTA or document.config.media_type == mediatypes.DELTA_CONFIG):
            found[descriptor.digest] = descriptor, document
    if not found:
        raise InvalidArchive(f"{place} is not a delta", next_action="Give an archive that export wrote, or a copy of one.")
    if len(found) > 1:
        raise InvalidOptions(f"{place} holds {len(found)} deltas", next_action="Name one by its digest.", digests=list(found))
    return next(iter(found.values()))


def _sidecar(reader: ImageReader, config: Descriptor) -> bytes:
    if config.media_type != mediatypes.DELTA_CONFIG:
        raise InvalidDocument(f"a delta whose config is {config.media_type}, not {mediatypes.DELTA_CONFIG}")
    if config.size > MAX_SIDECAR:
        raise SizeMismatch(f"a sidecar of {config.size} bytes is over the limit of {MAX_SIDECAR}", size=config.size, limit=MAX_SIDECAR)
    with reader.stream(config) as chunks:
        return b"".join(chunks)


def _first_member(place: Place) -> tuple[bytes, int] | None:
    """``diffah.json`` and its time, when ``place`` is a tar that begins with it."""
    if place.reference.transport != "oci-archive":
        return None
    location = FileLocation(place.reference.where, place.access)
    with location.translated("read"), location.open() as file:
        header = file.read(tarfile.BLOCKSIZE)
        if len(header) < tarfile.BLOCKSIZE:
            raise InvalidArchive(f"{location} is {'empty' if not header else 'cut off'}: {len(header)} bytes are no archive", size=len(header))
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        except (tarfile.HeaderError, ValueError):
            return None  # compressed, or no tar at all: the transport tells which
        if member.name != SIDECAR_NAME or not member.isreg():
            return None
        if not 0 <= member.size <= MAX_SIDECAR:
            raise SizeMismatch(f"{location}: diffah.json of {member.size} bytes is over the limit of {MAX_SIDECAR}", size=member.size, limit=MAX_SIDECAR)
        return _exactly(file, member.size, location), int(member.mtime)


def _exactly(file: IO[bytes], size: int, location: FileLocation) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise InvalidArchive(f"{location} is cut off inside diffah.json", offset=tarfile.BLOCKSIZE + len(data))
    return data


def _plain(descriptor: Descriptor) -> dict[str, object]:
    return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}


def _path(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"
