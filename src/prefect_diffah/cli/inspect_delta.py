"""``prefect-diffah inspect``."""

from __future__ import annotations

from typing import Any

import click

from prefect_diffah.cli.options import access_of, access_options, configure_logging, output_options, request_of
from prefect_diffah.cli.result import show
from prefect_diffah.engine import pipeline
from prefect_diffah.flows.requests import VerifyRequest

__all__ = ["command"]


@click.command(name="inspect")
@click.argument("delta", metavar="DELTA")
@output_options
@access_options("delta", blocks=False)
def command(**options: Any) -> None:
    """Show what a delta holds and what it requires."""
    configure_logging(options["log_level"], quiet=options["quiet"])
    request = request_of(VerifyRequest, delta=options["delta"], delta_access=access_of(options, "delta")[0])
    summary = pipeline.inspect_delta(request.places()[0])
    show("inspect", summary, [f"archive: {options['delta']}", *summary.lines()], as_json=options["as_json"])
