"""Deltas and images in registries: what is asked for, and how often."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_diffah.engine.access import Access
from prefect_diffah.engine.delta.archive import open_delta
from prefect_diffah.engine.errors import BaselineIncomplete, ContentError, InvalidArchive
from prefect_diffah.engine.images import Place
from prefect_diffah.engine.oci import Reference
from prefect_diffah.engine.pipeline import inspect_delta, verify_delta
from prefect_diffah.engine.registry import close_all
from prefect_diffah.engine.testing.registry import InProcessRegistry


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, example: Any) -> Iterator[InProcessRegistry]:
    """With the example's images as ``app:v1`` and ``app:v2``, seen from a machine without container configuration."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    (tmp_path / "auth.json").write_text("{}")
    (tmp_path / "registries.conf").touch()
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(tmp_path / "registries.conf"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with InProcessRegistry() as registry:
        registry.put_image("app", "v1", example.old)
        registry.put_image("app", "v2", example.new)
        yield registry
    close_all()


def at(registry: InProcessRegistry, name: str) -> Place:
    return Place(reference=Reference.parse(f"docker://{registry.host}/{name}"), access=Access(tls_verify=False))


def asked(registry: InProcessRegistry, *methods: str) -> list[str]:
    return [path for method, path, _ in registry.requests if method in methods and path != "/v2/"]


def test_an_export_reads_documents_and_what_travels_each_once(bench: Any, example: Any, registry: InProcessRegistry) -> None:
    bench.export(job={"target": at(registry, "app:v2"), "baselines": (at(registry, "app:v1"),)})
    new, old = example.new, example.old
    wanted = ["manifests/v1", "manifests/v2", *(f"blobs/{blob.digest}" for blob in (old.config, new.config, new.layers[1]))]
    assert sorted(asked(registry, "GET")) == sorted(f"/v2/app/{path}" for path in wanted)
    assert asked(registry, "POST", "PUT", "PATCH") == []
    registry.forget_requests()
    bench.export("dry.tar", job={"target": at(registry, "app:v2"), "baselines": (at(registry, "app:v1"),), "dry_run": True, "store": bench.store("fresh")})
    assert sorted(asked(registry, "GET")) == sorted(f"/v2/app/{path}" for path in wanted[:-1])


def test_an_import_beside_the_baseline_moves_only_what_is_new(bench: Any, example: Any, registry: InProcessRegistry) -> None:
    del registry.repository("app").tags["v2"], registry.repository("app").manifests[example.new.root.digest]
    for blob in (example.new.layers[1], example.new.config):
        del registry.repository("app").blobs[blob.digest]
    bench.export()
    for output in ("app:v2", "team/app:v2"):
        registry.forget_requests()
        report = bench.rebuild(output=at(registry, output), job={"baselines": (at(registry, "app:v1"),), "store": bench.store(output.replace("/", "-"))})
        assert report.digest == example.new.root.digest == registry.repository(output.partition(":")[0]).tags["v2"]
        assert report.held == (1 if output == "app:v2" else 1 + 2)
        assert [path for path in asked(registry, "GET") if "/blobs/" in path] == []
    registry.forget_requests()
    assert bench.rebuild(output=at(registry, "app:v2"), job={"baselines": (at(registry, "app:v1"),)}).status == "unchanged"
    assert asked(registry, "POST", "PUT", "PATCH") == []


def test_a_dry_import_asks_a_registry_to_change_nothing(bench: Any, registry: InProcessRegistry) -> None:
    bench.export()
    before = set(registry.repository("other").blobs)
    report = bench.rebuild(output=at(registry, "other:v2"), job={"baselines": (at(registry, "app:v1"),), "dry_run": True})
    assert report.status == "dry-run"
    assert set(registry.repository("other").blobs) == before
    assert (registry.repository("other").manifests, registry.repository("other").tags) == ({}, {})
    assert asked(registry, "PUT", "PATCH") == []


def test_a_delta_lives_in_a_registry_as_one_artifact(bench: Any, example: Any, registry: InProcessRegistry) -> None:
    delta = at(registry, "deltas:v1-to-v2")
    report = bench.export(delta)
    stored = registry.repository("deltas")
    assert list(stored.manifests) == [report.delta]
    assert example.new.layers[0].digest not in stored.blobs
    with open_delta(delta) as in_registry, open_delta(example.bench.at("delta.tar")) as in_archive:
        assert in_registry.manifest.digest == in_archive.manifest.digest == report.delta
    assert inspect_delta(delta) == inspect_delta(example.bench.at("delta.tar")) == report.summary.model_copy(update={"image": "images:v2"})
    assert not verify_delta(delta, [at(registry, "app:v1")]).canonical
    assert bench.export(delta).status == "unchanged"
    assert bench.rebuild(delta).digest == example.new.root.digest
    assert bench.rebuild(at(registry, f"deltas@{report.delta}"), "other.tar").digest == example.new.root.digest


def test_an_image_in_a_registry_is_no_delta(registry: InProcessRegistry) -> None:
    with pytest.raises(InvalidArchive, match="is not a delta"):
        verify_delta(at(registry, "app:v2"), [])


def test_a_delta_that_lost_a_payload_is_refused(bench: Any, example: Any, registry: InProcessRegistry) -> None:
    delta = at(registry, "deltas:v1-to-v2")
    bench.export(delta)
    del registry.repository("deltas").blobs[example.new.layers[1].digest]
    for run in (lambda: verify_delta(delta, []), lambda: bench.rebuild(delta)):
        with pytest.raises(InvalidArchive, match="lacks"):
            run()
    assert not (bench.folder / "out.tar").exists()


def test_blobs_missing_from_a_registry_are_all_named(bench: Any, example: Any, registry: InProcessRegistry) -> None:
    bench.export()
    del registry.repository("app").blobs[example.old.layers[0].digest]
    with pytest.raises(BaselineIncomplete) as caught:
        bench.rebuild(job={"baselines": (at(registry, "app:v1"),)})
    assert [missing["digest"] for missing in caught.value.details["missing"]] == [example.old.layers[0].digest]


@pytest.mark.parametrize("place", ["payload", "config", "sidecar", "padding", "cut"])
def test_nothing_of_a_damaged_delta_reaches_a_registry(bench: Any, example: Any, registry: InProcessRegistry, place: str) -> None:
    where = {
        "payload": example.raw.index(example.new.blobs[example.new.layers[1].digest]),
        "config": example.raw.index(example.new.blobs[example.new.config.digest]),
        "sidecar": 700,
        "padding": len(example.raw) - 5,
        "cut": 0,
    }[place]
    raw = example.raw[:-1] if place == "cut" else example.raw[:where] + bytes([example.raw[where] ^ 1]) + example.raw[where + 1 :]
    (bench.folder / "delta.tar").write_bytes(raw)
    with pytest.raises(ContentError):
        bench.rebuild(output=at(registry, "other:v2"), job={"baselines": (at(registry, "app:v1"),)})
    assert (registry.repository("other").manifests, registry.repository("other").tags) == ({}, {})
    assert not {example.new.config.digest, example.new.layers[1].digest} & registry.repository("other").blobs.keys()
