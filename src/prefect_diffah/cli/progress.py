"""Progress on stderr: bars on a terminal, a line for each finished transfer elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import TYPE_CHECKING, TextIO

from prefect_diffah.engine.delta.report import human
from prefect_diffah.engine.progress import Progress, listening

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress as Bars
    from rich.progress import TaskID

__all__ = ["shown_progress"]


class _Line:
    """One transfer, as one line when it is done."""

    def __init__(self, stream: TextIO, label: str, total: int) -> None:
        self.stream, self.label, self.total = stream, label, total

    def advance(self, amount: int) -> None:
        pass

    def finish(self, *, complete: bool) -> None:
        if complete:
            self.stream.write(f"{self.label}: {human(self.total)}\n")
            self.stream.flush()


class _Lines:
    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def start(self, label: str, total: int) -> _Line:
        return _Line(self.stream, label, total)


class _Bar:
    """One transfer, as one bar."""

    def __init__(self, bars: Bars, task: TaskID) -> None:
        self.bars, self.task = bars, task

    def advance(self, amount: int) -> None:
        self.bars.advance(self.task, amount)

    def finish(self, *, complete: bool) -> None:
        self.bars.stop_task(self.task)


class _Bars:
    def __init__(self, bars: Bars) -> None:
        self.bars = bars
        self.lock = threading.Lock()

    def start(self, label: str, total: int) -> _Bar:
        with self.lock:
            return _Bar(self.bars, self.bars.add_task(label, total=total))


@contextlib.contextmanager
def shown_progress(*, quiet: bool) -> Iterator[None]:
    """Show the progress of what runs in this block."""
    if quiet:
        yield
        return
    if not sys.stderr.isatty():
        listener: Progress = _Lines(sys.stderr)
        with listening(listener):
            yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with RichProgress(*columns, console=Console(stderr=True)) as bars, listening(_Bars(bars)):
        yield
