"""The flows: the same bytes as a direct run, records instead of work, retries, artifacts, and errors of their own words."""

from __future__ import annotations

import inspect
import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.results import get_default_result_storage

from prefect_diffah import AccessRequest, DeltaStore, ExportRequest, ImportRequest, RegistryCredentials, export_delta, import_delta
from prefect_diffah.engine import pipeline
from prefect_diffah.engine.errors import BaselineIncomplete, NotFound, StorageError
from prefect_diffah.engine.store import Store
from prefect_diffah.engine.testing.images import GeneratedImage, next_version, random_image, write_layout
from prefect_diffah.engine.testing.registry import InProcessRegistry
from prefect_diffah.tasks.steps import TASKS

pytestmark = pytest.mark.usefixtures("prefect_server")


class Case:
    """A pair of images, a store of its own, and requests about them."""

    def __init__(self, folder: Path, seed: str) -> None:
        self.folder = folder
        self.v1: GeneratedImage = random_image(seed, layer_size=5_000)
        self.v2: GeneratedImage = next_version(self.v1, f"{seed} 2", changed=2)
        self.layout = write_layout(folder / "images", {"v1": self.v1, "v2": self.v2})
        self.store = folder / "store"

    def export(self, **changes: Any) -> ExportRequest:
        fields = {
            "target": f"oci:{self.layout}:v2",
            "baselines": (f"oci:{self.layout}:v1",),
            "output": str(self.folder / "delta.tar"),
            "store": str(self.store),
        }
        return ExportRequest(**fields | changes)

    def import_(self, **changes: Any) -> ImportRequest:
        fields = {
            "delta": str(self.folder / "delta.tar"),
            "baselines": (f"oci:{self.layout}:v1",),
            "output": str(self.folder / "app.tar"),
            "store": str(self.folder / "receiver"),
        }
        return ImportRequest(**fields | changes)


@pytest.fixture
def case(tmp_path: Path, request: pytest.FixtureRequest) -> Case:
    return Case(tmp_path, request.node.name)


def latest_run() -> FlowRun:
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]


def task_states(run: FlowRun) -> list[tuple[str, str]]:
    """Name and state of each task run of ``run``."""
    with get_client(sync_client=True) as client:
        runs = client.read_task_runs(task_run_filter=TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[run.id])))
    return [(task_run.name, task_run.state_name or "") for task_run in runs]


def test_flow_and_direct_run_make_the_same_bytes(case, tmp_path):
    report = export_delta(case.export())
    direct = pipeline.export_delta(case.export(output=str(tmp_path / "direct.tar"), store=str(tmp_path / "other")).resolve(), pipeline.Direct())
    assert (tmp_path / "delta.tar").read_bytes() == (tmp_path / "direct.tar").read_bytes()
    assert report.summary == direct.summary
    imported = import_delta(case.import_())
    pipeline.import_delta(case.import_(output=str(tmp_path / "direct-app.tar"), store=str(tmp_path / "third")).resolve(), pipeline.Direct())
    assert imported.digest == case.v2.root.digest
    assert (tmp_path / "app.tar").read_bytes() == (tmp_path / "direct-app.tar").read_bytes()


def test_a_second_run_packs_nothing(case, tmp_path, monkeypatch):
    export_delta(case.export())
    puts = _count_puts(monkeypatch)
    export_delta(case.export(output=str(tmp_path / "again.tar")))
    assert puts == Counter()
    cached = [name for name, state in task_states(latest_run()) if state == "Cached"]
    assert sorted(cached) == sorted(name for name, _ in task_states(latest_run()) if name.startswith("pack"))
    assert (tmp_path / "again.tar").read_bytes() == (tmp_path / "delta.tar").read_bytes()


def test_a_cached_result_whose_blob_is_gone_is_made_anew(case, tmp_path, monkeypatch):
    export_delta(case.export())
    layer = case.v2.layers[-1]
    Store(str(case.store))._blob(layer.digest).remove()
    puts = _count_puts(monkeypatch)
    export_delta(case.export(output=str(tmp_path / "again.tar")))
    assert puts == Counter({layer.digest: 1})
    assert (tmp_path / "again.tar").read_bytes() == (tmp_path / "delta.tar").read_bytes()


def test_a_record_of_a_direct_run_serves_the_flow(case, tmp_path, monkeypatch):
    pipeline.export_delta(case.export().resolve(), pipeline.Direct())
    puts = _count_puts(monkeypatch)
    export_delta(case.export(output=str(tmp_path / "flow.tar")))
    assert puts == Counter()


def _count_puts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each blob is put into a store from now on."""
    counted: Counter[str] = Counter()
    put = Store.put

    def counting(self: Store, descriptor: Any, chunks: Any) -> None:
        counted[descriptor.digest] += 1
        put(self, descriptor, chunks)

    monkeypatch.setattr(Store, "put", counting)
    return counted


@pytest.mark.parametrize(("transient", "attempts"), [(True, 3), (False, 1)])
def test_only_transient_errors_are_retried(case, monkeypatch, transient, attempts):
    calls: list[str] = []

    def broken(self: Store, descriptor: Any, chunks: Any) -> None:
        if descriptor.digest == case.v2.layers[-1].digest:
            calls.append(descriptor.digest)
            raise StorageError("the store is out to lunch", transient=transient)
        put(self, descriptor, chunks)

    put = Store.put
    monkeypatch.setattr(Store, "put", broken)
    for task in TASKS.values():
        monkeypatch.setattr(task, "retry_delay_seconds", [0, 0])
    with pytest.raises(StorageError, match="out to lunch"):
        export_delta(case.export())
    assert len(calls) == attempts
    assert "out to lunch" in (latest_run().state.message or "")
    assert not (case.folder / "delta.tar").exists()


def test_a_transient_error_that_passes_costs_nothing(case, monkeypatch):
    failures = [StorageError("hiccup")]

    def flaky(self: Store, descriptor: Any, chunks: Any) -> None:
        if failures and descriptor.digest == case.v2.layers[-1].digest:
            raise failures.pop()
        put(self, descriptor, chunks)

    put = Store.put
    monkeypatch.setattr(Store, "put", flaky)
    for task in TASKS.values():
        monkeypatch.setattr(task, "retry_delay_seconds", [0, 0])
    assert export_delta(case.export()).status == "written"


def test_errors_keep_their_words_and_their_data(case):
    export_delta(case.export())
    other = write_layout(case.folder / "other", {"v1": random_image("other")})
    with pytest.raises(BaselineIncomplete, match="1 of 1 required blobs") as caught:
        import_delta(case.import_(baselines=(f"oci:{other}:v1",)))
    assert caught.value.details["missing"][0]["digest"] == case.v2.layers[0].digest
    assert "required blobs are not in the baselines" in (latest_run().state.message or "")
    assert not (case.folder / "app.tar").exists()


def test_runs_are_named_and_leave_a_report(case):
    export_delta(case.export(name="app:v2"))
    run = latest_run()
    assert run.name == f"export oci:{case.layout}:v2"
    names = [name for name, _ in task_states(run)]
    assert f"pack layer {case.v2.layers[-1].digest.short}" in names
    assert f"fetch manifest oci:{case.layout}:v2" in names
    with get_client(sync_client=True) as client:
        artifacts = client.request("POST", "/artifacts/filter", json={"artifacts": {"flow_run_id": {"any_": [str(run.id)]}}}).json()
    assert len(artifacts) == 1
    assert "# Delta of app:v2" in artifacts[0]["data"]
    assert case.v2.root.digest in artifacts[0]["data"]
    import_delta(case.import_())
    assert latest_run().name == f"import {case.folder}/delta.tar"


def test_flows_are_part_of_other_flows(case):
    @flow
    def mine() -> str:
        export_delta(case.export())
        return str(import_delta(case.import_()).digest)

    assert mine() == case.v2.root.digest


def test_results_are_json_that_a_person_can_read(case, tmp_path):
    export_delta(case.export())
    storage: Any = get_default_result_storage(_sync=True)
    results = [path.read_bytes() for path in Path(storage.basepath).expanduser().rglob("pack_blobs-*")]
    assert results
    for raw in results:
        record = json.loads(raw)
        assert record["metadata"]["serializer"]["type"] == "json"
        assert len(raw) < 10_000


def test_blocks_give_credentials_and_stores(case, tmp_path):
    with InProcessRegistry(auth="token", username="joe", password="s3cret") as registry:
        registry.put_image("app", "v1", case.v1)
        registry.put_image("app", "v2", case.v2)
        RegistryCredentials(username="joe", password="s3cret", tls_verify=False).save("a-registry", overwrite=True)
        DeltaStore(url=f"file://{tmp_path}/block-store", storage_options={"auto_mkdir": True}).save("a-store", overwrite=True)
        access = AccessRequest(credentials="a-registry")
        request = ExportRequest(
            target=f"docker://{registry.host}/app:v2",
            baselines=(f"docker://{registry.host}/app:v1",),
            output=str(tmp_path / "delta.tar"),
            store_block="a-store",
            target_access=access,
            baseline_access=access,
        )
        assert export_delta(request).summary.target == case.v2.root.digest
    assert list((tmp_path / "block-store" / "blobs").rglob("*"))
    assert "s3cret" not in json.dumps(latest_run().parameters)
    with pytest.raises(NotFound, match="no registry-credentials block"):
        export_delta(request.model_copy(update={"target_access": AccessRequest(credentials="absent")}))


def test_dry_run_of_a_flow_writes_nothing(case):
    report = export_delta(case.export(dry_run=True))
    assert report.status == "dry-run"
    assert not case.store.exists()
    assert not (case.folder / "delta.tar").exists()


def test_every_argument_of_a_task_crosses_processes(case):
    """Under Dask and Ray arguments and results travel by pickle."""
    sizes: list[int] = []

    class Pickling:
        def call(self, step: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            name, positional, named = pickle.loads(self._weighed((step.__name__, args, kwargs)))
            assert name == step.__name__
            return pickle.loads(self._weighed(step(*positional, **named)))

        def map(self, step: Callable[..., Any], items: Any, /, *args: Any, **kwargs: Any) -> list[Any]:
            return [self.call(step, item, *args, **kwargs) for item in items]

        def _weighed(self, value: object) -> bytes:
            data = pickle.dumps(value)
            sizes.append(len(data))
            return data

    pipeline.export_delta(case.export().resolve(), Pickling())
    assert pipeline.import_delta(case.import_().resolve(), Pickling()).digest == case.v2.root.digest
    assert max(sizes) < 20_000


def test_forms_describe_every_field():
    for each, request in ((export_delta, ExportRequest), (import_delta, ImportRequest)):
        schema = each.parameters.model_dump()
        properties = schema["definitions"][request.__name__]["properties"]
        assert all("title" in field for field in properties.values())
        assert inspect.signature(each.fn).parameters.keys() == {"request"}
        assert properties["workers"]["minimum"] == 1
        assert properties["workers"]["maximum"] == 64
