"""A Prefect server, as a site has it."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from .processes import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class PrefectServer:
    """A running server."""

    url: str
    """Of its API."""

    def environment(self, home: Path) -> dict[str, str]:
        """Environment of a process whose flow runs it shall record; ``home`` is where results go."""
        return {"PREFECT_API_URL": self.url, "PREFECT_HOME": str(home), "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false"}

    def flow_runs(self, name: str) -> list[dict[str, Any]]:
        """The runs of the flow of that name."""
        answer = httpx.post(f"{self.url}/flow_runs/filter", json={"flows": {"name": {"any_": [name]}}}, trust_env=False, timeout=60)
        answer.raise_for_status()
        return list(answer.json())


@contextlib.contextmanager
def prefect_server(folder: Path) -> Iterator[PrefectServer]:
    """Run a server with its database in ``folder``; it has no user interface, and reports to nobody."""
    environment = {
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_SERVER_UI_ENABLED": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", "0", "--no-services"]
    # it makes its database first, which takes some fifteen seconds of a processor
    with serving(command, folder, environment, patience=300) as port:
        yield PrefectServer(f"http://127.0.0.1:{port}/api")
