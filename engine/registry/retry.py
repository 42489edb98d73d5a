"""Patience: how often and how long a failed request is tried again."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from threading import Event
from typing import TypeVar

from prefect_diffah.engine.errors import Interrupted, NetworkError, RegistryUnavailable

__all__ = ["PATIENCE", "Budget", "Patience", "retry_after"]

_T = TypeVar("_T")


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
    wait: Callable[[Event, float], object] = Event.wait
    cancelled: Event = field(default_factory=Event)

    def start(self) -> Budget:
        """The budget of one request."""
        return Budget(self)


PATIENCE = Patience()


class Budget:
    """What is left of one request's patience."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self.renew()

    def renew(self) -> None:
        """Start afresh, since the last attempt got on."""
        self._began = self._patience.clock()
        self._pauses = 0

    @contextlib.contextmanager
    def moving(self) -> Iterator[None]:
        """Time in which a body moves does not count: a slow line or a slow consumer is no failure."""
        began = self._patience.clock()
        try:
            yield
        finally:
            # not the time before a renewal in between, which is forgotten already
            self._began += self._patience.clock() - max(began, self._began)

    def run(self, attempt: Callable[[], _T]) -> _T:
        """``attempt()``, repeated while it fails transiently and patience lasts."""
        while True:
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
        patience = self._patience
        delay = min(patience.most, patience.first * 2**self._pauses) * random.uniform(0.5, 1.0)
        delay = max(delay, error.details.get("retry_after") or 0.0)
        if patience.clock() + delay > self._began + patience.total:
            raise error
        self._pauses += 1
        patience.wait(patience.cancelled, delay)
        if patience.cancelled.is_set():
            raise Interrupted("given up, because another transfer failed") from error


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
