from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from prefect_diffah.engine.access import Access
from prefect_diffah.engine.errors import AccessDenied, DigestMismatch, NetworkError, NotFound, RegistryUnavailable, RequestError, SizeMismatch
from prefect_diffah.engine.oci import MAX_MANIFEST, Digest, verified
from prefect_diffah.engine.registry import Repository, close_all, connect_for_reading
from prefect_diffah.engine.registry.faults import redacted, translated
from prefect_diffah.engine.testing.faults import FakeTime, Fault
from prefect_diffah.engine.testing.images import random_image
from prefect_diffah.engine.testing.registry import InProcessRegistry

PLAIN = Access(tls_verify=False)
USER = Access(username="user", password=SecretStr("pass"), tls_verify=False)
BLOB = random.Random(1).randbytes(300_000)
DIGEST = Digest.of(BLOB)


@pytest.fixture
def registry() -> Iterator[InProcessRegistry]:
    with InProcessRegistry() as registry:
        registry.put_blob("app", BLOB)
        yield registry


def open_repository(registry: InProcessRegistry, time: FakeTime, access: Access = PLAIN) -> Repository:
    return connect_for_reading(f"{registry.host}/app", access, patience=time.patience())[0]


def read(repository: Repository, digest: Digest = DIGEST, size: int = len(BLOB)) -> bytes:
    with repository.blob(digest, size) as chunks:
        return b"".join(verified(chunks, digest, size))


def ranges(registry: InProcessRegistry) -> list[str | None]:
    return [headers.get("range") for headers, (_, path, _) in zip(registry.request_headers, registry.requests, strict=True) if "/blobs/sha" in path]


# -- blobs ------------------------------------------------------------------------


def test_blobs_come_whole_and_unencoded(registry: InProcessRegistry, time: FakeTime) -> None:
    assert read(open_repository(registry, time)) == BLOB
    assert registry.request_headers[-1]["accept-encoding"] == "identity"


def test_presence_is_told_without_reading(registry: InProcessRegistry, time: FakeTime) -> None:
    repository = open_repository(registry, time)
    assert repository.has_blob(DIGEST)
    assert not repository.has_blob(Digest.of(b"other"))
    assert {method for method, path, _ in registry.requests if "/blobs/" in path} == {"HEAD"}


def test_an_absent_blob_is_told_on_entering(registry: InProcessRegistry, time: FakeTime) -> None:
    with pytest.raises(NotFound, match="BLOB_UNKNOWN"), open_repository(registry, time).blob(Digest.of(b"other"), 5):
        pytest.fail("entered")
    assert time.pauses == []


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, len(BLOB) - 1), min_size=1, max_size=4))
def test_a_read_cut_anywhere_goes_on_where_it_broke(registry: InProcessRegistry, cuts: list[int]) -> None:
    registry.faults[:] = [Fault(path="/blobs/", cut=cut) for cut in cuts]
    registry.forget_requests()
    assert read(open_repository(registry, FakeTime())) == BLOB
    seen = 0
    for asked in ranges(registry):
        assert asked in (None, f"bytes={seen}-")
        # each answer brought what its cut let through
        seen += cuts.pop(0) if cuts and cuts[0] < len(BLOB) - seen else 0


@pytest.mark.parametrize("fault", [{"ignore_range": True}, {"wrong_range": True}, {"status": 503}, {"hang_up": True}])
def test_a_resumed_read_bears_registries_that_resume_badly(registry: InProcessRegistry, time: FakeTime, fault: dict[str, Any]) -> None:
    registry.faults += [Fault(path="/blobs/", cut=100_000), Fault(path="/blobs/", **fault)]
    assert read(open_repository(registry, time)) == BLOB
    assert len(time.pauses) >= 1


def test_an_end_that_says_nothing_is_not_believed(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.faults.append(Fault(path="/blobs/", unframed=True, truncate=70_000))
    assert read(open_repository(registry, time)) == BLOB
    assert ranges(registry)[-1] == "bytes=70000-"


def test_an_unframed_body_is_read_to_its_end(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.faults.append(Fault(path="/blobs/", unframed=True))
    assert read(open_repository(registry, time)) == BLOB
    assert time.pauses == []


def test_a_blob_that_is_shorter_than_declared_is_an_error(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.faults.append(Fault(path="/blobs/", truncate=1000))
    with pytest.raises(SizeMismatch, match="ends after 1000"):
        read(open_repository(registry, time))


def test_a_blob_that_is_longer_than_declared_is_an_error(registry: InProcessRegistry, time: FakeTime) -> None:
    with pytest.raises(SizeMismatch, match="longer"):
        read(open_repository(registry, time), size=len(BLOB) - 1)


def test_a_turned_bit_is_an_error(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.faults.append(Fault(path="/blobs/", flip=len(BLOB) - 1))
    with pytest.raises(DigestMismatch):
        read(open_repository(registry, time))


def test_a_read_that_never_gets_on_ends_with_the_patience(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.faults.append(Fault(path="/blobs/", cut=0, times=None))
    with pytest.raises(NetworkError) as caught:
        read(open_repository(registry, time))
    assert caught.value.transient
    assert 30 < sum(time.pauses) <= 60


def test_a_read_that_gets_on_outlives_the_patience(registry: InProcessRegistry, time: FakeTime) -> None:
    big = random.Random(2).randbytes(30 * 1024 * 1024)
    digest = registry.put_blob("app", big)
    registry.faults.append(Fault(path="/blobs/", cut=1_200_000, times=None))

    def slowly(chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            time.now += len(chunk) / 200_000
            yield chunk

    with open_repository(registry, time).blob(digest, len(big)) as chunks:
        assert b"".join(verified(slowly(chunks), digest, len(big))) == big
    assert time.now > 120


def test_a_slow_consumer_does_not_cost_patience(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.faults.append(Fault(path="/blobs/", cut=100_000))
    with open_repository(registry, time).blob(DIGEST, len(BLOB)) as chunks:
        first = next(chunks)
        time.now += 1000
        assert first + b"".join(chunks) == BLOB


@pytest.mark.parametrize("start", [1, 299_999, 300_000])
def test_a_read_may_begin_later(registry: InProcessRegistry, time: FakeTime, start: int) -> None:
    with open_repository(registry, time).blob(DIGEST, len(BLOB), start) as chunks:
        assert b"".join(chunks) == BLOB[start:]


def test_a_blob_left_half_read_does_not_block_others(registry: InProcessRegistry, time: FakeTime) -> None:
    repository = open_repository(registry, time)
    with repository.blob(DIGEST, len(BLOB)) as chunks:
        next(chunks)
    assert read(repository) == BLOB


def test_connections_are_used_again(registry: InProcessRegistry, time: FakeTime) -> None:
    read(open_repository(registry, time))
    opened = registry.connections
    for _ in range(5):
        repository = open_repository(registry, time)
        read(repository)
        repository.has_blob(Digest.of(b"other"))
    assert registry.connections == opened
    close_all()
    read(open_repository(registry, time))
    assert registry.connections > opened


# -- redirects --------------------------------------------------------------------


def test_redirects_are_followed_without_credentials_also_when_resuming(time: FakeTime) -> None:
    with (
        InProcessRegistry() as storage,
        InProcessRegistry(auth="basic", faults=(Fault(method="GET", path="/blobs/", redirect=storage.url, times=None),)) as registry,
    ):
        storage.put_blob("app", BLOB)
        storage.faults.append(Fault(path="/blobs/", cut=50_000))
        repository = open_repository(registry, time, USER)
        with pytest.raises(NotFound):
            repository.manifest("v1")
        assert read(repository) == BLOB
        assert [headers.get("range") for headers in storage.request_headers] == [None, "bytes=50000-"]
        assert not any("authorization" in headers for headers in storage.request_headers)
        assert all("authorization" in headers for headers in registry.request_headers[-2:])


def test_credentials_stay_within_the_registry(time: FakeTime) -> None:
    with InProcessRegistry(auth="basic") as registry:
        digest = registry.put_blob("moved", BLOB)
        registry.faults.append(Fault(path="/v2/app/blobs", status=307, headers={"Location": f"/v2/moved/blobs/{digest}"}))
        repository = open_repository(registry, time, USER)
        with pytest.raises(NotFound):
            repository.manifest("v1")
        assert read(repository) == BLOB
        assert "authorization" in registry.request_headers[-1]


def test_a_refusal_elsewhere_is_not_answered_with_credentials(time: FakeTime) -> None:
    with InProcessRegistry(auth="basic") as storage, InProcessRegistry(faults=(Fault(path="/blobs/", redirect=storage.url, times=None),)) as registry:
        with pytest.raises(AccessDenied):
            read(open_repository(registry, time, USER))
        assert len(storage.requests) == 1


def test_https_does_not_lead_to_http(time: FakeTime, certificates: Any) -> None:
    with InProcessRegistry() as storage, InProcessRegistry(tls=certificates.server(), faults=(Fault(path="/blobs/", redirect=storage.url),)) as registry:
        with pytest.raises(NetworkError, match="not followed") as caught:
            read(open_repository(registry, time))
        assert not caught.value.transient
        assert storage.requests == []


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "https://", "http://[", "http://a:b/", "http://a..b/", f"http://{'a' * 64}.test/"]
)
def test_only_web_addresses_are_followed(registry: InProcessRegistry, time: FakeTime, location: str) -> None:
    registry.faults.append(Fault(path="/blobs/", status=307, headers={"Location": location}, times=None))
    with pytest.raises(NetworkError) as caught:
        read(open_repository(registry, time))
    assert not caught.value.transient
    assert time.pauses == []


def test_circles_end(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.faults.append(Fault(path="/blobs/", redirect=registry.url, times=None))
    with pytest.raises(NetworkError, match="redirected more than"):
        read(open_repository(registry, time))
    assert len(registry.requests) < 15


# -- failures and their words -----------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_waited_for(registry: InProcessRegistry, time: FakeTime, status: int) -> None:
    registry.faults.append(Fault(path="/blobs/", status=status, times=3))
    assert read(open_repository(registry, time)) == BLOB
    assert len(time.pauses) == 3


def test_retry_after_is_honoured(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.faults.append(Fault(path="/blobs/", status=429, headers={"Retry-After": "17"}))
    assert read(open_repository(registry, time)) == BLOB
    assert time.pauses == [17.0]


@pytest.mark.parametrize("value", ["61", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_retry_after_beyond_patience_ends_at_once(registry: InProcessRegistry, time: FakeTime, value: str) -> None:
    registry.faults.append(Fault(path="/blobs/", status=429, headers={"Retry-After": value}, times=None))
    with pytest.raises(RegistryUnavailable) as caught:
        read(open_repository(registry, time))
    assert caught.value.transient
    assert time.pauses == []


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, AccessDenied),
        (403, AccessDenied),
        (404, NotFound),
        (400, RequestError),
        (405, RequestError),
        (451, RequestError),
        (501, RegistryUnavailable),
        (302, RegistryUnavailable),
    ],
)
def test_what_does_not_pass_is_asked_once(registry: InProcessRegistry, time: FakeTime, status: int, error: type[Exception]) -> None:
    registry.faults.append(Fault(path="/blobs/", status=status, times=None))
    with pytest.raises(error) as caught:
        read(open_repository(registry, time))
    assert not getattr(caught.value, "transient", True)
    assert time.pauses == []
    assert len([path for _, path, _ in registry.requests if "/blobs/" in path]) == 1


def test_a_5xx_that_blames_the_request_is_a_refusal(registry: InProcessRegistry, time: FakeTime) -> None:
    body = {"errors": [{"code": "UNKNOWN", "message": "unknown error"}, {"code": "MANIFEST_BLOB_UNKNOWN", "message": "blob unknown to registry"}]}
    registry.faults.append(Fault(method="PUT", status=500, body=json.dumps(body).encode(), times=None))
    with pytest.raises(RequestError, match="MANIFEST_BLOB_UNKNOWN"):
        open_repository(registry, time).put_manifest("v1", b"{}", "application/json")
    assert time.pauses == []


def test_a_server_that_is_not_there(time: FakeTime) -> None:
    for access in (PLAIN, Access()):
        with pytest.raises(NetworkError) as caught:
            connect_for_reading("127.0.0.1:1/app", access, patience=time.patience())[0].manifest("v1")
        assert caught.value.transient


def test_a_host_that_does_not_exist_is_not_waited_for(time: FakeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for access in (PLAIN, Access()):
        with pytest.raises(NetworkError, match="no such host") as caught:
            connect_for_reading("nowhere.invalid/app", access, patience=time.patience())[0].manifest("v1")
        assert not caught.value.transient
    assert time.pauses == []


def test_a_host_that_is_no_name(time: FakeTime) -> None:
    for access in (PLAIN, Access()):
        with pytest.raises(NetworkError, match="not a name"):
            connect_for_reading(f"{'a' * 64}.test/app", access, patience=time.patience())[0].manifest("v1")
    assert time.pauses == []


def test_a_request_that_cannot_be_sent_is_not_quoted() -> None:
    with pytest.raises(NetworkError) as caught, translated("https://r.test/"):
        raise httpx.LocalProtocolError("Illegal header value b'Bearer SECRET'")
    assert "SECRET" not in json.dumps(caught.value.as_json())


def test_the_registrys_words_are_repeated_capped_and_printable(registry: InProcessRegistry, time: FakeTime) -> None:
    errors = [{"code": "DENIED", "message": "no \x1b[31m" + "x" * 5000}]
    registry.faults.append(Fault(path="/blobs/", status=403, body=json.dumps({"errors": errors}).encode()))
    with pytest.raises(AccessDenied, match="DENIED: no") as caught:
        read(open_repository(registry, time))
    assert len(caught.value.message) < 1500
    assert "\x1b" not in caught.value.message


@pytest.mark.parametrize("body", [b"<html>nginx</html>", b"\xff\xfe", b"null", b'{"errors": 5}', b'{"errors": [5, {}]}', b"[" * 100_000, b"x" * 1_000_000])
def test_any_words_will_do(registry: InProcessRegistry, time: FakeTime, body: bytes) -> None:
    registry.faults.append(Fault(path="/blobs/", status=403, body=body))
    with pytest.raises(AccessDenied, match="403 Forbidden") as caught:
        read(open_repository(registry, time))
    assert len(caught.value.message) < 1500


def test_a_presigned_url_is_not_repeated(time: FakeTime, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with InProcessRegistry() as storage, InProcessRegistry() as registry:
        location = storage.url.replace("//", "//me:SECRET@") + "/bucket/key?X-Amz-Signature=SECRET#SECRET"
        registry.faults.append(Fault(path="/blobs/", status=307, headers={"Location": location}))
        with pytest.raises(NotFound) as caught:
            read(open_repository(registry, time))
        assert "SECRET" not in json.dumps(caught.value.as_json())
        assert "/bucket/key" in caught.value.message
        assert len(storage.requests) == 1
        assert "SECRET" not in caplog.text


def test_redacted_takes_anything() -> None:
    assert redacted("https://me:you@r.test:5000/v2/?token=x#y") == "https://r.test:5000/v2/"
    assert "http" not in redacted("http://a:b:c/")


# -- manifests --------------------------------------------------------------------


@pytest.mark.parametrize("media", ["oci", "docker"])
def test_manifests_by_tag_and_digest(registry: InProcessRegistry, time: FakeTime, media: Any) -> None:
    image = random_image(1, media=media)
    registry.put_image("app", "v1", image)
    repository = open_repository(registry, time)
    for reference in ("v1", image.root.digest):
        assert repository.manifest(reference) == (image.manifest, image.root.media_type)
        assert repository.manifest_digest(reference) == image.root.digest
    assert repository.manifest_digest("v2") is None


@pytest.mark.parametrize("by_digest", [False, True])
def test_a_lying_digest_header(registry: InProcessRegistry, time: FakeTime, by_digest: bool) -> None:
    image = random_image(1)
    registry.put_image("app", "v1", image)
    registry.faults.append(Fault(path="/manifests/", headers={"Docker-Content-Digest": Digest.of(b"lie")}))
    with pytest.raises(DigestMismatch, match="is said to be"):
        open_repository(registry, time).manifest(image.root.digest if by_digest else "v1")


@pytest.mark.parametrize("header", ["", "nonsense", "md5:abc"])
def test_a_digest_header_that_is_none_is_passed_over(registry: InProcessRegistry, time: FakeTime, header: str) -> None:
    image = random_image(1)
    registry.put_image("app", "v1", image)
    registry.faults.append(Fault(path="/manifests/", headers={"Docker-Content-Digest": header}, times=None))
    repository = open_repository(registry, time)
    assert repository.manifest("v1")[0] == image.manifest
    assert repository.manifest_digest("v1") == image.root.digest


def test_a_manifest_that_is_not_the_one_asked_for(registry: InProcessRegistry, time: FakeTime) -> None:
    image = random_image(1)
    registry.put_image("app", "v1", image)
    registry.faults.append(Fault(path="/manifests/", flip=5))
    with pytest.raises(DigestMismatch):
        open_repository(registry, time).manifest(image.root.digest)


def test_a_manifest_is_read_again_when_it_breaks_off(registry: InProcessRegistry, time: FakeTime) -> None:
    image = random_image(1)
    registry.put_image("app", "v1", image)
    registry.faults.append(Fault(path="/manifests/", cut=100))
    assert open_repository(registry, time).manifest("v1")[0] == image.manifest


def test_a_manifest_has_a_limit(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.faults.append(Fault(path="/manifests/", status=200, body=b" " * (MAX_MANIFEST + 1)))
    with pytest.raises(SizeMismatch, match="over the limit"):
        open_repository(registry, time).manifest("v1")
    registry.faults.append(Fault(path="/manifests/", status=200, body=b" " * MAX_MANIFEST))
    assert len(open_repository(registry, time).manifest("v1")[0]) == MAX_MANIFEST


def test_a_manifest_stored_as_something_else(registry: InProcessRegistry, time: FakeTime) -> None:
    image = random_image(1)
    registry.put_image("app", None, image)
    registry.faults.append(Fault(method="PUT", path="/manifests/", headers={"Docker-Content-Digest": Digest.of(b"lie")}))
    with pytest.raises(DigestMismatch, match="was stored as"):
        open_repository(registry, time).put_manifest("v1", image.manifest, image.root.media_type)


def test_storing_a_manifest_is_repeated(registry: InProcessRegistry, time: FakeTime) -> None:
    image = random_image(1)
    registry.put_image("app", None, image)
    registry.faults += [Fault(method="PUT", status=500), Fault(method="PUT", lose_answer=True)]
    open_repository(registry, time).put_manifest("v1", image.manifest, image.root.media_type)
    assert registry.repository("app").tags == {"v1": image.root.digest}
