"""Blocks: credentials of registries, and stores, kept by the Prefect server."""

from typing import Any

import httpx
from prefect.blocks.core import Block
from prefect.types import SecretDict
from pydantic import Field, SecretStr

from prefect_diffah.engine.errors import NotFound, ServerUnreachable

__all__ = ["DeltaStore", "RegistryCredentials", "load_block"]


class RegistryCredentials(Block):
    """
    Credentials for a container registry.

    Example:
        Load stored credentials and use them in a request:
        ```python
        from prefect_diffah.tasks.blocks import RegistryCredentials

        credentials = RegistryCredentials.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "Registry Credentials"
    _block_type_slug = "registry-credentials"
    _logo_url = "https://raw.githubusercontent.com/opencontainers/artwork/main/oci/icon/color/oci-icon-color.png"  # type: ignore[assignment]
    _documentation_url = "https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md"  # type: ignore[assignment]

    username: str | None = Field(default=None, description="User name; leave empty to use a token.")
    password: SecretStr | None = Field(default=None, description="Password or access token of that user.")
    registry_token: SecretStr | None = Field(default=None, description="Bearer token that is sent as it is, instead of user name and password.")
    cert_dir: str | None = Field(default=None, description="Folder with certificate authorities, on the machine where flows run.")
    tls_verify: bool | None = Field(default=None, description="Whether certificates are checked; false also allows plain HTTP.")


class DeltaStore(Block):
    """
    A place for blobs, records and archives, on any filesystem that fsspec knows.

    Example:
        Load a stored store and see where it is:
        ```python
        from prefect_diffah.tasks.blocks import DeltaStore

        store = DeltaStore.load("BLOCK_NAME")
        print(store.url)
        ```
    """

    _block_type_name = "Delta Store"
    _block_type_slug = "delta-store"
    _logo_url = "https://raw.githubusercontent.com/opencontainers/artwork/main/oci/icon/color/oci-icon-color.png"  # type: ignore[assignment]
    _documentation_url = "https://filesystem-spec.readthedocs.io/en/latest/"  # type: ignore[assignment]

    url: str = Field(description="Local path or fsspec URL, such as s3://bucket/prefix.", examples=["s3://builds/store"])
    storage_options: SecretDict = Field(
        default_factory=lambda: SecretDict({}), description="Keyword arguments of the fsspec filesystem, such as key, secret and client_kwargs."
    )


_KINDS: dict[str, type[Block]] = {"registry-credentials": RegistryCredentials, "delta-store": DeltaStore}


def load_block(kind: str, name: str) -> dict[str, Any]:
    """The fields of a stored block: ``kind`` is its type's slug.

    Raises:
        NotFound: no block of that kind and name.
        ServerUnreachable: no Prefect server answers.
    """
    try:
        block: Any = _KINDS[kind].load(name)
    except httpx.TransportError as error:
        raise ServerUnreachable(f"no Prefect server answers that has the block {name}: {error}") from error
    except ValueError as error:
        raise NotFound(f"there is no {kind} block named {name!r}", next_action="Create it in the Prefect UI, or correct the name.") from error
    return {field: getattr(block, field) for field in type(block).model_fields}
