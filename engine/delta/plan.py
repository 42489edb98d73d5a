"""What travels: the target's blobs, sorted into those that the receiver has and those that must go along."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from prefect_diffah.engine.errors import InvalidDocument
from prefect_diffah.engine.images import ImageName, ImageTree
from prefect_diffah.engine.model import ByteCount, Model
from prefect_diffah.engine.oci import Descriptor, Digest
from prefect_diffah.engine.oci.mediatypes import is_foreign

__all__ = ["ROLES", "BaselineImage", "BaselineLayer", "DeltaPlan", "PlannedBlob", "PlannedImage", "Role", "compute_diff"]

Role = Literal["manifest", "config", "layer", "signature", "other"]
ROLES: tuple[Role, ...] = get_args(Role)
"""The strongest first: manifests and configs must be at hand to whoever reads a delta."""


class BaselineLayer(Model):
    """A layer that the receiver is expected to have; ``diff_id`` where the config was known."""

    digest: Digest
    size: ByteCount
    diff_id: Digest | None = Field(default=None, alias="diffID")


class BaselineImage(Model):
    """An image that the receiver is expected to have."""

    manifest: Descriptor
    layers: tuple[BaselineLayer, ...]

    @classmethod
    def of(cls, tree: ImageTree) -> BaselineImage:
        manifest = tree.manifests[0]
        layers = (BaselineLayer(digest=layer.digest, size=layer.size, diff_id=manifest.diff_id(place)) for place, layer in enumerate(manifest.layers))
        return cls(manifest=tree.root, layers=tuple(layers))


class PlannedBlob(Model):
    """One blob of the target, and whether it must travel."""

    descriptor: Descriptor
    role: Role
    diff_id: Digest | None = None
    travels: bool
    sources: tuple[BaselineLayer, ...] = ()
    """Baseline layers that a patch of this blob could be made against."""
    reason: str


class PlannedImage(Model):
    """A target image tree and the baselines it is compared with."""

    tree: ImageTree
    baselines: tuple[BaselineImage, ...]


class DeltaPlan(Model):
    """The images of a delta over one pool of blobs, each blob once."""

    images: tuple[PlannedImage, ...]
    blobs: tuple[PlannedBlob, ...]

    @property
    def travelling(self) -> tuple[PlannedBlob, ...]:
        return tuple(blob for blob in self.blobs if blob.travels)

    @property
    def required(self) -> tuple[PlannedBlob, ...]:
        return tuple(blob for blob in self.blobs if not blob.travels)


def compute_diff(targets: list[ImageTree], baselines: list[ImageTree], name: ImageName | None = None) -> DeltaPlan:
    """Compare targets with baselines. Pure: reads nothing but its arguments.

    Manifests and configs always travel, so that an archive can be looked into
    by itself; a layer travels unless any baseline has a blob of its digest.

    Args:
        name: what the target shall be called, instead of its own name.

    Raises:
        InvalidDocument: two documents disagree about a blob.
    """
    # by digest, so that the order in which they were given changes no byte; of two with one digest, the one whose diffIDs are known
    known = {tree.root.digest: tree for tree in sorted(baselines, key=lambda tree: (tree.root.digest, len(tree.manifests[0].diff_ids)))}
    images = tuple(BaselineImage.of(tree) for tree in known.values())
    present: dict[Digest, BaselineLayer] = {}
    for layer in (layer for image in images for layer in image.layers):
        if layer.digest not in present or layer.diff_id is not None:
            present[layer.digest] = layer
    pool: dict[Digest, PlannedBlob] = {}
    for tree in targets:
        for manifest in tree.manifests:
            _add(pool, PlannedBlob(descriptor=manifest.descriptor, role="manifest", travels=True, reason="manifests always travel"))
            _add(pool, PlannedBlob(descriptor=manifest.config, role="config", travels=True, reason="configs always travel"))
            for place, descriptor in enumerate(manifest.layers):
                _add(pool, _layer(descriptor, manifest.diff_id(place), present))
    named = tuple(PlannedImage(tree=tree.model_copy(update={"name": name or tree.name}), baselines=images) for tree in targets)
    return DeltaPlan(images=named, blobs=tuple(pool.values()))


def _layer(layer: Descriptor, diff_id: Digest | None, present: dict[Digest, BaselineLayer]) -> PlannedBlob:
    same = present.get(layer.digest)
    if same is not None:
        if same.size != layer.size:
            raise InvalidDocument(f"target and baseline disagree about the size of {layer.digest}: {layer.size} and {same.size}", digest=layer.digest)
        return PlannedBlob(descriptor=layer, role="layer", diff_id=diff_id, travels=False, sources=(same,), reason="a baseline has it")
    reason = "no baseline has it"
    if is_foreign(layer.media_type):
        reason += "; a foreign layer: taken from the target's own place, never from its URLs"
    return PlannedBlob(descriptor=layer, role="layer", diff_id=diff_id, travels=True, sources=tuple(present.values()), reason=reason)


def _add(pool: dict[Digest, PlannedBlob], blob: PlannedBlob) -> None:
    """Put ``blob`` into the pool. One that is there in another role (an artifact's ``{}`` may be config and layer) keeps the stronger."""
    known = pool.setdefault(blob.descriptor.digest, blob)
    if known.descriptor.size != blob.descriptor.size:
        raise InvalidDocument(
            f"two documents disagree about the size of {blob.descriptor.digest}: {known.descriptor.size} and {blob.descriptor.size}",
            digest=blob.descriptor.digest,
        )
    if ROLES.index(blob.role) < ROLES.index(known.role):
        pool[blob.descriptor.digest] = blob
