"""What a command prints: its result on stdout, an error on stderr, or either as JSON on stdout."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prefect_diffah.engine.errors import DiffahError
    from prefect_diffah.engine.model import Model

__all__ = ["SCHEMA", "show", "show_error"]

SCHEMA = 1
"""Version of the ``--json`` envelope."""


def show(command: str, result: Model, lines: Iterable[str], *, as_json: bool) -> None:
    """Print a result: ``lines`` for people, the whole as JSON for programs."""
    _print(json.dumps({"schema": SCHEMA, "command": command, "data": result.model_dump(mode="json", by_alias=False)}) if as_json else "\n".join(lines))


def show_error(error: DiffahError, command: str, *, as_json: bool) -> None:
    """Print an error and what to do about it; a fault of ours with its traceback."""
    if error.exit_code == 1 or logging.getLogger().isEnabledFor(logging.DEBUG):
        traceback.print_exception(error.__cause__ or error, file=sys.stderr)
    if as_json:
        _print(json.dumps({"schema": SCHEMA, "command": command, "error": error.as_json()}, default=str))
    else:
        click.echo(f"error: {error.message}", err=True)
        click.echo(f"  → {error.next_action}", err=True)


def _print(text: str) -> None:
    try:
        click.echo(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # whoever reads has seen enough (`| head`); the work is done all the same
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
