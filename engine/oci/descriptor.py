"""Content descriptors (image-spec 1.1, descriptor.md)."""

from __future__ import annotations

from prefect_diffah.engine.model import ByteCount, Model
from prefect_diffah.engine.oci.digest import Digest
from prefect_diffah.engine.oci.platform import Platform

__all__ = ["Descriptor"]


class Descriptor(Model):
    """What a blob is: type, digest, size in bytes, and what else its document said of it."""

    media_type: str
    digest: Digest
    size: ByteCount
    urls: tuple[str, ...] = ()
    annotations: dict[str, str] = {}
    platform: Platform | None = None
    artifact_type: str | None = None

    def __hash__(self) -> int:
        return hash((self.media_type, self.digest, self.size))
