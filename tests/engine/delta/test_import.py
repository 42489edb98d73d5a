"""Import: what is required is found or named, the output is whole or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefect_diffah.engine.delta.apply import read_delta, verify_baseline
from prefect_diffah.engine.errors import BaselineIncomplete, OutputExists, StorageError
from prefect_diffah.engine.images import ImageName
from prefect_diffah.engine.pipeline import verify_delta
from prefect_diffah.engine.testing.images import image_of, next_version, random_image, random_layer, write_layout

TRANSPORTS = ("docker-archive", "oci-archive", "oci", "dir")


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def wide(bench: Any) -> Any:
    """A delta that requires six layers, with baselines that hold some of them; ``v1`` holds all."""
    shared = [random_layer(f"shared {number}", 200) for number in range(6)]
    bench.put(v2=image_of([*shared, random_layer("new", 200)]), v1=image_of(shared))
    write_layout(bench.folder / "first", {"x": image_of(shared[:3])})
    write_layout(bench.folder / "second", {"y": image_of([random_layer("else", 200), *reversed(shared[2:])])})
    write_layout(bench.folder / "third", {"z": random_image("stranger", 2, 200)})
    bench.export()
    return bench


def test_every_missing_blob_is_named_at_once(wide: Any) -> None:
    shared = image_of([random_layer(f"shared {number}", 200) for number in range(6)]).layers
    before = everything(wide.folder)
    for baselines, missing in {("first:x",): shared[3:], ("third:z", "second:y"): shared[:2], (): shared}.items():
        with pytest.raises(BaselineIncomplete) as caught:
            wide.rebuild(job={"baselines": tuple(wide.at(name, "oci") for name in baselines)})
        assert caught.value.details["missing"] == [{"digest": layer.digest, "size": layer.size, "image": "images:v2"} for layer in missing]
        assert all(f"{layer.digest} ({layer.size} bytes" in caught.value.message for layer in missing)
        assert f"{len(missing)} of 6" in caught.value.message
        assert caught.value.exit_code == 2
    assert {name: content for name, content in everything(wide.folder).items() if not name.startswith("store-of-import")} == before


def test_required_blobs_count_wherever_they_are(wide: Any) -> None:
    baselines = [wide.at(name, "oci") for name in ("third:z", "first:x", "second:y")]
    delta = read_delta(wide.at("delta.tar"), wide.store())
    shared = image_of([random_layer(f"shared {number}", 200) for number in range(6)]).layers
    assert verify_baseline(delta, baselines) == {layer.digest: 1 if number < 3 else 2 for number, layer in enumerate(shared)}
    assert verify_delta(wide.at("delta.tar"), baselines).baseline_checked
    assert wide.rebuild(job={"baselines": tuple(baselines)}).rebuilt == 8


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_image_arrives_as_it_was(bench: Any, example: Any, transport: str) -> None:
    bench.export()
    output = bench.at("out", transport)
    report = bench.rebuild(output=output)
    assert report.digest == example.new.root.digest
    with output.open() as reader:
        root, raw = reader.root()
        assert (root.digest, raw) == (example.new.root.digest, example.new.manifest)
        for blob in (example.new.config, *example.new.layers):
            with reader.stream(blob) as chunks:
                assert b"".join(chunks) == example.new.blobs[blob.digest]
    assert bench.rebuild(output=output).status == "unchanged"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_another_output_is_kept_unless_forced(bench: Any, example: Any, transport: str) -> None:
    bench.export()
    bench.export("back.tar", target="v1", baselines=("v2",))
    name = ImageName.parse("app:latest")
    output = bench.at("out", transport)
    bench.rebuild("back.tar", output, ("v2",), job={"name": name})
    if transport == "oci":  # tags move
        assert bench.rebuild(output=output, job={"name": name}).digest == example.new.root.digest
        return
    before = everything(bench.folder / "out") or (bench.folder / "out").read_bytes()
    with pytest.raises(OutputExists):
        bench.rebuild(output=output, job={"name": name})
    assert (everything(bench.folder / "out") or (bench.folder / "out").read_bytes()) == before
    assert bench.rebuild(output=output, force=True, job={"name": name}).digest == example.new.root.digest


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_dry_run_changes_nothing(bench: Any, example: Any, transport: str) -> None:
    bench.export()
    before = everything(bench.folder)
    report = bench.rebuild(output=bench.at("out", transport), job={"dry_run": True})
    assert everything(bench.folder) == before
    assert report.status == "dry-run"
    wet = bench.rebuild(output=bench.at("out", transport))
    assert (report.rebuilt, report.rebuilt_bytes, report.digest) == (wet.rebuilt, wet.rebuilt_bytes, wet.digest)


def test_a_dry_run_asks_the_output_to_take_no_blob_over(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry would mount it."""
    from prefect_diffah.engine.transports.oci import OCILayoutWriter

    asked: list[object] = []
    monkeypatch.setattr(OCILayoutWriter, "obtain", lambda self, image, descriptor: asked.append(descriptor))
    bench.export()
    bench.rebuild(output=bench.at("out", "oci"), job={"dry_run": True})
    assert asked == []
    bench.rebuild(output=bench.at("out", "oci"))
    assert len(asked) == 3


def test_a_dry_run_reads_the_whole_delta_and_looks_for_every_blob(bench: Any, example: Any) -> None:
    bench.export()
    with pytest.raises(BaselineIncomplete):
        bench.rebuild(baselines=(), job={"dry_run": True})
    at = example.raw.index(example.new.blobs[example.new.layers[1].digest])
    (bench.folder / "delta.tar").write_bytes(example.raw[:at] + b"\0" + example.raw[at + 1 :])
    with pytest.raises(Exception, match="has the digest"):
        bench.rebuild(job={"dry_run": True})


def test_blobs_that_the_output_holds_are_not_made(bench: Any, example: Any) -> None:
    write_layout(bench.folder / "shelf", {"v1": example.old})
    bench.export()
    report = bench.rebuild(output=bench.at("shelf:v2", "oci"))
    assert (report.held, report.rebuilt) == (1, 2)
    assert not bench.store("store-of-import").has(example.new.layers[0])
    with bench.at("shelf:v2", "oci").open() as reader:
        assert reader.root()[0].digest == example.new.root.digest


def test_the_name_inside_is_the_deltas_or_the_one_given(bench: Any) -> None:
    bench.export()
    bench.rebuild(output=bench.at("one", "oci"))
    bench.rebuild(output=bench.at("two", "oci"), job={"name": ImageName.parse("app:other")})
    tags = [json.loads((bench.folder / name / "index.json").read_text())["manifests"][0]["annotations"] for name in ("one", "two")]
    assert [each["org.opencontainers.image.ref.name"] for each in tags] == ["v2", "other"]


def test_a_blob_that_goes_bad_in_the_store_is_made_anew(bench: Any, example: Any) -> None:
    bench.export()
    bench.rebuild("delta.tar", "first.tar")
    layer = example.new.layers[0]
    stored = bench.folder / "store-of-import" / "blobs" / "sha256" / layer.digest.hex[:2] / layer.digest.hex
    stored.write_bytes(b"\0" * layer.size)
    with pytest.raises(StorageError):
        bench.rebuild()
    assert not (bench.folder / "out.tar").exists()
    assert bench.rebuild().digest == example.new.root.digest


def test_chained_deltas_lead_to_the_last_version(bench: Any, example: Any) -> None:
    third = next_version(example.new, "third", changed=2)
    bench.put(v1=example.old, v2=example.new, v3=third)
    bench.export("12.tar")
    bench.export("23.tar", target="v3", baselines=("v2",))
    bench.rebuild("12.tar", bench.at("site", "oci"))
    bench.rebuild("23.tar", bench.at("site", "oci"), job={"baselines": (bench.at("site:v2", "oci"),)})
    with bench.at("site:v3", "oci").open() as reader:
        assert reader.root()[1] == third.manifest
