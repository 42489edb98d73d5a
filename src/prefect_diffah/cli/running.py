"""Running a request: as a flow run, or directly."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, TypeVar

from prefect_diffah.cli.options import configure_logging
from prefect_diffah.cli.progress import shown_progress
from prefect_diffah.engine.errors import AccessDenied, DiffahError, ServerUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["run", "run_direct", "run_flow"]

Report = TypeVar("Report")


def run(flow: str, request: Any, direct: Callable[[], Report], options: dict[str, Any]) -> Report:
    """Run a request as ``options`` say: ``--direct`` in this process, else as the flow of that name."""
    if options["direct"]:
        configure_logging(options["log_level"], quiet=options["quiet"])
        return run_direct(direct, quiet=options["quiet"])
    report: Report = run_flow(flow, request, level=options["log_level"], quiet=options["quiet"])
    return report


def run_direct(pipeline: Callable[[], Report], *, quiet: bool) -> Report:
    """Run a pipeline in this process, with progress."""
    with shown_progress(quiet=quiet):
        return pipeline()


def run_flow(name: str, request: Any, *, level: str | None, quiet: bool) -> Any:
    """Run the flow ``prefect_diffah.NAME`` on the Prefect server that is configured, or an embedded one.

    Raises:
        ServerUnreachable: no server answers.
        AccessDenied: it wants other credentials.
    """
    # settings are read when Prefect is imported
    if level or quiet:
        os.environ["PREFECT_LOGGING_LEVEL"] = level or "CRITICAL"
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "prefect_diffah")
    # an embedded server takes 10 to 40 s to start, Prefect gives up after 20
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
    import httpx

    import prefect_diffah

    flow = getattr(prefect_diffah, name)
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.settings import PREFECT_API_URL

    where = PREFECT_API_URL.value() or "the embedded server"
    for logger in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(logger).addFilter(_without_traceback)
    try:
        _require_server()
        with shown_progress(quiet=quiet):
            return flow(request)
    except PrefectHTTPStatusError as error:
        if error.response.status_code in (401, 403):
            raise AccessDenied(f"the Prefect server at {where} refuses: {error.response.status_code}", next_action="Correct PREFECT_API_KEY.") from error
        raise ServerUnreachable(f"the Prefect server at {where} fails: {error.response.status_code}", url=where) from error
    except (httpx.HTTPError, OSError, RuntimeError) as error:
        # the engine raises errors of its own only: these are the server's
        raise ServerUnreachable(f"no Prefect server answers at {where}: {error}", url=where) from error


def _require_server() -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        fault = client.api_healthcheck()
    if fault is not None:
        raise fault


def _without_traceback(record: logging.LogRecord) -> bool:
    """What was foreseen needs no traceback: the message says it, and is shown at the end."""
    if record.exc_info and isinstance(record.exc_info[1], DiffahError):
        record.exc_info = None
    return True
