"""Export: what is refused, what is left behind, what the figures say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefect_diffah.engine.errors import (
    BaselineIncomplete,
    DigestMismatch,
    InvalidDocument,
    InvalidOptions,
    NotFound,
    OutputExists,
    PlatformError,
    SizeMismatch,
    StorageError,
    Unsupported,
)
from prefect_diffah.engine.images import ImageName
from prefect_diffah.engine.oci import Descriptor, Digest, Platform, mediatypes
from prefect_diffah.engine.pipeline import Direct, inspect_delta, verify_delta
from prefect_diffah.engine.storage import FileLocation
from prefect_diffah.engine.store import Store
from prefect_diffah.engine.testing.images import GeneratedImage, image_of, index_of, next_version, random_image, random_layer


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()} if folder.exists() else {}


def blob_file(bench: Any, descriptor: Descriptor) -> Path:
    return bench.folder / "images" / "blobs" / descriptor.digest.algorithm / descriptor.digest.hex


def edited(image: GeneratedImage, change: Any) -> GeneratedImage:
    """The image with another manifest over the same blobs."""
    manifest = json.loads(image.manifest)
    change(manifest)
    raw = json.dumps(manifest).encode()
    root = Descriptor(media_type=manifest["mediaType"], digest=Digest.of(raw), size=len(raw))
    return GeneratedImage(root, {root.digest: raw}, (root,), image.blobs, image.layers, image.config)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), DigestMismatch),
        (lambda content: content[:-1], SizeMismatch),
        (lambda content: content + b"\0", SizeMismatch),
    ],
)
def test_a_source_blob_that_is_not_its_digest_is_refused(bench: Any, example: Any, spoil: Any, error: type[Exception]) -> None:
    path = blob_file(bench, example.new.layers[1])
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(error) as caught:
        bench.export()
    assert caught.value.details["digest"] == example.new.layers[1].digest  # type: ignore[attr-defined]
    assert not (bench.folder / "delta.tar").exists()
    hex_digits = example.new.layers[1].digest.hex
    kept = files_in(bench.folder / "store")
    assert not [name for name in kept if hex_digits in name]
    assert not [name for name, content in kept.items() if name.startswith("records/") and hex_digits in content.decode()]
    assert not [name for name in kept if name.endswith(".part")]


@pytest.mark.parametrize("which", ["root", "config"])
def test_a_source_document_that_is_not_its_digest_is_refused(bench: Any, example: Any, which: str) -> None:
    path = blob_file(bench, getattr(example.new, which))
    path.write_bytes(path.read_bytes().replace(b"linux", b"linus").replace(b"schemaVersion", b"schemaversion"))
    with pytest.raises(DigestMismatch):
        bench.export()
    assert not (bench.folder / "delta.tar").exists()


def test_a_target_equal_to_its_baseline_is_a_delta_of_no_layers(bench: Any, example: Any) -> None:
    report = bench.export(target="v1")
    assert [(row.role, row.travels) for row in report.summary.blobs] == [("config", "carried"), ("layer", "required"), ("layer", "required")]
    assert verify_delta(bench.at("delta.tar"), [bench.image("v1")]).canonical
    assert bench.rebuild().digest == example.old.root.digest


def test_an_image_without_layers(bench: Any) -> None:
    bench.put(v1=image_of([]), v2=image_of([], config={"author": "somebody"}))
    bench.export()
    assert bench.rebuild().digest == image_of([], config={"author": "somebody"}).root.digest


def test_an_artifact_that_is_no_image_travels_too(bench: Any, example: Any) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["config"]["mediaType"] = "application/vnd.example.config+json"

    target = edited(example.new, change)
    bench.put(v1=example.old, v2=target)
    report = bench.export()
    assert report.summary.platform is None
    assert not [line for line in report.summary.lines() if line.startswith("platform")]
    assert bench.rebuild(output=bench.at("out", "oci")).digest == target.root.digest


def test_a_layer_used_twice_travels_once(bench: Any) -> None:
    twice = random_layer("twice", 300)
    target = image_of([twice, random_layer("between", 200), twice])
    bench.put(v1=image_of([random_layer("base", 300)]), v2=target)
    report = bench.export()
    assert [row.digest for row in report.summary.blobs].count(target.layers[0].digest) == 1
    assert bench.bytes_of().count(target.blobs[target.layers[0].digest]) == 1
    assert bench.rebuild().digest == target.root.digest


@pytest.mark.parametrize("media", ["oci", "docker"])
@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_media_types_and_compressions_are_as_they_were(bench: Any, media: Any, compression: Any) -> None:
    old = random_image("x", 2, 300, media=media, compression=compression)
    new = next_version(old, "y")
    bench.put(v1=old, v2=new)
    bench.export()
    assert bench.rebuild().digest == new.root.digest


def test_a_foreign_layer_that_is_at_hand_travels_with_its_urls(bench: Any, example: Any) -> None:
    def foreign(manifest: dict[str, Any]) -> None:
        manifest["layers"][1] |= {"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "urls": ["https://example.com/layer"]}

    target = edited(example.new, foreign)
    bench.put(v1=example.old, v2=target)
    bench.export()
    assert b'"urls":["https://example.com/layer"]' in bench.bytes_of()
    assert bench.rebuild(output=bench.at("out", "oci")).digest == target.root.digest
    blob_file(bench, target.layers[1]).unlink()
    with pytest.raises(NotFound, match="its URLs are not fetched"):
        bench.export("another.tar", job={"store": bench.store("fresh")})


def test_a_baseline_may_be_known_by_its_manifest_alone(bench: Any, example: Any) -> None:
    (bench.folder / "v1.json").write_bytes(example.old.manifest)
    manifests = (FileLocation(f"{bench.folder}/v1.json"),)
    report = bench.export(baselines=(), job={"baseline_manifests": manifests})
    assert report.summary.baselines == (example.old.root.digest,)
    assert report.summary.required == 1
    assert bench.rebuild().digest == example.new.root.digest


@pytest.mark.parametrize(
    ("content", "error"), [(b"", InvalidDocument), (b"{}", InvalidDocument), (index_of({"linux/amd64": image_of([])}).manifest, InvalidOptions)]
)
def test_a_baseline_manifest_that_is_none_is_refused(bench: Any, content: bytes, error: type[Exception]) -> None:
    (bench.folder / "v1.json").write_bytes(content)
    with pytest.raises(error):
        bench.export(baselines=(), job={"baseline_manifests": (FileLocation(f"{bench.folder}/v1.json"),)})
    with pytest.raises(NotFound):
        bench.export(baselines=(), job={"baseline_manifests": (FileLocation(f"{bench.folder}/v0.json"),)})


class TestPlatforms:
    @pytest.fixture(autouse=True)
    def images(self, bench: Any, example: Any) -> dict[str, GeneratedImage]:
        arm_old = random_image("arm", 2, 300, platform="linux/arm64")
        arm_new = next_version(arm_old, "newer")
        bench.put(
            v1=index_of({"linux/amd64": example.old, "linux/arm64": arm_old}), v2=index_of({"linux/amd64": example.new, "linux/arm64": arm_new}), arm=arm_old
        )
        return {"linux/amd64": example.new, "linux/arm64": arm_new}

    @pytest.mark.parametrize("platform", ["linux/amd64", "linux/arm64"])
    def test_of_an_index_one_image_is_chosen(self, bench: Any, images: dict[str, GeneratedImage], platform: str) -> None:
        report = bench.export(job={"platform": Platform.parse(platform)})
        assert report.summary.target == images[platform].root.digest
        assert report.summary.platform == platform
        assert report.summary.required == 1
        assert bench.rebuild().digest == images[platform].root.digest

    def test_one_must_be_chosen(self, bench: Any) -> None:
        with pytest.raises(PlatformError) as caught:
            bench.export()
        assert caught.value.details["platforms"] == ["linux/amd64", "linux/arm64"]

    @pytest.mark.parametrize("baselines", [("v1",), ("arm",)])
    def test_it_must_be_there(self, bench: Any, baselines: tuple[str, ...]) -> None:
        with pytest.raises(PlatformError):
            bench.export(baselines=baselines, job={"platform": Platform.parse("windows/amd64")})

    def test_a_single_manifest_must_match(self, bench: Any) -> None:
        with pytest.raises(PlatformError, match="is for linux/arm64"):
            bench.export(target="arm", job={"platform": Platform.parse("linux/amd64")})
        with pytest.raises(PlatformError, match="is for linux/arm64"):
            bench.export(baselines=("arm",), job={"platform": Platform.parse("linux/amd64")})

    def test_a_single_baseline_may_be_of_any_platform_if_none_is_asked_for(self, bench: Any, example: Any) -> None:
        bench.put(arm=random_image("arm", 2, 300, platform="linux/arm64"), amd=example.old)
        assert bench.export(target="arm", baselines=("amd",)).summary.required == 0

    def test_a_baselines_image_is_chosen_by_the_targets_platform(self, bench: Any, images: dict[str, GeneratedImage]) -> None:
        report = bench.export(target="arm", baselines=("v1",))
        assert report.summary.required == 2


class TestDryRun:
    def test_nothing_is_written_and_the_figures_are_an_upper_bound(self, bench: Any) -> None:
        before = files_in(bench.folder)
        dry = bench.export(job={"dry_run": True})
        assert files_in(bench.folder) == before
        assert (dry.status, dry.size, dry.delta) == ("dry-run", None, None)
        wet = bench.export()
        assert dry.summary.shipped_bytes >= wet.summary.shipped_bytes
        assert [row.digest for row in dry.summary.blobs] == [row.digest for row in wet.summary.blobs]
        assert [row.travels for row in dry.summary.blobs] == [row.travels for row in wet.summary.blobs]

    def test_layers_are_not_read(self, bench: Any, example: Any) -> None:
        for layer in example.new.layers:
            blob_file(bench, layer).unlink()
        assert bench.export(job={"dry_run": True}).summary.shipped == 2

    def test_the_null_device_makes_it_dry(self, bench: Any) -> None:
        before = files_in(bench.folder)
        assert bench.export(bench.at("/../../../../../../../../dev/null")).status == "dry-run"
        assert files_in(bench.folder) == before

    def test_it_checks_the_output(self, bench: Any) -> None:
        (bench.folder / "delta.tar").write_bytes(b"something")
        with pytest.raises(OutputExists):
            bench.export(job={"dry_run": True})


class TestOutput:
    def test_the_same_again_is_done_already(self, bench: Any) -> None:
        first = bench.export()
        before = (bench.folder / "delta.tar").stat()
        again = bench.export(job={"store": bench.store("fresh")})
        assert (first.status, again.status) == ("written", "unchanged")
        after = (bench.folder / "delta.tar").stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        assert again.delta == first.delta

    @pytest.mark.parametrize("what", ["other", "delta", "truncated", "flipped"])
    def test_something_else_is_kept_unless_forced(self, bench: Any, example: Any, what: str) -> None:
        path = bench.folder / "delta.tar"
        if what == "delta":
            bench.export(target="v1", baselines=("v2",))
        else:
            path.write_bytes({"other": b"something else", "truncated": example.raw[:-1], "flipped": example.raw[:4000] + b"\1" + example.raw[4001:]}[what])
        before = path.read_bytes()
        with pytest.raises(OutputExists):
            bench.export()
        assert path.read_bytes() == before
        assert bench.export(force=True).status == "written"
        assert path.read_bytes() == example.raw

    @pytest.mark.parametrize("what", ["other", "delta"])
    def test_it_is_refused_before_a_layer_is_read(self, bench: Any, example: Any, what: str) -> None:
        if what == "delta":
            bench.export(target="v1", baselines=("v2",), job={"store": bench.store("another")})
        else:
            (bench.folder / "delta.tar").write_bytes(b"something else")
        with pytest.raises(OutputExists):
            bench.export()
        assert not Store(f"{bench.folder}/store").has(example.new.layers[1])

    def test_a_payload_that_differs_is_noticed(self, bench: Any, example: Any) -> None:
        at = example.raw.index(example.new.blobs[example.new.layers[1].digest])
        (bench.folder / "delta.tar").write_bytes(example.raw[:at] + b"\0" + example.raw[at + 1 :])
        with pytest.raises(OutputExists, match="is not this delta"):
            bench.export()

    def test_docker_archives_hold_no_delta(self, bench: Any) -> None:
        with pytest.raises(Unsupported):
            bench.export(bench.at("delta.tar", "docker-archive"))

    def test_a_name_is_given_or_the_targets(self, bench: Any) -> None:
        assert bench.export().summary.image == "images:v2"
        assert bench.export(force=True, job={"name": ImageName.parse("team/app:2.0")}).summary.image == "team/app:2.0"
        assert inspect_delta(bench.at("delta.tar")).image == "team/app:2.0"

    def test_failure_while_writing_leaves_nothing(self, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from prefect_diffah.engine.tarlayout import TarLayout

        stream = TarLayout.stream

        def failing(self: TarLayout, open_blob: Any) -> Any:
            for number, chunk in enumerate(stream(self, open_blob)):
                if number == 5:
                    raise OSError(5, "the disk is gone")
                yield chunk

        monkeypatch.setattr(TarLayout, "stream", failing)
        with pytest.raises(StorageError, match="the disk is gone"):
            bench.export()
        assert sorted(path.name for path in bench.folder.iterdir()) == ["images", "store"]


def test_a_blob_that_goes_bad_in_the_store_is_made_anew(bench: Any, example: Any) -> None:
    layer = example.new.layers[1]
    bench.export()
    stored = bench.folder / "store" / "blobs" / "sha256" / layer.digest.hex[:2] / layer.digest.hex
    stored.write_bytes(b"\0" * layer.size)
    (bench.folder / "delta.tar").unlink()
    with pytest.raises(StorageError, match="was damaged and has been removed") as caught:
        bench.export()
    assert not caught.value.transient
    assert not (bench.folder / "delta.tar").exists()
    assert bench.export().status == "written"
    assert bench.bytes_of() == example.raw


def test_the_second_run_reads_no_layer(bench: Any, example: Any) -> None:
    bench.export()
    blob_file(bench, example.new.layers[1]).unlink()
    bench.export("again.tar", runner=Direct(1))
    assert bench.bytes_of("again.tar") == example.raw


def test_a_layer_that_is_in_the_store_already_is_not_read(bench: Any, example: Any) -> None:
    layer = example.new.layers[1]
    bench.store().put(layer, [example.new.blobs[layer.digest]])
    blob_file(bench, layer).unlink()
    bench.export()
    assert bench.bytes_of() == example.raw


def test_a_delta_of_images_that_share_nothing(bench: Any) -> None:
    bench.put(v1=random_image("one", 2, 300), v2=random_image("two", 2, 300))
    report = bench.export()
    assert report.summary.required == 0
    assert report.summary.saved_percent == 0
    assert bench.rebuild(baselines=()).digest == random_image("two", 2, 300).root.digest


def test_without_its_baseline_a_delta_is_not_imported(bench: Any, example: Any) -> None:
    bench.export()
    with pytest.raises(BaselineIncomplete):
        bench.rebuild(baselines=())
    assert mediatypes.DELTA.encode() in bench.bytes_of()
