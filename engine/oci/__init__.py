"""Values of the OCI specifications, parsed once."""

from prefect_diffah.engine.oci.descriptor import Descriptor
from prefect_diffah.engine.oci.digest import Digest, verified
from prefect_diffah.engine.oci.documents import MAX_CONFIG, MAX_MANIFEST, ImageConfig, Index, Manifest, parse_document
from prefect_diffah.engine.oci.platform import Platform
from prefect_diffah.engine.oci.reference import FileTransport, Reference, Transport

__all__ = [
    "MAX_CONFIG",
    "MAX_MANIFEST",
    "Descriptor",
    "Digest",
    "FileTransport",
    "ImageConfig",
    "Index",
    "Manifest",
    "Platform",
    "Reference",
    "Transport",
    "parse_document",
    "verified",
]
