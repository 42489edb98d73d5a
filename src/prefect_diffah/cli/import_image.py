"""``prefect-diffah import``."""

from __future__ import annotations

from typing import Any

import click

from prefect_diffah.cli.options import access_of, access_options, configure_logging, log_level, output_options, request_of, run_options, store_options
from prefect_diffah.cli.result import show
from prefect_diffah.cli.running import run_direct, run_flow
from prefect_diffah.engine import pipeline
from prefect_diffah.engine.delta.report import ImportReport
from prefect_diffah.engine.requests import ImportRequest

__all__ = ["command"]


@click.command(name="import")
@click.option("--delta", required=True, metavar="WHERE", help="The delta: path, fsspec URL or reference.")
@click.option("--baseline", "baselines", multiple=True, metavar="REF", help="An image that is here; may be repeated.")
@click.option("--output", required=True, metavar="WHERE", help="Path, fsspec URL or reference to write the image to.")
@click.option("--output-format", type=click.Choice(["docker-archive", "oci-archive", "oci", "dir"]), help="What a plain path holds; by default docker-archive.")
@run_options
@store_options
@output_options
@access_options("delta", "baseline", "output")
def command(**options: Any) -> None:
    """Rebuild an image from a delta archive and what is here already.

    \b
    prefect-diffah import --delta app_v1_to_v2.tar \\
      --baseline docker://registry.internal/app:v1 --output docker://registry.internal/app:v2
    """
    quiet, as_json = options["quiet"], options["as_json"]
    same = ("delta", "baselines", "output", "output_format")
    run = ("dry_run", "force", "name", "workers", "workdir", "store", "store_block")
    access = {f"{place}_access": access_of(place, options) for place in ("delta", "baseline", "output")}
    request = request_of(ImportRequest, **{name: options[name] for name in same + run}, **access)
    if options["direct"]:
        configure_logging(options["log_level"], quiet=quiet)
        report = run_direct(lambda: pipeline.import_delta(request.resolve(), pipeline.Direct(request.workers)), quiet=quiet)
    else:
        report = run_flow("import_delta", request, workers=request.workers, level=log_level(options["log_level"], quiet=quiet), quiet=quiet)
    show("import", report, lines(report), as_json=as_json)


def lines(report: ImportReport) -> list[str]:
    """The report as text."""
    head = [
        f"output: {report.output}",
        f"status: {report.status} ({report.bytes_written} bytes written)",
        f"manifest digest there: {report.digest or 'not preserved'}",
        f"rebuilt: {report.rebuilt} blobs ({report.rebuilt_bytes} bytes); held there: {report.held}",
    ]
    return [*head, *report.summary.lines(), *(f"note: {note}" for note in report.notes)]
