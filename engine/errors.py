"""Every error that this project raises on purpose.

    DiffahError
    ├── RequestError               exit 2: what was asked cannot be done
    │   ├── InvalidReference
    │   ├── InvalidOptions
    │   ├── PlatformError
    │   ├── NotFound
    │   ├── AccessDenied
    │   ├── Unsupported
    │   ├── BaselineIncomplete
    │   └── OutputExists
    ├── SurroundingsError          exit 3: the network, the disk, a server
    │   ├── NetworkError           (transient)
    │   ├── RegistryUnavailable    (transient)
    │   ├── TLSUntrusted
    │   ├── StorageError           (transient)
    │   ├── NoSpace
    │   └── ServerUnreachable
    ├── ContentError               exit 4: bytes are not what they are said to be
    │   ├── DigestMismatch
    │   ├── SizeMismatch
    │   ├── InvalidDocument
    │   ├── InvalidArchive
    │   └── UnsupportedVersion
    ├── InternalError              exit 1: a fault of ours
    └── Interrupted                exit 130

An error carries its data (``details``: JSON values), what the user can do
(``next_action``) and whether trying again can help (``transient``). Messages
name no secret. Errors survive pickling, since they cross process borders.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

__all__ = [
    "AccessDenied",
    "BaselineIncomplete",
    "ContentError",
    "DiffahError",
    "DigestMismatch",
    "InternalError",
    "Interrupted",
    "InvalidArchive",
    "InvalidDocument",
    "InvalidOptions",
    "InvalidReference",
    "NetworkError",
    "NoSpace",
    "NotFound",
    "OutputExists",
    "PlatformError",
    "RegistryUnavailable",
    "RequestError",
    "ServerUnreachable",
    "SizeMismatch",
    "StorageError",
    "SurroundingsError",
    "TLSUntrusted",
    "Unsupported",
    "UnsupportedVersion",
    "is_transient",
]

Category = Literal["fault", "request", "surroundings", "content", "interrupted"]


class DiffahError(Exception):
    """Root of the tree.

    Args:
        message: one sentence, complete without the class name.
        next_action: what the user can do about it, one sentence.
        transient: overrides the class's answer to "can trying again help?".
        details: the data the message was made of, as JSON values.
    """

    code: ClassVar[str] = "error"
    category: ClassVar[Category] = "fault"
    exit_code: ClassVar[int] = 1
    transient: bool = False
    default_action: ClassVar[str] = "Report this with the full message."

    def __init__(self, message: str, *, next_action: str | None = None, transient: bool | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.next_action = next_action or self.default_action
        if transient is not None:
            self.transient = transient
        self.details = details

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.next_action, self.transient, self.details)

    def as_json(self) -> dict[str, Any]:
        """The ``error`` object of ``--json`` output."""
        return {
            "code": self.code,
            "category": self.category,
            "message": self.message,
            "next_action": self.next_action,
            "transient": self.transient,
            "details": self.details,
        }


def _rebuild(cls: type[DiffahError], message: str, next_action: str, transient: bool, details: dict[str, Any]) -> DiffahError:
    return cls(message, next_action=next_action, transient=transient, **details)


class RequestError(DiffahError):
    """What was asked for cannot be done; asking differently can."""

    code = "request"
    category = "request"
    exit_code = 2
    default_action = "Correct the request and run it again."


class InvalidReference(RequestError):
    """An image reference, digest or platform that does not parse."""

    code = "invalid-reference"


class InvalidOptions(RequestError):
    """Options that contradict each other or are out of range."""

    code = "invalid-options"


class PlatformError(RequestError):
    """No platform was chosen where one must be, or the chosen one is absent."""

    code = "platform"


class NotFound(RequestError):
    """An image, blob, file or repository that is not there."""

    code = "not-found"
    default_action = "Check the name; for a private repository, check the credentials too."


class AccessDenied(RequestError):
    """Credentials are missing, refused or insufficient (401, 403)."""

    code = "access-denied"
    default_action = "Log in (an authfile, a credentials block or --creds-env) with an account that may do this."


class Unsupported(RequestError):
    """Something known, named, and not handled: schema 1, foreign layers."""

    code = "unsupported"


class BaselineIncomplete(RequestError):
    """The baselines given lack blobs that the delta requires."""

    code = "baseline-incomplete"
    default_action = "Give the baseline that the delta was made against, or every image that together holds these blobs."


class OutputExists(RequestError):
    """The output holds something else already."""

    code = "output-exists"
    default_action = "Choose another output, or overwrite it with --force."


class SurroundingsError(DiffahError):
    """The network, a disk or a server failed; the request may be fine."""

    code = "surroundings"
    category = "surroundings"
    exit_code = 3
    default_action = "Try again when the cause is mended; work done so far is kept."


class NetworkError(SurroundingsError):
    """A connection failed, was cut, or timed out."""

    code = "network"
    transient = True


class RegistryUnavailable(SurroundingsError):
    """A registry answered 429 or 5xx until patience ran out."""

    code = "registry-unavailable"
    transient = True


class TLSUntrusted(SurroundingsError):
    """A certificate that no known authority vouches for."""

    code = "tls-untrusted"
    default_action = "Give the registry's authority with --cert-dir, or --tls-verify=false where that is acceptable."


class StorageError(SurroundingsError):
    """A filesystem or object store refused or failed an operation."""

    code = "storage"
    transient = True


class NoSpace(SurroundingsError):
    """A disk or quota is full."""

    code = "no-space"
    default_action = "Free space there, or choose another place with --store or --workdir."


class ServerUnreachable(SurroundingsError):
    """No Prefect server answered."""

    code = "server-unreachable"
    default_action = "Start the server or correct PREFECT_API_URL, or run without one: --direct."


class ContentError(DiffahError):
    """Bytes that are not what a digest, size or format says they are."""

    code = "content"
    category = "content"
    exit_code = 4
    default_action = "Fetch or copy it again; if it stays so, it was damaged where it came from."


class DigestMismatch(ContentError):
    """Content whose digest is not the one it goes by."""

    code = "digest-mismatch"


class SizeMismatch(ContentError):
    """Content longer or shorter than declared."""

    code = "size-mismatch"


class InvalidDocument(ContentError):
    """A manifest, index, config or sidecar that breaks its specification."""

    code = "invalid-document"


class InvalidArchive(ContentError):
    """A tar or layout that is truncated, altered or hostile."""

    code = "invalid-archive"


class UnsupportedVersion(ContentError):
    """A delta made by a newer tool: its version or a feature is unknown."""

    code = "unsupported-version"
    default_action = "Import it with a newer prefect-diffah."


class InternalError(DiffahError):
    """A fault of ours."""

    code = "internal"


class Interrupted(DiffahError):
    """The run was cancelled (Ctrl-C, SIGTERM)."""

    code = "interrupted"
    category = "interrupted"
    exit_code = 130
    default_action = "Run it again: it goes on from what is in the store."


def is_transient(error: BaseException) -> bool:
    """Whether trying the same thing again can help."""
    return isinstance(error, DiffahError) and error.transient
