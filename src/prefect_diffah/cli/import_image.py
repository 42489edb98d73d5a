"""``prefect-diffah import``."""

from __future__ import annotations

from typing import Any

import click

from prefect_diffah.cli.options import access_options, output_options, run_options, store_options, writing_request
from prefect_diffah.cli.result import show
from prefect_diffah.cli.running import run
from prefect_diffah.engine import pipeline
from prefect_diffah.engine.delta.report import ImportReport
from prefect_diffah.flows.requests import ImportRequest

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
    names = ("delta", "baselines", "output", "output_format")
    request = writing_request(ImportRequest, options, names, ("delta", "baseline", "output"))
    report = run("import_delta", request, lambda: pipeline.import_delta(request.resolve(), pipeline.Direct(request.workers)), options)
    show("import", report, lines(report), as_json=options["as_json"])


def lines(report: ImportReport) -> list[str]:
    """The report as text."""
    head = [
        f"output: {report.output}",
        f"status: {report.status} ({report.bytes_written} bytes written)",
        f"manifest digest there: {report.digest or 'not preserved'}",
        f"rebuilt: {report.rebuilt} blobs ({report.rebuilt_bytes} bytes); held there: {report.held}",
    ]
    return [*head, *report.summary.lines(), *(f"note: {note}" for note in report.notes)]
