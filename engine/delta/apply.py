"""From delta to image: check it, find what it requires, rebuild the blobs, write the image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect_diffah.engine.delta.archive import open_delta, payload_from
from prefect_diffah.engine.delta.plan import ROLES, Role
from prefect_diffah.engine.delta.sidecar import Payload, Sidecar, SidecarBlob
from prefect_diffah.engine.errors import BaselineIncomplete, InvalidArchive, InvalidDocument, Unsupported
from prefect_diffah.engine.images import ImageName, Place
from prefect_diffah.engine.model import Model
from prefect_diffah.engine.oci import MAX_CONFIG, MAX_MANIFEST, Descriptor, Digest, ImageConfig, Index, parse_document
from prefect_diffah.engine.progress import transfer
from prefect_diffah.engine.store import Recorded, Store, recorded
from prefect_diffah.engine.transports import DEFAULT_OPTIONS, OutgoingImage, WriteOptions, Written, open_writer

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Delta", "ImportPlan", "Rebuild", "RebuiltBlob", "check_output", "plan_import", "publish", "read_delta", "reconstruct", "verify_baseline"]


class Delta(Model):
    """A delta that was read and found sound; its manifests and configs are in the store."""

    sidecar: Sidecar
    artifact: Digest
    """Digest of the artifact manifest."""
    canonical: bool


class Rebuild(Model):
    """One blob to be made, and what of."""

    blob: SidecarBlob
    payloads: tuple[Payload, ...] = ()
    baseline: int | None = None
    """Which of the baselines given has it, where it is required."""


class ImportPlan(Model):
    """What an import has to do."""

    rebuild: tuple[Rebuild, ...]
    held: tuple[Digest, ...] = ()
    """Blobs that the output's place has, or took over from its neighbour."""


class RebuiltBlob(Recorded):
    """A blob of the target, in the store."""

    descriptor: Descriptor

    @property
    def stored_blobs(self) -> tuple[Descriptor, ...]:
        return (self.descriptor,)


def read_delta(place: Place, store: Store, *, thorough: bool = False) -> Delta:
    """Open a delta, check it, and keep its manifests and configs in the store.

    Everything around the blobs is compared with what the sidecar says it must
    be; blobs are verified when they are read.

    Args:
        thorough: read and verify every blob now.

    Raises:
        InvalidArchive, DigestMismatch, UnsupportedVersion …: see ``open_delta``.
    """
    with open_delta(place) as delta:
        sidecar = delta.sidecar
        for blob in sidecar.blobs:
            if blob.role in ("manifest", "config"):
                limit = MAX_MANIFEST if blob.role == "manifest" else MAX_CONFIG
                if blob.payloads != (blob.digest,) or blob.size > limit:
                    raise InvalidArchive(f"diffah.json: {blob.role} {blob.digest} must travel as it is, in at most {limit} bytes", digest=blob.digest)
                with delta.stream(sidecar.payload_by_digest[blob.digest].descriptor) as chunks:
                    store.put_bytes(blob.descriptor, b"".join(chunks))
        if thorough:
            delta.check()
        result = Delta(sidecar=sidecar, artifact=delta.manifest.digest, canonical=delta.canonical)
    _check_images(sidecar, store)
    return result


def _check_images(sidecar: Sidecar, store: Store) -> None:
    """The manifests say of the blobs what the sidecar says of them."""
    reached: set[Digest] = set()
    for image in sidecar.images:
        for node in image.manifests:
            listed = sidecar.by_digest[node.digest]
            document = parse_document(store.read(listed.descriptor, MAX_MANIFEST), listed.descriptor.media_type)
            reached.add(node.digest)
            if isinstance(document, Index):
                continue
            children: list[tuple[Role, Descriptor]] = [("config", document.config), *(("layer", layer) for layer in document.layers)]
            for role, child in children:
                said = sidecar.by_digest.get(child.digest)
                if said is None or ROLES.index(said.role) > ROLES.index(role) or said.size != child.size:
                    raise InvalidArchive(f"diffah.json does not say of {child.digest} what the manifest {node.digest} says", digest=child.digest)
                reached.add(child.digest)
            if not document.is_image:
                continue
            config = ImageConfig.parse(store.read(document.config, MAX_CONFIG))
            platform = image.target.platform
            if node.digest == image.target.digest and platform and platform.normalized() != config.platform:
                raise InvalidArchive(f"diffah.json says that {node.digest} is for {platform}, its config {config.platform}", digest=node.digest)
            diff_ids = config.diff_ids
            if len(diff_ids) != len(document.layers):
                raise InvalidDocument(f"manifest {node.digest} has {len(document.layers)} layers, its config {len(diff_ids)}", digest=node.digest)
            for layer, diff_id in zip(document.layers, diff_ids, strict=True):
                if sidecar.by_digest[layer.digest].diff_id not in (None, diff_id):
                    raise InvalidArchive(f"diffah.json gives {layer.digest} another diffID than the config {document.config.digest}", digest=layer.digest)
    strangers = sidecar.by_digest.keys() - reached - {referrer.descriptor.digest for image in sidecar.images for referrer in image.referrers}
    if strangers:
        raise InvalidArchive(f"diffah.json lists blobs that belong to no image: {', '.join(sorted(strangers))}", digests=sorted(strangers))


def verify_baseline(delta: Delta, baselines: list[Place]) -> dict[Digest, int]:
    """Find every required blob in the baselines; tells which baseline has it.

    A blob counts by its digest, whatever manifest it hangs under.

    Raises:
        BaselineIncomplete: naming every one that no baseline has.
    """
    needed = {blob.digest: blob.descriptor for blob in delta.sidecar.required}
    needed |= {
        source.digest: Descriptor(media_type="application/octet-stream", digest=source.digest, size=source.size)
        for blob in delta.sidecar.blobs
        for source in blob.sources
        if blob.travels == "patched" and source.digest not in delta.sidecar.by_digest
    }
    found: dict[Digest, int] = {}
    notes: list[str] = []
    for place, baseline in enumerate(baselines):
        if len(found) == len(needed):
            break
        with baseline.open() as reader:
            found.update({digest: place for digest, descriptor in needed.items() if digest not in found and reader.holds(descriptor)})
            notes += [f"{baseline}: {note}" for note in reader.notes]
    missing = [descriptor for digest, descriptor in needed.items() if digest not in found]
    if missing:
        images = ", ".join(str(image.image_name) for image in delta.sidecar.images)
        where = ", ".join(map(str, baselines)) or "no baseline was given"
        lines = "".join(f"\n  {descriptor.digest} ({descriptor.size} bytes, of {images})" for descriptor in missing)
        hints = "".join(f"\n  note: {note}" for note in notes)
        raise BaselineIncomplete(
            f"{len(missing)} of {len(needed)} required blobs are not in the baselines ({where}):{lines}{hints}",
            missing=[{"digest": descriptor.digest, "size": descriptor.size, "image": images} for descriptor in missing],
        )
    return found


def check_output(delta: Delta, output: Place, store: Store, name: ImageName | None = None, *, force: bool = False) -> bool:
    """Whether the output holds exactly this already, told before any work is done.

    Raises:
        OutputExists: it holds something else, and ``force`` is not set.
        Unsupported: a place for one image, and a delta of several.
    """
    images = _outgoing(delta.sidecar, [], store, name)
    if len(images) > 1 and output.reference.transport not in ("docker", "oci"):
        raise Unsupported(f"{output.reference.transport}: holds one image, the delta has {len(images)}", next_action="Import into oci: or docker://.")
    with open_writer(output.reference, output.access) as writer:
        return all([writer.check(image, force=force) for image in images])  # noqa: C419 - every one is checked


def plan_import(
    delta: Delta, found: dict[Digest, int], baselines: list[Place], output: Place, store: Store, name: ImageName | None = None, *, dry_run: bool = False
) -> ImportPlan:
    """Which blobs have to be made, and from what.

    Args:
        found: which baseline has which blob, from ``verify_baseline``.
        dry_run: change nothing at the output, not even by mounting blobs.
    """
    sidecar = delta.sidecar
    held: dict[Digest, None] = {}
    if not dry_run:
        with open_writer(output.reference, output.access) as writer:
            for image in _outgoing(sidecar, baselines, store, name):
                held |= dict.fromkeys(blob.digest for blob in image.blobs if writer.obtain(image, blob))
    rebuild = tuple(
        Rebuild(blob=blob, payloads=tuple(sidecar.payload_by_digest[digest] for digest in blob.payloads), baseline=found.get(blob.digest))
        for blob in sidecar.blobs
        if blob.role != "manifest" and blob.digest not in held
    )
    return ImportPlan(rebuild=rebuild, held=tuple(held))


def _inputs(item: Rebuild) -> dict[str, Any]:
    return {"blob": item.blob.digest, "payloads": [payload.digest for payload in item.payloads], "sources": [source.digest for source in item.blob.sources]}


@recorded(1, RebuiltBlob, _inputs)
def reconstruct(item: Rebuild, store: Store, delta: Place, baselines: list[Place]) -> RebuiltBlob:
    """Make one blob of the target in the store, verified.

    Raises:
        DigestMismatch, SizeMismatch: the delta or the baseline is damaged.
    """
    blob = item.blob
    if not store.has(blob.descriptor):
        label = f"{blob.role} {blob.digest.short}"
        if item.baseline is not None:
            with baselines[item.baseline].open() as reader, reader.stream(blob.descriptor) as chunks:
                store.put(blob.descriptor, transfer(label, blob.size, chunks))
        else:
            with delta.open() as reader, payload_from(reader, delta, item.payloads[0].descriptor) as chunks:
                store.put(blob.descriptor, transfer(label, blob.size, chunks))
    return RebuiltBlob(descriptor=blob.descriptor)


def publish(
    delta: Delta, baselines: list[Place], output: Place, store: Store, name: ImageName | None = None, options: WriteOptions = DEFAULT_OPTIONS
) -> list[Written]:
    """Write the images from the store to their place."""
    with open_writer(output.reference, output.access) as writer:
        return [writer.write(image, store, options) for image in _outgoing(delta.sidecar, baselines, store, name)]


def _outgoing(sidecar: Sidecar, baselines: list[Place], store: Store, name: ImageName | None) -> list[OutgoingImage]:
    neighbours = tuple(place.reference.where for place in baselines if place.reference.transport == "docker")
    images: list[OutgoingImage] = []
    for image in sidecar.images:
        nodes = [sidecar.by_digest[node.digest].descriptor for node in image.manifests]
        documents = {descriptor.digest: store.read(descriptor, MAX_MANIFEST) for descriptor in nodes}
        blobs = dict.fromkeys(blob for descriptor in nodes for blob in _children(documents[descriptor.digest], descriptor))
        ordered = tuple(sorted(nodes, key=lambda descriptor: descriptor.digest == image.target.digest))
        images.append(OutgoingImage(str(name or image.image_name), image.target, documents, ordered, tuple(blobs), neighbours))
    return images


def _children(raw: bytes, descriptor: Descriptor) -> Iterator[Descriptor]:
    document = parse_document(raw, descriptor.media_type)
    if not isinstance(document, Index):
        yield document.config
        yield from document.layers
