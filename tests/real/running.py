"""How tests run our own pipelines, and other programs that judge what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_diffah.engine import pipeline
from prefect_diffah.engine.oci import Digest
from prefect_diffah.flows.requests import AccessRequest, ExportRequest, ImportRequest, VerifyRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from prefect_diffah.engine.delta.report import ExportReport, ImportReport, VerifyReport

PLAIN = AccessRequest(no_creds=True, tls_verify=False)
"""How a registry over plain HTTP is reached that asks for no credentials."""


def run(*command: str | Sequence[str], check: bool = True, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program; words may come in lists.

    Raises:
        AssertionError: ``check`` is set and it fails.
    """
    words = [word for part in command for word in ([part] if isinstance(part, str) else part)]
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, env={**os.environ, **(environment or {})}, timeout=300)
    if check and done.returncode:
        raise AssertionError(f"{words} ended with {done.returncode}: {done.stderr}")
    return done


def manifest_of(skopeo: str, reference: str, *options: str) -> bytes:
    """The raw manifest, as skopeo reads it."""
    return run(skopeo, "inspect", "--raw", options, reference).stdout.encode()


def digest_of(skopeo: str, reference: str, *options: str) -> Digest:
    """The manifest's digest, as skopeo reads it."""
    return Digest.of(manifest_of(skopeo, reference, *options))


def export(**fields: Any) -> ExportReport:
    """Export in this process, without Prefect."""
    return pipeline.export_delta(ExportRequest.model_validate(fields).resolve(), pipeline.Direct())


def import_(**fields: Any) -> ImportReport:
    """Import in this process, without Prefect."""
    return pipeline.import_delta(ImportRequest.model_validate(fields).resolve(), pipeline.Direct())


def verify(**fields: Any) -> VerifyReport:
    """Verify in this process."""
    return pipeline.verify_delta(*VerifyRequest.model_validate(fields).places())


def files_in(folder: Path) -> dict[str, tuple[int, bytes | str]]:
    """Mode and content (of links: where they lead) of everything below ``folder``, by relative path."""
    return {str(path.relative_to(folder)): _entry(path) for path in _below(folder)}


def _below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _below(path)


def _entry(path: Path) -> tuple[int, bytes | str]:
    content: bytes | str = os.readlink(path) if path.is_symlink() else b"" if path.is_dir() else path.read_bytes()
    return path.lstat().st_mode, content


def layers_of(manifest: bytes) -> list[tuple[str, int]]:
    """Digest and size of each layer, the base first."""
    return [(layer["digest"], layer["size"]) for layer in json.loads(manifest)["layers"]]


def environment_of_its_own(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment``, beside this process's less what configures AWS clients, Prefect and registry clients."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PREFECT_", "REGISTRY_", "DOCKER_"))}
    return own | dict(environment)


def diffah(*words: str | Sequence[str], environment: Mapping[str, str], code: int = 0) -> dict[str, Any]:
    """Run the command line in a process of its own; its result, or its error where ``code`` is not 0.

    Args:
        environment: see ``environment_of_its_own``.
        code: the exit code that it must end with.
    """
    command = [sys.executable, "-m", "prefect_diffah.cli", *(word for part in words for word in ([part] if isinstance(part, str) else part)), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment_of_its_own(environment), timeout=300)
    assert done.returncode == code, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    answer = json.loads(done.stdout)
    result: dict[str, Any] = answer["error" if code else "data"]
    return result
