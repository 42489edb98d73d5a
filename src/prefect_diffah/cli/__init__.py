"""The command line: one file a verb."""

from prefect_diffah.cli.app import main

__all__ = ["main"]
