"""Options that several verbs share."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
from pydantic import ValidationError

from prefect_diffah.engine.errors import InvalidOptions
from prefect_diffah.engine.model import Model
from prefect_diffah.engine.oci.documents import describe
from prefect_diffah.flows.requests import AccessRequest, keep_credentials

__all__ = ["access_of", "access_options", "configure_logging", "output_options", "request_of", "run_options", "store_options", "writing_request"]

Function = TypeVar("Function", bound=Callable[..., Any])
Request = TypeVar("Request", bound=Model)
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

_CREDENTIALS = ("username", "creds_env", "registry_token_file", "no_creds", "credentials")
_PLACE: dict[str, dict[str, Any]] = {
    "authfile": {"metavar": "FILE", "help": "use this auth.json instead of the default ones"},
    "creds_env": {"metavar": "NAME", "help": "environment variable that holds USERNAME:PASSWORD"},
    "username": {"metavar": "NAME", "help": "user name; its password comes from --password-stdin"},
    "no_creds": {"is_flag": True, "default": None, "help": "send no credentials"},
    "registry_token_file": {"metavar": "FILE", "help": "file that holds a bearer token"},
    "tls_verify": {"type": bool, "is_flag": False, "flag_value": True, "metavar": "BOOL", "help": "false: any certificate, and plain HTTP"},
    "cert_dir": {"metavar": "DIR", "help": "folder with *.crt authorities and *.cert and *.key pairs"},
}
_BLOCKS: dict[str, dict[str, Any]] = {
    "credentials": {"metavar": "BLOCK", "help": "RegistryCredentials block to use"},
    "store_block": {"metavar": "BLOCK", "help": "DeltaStore block whose storage options open it"},
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
            click.option("--log-level", type=click.Choice(LEVELS, case_sensitive=False), help="How much is logged to stderr."),
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


def access_options(*places: str, blocks: bool = True) -> Callable[[Function], Function]:
    """How places are reached: options for all, and a form of each for one place (``--target-authfile``).

    Args:
        blocks: whether Prefect's blocks can be named.
    """

    def decorate(function: Function) -> Function:
        options: list[Callable[[Any], Any]] = []
        for prefix in ("", *places):
            for name, settings in (_PLACE | _BLOCKS if blocks else _PLACE).items():
                if name == "store_block" and not prefix:
                    continue  # the store's own
                settings = dict(settings)
                text = str(settings["help"])
                plain = f"{text[0].upper()}{text[1:]}."
                settings["help"] = f"--{name.replace('_', '-')} for the {prefix} alone." if prefix and name in _PLACE else plain
                flag = "--" + "-".join(filter(None, (prefix, name.replace("_", "-"))))
                options.append(click.option(flag, "_".join(filter(None, (prefix, name))), **settings))
        options.append(click.option("--password-stdin", is_flag=True, help="Read the password of --username from standard input."))
        return _apply(function, options)

    return decorate


def access_of(options: dict[str, Any], *places: str) -> list[AccessRequest]:
    """The access of each place: its own options, else those for all."""
    if options["password_stdin"] and not any(options.get("_".join(filter(None, (place, "username")))) for place in ("", *places)):
        raise InvalidOptions("--password-stdin needs --username", next_action="Say whose password it is, for all places or for one: --target-username.")
    return [_access(place, options) for place in places]


def _access(place: str, options: dict[str, Any]) -> AccessRequest:
    names = [*_PLACE, *_BLOCKS]
    own = {name: options.get(f"{place}_{name}") for name in names}
    given = {name: options.get(name) for name in names} | {"store_block": None}
    if any(own[name] for name in _CREDENTIALS):
        given.update(dict.fromkeys(_CREDENTIALS))
    chosen = {name: own[name] if own[name] is not None else given[name] for name in names}
    username = chosen.pop("username")
    if username:
        if chosen["creds_env"]:
            raise InvalidOptions("--username and --creds-env exclude each other", next_action="Give one of them.")
        chosen["creds_env"] = _with_password(place, username, options)
    chosen["no_creds"] = bool(chosen["no_creds"])
    return request_of(AccessRequest, **chosen)


def _with_password(place: str, username: str, options: dict[str, Any]) -> str:
    """Keep user name and password in this process: a request, which Prefect stores, gets a name for them only."""
    if not options["password_stdin"]:
        raise InvalidOptions("--username needs --password-stdin", next_action="Pipe the password in, or use --creds-env or an authfile.")
    if "password" not in options:
        options["password"] = sys.stdin.readline().rstrip("\r\n")
    name = f"standard input, for the {place}"
    keep_credentials(name, f"{username}:{options['password']}")
    return name


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


def writing_request(kind: type[Request], options: dict[str, Any], names: tuple[str, ...], places: tuple[str, ...]) -> Request:
    """A request that writes an output: its own options by ``names``, those of ``run_options`` and ``store_options``, and the access of its places."""
    names += ("dry_run", "force", "name", "workers", "workdir", "store", "store_block")
    access = {f"{place}_access": request for place, request in zip(places, access_of(options, *places), strict=True)}
    return request_of(kind, **{name: options[name] for name in names}, **access)


def configure_logging(level: str | None, *, quiet: bool) -> None:
    """Log to stderr. For runs without Prefect, which sets logging up for its own."""
    logging.basicConfig(level=level or ("ERROR" if quiet else "WARNING"), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", datefmt="%H:%M:%S")
    for chatty in ("httpx", "httpcore", "botocore", "aiobotocore", "s3fs", "fsspec", "asyncio"):
        logging.getLogger(chatty).setLevel("WARNING")
