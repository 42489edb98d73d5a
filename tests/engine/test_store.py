"""The store: blobs whole or not at all, shared by any number of writers; records as good as their blobs."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_diffah.engine.errors import AccessDenied, ContentError, DigestMismatch, NoSpace, NotFound, SizeMismatch, StorageError
from prefect_diffah.engine.model import Model
from prefect_diffah.engine.oci import Descriptor, Digest
from prefect_diffah.engine.store import Store, default_store, record_key, record_of, recorded


def described(content: bytes, algorithm: str = "sha256") -> Descriptor:
    return Descriptor(media_type="application/octet-stream", digest=Digest.of(content, algorithm), size=len(content))


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield Store(str(tmp_path / "store"))
        return
    folder = f"/{tmp_path.name}-{os.getpid()}"
    yield Store(f"memory:/{folder}")
    memory = fsspec.filesystem("memory")
    if memory.exists(folder):
        memory.rm(folder, recursive=True)


def names_in(store: Store) -> list[str]:
    root = store.root.path
    return sorted(path.removeprefix(root) for path in store.root.fs.find(root)) if store.root.exists() else []


def path_of(store: Store, descriptor: Descriptor) -> str:
    return f"{store.root.path}/blobs/{descriptor.digest.algorithm}/{descriptor.digest.hex[:2]}/{descriptor.digest.hex}"


def overwrite(store: Store, descriptor: Descriptor, content: bytes) -> None:
    store.root.fs.pipe_file(path_of(store, descriptor), content)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("content", [b"", b"x", bytes(3_000_000)])
def test_what_is_put_is_there(store: Store, algorithm: str, content: bytes) -> None:
    blob = described(content, algorithm)
    assert not store.has(blob)
    with pytest.raises(NotFound), store.stream(blob):
        pass
    store.put(blob, [content[:5], content[5:]])
    assert store.has(blob)
    assert store.holds(blob)
    with store.stream(blob) as chunks:
        assert b"".join(chunks) == content
    assert names_in(store) == [path_of(store, blob).removeprefix(store.root.path)]


@pytest.mark.parametrize(("chunks", "error"), [([b"abd"], DigestMismatch), ([b"ab"], SizeMismatch), ([b"abc", b"d"], SizeMismatch), ([], SizeMismatch)])
def test_what_is_something_else_is_not_kept(store: Store, chunks: list[bytes], error: type[Exception]) -> None:
    with pytest.raises(error):
        store.put(described(b"abc"), chunks)
    assert names_in(store) == []


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), NotFound("gone"), OSError(28, "No space left on device"), MemoryError()])
def test_a_writer_that_fails_leaves_nothing(store: Store, failure: BaseException) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"ab"
        raise failure

    with pytest.raises(NoSpace if isinstance(failure, OSError) else type(failure)):
        store.put(described(b"abc"), chunks())
    assert names_in(store) == []
    store.put(described(b"abc"), [b"abc"])
    assert len(names_in(store)) == 1


def test_a_blob_is_not_seen_before_it_is_whole(store: Store) -> None:
    seen = []

    def chunks() -> Iterator[bytes]:
        for piece in (b"a", b"b", b"c"):
            seen.append(store.has(described(b"abc")))
            yield piece

    store.put(described(b"abc"), chunks())
    assert seen == [False, False, False]
    assert store.has(described(b"abc"))


def test_a_small_blob_that_is_there_is_left_alone(store: Store) -> None:
    store.put_bytes(described(b"abc"), b"abc")
    store.put_bytes(described(b"abc"), b"not looked at")
    assert store.read(described(b"abc"), 3) == b"abc"
    with pytest.raises(SizeMismatch):
        store.read(described(b"abc"), 2)


@pytest.mark.parametrize("damage", [b"abd", b"ab", b"abcd", b""])
def test_a_damaged_blob_is_noticed_removed_and_made_anew(store: Store, damage: bytes) -> None:
    blob = described(b"abc")
    store.put(blob, [b"abc"])
    overwrite(store, blob, damage)
    assert store.has(blob) == (len(damage) == 3)
    with pytest.raises(StorageError, match="was damaged and has been removed") as caught, store.stream(blob) as chunks:
        list(chunks)
    assert not caught.value.transient
    assert caught.value.details["digest"] == blob.digest
    assert not store.has(blob)
    store.put(blob, [b"abc"])
    assert store.read(blob, 10) == b"abc"


def test_what_a_reader_finds_fault_with_is_not_blamed_on_the_store(store: Store) -> None:
    """A registry that calls what it was sent another thing must not cost the store its good copy."""
    blob = described(b"abc")
    store.put(blob, [b"abc"])

    def send() -> None:
        with store.stream(blob) as chunks:
            list(chunks)
            raise DigestMismatch("the registry stored something else", digest=blob.digest)

    with pytest.raises(ContentError) as caught:
        send()
    assert caught.value.message == "the registry stored something else"
    assert store.has(blob)


def test_it_is_small_and_travels(store: Store) -> None:
    other = pickle.loads(pickle.dumps(store))
    assert other.url == store.url
    assert len(pickle.dumps(store)) < 1000
    assert store.url in repr(store)


class Made(Model):
    """What the steps below make."""

    blob: Descriptor

    @property
    def stored_blobs(self) -> tuple[Descriptor, ...]:
        return (self.blob,)


class TestRecords:
    @pytest.fixture
    def made(self) -> list[str]:
        return []

    @pytest.fixture
    def step(self, made: list[str]) -> Any:
        @recorded(1, Made, lambda item: {"item": item})
        def shout(item: str, store: Store, mark: str = "!") -> Made:
            made.append(item)
            content = f"{item}{mark}".encode()
            store.put(described(content), [content])
            return Made(blob=described(content))

        return shout

    def test_a_step_is_done_once(self, store: Store, step: Any, made: list[str]) -> None:
        assert step("a", store) == step("a", store) == Made(blob=described(b"a!"))
        step("b", store)
        assert made == ["a", "b"]

    def test_and_again_when_its_blob_is_gone(self, store: Store, step: Any, made: list[str]) -> None:
        blob = step("a", store).blob
        store.root.fs.rm_file(path_of(store, blob))
        assert store.get_record(record_of(step, "a") or "") is None
        assert step("a", store).blob == blob
        assert made == ["a", "a"]
        assert store.has(blob)

    def test_and_again_when_its_blob_was_cut_off(self, store: Store, step: Any, made: list[str]) -> None:
        overwrite(store, step("a", store).blob, b"a")
        step("a", store)
        assert made == ["a", "a"]

    @settings(max_examples=40, deadline=None)
    @given(
        content=st.sampled_from([b"", b"{", b"[]", b"null", b'{"value":{}}', b'{"blobs":{},"value":[]}', b'{"blobs":[{}],"value":{}}']) | st.binary(max_size=30)
    )
    def test_and_again_when_its_record_is_damaged(self, tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
        store = Store(str(tmp_path_factory.mktemp("store")))
        made = []

        @recorded(1, Made, lambda item: {"item": item})
        def whisper(item: str, store: Store) -> Made:
            made.append(item)
            store.put(described(b"psst"), [b"psst"])
            return Made(blob=described(b"psst"))

        whisper("a", store)
        store.root.child(f"records/{record_of(whisper, 'a')}.json").local.write_bytes(content)  # type: ignore[union-attr]
        assert whisper("a", store) == whisper("a", store)
        assert made == ["a", "a"]

    def test_and_again_when_its_record_is_of_another_shape(self, store: Store, step: Any, made: list[str]) -> None:
        blob = step("a", store).blob
        store.put_record(record_of(step, "a") or "", {"something": "else"}, [blob])
        assert step("a", store).blob == blob
        assert made == ["a", "a"]

    def test_keys_tell_step_version_and_inputs_apart(self) -> None:
        keys = {record_key(step, version, inputs) for step in ("a", "b") for version in (1, 2) for inputs in ({}, {"x": 1}, {"x": "1"}, {"x": 1, "y": 2})}
        assert len(keys) == 16
        assert record_key("a", 1, {"x": 1, "y": 2}) == record_key("a", 1, {"y": 2, "x": 1})
        assert record_of(len, "a") is None


class TestPrune:
    @pytest.fixture
    def aged(self, store: Store) -> list[Descriptor]:
        """Five blobs of ten bytes, the oldest first, and a record."""
        blobs = [described(f"blob {number:05}".encode()) for number in range(5)]
        for number, blob in enumerate(reversed(blobs)):
            # written in the other order, so that age cannot be told by the order of making
            store.put(blob, [f"blob {4 - number:05}".encode()])
        for number, blob in enumerate(blobs):
            moment = time.time() - 1000 + number
            if store.root.local is not None:
                os.utime(path_of(store, blob), (moment, moment))
            else:
                from datetime import UTC, datetime

                store.root.fs.store[path_of(store, blob)].created = datetime.fromtimestamp(moment, UTC)
        store.put_record("step/key", {"x": 1}, [blobs[0]])
        return blobs

    @pytest.mark.parametrize(("most", "left"), [(0, 0), (9, 0), (10, 1), (35, 3), (49, 4), (50, 5), (10**9, 5)])
    def test_the_oldest_go_until_the_rest_fits(self, store: Store, aged: list[Descriptor], most: int, left: int) -> None:
        dry = store.prune(most, dry_run=True)
        assert all(map(store.has, aged))
        pruned = store.prune(most)
        assert pruned == dry
        assert [store.has(blob) for blob in aged] == [False] * (5 - left) + [True] * left
        assert (pruned.removed, pruned.removed_bytes, pruned.left, pruned.left_bytes) == (5 - left, 10 * (5 - left), left, 10 * left)

    def test_a_record_goes_with_its_blob(self, store: Store, aged: list[Descriptor]) -> None:
        assert store.get_record("step/key") == {"x": 1}
        store.prune(40)
        assert store.get_record("step/key") is None

    def test_an_empty_store_is_pruned(self, store: Store) -> None:
        assert store.prune(0).removed == 0

    def test_only_blobs_are_blobs(self, tmp_path: Path) -> None:
        store = Store(str(tmp_path / "blobs" / "store"))
        store.put_record("step/key", {"x": 1}, [])
        assert store.prune(0).removed == 0
        assert store.get_record("step/key") == {"x": 1}

    def test_unfinished_files_go_when_old_and_their_writer_is_dead(self, tmp_path: Path) -> None:
        store = Store(str(tmp_path))
        folder = tmp_path / "blobs" / "sha256" / "ab"
        folder.mkdir(parents=True)
        day = 24 * 3600
        for name, age in (("new", 0), ("old", 2 * day), ("alive", 2 * day)):
            (folder / f".x.{name}.part").write_bytes(b"half")
            os.utime(folder / f".x.{name}.part", (time.time() - age,) * 2)
        with (folder / ".x.alive.part").open("rb") as writer:
            fcntl.flock(writer.fileno(), fcntl.LOCK_EX)
            store.prune(10**9, dry_run=True)
            assert len(list(folder.iterdir())) == 3
            store.prune(10**9)
            assert sorted(path.name for path in folder.iterdir()) == [".x.alive.part", ".x.new.part"]
        store.prune(10**9)
        assert [path.name for path in folder.iterdir()] == [".x.new.part"]


def put_over_and_over(url: str, number: int) -> None:
    store = Store(url)
    for turn in range(25):
        content = f"content {turn}".encode()
        store.put(described(content), [content[:3], content[3:]])
        assert store.read(described(content), 100) == content


class TestConcurrentWriters:
    def test_threads(self, store: Store) -> None:
        failures: list[BaseException] = []
        barrier = threading.Barrier(6)

        def work(number: int) -> None:
            try:
                barrier.wait()
                put_over_and_over(store.url, number)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert len(names_in(store)) == 25

    def test_processes(self, tmp_path: Path) -> None:
        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=put_over_and_over, args=(str(tmp_path), number)) for number in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0, 0]
        assert len(names_in(Store(str(tmp_path)))) == 25

    def test_what_a_killed_writer_left_goes_with_the_next(self, tmp_path: Path) -> None:
        blob = described(b"abc")

        def die() -> None:
            def chunks() -> Iterator[bytes]:
                yield b"a"
                os._exit(9)

            Store(str(tmp_path)).put(blob, chunks())

        process = multiprocessing.get_context("fork").Process(target=die)
        process.start()
        process.join()
        store = Store(str(tmp_path))
        assert [name.endswith(".part") for name in names_in(store)] == [True]
        store.put(blob, [b"abc"])
        assert names_in(store) == [f"/blobs/sha256/{blob.digest.hex[:2]}/{blob.digest.hex}"]

    def test_what_a_living_writer_has_begun_stays(self, tmp_path: Path) -> None:
        store, blob = Store(str(tmp_path)), described(b"abc")

        def chunks() -> Iterator[bytes]:
            yield b"a"
            Store(str(tmp_path)).put(blob, [b"abc"])
            assert len(names_in(store)) == 2
            yield b"bc"

        store.put(blob, chunks())
        assert len(names_in(store)) == 1

    def test_a_file_taken_for_abandoned_before_it_was_locked_is_begun_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another writer may look just between creation and lock."""
        store, blob = Store(str(tmp_path)), described(b"abc")
        lock, meddled = fcntl.flock, []

        def flock(handle: int, operation: int) -> None:
            if not meddled:
                meddled.extend(tmp_path.rglob("*.part"))
                for path in list(meddled):
                    path.unlink()
            lock(handle, operation)

        monkeypatch.setattr(fcntl, "flock", flock)
        store.put(blob, [b"abc"])
        assert len(meddled) == 1
        assert names_in(store) == [f"/blobs/sha256/{blob.digest.hex[:2]}/{blob.digest.hex}"]

    def test_without_locks_nothing_is_taken_for_abandoned(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def flock(handle: int, operation: int) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(fcntl, "flock", flock)
        self.test_what_a_living_writer_has_begun_stays(tmp_path)


def test_the_default_is_the_environments_or_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_DIFFAH_STORE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_store() == "/home/somebody/.cache/prefect-diffah"
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert default_store() == "/cache/prefect-diffah"
    monkeypatch.setenv("PREFECT_DIFFAH_STORE", "s3://bucket/store")
    assert default_store() == "s3://bucket/store"


def test_a_store_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(AccessDenied):
        Store(str(tmp_path / "store")).put(described(b"abc"), [b"abc"])


def test_prune_removes_the_records_of_blobs_that_went(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    kept, gone = (Descriptor(media_type="x", digest=Digest.of(data), size=len(data)) for data in (b"kept", b"gone!"))
    store.put(gone, [b"gone!"])
    os.utime(store._blob(gone.digest).path, (0, 0))
    store.put(kept, [b"kept"])
    for key, blob in (("step/1", kept), ("step/2", gone)):
        store.put_record(key, {"a": 1}, [blob])
    assert store.prune(kept.size, dry_run=True).removed == 1
    assert len(list((tmp_path / "store" / "records").rglob("*.json"))) == 2
    assert store.prune(kept.size).removed == 1
    assert store.get_record("step/1") == {"a": 1}
    assert [path.stem for path in (tmp_path / "store" / "records").rglob("*.json")] == ["1"]
