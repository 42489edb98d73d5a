"""Blobs into a repository (distribution-spec 1.1, "Push"): mounted, in one request, or in chunks."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from urllib.parse import quote, urlencode

import httpx

from prefect_diffah.engine.errors import AccessDenied, DiffahError, NetworkError, NotFound, RegistryUnavailable, RequestError, SizeMismatch
from prefect_diffah.engine.oci import Digest
from prefect_diffah.engine.registry.auth import pull_scope
from prefect_diffah.engine.registry.client import Repository
from prefect_diffah.engine.registry.connection import Reauthorized
from prefect_diffah.engine.registry.faults import expect, finish
from prefect_diffah.engine.registry.retry import Budget

__all__ = ["CHUNK_SIZE", "Source", "can_push", "mount_blob", "upload_blob"]

CHUNK_SIZE = 64 * 1024 * 1024
"""Bytes of one request at most. What a broken connection can cost, and below the
100 MB that the commonest proxies let pass; small enough images need one request a blob."""
COMMIT_SECONDS = 300.0
"""How long the end of an upload is waited for: a registry on an object store copies the whole blob then."""

Source = Callable[[], AbstractContextManager[Iterator[bytes]]]
"""Opens a blob's bytes from the start, as often as an upload must begin again."""


@dataclass
class _Session:
    """An upload that has begun."""

    location: httpx.URL
    chunk_minimum: int = 0


class _SourceFailed(Exception):
    """What a source raised. Not as its ``__cause__``: httpcore re-raises ``from None``, which drops that."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


def can_push(repository: Repository) -> None:
    """Begin an upload and drop it: the cheapest question whether pushing is allowed.

    Raises: AccessDenied, NotFound, and what else a push would meet first.
    """
    session = _begin(repository)
    if session is not None:
        _cancel(repository, session)


def mount_blob(repository: Repository, digest: Digest, origin: str) -> bool:
    """Whether the registry could take the blob from its repository ``origin`` (spec: "Mounting a blob from another repository")."""
    try:
        session = _begin_or_mount(repository, digest, origin)
    except RequestError:
        return False
    if session is not None:
        _cancel(repository, session)
    return session is None


def upload_blob(repository: Repository, digest: Digest, size: int, source: Source, *, mount_from: str | None = None, chunk_size: int = CHUNK_SIZE) -> int:
    """Upload a blob, or have it mounted.

    Args:
        size: bytes of the blob.
        source: opens its bytes; what it raises is passed on as it is.
        mount_from: a repository of this registry that may have it.
        chunk_size: bytes; larger blobs go in chunks, and go on after a break.

    Returns: bytes uploaded; 0 if it was mounted.

    Raises:
        AccessDenied, NotFound, RequestError: the registry refuses.
        RegistryUnavailable, NetworkError: patience is exhausted.
    """
    try:
        session = _begin(repository) if mount_from is None else _begin_or_mount(repository, digest, mount_from)
    except RequestError:
        if mount_from is None:
            raise
        # no right to read there, or no mounting here: it may still be uploaded
        session = _begin(repository)
    if session is None:
        return 0
    upload = _Upload(repository, digest, size, source, session, chunk_size)
    try:
        upload.run()
    except BaseException as error:
        _cancel(repository, upload.session)
        if isinstance(error, _SourceFailed):
            raise error.error from None
        raise
    return size


def _begin(repository: Repository, query: str = "", also: tuple[str, ...] = (), budget: Budget | None = None) -> _Session | None:
    def attempt() -> _Session | None:
        response = expect(repository.send("POST", f"blobs/uploads/{query}", also=also), 202, *((201,) if query else ()), what=f"upload to {repository}")
        finish(response)
        if response.status_code == 201:
            return None
        location = _location(repository, response)
        if location is None:
            raise RegistryUnavailable(f"{repository}: the registry began an upload without saying where", transient=False)
        minimum = response.headers.get("oci-chunk-min-length", "")
        return _Session(location, int(minimum) if minimum.isascii() and minimum.isdigit() else 0)

    return (budget or repository.patience.start()).run(attempt)


def _begin_or_mount(repository: Repository, digest: Digest, origin: str) -> _Session | None:
    return _begin(repository, f"?{urlencode({'mount': digest, 'from': origin})}", (pull_scope(origin),))


def _location(repository: Repository, response: httpx.Response) -> httpx.URL | None:
    location = response.headers.get("location")
    return repository.connection.located(response.url, location) if location else None


def _cancel(repository: Repository, session: _Session) -> None:
    # a session that stays is the registry's to clean up
    with contextlib.suppress(DiffahError, Reauthorized):
        response = repository.send("DELETE", session.location)
        finish(response)
        if response.status_code == 416:
            # distribution wants the address that tells how much it got, which a broken request did not learn
            status = repository.send("GET", session.location)
            finish(status)
            if (location := _location(repository, status)) is not None:
                finish(repository.send("DELETE", location))


def _cautious(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """``chunks``, each after the next was read: the last goes out when the source has passed its own checks."""
    held = b""
    for chunk in chunks:
        if held:
            yield held
        held = chunk
    yield held


class _Upload:
    """One blob on its way, over as many requests and sessions as it takes."""

    def __init__(self, repository: Repository, digest: Digest, size: int, source: Source, session: _Session, chunk_size: int) -> None:
        self.repository, self.digest, self.size, self.source, self.session = repository, digest, size, source, session
        self.what = f"upload of blob {digest} to {repository}"
        self.chunked = size > chunk_size
        self.chunk_size = chunk_size
        self.offset = self.highest = 0
        self.budget = repository.patience.start()
        self.reauthorized_at: int | None = None

    def run(self) -> None:
        done = False
        while not done:
            self.budget.check()
            try:
                with _opened(self.source) as chunks:
                    self._send(chunks)
                return
            except Reauthorized:
                if self.reauthorized_at == self.offset:
                    raise AccessDenied(f"{self.what}: the registry goes on asking for another token") from None
                self.reauthorized_at = self.offset
            except NotFound as error:
                done = self._recover(RegistryUnavailable(f"{self.what}: the registry lost the upload", **error.details))
            except (NetworkError, RegistryUnavailable, RequestError) as error:
                done = self._recover(error)

    def _send(self, chunks: Iterator[bytes]) -> None:
        parts = _Parts(chunks, self.what, self.budget)
        if not self.chunked:
            self._commit(parts, self.size)
            return
        parts.skip(self.offset)
        while self.offset < self.size:
            self._send_chunk(parts)
        self._commit(parts, 0)

    def _send_chunk(self, parts: _Parts) -> None:
        size = min(max(self.chunk_size, self.session.chunk_minimum), self.size - self.offset)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(size),
            "Content-Range": f"{self.offset}-{self.offset + size - 1}",
        }
        response = expect(self.repository.send("PATCH", self.session.location, headers=headers, body=parts.next(size)), 202, 204, what=self.what)
        finish(response)
        self.session.location = _location(self.repository, response) or self.session.location
        reached = self.offset + size
        if _reached(response) not in (reached, None):
            raise RegistryUnavailable(f"{self.what}: the registry kept only a part of what was sent", range=response.headers["range"])
        self.offset = reached
        if reached > self.highest:
            # an upload that begins again and again does not get on
            self.highest = reached
            self.budget.renew()

    def _commit(self, parts: _Parts, size: int) -> None:
        location = str(self.session.location)
        url = httpx.URL(f"{location}{'&' if '?' in location else '?'}digest={quote(self.digest, safe='')}")
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        body = parts.next(size) if size else b""
        finish(expect(self.repository.send("PUT", url, headers=headers, body=body, answer_seconds=COMMIT_SECONDS), 201, 204, what=self.what))

    def _recover(self, error: DiffahError) -> bool:
        """Find out where to go on after ``error``; whether the blob is there after all.

        Raises: ``error``, if going on is hopeless.
        """
        status = error.details.get("status")
        if self.chunked and self.offset == 0 and status in (405, 501):
            self.chunked = False
        elif isinstance(error, (NetworkError, RegistryUnavailable)):
            self.budget.pause(error)
        elif status != 416:
            raise error
        else:
            self.budget.pause(RegistryUnavailable(error.message, **error.details))
        if self.repository.has_blob(self.digest, budget=self.budget):
            _cancel(self.repository, self.session)
            return True
        if not (self.chunked and self._ask_where()):
            _cancel(self.repository, self.session)
            session = _begin(self.repository, budget=self.budget)
            assert session is not None
            self.session, self.offset = session, 0
        return False

    def _ask_where(self) -> bool:
        """Whether the session goes on, and from where."""

        def attempt() -> httpx.Response:
            response = self.repository.send("GET", self.session.location)
            finish(response)
            return response if response.status_code < 500 else expect(response, 204, what=self.what)

        response = self.budget.run(attempt)
        reached = _reached(response) if response.status_code in (200, 202, 204) else None
        if reached is None or not 1 < reached <= self.size:
            return False
        self.session.location = _location(self.repository, response) or self.session.location
        self.offset = reached
        return True


def _reached(response: httpx.Response) -> int | None:
    """Bytes that a session has, from ``Range: 0-LAST``. One byte looks like none: registries write both as ``0-0``."""
    match = re.fullmatch(r"(?:bytes=)?0-([0-9]{1,19})", response.headers.get("range", "").strip(), re.ASCII)
    return int(match[1]) + 1 if match else None


@contextlib.contextmanager
def _opened(source: Source) -> Iterator[Iterator[bytes]]:
    """The source's bytes, its failures told apart from those of the request they travel in."""

    def guarded(chunks: Iterator[bytes]) -> Iterator[bytes]:
        try:
            yield from _cautious(chunks)
        except GeneratorExit:
            raise
        except BaseException as error:
            raise _SourceFailed(error) from error

    with contextlib.ExitStack() as stack:
        try:
            chunks = stack.enter_context(source())
        except BaseException as error:
            raise _SourceFailed(error) from error
        yield guarded(chunks)


class _Parts:
    """A stream cut into parts of known sizes."""

    def __init__(self, chunks: Iterator[bytes], what: str, budget: Budget) -> None:
        self._chunks, self._what, self._budget = chunks, what, budget
        self._rest = b""

    def skip(self, size: int) -> None:
        for _ in self.next(size)():
            pass

    def next(self, size: int) -> Callable[[], Iterator[bytes]]:
        """The next ``size`` bytes, as a request's body; to be opened once."""

        def part() -> Iterator[bytes]:
            left = size
            while left > 0:
                self._rest = self._rest or next(self._chunks, b"")
                if not self._rest:
                    raise _SourceFailed(SizeMismatch(f"{self._what}: its source ends {left} bytes early", missing=left))
                piece, self._rest = self._rest[:left], self._rest[left:]
                left -= len(piece)
                yield piece

        return lambda: self._budget.moving(part())
