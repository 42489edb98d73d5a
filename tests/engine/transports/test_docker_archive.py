"""Archives of ``docker save``: today's with a layout inside, and those that name layers by diffID."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefect_diffah.engine import compression
from prefect_diffah.engine.errors import DigestMismatch, InvalidArchive, InvalidDocument, InvalidOptions, NotFound, SizeMismatch, Unsupported
from prefect_diffah.engine.oci import Digest, Manifest, Reference, parse_document
from prefect_diffah.engine.testing.images import GeneratedImage, image_of, random_image, random_layer
from prefect_diffah.engine.transports import ImageReader, Written, open_reader, open_writer

Write = Callable[..., Written]
Opened = Callable[[str], ImageReader]
Holds = Callable[[str, GeneratedImage], None]
Command = Callable[..., str]


class Saved:
    """An archive made by hand."""

    def __init__(self) -> None:
        self.members: dict[str, bytes] = {}
        self.links: dict[str, str] = {}
        self.items: list[dict[str, Any]] = []

    def add(self, image: GeneratedImage, *names: str, compress: Callable[[bytes], bytes] = bytes) -> Saved:
        """An image as Docker before 25 and podman keep it: layers uncompressed, by diffID."""
        config = image.blobs[image.config.digest]
        self.members[f"{image.config.digest.hex}.json"] = config
        paths = [f"{diff_id.hex}/layer.tar" for diff_id in image.diff_ids]
        for path, layer in zip(paths, image.layers, strict=True):
            self.members[path] = compress(gzip.decompress(image.blobs[layer.digest]))
        self.items.append({"Config": f"{image.config.digest.hex}.json", "RepoTags": list(names) or None, "Layers": paths})
        return self

    def write(self, path: Path) -> str:
        with tarfile.open(path, "w") as tar:
            for name, content in {**self.members, "manifest.json": json.dumps(self.items).encode()}.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            for name, target in self.links.items():
                info = tarfile.TarInfo(name)
                info.type, info.linkname = tarfile.SYMTYPE, target
                tar.addfile(info)
        return f"docker-archive:{path}"


class TestSynthesized:
    @pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress], ids=["plain", "gzip", "bzip2", "xz"])
    def test_the_manifest_is_skopeos(
        self, tmp_path: Path, compress: Callable[[bytes], bytes], image: GeneratedImage, opened: Opened, skopeo: Command, assert_holds: Holds
    ) -> None:
        place = Saved().add(image, "app:v2", compress=compress).write(tmp_path / "a.tar")
        with opened(place) as reader:
            root, raw = reader.root()
            assert raw.decode() == skopeo("inspect", "--raw", place)
            manifest = parse_document(raw)
            assert isinstance(manifest, Manifest)
            assert reader.document(manifest.config) == image.blobs[image.config.digest]
            for layer, diff_id in zip(manifest.layers, image.diff_ids, strict=True):
                assert layer.digest == diff_id
                assert reader.holds(layer)
                with reader.stream(layer) as chunks:
                    assert Digest.of(b"".join(chunks)) == diff_id
            assert root.digest in reader.notes[0]
            assert all(diff_id in reader.notes[1] for diff_id in image.diff_ids)
            assert [entry.digest for entry in reader.entries()] == [root.digest]

    def test_blobs_are_found_before_the_root_was_asked_for(self, tmp_path: Path, image: GeneratedImage, opened: Opened) -> None:
        place = Saved().add(image, "app:v2").write(tmp_path / "a.tar")
        with opened(place) as reader:
            root, raw = reader.root()
        for descriptor in (root, parse_document(raw).config):  # type: ignore[union-attr]
            with opened(place) as reader:
                assert reader.holds(descriptor)
            with opened(place) as reader:
                reader.document(descriptor)

    @pytest.mark.parametrize("asked", ["app:v2", "docker.io/library/app:v2", "docker.io/app:v2"])
    def test_chosen_by_name(self, tmp_path: Path, asked: str, image: GeneratedImage, other: GeneratedImage, opened: Opened, skopeo: Command) -> None:
        place = Saved().add(image, "app:v1").add(other, "other:v2", "app:v2").write(tmp_path / "a.tar")
        with opened(f"{place}:{asked}") as reader:
            assert reader.root()[1].decode() == skopeo("inspect", "--raw", f"{place}:{asked}")
            assert len(reader.entries()) == 2

    def test_chosen_by_digest(self, tmp_path: Path, image: GeneratedImage, other: GeneratedImage, opened: Opened) -> None:
        place = Saved().add(image).add(other).write(tmp_path / "a.tar")
        with opened(place) as reader:
            digest = reader.entries()[1].digest
        with opened(f"{place}@{digest}") as reader:
            assert reader.root()[0].digest == digest

    def test_several_none_and_an_unknown_name(self, tmp_path: Path, image: GeneratedImage, other: GeneratedImage, opened: Opened) -> None:
        place = Saved().add(image, "app:v1").add(other, "app:v2").write(tmp_path / "a.tar")
        with opened(place) as reader, pytest.raises(InvalidOptions, match="app:v1, app:v2"):
            reader.root()
        with opened(f"{place}:app:v3") as reader, pytest.raises(NotFound, match="it has: app:v1, app:v2"):
            reader.root()
        with opened(Saved().write(tmp_path / "none.tar")) as reader, pytest.raises(NotFound, match="no image"):
            reader.root()

    def test_links_to_other_layers_as_old_docker_wrote_them(self, tmp_path: Path, opened: Opened, skopeo: Command) -> None:
        layer = random_layer("again")
        image = image_of([layer, random_layer("between"), layer])
        saved = Saved().add(image, "app:v1")
        first = f"{image.diff_ids[0].hex}/layer.tar"
        saved.items[0]["Layers"][2] = "0123/layer.tar"
        saved.links["0123/layer.tar"] = f"../{first}"
        place = saved.write(tmp_path / "a.tar")
        with opened(place) as reader:
            assert reader.root()[1].decode() == skopeo("inspect", "--raw", place)

    def test_a_link_is_followed(self, tmp_path: Path, image: GeneratedImage, opened: Opened) -> None:
        saved = Saved().add(image, "app:v1")
        real = saved.items[0]["Layers"][1]
        saved.links["linked/layer.tar"] = f"../{real}"
        saved.items[0]["Layers"][1] = "./linked/layer.tar"
        with opened(saved.write(tmp_path / "a.tar")) as reader:
            manifest = parse_document(reader.root()[1])
            with reader.stream(manifest.layers[1]) as chunks:  # type: ignore[union-attr]
                assert Digest.of(b"".join(chunks)) == image.diff_ids[1]

    @pytest.mark.parametrize("target", ["../../etc/passwd", "/etc/passwd", "../loop/layer.tar", "../nowhere/layer.tar"])
    def test_links_out_of_it_in_circles_and_to_nothing(self, tmp_path: Path, target: str, image: GeneratedImage, opened: Opened) -> None:
        saved = Saved().add(image, "app:v1")
        saved.links["loop/layer.tar"] = target
        with pytest.raises(InvalidArchive, match=r"link|absolute"):
            opened(saved.write(tmp_path / "a.tar"))

    def test_a_layer_that_is_not_what_its_diff_id_says(self, tmp_path: Path, image: GeneratedImage, opened: Opened) -> None:
        saved = Saved().add(image, "app:v1")
        name = saved.items[0]["Layers"][0]
        saved.members[name] = saved.members[name][:-1] + b"x"
        with opened(saved.write(tmp_path / "a.tar")) as reader:
            manifest = parse_document(reader.root()[1])
            with pytest.raises(DigestMismatch), reader.stream(manifest.layers[0]) as chunks:  # type: ignore[union-attr]
                list(chunks)

    def test_a_baseline_without_a_manifest_says_why_it_lacks_compressed_layers(self, tmp_path: Path, image: GeneratedImage, opened: Opened) -> None:
        with opened(Saved().add(image, "app:v1").write(tmp_path / "a.tar")) as reader:
            assert not any(reader.holds(layer) for layer in image.layers)
            assert "uncompressed" in reader.notes[0]

    def test_a_layer_that_inflates_without_end(self, tmp_path: Path, image: GeneratedImage, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compression, "FREE_SIZE", 1_000_000)
        saved = Saved().add(image, "app:v1", compress=lambda content: bz2.compress(bytes(10_000_000)))
        with opened(saved.write(tmp_path / "a.tar")) as reader, pytest.raises(InvalidArchive, match="without end"):
            reader.root()

    def test_a_layer_that_inflates_to_more_than_is_expected(self, tmp_path: Path, image: GeneratedImage, opened: Opened) -> None:
        place = Saved().add(image, "app:v1", compress=gzip.compress).write(tmp_path / "a.tar")
        with opened(place) as reader:
            layer = parse_document(reader.root()[1]).layers[0]  # type: ignore[union-attr]
            with pytest.raises(SizeMismatch), reader.stream(layer.model_copy(update={"size": 5000})) as chunks:
                list(chunks)

    @pytest.mark.parametrize(
        ("break_it", "error"),
        [
            (lambda saved: saved.items.clear(), NotFound),
            (lambda saved: saved.items[0].update(Config="gone.json"), InvalidArchive),
            (lambda saved: saved.items[0].update(Config="../../etc/passwd"), InvalidArchive),
            (lambda saved: saved.items[0]["Layers"].pop(), InvalidArchive),
            (lambda saved: saved.items[0].update(Layers=["gone"] * 3), InvalidArchive),
            (lambda saved: saved.items[0].update(Layers=7), InvalidDocument),
            (lambda saved: saved.items[0].pop("Config"), InvalidDocument),
            (lambda saved: saved.items.insert(0, "text"), InvalidDocument),
            (lambda saved: saved.members.update({saved.items[0]["Config"]: b"{"}), InvalidDocument),
            (lambda saved: saved.members.update({saved.items[0]["Config"]: b'{"rootfs":{"diff_ids":["sha256:../.."]}}'}), InvalidDocument),
        ],
    )
    def test_broken_archives(self, tmp_path: Path, break_it: Callable[[Saved], Any], error: type[Exception], image: GeneratedImage, opened: Opened) -> None:
        saved = Saved().add(image, "app:v1")
        break_it(saved)
        with pytest.raises(error), opened(saved.write(tmp_path / "a.tar")) as reader:
            reader.root()

    def test_a_tar_of_something_else(self, tmp_path: Path, opened: Opened) -> None:
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            tar.addfile(tarfile.TarInfo("x"))
        with pytest.raises(InvalidArchive, match="docker save"):
            opened(f"docker-archive:{tmp_path}/a.tar")


class TestWithALayoutInside:
    def test_the_layout_wins(self, tmp_path: Path, image: GeneratedImage, write: Write, opened: Opened) -> None:
        write(f"docker-archive:{tmp_path}/a.tar", image)
        with opened(f"docker-archive:{tmp_path}/a.tar") as reader:
            assert reader.root()[1] == image.manifest
            assert reader.notes == ()

    @pytest.mark.parametrize("asked", ["app:v2", "docker.io/library/app:v2", "v2"])
    def test_chosen_by_name(self, tmp_path: Path, asked: str, image: GeneratedImage, write: Write, assert_holds: Holds) -> None:
        write(f"docker-archive:{tmp_path}/a.tar", image)
        assert_holds(f"docker-archive:{tmp_path}/a.tar:{asked}", image)

    def test_an_unknown_name(self, tmp_path: Path, image: GeneratedImage, write: Write, opened: Opened) -> None:
        write(f"docker-archive:{tmp_path}/a.tar", image)
        with opened(f"docker-archive:{tmp_path}/a.tar:app:v3") as reader, pytest.raises(NotFound, match="it has: v2"):
            reader.root()

    @pytest.mark.parametrize("layers", [None, []])
    def test_a_layout_whose_manifest_lists_no_layers(self, tmp_path: Path, layers: list[Any] | None, image: GeneratedImage, opened: Opened) -> None:
        # Docker 25.0 wrote such: only foreign layers, mostly none
        manifest = json.dumps(json.loads(image.manifest) | {"layers": layers}).encode()
        digest = Digest.of(manifest)
        saved = Saved().add(image, "app:v2")
        entry = {"mediaType": image.root.media_type, "digest": digest, "size": len(manifest)}
        saved.members |= {
            "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
            "index.json": json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode(),
            f"blobs/sha256/{digest.hex}": manifest,
            f"blobs/sha256/{image.config.digest.hex}": image.blobs[image.config.digest],
        }
        with opened(saved.write(tmp_path / "a.tar")) as reader:
            root, raw = reader.root()
            assert root.digest != digest
            assert [layer.digest for layer in parse_document(raw).layers] == list(image.diff_ids)  # type: ignore[union-attr]
            assert reader.notes


class TestWriting:
    @pytest.mark.parametrize(
        ("reference", "name", "repo_tag", "full"),
        [
            ("", "app:v2", "app:v2", "docker.io/library/app:v2"),
            ("", "app", "app:latest", "docker.io/library/app:latest"),
            (":team/app:v3", "app:v2", "team/app:v3", "docker.io/team/app:v3"),
            (":localhost:5000/app:v3", "app:v2", "localhost:5000/app:v3", "localhost:5000/app:v3"),
        ],
    )
    def test_names(self, tmp_path: Path, reference: str, name: str, repo_tag: str, full: str, image: GeneratedImage, write: Write) -> None:
        write(f"docker-archive:{tmp_path}/a.tar{reference}", image, name=name)
        with tarfile.open(tmp_path / "a.tar") as tar:
            manifest = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
            index = json.load(tar.extractfile("index.json"))  # type: ignore[arg-type]
            assert tar.getnames()[:3] == ["index.json", "manifest.json", "oci-layout"]
        blob = "blobs/sha256/"
        layers = [blob + layer.digest.hex for layer in image.layers]
        assert manifest == [{"Config": blob + image.config.digest.hex, "RepoTags": [repo_tag], "Layers": layers}]
        assert index["manifests"][0]["annotations"] == {"io.containerd.image.name": full, "org.opencontainers.image.ref.name": full.rpartition(":")[2]}

    def test_a_name_that_docker_does_not_know(self, tmp_path: Path, image: GeneratedImage, write: Write) -> None:
        with pytest.raises(InvalidOptions, match="App"):
            write(f"docker-archive:{tmp_path}/a.tar", image, name="App:v2")

    def test_a_layer_that_is_there_twice_is_one_member(self, tmp_path: Path, write: Write, skopeo: Command) -> None:
        layer = random_layer("twice")
        image = image_of([layer, layer])
        write(f"docker-archive:{tmp_path}/a.tar", image)
        with tarfile.open(tmp_path / "a.tar") as tar:
            names = tar.getnames()
        assert len(names) == len(set(names)) == 6
        assert json.loads(skopeo("inspect", f"docker-archive:{tmp_path}/a.tar"))["Layers"] == [layer.diff_id] * 2

    def test_artifacts_and_foreign_layers_are_refused(self, tmp_path: Path, image: GeneratedImage) -> None:
        outgoing = image.outgoing("app:v2")
        raw = image.manifest.replace(b"application/vnd.oci.image.config.v1+json", b"application/vnd.example.config+json")
        root = image.root.model_copy(update={"digest": Digest.of(raw), "size": len(raw)})
        artifact = replace(outgoing, root=root, documents={root.digest: raw}, manifests=(root,))
        without = replace(outgoing, blobs=outgoing.blobs[:-1])
        with open_writer(Reference.parse(f"docker-archive:{tmp_path}/a.tar")) as writer:
            for refused, message in ((artifact, "artifact"), (without, "not kept with the image")):
                with pytest.raises(Unsupported, match=message):
                    writer.check(refused, force=False)


class TestJudges:
    @pytest.mark.parametrize("media", ["oci", "docker"])
    def test_skopeo_reads_both_halves(self, tmp_path: Path, media: str, write: Write, skopeo: Command, assert_holds: Holds) -> None:
        image = random_image(f"judged {media}", media=media)  # type: ignore[arg-type]
        write(f"docker-archive:{tmp_path}/a.tar", image)
        assert skopeo("inspect", "--format", "{{.Digest}}", f"oci-archive:{tmp_path}/a.tar").strip() == image.root.digest
        skopeo("copy", "--preserve-digests", f"oci-archive:{tmp_path}/a.tar", f"dir:{tmp_path}/copied")
        assert_holds(f"dir:{tmp_path}/copied", image)
        inspected = json.loads(skopeo("inspect", f"docker-archive:{tmp_path}/a.tar:app:v2"))
        assert inspected["Layers"] == list(image.diff_ids)
        assert json.loads(skopeo("inspect", "--raw", f"docker-archive:{tmp_path}/a.tar"))["config"]["digest"] == image.config.digest

    def test_podman_loads_it(self, tmp_path: Path, image: GeneratedImage, write: Write, podman: Command) -> None:
        write(f"docker-archive:{tmp_path}/a.tar", image)
        assert "app:v2" in podman("load", "-i", f"{tmp_path}/a.tar")
        assert podman("images", "-q", "--no-trunc").strip() == image.config.digest

    def test_what_skopeo_and_podman_write_is_read(
        self, tmp_path: Path, image: GeneratedImage, write: Write, skopeo: Command, podman: Command, opened: Opened
    ) -> None:
        write(f"docker-archive:{tmp_path}/ours.tar", image)
        skopeo("copy", f"oci-archive:{tmp_path}/ours.tar", f"docker-archive:{tmp_path}/skopeo.tar:app:v2")
        podman("load", "-q", "-i", f"{tmp_path}/ours.tar")
        podman("save", "-q", "-o", f"{tmp_path}/podman.tar", "app:v2")
        for name in ("skopeo", "podman"):
            place = f"docker-archive:{tmp_path}/{name}.tar"
            with opened(f"{place}:app:v2") as reader:
                raw = reader.root()[1]
                assert raw.decode() == skopeo("inspect", "--raw", place)
                skopeo("copy", place, f"dir:{tmp_path}/{name}")
                assert raw == (tmp_path / name / "manifest.json").read_bytes()
                for layer, diff_id in zip(parse_document(raw).layers, image.diff_ids, strict=True):  # type: ignore[union-attr]
                    assert layer.digest == diff_id
                    with reader.stream(layer) as chunks:
                        assert Digest.of(b"".join(chunks)) == diff_id


def test_closing_frees_the_decompressed_copy(tmp_path: Path, image: GeneratedImage) -> None:
    Saved().add(image, "app:v1").write(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    with open_reader(Reference.parse(f"docker-archive:{tmp_path}/a.tar")) as reader:
        layer = parse_document(reader.root()[1]).layers[0]  # type: ignore[union-attr]
        with reader.stream(layer) as chunks:
            assert Digest.of(b"".join(chunks)) == layer.digest
    with pytest.raises(ValueError, match="closed"), reader.stream(layer) as chunks:
        list(chunks)
