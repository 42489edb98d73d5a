"""OCI image layouts in folders: choosing, tagging, and what skopeo, podman and umoci make of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prefect_diffah.engine.errors import InvalidArchive, InvalidDocument, InvalidOptions, NotFound, SizeMismatch, UnsupportedVersion
from prefect_diffah.engine.oci import Reference
from prefect_diffah.engine.storage import FileLocation
from prefect_diffah.engine.testing.images import GeneratedImage, index_of, random_image, write_layout
from prefect_diffah.engine.transports import ImageReader, WriteOptions, Written, _folders, open_writer
from prefect_diffah.engine.transports._layout import full_name, tagged

Write = Callable[..., Written]
Opened = Callable[[str], ImageReader]
Holds = Callable[[str, GeneratedImage], None]
Command = Callable[..., str]


def index_json(folder: Path) -> dict[str, list[dict[str, object]]]:
    return json.loads((folder / "index.json").read_text())  # type: ignore[no-any-return]


def annotate(folder: Path, *annotations: dict[str, str]) -> None:
    index = index_json(folder)
    for entry, given in zip(index["manifests"], annotations, strict=True):
        entry["annotations"] = given
    (folder / "index.json").write_text(json.dumps(index))


class TestReading:
    def test_by_tag_by_digest_and_the_only_one(self, tmp_path: Path, image: GeneratedImage, other: GeneratedImage, opened: Opened, assert_holds: Holds) -> None:
        write_layout(tmp_path / "two", {"v1": image, "v2": other})
        write_layout(tmp_path / "one", {"v1": image})
        assert_holds(f"oci:{tmp_path}/two:v1", image)
        assert_holds(f"oci:{tmp_path}/two:v2", other)
        assert_holds(f"oci:{tmp_path}/two@{other.root.digest}", other)
        assert_holds(f"oci:{tmp_path}/two:v2@{other.root.digest}", other)
        assert_holds(f"oci:{tmp_path}/one", image)
        with opened(f"oci:{tmp_path}/two") as reader:
            assert [entry.digest for entry in reader.entries()] == [image.root.digest, other.root.digest]

    def test_several_and_no_choice(self, tmp_path: Path, image: GeneratedImage, other: GeneratedImage, opened: Opened) -> None:
        write_layout(tmp_path, {"v1": image, "v2": other})
        with opened(f"oci:{tmp_path}") as reader, pytest.raises(InvalidOptions, match="v1, v2") as caught:
            reader.root()
        assert caught.value.details["tags"] == ["v1", "v2"]

    def test_one_image_of_two_names_needs_no_choice(self, tmp_path: Path, image: GeneratedImage, assert_holds: Holds) -> None:
        write_layout(tmp_path, {"v1": image, "latest": image})
        assert_holds(f"oci:{tmp_path}", image)

    def test_tags_and_digests_that_are_not_there(self, tmp_path: Path, image: GeneratedImage, other: GeneratedImage, opened: Opened) -> None:
        write_layout(tmp_path, {"v1": image, "v2": other})
        for reference, message in (
            (f"oci:{tmp_path}:v3", "no image v3; it has: v1, v2"),
            (f"oci:{tmp_path}:v1@{other.root.digest}", f"v1 in .* is {image.root.digest}"),
            (f"oci:{tmp_path}@{image.config.digest}", "is no manifest"),
            (f"oci:{tmp_path}@sha256:{'0' * 64}", "no image sha256:0000"),
        ):
            with opened(reference) as reader, pytest.raises(NotFound, match=message):
                reader.root()

    def test_an_empty_layout(self, tmp_path: Path, opened: Opened) -> None:
        write_layout(tmp_path, {})
        with opened(f"oci:{tmp_path}") as reader, pytest.raises(NotFound, match="no image"):
            reader.root()

    def test_a_manifest_below_an_index_by_digest(self, tmp_path: Path, assert_holds: Holds) -> None:
        arm = random_image("arm", platform="linux/arm64")
        index = index_of({"linux/amd64": random_image("amd"), "linux/arm64": arm})
        write_layout(tmp_path, {"v1": index})
        assert_holds(f"oci:{tmp_path}@{arm.root.digest}", arm)

    @pytest.mark.parametrize("asked", ["v2", "app:v2", "docker.io/library/app:v2"])
    @pytest.mark.parametrize("key", ["io.containerd.image.name", "org.opencontainers.image.ref.name"])
    def test_whole_names_as_containerd_and_podman_write_them(
        self, tmp_path: Path, asked: str, key: str, image: GeneratedImage, other: GeneratedImage, assert_holds: Holds
    ) -> None:
        write_layout(tmp_path, {"a": image, "b": other})
        annotate(tmp_path, {key: "docker.io/library/app:v1"}, {key: "docker.io/library/app:v2"})
        assert_holds(f"oci:{tmp_path}:{asked}", other)

    def test_a_layouts_own_name_goes_before_others(self, tmp_path: Path, image: GeneratedImage, other: GeneratedImage, assert_holds: Holds) -> None:
        write_layout(tmp_path, {"a": image, "b": other})
        annotate(tmp_path, {"io.containerd.image.name": "docker.io/library/app:v2"}, {"org.opencontainers.image.ref.name": "v2"})
        assert_holds(f"oci:{tmp_path}:v2", other)

    def test_a_name_that_two_images_share(self, tmp_path: Path, image: GeneratedImage, other: GeneratedImage, opened: Opened) -> None:
        write_layout(tmp_path, {"a": image, "b": other})
        annotate(tmp_path, {"io.containerd.image.name": "localhost/a:v2"}, {"io.containerd.image.name": "localhost/b:v2"})
        with opened(f"oci:{tmp_path}:v2") as reader, pytest.raises(InvalidOptions, match="several"):
            reader.root()

    @pytest.mark.parametrize(
        ("name", "content", "error"),
        [
            ("oci-layout", '{"imageLayoutVersion":"2.0.0"}', UnsupportedVersion),
            ("oci-layout", "{}", UnsupportedVersion),
            ("oci-layout", "[]", InvalidDocument),
            ("oci-layout", None, InvalidArchive),
            ("index.json", None, NotFound),
            ("index.json", "{", InvalidDocument),
            ("index.json", '{"schemaVersion":2}', InvalidDocument),
            ("index.json", '{"schemaVersion":2,"manifests":[{"mediaType":"a","digest":"sha256:../../etc/passwd","size":1}]}', InvalidDocument),
            ("index.json", '{"schemaVersion":2,"manifests":[{"mediaType":"a","digest":"sha256:%s","size":-1}]}' % ("0" * 64), InvalidDocument),
            ("index.json", '{"schemaVersion":2,"manifests":["a"]}', InvalidDocument),
            ("index.json", '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","manifests":[]}', InvalidDocument),
        ],
    )
    def test_broken_layouts(self, tmp_path: Path, name: str, content: str | None, error: type[Exception], image: GeneratedImage, opened: Opened) -> None:
        write_layout(tmp_path, {"v1": image})
        (tmp_path / name).unlink()
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(error), opened(f"oci:{tmp_path}") as reader:
            reader.root()

    def test_an_index_of_more_than_4_mib(self, tmp_path: Path, image: GeneratedImage, opened: Opened) -> None:
        write_layout(tmp_path, {"v1": image})
        (tmp_path / "index.json").write_bytes(b" " * (4 * 1024 * 1024) + (tmp_path / "index.json").read_bytes())
        with pytest.raises(SizeMismatch):
            opened(f"oci:{tmp_path}")


class TestWriting:
    def test_a_tag_moves_and_everything_else_is_kept(self, tmp_path: Path, image: GeneratedImage, other: GeneratedImage, write: Write) -> None:
        third = random_image("third")
        write_layout(tmp_path, {"v1": image, "v2": other})
        index = index_json(tmp_path)
        index["manifests"][0]["unknown"] = {"kept": [1, "ü"]}
        index["manifests"][1]["annotations"] |= {"by": "someone"}  # type: ignore[operator]
        index["own"] = "member"  # type: ignore[assignment]
        (tmp_path / "index.json").write_text(json.dumps(index))
        before = index_json(tmp_path)
        write(f"oci:{tmp_path}:v2", third)
        after = index_json(tmp_path)
        assert after["manifests"][0] == before["manifests"][0]
        assert after["manifests"][1] == before["manifests"][1] | {"annotations": {"by": "someone"}}
        assert after["manifests"][2]["digest"] == third.root.digest
        assert after["manifests"][2]["annotations"] == {"org.opencontainers.image.ref.name": "v2"}
        assert {key: value for key, value in after.items() if key != "manifests"} == {key: value for key, value in before.items() if key != "manifests"}

    def test_an_entry_that_lost_its_tag_is_taken_up_again(self, tmp_path: Path, image: GeneratedImage, other: GeneratedImage, write: Write) -> None:
        for each in (image, other, image):
            write(f"oci:{tmp_path}/out:v1", each)
        entries = index_json(tmp_path / "out")["manifests"]
        assert [(entry["digest"], entry.get("annotations")) for entry in entries] == [
            (other.root.digest, None),
            (image.root.digest, {"org.opencontainers.image.ref.name": "v1"}),
        ]

    def test_a_second_name_for_one_image(self, tmp_path: Path, image: GeneratedImage, write: Write, assert_holds: Holds) -> None:
        write(f"oci:{tmp_path}/out:v1", image)
        done = write(f"oci:{tmp_path}/out:latest", image)
        assert done.status == "written"
        assert done.bytes_written < 1000
        assert_holds(f"oci:{tmp_path}/out:v1", image)
        assert_holds(f"oci:{tmp_path}/out:latest", image)

    @pytest.mark.parametrize(("name", "tag"), [("app:v2", "v2"), ("app", "latest"), ("localhost:5000/app", "latest"), ("localhost:5000/app:x", "x")])
    def test_the_tag_comes_from_the_name(self, tmp_path: Path, name: str, tag: str, image: GeneratedImage, write: Write) -> None:
        write(f"oci:{tmp_path}/out", image, name=name)
        assert index_json(tmp_path / "out")["manifests"][0]["annotations"] == {"org.opencontainers.image.ref.name": tag}

    def test_a_missing_blob_is_put_back(self, tmp_path: Path, image: GeneratedImage, write: Write, assert_holds: Holds) -> None:
        write(f"oci:{tmp_path}/out", image)
        index = (tmp_path / "out" / "index.json").read_bytes()
        (tmp_path / "out" / "blobs" / "sha256" / image.layers[0].digest.hex).unlink()
        assert write(f"oci:{tmp_path}/out", image).bytes_written == image.layers[0].size
        assert (tmp_path / "out" / "index.json").read_bytes() == index
        assert_holds(f"oci:{tmp_path}/out", image)

    def test_blobs_that_are_there_are_hashed_once(self, tmp_path: Path, image: GeneratedImage, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        hashed: list[str] = []
        verifies = _folders.verifies
        monkeypatch.setattr(_folders, "verifies", lambda place, descriptor: hashed.append(descriptor.digest) or verifies(place, descriptor))
        write(f"oci:{tmp_path}/out:v1", image)
        with open_writer(Reference.parse(f"oci:{tmp_path}/out:v1")) as writer:
            hashed.clear()
            assert all(writer.obtain(image.outgoing("app:v1"), blob) for blob in image.outgoing("app:v1").blobs)
            assert writer.write(image.outgoing("app:v1"), image, WriteOptions()).status == "unchanged"
        assert sorted(hashed) == sorted([*image.blobs, *image.documents])

    def test_the_index_is_written_last_on_object_stores(self, image: GeneratedImage, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        order: list[str] = []
        replacing = FileLocation.replacing
        monkeypatch.setattr(FileLocation, "replacing", lambda self, size=None: order.append(self.url.rpartition("/")[2]) or replacing(self, size))
        write("oci:memory://written-last", image)
        assert (order[0], order[-1]) == ("oci-layout", "index.json")
        assert set(order[1:-1]) == {digest.hex for digest in (*image.blobs, *image.documents)}

    def test_an_empty_folder_is_filled(self, tmp_path: Path, image: GeneratedImage, write: Write, assert_holds: Holds) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "link").symlink_to("out")
        write(f"oci:{tmp_path}/link", image)
        assert (tmp_path / "link").is_symlink()
        assert_holds(f"oci:{tmp_path}/out", image)

    def test_a_layout_of_an_unknown_version_is_left_alone(self, tmp_path: Path, image: GeneratedImage, write: Write) -> None:
        write_layout(tmp_path, {"v1": image})
        (tmp_path / "oci-layout").write_text('{"imageLayoutVersion":"2.0.0"}')
        with pytest.raises(UnsupportedVersion):
            write(f"oci:{tmp_path}", image, force=True)

    def test_what_a_killed_run_left_is_removed_by_the_next(self, tmp_path: Path, image: GeneratedImage, write: Write, assert_holds: Holds) -> None:
        script = (
            "import sys, time\n"
            "from prefect_diffah.engine.storage import FileLocation\n"
            "from prefect_diffah.engine.transports._folders import appearing, put\n"
            "with appearing(FileLocation(sys.argv[1]), 0) as folder:\n"
            "    put(folder.child('blobs/x'), b'half')\n"
            "    print('half', flush=True)\n"
            "    time.sleep(600)\n"
        )
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "out")], stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"half\n"
            live = os.listdir(tmp_path)
            assert live != ["out"]
            write(f"oci:{tmp_path}/out:v1", image)
            assert sorted(os.listdir(tmp_path)) == sorted([*live, "out"]), "another's folder was taken while it was being written"
        finally:
            process.kill()
            process.communicate()
        write(f"oci:{tmp_path}/out2:v1", image)
        (tmp_path / "out").rename(tmp_path / "moved")
        write(f"oci:{tmp_path}/out:v1", image)
        assert sorted(os.listdir(tmp_path)) == ["moved", "out", "out2"]
        assert_holds(f"oci:{tmp_path}/out:v1", image)


def test_tagged_refuses_what_is_no_index() -> None:
    with pytest.raises(InvalidDocument):
        tagged(b'{"schemaVersion":2,"manifests":{}}', {"annotations": {"org.opencontainers.image.ref.name": "a"}, "digest": "x"})


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("app", "docker.io/library/app:latest"),
        ("app:v2", "docker.io/library/app:v2"),
        ("team/app:v2", "docker.io/team/app:v2"),
        ("localhost/app:v2", "localhost/app:v2"),
        ("host:5000/app", "host:5000/app:latest"),
        ("App:v2", None),
        ("app@sha256:" + "0" * 64, None),
        ("", None),
    ],
)
def test_full_names(name: str, full: str | None) -> None:
    assert full_name(name) == full


class TestJudges:
    @pytest.mark.parametrize("media", ["oci", "docker"])
    def test_skopeo_copies_what_was_written(self, tmp_path: Path, media: str, write: Write, skopeo: Command, assert_holds: Holds) -> None:
        image = random_image(f"judged {media}", media=media)  # type: ignore[arg-type]
        write(f"oci:{tmp_path}/out", image)
        assert skopeo("inspect", "--format", "{{.Digest}}", f"oci:{tmp_path}/out").strip() == image.root.digest
        skopeo("copy", "--preserve-digests", f"oci:{tmp_path}/out", f"dir:{tmp_path}/copied")
        assert_holds(f"dir:{tmp_path}/copied", image)

    def test_skopeo_finds_both_of_two(self, tmp_path: Path, image: GeneratedImage, other: GeneratedImage, write: Write, skopeo: Command) -> None:
        write(f"oci:{tmp_path}/out:v1", image)
        write(f"oci:{tmp_path}/out:v2", other)
        for tag, each in (("v1", image), ("v2", other)):
            assert skopeo("inspect", "--raw", f"oci:{tmp_path}/out:{tag}").encode() == each.manifest

    def test_what_skopeo_and_umoci_write_is_read(
        self, tmp_path: Path, image: GeneratedImage, write: Write, skopeo: Command, umoci: Command, opened: Opened, assert_holds: Holds
    ) -> None:
        write(f"oci:{tmp_path}/ours:v1", image)
        skopeo("copy", "--preserve-digests", f"oci:{tmp_path}/ours:v1", f"oci:{tmp_path}/theirs:v1")
        assert_holds(f"oci:{tmp_path}/theirs:v1", image)
        umoci("tag", "--image", f"{tmp_path}/theirs:v1", "v2")
        assert_holds(f"oci:{tmp_path}/theirs:v2", image)
        umoci("init", "--layout", f"{tmp_path}/new")
        with opened(f"oci:{tmp_path}/new") as reader:
            assert list(reader.entries()) == []
        write(f"oci:{tmp_path}/new:v1", image)
        assert umoci("list", "--layout", f"{tmp_path}/new").split() == ["v1"]

    def test_podman_pulls_it(self, tmp_path: Path, image: GeneratedImage, write: Write, podman: Command) -> None:
        write(f"oci:{tmp_path}/out:v1", image)
        assert podman("pull", "-q", f"oci:{tmp_path}/out:v1").strip() == image.config.digest.hex
