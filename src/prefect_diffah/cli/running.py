"""Running a request: as a flow run, or directly."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

from prefect_diffah.cli.progress import shown_progress
from prefect_diffah.engine.errors import DiffahError, ServerUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["run_direct", "run_flow"]

Request = TypeVar("Request")
Report = TypeVar("Report")


def run_direct(pipeline: Callable[[], Report], *, quiet: bool) -> Report:
    """Run a pipeline in this process, with progress."""
    with shown_progress(quiet=quiet):
        return pipeline()


def run_flow(name: str, request: Any, *, workers: int, level: str, quiet: bool) -> Any:
    """Run the flow ``prefect_diffah.NAME`` on the Prefect server that is configured, or an embedded one.

    Raises:
        ServerUnreachable: no server answers.
    """
    # settings are read when Prefect is imported
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR" if quiet else "INFO" if level == "WARNING" else level)
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "prefect_diffah")
    # an embedded server takes 10 to 40 s to start, Prefect gives up after 20
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
    import prefect_diffah

    flow = getattr(prefect_diffah, name)
    _require_server()
    from prefect.task_runners import ThreadPoolTaskRunner

    with shown_progress(quiet=quiet):
        return flow.with_options(task_runner=ThreadPoolTaskRunner(max_workers=workers))(request)


def _require_server() -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    try:
        with get_client(sync_client=True) as client:
            fault = client.api_healthcheck()
    except DiffahError:
        raise
    except Exception as error:
        fault = error
    if fault is not None:
        where = PREFECT_API_URL.value() or "the embedded server"
        raise ServerUnreachable(f"no Prefect server answers at {where}: {fault}", url=str(where)) from fault
