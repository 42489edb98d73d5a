"""Server processes that choose their own port and never outlive the tests."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

PATIENCE = 60.0
"""Seconds a server may take to listen; a loaded machine needs more than a quiet one."""
_PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def serving(command: Sequence[str | os.PathLike[str]], folder: Path, environment: Mapping[str, str] | None = None, patience: float = PATIENCE) -> Iterator[int]:
    """Run a server that was told to listen on port 0 of 127.0.0.1; yields the port it got.

    Asking the kernel which port that is, rather than handing one out, keeps
    test processes that run at a time from choosing the same.

    Args:
        folder: where its output goes, ``output.log``.
        environment: what it gets beside the machine's own, less what configures AWS clients: those find a place of the tests, not the user's.
        patience: seconds that it may take to listen.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**{name: value for name, value in os.environ.items() if not name.startswith("AWS_")}, **(environment or {})},
            preexec_fn=_die_with_parent,
        )
    try:
        yield _listening_port(process, log, patience)
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _listening_port(process: subprocess.Popen[bytes], log: Path, patience: float) -> int:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}:\n{log.read_text(errors='replace')}")
        if ports := _ports(process.pid):
            return ports[0]
        time.sleep(0.01)
    raise RuntimeError(f"{process.args!r} does not listen after {patience} s:\n{log.read_text(errors='replace')}")


def _ports(pid: int) -> list[int]:
    """TCP ports on which a process listens (proc_pid_fd(5), proc_pid_net(5)); none if it has ended."""
    proc = Path("/proc", str(pid))
    inodes = set()
    try:
        for handle in (proc / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                inodes.add(os.readlink(handle))
        table = (proc / "net" / "tcp").read_text()
    except OSError:
        return []
    rows = (row.split() for row in table.splitlines()[1:])
    return [int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes]
