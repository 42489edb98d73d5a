"""``prefect-diffah completion``."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import get_completion_class

from prefect_diffah.cli.options import output_options
from prefect_diffah.cli.result import show
from prefect_diffah.engine.model import Model

__all__ = ["command"]


class Completion(Model):
    """A script for a shell."""

    shell: str
    script: str


@click.command(name="completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@output_options
def command(shell: str, as_json: bool, **others: Any) -> None:
    """Print a script that completes this command in a shell.

    \b
    eval "$(prefect-diffah completion bash)"
    """
    from prefect_diffah.cli.app import app

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(app, {}, "prefect-diffah", "_PREFECT_DIFFAH_COMPLETE").source()
    show("completion", Completion(shell=shell, script=script), [script], as_json=as_json)
