"""From plan to archive: each travelling blob becomes payloads, and these an archive."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

from prefect_diffah.engine.delta.archive import DeltaArtifact, open_delta
from prefect_diffah.engine.delta.plan import DeltaPlan, PlannedBlob
from prefect_diffah.engine.delta.sidecar import Method, Payload, Sidecar, SidecarBlob, SidecarImage, SidecarManifest, Tool
from prefect_diffah.engine.errors import ContentError, DiffahError, NotFound, OutputExists, SurroundingsError, Unsupported
from prefect_diffah.engine.images import Place
from prefect_diffah.engine.model import Model
from prefect_diffah.engine.oci import Descriptor, Digest, mediatypes
from prefect_diffah.engine.progress import transfer
from prefect_diffah.engine.storage import FileLocation
from prefect_diffah.engine.store import Recorded, Store, recorded
from prefect_diffah.engine.transports import DEFAULT_OPTIONS, WriteOptions, Written, open_writer

if TYPE_CHECKING:
    from prefect_diffah.engine.tarlayout import Blob

__all__ = ["PackedBlob", "WrittenDelta", "check_delta_output", "pack_blobs", "sidecar_of", "write_archive"]

TOOL = "prefect-diffah"


class PackedBlob(Recorded):
    """The payloads that one blob travels as; they are in the store."""

    digest: Digest
    method: Method
    payloads: tuple[Payload, ...]
    stats: dict[str, Any] = {}

    @property
    def stored_blobs(self) -> tuple[Descriptor, ...]:
        return tuple(payload.descriptor for payload in self.payloads)


class WrittenDelta(Model):
    """A delta that was written, or was there already."""

    sidecar: Sidecar
    artifact: Digest
    """Digest of the artifact manifest."""
    written: Written


def _inputs(blob: PlannedBlob) -> dict[str, Any]:
    # the codec will make its result depend on blob.sources too
    return {"blob": blob.descriptor.digest, "role": blob.role}


@recorded(1, PackedBlob, _inputs)
def pack_blobs(blob: PlannedBlob, store: Store, target: Place) -> PackedBlob:
    """Choose how ``blob`` travels and put its payloads into the store: here always the blob itself, verified.

    Raises:
        DigestMismatch, SizeMismatch: the target's copy is not what its manifest says.
        NotFound: the target lacks the blob.
    """
    descriptor = blob.descriptor
    if not store.has(descriptor):
        try:
            with target.open() as reader, reader.stream(descriptor) as chunks:
                store.put(descriptor, transfer(f"{blob.role} {descriptor.digest.short}", descriptor.size, chunks))
        except NotFound as error:
            if descriptor.urls:
                raise NotFound(
                    f"{target} keeps the foreign layer {descriptor.digest} elsewhere; its URLs are not fetched",
                    next_action="Push the image again with its foreign layers (docker: allow-nondistributable-artifacts), or give a baseline that has them.",
                    digest=descriptor.digest,
                    urls=list(descriptor.urls),
                ) from error
            raise
    return _whole(blob)


def _whole(blob: PlannedBlob) -> PackedBlob:
    """``blob`` travelling as it is."""
    media_type = mediatypes.DELTA_MANIFEST if blob.role == "manifest" else mediatypes.DELTA_BLOB
    payload = Payload(digest=blob.descriptor.digest, size=blob.descriptor.size, media_type=media_type, encoding="identity")
    return PackedBlob(digest=blob.descriptor.digest, method=Method(name="identity"), payloads=(payload,))


def sidecar_of(plan: DeltaPlan, packed: list[PackedBlob]) -> Sidecar:
    """The sidecar of a plan whose travelling blobs were packed."""
    by_digest = {item.digest: item for item in packed}
    images = tuple(
        SidecarImage(
            name=image.tree.name.name,
            tags=(image.tree.name.tag,) if image.tree.name.tag else (),
            target=image.tree.root,
            manifests=tuple(SidecarManifest(digest=manifest.descriptor.digest, parent=manifest.parent) for manifest in image.tree.manifests),
            baselines=image.baselines,
        )
        for image in plan.images
    )
    payloads = {payload.digest: payload for item in packed for payload in item.payloads}
    return Sidecar(
        tool=Tool(name=TOOL, version=version(TOOL)),
        images=images,
        blobs=tuple(_listed(blob, by_digest.get(blob.descriptor.digest)) for blob in plan.blobs),
        payloads=tuple(payloads[digest] for digest in sorted(payloads)),
    )


def _listed(blob: PlannedBlob, packed: PackedBlob | None) -> SidecarBlob:
    if packed is None:
        return SidecarBlob(descriptor=blob.descriptor, role=blob.role, diff_id=blob.diff_id, travels="required")
    return SidecarBlob(
        descriptor=blob.descriptor,
        role=blob.role,
        diff_id=blob.diff_id,
        travels="carried",
        method=packed.method,
        payloads=tuple(payload.digest for payload in packed.payloads),
        reason=blob.reason if blob.role == "layer" else None,
        stats=packed.stats,
    )


def check_delta_output(plan: DeltaPlan, output: Place, *, force: bool) -> None:
    """Refuse, before anything is fetched, an output that cannot become this delta.

    Raises:
        OutputExists: it holds something else than a delta of these images, so named, by this tool.
        AccessDenied: nothing may be written there.
        Unsupported: a transport that cannot hold a delta.
    """
    if output.reference.transport == "docker-archive":
        raise Unsupported("a delta is not an image that docker can load", next_action="Write it to a path, or to oci:, oci-archive: or docker://.")
    expected = DeltaArtifact.of(sidecar_of(plan, [_whole(blob) for blob in plan.travelling]).raw)
    if output.reference.transport != "oci-archive":
        with open_writer(output.reference, output.access) as writer:
            writer.check(expected.outgoing(str(plan.images[0].tree.name)), force=force)
        return
    location = FileLocation(output.reference.where, output.access)
    if force or location.is_null or not location.exists():
        return
    try:
        with open_delta(output) as delta:
            held = delta.sidecar
    except SurroundingsError:
        raise
    except DiffahError as error:
        raise OutputExists(f"{location} exists, and is not this delta: {error.message}", path=str(location)) from error
    # how blobs travel is known only when they are packed
    if (held.images, held.tool) != (expected.sidecar.images, expected.sidecar.tool):
        raise OutputExists(f"{location} exists, and is another delta", path=str(location))


def write_archive(plan: DeltaPlan, packed: list[PackedBlob], output: Place, store: Store, options: WriteOptions = DEFAULT_OPTIONS) -> WrittenDelta:
    """Write the delta from the store; an output that holds exactly this already is left as it is.

    Raises:
        OutputExists: it holds something else and ``options.force`` is not set.
    """
    artifact = DeltaArtifact.of(sidecar_of(plan, packed).raw)
    if output.reference.transport == "oci-archive":
        written = _write_tar(artifact, output, store, options)
    else:
        outgoing = artifact.outgoing(str(plan.images[0].tree.name))
        store.put_bytes(artifact.config, artifact.sidecar_raw)
        with open_writer(output.reference, output.access) as writer:
            writer.check(outgoing, force=options.force)
            written = writer.write(outgoing, store, options)
    return WrittenDelta(sidecar=artifact.sidecar, artifact=artifact.manifest.digest, written=written)


def _write_tar(artifact: DeltaArtifact, output: Place, store: Store, options: WriteOptions) -> Written:
    location = FileLocation(output.reference.where, output.access)
    layout = artifact.layout(options.mtime)
    size = layout.size

    def open_blob(blob: Blob) -> Any:
        return store.stream(Descriptor(media_type=mediatypes.DELTA_BLOB, digest=blob.digest, size=blob.size))

    def result(status: Literal["written", "unchanged"], count: int) -> Written:
        return Written(location=str(location), status=status, root=artifact.manifest.digest, size=size, bytes_written=count)

    if not location.is_null and location.exists():
        if location.size() == size:
            try:
                with location.translated("read"), location.open() as file:
                    layout.check(file)
                return result("unchanged", 0)
            except ContentError:
                pass  # something else, of the same size
        if not options.force:
            raise OutputExists(f"{location} exists, and is not this delta", path=str(location))
    with location.replacing(size) as file:
        for chunk in transfer(f"archive {location.url.rpartition('/')[2]}", size, layout.stream(open_blob)):
            file.write(chunk)
    return result("written", size)
