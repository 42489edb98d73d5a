"""Patience: how often and how long a failed request is tried again."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from threading import Event
from typing import TypeVar

from prefect_diffah.engine.errors import Interrupted, NetworkError, RegistryUnavailable

__all__ = ["PATIENCE", "Budget", "EitherEvent", "Patience", "retry_after"]

_T = TypeVar("_T")
_POLL = 0.1


@dataclass(frozen=True)
class Patience:
    """Exponential backoff with jitter, bounded in all.

    Attributes:
        total: seconds that a request and its repetitions may take together,
            without the time in which bodies moved.
        first, most: seconds of the first pause and of the longest one.
        clock: seconds, monotonic.
        wait: sleeps for some seconds, or until the event is set.
        cancelled: set when nobody wants the answer any more.
    """

    total: float = 60.0
    first: float = 0.5
    most: float = 15.0
    clock: Callable[[], float] = time.monotonic
    wait: Callable[[Event, float], object] = lambda event, seconds: event.wait(seconds)
    cancelled: Event = field(default_factory=Event)

    def start(self) -> Budget:
        """The budget of one request."""
        return Budget(self)


PATIENCE = Patience()


class EitherEvent(Event):
    """An event that counts as set also when ``other`` is."""

    def __init__(self, other: Event) -> None:
        super().__init__()
        self._other = other

    def is_set(self) -> bool:
        return super().is_set() or self._other.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        end = math.inf if timeout is None else time.monotonic() + timeout
        # nothing waits for two events at once
        while not self.is_set() and (left := end - time.monotonic()) > 0:
            super().wait(min(left, _POLL))
        return self.is_set()


class Budget:
    """What is left of one request's patience."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self.renew()

    def renew(self) -> None:
        """Start afresh, since the last attempt got on."""
        self._began = self._patience.clock()
        self._pauses = 0

    def moving(self, body: Iterable[bytes]) -> Iterator[bytes]:
        """``body`` unchanged; the time it takes does not count while it moves: a slow line or a slow consumer is no failure.

        Waiting for a piece that never comes, or is never taken, does count.
        """
        since = self._patience.clock()
        for piece in body:
            since = self._lend(since)
            yield piece
            since = self._lend(since)

    def _lend(self, since: float) -> float:
        now = self._patience.clock()
        # not the time before a renewal in between, which is forgotten already
        self._began += now - max(since, self._began)
        return now

    def check(self) -> None:
        """Raises: Interrupted if nobody waits for the answer any more."""
        if self._patience.cancelled.is_set():
            raise Interrupted("given up: the run was cancelled, or another transfer failed")

    def run(self, attempt: Callable[[], _T]) -> _T:
        """``attempt()``, repeated while it fails transiently and patience lasts."""
        while True:
            self.check()
            try:
                return attempt()
            except (NetworkError, RegistryUnavailable) as error:
                self.pause(error)

    def pause(self, error: NetworkError | RegistryUnavailable) -> None:
        """Wait before the next attempt.

        Honours ``error.details["retry_after"]`` (seconds, RFC 9110 section
        10.2.3): one that exceeds what is left ends the attempts at once.

        Raises:
            NetworkError, RegistryUnavailable: ``error`` itself, if it is not
                transient or patience is exhausted.
            Interrupted: nobody waits for the answer any more.
        """
        if not error.transient:
            raise error
        self.check()
        patience = self._patience
        delay = min(patience.most, patience.first * 2**self._pauses) * random.uniform(0.5, 1.0)
        delay = max(delay, error.details.get("retry_after") or 0.0)
        if patience.clock() + delay > self._began + patience.total:
            raise error
        self._pauses += 1
        patience.wait(patience.cancelled, delay)
        self.check()


def retry_after(value: str | None, now: float | None = None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for, from a number or an HTTP date; None if it says nothing."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - (time.time() if now is None else now))
    except ValueError:
        return None
