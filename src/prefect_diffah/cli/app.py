"""The command, its verbs, and how they end: exit codes and the one error message."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

import click

from prefect_diffah import __version__
from prefect_diffah.cli.result import show_error
from prefect_diffah.engine.errors import DiffahError, InternalError, Interrupted, InvalidOptions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

__all__ = ["main"]

GRACE = 8.0
"""Seconds between an interruption and the end of the process; supervisors kill after ten."""
VERBS = {
    "export": "export_image",
    "import": "import_image",
    "inspect": "inspect_delta",
    "verify": "verify_delta",
    "prune": "prune_store",
    "demo": "demo",
    "completion": "completion",
}


class _Verbs(click.Group):
    """Loads a verb's module when it is called, so that none pays for another's imports."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"prefect_diffah.cli.{VERBS[cmd_name]}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(f"no such command {args[0]!r}; there are {', '.join(VERBS)}", ctx) from error


@click.command(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="prefect-diffah", message="%(prog)s %(version)s")
def app() -> None:
    """Container images as delta archives: only what is new travels, and the rebuilt image keeps its digest."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    Exit codes: 0 done; 1 a fault of ours; 2 the request; 3 the surroundings;
    4 the content; 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    before = {number: signal.signal(number, _interrupted) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        sys.exit(_run(arguments))
    except DiffahError as error:
        show_error(error, _verb(arguments), as_json="--json" in arguments)
        sys.exit(error.exit_code)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(arguments: list[str]) -> int:
    try:
        outcome = app.main(arguments, prog_name="prefect-diffah", standalone_mode=False)
        return outcome if isinstance(outcome, int) else 0
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "prefect-diffah"
        raise InvalidOptions(error.format_message(), next_action=f"See {where} --help.") from error
    except click.ClickException as error:
        raise InvalidOptions(error.format_message()) from error
    except (KeyboardInterrupt, click.Abort) as error:
        raise Interrupted("interrupted") from error
    except (DiffahError, SystemExit):
        raise
    except Exception as error:
        raise InternalError(f"{type(error).__name__}: {error}") from error


def _verb(arguments: list[str]) -> str:
    return next((argument for argument in arguments if argument in VERBS), "")


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    """Interrupt, and end the process in a while even if threads of it still wait for a registry: they leave nothing that the next run does not clean."""
    timer = threading.Timer(GRACE, os._exit, (Interrupted.exit_code,))
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt
