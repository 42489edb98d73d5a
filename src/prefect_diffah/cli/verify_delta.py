"""``prefect-diffah verify``."""

from __future__ import annotations

from typing import Any

import click

from prefect_diffah.cli.options import access_of, access_options, configure_logging, output_options, request_of
from prefect_diffah.cli.result import show
from prefect_diffah.cli.running import run_direct
from prefect_diffah.engine import pipeline
from prefect_diffah.engine.delta.report import VerifyReport
from prefect_diffah.flows.requests import VerifyRequest

__all__ = ["command"]


@click.command(name="verify")
@click.option("--delta", required=True, metavar="WHERE", help="The delta: path, fsspec URL or reference.")
@click.option("--baseline", "baselines", multiple=True, metavar="REF", help="An image that should have what the delta requires; may be repeated.")
@click.option("--workdir", metavar="DIR", help="Folder for temporary files.")
@output_options
@access_options("delta", "baseline", blocks=False)
def command(**options: Any) -> None:
    """Check every byte of a delta, and that the baselines have what it requires."""
    configure_logging(options["log_level"], quiet=options["quiet"])
    delta, baseline = access_of(options, "delta", "baseline")
    names = ("delta", "baselines", "workdir")
    request = request_of(VerifyRequest, **{name: options[name] for name in names}, delta_access=delta, baseline_access=baseline)
    report = run_direct(lambda: pipeline.verify_delta(*request.places()), quiet=options["quiet"])
    show("verify", report, lines(report), as_json=options["as_json"])


def lines(report: VerifyReport) -> list[str]:
    """The report as text."""
    checked = "every byte" if report.canonical else "digests"
    baseline = f"has all {report.summary.required} required blobs" if report.baseline_checked else "not checked (give --baseline)"
    head = [f"archive: {report.archive}", f"sound: {checked} checked", f"baseline: {baseline}"]
    return [*head, *report.summary.lines(), *(f"note: {note}" for note in report.notes)]
