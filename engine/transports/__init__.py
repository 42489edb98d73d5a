"""Images in registries, archives and folders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_diffah.engine.access import DEFAULT_ACCESS, Access
from prefect_diffah.engine.transports.base import DEFAULT_OPTIONS, BlobSource, ImageReader, ImageWriter, OutgoingImage, WriteOptions, Written

if TYPE_CHECKING:
    from prefect_diffah.engine.oci import Reference

__all__ = ["DEFAULT_OPTIONS", "BlobSource", "ImageReader", "ImageWriter", "OutgoingImage", "WriteOptions", "Written", "open_reader", "open_writer"]


def open_reader(reference: Reference, access: Access = DEFAULT_ACCESS, workdir: str | None = None) -> ImageReader:
    """Open the place that ``reference`` names for reading.

    Args:
        workdir: folder for what has to be spooled (a compressed archive).
    """
    match reference.transport:
        case "docker":
            from prefect_diffah.engine.transports.docker import RegistryReader

            return RegistryReader(reference, access)
        case "docker-archive":
            from prefect_diffah.engine.transports.docker_archive import DockerArchiveReader

            return DockerArchiveReader(reference, access, workdir)
        case "oci-archive":
            from prefect_diffah.engine.transports.oci_archive import OCIArchiveReader

            return OCIArchiveReader(reference, access, workdir)
        case "oci":
            from prefect_diffah.engine.transports.oci import OCILayoutReader

            return OCILayoutReader(reference, access)
        case "dir":
            from prefect_diffah.engine.transports.dir import DirReader

            return DirReader(reference, access)


def open_writer(reference: Reference, access: Access = DEFAULT_ACCESS) -> ImageWriter:
    """Open the place that ``reference`` names for writing."""
    match reference.transport:
        case "docker":
            from prefect_diffah.engine.transports.docker import RegistryWriter

            return RegistryWriter(reference, access)
        case "docker-archive":
            from prefect_diffah.engine.transports.docker_archive import DockerArchiveWriter

            return DockerArchiveWriter(reference, access)
        case "oci-archive":
            from prefect_diffah.engine.transports.oci_archive import OCIArchiveWriter

            return OCIArchiveWriter(reference, access)
        case "oci":
            from prefect_diffah.engine.transports.oci import OCILayoutWriter

            return OCILayoutWriter(reference, access)
        case "dir":
            from prefect_diffah.engine.transports.dir import DirWriter

            return DirWriter(reference, access)
