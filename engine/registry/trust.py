"""Whom to trust: containers-certs.d(5), and the machine's own authorities."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import certifi

from prefect_diffah.engine.errors import InvalidOptions

__all__ = ["certificate_folder", "tls_context"]


def certificate_folder(registry: str) -> Path | None:
    """The ``certs.d`` folder for ``host[:port]``: the first that exists."""
    bases = (Path.home() / ".config/containers", Path("/etc/containers"), Path("/etc/docker"))
    return next((folder for base in bases if (folder := base / "certs.d" / registry).is_dir()), None)


def tls_context(folder: Path | None, *, verify: bool) -> ssl.SSLContext:
    """A client's TLS settings.

    Args:
        folder: holds ``*.crt`` (more authorities), ``*.cert`` with ``*.key`` (client certificates).
        verify: whether the server's certificate must be trusted.

    Raises:
        InvalidOptions: a folder or file that cannot be used.
    """
    context = ssl.create_default_context() if verify else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Python 3.13 began to demand extensions that authorities made by hand often lack, and that Go's clients do not ask for
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if verify and not os.environ.get("SSL_CERT_FILE") and not os.environ.get("SSL_CERT_DIR"):
        # a Python that was built elsewhere may not find this machine's authorities
        context.load_verify_locations(certifi.where())
    if folder is not None:
        _load(context, folder)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _load(context: ssl.SSLContext, folder: Path) -> None:
    try:
        names = sorted(folder.iterdir())
    except OSError as error:
        raise InvalidOptions(f"cannot read the certificate folder {folder}: {error.strerror}", path=str(folder)) from error
    for path in names:
        partner = path.with_suffix({".cert": ".key", ".key": ".cert"}.get(path.suffix, path.suffix))
        if not partner.exists():
            raise InvalidOptions(f"{path} has no {partner.name} beside it", next_action="Client certificates are pairs of .cert and .key.", path=str(path))
        try:
            if path.suffix == ".crt":
                context.load_verify_locations(path)
            elif path.suffix == ".cert":
                context.load_cert_chain(path, partner, password=_no_password)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise InvalidOptions(f"cannot use the certificate {path}: {reason}", path=str(path)) from error


def _no_password() -> str:
    # without it, OpenSSL would ask on the terminal
    raise ValueError("its key is encrypted")
