"""How a place is reached: credentials, trust, and options of object stores."""

from __future__ import annotations

from typing import Any

from pydantic import Secret, SecretStr

from prefect_diffah.engine.model import Model

__all__ = ["DEFAULT_ACCESS", "Access"]


class Access(Model):
    """What it takes to reach one registry or object store.

    Secrets are hidden in every representation and in JSON; they survive
    pickling only. What is None falls back to the machine's own configuration
    (auth.json, certs.d, registries.conf, environment).

    Attributes:
        username, password: Basic credentials, also exchanged for tokens.
        registry_token: a bearer token, sent as it is.
        anonymous: never send credentials, whatever the machine has.
        authfile: path of an auth.json to use instead of the default ones.
        cert_dir: folder of ``*.crt`` authorities and ``*.cert``/``*.key`` pairs.
        tls_verify: False accepts any certificate, and plain HTTP.
        storage_options: options of the fsspec filesystem, as keyword arguments.
    """

    username: str | None = None
    password: SecretStr | None = None
    registry_token: SecretStr | None = None
    anonymous: bool = False
    authfile: str | None = None
    cert_dir: str | None = None
    tls_verify: bool | None = None
    storage_options: Secret[dict[str, Any]] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The filesystem's options, in the clear."""
        return dict(self.storage_options.get_secret_value()) if self.storage_options else {}


DEFAULT_ACCESS = Access()
