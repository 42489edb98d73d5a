"""The HTTP side of the in-process registry."""

from __future__ import annotations

import json
import re
import secrets
import socket
import struct
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from prefect_diffah.engine.errors import InvalidReference
from prefect_diffah.engine.oci import Digest

if TYPE_CHECKING:
    from prefect_diffah.engine.testing.registry import InProcessRegistry

__all__ = ["make_handler"]

_ROUTE = re.compile(r"/v2/(?P<name>.+)/(?P<kind>blobs/uploads|blobs|manifests|tags|referrers)/(?P<last>[^/]*)")
_PIECE = 64 * 1024


class _HangUp(Exception):
    """End the connection without another word."""


def make_handler(registry: InProcessRegistry) -> type[BaseHTTPRequestHandler]:
    """A handler class that serves ``registry``."""
    return type("Handler", (_Handler,), {"registry": registry})


class _Handler(BaseHTTPRequestHandler):
    registry: InProcessRegistry
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def setup(self) -> None:
        with self.registry.lock:
            self.registry.connections += 1
        if self.registry.tls is not None:
            # in this connection's own thread, so that a client that hangs cannot stop the others
            self.request.settimeout(30)
            self.request.do_handshake()
        super().setup()

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (_HangUp, ConnectionError):
            self.close_connection = True

    def _serve(self) -> None:
        self.split = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(self.split.query).items()}
        self.entry = self.registry.log(self.command, self.path, {key.lower(): value for key, value in self.headers.items()})
        self.fault = self.registry.take_fault(self.command, self.path)
        self.unread = self._request_body()
        if self.fault.hang_up:
            self._hang_up()
        if self.fault.status is not None:
            self._reply(self.fault.status, self.fault.body)
        elif self.fault.redirect is not None:
            self._reply(307, headers={"Location": self.fault.redirect + self.path})
        elif self.split.path == "/token":
            self._token()
        elif self.split.path in ("/v2", "/v2/"):
            if self._authorized("", "pull"):
                self._reply(200, b"{}", {"Content-Type": "application/json"})
        elif route := _ROUTE.fullmatch(self.split.path):
            action = "pull" if self.command in ("GET", "HEAD") and route["kind"] != "blobs/uploads" else "push"
            if self._authorized(route["name"], action):
                getattr(self, "_" + route["kind"].replace("/", "_"))(route["name"], route["last"])
        else:
            self._error(404, "UNSUPPORTED")

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 - http.server's names

    # -- the wire --------------------------------------------------------------

    def _request_body(self) -> Iterator[bytes]:
        left = int(self.headers.get("content-length") or 0)
        chunked = self.headers.get("transfer-encoding", "").lower() == "chunked"
        if chunked:
            left = int(self.rfile.readline(64), 16)
        seen = 0
        while left > 0:
            most = min(left, _PIECE) if self.fault.cut_request is None else min(left, _PIECE, self.fault.cut_request - seen)
            if most == 0:
                self._hang_up()
            piece = self.rfile.read(most)
            if not piece:
                raise _HangUp
            left -= len(piece)
            seen += len(piece)
            yield piece
            if chunked and left == 0:
                self.rfile.readline(64)
                left = int(self.rfile.readline(64), 16)
        if chunked:
            self.rfile.readline(64)

    def _hang_up(self) -> None:
        # with lingering off, closing sends a reset
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise _HangUp

    def _reply(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        for _ in self.unread:
            pass
        fault = self.fault
        if fault.lose_answer:
            self._hang_up()
        if fault.flip is not None and fault.flip < len(body):
            body = body[: fault.flip] + bytes([body[fault.flip] ^ 1]) + body[fault.flip + 1 :]
        if fault.truncate is not None:
            body = body[: fault.truncate]
        if fault.cut is None:
            # before the client can know
            self.registry.log_status(self.entry, status)
        self.send_response(status)
        sent = {"Content-Length": str(len(body))} | (headers or {}) | fault.headers
        if fault.unframed:
            del sent["Content-Length"]
            self.close_connection = True
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            if fault.cut is not None and fault.cut < len(body):
                self.wfile.write(body[: fault.cut])
                self.wfile.flush()
                # a plain end, not a reset: what was sent must arrive
                raise _HangUp
            self.wfile.write(body)

    def _error(self, status: int, code: str, message: str = "", headers: dict[str, str] | None = None) -> None:
        body = json.dumps({"errors": [{"code": code, "message": message or code.lower().replace("_", " ")}]}).encode()
        self._reply(status, body, {"Content-Type": "application/json"} | (headers or {}))

    def _authorized(self, repository: str, action: str) -> bool:
        if self.registry.allowed(self.headers.get("authorization", ""), repository, action):
            return True
        self._error(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": self.registry.challenge(repository, action)})
        return False

    def _location(self, path: str) -> str:
        return f"{self.registry.url}{path}" if self.registry.absolute_locations else path

    # -- the API -----------------------------------------------------------------

    def _token(self) -> None:
        if self.command == "POST":
            form = parse_qs(b"".join(self.unread).decode())
            status, body = self.registry.issue_token("", form.get("scope", []), form.get("refresh_token", [""])[0])
        else:
            scopes = parse_qs(self.split.query).get("scope", [])
            status, body = self.registry.issue_token(self.headers.get("authorization", ""), scopes, None)
        self._reply(status, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _blobs(self, name: str, digest: str) -> None:
        blob = self.registry.repository(name).blobs.get(digest)
        if self.command not in ("GET", "HEAD"):
            self._error(405, "UNSUPPORTED")
        elif blob is None:
            self._error(404, "BLOB_UNKNOWN")
        else:
            self._serve_blob(blob, {"Content-Type": "application/octet-stream", "Docker-Content-Digest": digest, "Accept-Ranges": "bytes"})

    def _serve_blob(self, blob: bytes, headers: dict[str, str]) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if asked is None or self.fault.ignore_range:
            self._reply(200, blob, headers)
            return
        first, last = int(asked[1]), min(int(asked[2] or len(blob)), len(blob) - 1)
        if self.fault.wrong_range:
            first += 1
        if first > last:
            self._error(416, "RANGE_INVALID", headers={"Content-Range": f"bytes */{len(blob)}"})
            return
        self._reply(206, blob[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{len(blob)}"})

    def _manifests(self, name: str, reference: str) -> None:
        stored = self.registry.repository(name)
        if self.command == "PUT":
            status, digest, subject = self.registry.store_manifest(name, reference, self.headers.get("content-type", ""), b"".join(self.unread))
            if status != 201:
                self._error(status, digest)
                return
            told = {"OCI-Subject": subject} if subject and self.registry.referrers else {}
            self._reply(201, headers={"Location": self._location(f"/v2/{name}/manifests/{digest}"), "Docker-Content-Digest": digest} | told)
            return
        digest = stored.tags.get(reference, reference)
        media_type, raw = stored.manifests.get(digest, ("", b""))
        if self.command not in ("GET", "HEAD"):
            self._error(405, "UNSUPPORTED")
        elif not raw or not self._accepts(media_type):
            self._error(404, "MANIFEST_UNKNOWN")
        else:
            self._reply(200, raw, {"Content-Type": media_type, "Docker-Content-Digest": digest})

    def _accepts(self, media_type: str) -> bool:
        accepted = ",".join(self.headers.get_all("accept", ["*/*"]))
        return media_type in accepted or "*/*" in accepted

    def _tags(self, name: str, last: str) -> None:
        tags = sorted(self.registry.repository(name).tags)
        self._reply(200, json.dumps({"name": name, "tags": tags}).encode(), {"Content-Type": "application/json"})

    def _referrers(self, name: str, digest: str) -> None:
        if not self.registry.referrers:
            self._error(404, "UNSUPPORTED")
            return
        wanted = self.query.get("artifactType")
        index = self.registry.referrers_of(name, digest, wanted)
        told = {"OCI-Filters-Applied": "artifactType"} if wanted else {}
        self._reply(200, json.dumps(index).encode(), {"Content-Type": index["mediaType"]} | told)

    def _blobs_uploads(self, name: str, session: str) -> None:
        if self.command == "POST" and not session:
            self._begin_upload(name)
            return
        upload = self.registry.uploads.get(session)
        if upload is None or upload.repository != name:
            self._error(404, "BLOB_UPLOAD_UNKNOWN")
        elif self.command == "DELETE":
            del self.registry.uploads[session]
            self._reply(204)
        elif self.command == "GET":
            self._reply(204, headers=self._progress(name, session))
        elif self.command == "PATCH":
            self._append(name, session)
        elif self.command == "PUT":
            self._commit(name, session)
        else:
            self._error(405, "UNSUPPORTED")

    def _begin_upload(self, name: str) -> None:
        digest, origin = self.query.get("mount"), self.query.get("from")
        if digest and origin and self.registry.mounts:
            readable = self.registry.auth != "token" or self.registry.allowed(self.headers.get("authorization", ""), origin, "pull")
            blob = self.registry.repository(origin).blobs.get(digest)
            if blob is not None and readable:
                self.registry.repository(name).blobs[digest] = blob
                self._reply(201, headers={"Location": self._location(f"/v2/{name}/blobs/{digest}"), "Docker-Content-Digest": digest})
                return
        session = self.registry.begin_upload(name)
        minimum = {"OCI-Chunk-Min-Length": str(self.registry.chunk_minimum)} if self.registry.chunk_minimum else {}
        self._reply(202, headers=self._progress(name, session) | minimum)

    def _progress(self, name: str, session: str) -> dict[str, str]:
        done = len(self.registry.uploads[session].data)
        return {
            "Location": self._location(f"/v2/{name}/blobs/uploads/{session}?_state={secrets.token_hex(4)}"),
            "Range": f"0-{max(done - 1, 0)}",
            "Docker-Upload-UUID": session,
        }

    def _append(self, name: str, session: str) -> None:
        data = self.registry.uploads[session].data
        span = re.fullmatch(r"(\d+)-(\d+)", self.headers.get("content-range", ""))
        if span is not None and int(span[1]) != len(data):
            self._error(416, "BLOB_UPLOAD_INVALID", headers=self._progress(name, session))
            return
        for piece in self.unread:
            data += piece
        self._reply(202, headers=self._progress(name, session))

    def _commit(self, name: str, session: str) -> None:
        data = self.registry.uploads[session].data
        for piece in self.unread:
            data += piece
        try:
            digest = Digest(self.query.get("digest", ""))
        except InvalidReference:
            self._error(400, "DIGEST_INVALID")
            return
        if not digest.matches(bytes(data)):
            self._error(400, "DIGEST_INVALID", "the bytes have another digest")
            return
        del self.registry.uploads[session]
        self.registry.repository(name).blobs[digest] = bytes(data)
        self._reply(201, headers={"Location": self._location(f"/v2/{name}/blobs/{digest}"), "Docker-Content-Digest": digest})
