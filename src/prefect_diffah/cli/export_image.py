"""``prefect-diffah export``."""

from __future__ import annotations

from typing import Any

import click

from prefect_diffah.cli.options import access_options, output_options, run_options, store_options, writing_request
from prefect_diffah.cli.result import show
from prefect_diffah.cli.running import run
from prefect_diffah.engine import pipeline
from prefect_diffah.engine.delta.report import ExportReport
from prefect_diffah.flows.requests import ExportRequest

__all__ = ["command"]


@click.command(name="export")
@click.option("--target", required=True, metavar="REF", help="The image to deliver: docker://, docker-archive:, oci-archive:, oci: or dir:.")
@click.option("--baseline", "baselines", multiple=True, metavar="REF", help="An image that the receiver has; may be repeated.")
@click.option("--baseline-manifest", "baseline_manifests", multiple=True, metavar="FILE", help="manifest.json of a baseline that is gone; may be repeated.")
@click.option("--output", required=True, metavar="WHERE", help="Path, fsspec URL or reference to write the delta to.")
@click.option("--output-format", type=click.Choice(["oci-archive", "oci", "dir"]), help="What a plain path holds; by default oci-archive.")
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="Which image of an index.")
@click.option("--patch", type=click.Choice(["off"]), default="off", show_default=True, help="How changed layers travel; off: whole.")
@run_options
@store_options
@output_options
@access_options("target", "baseline", "output")
def command(**options: Any) -> None:
    """Make a delta archive: what the target has and the baselines have not.

    \b
    prefect-diffah export --target docker://registry.example.com/app:v2 \\
      --baseline docker://registry.example.com/app:v1 --output app_v1_to_v2.tar
    """
    names = ("target", "baselines", "baseline_manifests", "output", "output_format", "platform", "patch")
    request = writing_request(ExportRequest, options, names, ("target", "baseline", "output"))
    report = run("export_delta", request, lambda: pipeline.export_delta(request.resolve(), pipeline.Direct(request.workers)), options)
    show("export", report, lines(report), as_json=options["as_json"])


def lines(report: ExportReport) -> list[str]:
    """The report as text."""
    size = f" ({report.size} bytes)" if report.size is not None else ""
    return [f"archive: {report.output}", f"status: {report.status}{size}", *report.summary.lines(), *(f"note: {note}" for note in report.notes)]
