"""Files on any filesystem: read, replaced whole or not at all, and errors by our names."""

from __future__ import annotations

import errno
import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_diffah.engine.access import Access
from prefect_diffah.engine.errors import AccessDenied, DiffahError, InvalidOptions, NoSpace, NotFound, StorageError
from prefect_diffah.engine.storage import CHUNK, FileLocation, chunks_of, require_room


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> FileLocation:
    return FileLocation(f"{tmp_path}/folder/file" if request.param == "local" else f"memory://{uuid.uuid4().hex}/file")


def put(place: FileLocation, content: bytes) -> None:
    with place.replacing(len(content)) as file:
        file.write(content)


def half(place: FileLocation, fail: Callable[[], Any]) -> None:
    with place.replacing(10) as file:
        file.write(b"new")
        fail()


def raising(error: BaseException) -> Callable[[], None]:
    def fail(*_: Any) -> None:
        raise error

    return fail


def names_beside(place: FileLocation) -> list[str]:
    folder = place.path.rpartition("/")[0]
    return [name.rpartition("/")[2] for name in place.fs.ls(folder, detail=False)] if place.fs.exists(folder) else []


def test_written_and_read(place: FileLocation) -> None:
    assert not place.exists()
    put(place, b"content")
    assert place.exists()
    assert not place.is_dir()
    assert place.size() == 7
    assert place.read(100) == b"content"
    assert place.read(3) == b"con"
    with place.open() as file:
        file.seek(4)
        assert file.read() == b"ent"
    assert names_beside(place) == ["file"]


def test_replaced(place: FileLocation) -> None:
    put(place, b"old, and longer")
    put(place, b"new")
    assert place.read(100) == b"new"


def test_removed(place: FileLocation) -> None:
    put(place, b"x")
    place.remove()
    assert not place.exists()
    place.remove()


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("error", [ValueError("a fault"), KeyboardInterrupt(), NotFound("ours")], ids=lambda e: type(e).__name__)
def test_a_write_that_fails_changes_nothing(place: FileLocation, old: bytes | None, error: BaseException) -> None:
    if old is not None:
        put(place, old)
    with pytest.raises(type(error)):
        half(place, raising(error))
    assert place.exists() is (old is not None)
    assert names_beside(place) == ([] if old is None else ["file"])
    if old is not None:
        assert place.read(100) == old


def test_nothing_is_seen_before_the_end(place: FileLocation) -> None:
    put(place, b"old")
    with place.replacing() as file:
        file.write(b"new")
        file.flush()
        assert place.read(100) == b"old"
    assert place.read(100) == b"new"


def test_what_is_not_there(place: FileLocation) -> None:
    for do in (place.size, place.open, lambda: place.read(1)):
        with pytest.raises(NotFound, match="no such file"):
            do()
    assert place.is_dir() is False


def test_a_child(place: FileLocation) -> None:
    put(place.child("a/b"), b"x")
    assert place.is_dir()
    assert place.child("a").child("b").read(9) == b"x"


def test_it_travels(place: FileLocation) -> None:
    put(place, b"x")
    travelled = pickle.loads(pickle.dumps(FileLocation(place.url, Access(username="u"))))
    assert travelled.read(9) == b"x"
    assert travelled.access.username == "u"
    assert str(travelled) == place.url


class TestLocal:
    def test_paths_and_file_urls(self, tmp_path: Path) -> None:
        put(FileLocation(f"file://{tmp_path}/a"), b"x")
        assert FileLocation(str(tmp_path / "a")).local == tmp_path / "a"
        assert FileLocation(f"file://{tmp_path}/a").local == tmp_path / "a"
        assert FileLocation("memory://a").local is None

    def test_a_relative_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        put(FileLocation("a"), b"x")
        assert (tmp_path / "a").read_bytes() == b"x"

    def test_the_null_device(self) -> None:
        null = FileLocation("/dev/null")
        assert null.is_null
        put(null, b"content")
        assert Path("/dev/null").is_char_device()

    def test_killed_while_writing(self, tmp_path: Path) -> None:
        place = FileLocation(str(tmp_path / "file"))
        put(place, b"old")
        script = (
            "import sys, time\n"
            "from prefect_diffah.engine.storage import FileLocation\n"
            "with FileLocation(sys.argv[1]).replacing() as file:\n"
            "    file.write(b'new'); file.flush(); print('half', flush=True); time.sleep(600)\n"
        )
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "file")], stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"half\n"
            assert len(os.listdir(tmp_path)) == 2
            put(place, b"meanwhile")
            assert len(os.listdir(tmp_path)) == 2, "a living writer's file was taken for a dead one's"
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        assert place.read(100) == b"meanwhile"
        put(place, b"after")
        assert os.listdir(tmp_path) == ["file"]

    def test_room_is_looked_for_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 20 * 1024 * 1024})())
        place = FileLocation(str(tmp_path / "file"))
        put(place, b"small")
        with pytest.raises(NoSpace) as caught, place.replacing(5 * 1024 * 1024):
            pytest.fail("it began")
        assert (caught.value.details["free"], caught.value.details["needed"]) == (20 * 1024 * 1024, 5 * 1024 * 1024)
        assert place.read(100) == b"small"
        require_room(tmp_path, 0)

    @pytest.mark.parametrize(
        ("number", "error"),
        [(errno.ENOSPC, NoSpace), (errno.EDQUOT, NoSpace), (errno.EIO, StorageError), (errno.EACCES, AccessDenied), (errno.EROFS, StorageError)],
    )
    @pytest.mark.parametrize("function", ["fsync", "write"])
    def test_what_the_system_says(self, tmp_path: Path, function: str, number: int, error: type[DiffahError], monkeypatch: pytest.MonkeyPatch) -> None:
        fail = raising(OSError(number, os.strerror(number)))
        place = FileLocation(str(tmp_path / "file"))
        put(place, b"old")
        if function == "fsync":
            monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(error, match=str(place)) as caught:
            half(place, fail if function == "write" else lambda: None)
        monkeypatch.undo()
        assert isinstance(caught.value.__cause__, OSError)
        assert os.listdir(tmp_path) == ["file"]
        assert place.read(100) == b"old"

    def test_a_folder_in_its_place(self, tmp_path: Path) -> None:
        place = FileLocation(str(tmp_path))
        with pytest.raises(InvalidOptions, match="folder"):
            place.open()
        (tmp_path / "inside").mkdir()
        (tmp_path / "inside" / "x").touch()
        with pytest.raises(DiffahError):
            put(place.child("inside"), b"x")
        assert os.listdir(tmp_path) == ["inside"]

    def test_a_file_as_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(NotFound):
            FileLocation(str(tmp_path / "file")).child("x").size()


@pytest.mark.parametrize("url", ["nosuchscheme://a/b", "http+nosuch://x"])
def test_a_filesystem_that_is_not_known(url: str) -> None:
    with pytest.raises(InvalidOptions, match="cannot open"):
        FileLocation(url).exists()


def test_faults_of_a_client_are_translated(place: FileLocation) -> None:
    fault = type("ClientError", (Exception,), {"__module__": "botocore.exceptions"})
    with pytest.raises(StorageError), place.translated("read"):
        raise fault("SlowDown")
    with pytest.raises(ZeroDivisionError), place.translated("read"):
        raise ZeroDivisionError


class TestObjectStore:
    """Against a filesystem that behaves as s3fs does: an upload is only there when it is committed."""

    @pytest.fixture
    def uploads(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[FileLocation, dict[str, Any]]]:
        from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

        seen: dict[str, Any] = {"parts": [], "committed": False, "discarded": False, "autocommit": None}

        class Upload(AbstractBufferedFile):  # type: ignore[misc]
            def _initiate_upload(self) -> None:
                seen["autocommit"] = self.autocommit

            def _upload_chunk(self, final: bool = False) -> bool:
                seen["parts"].append(self.buffer.getvalue())
                return True

            def commit(self) -> None:
                seen["committed"] = True

            def discard(self) -> None:
                seen["discarded"] = True

        class Store(AbstractFileSystem):  # type: ignore[misc]
            def _open(self, path: str, mode: str = "rb", **options: Any) -> Upload:
                return Upload(self, path, mode, **options)

        location = FileLocation("memory://unused")
        monkeypatch.setitem(location.__dict__, "_opened", (Store(skip_instance_cache=True), "bucket/key"))
        return lambda: (location, seen)

    def test_committed_at_the_end(self, uploads: Callable[[], tuple[FileLocation, dict[str, Any]]]) -> None:
        location, seen = uploads()
        put(location, b"content")
        assert seen == {"parts": [b"content"], "committed": True, "discarded": False, "autocommit": False}

    def test_discarded_when_it_fails(self, uploads: Callable[[], tuple[FileLocation, dict[str, Any]]]) -> None:
        location, seen = uploads()
        with pytest.raises(ValueError, match="a fault"):
            half(location, raising(ValueError("a fault")))
        assert (seen["committed"], seen["discarded"], seen["parts"]) == (False, True, [])


@given(st.binary(max_size=50), st.one_of(st.none(), st.integers(0, 60)), st.integers(0, 50))
def test_chunks(content: bytes, size: int | None, start: int) -> None:
    file = io.BytesIO(content)
    file.seek(start)
    assert b"".join(chunks_of(file, size)) == content[start:][: size if size is not None else None]


def test_chunks_are_bounded() -> None:
    assert [len(chunk) for chunk in chunks_of(io.BytesIO(bytes(2 * CHUNK + 5)))] == [CHUNK, CHUNK, 5]
    assert [len(chunk) for chunk in chunks_of(io.BytesIO(bytes(2 * CHUNK)), CHUNK + 1)] == [CHUNK, 1]
