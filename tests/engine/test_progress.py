"""Progress: what is reported, to whom, and how a cancelled run stops."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator

import pytest

from prefect_diffah.engine.errors import Interrupted, NetworkError
from prefect_diffah.engine.progress import cancellable, listening, transfer


class Recorder:
    """A listener that keeps everything it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def start(self, label: str, total: int) -> Recorder:
        self.told.append(("start", label, total))
        return self

    def advance(self, amount: int) -> None:
        self.told.append(("advance", amount))

    def finish(self, *, complete: bool) -> None:
        self.told.append(("finish", complete))


def test_without_a_listener_chunks_pass_unchanged() -> None:
    assert list(transfer("x", 5, [b"ab", b"", b"cde"])) == [b"ab", b"", b"cde"]


def test_a_listener_hears_of_every_chunk() -> None:
    recorder = Recorder()
    with listening(recorder):
        assert b"".join(transfer("layer", 5, [b"ab", b"cde"])) == b"abcde"
    assert recorder.told == [("start", "layer", 5), ("advance", 2), ("advance", 3), ("finish", True)]
    list(transfer("later", 1, [b"x"]))
    assert len(recorder.told) == 4


def test_a_broken_transfer_is_finished_incomplete() -> None:
    def broken() -> Iterator[bytes]:
        yield b"ab"
        raise NetworkError("reset")

    recorder = Recorder()
    with listening(recorder), pytest.raises(NetworkError):
        list(transfer("layer", 5, broken()))
    assert recorder.told[-1] == ("finish", False)


def test_a_transfer_given_up_by_its_reader_is_finished_incomplete() -> None:
    recorder = Recorder()
    with listening(recorder):
        chunks = transfer("layer", 5, [b"ab", b"cde"])
        next(chunks)
        chunks.close()  # type: ignore[attr-defined]
    assert recorder.told[-1] == ("finish", False)


def test_the_inner_listener_hears_and_the_outer_one_again_afterwards() -> None:
    outer, inner = Recorder(), Recorder()
    with listening(outer):
        with listening(inner):
            list(transfer("a", 1, [b"x"]))
        list(transfer("b", 1, [b"x"]))
    assert (outer.told[0], inner.told[0]) == (("start", "b", 1), ("start", "a", 1))


def test_leaving_by_an_exception_stops_transfers_of_other_threads() -> None:
    passed, failed, raised = threading.Event(), threading.Event(), []

    def long() -> Iterator[bytes]:
        for _ in range(1000):
            yield b"x"
            passed.set()
            failed.wait(10)

    def consume() -> None:
        try:
            for _ in transfer("long", 1, long()):
                pass
        except Interrupted as error:
            raised.append(error)

    context: contextvars.Context | None = None

    def inside() -> None:
        assert context is not None
        context.run(consume)

    thread = threading.Thread(target=inside, daemon=True)

    def outer() -> None:
        nonlocal context
        with cancellable():
            context = contextvars.copy_context()
            thread.start()
            passed.wait(10)
            raise NetworkError("reset")

    with pytest.raises(NetworkError):
        outer()
    failed.set()
    thread.join(10)
    assert not thread.is_alive()
    assert [error.exit_code for error in raised] == [130]


def test_a_block_that_ends_well_stops_nothing() -> None:
    with cancellable():
        context = contextvars.copy_context()
    assert context.run(lambda: list(transfer("x", 1, [b"x"]))) == [b"x"]


def test_blocks_are_independent() -> None:
    with pytest.raises(ZeroDivisionError), cancellable():
        raise ZeroDivisionError
    with cancellable():
        assert list(transfer("x", 1, [b"x"])) == [b"x"]
