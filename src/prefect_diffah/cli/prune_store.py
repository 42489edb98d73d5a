"""``prefect-diffah prune``."""

from __future__ import annotations

import re
from typing import Any

import click

from prefect_diffah.cli.options import configure_logging, output_options, request_of, store_options
from prefect_diffah.cli.result import show
from prefect_diffah.engine.delta.report import human
from prefect_diffah.engine.errors import InvalidOptions
from prefect_diffah.flows.requests import StoreRequest

__all__ = ["command"]

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _size(text: str) -> int:
    match = re.fullmatch(r"([0-9]+)\s*([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    if match is None:
        raise InvalidOptions(f"not a size: {text!r}", next_action="Write a number of bytes, or one with K, M, G or T: 50G.")
    return int(match[1]) * _UNITS[match[2].upper()]


@click.command(name="prune")
@click.option("--max-size", required=True, metavar="SIZE", help="Bytes of blobs to keep at most: 0, 500M, 50G.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed.")
@store_options
@output_options
def command(**options: Any) -> None:
    """Remove the oldest blobs of the store until it is small enough.

    Nothing is lost that a run cannot make again. Runs under way may have to.
    """
    configure_logging(options["log_level"], quiet=options["quiet"])
    store = request_of(StoreRequest, store=options["store"], store_block=options["store_block"]).open_store(_load_block)
    pruned = store.prune(_size(options["max_size"]), dry_run=options["dry_run"])
    verb = "would remove" if options["dry_run"] else "removed"
    lines = [
        f"store: {store.url}",
        f"{verb}: {pruned.removed} blobs ({human(pruned.removed_bytes)})",
        f"left: {pruned.left} blobs ({human(pruned.left_bytes)})",
    ]
    show("prune", pruned, lines, as_json=options["as_json"])


def _load_block(kind: str, name: str) -> Any:
    # Prefect takes seconds to import, and most calls name no block
    from prefect_diffah.tasks.blocks import load_block

    return load_block(kind, name)
