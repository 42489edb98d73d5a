from __future__ import annotations

import base64
import json
import math
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from prefect_diffah.engine.access import Access
from prefect_diffah.engine.errors import AccessDenied, InvalidOptions, NetworkError, NotFound, RegistryUnavailable
from prefect_diffah.engine.registry import connect_for_reading, connect_for_writing
from prefect_diffah.engine.registry.auth import Authenticator, Challenge, parse_challenges
from prefect_diffah.engine.testing.faults import FakeTime, Fault
from prefect_diffah.engine.testing.registry import InProcessRegistry

USER = Access(username="user", password=SecretStr("pass"), tls_verify=False)
WRONG = Access(username="user", password=SecretStr("hush-hush"), tls_verify=False)
NOBODY = Access(anonymous=True, tls_verify=False)

tokens = st.text("abcdefghijklmnopqrstuvwxyz-0123456789", min_size=1)
parameters = st.dictionaries(tokens, st.text(st.characters(min_codepoint=32, max_codepoint=126)), max_size=4)


@given(st.lists(st.tuples(tokens, parameters), min_size=1, max_size=3), st.booleans())
def test_challenges_survive_quoting(challenges: list[tuple[str, dict[str, str]]], joined: bool) -> None:
    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    headers = [f"{scheme} " + ", ".join(f"{key}={quoted(value)}" for key, value in values.items()) for scheme, values in challenges]
    parsed = parse_challenges([", ".join(headers)] if joined else headers)
    assert parsed == [Challenge(scheme, values) for scheme, values in challenges]


@given(st.lists(st.text()))
def test_any_header_parses_to_something(headers: list[str]) -> None:
    parse_challenges(headers)


def test_other_schemes_do_not_hide_what_follows() -> None:
    assert parse_challenges(['Negotiate abc==, Bearer realm="https://a.test/t",service=registry'])[-1] == Challenge(
        "bearer", {"realm": "https://a.test/t", "service": "registry"}
    )


class TokenService:
    """A token service's side of ``Authenticator``."""

    def __init__(self, **answer: Any) -> None:
        self.answer = answer
        self.asked: list[tuple[str, str, dict[str, str], bytes | None]] = []

    def __call__(self, method: str, url: str, headers: dict[str, str], body: bytes | None) -> httpx.Response:
        self.asked.append((method, url, headers, body))
        answer = {"token": f"token{len(self.asked)}"} | self.answer
        return httpx.Response(200, stream=httpx.ByteStream(json.dumps(answer).encode()), request=httpx.Request(method, url))


def refusal(realm: str = "https://auth.test/token", scope: str = "repository:app:pull") -> httpx.Response:
    header = f'Bearer realm="{realm}",service="r.test",scope="{scope}"'
    return httpx.Response(401, headers={"WWW-Authenticate": header}, request=httpx.Request("GET", "https://r.test/v2/"))


PULL = ("repository:app:pull",)


def test_a_token_is_kept_until_shortly_before_its_end(time: FakeTime) -> None:
    service = TokenService(expires_in=100)
    auth = Authenticator("r.test", NOBODY, service, lambda: False, lambda: time.now)
    assert auth.header("app", PULL) is None
    assert auth.answer(refusal(), "app", PULL, None) == "Bearer token1"
    time.now = 89
    assert auth.header("app", PULL) == "Bearer token1"
    time.now = 91
    assert auth.header("app", PULL) == "Bearer token2"


def test_a_token_lives_a_minute_unless_told_otherwise(time: FakeTime) -> None:
    auth = Authenticator("r.test", NOBODY, TokenService(), lambda: False, lambda: time.now)
    auth.answer(refusal(), "app", PULL, None)
    time.now = 49
    assert auth.header("app", PULL) == "Bearer token1"
    time.now = 51
    assert auth.header("app", PULL) == "Bearer token2"


@pytest.mark.parametrize("lifetime", [math.inf, 10**400])
def test_no_token_lives_for_ever(time: FakeTime, lifetime: float) -> None:
    auth = Authenticator("r.test", NOBODY, TokenService(expires_in=lifetime), lambda: False, lambda: time.now)
    auth.answer(refusal(), "app", PULL, None)
    time.now = 86_000
    assert auth.header("app", PULL) == "Bearer token1"
    time.now = 86_401
    assert auth.header("app", PULL) == "Bearer token2"


@pytest.mark.parametrize(
    "access",
    [
        Access(registry_token=SecretStr("SECRETé")),
        Access(registry_token=SecretStr("SECRET\n")),
        Access(username="user", password=SecretStr("SECRET\ud800")),
        Access(username="SECRET\ud800"),
    ],
)
def test_credentials_that_cannot_be_sent_are_refused_and_not_repeated(access: Access) -> None:
    with pytest.raises(InvalidOptions, match=r"r\.test") as caught:
        Authenticator("r.test", access, TokenService(), lambda: False)
    assert "SECRET" not in json.dumps(caught.value.as_json())


def test_a_file_may_hold_such_credentials_too(tmp_path: Any) -> None:
    (tmp_path / "auth.json").write_text(json.dumps({"auths": {"r.test": {"identitytoken": "SECRET\ud800"}}}))
    auth = Authenticator("r.test", Access(authfile=str(tmp_path / "auth.json")), TokenService(), lambda: False)
    with pytest.raises(InvalidOptions, match=r"r\.test") as caught:
        auth.answer(refusal(), "app", PULL, None)
    assert "SECRET" not in json.dumps(caught.value.as_json())


def test_a_refused_token_is_replaced_and_tokens_are_apart_by_scope(time: FakeTime) -> None:
    auth = Authenticator("r.test", NOBODY, TokenService(expires_in=1000), lambda: False, lambda: time.now)
    assert auth.answer(refusal(), "app", PULL, None) == "Bearer token1"
    assert auth.answer(refusal(), "app", PULL, "Bearer token1") == "Bearer token2"
    assert auth.answer(refusal(), "app", PULL, "Bearer token1") == "Bearer token2"
    assert auth.header("app", ("repository:app:pull,push",)) == "Bearer token3"
    assert auth.header("app", PULL) == "Bearer token2"
    assert auth.header("other", PULL) is None


def test_what_the_registry_asks_for_is_asked_for_too() -> None:
    service = TokenService()
    auth = Authenticator("r.test", USER, service, lambda: False)
    auth.answer(refusal(scope="repository:app:pull registry:catalog:*"), "app", ("repository:app:pull,push",), None)
    [(method, url, headers, body)] = service.asked
    assert (method, body) == ("GET", None)
    assert parse_qs(urlsplit(url).query) == {"service": ["r.test"], "scope": ["repository:app:pull,push", "registry:catalog:*"]}
    assert headers == {"Authorization": "Basic " + base64.b64encode(b"user:pass").decode()}


def test_a_realm_may_have_a_query() -> None:
    service = TokenService()
    Authenticator("r.test", NOBODY, service, lambda: False).answer(refusal("https://auth.test/t?a=b#c"), "app", PULL, None)
    assert service.asked[0][1] == "https://auth.test/t?a=b&service=r.test&scope=repository%3Aapp%3Apull"


def test_an_identity_token_is_posted(tmp_path: Any) -> None:
    (tmp_path / "auth.json").write_text(json.dumps({"auths": {"r.test": {"identitytoken": "refresh me"}}}))
    service = TokenService(token=None, access_token="granted")
    auth = Authenticator("r.test", Access(authfile=str(tmp_path / "auth.json")), service, lambda: False)
    assert auth.answer(refusal(), "app", PULL, None) == "Bearer granted"
    [(method, url, headers, body)] = service.asked
    assert (method, url) == ("POST", "https://auth.test/token")
    assert headers == {"Content-Type": "application/x-www-form-urlencoded"}
    assert parse_qs((body or b"").decode()) == {
        "grant_type": ["refresh_token"],
        "client_id": ["prefect-diffah"],
        "service": ["r.test"],
        "scope": ["repository:app:pull"],
        "refresh_token": ["refresh me"],
    }


@pytest.mark.parametrize(
    "realm", ["http://auth.test/token", "file:///etc/passwd", "ftp://auth.test/", "https://me:you@auth.test/", "", "auth.test", "https://a:port"]
)
def test_credentials_go_to_proper_realms_only(realm: str) -> None:
    service = TokenService()
    with pytest.raises(NetworkError) as caught:
        Authenticator("r.test", USER, service, lambda: False).answer(refusal(realm), "app", PULL, None)
    assert not caught.value.transient
    assert service.asked == []


def test_a_plain_realm_is_taken_from_a_plain_registry() -> None:
    assert Authenticator("r.test", USER, TokenService(), lambda: True).answer(refusal("http://auth.test/token"), "app", PULL, None) == "Bearer token1"


@pytest.mark.parametrize("answer", [{"token": None}, {"token": ""}, {"token": 5}, {"token": "two\r\nlines"}, {"token": "ü"}])
def test_a_token_must_be_one(answer: dict[str, Any]) -> None:
    with pytest.raises(AccessDenied, match="no token"):
        Authenticator("r.test", NOBODY, TokenService(**answer), lambda: False).answer(refusal(), "app", PULL, None)


# -- against a registry ----------------------------------------------------------


def pull(registry: InProcessRegistry, access: Access, time: FakeTime) -> bool:
    """Whether a blob is told to be absent: the question was allowed."""
    try:
        connect_for_reading(f"{registry.host}/app", access, patience=time.patience())[0].manifest("v1")
    except NotFound:
        return True
    return False


@pytest.mark.parametrize("kind", ["basic", "token"])
def test_the_right_password_opens(kind: str, time: FakeTime) -> None:
    with InProcessRegistry(auth=kind) as registry:
        assert pull(registry, USER, time)
        asked = len(registry.requests)
        assert pull(registry, USER, time)
        # what was learnt is used again
        assert len(registry.requests) == asked + 1


@pytest.mark.parametrize("kind", ["basic", "token"])
@pytest.mark.parametrize("access", [WRONG, NOBODY])
def test_the_wrong_one_does_not_and_is_tried_once(kind: str, access: Access, time: FakeTime) -> None:
    with InProcessRegistry(auth=kind) as registry:
        with pytest.raises(AccessDenied) as caught:
            pull(registry, access, time)
        assert "hush" not in json.dumps(caught.value.as_json())
        assert time.pauses == []
        assert len([path for _, path, _ in registry.requests if "manifests" in path]) <= 2
        if access is NOBODY:
            assert all("basic" not in headers.get("authorization", "").lower() for headers in registry.request_headers)


def test_anonymous_tokens_pull_from_public_repositories(time: FakeTime) -> None:
    with InProcessRegistry(auth="token", anonymous="pull") as registry:
        assert pull(registry, NOBODY, time)
        with pytest.raises(AccessDenied):
            connect_for_writing(f"{registry.host}/app", NOBODY, patience=time.patience()).put_manifest("v1", b"{}", "application/json")


def test_a_right_that_is_not_granted_is_asked_for_once(time: FakeTime) -> None:
    with InProcessRegistry(auth="token", grants="pull") as registry:
        repository = connect_for_writing(f"{registry.host}/app", USER, patience=time.patience())
        assert repository.manifest_digest("v1") is None
        registry.forget_requests()
        with pytest.raises(AccessDenied, match="401 Unauthorized: UNAUTHORIZED: authentication required"):
            repository.put_manifest("v1", b"{}", "application/json")
        assert [(method, status) for method, _, status in registry.requests] == [("PUT", 401), ("GET", 200), ("PUT", 401)]


def test_an_expired_token_is_replaced_once_and_quietly(time: FakeTime) -> None:
    with InProcessRegistry(auth="token", token_uses=1) as registry:
        for _ in range(3):
            assert pull(registry, USER, time)
        assert [status for _, path, status in registry.requests if "manifests" in path] == [401, 404, 401, 404, 401, 404]


def test_a_registry_token_is_sent_as_it_is(time: FakeTime) -> None:
    with InProcessRegistry(auth="token") as registry:
        registry.tokens["mine"] = ({"app:pull"}, None)
        assert pull(registry, Access(registry_token=SecretStr("mine"), tls_verify=False), time)
        with pytest.raises(AccessDenied):
            pull(registry, Access(registry_token=SecretStr("theirs"), tls_verify=False), time)
        assert not any(path.startswith("/token") for _, path, _ in registry.requests)


def test_identity_tokens_work(time: FakeTime, tmp_path: Any) -> None:
    with InProcessRegistry(auth="token", identity_token="refresh") as registry:
        (tmp_path / "auth.json").write_text(json.dumps({"auths": {registry.host: {"identitytoken": "refresh"}}}))
        assert pull(registry, Access(authfile=str(tmp_path / "auth.json"), tls_verify=False), time)


def test_a_new_login_counts_for_connections_that_are_open(time: FakeTime, tmp_path: Any) -> None:
    with InProcessRegistry(auth="basic") as registry:
        authfile = tmp_path / "auth.json"
        access = Access(authfile=str(authfile), tls_verify=False)
        for password, works in (("old", False), ("pass", True)):
            authfile.write_text(json.dumps({"auths": {registry.host: {"auth": base64.b64encode(f"user:{password}".encode()).decode()}}}))
            if works:
                assert pull(registry, access, time)
            else:
                with pytest.raises(AccessDenied):
                    pull(registry, access, time)


def test_a_token_service_is_waited_for(time: FakeTime) -> None:
    with InProcessRegistry(auth="token", faults=(Fault(path="^/token", status=503, times=2),)) as registry:
        assert pull(registry, USER, time)
        assert len(time.pauses) == 2
        registry.faults.append(Fault(path="^/token", status=502, times=None))
        with pytest.raises(RegistryUnavailable, match="token for"):
            connect_for_reading(f"{registry.host}/other", USER, patience=time.patience())[0].manifest("v1")


def test_credentials_do_not_follow_a_redirected_realm(time: FakeTime) -> None:
    with InProcessRegistry() as elsewhere, InProcessRegistry(auth="token", faults=(Fault(path="^/token", redirect=elsewhere.url),)) as registry:
        with pytest.raises(AccessDenied):
            pull(registry, USER, time)
        assert len(elsewhere.requests) == 1
        assert "authorization" not in elsewhere.request_headers[0]


def test_one_accesss_tokens_are_not_anothers(time: FakeTime) -> None:
    with InProcessRegistry(auth="token") as registry:
        assert pull(registry, USER, time)
        for access in (NOBODY, WRONG):
            with pytest.raises(AccessDenied):
                pull(registry, access, time)
