"""Options that several verbs share."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
from pydantic import ValidationError

from prefect_diffah.engine.errors import InvalidOptions
from prefect_diffah.engine.model import Model
from prefect_diffah.engine.oci.documents import describe
from prefect_diffah.engine.requests import AccessRequest

__all__ = ["access_of", "access_options", "configure_logging", "log_level", "output_options", "request_of", "run_options", "store_options"]

Function = TypeVar("Function", bound=Callable[..., Any])
Request = TypeVar("Request", bound=Model)
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

_CREDENTIALS = ("username", "creds_env", "registry_token_file", "no_creds", "credentials")
_PLACE: dict[str, dict[str, Any]] = {
    "authfile": {"metavar": "FILE", "help": "auth.json to use instead of the default ones"},
    "creds_env": {"metavar": "NAME", "help": "environment variable that holds USERNAME:PASSWORD"},
    "username": {"metavar": "NAME", "help": "user name; its password comes from --password-stdin"},
    "no_creds": {"is_flag": True, "default": None, "help": "send no credentials"},
    "registry_token_file": {"metavar": "FILE", "help": "file that holds a bearer token"},
    "credentials": {"metavar": "BLOCK", "help": "RegistryCredentials block to use"},
    "tls_verify": {"type": bool, "is_flag": False, "flag_value": True, "metavar": "BOOL", "help": "false: any certificate, and plain HTTP"},
    "cert_dir": {"metavar": "DIR", "help": "folder with *.crt authorities and *.cert and *.key pairs"},
}


def _apply(function: Function, options: list[Callable[[Any], Any]]) -> Function:
    for option in reversed(options):
        function = option(function)
    return function


def output_options(function: Function) -> Function:
    """How results and logs are printed: every verb has these."""
    return _apply(
        function,
        [
            click.option("--json", "as_json", is_flag=True, help="Print the result, or the error, as JSON."),
            click.option("-q", "--quiet", is_flag=True, help="No progress, no logs but errors."),
            click.option("--log-level", type=click.Choice(LEVELS, case_sensitive=False), help="How much is logged to stderr; by default WARNING."),
        ],
    )


def store_options(function: Function) -> Function:
    """Where state is kept."""
    return _apply(
        function,
        [
            click.option("--store", metavar="URL", help="Path or fsspec URL of the store; by default PREFECT_DIFFAH_STORE, or the user's cache."),
            click.option("--store-block", metavar="BLOCK", help="DeltaStore block, instead of a path or URL."),
        ],
    )


def run_options(function: Function) -> Function:
    """How export and import run."""
    return _apply(
        function,
        [
            click.option("--dry-run", is_flag=True, help="Check everything and report, write nothing."),
            click.option("--force", is_flag=True, help="Replace an output that holds something else."),
            click.option("--name", metavar="NAME[:TAG]", help="What the image is called where it arrives."),
            click.option("--workers", type=click.IntRange(1, 64), default=4, show_default=True, help="Blobs moved at a time."),
            click.option("--workdir", metavar="DIR", help="Folder for temporary files."),
            click.option("--direct", is_flag=True, help="Run in this process, without Prefect."),
        ],
    )


def access_options(*places: str) -> Callable[[Function], Function]:
    """How places are reached: options for all, and a form of each for one place (``--target-authfile``)."""

    def decorate(function: Function) -> Function:
        options: list[Callable[[Any], Any]] = []
        for prefix in ("", *places):
            for name, settings in _PLACE.items():
                settings = dict(settings)
                flag = "--" + "-".join(filter(None, (prefix, name.replace("_", "-"))))
                settings["help"] = (
                    f"{settings['help'][0].upper()}{settings['help'][1:]}." if not prefix else f"{flag.replace(f'{prefix}-', '', 1)} for the {prefix} alone."
                )
                options.append(click.option(flag, "_".join(filter(None, (prefix, name))), **settings))
            if prefix:
                options.append(click.option(f"--{prefix}-store-block", metavar="BLOCK", help=f"DeltaStore block whose storage options open the {prefix}."))
        options.append(click.option("--password-stdin", is_flag=True, help="Read the password of --username from standard input."))
        return _apply(function, options)

    return decorate


def access_of(place: str, options: dict[str, Any]) -> AccessRequest:
    """The access of one place: its own options, else those for all."""
    own = {name: options.get(f"{place}_{name}") for name in _PLACE}
    given = {name: options.get(name) for name in _PLACE}
    if any(own[name] for name in _CREDENTIALS):
        given.update(dict.fromkeys(_CREDENTIALS))
    chosen = {name: own[name] if own[name] is not None else given[name] for name in _PLACE}
    username = chosen.pop("username")
    if username:
        chosen["creds_env"] = _password_variable(place, username, options)
    chosen["no_creds"] = bool(chosen["no_creds"])
    return request_of(AccessRequest, **chosen, store=options.get(f"{place}_store_block"))


def _password_variable(place: str, username: str, options: dict[str, Any]) -> str:
    """Keep the password in this process's environment: a request, which Prefect stores, names only the variable."""
    if not options["password_stdin"]:
        raise InvalidOptions("--username needs --password-stdin", next_action="Pipe the password in, or use --creds-env or an authfile.")
    if "password" not in options:
        options["password"] = sys.stdin.readline().rstrip("\r\n")
    variable = f"PREFECT_DIFFAH_CREDS_{place.upper()}"
    os.environ[variable] = f"{username}:{options['password']}"
    return variable


def request_of(kind: type[Request], **fields: Any) -> Request:
    """A request made of options; its complaints as ours.

    Raises:
        InvalidOptions.
    """
    try:
        return kind(**fields)
    except ValidationError as error:
        message = describe(error).replace("Value error, ", "").removeprefix("document: ")
        raise InvalidOptions(message) from error


def log_level(level: str | None, *, quiet: bool) -> str:
    """The name of the level to log at."""
    return (level or ("ERROR" if quiet else "WARNING")).upper()


def configure_logging(level: str | None, *, quiet: bool) -> None:
    """Log to stderr. For runs without Prefect, which sets logging up for its own."""
    logging.basicConfig(level=log_level(level, quiet=quiet), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", datefmt="%H:%M:%S")
    for chatty in ("httpx", "httpcore", "botocore", "aiobotocore", "s3fs", "fsspec", "asyncio"):
        logging.getLogger(chatty).setLevel("WARNING")
