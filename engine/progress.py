"""Progress of long operations, and the place where cancelling takes hold.

Steps report to whatever is current in their context; by default nobody
listens. ``advance`` is called for every chunk of every stream, so it is also
where a cancelled run stops: a listener may raise ``Interrupted`` from it.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Progress", "Transfer", "listening", "transfer"]


class Transfer(Protocol):
    """One named amount of work."""

    def advance(self, amount: int) -> None:
        """``amount`` more bytes are done. Raises: Interrupted when the run was cancelled."""


class Progress(Protocol):
    """A listener."""

    def start(self, label: str, total: int | None) -> Transfer:
        """``label`` begins; ``total`` bytes if known."""

    def finish(self, transfer: Transfer) -> None:
        """It ended, well or not."""


class _Silent:
    def start(self, label: str, total: int | None) -> _Silent:
        return self

    def finish(self, transfer: Transfer) -> None:
        pass

    def advance(self, amount: int) -> None:
        pass


_current: ContextVar[Progress] = ContextVar("prefect_diffah_progress", default=_Silent())  # noqa: B039 - stateless


@contextmanager
def listening(progress: Progress) -> Iterator[None]:
    """Make ``progress`` the listener of this context and of contexts copied from it."""
    token = _current.set(progress)
    try:
        yield
    finally:
        _current.reset(token)


def transfer(label: str, total: int | None, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """``chunks`` unchanged, reported to the current listener as they pass."""
    progress = _current.get()
    item = progress.start(label, total)
    try:
        for chunk in chunks:
            item.advance(len(chunk))
            yield chunk
    finally:
        progress.finish(item)
