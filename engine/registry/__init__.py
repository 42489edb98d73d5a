"""A client for registries (OCI distribution-spec 1.1).

Connections are shared by the whole process, one pool for each registry and
access; ``close_all`` closes them, and so does the process's end.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from prefect_diffah.engine.access import DEFAULT_ACCESS, Access
from prefect_diffah.engine.registry.client import Repository
from prefect_diffah.engine.registry.connection import Connection
from prefect_diffah.engine.registry.hosts import Endpoint, RegistriesConf
from prefect_diffah.engine.registry.retry import PATIENCE, EitherEvent, Patience
from prefect_diffah.engine.registry.uploads import can_push, mount_blob, upload_blob

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "PATIENCE",
    "EitherEvent",
    "Patience",
    "Repository",
    "can_push",
    "close_all",
    "connect_for_reading",
    "connect_for_writing",
    "mount_blob",
    "upload_blob",
]

MIRROR_SECONDS = 10.0
"""How long a mirror is waited for; the registry itself comes after it."""

_lock = threading.Lock()
_connections: dict[tuple[str, bool, bytes], Connection] = {}


def connect_for_reading(name: str, access: Access = DEFAULT_ACCESS, *, by_digest: bool = False, patience: Patience = PATIENCE) -> Sequence[Repository]:
    """The repositories that ``host/repository`` may be read from, in order: mirrors first.

    Args:
        by_digest: whether the image is named by digest; some mirrors serve only those.

    Raises:
        AccessDenied: registries.conf blocks it.
        InvalidOptions: a configuration file that cannot be used.
    """
    hasty = replace(patience, total=min(MIRROR_SECONDS, patience.total))
    repositories = []
    for place in RegistriesConf.load().for_reading(name, by_digest=by_digest):
        connection = _connection(place, access if name.startswith(f"{place.host}/") else _impersonal(access))
        repositories.append(Repository(connection, place.repository, patience=hasty if place.mirror else patience))
    return repositories


def connect_for_writing(name: str, access: Access = DEFAULT_ACCESS, *, patience: Patience = PATIENCE) -> Repository:
    """The repository that ``host/repository`` is written to.

    Raises:
        AccessDenied: registries.conf blocks it.
        InvalidOptions: a configuration file that cannot be used.
    """
    place = RegistriesConf.load().for_writing(name)
    return Repository(_connection(place, access), place.repository, push=True, patience=patience)


def close_all() -> None:
    """Close every connection of this process; readers and writers that are open fail afterwards."""
    with _lock:
        connections = list(_connections.values())
        _connections.clear()
    for connection in connections:
        connection.close()


def _impersonal(access: Access) -> Access:
    """``access`` for another host than the one its credentials were given for; the machine may have some for that one."""
    return access.model_copy(update={"username": None, "password": None, "registry_token": None})


def _connection(place: Endpoint, access: Access) -> Connection:
    key = (place.host, place.insecure, _fingerprint(access))
    with _lock:
        if key not in _connections:
            _connections[key] = Connection(place.host, access, insecure=place.insecure)
        return _connections[key]


def _fingerprint(access: Access) -> bytes:
    secrets = [secret.get_secret_value() if secret else None for secret in (access.password, access.registry_token)]
    others = (access.username, access.anonymous, access.authfile, access.cert_dir, access.tls_verify)
    return hashlib.sha256(repr((secrets, others)).encode()).digest()


def _forget_after_fork() -> None:
    # a child must not talk on its parent's sockets, nor say goodbye on them
    global _lock
    _lock = threading.Lock()
    _connections.clear()


atexit.register(close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
