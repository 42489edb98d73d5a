"""skopeo's plain folder, as skopeo reads and writes it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from prefect_diffah.engine.errors import InvalidArchive, OutputExists
from prefect_diffah.engine.storage import FileLocation
from prefect_diffah.engine.testing.images import GeneratedImage, index_of, random_image, write_layout
from prefect_diffah.engine.transports import ImageReader, Written

Write = Callable[..., Written]
Opened = Callable[[str], ImageReader]
Holds = Callable[[str, GeneratedImage], None]
Command = Callable[..., str]


@pytest.fixture(scope="module")
def index() -> GeneratedImage:
    return index_of({"linux/amd64": random_image("amd"), "linux/arm64": random_image("arm", platform="linux/arm64")})


def test_what_it_holds(tmp_path: Path, image: GeneratedImage, write: Write) -> None:
    write(f"dir:{tmp_path}/out", image)
    assert sorted(os.listdir(tmp_path / "out")) == sorted(["version", "manifest.json", *(digest.hex for digest in image.blobs)])
    assert (tmp_path / "out" / "version").read_text() == "Directory Transport Version: 1.1\n"


def test_a_folder_without_a_version_is_read_as_skopeo_reads_it(tmp_path: Path, image: GeneratedImage, write: Write, assert_holds: Holds) -> None:
    write(f"dir:{tmp_path}/out", image)
    (tmp_path / "out" / "version").unlink()
    assert_holds(f"dir:{tmp_path}/out", image)


@pytest.mark.parametrize("version", ["Directory Transport Version: 2.0\n", "", "something"])
def test_an_unknown_version(tmp_path: Path, version: str, image: GeneratedImage, write: Write, opened: Opened) -> None:
    write(f"dir:{tmp_path}/out", image)
    (tmp_path / "out" / "version").write_text(version)
    with pytest.raises(InvalidArchive):
        opened(f"dir:{tmp_path}/out")
    with pytest.raises(OutputExists):
        write(f"dir:{tmp_path}/out", image, force=True)


def test_another_kind_of_folder(tmp_path: Path, image: GeneratedImage, opened: Opened) -> None:
    write_layout(tmp_path, {"v1": image})
    with pytest.raises(InvalidArchive, match="not an image of dir") as caught:
        opened(f"dir:{tmp_path}")
    assert "oci:" in caught.value.next_action


def test_an_incomplete_one_is_mended_without_force(tmp_path: Path, image: GeneratedImage, write: Write, assert_holds: Holds) -> None:
    write(f"dir:{tmp_path}/out", image)
    (tmp_path / "out" / image.layers[0].digest.hex).unlink()
    assert write(f"dir:{tmp_path}/out", image).status == "written"
    assert_holds(f"dir:{tmp_path}/out", image)
    assert os.listdir(tmp_path) == ["out"]


def test_other_files_in_an_image_are_not_deleted(tmp_path: Path, image: GeneratedImage, other: GeneratedImage, write: Write) -> None:
    write(f"dir:{tmp_path}/out", image)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(OutputExists, match="never deleted"):
            write(f"dir:{tmp_path}/out", other, force=force)


@pytest.mark.parametrize("local", [True, False])
def test_replacing_leaves_nothing_of_the_old_image(tmp_path: Path, local: bool, image: GeneratedImage, other: GeneratedImage, write: Write) -> None:
    place = f"{tmp_path}/out" if local else f"memory://{tmp_path.name}/replaced"
    write(f"dir:{place}", image)
    with FileLocation(f"{place}/signature-1").replacing() as file:
        file.write(b"of the old image")
    write(f"dir:{place}", other, force=True)
    location = FileLocation(place)
    names = {path.rpartition("/")[2] for path in location.fs.ls(location.path, detail=False)}
    assert names == {"version", "manifest.json", *(digest.hex for digest in other.blobs)}


def test_the_manifest_is_written_last_on_object_stores(image: GeneratedImage, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    replacing = FileLocation.replacing
    monkeypatch.setattr(FileLocation, "replacing", lambda self, size=None: order.append(self.url.rpartition("/")[2]) or replacing(self, size))
    write("dir:memory://dir-written-last", image)
    assert (order[0], order[-1]) == ("version", "manifest.json")


class TestJudges:
    @pytest.mark.parametrize("media", ["oci", "docker"])
    def test_skopeo_copies_what_was_written(self, tmp_path: Path, media: str, write: Write, skopeo: Command, assert_holds: Holds) -> None:
        image = random_image(f"judged {media}", media=media)  # type: ignore[arg-type]
        write(f"dir:{tmp_path}/out", image)
        assert skopeo("inspect", "--format", "{{.Digest}}", f"dir:{tmp_path}/out").strip() == image.root.digest
        skopeo("copy", "--preserve-digests", f"dir:{tmp_path}/out", f"oci:{tmp_path}/copied")
        assert_holds(f"oci:{tmp_path}/copied", image)

    def test_skopeo_copies_an_index(self, tmp_path: Path, index: GeneratedImage, write: Write, skopeo: Command, assert_holds: Holds) -> None:
        write(f"dir:{tmp_path}/out", index)
        skopeo("copy", "--all", "--preserve-digests", f"dir:{tmp_path}/out", f"oci:{tmp_path}/copied:v1")
        assert_holds(f"oci:{tmp_path}/copied:v1", index)

    def test_the_same_files_as_skopeo(self, tmp_path: Path, index: GeneratedImage, write: Write, skopeo: Command, assert_holds: Holds) -> None:
        write_layout(tmp_path / "layout", {"v1": index})
        skopeo("copy", "--all", "--preserve-digests", f"oci:{tmp_path}/layout:v1", f"dir:{tmp_path}/theirs")
        write(f"dir:{tmp_path}/ours", index)
        theirs, ours = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("theirs", "ours"))
        assert ours == theirs
        assert_holds(f"dir:{tmp_path}/theirs", index)
        assert write(f"dir:{tmp_path}/theirs", index).status == "unchanged"
