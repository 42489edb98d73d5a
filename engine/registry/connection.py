"""One registry host: its connection pool, its tokens, and the rules for talking to it."""

from __future__ import annotations

import logging
import os
import ssl
import threading
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from pathlib import Path

import httpx

from prefect_diffah.engine.access import Access
from prefect_diffah.engine.errors import DiffahError, InvalidOptions, NetworkError
from prefect_diffah.engine.oci import Digest
from prefect_diffah.engine.registry.auth import Authenticator
from prefect_diffah.engine.registry.faults import NO_TLS, UNKNOWN_HOST, finish, redacted, translated
from prefect_diffah.engine.registry.trust import certificate_folder, tls_context

__all__ = ["Body", "Connection", "Reauthorized"]

REDIRECTS = 8
_ANSWER_SECONDS = 30.0
_PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=16, keepalive_expiry=30)
_REDIRECT = (301, 302, 303, 307, 308)
_API_HOSTS = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}

Body = bytes | Callable[[], Iterable[bytes]] | None
"""A request's body: whole, or a stream that can be opened for one attempt."""


_speaking: ContextVar[bool] = ContextVar("prefect_diffah_registry_speaking", default=False)


class _Discreet(logging.Filter):
    """Keeps httpx from logging this module's requests: it logs whole URLs, and their queries may be signatures."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not _speaking.get()


logging.getLogger("httpx").addFilter(_Discreet())


class Reauthorized(Exception):
    """A streamed request was refused for want of a token, which is there now: send it again."""


class Connection:
    """Requests to one ``host[:port]`` with one set of credentials. Safe to use from several threads.

    Args:
        host: as in references; ``docker.io`` is reached at its API host.
        insecure: whether the machine's configuration accepts untrusted TLS and
            plain HTTP there; ``access.tls_verify`` overrides it.
    """

    def __init__(self, host: str, access: Access, *, insecure: bool = False) -> None:
        self.host = host
        self.insecure = not access.tls_verify if access.tls_verify is not None else insecure
        folder = Path(access.cert_dir) if access.cert_dir is not None else certificate_folder(host)
        self._client = _client(tls_context(folder, verify=not self.insecure))
        self.damaged: set[Digest] = set()
        """Blobs that did not come from here as they should."""
        self._lock = threading.Lock()
        self._root = None if self.insecure else self._url("https")
        self._auth = Authenticator(host, access, self._send_to_token_service, self._plain_is_accepted)

    def close(self) -> None:
        self._client.close()

    @property
    def root(self) -> httpx.URL:
        """``https://host/``; ``http://host/`` where that is accepted and all there is.

        Raises: NetworkError, TLSUntrusted.
        """
        with self._lock:
            if self._root is None:
                self._root = self._probe()
            return self._root

    def _url(self, scheme: str) -> httpx.URL:
        return httpx.URL(f"{scheme}://{_API_HOSTS.get(self.host, self.host)}/")

    def _probe(self) -> httpx.URL:
        """Ask which scheme works, https first, as containers/image does; where none does, its failure counts that could have worked."""
        https, http = self._url("https"), self._url("http")
        try:
            finish(self._once("GET", https.join("/v2/"), {}, None))
        except DiffahError as failure:
            reason = failure.details.get("reason")
            if reason == UNKNOWN_HOST:
                raise
            try:
                response = self._once("GET", http.join("/v2/"), {}, None)
            except DiffahError:
                if reason == NO_TLS:
                    raise
                raise failure from failure.__cause__
            finish(response)
            # 400 to plain HTTP is what a TLS server says
            if response.status_code == 400:
                raise
            return http
        return https

    def _plain_is_accepted(self) -> bool:
        return self.insecure

    def send(
        self,
        method: str,
        url: httpx.URL,
        *,
        repository: str,
        scopes: tuple[str, ...],
        headers: dict[str, str] | None = None,
        body: Body = None,
        answer_seconds: float = _ANSWER_SECONDS,
    ) -> httpx.Response:
        """One request; its answer with any status, body unread, to be closed by the caller.

        A 401 is answered once. Redirects are followed, credentials stay with
        the registry's own origin. ``url`` may be elsewhere (an upload's
        Location): then no credentials are sent.

        Args:
            answer_seconds: how long to wait for the next byte of the answer.

        Raises:
            NetworkError, TLSUntrusted, and what a token service raises.
            Reauthorized: a streamed body must be sent again.
        """
        own = _origin(url) == _origin(self.root)
        authorization = self._auth.header(repository, scopes) if own else None
        response = self._follow(method, url, headers or {}, body, authorization, answer_seconds)
        if response.status_code != 401 or not own or _origin(response.url) != _origin(url):
            return response
        try:
            answer = self._auth.answer(response, repository, scopes, authorization)
        except BaseException:
            response.close()
            raise
        if answer is None:
            return response
        finish(response)
        if callable(body):
            raise Reauthorized
        return self._follow(method, url, headers or {}, body, answer, answer_seconds)

    def _send_to_token_service(self, method: str, url: str, headers: dict[str, str], body: bytes | None) -> httpx.Response:
        authorization = headers.pop("Authorization", None)
        return self._follow(method, httpx.URL(url), headers, body, authorization)

    def _follow(
        self, method: str, url: httpx.URL, headers: dict[str, str], body: Body, authorization: str | None, answer_seconds: float = _ANSWER_SECONDS
    ) -> httpx.Response:
        start = url
        for _ in range(REDIRECTS + 1):
            sent = headers if authorization is None else headers | {"Authorization": authorization}
            response = self._once(method, url, sent, body, answer_seconds)
            location = response.headers.get("location")
            if response.status_code not in _REDIRECT or location is None or body is not None:
                return response
            if method not in ("GET", "HEAD") and response.status_code not in (307, 308):
                return response
            finish(response)
            target = self.located(url, location)
            if _origin(target) != _origin(url):
                authorization = None
            url = target
        raise NetworkError(f"{redacted(start)} is redirected more than {REDIRECTS} times", transient=False, url=redacted(start))

    def _once(self, method: str, url: httpx.URL, headers: dict[str, str], body: Body, answer_seconds: float = _ANSWER_SECONDS) -> httpx.Response:
        token = _speaking.set(True)
        try:
            with translated(url):
                content = body() if callable(body) else body
                timeout = httpx.Timeout(connect=15, read=answer_seconds, write=30, pool=None)
                request = self._client.build_request(method, url, headers=headers, content=content, timeout=timeout)
                return self._client.send(request, stream=True, auth=None)
        finally:
            _speaking.reset(token)

    def located(self, base: httpx.URL, location: str) -> httpx.URL:
        """Where ``location`` leads from ``base``.

        Raises: NetworkError for anything but http and https, and for http from https.
        """
        with translated(base):
            target = base.join(location)
        if target.scheme not in ("https", "http") or not target.host or (base.scheme == "https" and target.scheme == "http"):
            raise NetworkError(
                f"{redacted(base)} leads to {redacted(target)}, which is not followed from {base.scheme}",
                next_action="Have the registry's external address corrected to https (often its proxy's X-Forwarded-Proto).",
                transient=False,
                url=redacted(base),
            )
        return target.copy_with(fragment=None)


def _client(context: ssl.SSLContext) -> httpx.Client:
    try:
        return httpx.Client(
            verify=context,
            limits=_LIMITS,
            follow_redirects=False,
            headers={"User-Agent": "prefect-diffah", "Accept-Encoding": "identity"},
        )
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        # their words are not repeated: the address of a proxy may hold a password
        names = sorted(name for name in os.environ if name.lower() in _PROXY_VARIABLES)
        raise InvalidOptions(
            f"cannot use the proxies that the environment names ({', '.join(names)})",
            next_action="Correct or unset these variables; for a socks proxy: pip install 'httpx[socks]'.",
            variables=names,
        ) from error


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"https": 443, "http": 80}.get(url.scheme)
