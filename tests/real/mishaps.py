"""Runs the command line, and stops it where it is told to.

    python mishaps.py LOG WHERE ACTION VERB …

LOG gains a line for each place that the run passes, and for each step that is
really done, rather than taken from its record. WHERE is the number of a place,
or a piece of its name; at the first such place the process kills itself
(ACTION ``kill``), or waits until somebody interrupts it (``wait``).

Places lie before, within and after everything that leaves a trace: each file
that is replaced, each request that changes a registry; within them at every
MiB.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

from prefect_diffah.engine import storage, store
from prefect_diffah.engine.registry import connection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1024 * 1024
PATIENCE = 120.0
"""Seconds to wait for an interruption."""


class Places:
    """The places that this run passes."""

    def __init__(self, log: str, where: str, action: str) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._where, self._action = where, action
        self._lock = threading.Lock()
        self._count = 0
        # a signal ends the wait of whichever thread is here; Python itself would wake the main thread only
        self._signals, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def note(self, line: str) -> None:
        os.write(self._log, f"{line}\n".encode())

    def reach(self, name: str) -> None:
        with self._lock:
            self._count += 1
            self.note(f"place {self._count} {name}")
            here = self._where == str(self._count) or (not self._where.isdigit() and self._where in name)
            if not here:
                return
            self._where = "passed"
            if self._action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
        self.note("waiting")
        select.select([self._signals], [], [], PATIENCE)


class Metered:
    """Counts bytes that pass, and makes each full MiB a place."""

    def __init__(self, places: Places, name: str) -> None:
        self._places, self._name, self._passed = places, name, 0

    def passed(self, size: int) -> None:
        full = self._passed // MIB
        self._passed += size
        for number in range(full + 1, self._passed // MIB + 1):
            self._places.reach(f"{self._name} at MiB {number}")


class MeteredFile:
    """A file that is being written."""

    def __init__(self, file: Any, meter: Metered) -> None:
        self._file, self._meter = file, meter

    def write(self, data: bytes) -> int:
        written: int = self._file.write(data)
        self._meter.passed(len(data))
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def watch_files(places: Places) -> None:
    replacing = storage.FileLocation.replacing

    @contextlib.contextmanager
    def watched(self: storage.FileLocation, size: int | None = None) -> Iterator[Any]:
        name = "/".join(self.url.split("/")[-4:])
        places.reach(f"before {name}")
        with replacing(self, size) as file:
            yield MeteredFile(file, Metered(places, f"inside {name}"))
            places.reach(f"end of {name}")
        places.reach(f"after {name}")

    storage.FileLocation.replacing = watched  # type: ignore[method-assign]


def watch_requests(places: Places) -> None:
    send = connection.Connection.send

    @functools.wraps(send)
    def watched(self: connection.Connection, method: str, url: Any, *, body: Any = None, **rest: Any) -> Any:
        if method not in ("POST", "PATCH", "PUT"):
            return send(self, method, url, body=body, **rest)
        name = f"{method} {url.path.rpartition('/')[2] or 'upload'}"
        places.reach(f"before {name}")
        response = send(self, method, url, body=functools.partial(metered, body, name) if callable(body) else body, **rest)
        places.reach(f"after {name}")
        return response

    def metered(body: Callable[[], Iterator[bytes]], name: str) -> Iterator[bytes]:
        meter = Metered(places, f"inside {name}")
        for chunk in body():
            yield chunk
            meter.passed(len(chunk))

    connection.Connection.send = watched  # type: ignore[method-assign]


def watch_steps(places: Places) -> None:
    """To be called before the modules with steps are imported."""
    recorded = store.recorded

    def watched(version: int, model: Any, inputs: Callable[[Any], dict[str, Any]]) -> Any:
        def decorate(function: Callable[..., Any]) -> Any:
            @functools.wraps(function)
            def noted(item: Any, *args: Any, **kwargs: Any) -> Any:
                places.note(f"done {store.record_key(function.__name__, version, inputs(item))}")
                return function(item, *args, **kwargs)

            return recorded(version, model, inputs)(noted)

        return decorate

    store.recorded = watched


if __name__ == "__main__":
    log, where, action, *words = sys.argv[1:]
    watching = Places(log, where, action)
    watch_files(watching)
    watch_requests(watching)
    watch_steps(watching)
    from prefect_diffah.cli import main

    main(words)
