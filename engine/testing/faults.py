"""Misbehaviour of an in-process registry, described as data."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field

from prefect_diffah.engine.registry.retry import Patience

__all__ = ["FakeTime", "Fault"]


@dataclass
class Fault:
    """One way in which matching requests go wrong.

    Attributes:
        method: the method it strikes; "" for every one.
        path: a regular expression found in the path with its query.
        skip: matching requests that are spared first.
        times: how often it strikes; None for ever.
        status: answer this at once, with ``headers`` and ``body``.
        headers: headers added to the answer, or replacing its own.
        body: body of a ``status`` answer.
        redirect: answer 307 to this base URL, with path and query appended.
        cut: bytes of the answer's body after which the connection ends; 0 for none at all.
        hang_up: end the connection before any answer.
        truncate: bytes that the answer has, and declares, at most.
        unframed: send the body without a length, its end being the connection's.
        flip: index of the body's byte that has its lowest bit turned.
        ignore_range: answer a Range request with the whole.
        wrong_range: answer a Range request with a range that begins one byte later.
        cut_request: bytes of the request's body after which the connection ends; an upload keeps them.
        lose_answer: do what is asked, then end the connection instead of answering.
    """

    method: str = ""
    path: str = ""
    skip: int = 0
    times: int | None = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    redirect: str | None = None
    cut: int | None = None
    hang_up: bool = False
    truncate: int | None = None
    unframed: bool = False
    flip: int | None = None
    ignore_range: bool = False
    wrong_range: bool = False
    cut_request: int | None = None
    lose_answer: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def strikes(self, method: str, path: str) -> bool:
        """Whether it is this request's turn to go wrong; counts."""
        if (self.method and self.method != method) or not re.search(self.path, path):
            return False
        with self._lock:
            if self.skip > 0:
                self.skip -= 1
                return False
            if self.times is None:
                return True
            self.times -= 1
            return self.times >= 0


class FakeTime:
    """Time that passes only while somebody waits, and then at once.

    Attributes:
        now: seconds since it was made.
        pauses: seconds of every wait so far.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        self._lock = threading.Lock()

    def _wait(self, cancelled: threading.Event, seconds: float) -> None:
        with self._lock:
            self.now += seconds
            self.pauses.append(seconds)

    def patience(self, total: float = 60.0) -> Patience:
        """Patience that lives in this time."""
        return Patience(total=total, clock=lambda: self.now, wait=self._wait)
