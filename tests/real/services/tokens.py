"""A token server for the distribution's token authentication (distribution docs, spec/auth/token and spec/auth/jwt)."""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import jwt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .authority import Authority, Signer

ISSUER = "test-token-server"
SERVICE = "test-registry"
LIFETIME = 60
"""Seconds a token lives: the least that the specification lets clients assume."""

WRITER, WRITER_PASSWORD = "writer", "writer's pass:word"
READER, READER_PASSWORD = "reader", "reader's pass:word"
_ACCOUNTS = {WRITER: (WRITER_PASSWORD, {"pull", "push", "delete", "*"}), READER: (READER_PASSWORD, {"pull"})}


@contextlib.contextmanager
def token_server(signer: Signer, tls: Authority | None) -> Iterator[str]:
    """Serve tokens on a free port of this machine; yields the realm's URL.

    The writer is granted what it asks for, the reader ``pull`` only, who sends
    no credentials nothing; wrong credentials are refused with 401.
    """
    server = _Server(("127.0.0.1", 0), _handler(signer))
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.certificate, tls.key)
        # the handshake belongs to the connection's own thread, not to the one that accepts
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        # by name: crane takes no realm on a loopback address that is not the registry's own
        yield f"{'https' if tls else 'http'}://localhost:{server.server_address[1]}/token"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        # a client that does not trust this server is no news
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def _handler(signer: Signer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                account, granted = _login(self.headers.get("Authorization", ""))
            except PermissionError:
                self._answer(401, {"errors": [{"code": "UNAUTHORIZED", "message": "wrong name or password"}]})
                return
            query = parse_qs(urlsplit(self.path).query)
            now = int(time.time())
            claims = {
                "iss": ISSUER,
                "sub": account,
                "aud": query.get("service", [SERVICE])[0],
                "iat": now,
                "nbf": now - 10,
                "exp": now + LIFETIME,
                "jti": secrets.token_hex(8),
                "access": [_access(scope, granted) for scopes in query.get("scope", []) for scope in scopes.split()],
            }
            token = jwt.encode(claims, signer.key, algorithm="RS256", headers={"x5c": [signer.x5c]})
            self._answer(200, {"token": token, "expires_in": LIFETIME})

        def _answer(self, status: int, body: object) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def _login(authorization: str) -> tuple[str, set[str]]:
    """The account and what it may do. Raises: PermissionError."""
    if not authorization:
        return "", set()
    kind, _, encoded = authorization.partition(" ")
    name, _, password = base64.b64decode(encoded).decode().partition(":")
    expected, granted = _ACCOUNTS.get(name, ("", set()))
    if kind.lower() != "basic" or not expected or not secrets.compare_digest(password, expected):
        raise PermissionError(name)
    return name, granted


def _access(scope: str, granted: set[str]) -> dict[str, object]:
    kind, _, rest = scope.partition(":")
    name, _, actions = rest.rpartition(":")
    return {"type": kind, "name": name, "actions": sorted(set(actions.split(",")) & granted)}
