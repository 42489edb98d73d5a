from __future__ import annotations

import random
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from prefect_diffah.engine.access import Access
from prefect_diffah.engine.errors import (
    AccessDenied,
    DiffahError,
    DigestMismatch,
    Interrupted,
    NetworkError,
    NotFound,
    RegistryUnavailable,
    RequestError,
    SizeMismatch,
)
from prefect_diffah.engine.oci import Digest, verified
from prefect_diffah.engine.registry import Repository, can_push, connect_for_writing, mount_blob, upload_blob
from prefect_diffah.engine.testing.faults import FakeTime, Fault
from prefect_diffah.engine.testing.registry import InProcessRegistry

PLAIN = Access(tls_verify=False)
USER = Access(username="user", password=SecretStr("pass"), tls_verify=False)
BLOB = random.Random(1).randbytes(100_000)
DIGEST = Digest.of(BLOB)


class Source:
    """``BLOB`` in pieces of odd sizes; counts how often it was opened."""

    def __init__(self, blob: bytes = BLOB, digest: Digest = DIGEST) -> None:
        self.blob, self.digest = blob, digest
        self.opened = self.closed = 0

    @contextmanager
    def __call__(self) -> Iterator[Iterator[bytes]]:
        self.opened += 1
        yield verified((self.blob[at : at + 7_001] for at in range(0, len(self.blob), 7_001)), self.digest, len(BLOB))
        self.closed += 1


@pytest.fixture
def registry() -> Iterator[InProcessRegistry]:
    with InProcessRegistry() as registry:
        yield registry


def open_repository(registry: InProcessRegistry, time: FakeTime, access: Access = PLAIN) -> Repository:
    return connect_for_writing(f"{registry.host}/app", access, patience=time.patience())


def upload(registry: InProcessRegistry, time: FakeTime, chunk_size: int | None = None, access: Access = PLAIN, source: Any = None, **options: Any) -> int:
    if chunk_size is not None:
        options["chunk_size"] = chunk_size
    return upload_blob(open_repository(registry, time, access), DIGEST, len(BLOB), source or Source(), **options)


def stored(registry: InProcessRegistry) -> bool:
    return registry.repository("app").blobs == {DIGEST: BLOB}


def methods(registry: InProcessRegistry) -> list[tuple[str, int]]:
    return [(method, status) for method, path, status in registry.requests if "/uploads/" in path]


def sent_ranges(registry: InProcessRegistry) -> list[str]:
    return [headers["content-range"] for headers in registry.request_headers if "content-range" in headers]


@pytest.mark.parametrize("absolute", [False, True])
def test_a_small_blob_takes_one_request(time: FakeTime, absolute: bool) -> None:
    with InProcessRegistry(absolute_locations=absolute) as registry:
        assert upload(registry, time) == len(BLOB)
        assert stored(registry)
        assert methods(registry) == [("POST", 202), ("PUT", 201)]
        assert registry.request_headers[-1]["content-length"] == str(len(BLOB))
        assert registry.uploads == {}


@pytest.mark.parametrize("chunk", [1, 30_000, 50_000, 99_999])
def test_a_large_blob_goes_in_chunks(registry: InProcessRegistry, time: FakeTime, chunk: int) -> None:
    if chunk == 1:
        registry.chunk_minimum = 40_000
    assert upload(registry, time, chunk) == len(BLOB)
    assert stored(registry)
    size = max(chunk, registry.chunk_minimum)
    assert sent_ranges(registry) == [f"{at}-{min(at + size, len(BLOB)) - 1}" for at in range(0, len(BLOB), size)]
    assert methods(registry)[-1] == ("PUT", 201)


def test_an_empty_blob(registry: InProcessRegistry, time: FakeTime) -> None:
    @contextmanager
    def nothing() -> Iterator[Iterator[bytes]]:
        yield iter(())

    assert upload_blob(open_repository(registry, time), Digest.of(b""), 0, nothing) == 0
    assert registry.repository("app").blobs == {Digest.of(b""): b""}


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chunk=st.integers(20_000, 120_000),
    faults=st.lists(
        st.one_of(
            st.builds(lambda n: {"cut_request": n}, st.integers(0, 30_000)),
            st.sampled_from([{"status": 500}, {"status": 429}, {"hang_up": True}, {"lose_answer": True}, {"status": 404}]),
        ),
        max_size=4,
    ),
    methods=st.lists(st.sampled_from(["PATCH", "PUT", "GET", "POST", "HEAD"]), min_size=4, max_size=4),
)
def test_an_upload_survives_what_passes(registry: InProcessRegistry, chunk: int, faults: list[dict[str, Any]], methods: list[str]) -> None:
    time = FakeTime()
    registry.repositories.clear()
    registry.uploads.clear()
    registry.faults[:] = [
        Fault(method=method, path="/blobs/", **fault)
        for method, fault in zip(methods, faults, strict=False)
        if (fault.get("status"), method) not in ((404, "POST"),)
    ]
    assert upload(registry, time, chunk) == len(BLOB)
    assert stored(registry)


def test_a_broken_chunk_goes_on_where_the_registry_is(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.faults.append(Fault(method="PATCH", skip=1, cut_request=15_000))
    source = Source()
    upload(registry, time, 30_000, source=source)
    assert stored(registry)
    assert sent_ranges(registry) == ["0-29999", "30000-59999", "45000-74999", "75000-99999"]
    assert source.opened == 2
    assert [method for method, _ in methods(registry)].count("POST") == 1


@pytest.mark.parametrize("chunk", [None, 30_000])
def test_a_slow_source_does_not_cost_patience(registry: InProcessRegistry, time: FakeTime, chunk: int | None) -> None:
    class Slow(Source):
        @contextmanager
        def __call__(self) -> Iterator[Iterator[bytes]]:
            with super().__call__() as chunks:
                yield self.slowly(chunks)

        def slowly(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
            for piece in chunks:
                time.now += 100
                yield piece

    registry.faults.append(Fault(method="PATCH" if chunk else "PUT", cut_request=15_000))
    upload(registry, time, chunk, source=Slow())
    assert stored(registry)


def test_a_single_request_that_breaks_begins_again(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.faults.append(Fault(method="PUT", cut_request=15_000))
    upload(registry, time)
    assert stored(registry)
    assert [method for method, _ in methods(registry)] == ["POST", "PUT", "DELETE", "POST", "PUT"]
    assert registry.uploads == {}


@pytest.mark.parametrize("chunk", [None, 30_000])
def test_a_lost_answer_does_not_cost_the_upload(registry: InProcessRegistry, time: FakeTime, chunk: int | None) -> None:
    registry.faults.append(Fault(method="PUT", lose_answer=True))
    source = Source()
    upload(registry, time, chunk, source=source)
    assert stored(registry)
    assert source.opened == 1


def test_a_session_whose_address_is_stale_is_cancelled_at_the_one_it_tells(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.faults += [Fault(method="PUT", status=400), Fault(method="DELETE", status=416)]
    with pytest.raises(RequestError):
        upload(registry, time)
    assert methods(registry) == [("POST", 202), ("PUT", 400), ("DELETE", 416), ("GET", 204), ("DELETE", 204)]
    assert registry.uploads == {}


def test_a_blob_that_another_upload_brought_leaves_no_session(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.put_blob("app", BLOB)
    registry.faults.append(Fault(method="PUT", hang_up=True))
    upload(registry, time)
    assert registry.uploads == {}


def test_a_lost_session_begins_again(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.faults += [Fault(method="PATCH", skip=2, status=404), Fault(method="GET", path="/uploads/", status=404)]
    upload(registry, time, 30_000)
    assert stored(registry)
    assert [method for method, _ in methods(registry)].count("POST") == 2


@pytest.mark.parametrize("commit", [{"status": 404}, {"hang_up": True}])
def test_an_upload_that_begins_again_and_again_ends_with_the_patience(registry: InProcessRegistry, time: FakeTime, commit: dict[str, Any]) -> None:
    registry.faults += [Fault(method="PUT", path="/uploads/", times=None, **commit), Fault(method="GET", path="/uploads/", status=404, times=None)]
    source = Source()
    with pytest.raises((RegistryUnavailable, NetworkError)):
        upload(registry, time, 30_000, source=source)
    assert sum(time.pauses) <= 60
    assert source.opened < 20


def test_a_registry_that_never_answers_costs_patience(registry: InProcessRegistry, time: FakeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = open_repository(registry, time)
    send, puts = Repository.send, []

    def stuck(self: Repository, method: str, *arguments: Any, **options: Any) -> httpx.Response:
        if method != "PUT":
            return send(self, method, *arguments, **options)
        puts.append(sum(map(len, options["body"]())))
        time.now += 30
        raise NetworkError("timed out")

    monkeypatch.setattr(Repository, "send", stuck)
    with pytest.raises(NetworkError, match="timed out"):
        upload_blob(repository, DIGEST, len(BLOB), Source())
    assert puts == [len(BLOB)] * 2


def test_the_end_of_an_upload_is_waited_for_longer(registry: InProcessRegistry, time: FakeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    send, waits = httpx.Client.send, {}

    def noted(self: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        waits[request.method] = request.extensions["timeout"]["read"]
        return send(self, request, **options)

    monkeypatch.setattr(httpx.Client, "send", noted)
    upload(registry, time, 30_000)
    assert waits == {"GET": 30, "POST": 30, "PATCH": 30, "PUT": 300}


def test_nothing_more_is_sent_once_it_is_cancelled(registry: InProcessRegistry, time: FakeTime) -> None:
    cancelled = threading.Event()
    repository = connect_for_writing(f"{registry.host}/app", PLAIN, patience=replace(time.patience(), cancelled=cancelled))
    registry.faults.append(Fault(method="PATCH", skip=1, status=500, times=None))

    class Cancelling(Source):
        @contextmanager
        def __call__(self) -> Iterator[Iterator[bytes]]:
            with super().__call__() as chunks:
                yield self.until_half(chunks)

        def until_half(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
            for at, chunk in enumerate(chunks):
                if at == 7:
                    cancelled.set()
                yield chunk

    with pytest.raises(Interrupted):
        upload_blob(repository, DIGEST, len(BLOB), Cancelling(), chunk_size=30_000)
    assert methods(registry) == [("POST", 202), ("PATCH", 202), ("PATCH", 500), ("DELETE", 204)]
    assert registry.uploads == {}


def test_a_registry_that_is_elsewhere_is_followed(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.faults.append(Fault(method="PATCH", skip=1, status=416))
    upload(registry, time, 30_000)
    assert stored(registry)


def test_a_registry_without_chunks_gets_one_request(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.faults.append(Fault(method="PATCH", status=405, times=None))
    upload(registry, time, 30_000)
    assert stored(registry)
    assert time.pauses == []


@pytest.mark.parametrize("chunk", [None, 30_000])
@pytest.mark.parametrize(("status", "error"), [(500, RegistryUnavailable), (403, AccessDenied), (400, RequestError), (413, RequestError)])
def test_a_session_that_fails_for_good_is_cancelled(
    registry: InProcessRegistry, time: FakeTime, chunk: int | None, status: int, error: type[DiffahError]
) -> None:
    registry.faults.append(Fault(method="PATCH" if chunk else "PUT", status=status, times=None))
    with pytest.raises(error):
        upload(registry, time, chunk)
    assert registry.uploads == {}
    assert sum(time.pauses) <= 60


@pytest.mark.parametrize("chunk", [None, 30_000])
@pytest.mark.parametrize("error", [NotFound("gone"), NetworkError("the source broke"), KeyboardInterrupt()])
def test_the_sources_failure_is_its_own(registry: InProcessRegistry, time: FakeTime, chunk: int | None, error: BaseException) -> None:
    opened = []

    @contextmanager
    def source() -> Iterator[Iterator[bytes]]:
        opened.append(1)

        def chunks() -> Iterator[bytes]:
            yield BLOB[:40_000]
            yield BLOB[40_000:50_000]
            raise error

        yield chunks()

    with pytest.raises(type(error)) as caught:
        upload(registry, time, chunk, source=source)
    assert caught.value is error
    assert len(opened) == 1
    assert time.pauses == []
    assert registry.uploads == {}


def test_a_source_that_does_not_open(registry: InProcessRegistry, time: FakeTime) -> None:
    @contextmanager
    def source() -> Iterator[Iterator[bytes]]:
        raise NotFound("gone")
        yield

    with pytest.raises(NotFound, match="gone"):
        upload(registry, time, source=source)
    assert registry.uploads == {}


@pytest.mark.parametrize("chunk", [None, 30_000])
def test_wrong_bytes_are_not_stored(registry: InProcessRegistry, time: FakeTime, chunk: int | None) -> None:
    with pytest.raises(DigestMismatch):
        upload(registry, time, chunk, source=Source(BLOB[:-1] + bytes([BLOB[-1] ^ 1])))
    with pytest.raises(SizeMismatch):
        upload(registry, time, chunk, source=Source(BLOB[:-1]))
    assert registry.repository("app").blobs == {}
    assert registry.uploads == {}


def test_an_unchecked_source_that_ends_early(registry: InProcessRegistry, time: FakeTime) -> None:
    @contextmanager
    def source() -> Iterator[Iterator[bytes]]:
        yield iter([BLOB[:10]])

    with pytest.raises(SizeMismatch, match="ends 99990 bytes early"):
        upload(registry, time, source=source)


@pytest.mark.parametrize("chunk", [None, 30_000])
def test_a_token_that_ends_during_an_upload_is_replaced(time: FakeTime, chunk: int | None) -> None:
    with InProcessRegistry(auth="token", token_uses=1) as registry:
        upload(registry, time, chunk, access=USER)
        assert stored(registry)
        assert registry.uploads == {}
        assert time.pauses == []


def test_a_token_that_never_suffices_ends_the_upload(time: FakeTime) -> None:
    refusal = Fault(method="PUT", status=401, times=None)
    with InProcessRegistry(auth="token") as registry:
        repository = open_repository(registry, time, USER)
        refusal.headers["WWW-Authenticate"] = registry.challenge("app", "push")
        registry.faults.append(refusal)
        with pytest.raises(AccessDenied):
            upload_blob(repository, DIGEST, len(BLOB), Source())
        assert [method for method, _ in methods(registry)].count("PUT") == 2


# -- locations --------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [None, 60_000])
def test_a_location_elsewhere_gets_no_credentials(time: FakeTime, chunk: int | None) -> None:
    with InProcessRegistry() as elsewhere, InProcessRegistry(auth="basic") as registry:
        location = f"{elsewhere.url}/v2/app/blobs/uploads/{elsewhere.begin_upload('app')}?sig=a%2Bb&x"
        registry.faults.append(Fault(method="POST", skip=1, headers={"Location": location}))
        upload(registry, time, chunk, access=USER)
        assert stored(elsewhere)
        assert not any("authorization" in headers for headers in elsewhere.request_headers)
        assert "?sig=a%2Bb&x" in elsewhere.requests[0][1]
        assert re.search(r"[?&]digest=sha256%3A", elsewhere.requests[-1][1])


@pytest.mark.parametrize("location", ["http://127.0.0.1:1/upload", "ftp://127.0.0.1/upload", "file:///tmp/x"])
def test_https_does_not_upload_to_http(time: FakeTime, certificates: Any, location: str) -> None:
    with InProcessRegistry(tls=certificates.server(), faults=(Fault(method="POST", headers={"Location": location}),)) as registry:
        with pytest.raises(NetworkError, match="not followed"):
            upload(registry, time)
        assert time.pauses == []


def test_a_session_needs_a_location(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.faults.append(Fault(method="POST", status=202))
    with pytest.raises(RegistryUnavailable, match="without saying where"):
        upload(registry, time)


# -- mounts -----------------------------------------------------------------------


@pytest.mark.parametrize("auth", [None, "token"])
def test_a_mount_moves_no_bytes(time: FakeTime, auth: str | None) -> None:
    with InProcessRegistry(auth=auth) as registry:
        registry.put_blob("base", BLOB)
        assert upload(registry, time, access=USER, mount_from="base") == 0
        assert stored(registry)
        assert mount_blob(open_repository(registry, time, USER), DIGEST, "base")
        assert not mount_blob(open_repository(registry, time, USER), Digest.of(b"other"), "base")
        assert registry.uploads == {}


def test_a_mount_that_is_not_done_becomes_an_upload(time: FakeTime) -> None:
    with InProcessRegistry(mounts=False) as registry:
        registry.put_blob("base", BLOB)
        assert upload(registry, time, mount_from="base") == len(BLOB)
        assert [method for method, _ in methods(registry)] == ["POST", "PUT"]
        assert not mount_blob(open_repository(registry, time), Digest.of(b"other"), "base")
        assert registry.uploads == {}


@pytest.mark.parametrize("status", [400, 403, 404, 405])
def test_a_mount_that_is_refused_becomes_an_upload(registry: InProcessRegistry, time: FakeTime, status: int) -> None:
    registry.faults.append(Fault(method="POST", path="mount=", status=status))
    assert upload(registry, time, mount_from="base") == len(BLOB)
    assert stored(registry)


def test_a_mount_that_is_refused_begins_nothing(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.faults.append(Fault(method="POST", path="mount=", status=403))
    assert not mount_blob(open_repository(registry, time), DIGEST, "base")
    assert methods(registry) == [("POST", 403)]


# -- the right to push ------------------------------------------------------------


def test_the_right_to_push_is_told_without_a_trace(time: FakeTime) -> None:
    with InProcessRegistry(auth="token", grants="pull") as registry, pytest.raises(AccessDenied):
        can_push(open_repository(registry, time, USER))
    with InProcessRegistry(auth="token") as registry:
        can_push(open_repository(registry, time, USER))
        assert registry.uploads == {}
        assert registry.repository("app").blobs == {}
