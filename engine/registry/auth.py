"""How a registry is told who asks: Basic (RFC 7617) and Bearer tokens from a token service.

Distribution's "Token Authentication Specification" and "OAuth2 Token
Authentication"; challenges as in RFC 9110, section 11.6.1.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import httpx

from prefect_diffah.engine.access import Access
from prefect_diffah.engine.errors import AccessDenied, InvalidOptions, NetworkError, RegistryUnavailable
from prefect_diffah.engine.registry.credentials import Credentials, find_credentials
from prefect_diffah.engine.registry.faults import expect, read_body, redacted

__all__ = ["Authenticator", "Challenge", "parse_challenges", "pull_scope", "push_scope"]

CLIENT_ID = "prefect-diffah"
DEFAULT_LIFETIME = 60.0
"""Seconds a token is good for if its service does not say (distribution, "Token Response Fields")."""
LONGEST_LIFETIME = 86_400
"""Seconds after which a token is asked for anew, whatever its service says."""
_TOKEN_LIMIT = 1024 * 1024
_CHALLENGE_LIMIT = 16 * 1024
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(rf'[\s,]*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))', re.ASCII | re.DOTALL)
_TOKEN68 = re.compile(r"[\s,]*[A-Za-z0-9._~+/-]+=*(?=[\s,]|$)", re.ASCII)
_SCHEME = re.compile(rf"[\s,]*({_TOKEN})(?=[\s,]|$)(?!\s*=)", re.ASCII)

Send = Callable[[str, str, dict[str, str], bytes | None], httpx.Response]
"""Sends one request of method, URL, headers, body to a token service; follows redirects safely."""


def pull_scope(repository: str) -> str:
    return f"repository:{repository}:pull"


def push_scope(repository: str) -> str:
    return f"repository:{repository}:pull,push"


@dataclass(frozen=True)
class Challenge:
    """One way to authenticate that a server offers; ``scheme`` and names are in lower case."""

    scheme: str
    parameters: dict[str, str]


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """Every challenge in ``WWW-Authenticate`` headers; what does not parse is left out."""
    found: list[Challenge] = []
    for text in headers:
        position, text = 0, text[:_CHALLENGE_LIMIT]
        while position < len(text):
            if (parameter := _PARAMETER.match(text, position)) and found:
                value = re.sub(r"\\(.)", r"\1", parameter[2], flags=re.DOTALL) if parameter[2] is not None else parameter[3]
                found[-1].parameters.setdefault(parameter[1].lower(), value)
                position = parameter.end()
            elif scheme := _SCHEME.match(text, position):
                found.append(Challenge(scheme[1].lower(), {}))
                position = scheme.end()
            elif token68 := _TOKEN68.match(text, position):
                position = token68.end()
            else:
                break
    return found


@dataclass
class _Token:
    header: str = field(repr=False)
    good_until: float


class Authenticator:
    """The credentials and tokens for one registry. Safe to use from several threads.

    Args:
        registry: ``host[:port]`` as in references.
        send: how its token service is reached.
        plain: tells whether the registry is one where plain HTTP is accepted.
        clock: seconds, monotonic.

    Raises: InvalidOptions for credentials that cannot be sent.
    """

    def __init__(self, registry: str, access: Access, send: Send, plain: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
        self._registry, self._access, self._send, self._plain, self._clock = registry, access, send, plain, clock
        if access.registry_token is not None and not _is_token(access.registry_token.get_secret_value()):
            raise InvalidOptions(
                f"the token for {registry} is not one line of printable ASCII characters",
                next_action="Give the token alone, without line breaks or anything around it.",
                registry=registry,
            )
        if access.username is not None:
            self._credentials("")
        self._lock = threading.RLock()
        self._challenges: dict[str, Challenge] = {}
        self._basic: dict[str, str] = {}
        self._tokens: dict[tuple[str, ...], _Token] = {}

    def header(self, repository: str, scopes: tuple[str, ...]) -> str | None:
        """The value of ``Authorization`` for a request, as far as known.

        Raises: AccessDenied, NetworkError, RegistryUnavailable from the token service.
        """
        if self._access.registry_token is not None:
            return f"Bearer {self._access.registry_token.get_secret_value()}"
        with self._lock:
            challenge = self._challenges.get(repository)
            if challenge is None:
                return None
            return self._basic.get(repository) if challenge.scheme == "basic" else self._bearer(challenge, repository, scopes)

    def answer(self, response: httpx.Response, repository: str, scopes: tuple[str, ...], used: str | None) -> str | None:
        """The ``Authorization`` to try next after a 401, or None if there is no other.

        Args:
            used: the value that was refused.
        """
        if self._access.registry_token is not None:
            return None
        offered = {challenge.scheme: challenge for challenge in reversed(parse_challenges(response.headers.get_list("www-authenticate")))}
        with self._lock:
            if bearer := offered.get("bearer"):
                self._challenges[repository] = bearer
                for key in [key for key, token in self._tokens.items() if token.header == used]:
                    del self._tokens[key]
                asked = bearer.parameters.get("scope", "").split()
                return self._bearer(bearer, repository, scopes + tuple(scope for scope in asked if not _covered(scope, scopes)), remember_as=scopes)
            if basic := offered.get("basic"):
                credentials = self._credentials(repository)
                if credentials is None:
                    return None
                self._challenges[repository] = basic
                self._basic[repository] = header = _basic(credentials)
                return header if header != used else None
        return None

    def _bearer(self, challenge: Challenge, repository: str, scopes: tuple[str, ...], remember_as: tuple[str, ...] | None = None) -> str:
        realm, service = challenge.parameters.get("realm", ""), challenge.parameters.get("service", "")
        key = (repository, realm, service, *(scopes if remember_as is None else remember_as))
        token = self._tokens.get(key)
        if token is None or self._clock() >= token.good_until:
            token = self._tokens[key] = self._fetch(realm, service, repository, scopes)
        return token.header

    def _fetch(self, realm: str, service: str, repository: str, scopes: tuple[str, ...]) -> _Token:
        try:
            url = httpx.URL(realm)
        except httpx.InvalidURL:
            url = httpx.URL("")
        if url.scheme not in ("https", "http") or not url.host or url.userinfo:
            raise NetworkError(f"{self._registry} names a token service that is not a web address", transient=False, registry=self._registry)
        if url.scheme == "http" and not self._plain():
            raise NetworkError(
                f"{self._registry} names a token service over plain HTTP, {redacted(url)}; no credentials are sent there",
                next_action="Have the registry's token realm corrected to https, or allow plain HTTP with --tls-verify=false.",
                transient=False,
                registry=self._registry,
            )
        credentials = self._credentials(repository)
        asked_at = self._clock()
        response = self._request(url, service, scopes, credentials)
        expect(response, 200, what=f"token for {self._registry}/{repository}")
        header, lifetime = _parse_token(read_body(response, _TOKEN_LIMIT), redacted(url))
        return _Token(header, asked_at + lifetime - min(10.0, lifetime / 4))

    def _credentials(self, repository: str) -> Credentials | None:
        found = find_credentials(self._registry, repository, self._access)
        if found is not None:
            try:
                f"{found.username}{found.password}{found.identity_token}".encode()
            except UnicodeEncodeError:
                # not as the cause: it quotes what it could not encode
                raise InvalidOptions(
                    f"the credentials for {self._registry} hold characters that are not Unicode text",
                    next_action="Correct them, or log in again.",
                    registry=self._registry,
                ) from None
        return found

    def _request(self, url: httpx.URL, service: str, scopes: tuple[str, ...], credentials: Credentials | None) -> httpx.Response:
        if credentials is not None and credentials.identity_token is not None:
            form = {
                "grant_type": "refresh_token",
                "client_id": CLIENT_ID,
                "service": service,
                "scope": " ".join(scopes),
                "refresh_token": credentials.identity_token,
            }
            body = urlencode(form).encode()
            return self._send("POST", str(url), {"Content-Type": "application/x-www-form-urlencoded"}, body)
        headers = {} if credentials is None else {"Authorization": _basic(credentials)}
        query = urlencode(([("service", service)] if service else []) + [("scope", scope) for scope in scopes])
        separator = "&" if url.query else "?"
        return self._send("GET", f"{url.copy_with(fragment=None)}{separator}{query}", headers, None)


def _covered(scope: str, scopes: tuple[str, ...]) -> bool:
    resource, _, actions = scope.rpartition(":")
    held = {action for known in scopes if known.rpartition(":")[0] == resource for action in known.rpartition(":")[2].split(",")}
    return held.issuperset(actions.split(","))


def _basic(credentials: Credentials) -> str:
    return "Basic " + base64.b64encode(f"{credentials.username}:{credentials.password}".encode()).decode()


def _parse_token(body: bytes, place: str) -> tuple[str, float]:
    try:
        data: Any = json.loads(body)
        token = data.get("token") or data.get("access_token")
        lifetime = data.get("expires_in")
    except (ValueError, AttributeError, RecursionError) as error:
        raise RegistryUnavailable(f"the token service {place} did not answer JSON", transient=False, url=place) from error
    if not isinstance(token, str) or not _is_token(token):
        raise AccessDenied(f"the token service {place} granted no token", url=place)
    usable = isinstance(lifetime, (int, float)) and not isinstance(lifetime, bool) and lifetime > 0
    return f"Bearer {token}", float(min(lifetime, LONGEST_LIFETIME)) if usable else DEFAULT_LIFETIME


def _is_token(text: str) -> bool:
    return text != "" and text.isascii() and text.isprintable()
