"""OCI image layouts in a tar: whatever writes and copies them, and byte-identical writing."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from prefect_diffah.engine.errors import InvalidArchive, OutputExists
from prefect_diffah.engine.oci import Reference
from prefect_diffah.engine.testing.images import GeneratedImage, random_image, write_layout
from prefect_diffah.engine.transports import ImageReader, WriteOptions, Written, open_reader, open_writer

Write = Callable[..., Written]
Opened = Callable[[str], ImageReader]
Holds = Callable[[str, GeneratedImage], None]
Command = Callable[..., str]


def tar_of(folder: Path, names: list[str], prefix: str = "", directories: bool = False) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        if directories:
            for name in ("", "blobs/", "blobs/sha256/"):
                tar.add(folder / name, prefix + name or ".", recursive=False)
        for name in names:
            tar.add(folder / name, prefix + name)
    return buffer.getvalue()


@pytest.fixture
def laid_out(tmp_path: Path, image: GeneratedImage) -> tuple[Path, list[str]]:
    folder = write_layout(tmp_path / "layout", {"v1": image})
    return folder, sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("prefix", ["", "./", ".//"])
@pytest.mark.parametrize("backwards", [False, True])
def test_any_order_directories_and_prefixes(
    tmp_path: Path, prefix: str, backwards: bool, laid_out: tuple[Path, list[str]], image: GeneratedImage, assert_holds: Holds
) -> None:
    folder, names = laid_out
    (tmp_path / "a.tar").write_bytes(tar_of(folder, names[::-1] if backwards else names, prefix, directories=True))
    assert_holds(f"oci-archive:{tmp_path}/a.tar:v1", image)


def test_compressed_whatever_it_is_called(tmp_path: Path, laid_out: tuple[Path, list[str]], image: GeneratedImage, assert_holds: Holds) -> None:
    work = tmp_path / "work"
    (tmp_path / "a.tar").write_bytes(gzip.compress(tar_of(*laid_out)))
    assert_holds(f"oci-archive:{tmp_path}/a.tar:v1", image)
    with open_reader(Reference.parse(f"oci-archive:{tmp_path}/a.tar"), workdir=str(work)) as reader:
        assert reader.root()[1] == image.manifest
        assert os.listdir(work) == [], "the decompressed copy has no name"


def test_links_are_refused(tmp_path: Path, laid_out: tuple[Path, list[str]], opened: Opened) -> None:
    folder, names = laid_out
    (folder / "index.json").rename(folder / "real.json")
    (folder / "index.json").symlink_to("real.json")
    (tmp_path / "a.tar").write_bytes(tar_of(folder, [*names, "real.json"]))
    with pytest.raises(InvalidArchive, match="link"):
        opened(f"oci-archive:{tmp_path}/a.tar")


def test_a_tar_of_something_else(tmp_path: Path, opened: Opened) -> None:
    (tmp_path / "x").write_text("x")
    (tmp_path / "a.tar").write_bytes(tar_of(tmp_path, ["x"]))
    with pytest.raises(InvalidArchive, match="not an OCI image layout"):
        opened(f"oci-archive:{tmp_path}/a.tar")


def test_same_image_same_bytes(tmp_path: Path, image: GeneratedImage, write: Write) -> None:
    write(f"oci-archive:{tmp_path}/a.tar", image)
    write(f"oci-archive:{tmp_path}/b.tar", image)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        names = tar.getnames()
        assert names == ["index.json", "oci-layout", *sorted(names[2:])]
        assert {(member.mtime, member.mode, member.uid, member.uname) for member in tar} == {(0, 0o644, 0, "")}


def test_another_time_is_the_same_image(tmp_path: Path, image: GeneratedImage, write: Write) -> None:
    done = write(f"oci-archive:{tmp_path}/a.tar", image, mtime=1_700_000_000)
    assert done.size == (tmp_path / "a.tar").stat().st_size
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert {member.mtime for member in tar} == {1_700_000_000}
    assert write(f"oci-archive:{tmp_path}/a.tar", image).status == "unchanged"


@pytest.mark.parametrize("at", [0, 100, 700, -12000, -1])
def test_one_altered_byte_is_another_archive(tmp_path: Path, at: int, image: GeneratedImage, write: Write) -> None:
    write(f"oci-archive:{tmp_path}/a.tar", image)
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[at] ^= 0x10
    (tmp_path / "a.tar").write_bytes(data)
    with open_writer(Reference.parse(f"oci-archive:{tmp_path}/a.tar")) as writer:
        with pytest.raises(OutputExists):
            writer.check(image.outgoing("app:v2"), force=False)
        assert writer.check(image.outgoing("app:v2"), force=True) is False
        assert writer.write(image.outgoing("app:v2"), image, WriteOptions(force=True)).status == "written"


class TestJudges:
    @pytest.mark.parametrize("media", ["oci", "docker"])
    def test_skopeo_copies_what_was_written(self, tmp_path: Path, media: str, write: Write, skopeo: Command, assert_holds: Holds) -> None:
        image = random_image(f"judged {media}", media=media)  # type: ignore[arg-type]
        done = write(f"oci-archive:{tmp_path}/a.tar", image)
        tag = "" if media == "docker" else ":v2"
        assert bool(done.notes) is (media == "docker")
        assert skopeo("inspect", "--format", "{{.Digest}}", f"oci-archive:{tmp_path}/a.tar{tag}").strip() == image.root.digest
        skopeo("copy", "--preserve-digests", f"oci-archive:{tmp_path}/a.tar{tag}", f"dir:{tmp_path}/copied")
        assert_holds(f"dir:{tmp_path}/copied", image)

    def test_podman_loads_it(self, tmp_path: Path, image: GeneratedImage, write: Write, podman: Command) -> None:
        write(f"oci-archive:{tmp_path}/a.tar", image)
        assert podman("pull", "-q", f"oci-archive:{tmp_path}/a.tar").strip() == image.config.digest.hex

    def test_what_skopeo_and_podman_write_is_read(
        self, tmp_path: Path, image: GeneratedImage, write: Write, skopeo: Command, podman: Command, opened: Opened, assert_holds: Holds
    ) -> None:
        write(f"oci-archive:{tmp_path}/ours.tar", image)
        skopeo("copy", "--preserve-digests", f"oci-archive:{tmp_path}/ours.tar", f"oci-archive:{tmp_path}/theirs.tar:v9")
        assert_holds(f"oci-archive:{tmp_path}/theirs.tar:v9", image)
        podman("pull", "-q", f"oci-archive:{tmp_path}/ours.tar")
        podman("tag", image.config.digest.hex, "localhost/app:v2")
        podman("save", "-q", "--format", "oci-archive", "-o", f"{tmp_path}/podman.tar", "localhost/app:v2")
        with opened(f"oci-archive:{tmp_path}/podman.tar:v2") as reader:
            assert reader.root()[1] == skopeo("inspect", "--raw", f"oci-archive:{tmp_path}/podman.tar").encode()
