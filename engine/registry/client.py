"""A repository in a registry: blobs and manifests (distribution-spec 1.1)."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator, Iterator

import httpx

from prefect_diffah.engine.errors import DigestMismatch, InvalidReference, NetworkError, NotFound, RegistryUnavailable, SizeMismatch
from prefect_diffah.engine.oci import MAX_MANIFEST, Digest, mediatypes
from prefect_diffah.engine.registry.auth import pull_scope, push_scope
from prefect_diffah.engine.registry.connection import Body, Connection
from prefect_diffah.engine.registry.faults import expect, finish, read_body, translated
from prefect_diffah.engine.registry.retry import PATIENCE, Budget, Patience

__all__ = ["ACCEPT", "Repository"]

ACCEPT = ", ".join((*mediatypes.MANIFESTS, *mediatypes.INDEXES))
"""Every type of manifest that is understood; registries convert or refuse what is not named."""
_GETTING_ON = 1024 * 1024
"""Bytes after which a read that broke counts as one that gets on, with patience afresh."""


class Repository:
    """One repository of one registry. Safe to use from several threads.

    Failures that may pass are retried here (see ``Patience``); every method
    may raise AccessDenied, RegistryUnavailable, NetworkError and TLSUntrusted.

    Args:
        name: the repository, without the host.
        push: whether to ask for the right to push too.
    """

    def __init__(self, connection: Connection, name: str, *, push: bool = False, patience: Patience = PATIENCE) -> None:
        self.connection = connection
        self.name = name
        self.patience = patience
        self._scopes = (push_scope(name) if push else pull_scope(name),)

    def __str__(self) -> str:
        return f"{self.connection.host}/{self.name}"

    def url(self, path: str) -> httpx.URL:
        """The API's address of ``path`` (with query) in this repository."""
        return self.connection.root.join(f"/v2/{self.name}/{path}")

    def send(
        self, method: str, url: httpx.URL | str, *, headers: dict[str, str] | None = None, body: Body = None, also: tuple[str, ...] = (), **options: float
    ) -> httpx.Response:
        """One request, tried once; its answer may have any status.

        Args:
            url: absolute, or a path in this repository.
            also: scopes to ask for besides this repository's.
            options: those of ``Connection.send``.
        """
        where = self.url(url) if isinstance(url, str) else url
        return self.connection.send(method, where, repository=self.name, scopes=self._scopes + also, headers=headers, body=body, **options)

    def _asked(self, method: str, path: str, *statuses: int, what: str, headers: dict[str, str] | None = None, budget: Budget | None = None) -> httpx.Response:
        """A request without a body in its answer that matters, retried; the answer is closed."""

        def attempt() -> httpx.Response:
            response = expect(self.send(method, path, headers=headers), *statuses, what=what)
            finish(response)
            return response

        return (budget or self.patience.start()).run(attempt)

    def has_blob(self, digest: Digest, *, budget: Budget | None = None) -> bool:
        """Whether the blob is there (spec: "Checking if content exists in the registry").

        Args:
            budget: of something that this question is a part of.
        """
        return self._asked("HEAD", f"blobs/{digest}", 200, 404, what=f"blob {digest} in {self}", budget=budget).status_code == 200

    @contextlib.contextmanager
    def blob(self, digest: Digest, size: int, start: int = 0) -> Iterator[Iterator[bytes]]:
        """The blob's bytes, unverified. A read that breaks is resumed where it broke.

        Args:
            size: bytes that are expected; only an end before them is suspicious.
            start: bytes at the beginning that are not wanted.

        Raises:
            NotFound: at once, when the block is entered.
        """
        read = _BlobRead(self, digest, size, start)
        try:
            read.open()
            chunks = read.chunks()
            try:
                yield chunks
            finally:
                chunks.close()
        finally:
            read.close()

    def manifest(self, reference: str | Digest) -> tuple[bytes, str | None]:
        """A manifest or index by tag or digest, and its Content-Type.

        Checked against the digest asked for, or the one in the answer.

        Raises:
            NotFound: no such tag or digest.
            DigestMismatch: it is something else.
            SizeMismatch: over ``MAX_MANIFEST`` bytes.
        """
        what = f"manifest {reference} in {self}"

        def attempt() -> tuple[bytes, httpx.Headers]:
            response = expect(self.send("GET", f"manifests/{reference}", headers={"Accept": ACCEPT}), 200, what=what)
            return read_body(response, MAX_MANIFEST), response.headers

        raw, headers = self.patience.start().run(attempt)
        if len(raw) > MAX_MANIFEST:
            raise SizeMismatch(f"{what} is over the limit of {MAX_MANIFEST} bytes", limit=MAX_MANIFEST)
        if isinstance(reference, Digest) and not reference.matches(raw):
            raise DigestMismatch(f"{what} has the digest {Digest.of(raw, reference.algorithm)}", digest=reference)
        told = told_digest(headers)
        if told is not None and not told.matches(raw):
            actual = Digest.of(raw, told.algorithm)
            raise DigestMismatch(f"{what} is said to be {told}, but has the digest {actual}", digest=told, actual=actual)
        return raw, headers.get("content-type")

    def manifest_digest(self, reference: str | Digest) -> Digest | None:
        """The digest of what a tag or digest names, or None if it names nothing."""
        response = self._asked("HEAD", f"manifests/{reference}", 200, 404, what=f"manifest {reference} in {self}", headers={"Accept": ACCEPT})
        if response.status_code == 404:
            return None
        if isinstance(reference, Digest):
            return reference
        told = told_digest(response.headers)
        if told is not None:
            return told
        with contextlib.suppress(NotFound):
            return Digest.of(self.manifest(reference)[0])
        return None

    def put_manifest(self, reference: str | Digest, raw: bytes, media_type: str) -> Digest | None:
        """Store a manifest whose children are there already.

        Returns: the digest that the registry says it has there.

        Raises:
            DigestMismatch: the registry stored something else.
            RequestError: it does not accept this manifest.
        """
        what = f"manifest {reference} in {self}"

        def attempt() -> httpx.Response:
            response = expect(self.send("PUT", f"manifests/{reference}", headers={"Content-Type": media_type}, body=raw), 201, 200, 202, what=what)
            finish(response)
            return response

        told = told_digest(self.patience.start().run(attempt).headers)
        if told is not None and not told.matches(raw):
            raise DigestMismatch(f"{what} was stored as {told}", digest=Digest.of(raw, told.algorithm), actual=told)
        return told


def told_digest(headers: httpx.Headers) -> Digest | None:
    """``Docker-Content-Digest``, where it is one."""
    try:
        return Digest(headers.get("docker-content-digest", "").strip())
    except InvalidReference:
        return None


class _BlobRead:
    """One read of one blob, over as many requests as it takes."""

    def __init__(self, repository: Repository, digest: Digest, size: int, start: int) -> None:
        self._repository, self._digest, self._size = repository, digest, size
        self._what = f"blob {digest} in {repository}"
        self._budget: Budget = repository.patience.start()
        self._response: httpx.Response | None = None
        self._seen = start
        self._skip = 0
        self._ranges = True

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None

    def open(self) -> None:
        """Ask for the bytes not seen yet."""
        self._budget.run(self._ask)

    def _ask(self) -> None:
        self.close()
        resume = self._seen > 0 and self._ranges
        headers = {"Range": f"bytes={self._seen}-"} if resume else {}
        response = expect(self._repository.send("GET", f"blobs/{self._digest}", headers=headers), 200, *((206, 416) if resume else ()), what=self._what)
        self._response, self._skip = response, 0
        if response.status_code == 200:
            self._skip = self._seen
        elif response.status_code == 206 and not re.match(rf"bytes\s+{self._seen}-", response.headers.get("content-range", "")):
            self.close()
            self._ranges = False
            raise RegistryUnavailable(f"{self._what}: the registry sent another range than the one asked for", range=response.headers.get("content-range"))

    def chunks(self) -> Generator[bytes, None, None]:
        mark = self._seen
        while True:
            try:
                yield from self._budget.moving(self._pass_on())
                return
            except NetworkError as error:
                if self._seen - mark >= _GETTING_ON:
                    self._budget.renew()
                mark = self._seen
                self.close()
                self._budget.pause(error)
                self.open()

    def _pass_on(self) -> Iterator[bytes]:
        response = self._response
        if response is None or response.status_code == 416:
            return
        with translated(response.url):
            for chunk in response.iter_raw():
                piece = chunk[self._skip :] if self._skip else chunk
                self._skip -= len(chunk) - len(piece)
                if piece:
                    self._seen += len(piece)
                    yield piece
        if self._seen < self._size and not {"content-length", "transfer-encoding"} & response.headers.keys():
            # its end says nothing: the connection was the only frame
            raise NetworkError(f"{self._what} broke off after {self._seen} of {self._size} bytes")
