"""The compositions and their runners: what passes through a runner, and how a failure ends the rest."""

from __future__ import annotations

import json
import pickle
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_diffah.engine.errors import BaselineIncomplete, DiffahError, DigestMismatch, Interrupted, NetworkError
from prefect_diffah.engine.images import Place
from prefect_diffah.engine.oci import Reference
from prefect_diffah.engine.pipeline import Direct, ExportJob, ImportJob, Runner, export_delta, import_delta, inspect_delta, verify_delta
from prefect_diffah.engine.progress import listening, transfer
from prefect_diffah.engine.store import Store, record_of
from prefect_diffah.engine.testing.images import image_of, random_layer, write_layout

LIMIT = 64 * 1024
LAYERS = 12


def place(text: str) -> Place:
    return Place(reference=Reference.parse(text))


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    """The fields of an export of a dozen layers, half of which travel."""
    layers = [random_layer(number, 20_000) for number in range(LAYERS)]
    changed = [random_layer(f"new {number}", 20_000) for number in range(LAYERS // 2)]
    write_layout(tmp_path / "images", {"v1": image_of(layers), "v2": image_of(layers[: LAYERS // 2] + changed)})
    return {
        "target": place(f"oci:{tmp_path}/images:v2"),
        "baselines": (place(f"oci:{tmp_path}/images:v1"),),
        "output": place(f"oci-archive:{tmp_path}/delta.tar"),
        "store": Store(str(tmp_path / "store")),
    }


def imported(job: dict[str, Any], tmp_path: Path, **changes: Any) -> ImportJob:
    fields = {
        "delta": job["output"],
        "baselines": job["baselines"],
        "output": place(f"docker-archive:{tmp_path}/out.tar"),
        "store": Store(str(tmp_path / "other")),
    }
    return ImportJob(**fields | changes)


class Parcels:
    """A runner as a far one would be: everything through it is pickled, steps by their names, and results are small JSON."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def call(self, step: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        self.steps.append(step.__name__)
        return self._run(step, *args, **kwargs)

    def map(self, step: Callable[..., Any], items: Iterable[Any], /, *args: Any, **kwargs: Any) -> list[Any]:
        self.steps.append(f"{step.__name__}*")
        return [self._run(step, item, *args, **kwargs) for item in items]

    def _run(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        far, arguments, options = sent((step, args, kwargs))
        try:
            result = far(*arguments, **options)
        except DiffahError as error:
            raise sent(error) from None
        assert len(json.dumps(as_json(result))) < LIMIT
        return sent(result)


def sent(value: Any) -> Any:
    raw = pickle.dumps(value)
    assert len(raw) < LIMIT
    return pickle.loads(raw)


def as_json(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    return value


def test_what_passes_through_a_runner_is_small_and_picklable(job: dict[str, Any], tmp_path: Path) -> None:
    far = Parcels()
    report = export_delta(ExportJob(**job), far)
    assert far.steps == ["fetch_manifest", "fetch_manifest*", "read_manifest_file*", "compute_diff", "check_delta_output", "pack_blobs*", "write_archive"]
    assert report.status == "written"
    far = Parcels()
    back = import_delta(imported(job, tmp_path), far)
    assert far.steps == ["read_delta", "check_output", "verify_baseline", "plan_import", "reconstruct*", "publish"]
    assert back.digest == report.summary.target
    assert (back.rebuilt, back.held, back.status) == (LAYERS + 1, 0, "written")
    for each in (report, back):
        assert type(each).model_validate_json(each.model_dump_json()) == each


def test_it_is_the_same_whoever_runs_it(job: dict[str, Any], tmp_path: Path) -> None:
    archives = set()
    runners: list[Runner] = [Direct(1), Direct(8), Parcels()]
    for number, runner in enumerate(runners):
        output = tmp_path / f"delta {number}.tar"
        export_delta(ExportJob(**job | {"output": place(f"oci-archive:{output}"), "store": Store(str(tmp_path / f"store {number}"))}), runner)
        archives.add(output.read_bytes())
    assert len(archives) == 1


def test_failures_cross_the_border_whole(job: dict[str, Any], tmp_path: Path) -> None:
    export_delta(ExportJob(**job), Direct())
    with pytest.raises(BaselineIncomplete) as caught:
        import_delta(imported(job, tmp_path, baselines=()), Parcels())
    assert len(caught.value.details["missing"]) == LAYERS // 2


def test_a_second_run_goes_on_from_the_records(job: dict[str, Any], tmp_path: Path) -> None:
    """Nothing whose record is in the store is done again."""
    store: Store = job["store"]
    made: list[str] = []

    class Counting(Direct):
        def map(self, step: Callable[..., Any], items: Iterable[Any], /, *args: Any, **kwargs: Any) -> list[Any]:
            items = list(items)
            made.extend(key for item in items if (key := record_of(step, item)) and args[0].get_record(key) is None)
            return super().map(step, items, *args, **kwargs)

    export_delta(ExportJob(**job), Counting(2))
    travelling = LAYERS // 2 + 2
    assert len(made) == travelling
    (tmp_path / "delta.tar").unlink()
    export_delta(ExportJob(**job), Counting(2))
    assert len(made) == travelling
    gone = next(path for path in (tmp_path / "store" / "blobs").rglob("*") if path.is_file() and path.stat().st_size > 10_000)
    gone.unlink()
    (tmp_path / "delta.tar").unlink()
    export_delta(ExportJob(**job), Counting(2))
    assert len(made) == travelling + 1
    assert store.prune(10**9).removed == 0


class Stall(Exception):
    """A failure that is none of ours."""


class TestDirect:
    def test_results_come_in_order(self) -> None:
        def slow_at_first(number: int) -> int:
            time.sleep(0.02 if number == 0 else 0)
            return number * 10

        assert Direct(3).map(slow_at_first, range(10)) == [number * 10 for number in range(10)]
        assert Direct(3).map(slow_at_first, []) == []

    def test_arguments_reach_every_item(self) -> None:
        def step(item: int, factor: int, *, plus: int) -> int:
            return item * factor + plus

        assert Direct(2).map(step, [1, 2], 10, plus=5) == [15, 25]
        assert Direct(2).call(step, 1, 10, plus=5) == 15

    @pytest.mark.parametrize("workers", [1, 2, 5])
    def test_no_more_workers_than_allowed(self, workers: int) -> None:
        lock, running, most = threading.Lock(), 0, 0
        everyone = threading.Barrier(workers)

        def step(item: int) -> None:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            everyone.wait(10)  # passes only if all workers are there at once
            with lock:
                running -= 1

        Direct(workers).map(step, range(workers * 4))
        assert most == workers

    @pytest.mark.parametrize("failure", [NetworkError("reset"), Stall("oh"), KeyboardInterrupt()])
    def test_the_first_failure_is_raised_and_stops_the_rest(self, failure: BaseException) -> None:
        begun, ended, streaming = [], [], threading.Barrier(3)

        def long() -> Iterator[bytes]:
            for _ in range(5000):
                yield b"x"
                time.sleep(0.001)

        def step(item: int) -> None:
            begun.append(item)
            if item == 0:
                streaming.wait(10)
                raise failure
            chunks = transfer(f"item {item}", 1, long())
            try:
                next(chunks)
                if item < 3:
                    streaming.wait(10)
                for _ in chunks:
                    pass
            except BaseException as error:
                ended.append(type(error))
                raise

        with pytest.raises(type(failure)) as caught:
            Direct(3).map(step, range(50))
        assert caught.value is failure
        if not isinstance(failure, Exception):  # an interruption waits for nobody
            for thread in threading.enumerate():
                if thread.name.startswith("step"):
                    thread.join(10)
        assert len(ended) >= 2
        assert set(ended) == {Interrupted}
        assert sorted(begun[:3]) == [0, 1, 2]
        assert len(begun) < 50

    def test_steps_see_the_callers_context(self) -> None:
        heard = []

        class Listener:
            def start(self, label: str, total: int) -> Any:
                heard.append(label)
                return self

            def advance(self, amount: int) -> None: ...
            def finish(self, *, complete: bool) -> None: ...

        def step(item: str) -> None:
            for _ in transfer(item, 1, [b"x"]):
                pass

        with listening(Listener()):
            Direct(2).map(step, ["a", "b", "c"])
        assert sorted(heard) == ["a", "b", "c"]


def test_one_damaged_layer_ends_the_export_and_leaves_nothing(job: dict[str, Any], tmp_path: Path) -> None:
    blobs = tmp_path / "images" / "blobs" / "sha256"
    manifest = json.loads((tmp_path / "images" / "index.json").read_text())["manifests"][1]["digest"].removeprefix("sha256:")
    layer = json.loads((blobs / manifest).read_text())["layers"][-1]["digest"].removeprefix("sha256:")
    content = (blobs / layer).read_bytes()
    (blobs / layer).write_bytes(b"\0" + content[1:])
    for workers in (1, 4):
        with pytest.raises(DigestMismatch):
            export_delta(ExportJob(**job), Direct(workers))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "store"]
        assert not [path for path in (tmp_path / "store").rglob("*") if path.name.endswith(".part") or path.name == layer]


def test_progress_tells_of_every_byte(job: dict[str, Any], tmp_path: Path) -> None:
    told: dict[str, list[int]] = {}
    done: list[bool] = []

    class Item:
        def __init__(self, label: str) -> None:
            self.label = label

        def advance(self, amount: int) -> None:
            told[self.label][1] += amount

        def finish(self, *, complete: bool) -> None:
            done.append(complete)

    class Listener:
        def start(self, label: str, total: int) -> Item:
            told[label] = [total, 0]
            return Item(label)

    with listening(Listener()):
        report = export_delta(ExportJob(**job), Direct(2))
        import_delta(imported(job, tmp_path), Direct(2))
    assert all(done)
    assert all(total == amount for total, amount in told.values())
    assert told["archive delta.tar"][0] == report.size
    assert len([label for label in told if label.startswith("layer ")]) == LAYERS


def test_a_blob_that_the_store_has_is_not_read_again(job: dict[str, Any], tmp_path: Path) -> None:
    read: list[str] = []

    class Listener:
        def start(self, label: str, total: int) -> Any:
            read.append(label)
            return self

        def advance(self, amount: int) -> None: ...
        def finish(self, *, complete: bool) -> None: ...

    export_delta(ExportJob(**job), Direct(2))
    with listening(Listener()):
        import_delta(imported(job, tmp_path, store=job["store"]), Direct(2))
    # the layers that travelled are there from the export
    assert len([label for label in read if label.startswith("layer ")]) == LAYERS // 2


def test_a_memory_store_serves_as_well(job: dict[str, Any], tmp_path: Path) -> None:
    import fsspec

    store = Store(f"memory:///{tmp_path.name}-pipeline")
    try:
        report = export_delta(ExportJob(**job | {"store": store}), Direct(2))
        assert import_delta(imported(job, tmp_path, store=store), Direct(2)).digest == report.summary.target
    finally:
        fsspec.filesystem("memory").rm(f"/{tmp_path.name}-pipeline", recursive=True)


def test_an_archive_on_another_filesystem(job: dict[str, Any], tmp_path: Path) -> None:
    import fsspec

    local = export_delta(ExportJob(**job), Direct(2))
    url = f"memory:///{tmp_path.name}-archives/delta.tar"
    output = Place(reference=Reference.of_file(url, "oci-archive"))
    memory = fsspec.filesystem("memory")
    try:
        report = export_delta(ExportJob(**job | {"output": output}), Direct(2))
        assert memory.cat_file(f"/{tmp_path.name}-archives/delta.tar") == (tmp_path / "delta.tar").read_bytes()
        assert (report.delta, report.output) == (local.delta, url)
        assert export_delta(ExportJob(**job | {"output": output}), Direct(2)).status == "unchanged"
        assert verify_delta(output, list(job["baselines"])).canonical
        assert inspect_delta(output) == local.summary
        assert import_delta(imported(job, tmp_path, delta=output), Direct(2)).digest == report.summary.target
    finally:
        memory.rm(f"/{tmp_path.name}-archives", recursive=True)
