"""Builds the registry of ``tests/real/go``."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "go"


def build(go: str, cache: Path) -> Path:
    """The program, built once for its sources into ``cache``; safe in several processes at a time.

    Raises:
        subprocess.CalledProcessError: it does not build (no network, Go too old); ``stderr`` says why.
    """
    sources = [*sorted(SOURCE.glob("*.go")), SOURCE / "go.mod", SOURCE / "go.sum"]
    key = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    program = cache / f"referrers-registry-{key[:16]}"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            fresh = program.with_suffix(".part")
            command = [go, "build", "-trimpath", "-buildvcs=false", "-o", str(fresh), "."]
            subprocess.run(command, cwd=SOURCE, env={**os.environ, "GOFLAGS": "-mod=readonly"}, check=True, capture_output=True, text=True, timeout=900)
            fresh.replace(program)
    return program
