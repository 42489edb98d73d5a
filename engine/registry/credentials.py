"""Credentials as other container tools keep them.

containers-auth.json(5) and Docker's config.json: ``auths`` with keys as narrow
as ``host/namespace/repository``, ``credHelpers`` and ``credsStore`` with
programs named ``docker-credential-NAME``, identity tokens.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect_diffah.engine.access import Access
from prefect_diffah.engine.errors import AccessDenied, InvalidOptions

__all__ = ["Credentials", "find_credentials"]

_log = logging.getLogger(__name__)
_DOCKER_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")
_HUB_KEY = "https://index.docker.io/v1/"
_HELPER_SECONDS = 60
_HELPER_NAME = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)


@dataclass(frozen=True)
class Credentials:
    """A name and password, or an identity (OAuth 2 refresh) token in place of the password."""

    username: str
    password: str = field(repr=False)
    identity_token: str | None = field(default=None, repr=False)


def find_credentials(registry: str, repository: str, access: Access) -> Credentials | None:
    """What to log in with at ``registry`` for ``repository``; None means anonymously.

    Args:
        registry: ``host[:port]``; ``docker.io`` for Docker Hub.

    Raises:
        InvalidOptions: a file that cannot be read as what it should be.
        AccessDenied: the credential helper configured for this registry failed.
    """
    if access.anonymous:
        return None
    if access.username is not None:
        return Credentials(access.username, access.password.get_secret_value() if access.password else "")
    if access.authfile is not None and not Path(access.authfile).exists():
        raise InvalidOptions(f"the authfile {access.authfile} does not exist", path=access.authfile)
    for path in [Path(access.authfile)] if access.authfile is not None else _default_files():
        found = _from_file(path, registry, repository)
        if found is not None:
            return found
    return None


def _default_files() -> Iterator[Path]:
    environment, home = os.environ, Path.home()
    if chosen := environment.get("REGISTRY_AUTH_FILE"):
        yield Path(chosen)
        return
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        yield Path(runtime, "containers/auth.json")
    elif hasattr(os, "getuid"):
        yield Path(f"/run/containers/{os.getuid()}/auth.json")
    yield Path(environment.get("XDG_CONFIG_HOME") or home / ".config", "containers/auth.json")
    yield Path(environment.get("DOCKER_CONFIG") or home / ".docker", "config.json")


def _from_file(path: Path, registry: str, repository: str) -> Credentials | None:
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InvalidOptions(f"cannot read {path}: {error.strerror}", path=str(path)) from error
    try:
        data = json.loads(text) if text.strip() else {}
        auths, helpers, store = data.get("auths") or {}, data.get("credHelpers") or {}, data.get("credsStore")
        helper = _by_host(helpers).get(registry)
        entries = {_normalized(key): value for key, value in auths.items()} | {key: value for key, value in auths.items() if "://" not in key}
    except (ValueError, AttributeError, RecursionError) as error:
        raise InvalidOptions(f"{path} is not an auth.json: {type(error).__name__}", path=str(path)) from error
    if helper:
        return _from_helper(str(helper), registry)
    key = f"{registry}/{repository}"
    while key:
        if (found := _from_entry(entries.get(key), path, key)) is not None:
            return found
        key = key.rpartition("/")[0]
    if store:
        try:
            return _from_helper(str(store), registry)
        except AccessDenied as error:
            # it speaks for every registry, also those that need no login
            _log.warning("%s", error.message)
    return None


def _by_host(helpers: dict[str, str]) -> dict[str, str]:
    return {_normalized(key): value for key, value in helpers.items()}


def _normalized(key: str) -> str:
    bare = re.sub(r"^https?://", "", key)
    if bare != key:
        bare = bare.partition("/")[0]
    host, slash, path = bare.partition("/")
    return ("docker.io" if host in _DOCKER_HUB else host) + slash + path


def _from_entry(entry: Any, path: Path, key: str) -> Credentials | None:
    if not isinstance(entry, dict):
        return None
    identity = entry.get("identitytoken") or None
    try:
        user, _, password = base64.b64decode(entry.get("auth") or "", validate=True).decode().partition(":")
    except (binascii.Error, ValueError, TypeError) as error:
        raise InvalidOptions(f"{path} has an entry for {key} that does not decode", path=str(path)) from error
    user, password = entry.get("username") or user, entry.get("password") or password.strip("\0")
    return Credentials(user, password, identity) if user or identity else None


def _from_helper(name: str, registry: str) -> Credentials | None:
    """Ask ``docker-credential-NAME get`` (docker/docker-credential-helpers, "Development")."""
    program = shutil.which(f"docker-credential-{name}") if _HELPER_NAME.fullmatch(name) else None

    def failed(why: str) -> AccessDenied:
        return AccessDenied(
            f"the credential helper docker-credential-{name[:100]} {why}",
            next_action="Install or repair the helper, or give credentials another way (--no-creds for none).",
            helper=name[:100],
            registry=registry,
        )

    if program is None:
        raise failed("is not installed")
    try:
        done = subprocess.run(
            [program, "get"],
            input=(_HUB_KEY if registry == "docker.io" else registry).encode(),
            capture_output=True,
            timeout=_HELPER_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise failed(f"failed: {type(error).__name__}") from error
    if done.returncode != 0:
        if b"credentials not found" in done.stdout.lower() + done.stderr.lower():
            return None
        # the output is not repeated: a helper that failed oddly may have printed the secret
        raise failed(f"failed with exit code {done.returncode}")
    try:
        answer = json.loads(done.stdout)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError) as error:
        raise failed("answered something that is not understood") from error
    return Credentials("", "", secret) if user == "<token>" else Credentials(user, secret)
