"""Media types of OCI image-spec 1.1, of Docker's v2s2, and of this project's deltas."""

from __future__ import annotations

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"

DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_FOREIGN_LAYER = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"

DOCKER_SCHEMA1 = ("application/vnd.docker.distribution.manifest.v1+json", "application/vnd.docker.distribution.manifest.v1+prettyjws")

INDEXES = (OCI_INDEX, DOCKER_INDEX)
MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)
CONFIGS = (OCI_CONFIG, DOCKER_CONFIG)

DELTA = "application/vnd.diffah.delta.v1"
DELTA_CONFIG = "application/vnd.diffah.delta.config.v1+json"
DELTA_MANIFEST = "application/vnd.diffah.manifest.v1"
DELTA_BLOB = "application/vnd.diffah.blob.v1"
DELTA_PATCH = "application/vnd.diffah.patch.v1"


def is_foreign(media_type: str) -> bool:
    """Whether layers of this type may be kept out of registries (image-spec, layer.md, "Non-Distributable Layers")."""
    return media_type == DOCKER_FOREIGN_LAYER or "nondistributable" in media_type
