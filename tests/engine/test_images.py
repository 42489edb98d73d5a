"""Image trees: what a reference names is read, checked and kept, without its layers."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefect_diffah.engine.errors import (
    DiffahError,
    DigestMismatch,
    InvalidDocument,
    InvalidOptions,
    InvalidReference,
    NotFound,
    PlatformError,
    SizeMismatch,
    Unsupported,
)
from prefect_diffah.engine.images import ImageName, Place, fetch_manifest, read_manifest_file
from prefect_diffah.engine.oci import Descriptor, Digest, Platform, Reference, mediatypes
from prefect_diffah.engine.storage import FileLocation
from prefect_diffah.engine.store import Store
from prefect_diffah.engine.testing.images import GeneratedImage, image_of, index_of, random_image, random_layer, write_layout


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def placed(tmp_path: Path) -> Callable[[GeneratedImage], Place]:
    def put(image: GeneratedImage) -> Place:
        write_layout(tmp_path / "layout", {"v1": image})
        return Place(reference=Reference.parse(f"oci:{tmp_path}/layout:v1"))

    return put


def with_manifest(image: GeneratedImage, manifest: dict[str, Any]) -> GeneratedImage:
    raw = json.dumps(manifest).encode()
    root = Descriptor(media_type=manifest.get("mediaType", image.root.media_type), digest=Digest.of(raw), size=len(raw))
    return GeneratedImage(root, {root.digest: raw}, (root,), image.blobs, image.layers, image.config)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("media", ["oci", "docker"])
def test_the_tree_of_one_manifest(placed: Any, store: Store, media: Any, algorithm: str) -> None:
    image = random_image("x", 3, 200, media=media, platform="linux/arm64/v8", algorithm=algorithm)
    tree = fetch_manifest(placed(image), store)
    (manifest,) = tree.manifests
    assert (tree.root.digest, tree.root.media_type, tree.root.size) == (image.root.digest, image.root.media_type, image.root.size)
    assert manifest.config == image.config
    assert manifest.layers == image.layers
    assert manifest.diff_ids == image.diff_ids
    assert manifest.diff_id(1) == image.diff_ids[1]
    assert str(tree.platform) == "linux/arm64"
    assert str(tree.name) == "layout:v1"
    assert tree.stored_blobs == (manifest.descriptor, manifest.config)
    assert all(map(store.has, tree.stored_blobs))
    assert not any(map(store.has, image.layers))
    assert store.read(tree.root, 10**6) == image.manifest
    assert pickle.loads(pickle.dumps(tree)) == tree


def test_of_an_index_the_image_of_the_platform_is_read(placed: Any, store: Store) -> None:
    amd, arm = random_image("amd", 1, 200), random_image("arm", 1, 200, platform="linux/arm64")
    place = placed(index_of({"linux/amd64": amd, "linux/arm64": arm}))
    assert fetch_manifest(place, store, Platform.parse("linux/arm64")).root.digest == arm.root.digest
    assert fetch_manifest(place, store, Platform.parse("linux/amd64")).root.digest == amd.root.digest
    with pytest.raises(PlatformError):
        fetch_manifest(place, store)
    with pytest.raises(PlatformError):
        fetch_manifest(place, store, Platform.parse("linux/s390x"), match=False)


def test_a_single_manifest_must_match_unless_told_otherwise(placed: Any, store: Store) -> None:
    place = placed(random_image("x", 1, 200, platform="linux/arm64"))
    with pytest.raises(PlatformError, match="is for linux/arm64, not for linux/amd64"):
        fetch_manifest(place, store, Platform.parse("linux/amd64"))
    assert fetch_manifest(place, store, Platform.parse("linux/amd64"), match=False).platform == Platform.parse("linux/arm64")
    assert fetch_manifest(place, store, Platform.parse("linux/arm64/v8"))


def test_an_artifact_has_neither_platform_nor_diffids(placed: Any, store: Store) -> None:
    image = image_of([random_layer("x", 100)])
    manifest = json.loads(image.manifest)
    manifest["config"]["mediaType"] = "application/vnd.example.config+json"
    tree = fetch_manifest(placed(with_manifest(image, manifest)), store)
    assert tree.platform is None
    assert tree.manifests[0].diff_id(0) is None


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda image: with_manifest(image, json.loads(image.manifest) | {"layers": []}), InvalidDocument),
        (lambda image: with_manifest(image, json.loads(image.manifest) | {"manifests": []}), InvalidDocument),
        (lambda image: with_manifest(image, json.loads(image.manifest) | {"schemaVersion": 1}), Unsupported),
        (lambda image: with_manifest(image, {"schemaVersion": 2, "mediaType": mediatypes.OCI_MANIFEST}), InvalidDocument),
        (lambda image: with_manifest(image, json.loads(image.manifest) | {"pad": "x" * 5_000_000}), SizeMismatch),
        (lambda image: index_of({"linux/amd64": index_of({"linux/amd64": image})}), InvalidDocument),
    ],
)
def test_what_is_no_image_is_refused(placed: Any, store: Store, change: Any, error: type[DiffahError]) -> None:
    with pytest.raises(error):
        fetch_manifest(placed(change(image_of([random_layer("x", 100)]))), store, Platform.parse("linux/amd64"))


def test_a_config_that_is_none_is_refused(placed: Any, store: Store) -> None:
    image = image_of([random_layer("x", 100)])
    for content in (b"no JSON", b"[]", b'{"rootfs":{"diff_ids":["sha256:../../etc/passwd"]}}'):
        manifest = json.loads(image.manifest)
        manifest["config"] |= {"digest": Digest.of(content), "size": len(content)}
        spoilt = with_manifest(image, manifest)
        spoilt.blobs[Digest.of(content)] = content
        with pytest.raises(InvalidDocument):
            fetch_manifest(placed(spoilt), store)


def test_documents_that_are_not_their_digests_are_refused_and_not_kept(placed: Any, store: Store, tmp_path: Path) -> None:
    image = random_image("x", 1, 200)
    place = placed(image)
    path = tmp_path / "layout" / "blobs" / "sha256" / image.config.digest.hex
    path.write_bytes(path.read_bytes().replace(b"amd64", b"arm64"))
    with pytest.raises(DigestMismatch):
        fetch_manifest(place, store)
    assert not store.has(image.config)
    path.unlink()
    with pytest.raises(NotFound):
        fetch_manifest(place, store)


def test_a_config_that_the_store_has_is_not_read_again(placed: Any, store: Store, tmp_path: Path) -> None:
    image = random_image("x", 1, 200)
    place = placed(image)
    first = fetch_manifest(place, store)
    (tmp_path / "layout" / "blobs" / "sha256" / image.config.digest.hex).unlink()
    assert fetch_manifest(place, store) == first


def test_a_manifest_in_a_file(tmp_path: Path) -> None:
    image = random_image("x", 2, 200, media="docker")
    (tmp_path / "manifest.json").write_bytes(image.manifest)
    tree = read_manifest_file(FileLocation(str(tmp_path / "manifest.json")))
    assert tree.root.digest == image.root.digest
    assert tree.manifests[0].layers == image.layers
    assert tree.manifests[0].diff_ids == ()
    assert tree.platform is None


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, NotFound),
        (b"", InvalidDocument),
        (b"{" * 10_000, InvalidDocument),
        (b'{"schemaVersion":1}', Unsupported),
        (b" " * (4 * 1024 * 1024 + 1), SizeMismatch),
        (index_of({"linux/amd64": image_of([])}).manifest, InvalidOptions),
    ],
)
def test_a_file_that_is_no_manifest(tmp_path: Path, content: bytes | None, error: type[DiffahError]) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(error):
        read_manifest_file(FileLocation(str(tmp_path / "manifest.json")))


@pytest.mark.parametrize("text", ["app", "app:v2", "team/app", "team/app:V2.0-x_y", "a.b/c-d/e__f:1", "app:" + "x" * 128])
def test_names(text: str) -> None:
    assert str(ImageName.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":v2",
        "app:",
        "App",
        "app:v 2",
        "app:-1",
        "app@sha256:0",
        "a//b",
        "/a",
        "a/",
        "../a",
        "host:5000/app:v2",
        "app:" + "x" * 129,
        "äpp",
        "app:v2\n",
        "a b",
    ],
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(InvalidReference):
        ImageName.parse(text)


@pytest.mark.parametrize(
    ("reference", "name"),
    [("oci:{}/layout:v1", "layout:v1"), ("oci:{}/layout", "layout"), ("oci:{}/layout:Weird Tag!", "image")],
)
def test_a_tree_is_named_after_its_reference(store: Store, tmp_path: Path, reference: str, name: str) -> None:
    image = random_image("x", 1, 100)
    tag = Reference.parse(reference.format(tmp_path)).tag or "v1"
    write_layout(tmp_path / "layout", {tag: image})
    assert str(fetch_manifest(Place(reference=Reference.parse(reference.format(tmp_path))), store).name) == name


def test_places_hide_their_secrets() -> None:
    from prefect_diffah.engine.access import Access

    place = Place(reference=Reference.parse("docker://example.com/app:v1"), access=Access(username="me", password="hunter2"))  # type: ignore[arg-type]
    assert str(place) == "docker://example.com/app:v1"
    assert "hunter2" not in repr(place) + place.model_dump_json()
    assert pickle.loads(pickle.dumps(place)).access.password.get_secret_value() == "hunter2"
