"""Files on any fsspec filesystem: opened for reading, replaced atomically.

Local files are written under a temporary name beside their place, flushed to
disk and renamed. On object stores the upload is committed at the end and
discarded otherwise: leaving ``fs.open(..., "wb")`` by an exception would
commit half an object, so files are opened with ``autocommit=False``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import secrets
import shutil
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from prefect_diffah.engine.access import DEFAULT_ACCESS, Access
from prefect_diffah.engine.errors import AccessDenied, DiffahError, InvalidOptions, NoSpace, NotFound, StorageError, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fsspec import AbstractFileSystem

__all__ = ["CHUNK", "PART", "FileLocation", "chunks_of", "remove_abandoned", "require_room"]

CHUNK = 1024 * 1024
"""Bytes moved at a time."""
BLOCK = 8 * 1024 * 1024
"""Bytes of an object store's request: the part size of uploads, the read-ahead of reads."""
MARGIN = 16 * 1024 * 1024
"""Bytes that are left free on a disk."""
PART = ".part"
"""How the name of a file that is being written ends."""


class FileLocation:
    """One file or folder, by path or fsspec URL.

    Args:
        url: a local path, or a URL such as ``s3://bucket/key``.
        access: whose ``storage_options`` the filesystem is opened with.

    Every method raises NotFound, AccessDenied, NoSpace or StorageError instead
    of what the filesystem raises. Pickles as URL and access.
    """

    def __init__(self, url: str, access: Access = DEFAULT_ACCESS) -> None:
        self.url = url
        self.access = access

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url, self.access)

    def __str__(self) -> str:
        return self.url

    @cached_property
    def _opened(self) -> tuple[AbstractFileSystem, str]:
        from fsspec.core import url_to_fs

        try:
            with self.translated("open"):
                if "://" in self.url:
                    fs, path = url_to_fs(self.url, use_listings_cache=False, **self.access.options)
                else:
                    fs, path = url_to_fs(os.path.abspath(self.url))
        except (ValueError, ImportError) as error:
            action = "Check the URL; its filesystem may need a package of its own (s3: pip install 'prefect-diffah[s3]')."
            raise InvalidOptions(f"cannot open {self.url}: {error}", next_action=action) from error
        if not path.strip("/"):
            raise InvalidOptions(f"{self.url} names no file", next_action="Give a whole path.")
        return fs, path

    @property
    def fs(self) -> AbstractFileSystem:
        return self._opened[0]

    @property
    def path(self) -> str:
        """The path inside its filesystem."""
        return self._opened[1]

    @property
    def local(self) -> Path | None:
        """The local path, if this is one."""
        from fsspec.implementations.local import LocalFileSystem

        return Path(self.path) if isinstance(self.fs, LocalFileSystem) else None

    @property
    def is_null(self) -> bool:
        """Whether this is the null device: nothing shall be written."""
        return str(self.local) == os.devnull

    def child(self, name: str) -> FileLocation:
        """``name`` (relative, with ``/``) below this folder."""
        return FileLocation(f"{self.url.rstrip('/')}/{name}", self.access)

    def exists(self) -> bool:
        with self.translated("look for"):
            return bool(self.fs.exists(self.path))

    def is_dir(self) -> bool:
        with self.translated("look for"):
            return bool(self.fs.isdir(self.path))

    def size(self) -> int:
        """Bytes. Raises: NotFound."""
        with self.translated("read"):
            return int(self.fs.info(self.path)["size"])

    def open(self, *, sequential: bool = True) -> IO[bytes]:
        """Open for reading, seekable. Read it inside ``translated``, or let errors pass through ``chunks_of``.

        Args:
            sequential: whether it will mostly be read from start to end.
        """
        with self.translated("read"):
            if self.local is not None:
                return self.local.open("rb")
            cache = {"block_size": BLOCK, "cache_type": "readahead"} if sequential else {"block_size": 256 * 1024, "cache_type": "readahead"}
            return self.fs.open(self.path, "rb", **cache)  # type: ignore[no-any-return]

    def read(self, limit: int) -> bytes:
        """The whole file, at most ``limit`` bytes of it."""
        with self.translated("read"), self.open() as file:
            return file.read(limit)

    @contextlib.contextmanager
    def replacing(self, size: int | None = None) -> Iterator[IO[bytes]]:
        """Write the file anew; it appears whole when the block ends well, and not at all otherwise.

        Args:
            size: bytes that will be written, if known: room is checked first.
        """
        if self.is_null:
            with open(os.devnull, "wb") as null:
                yield null
        elif self.local is not None:
            with self._replacing_local(self.local, size) as file:
                yield file
        else:
            with self._replacing_object() as file:
                yield file

    @contextlib.contextmanager
    def _replacing_local(self, target: Path, size: int | None) -> Iterator[IO[bytes]]:
        prefix = f".{target.name[:200]}."
        temporary = target.with_name(f"{prefix}{secrets.token_hex(6)}{PART}")
        with self.translated("write"):
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned_beside(target.parent, prefix)
            require_room(target.parent, size or 0)
            try:
                with _created(temporary) as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                    temporary.replace(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            sync_folder(target.parent)

    @contextlib.contextmanager
    def _replacing_object(self) -> Iterator[IO[bytes]]:
        from fsspec.implementations.memory import MemoryFileSystem

        with self.translated("write"):
            if isinstance(self.fs, MemoryFileSystem):
                # it shows a file from when it is opened, whatever autocommit says
                buffer = io.BytesIO()
                yield buffer
                self.fs.pipe_file(self.path, buffer.getvalue())
                return
            file = self.fs.open(self.path, "wb", block_size=BLOCK, autocommit=False)
            try:
                yield file
                file.close()
                file.commit()
            except BaseException:
                # close() of a half-written upload would send its rest first
                with contextlib.suppress(AttributeError):
                    file.closed = True
                with contextlib.suppress(Exception):
                    file.discard()
                raise
            self.fs.invalidate_cache(self.path)

    def remove(self) -> None:
        """Delete the file; one that is not there is fine."""
        with self.translated("delete"), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path)

    @contextlib.contextmanager
    def translated(self, verb: str) -> Iterator[None]:
        """Turn what a filesystem raises into our errors, naming this place."""
        try:
            yield
        except DiffahError:
            raise
        except FileNotFoundError as error:
            if type(error.__cause__).__module__.startswith("aiohttp"):
                # fsspec says of a server that does not answer that the file is not there
                raise StorageError(f"cannot {verb} {self}: {error.__cause__}", path=str(self)) from error
            raise NotFound(f"cannot {verb} {self}: no such file or folder", next_action="Check the path.", path=str(self)) from error
        except IsADirectoryError as error:
            raise InvalidOptions(f"cannot {verb} {self}: it is a folder", path=str(self)) from error
        except (NotADirectoryError, FileExistsError) as error:
            if verb != "write":
                raise NotFound(f"cannot {verb} {self}: no such file or folder", next_action="Check the path.", path=str(self)) from error
            raise InvalidOptions(f"cannot {verb} {self}: a part of its path is a file", path=str(self)) from error
        except PermissionError as error:
            raise self._denied(verb, "permission denied") from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace(f"cannot {verb} {self}: {error.strerror}", path=str(self)) from error
            if error.errno == errno.ENAMETOOLONG:
                raise InvalidOptions(f"cannot {verb} {self}: the name is too long", path=str(self)) from error
            raise StorageError(f"cannot {verb} {self}: {error}", path=str(self)) from error
        except NotImplementedError as error:
            raise Unsupported(f"cannot {verb} {self}: {self.url.partition('://')[0]} cannot do that", next_action="Choose another place.") from error
        except Exception as error:
            # object stores raise their client's own classes
            if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"):
                raise self._denied(verb, str(error)) from error
            if type(error).__module__.partition(".")[0] in ("botocore", "aiobotocore", "aiohttp", "gcsfs", "azure", "asyncio"):
                raise StorageError(f"cannot {verb} {self}: {error}", path=str(self)) from error
            raise

    def _denied(self, verb: str, why: str) -> AccessDenied:
        return AccessDenied(f"cannot {verb} {self}: {why}", next_action="Check the permissions, or the store's credentials.", path=str(self))


def chunks_of(file: IO[bytes], size: int | None = None) -> Iterator[bytes]:
    """The rest of ``file``, or its next ``size`` bytes (fewer if it ends), in chunks."""
    left = size
    while left is None or left > 0:
        chunk = file.read(CHUNK if left is None else min(CHUNK, left))
        if not chunk:
            return
        if left is not None:
            left -= len(chunk)
        yield chunk


def require_room(folder: Path, size: int) -> None:
    """Raises: NoSpace when ``folder``'s disk has not ``size`` bytes and a margin."""
    free = shutil.disk_usage(folder).free
    if free < size + (MARGIN if size else 0):
        raise NoSpace(f"{folder} has {free} bytes free, {size} are needed", path=str(folder), free=free, needed=size)


def _created(path: Path) -> IO[bytes]:
    """A new file at ``path``, locked for as long as it is open.

    A lock ends with its process, so a file whose lock is free marks a dead writer.
    """
    while True:
        file = path.open("xb")
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        except OSError:
            return file  # a filesystem without locks: nobody can take this for abandoned
        if path.exists():
            return file
        # between creation and lock somebody did
        file.close()


def remove_abandoned(path: Path) -> None:
    """Remove an unfinished file, unless its writer lives or that cannot be told."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()


def _remove_abandoned_beside(folder: Path, prefix: str) -> None:
    for entry in folder.iterdir():
        if entry.name.startswith(prefix) and entry.name.endswith(PART):
            remove_abandoned(entry)


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut (POSIX; elsewhere nothing)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
