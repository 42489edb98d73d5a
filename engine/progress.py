"""Progress of long operations, and the place where cancelling takes hold.

Steps report to whatever listens in their context; by default nobody does.
Every chunk of every stream passes ``transfer``, so that is also where a
cancelled run stops.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

from prefect_diffah.engine.errors import Interrupted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Progress", "Transfer", "cancellable", "cancelled", "listening", "transfer"]


class Transfer(Protocol):
    """One named amount of work."""

    def advance(self, amount: int) -> None:
        """``amount`` more bytes are done."""

    def finish(self, *, complete: bool) -> None:
        """It ended, or was cut short."""


class Progress(Protocol):
    """A listener."""

    def start(self, label: str, total: int) -> Transfer:
        """``label`` begins: ``total`` bytes."""


class _Silent:
    """Nobody listens."""

    def start(self, label: str, total: int) -> _Silent:
        return self

    def advance(self, amount: int) -> None:
        pass

    def finish(self, *, complete: bool) -> None:
        pass


_listener: ContextVar[Progress] = ContextVar("prefect_diffah_progress", default=_Silent())  # noqa: B039 - it has no state
_cancelled: ContextVar[threading.Event | None] = ContextVar("prefect_diffah_cancelled", default=None)


@contextmanager
def listening(progress: Progress) -> Iterator[None]:
    """Make ``progress`` the listener of this context and of contexts copied from it."""
    token = _listener.set(progress)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def cancellable() -> Iterator[None]:
    """A block that takes all streams of its context with it when it is left by an exception.

    Threads that were started inside with a copy of the context stop at their
    next chunk, raising ``Interrupted``.
    """
    event = threading.Event()
    token = _cancelled.set(event)
    try:
        yield
    except BaseException:
        event.set()
        raise
    finally:
        _cancelled.reset(token)


def cancelled() -> threading.Event | None:
    """What is set when the run of this context is cancelled; None where it cannot be."""
    return _cancelled.get()


def transfer(label: str, total: int, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """``chunks`` unchanged, reported to the current listener as they pass.

    Raises:
        Interrupted: the run was cancelled.
    """
    item = _listener.get().start(label, total)
    event = _cancelled.get()
    complete = False
    try:
        for chunk in chunks:
            if event is not None and event.is_set():
                raise Interrupted(f"{label}: cancelled")
            item.advance(len(chunk))
            yield chunk
        complete = True
    finally:
        item.finish(complete=complete)
