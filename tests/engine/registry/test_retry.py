from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_diffah.engine.errors import Interrupted, NetworkError, NotFound, RegistryUnavailable
from prefect_diffah.engine.registry.retry import PATIENCE, EitherEvent, retry_after
from prefect_diffah.engine.testing.faults import FakeTime


@given(total=st.floats(0, 300), taken=st.floats(0.001, 5))
def test_never_begins_a_pause_that_ends_after_its_time(total: float, taken: float) -> None:
    time = FakeTime()

    def attempt() -> None:
        time.now += taken
        raise NetworkError("cut")

    with pytest.raises(NetworkError):
        time.patience(total).start().run(attempt)
    assert time.now - taken <= total + 0.01
    assert all(pause <= 15 for pause in time.pauses)


def test_pauses_grow_and_have_jitter(time: FakeTime) -> None:
    budget = time.patience(1000).start()
    for _ in range(8):
        budget.pause(NetworkError("cut"))
    for number, pause in enumerate(time.pauses):
        longest = min(15, 0.5 * 2**number)
        assert longest / 2 <= pause <= longest
    assert len(set(time.pauses)) == len(time.pauses)


@pytest.mark.parametrize("renewed", [False, True])
def test_time_in_which_bytes_move_does_not_count_and_is_not_lent(time: FakeTime, renewed: bool) -> None:
    budget = time.patience().start()

    def body() -> Iterator[bytes]:
        time.now += 500
        yield b"one"
        if renewed:
            budget.renew()
        time.now += 500
        yield b"two"

    for _ in budget.moving(body()):
        time.now += 500
    budget.pause(RegistryUnavailable("busy", retry_after=60.0))
    with pytest.raises(RegistryUnavailable):
        budget.pause(RegistryUnavailable("busy", retry_after=1.0))


@pytest.mark.parametrize("stuck", ["source", "consumer"])
def test_time_in_which_bytes_do_not_move_counts(time: FakeTime, stuck: str) -> None:
    budget = time.patience().start()

    def body() -> Iterator[bytes]:
        yield b"one"
        if stuck == "source":
            time.now += 61
            raise NetworkError("timed out")

    with contextlib.suppress(NetworkError):
        for _ in budget.moving(body()):
            if stuck == "consumer":
                time.now += 61
                break
    with pytest.raises(NetworkError, match="mine"):
        budget.pause(NetworkError("mine"))
    assert time.pauses == []


def test_the_servers_wish_is_granted_within_the_budget(time: FakeTime) -> None:
    budget = time.patience().start()
    budget.pause(RegistryUnavailable("busy", retry_after=40.0))
    assert time.pauses == [40.0]
    with pytest.raises(RegistryUnavailable, match="busy"):
        budget.pause(RegistryUnavailable("busy", retry_after=21.0))
    assert time.pauses == [40.0]


@pytest.mark.parametrize("error", [NotFound("gone"), NetworkError("no", transient=False)])
def test_what_does_not_pass_is_not_retried(time: FakeTime, error: Exception) -> None:
    calls = []

    def attempt() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        time.patience().start().run(attempt)
    assert len(calls) == 1
    assert time.pauses == []


def test_nothing_is_tried_once_it_is_cancelled(time: FakeTime) -> None:
    cancelled = threading.Event()
    budget = replace(time.patience(), cancelled=cancelled).start()
    calls = []

    def attempt() -> None:
        calls.append(1)
        cancelled.set()
        raise NetworkError("cut")

    for _ in range(2):
        with pytest.raises(Interrupted):
            budget.run(attempt)
    assert len(calls) == 1
    assert time.pauses == []


@pytest.mark.parametrize("which", ["own", "other"])
def test_a_wait_ends_with_either_event(which: str) -> None:
    other = threading.Event()
    own = EitherEvent(other)
    assert not own.is_set()
    # real time: a wait that did not end would take half a minute
    patience = replace(PATIENCE, cancelled=own)
    threading.Timer(0.02, (own if which == "own" else other).set).start()
    with pytest.raises(Interrupted):
        patience.start().pause(RegistryUnavailable("busy", retry_after=30.0))
    assert other.is_set() == (which == "other")
    assert own.wait()


def test_a_wait_for_either_event_has_an_end() -> None:
    assert not EitherEvent(threading.Event()).wait(0.01)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        (" 0 ", 0.0),
        ("Thu, 01 Jan 1970 00:02:00 GMT", 20.0),
        ("Thu, 01 Jan 1970 00:00:01 GMT", 0.0),
        ("soon", None),
        ("-3", None),
        ("١", None),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert retry_after(header, now=100.0) == seconds


@given(st.text())
def test_retry_after_takes_anything(header: str) -> None:
    seconds = retry_after(header, now=0.0)
    assert seconds is None or seconds >= 0
