"""Generated images: real, reproducible, and as other tools understand them."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from prefect_diffah.engine.errors import NotFound, Unsupported
from prefect_diffah.engine.oci import Digest, ImageConfig, Index, Manifest, Platform, parse_document
from prefect_diffah.engine.testing.images import Compression, Media, image_of, index_of, next_version, random_image, random_layer, write_layout


def test_a_seed_decides_every_byte() -> None:
    assert random_image(1) == random_image(1)
    assert random_image(1).root != random_image(2).root


@pytest.mark.parametrize("size", [0, 1, 20_000])
def test_layers_are_tars(size: int) -> None:
    layer = random_layer("seed", size)
    plain = gzip.decompress(layer.content)
    assert Digest.of(plain) == layer.diff_id
    with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
        assert sum(member.size for member in tar) == size
        assert sum(member.isfile() for member in tar) == 12


@pytest.mark.parametrize("media", ["oci", "docker"])
@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_images_are_whole(media: Media, compression: Compression) -> None:
    image = random_image("whole", media=media, compression=compression, platform="linux/arm/v7")
    manifest = parse_document(image.manifest, image.root.media_type)
    assert isinstance(manifest, Manifest)
    assert manifest.is_image
    assert (manifest.config, manifest.layers) == (image.config, image.layers)
    assert manifest.descriptor() == image.root
    assert all(digest.matches(content) for digest, content in (image.blobs | image.documents).items())
    config = ImageConfig.parse(image.blobs[image.config.digest])
    assert config.platform == Platform.parse("linux/arm/v7")
    for layer, diff_id in zip(image.layers, config.diff_ids, strict=True):
        content = image.blobs[layer.digest]
        assert Digest.of(content if compression == "none" else gzip.decompress(content)) == diff_id


def test_sha512_and_more_config() -> None:
    image = image_of([random_layer(1)], config={"author": "somebody"}, algorithm="sha512")
    assert {digest.algorithm for digest in (image.root.digest, *image.blobs)} == {"sha512"}
    assert json.loads(image.blobs[image.config.digest])["author"] == "somebody"


@pytest.mark.parametrize("changed", [0, 1, 3])
def test_the_next_version(changed: int) -> None:
    old = random_image("versions", media="docker", platform="linux/arm64")
    new = next_version(old, "newer", changed)
    same = [a == b for a, b in zip(old.layers, new.layers, strict=True)]
    assert same == [True] * (3 - changed) + [False] * changed
    assert new.config.digest != old.config.digest
    assert new.root.media_type == old.root.media_type
    assert ImageConfig.parse(new.blobs[new.config.digest]).platform == Platform.parse("linux/arm64")


def test_more_changes_than_layers() -> None:
    with pytest.raises(ValueError, match="cannot change 4"):
        next_version(random_image(1), 2, 4)


@pytest.mark.parametrize("media", ["oci", "docker"])
def test_indexes(media: Media) -> None:
    images = {"linux/amd64": random_image("a", media=media), "linux/arm64": random_image("b", media=media, platform="linux/arm64")}
    index = index_of(images, media)
    document = parse_document(index.manifest, index.root.media_type)
    assert isinstance(document, Index)
    for platform, image in images.items():
        assert document.choose(Platform.parse(platform)).digest == image.root.digest
        assert image.blobs.items() <= index.blobs.items()
    assert index.manifests == (*(image.root for image in images.values()), index.root)


def test_as_a_source_and_as_what_is_written() -> None:
    image = random_image("source")
    outgoing = image.outgoing("app:v1")
    assert [blob.digest for blob in outgoing.blobs] == [image.config.digest, *(layer.digest for layer in image.layers)]
    for descriptor in (*outgoing.blobs, *outgoing.manifests):
        with image.stream(descriptor) as chunks:
            assert descriptor.digest.matches(b"".join(chunks))
    with pytest.raises(NotFound), random_image("other").stream(image.layers[0]):
        pass


def test_docker_has_no_zstd_layers() -> None:
    pytest.importorskip("zstandard", reason="no zstd encoder: the zstandard package is not installed")
    assert random_image("z", compression="zstd").layers[0].media_type.endswith("+zstd")
    with pytest.raises(Unsupported):
        random_image("z", media="docker", compression="zstd")


def test_skopeo_takes_a_layout(tmp_path: Path, program: Callable[[str], str]) -> None:
    images = {"v1": random_image("one"), "all": index_of({"linux/amd64": random_image("two"), "linux/arm64": random_image("three", platform="linux/arm64")})}
    write_layout(tmp_path / "layout", images)
    for tag, image in images.items():
        copied = f"dir:{tmp_path}/{tag}"
        subprocess.run([program("skopeo"), "copy", "-q", "--all", "--preserve-digests", f"oci:{tmp_path}/layout:{tag}", copied], check=True)
        assert (tmp_path / tag / "manifest.json").read_bytes() == image.manifest
