"""``prefect-diffah completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["command"]


@click.command(name="completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print a script that completes this command in a shell.

    \b
    eval "$(prefect-diffah completion bash)"
    """
    from prefect_diffah.cli.app import app

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(app, {}, "prefect-diffah", "_PREFECT_DIFFAH_COMPLETE").source())
