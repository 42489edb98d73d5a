"""What went wrong, from a registry's answer or a broken connection, as our errors."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from typing import TYPE_CHECKING, Any

import httpx

from prefect_diffah.engine.errors import AccessDenied, DiffahError, NetworkError, NotFound, RegistryUnavailable, RequestError, TLSUntrusted
from prefect_diffah.engine.registry.retry import retry_after

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["NO_TLS", "UNKNOWN_HOST", "expect", "finish", "read_body", "redacted", "translated"]

MESSAGE_LIMIT = 1024
"""Characters of a registry's own words that are repeated."""
_ERROR_BODY = 64 * 1024
_RETRIED = (429, 500, 502, 503, 504)
_REFUSALS = {"MANIFEST_BLOB_UNKNOWN", "MANIFEST_INVALID", "MANIFEST_UNVERIFIED", "DIGEST_INVALID", "SIZE_INVALID", "NAME_INVALID", "TAG_INVALID", "DENIED"}
"""Codes that blame the request (distribution-spec, "Error Codes"), whatever the status."""
UNKNOWN_HOST, NO_TLS = "unknown host", "no TLS"
"""``details["reason"]`` of those failures."""
_NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")


def redacted(url: httpx.URL | str) -> str:
    """``url`` without user, password, query and fragment, any of which may be a secret."""
    try:
        url = httpx.URL(url)
    except httpx.InvalidURL:
        return "(an invalid URL)"
    return f"{url.scheme}://{url.netloc.decode('ascii', 'replace')}{url.path}"


@contextlib.contextmanager
def translated(url: httpx.URL | str) -> Iterator[None]:
    """Turn what httpx raises into our errors, naming ``url``."""
    try:
        yield
    except httpx.InvalidURL as error:
        raise NetworkError(f"{redacted(url)} leads to an invalid URL", transient=False) from error
    except UnicodeError as error:
        raise NetworkError(f"{redacted(url)}: its host is not a name that can be looked up", transient=False, url=redacted(url)) from error
    except (httpx.TransportError, httpx.StreamError) as error:
        raise _from_httpx(error, url) from error


def _from_httpx(error: Exception, url: httpx.URL | str) -> DiffahError:
    place = redacted(url)
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, (ssl.SSLError, socket.gaierror)):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME:
        return NetworkError(
            f"{place}: no such host", next_action="Check the host's name, and the name server.", transient=False, url=place, reason=UNKNOWN_HOST
        )
    if isinstance(cause, ssl.SSLCertVerificationError):
        return TLSUntrusted(f"{place}: the certificate is not trusted: {cause.verify_message or cause.reason}", url=place)
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        reason = cause.reason or "unknown"
        if isinstance(error, httpx.ConnectError) and reason in _NOT_TLS:
            return NetworkError(
                f"{place}: the server does not speak TLS; it probably serves plain HTTP",
                next_action="If plain HTTP is acceptable there, allow it: --tls-verify=false, or insecure = true in registries.conf.",
                transient=False,
                url=place,
                reason=NO_TLS,
            )
        if isinstance(error, httpx.ConnectError) or "ALERT" in reason:
            return TLSUntrusted(
                f"{place}: no TLS connection: {reason.lower().replace('_', ' ')}",
                next_action="Check which TLS versions and client certificate (--cert-dir) the server asks for.",
                url=place,
            )
    if isinstance(error, httpx.LocalProtocolError):
        # its words may quote a header that is a secret
        return NetworkError(f"{place}: the request could not be put into HTTP", url=place)
    words = str(error) or type(error).__name__
    if isinstance(error, httpx.RemoteProtocolError) and "location header" in words:
        return NetworkError(f"{place} leads to an invalid URL", transient=False, url=place)
    return NetworkError(f"{place}: {words[:MESSAGE_LIMIT]}", url=place)


def read_body(response: httpx.Response, limit: int) -> bytes:
    """The body, but not much more than ``limit`` bytes of it (so that more can be told), and close the response.

    Raises: NetworkError when the connection breaks.
    """
    body = bytearray()
    with contextlib.closing(response), translated(response.url):
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > limit:
                break
    return bytes(body)


def finish(response: httpx.Response) -> None:
    """Close a response whose body does not matter, reading a short one, so that its connection can be used again."""
    with contextlib.suppress(NetworkError):
        read_body(response, _ERROR_BODY)


def expect(response: httpx.Response, *statuses: int, what: str) -> httpx.Response:
    """``response`` if its status is one of ``statuses``; otherwise it is closed and an error raised.

    Args:
        what: what was asked for, for the message: "blob sha256:…".

    Raises:
        AccessDenied: 401 or 403.
        NotFound: 404.
        RegistryUnavailable: 429 or 5xx; also any other answer that makes no sense.
        RequestError: other 4xx, and 5xx whose body blames the request: distribution
            answers so to manifests with URLs.
    """
    if response.status_code in statuses:
        return response
    status, url = response.status_code, redacted(response.url)
    try:
        body = read_body(response, _ERROR_BODY)
    except NetworkError:
        body = b""
    words, codes = _own_words(body)
    answer = f"{status} {response.reason_phrase}".strip() + (f": {words}" if words else "")
    message = f"{what}: {response.request.method} {url} was answered {answer}"
    details: dict[str, Any] = {"status": status, "url": url, "method": response.request.method}
    if status in (401, 403):
        raise AccessDenied(message, **details)
    if status == 404:
        raise NotFound(message, **details)
    if (400 <= status < 500 and status != 429) or (status >= 500 and codes & _REFUSALS):
        raise RequestError(message, next_action="Check what the registry accepts there (its message may say).", **details)
    if (wait := retry_after(response.headers.get("retry-after"))) is not None:
        details["retry_after"] = wait
    raise RegistryUnavailable(
        message,
        next_action="Try again later." if status in _RETRIED else "Check the registry and what stands before it: it should not answer so.",
        transient=status in _RETRIED,
        **details,
    )


def _own_words(body: bytes) -> tuple[str, set[str]]:
    """``CODE: message`` of each error in the body (distribution-spec, "Error Codes"), printable and capped; and the codes."""
    codes: set[str] = set()
    try:
        document = json.loads(body)
        errors = document.get("errors") if isinstance(document, dict) else None
        if isinstance(errors, list):
            codes = {str(e.get("code")) for e in errors if isinstance(e, dict)}
            parts = [": ".join(str(e[k]) for k in ("code", "message") if e.get(k)) for e in errors if isinstance(e, dict)]
        else:
            parts = [str(document.get(key)) for key in ("error", "details", "error_description", "message") if document.get(key)]
        text = "; ".join(part for part in parts if part)
    except (ValueError, RecursionError, AttributeError):
        text = body[:200].decode("utf-8", "replace") if b"<" not in body[:200] else ""
    return "".join(c if c.isprintable() else " " for c in text).strip()[:MESSAGE_LIMIT], codes
