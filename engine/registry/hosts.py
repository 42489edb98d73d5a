"""Where a registry really is: containers-registries.conf(5), version 2.

Mirrors, rewritten locations, plain or untrusted registries, blocked ones.
"""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, ValidationError

from prefect_diffah.engine.errors import AccessDenied, InvalidOptions
from prefect_diffah.engine.model import Model

__all__ = ["Endpoint", "RegistriesConf"]


@dataclass(frozen=True)
class Endpoint:
    """One place to ask: ``host[:port]``, the repository's name there, whether untrusted TLS and plain HTTP are accepted."""

    host: str
    repository: str
    insecure: bool = False
    mirror: bool = False


class _Entry(Model):
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=lambda name: name.replace("_", "-"))

    location: str = ""
    insecure: bool = False


class _Mirror(_Entry):
    pull_from_mirror: Literal["", "all", "digest-only", "tag-only"] = ""

    def serves(self, by_digest: bool, digest_only: bool) -> bool:
        only = "digest-only" if digest_only and not self.pull_from_mirror else self.pull_from_mirror
        return only != ("tag-only" if by_digest else "digest-only")


class _Registry(_Entry):
    prefix: str = ""
    blocked: bool = False
    mirror_by_digest_only: bool = False
    mirror: tuple[_Mirror, ...] = ()

    @property
    def matching(self) -> str:
        return (self.prefix or self.location).rstrip("/")

    def matched(self, name: str) -> int | None:
        """How many characters of ``name`` the prefix covers."""
        prefix = self.matching
        if prefix.startswith("*."):
            host = name.partition("/")[0]
            return next((len(part) for part in (host, host.partition(":")[0]) if part.endswith(prefix[1:])), None)
        return len(prefix) if name == prefix or name.startswith((f"{prefix}/", f"{prefix}:")) else None


class _File(Model):
    model_config = ConfigDict(frozen=True, extra="ignore")

    registry: tuple[_Registry, ...] = ()
    registries: dict[str, dict[str, Any]] = {}
    """Version 1, which newer tools do not read any more."""


class RegistriesConf:
    """The merged configuration; of two entries with one prefix, the later file's counts.

    Args:
        files: registries.conf files in the order they are read.

    Raises:
        InvalidOptions: a file that is not TOML or breaks the format.
    """

    def __init__(self, files: list[Path]) -> None:
        entries: dict[str, _Registry] = {}
        for path in files:
            file = _read(path)
            if old := [name for name in ("insecure", "block") if file.registries.get(name, {}).get("registries")]:
                raise InvalidOptions(
                    f"{path} has the tables {', '.join(f'registries.{name}' for name in old)} of version 1, which are not understood",
                    next_action="Write [[registry]] tables instead, as containers-registries.conf(5) describes.",
                    path=str(path),
                )
            for entry in file.registry:
                if not entry.matching:
                    raise InvalidOptions(f"{path} has a registry without prefix and location", path=str(path))
                entries[entry.matching] = entry
        self._entries = entries

    @classmethod
    def load(cls) -> RegistriesConf:
        """The machine's configuration, found as containers/image finds it."""
        home, system = Path.home() / ".config/containers", Path("/etc/containers")
        own = home / "registries.conf"
        if chosen := os.environ.get("CONTAINERS_REGISTRIES_CONF"):
            if not Path(chosen).exists():
                raise InvalidOptions(f"CONTAINERS_REGISTRIES_CONF names {chosen}, which does not exist", path=chosen)
            files, folders = [Path(chosen)], [system, home]
        elif own.exists():
            files, folders = [own], [home]
        else:
            files, folders = [system / "registries.conf"], [system, home]
        for folder in folders:
            files += sorted((folder / "registries.conf.d").glob("*.conf"))
        return cls(files)

    def for_reading(self, name: str, *, by_digest: bool) -> list[Endpoint]:
        """Where to look for ``host/repository``, in this order: its mirrors, then the registry itself.

        Raises: AccessDenied when it is blocked.
        """
        entry, length = self._find(name)
        if entry is None:
            return [_endpoint(name, insecure=False)]
        rest = name[length:]
        mirrors = [
            _endpoint(mirror.location.rstrip("/") + rest, insecure=mirror.insecure, mirror=True)
            for mirror in entry.mirror
            if mirror.location and mirror.serves(by_digest, entry.mirror_by_digest_only)
        ]
        itself = entry.location.rstrip("/") + rest if entry.location else name
        return [*mirrors, _endpoint(itself, insecure=entry.insecure)]

    def for_writing(self, name: str) -> Endpoint:
        """Where ``host/repository`` is pushed: neither mirrored nor rewritten, as in containers/image.

        Raises: AccessDenied when it is blocked.
        """
        entry, _ = self._find(name)
        return _endpoint(name, insecure=entry is not None and entry.insecure)

    def _find(self, name: str) -> tuple[_Registry | None, int]:
        matches = [(len(prefix), length, entry) for prefix, entry in self._entries.items() if (length := entry.matched(name)) is not None]
        if not matches:
            return None, 0
        _, length, entry = max(matches, key=lambda match: match[0])
        if entry.blocked:
            raise AccessDenied(
                f"{name} is blocked by registries.conf (prefix {entry.matching})",
                next_action="Have it unblocked there, or use another registry.",
                prefix=entry.matching,
            )
        return entry, length


def _endpoint(name: str, *, insecure: bool, mirror: bool = False) -> Endpoint:
    host, _, repository = name.partition("/")
    if host in ("docker.io", "index.docker.io") and repository and "/" not in repository:
        repository = f"library/{repository}"
    if not repository or not re.fullmatch(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?", host):
        raise InvalidOptions(f"registries.conf leads to {name!r}, which is not host/repository", location=name)
    return Endpoint(host, repository, insecure, mirror)


def _read(path: Path) -> _File:
    try:
        return _File.model_validate(tomllib.loads(path.read_text("utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return _File()
    except OSError as error:
        raise InvalidOptions(f"cannot read {path}: {error.strerror}", path=str(path)) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InvalidOptions(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}", path=str(path)) from error
    except ValueError as error:
        raise InvalidOptions(f"{path} is not TOML: {error}", path=str(path)) from error
