"""A registry inside the test's own process, which can be told to misbehave.

    with InProcessRegistry() as registry:
        registry.put_image("app", "v1", image)
        registry.faults.append(Fault(path="/blobs/", status=503, headers={"Retry-After": "1"}))
        …docker://{registry.host}/app:v1…
        assert ("GET", "/v2/app/manifests/v1", 200) in registry.requests

It speaks plain HTTP on 127.0.0.1 unless given TLS, keeps everything in
memory, and follows distribution-spec 1.1: pull with ranges, push in one
request or in chunks, mounts, deletes of uploads, tags, referrers.
"""

from __future__ import annotations

import base64
import json
import secrets
import threading
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from prefect_diffah.engine.errors import DiffahError
from prefect_diffah.engine.oci import Digest, Index, Manifest, parse_document
from prefect_diffah.engine.testing.faults import Fault

if TYPE_CHECKING:
    import ssl
    from types import TracebackType

    from prefect_diffah.engine.testing.images import GeneratedImage

__all__ = ["Fault", "InProcessRegistry", "StoredRepository"]


@dataclass
class StoredRepository:
    """What one repository holds."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    """Media type and bytes, by digest."""
    tags: dict[str, str] = field(default_factory=dict)


@dataclass
class Upload:
    repository: str
    data: bytearray = field(default_factory=bytearray)


class InProcessRegistry:
    """The registry; serves while its ``with`` block runs.

    Args:
        auth: None, "basic", or "token" (with its own token service at /token).
        username, password: what it lets in.
        identity_token: an OAuth 2 refresh token that its token service takes too.
        anonymous: what clients without credentials may do at the token
            service: "" nothing, "pull", or "pull,push".
        grants: what the user may do.
        token_uses: requests a token is good for; None for ever. For requests one
            after the other: parallel ones take each other's uses.
        expires_in: seconds of life that tokens are said to have.
        realm: the address of the token service, if not its own.
        tls: the server's TLS settings.
        mounts: whether cross-repository mounts work (201) or not (202).
        chunk_minimum: bytes, announced as OCI-Chunk-Min-Length and required.
        referrers: whether the referrers API is there.
        absolute_locations: whether Location headers have scheme and host.
        faults: misbehaviour to begin with.
    """

    def __init__(
        self,
        *,
        auth: str | None = None,
        username: str = "user",
        password: str = "pass",
        identity_token: str | None = None,
        anonymous: str = "",
        grants: str = "pull,push",
        token_uses: int | None = None,
        expires_in: int | None = None,
        realm: str | None = None,
        tls: ssl.SSLContext | None = None,
        mounts: bool = True,
        chunk_minimum: int = 0,
        referrers: bool = True,
        absolute_locations: bool = False,
        faults: tuple[Fault, ...] = (),
    ) -> None:
        self.auth, self.username, self.password, self.identity_token = auth, username, password, identity_token
        self.anonymous, self.grants, self.token_uses, self.expires_in, self.realm = anonymous, grants, token_uses, expires_in, realm
        self.tls, self.mounts, self.chunk_minimum, self.referrers, self.absolute_locations = tls, mounts, chunk_minimum, referrers, absolute_locations
        self.faults: list[Fault] = list(faults)
        self.repositories: dict[str, StoredRepository] = {}
        self.uploads: dict[str, Upload] = {}
        self.tokens: dict[str, tuple[set[str], int | None]] = {}
        self.lock = threading.RLock()
        self._log: list[tuple[str, str, int]] = []
        self._headers: list[dict[str, str]] = []
        self.connections = 0
        """Connections opened so far."""
        self._server: ThreadingHTTPServer | None = None

    # -- for tests ---------------------------------------------------------

    @property
    def host(self) -> str:
        """``127.0.0.1:PORT``."""
        if self._server is None:
            raise RuntimeError("the registry serves inside its with block only")
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        """Scheme and host."""
        return f"{'https' if self.tls else 'http'}://{self.host}"

    @property
    def requests(self) -> list[tuple[str, str, int]]:
        """Method, path with query, and status of every request so far; status 0 where the answer was never sent whole."""
        with self.lock:
            return list(self._log)

    @property
    def request_headers(self) -> list[dict[str, str]]:
        """The headers of every request so far, names in lower case, in the order of ``requests``."""
        with self.lock:
            return list(self._headers)

    def forget_requests(self) -> None:
        with self.lock:
            self._log.clear()
            self._headers.clear()

    def repository(self, name: str) -> StoredRepository:
        """The repository of that name, made if need be."""
        with self.lock:
            return self.repositories.setdefault(name, StoredRepository())

    def put_image(self, repository: str, tag: str | None, image: GeneratedImage) -> None:
        """Store an image, as if it had been pushed."""
        stored = self.repository(repository)
        with self.lock:
            stored.blobs.update((str(digest), blob) for digest, blob in image.blobs.items())
            for digest, raw in image.documents.items():
                stored.manifests[digest] = (parse_document(raw).media_type, raw)
            if tag is not None:
                stored.tags[tag] = image.root.digest

    def put_blob(self, repository: str, data: bytes) -> Digest:
        """Store a blob."""
        digest = Digest.of(data)
        with self.lock:
            self.repository(repository).blobs[digest] = data
        return digest

    def __enter__(self) -> InProcessRegistry:
        from prefect_diffah.engine.testing.registry_handler import make_handler

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            # tests open many connections at once
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                # clients hang up on purpose here
                pass

        self._server = Server(("127.0.0.1", 0), make_handler(self))
        if self.tls is not None:
            self._server.socket = self.tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="registry", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    # -- for its request handler ----------------------------------------------

    def take_fault(self, method: str, path: str) -> Fault:
        """The first fault that is due for this request, or one that does nothing."""
        with self.lock:
            return next((fault for fault in self.faults if fault.strikes(method, path)), Fault())

    def log(self, method: str, path: str, headers: dict[str, str]) -> int:
        with self.lock:
            self._log.append((method, path, 0))
            self._headers.append(headers)
            return len(self._log) - 1

    def log_status(self, entry: int, status: int) -> None:
        with self.lock:
            if entry < len(self._log):
                method, path, _ = self._log[entry]
                self._log[entry] = (method, path, status)

    def allowed(self, authorization: str, repository: str, action: str) -> bool:
        """Whether a request with this ``Authorization`` may do ``pull`` or ``push``."""
        if self.auth is None:
            return True
        kind, _, value = authorization.partition(" ")
        if self.auth == "basic":
            return kind.lower() == "basic" and self._is_user(value) and (not repository or action in self.grants.split(","))
        with self.lock:
            scopes, uses = self.tokens.get(value, (set[str](), 0))
            if kind.lower() != "bearer" or value not in self.tokens or uses == 0:
                return False
            if repository and f"{repository}:{action}" not in scopes:
                return False
            self.tokens[value] = (scopes, None if uses is None else uses - 1)
            return True

    def challenge(self, repository: str, action: str) -> str:
        """The ``WWW-Authenticate`` of a refusal."""
        if self.auth == "basic":
            return 'Basic realm="registry"'
        actions = "pull,push" if action == "push" else action
        scope = f',scope="repository:{repository}:{actions}"' if repository else ""
        return f'Bearer realm="{self.realm or self.url + "/token"}",service="registry"{scope}'

    def _is_user(self, encoded: str) -> bool:
        try:
            return base64.b64decode(encoded).decode() == f"{self.username}:{self.password}"
        except ValueError:
            return False

    def issue_token(self, authorization: str, scopes: list[str], refresh_token: str | None) -> tuple[int, dict[str, Any]]:
        """Status and body of an answer of the token service."""
        by_name = bool(authorization) and self._is_user(authorization.partition(" ")[2])
        known = by_name if refresh_token is None else refresh_token == self.identity_token
        if (authorization or refresh_token is not None) and not known:
            return 401, {"errors": [{"code": "UNAUTHORIZED", "message": "wrong name or password"}]}
        may = set((self.grants if known else self.anonymous).split(","))
        granted = set()
        for scope in " ".join(scopes).split():
            _, _, rest = scope.partition(":")
            repository, _, actions = rest.rpartition(":")
            granted |= {f"{repository}:{action}" for action in actions.split(",") if action in may}
        token = secrets.token_hex(16)
        with self.lock:
            self.tokens[token] = (granted, self.token_uses)
        lifetime = {} if self.expires_in is None else {"expires_in": self.expires_in}
        return 200, {"access_token" if refresh_token is not None else "token": token} | lifetime

    def begin_upload(self, repository: str) -> str:
        """The identifier of a new upload session."""
        session = secrets.token_hex(8)
        with self.lock:
            self.uploads[session] = Upload(repository)
        return session

    def store_manifest(self, repository: str, reference: str, media_type: str, raw: bytes) -> tuple[int, Digest | str, str | None]:
        """Status, digest or error code, and the subject's digest."""
        digest = Digest.of(raw, Digest(reference).algorithm if ":" in reference else "sha256")
        try:
            document = parse_document(raw, media_type)
        except DiffahError:
            return 400, "MANIFEST_INVALID", None
        if ":" in reference and reference != digest:
            return 400, "DIGEST_INVALID", None
        stored = self.repository(repository)
        with self.lock:
            if isinstance(document, Manifest):
                needed = [d for d in (document.config, *document.layers) if not d.urls]
                if any(descriptor.digest not in stored.blobs for descriptor in needed):
                    return 404, "MANIFEST_BLOB_UNKNOWN", None
            elif isinstance(document, Index) and any(entry.digest not in stored.manifests for entry in document.manifests):
                return 404, "MANIFEST_UNKNOWN", None
            stored.manifests[digest] = (media_type, raw)
            if ":" not in reference:
                stored.tags[reference] = digest
        return 201, digest, document.subject.digest if document.subject else None

    def referrers_of(self, repository: str, subject: str, artifact_type: str | None) -> dict[str, Any]:
        """The index of manifests whose subject that is (distribution-spec, "Listing Referrers")."""
        found = []
        with self.lock:
            for digest, (media_type, raw) in self.repository(repository).manifests.items():
                document = json.loads(raw)
                if (document.get("subject") or {}).get("digest") != subject:
                    continue
                kind = document.get("artifactType") or document.get("config", {}).get("mediaType")
                if artifact_type in (None, kind):
                    found.append(
                        {"mediaType": media_type, "digest": digest, "size": len(raw), "artifactType": kind, "annotations": document.get("annotations", {})}
                    )
        return {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": found}
