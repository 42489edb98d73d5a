"""What every file transport promises, on a disk and on an object store."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from prefect_diffah.engine.errors import (
    DigestMismatch,
    InvalidArchive,
    InvalidOptions,
    NoSpace,
    NotFound,
    OutputExists,
    SizeMismatch,
    StorageError,
    Unsupported,
)
from prefect_diffah.engine.oci import Descriptor, Digest, Reference
from prefect_diffah.engine.storage import FileLocation
from prefect_diffah.engine.testing.images import GeneratedImage, image_of, index_of, next_version, random_image, random_layer
from prefect_diffah.engine.transports import ImageReader, Written, open_reader, open_writer

TRANSPORTS = ["oci", "oci-archive", "docker-archive", "dir"]
pytestmark = pytest.mark.parametrize("transport", TRANSPORTS)

Write = Callable[..., Written]
Holds = Callable[[str, GeneratedImage], None]


class Failing:
    """Hands out an image's blobs until it fails half-way through the last."""

    def __init__(self, image: GeneratedImage, error: BaseException) -> None:
        self._image, self._error = image, error

    @contextmanager
    def stream(self, descriptor: Descriptor) -> Iterator[Iterator[bytes]]:
        with self._image.stream(descriptor) as chunks:
            yield self._half(chunks) if descriptor == self._image.layers[-1] else chunks

    def _half(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        yield next(chunks)[:100]
        raise self._error


class Silent:
    """A source that must not be asked."""

    def stream(self, descriptor: Descriptor) -> None:
        pytest.fail(f"asked for {descriptor.digest}")


@pytest.mark.parametrize("media", ["oci", "docker"])
def test_round_trip(transport: str, folder: str, media: str, write: Write, assert_holds: Holds) -> None:
    image = random_image(media, media=media)  # type: ignore[arg-type]
    done = write(f"{transport}:{folder}/out", image)
    assert done.status == "written"
    assert done.root == image.root.digest
    assert done.bytes_written >= sum(map(len, image.blobs.values()))
    assert_holds(f"{transport}:{folder}/out", image)


def test_layers_that_are_there_twice(transport: str, folder: str, write: Write, assert_holds: Holds) -> None:
    layer = random_layer("twice")
    image = image_of([layer, random_layer("once"), layer])
    write(f"{transport}:{folder}/out", image)
    assert_holds(f"{transport}:{folder}/out", image)


def test_sha512(transport: str, tmp_path: Path, write: Write, opened: Callable[[str], ImageReader]) -> None:
    image = random_image("sha512", algorithm="sha512")
    write(f"{transport}:{tmp_path}/out", image)
    with opened(f"{transport}:{tmp_path}/out") as reader:
        assert reader.root()[1] == image.manifest
        for blob in image.outgoing("x").blobs:
            with reader.stream(blob) as chunks:
                assert b"".join(chunks) == image.blobs[blob.digest]


def test_index(transport: str, folder: str, write: Write, assert_holds: Holds) -> None:
    index = index_of({"linux/amd64": random_image("amd"), "linux/arm64": random_image("arm", platform="linux/arm64")})
    if transport == "docker-archive":
        with pytest.raises(Unsupported, match="one platform"):
            write(f"{transport}:{folder}/out", index)
        assert not FileLocation(f"{folder}/out").exists()
        return
    write(f"{transport}:{folder}/out", index)
    assert_holds(f"{transport}:{folder}/out", index)


def test_written_again_is_unchanged(transport: str, folder: str, image: GeneratedImage, write: Write) -> None:
    with open_writer(Reference.parse(f"{transport}:{folder}/out")) as writer:
        assert writer.check(image.outgoing("app:v2"), force=False) is False
    write(f"{transport}:{folder}/out", image)
    with open_writer(Reference.parse(f"{transport}:{folder}/out")) as writer:
        assert writer.check(image.outgoing("app:v2"), force=False) is True
    done = write(f"{transport}:{folder}/out", image, source=Silent())
    assert (done.status, done.bytes_written) == ("unchanged", 0)


def test_another_image_is_refused_without_force(
    transport: str, folder: str, image: GeneratedImage, other: GeneratedImage, write: Write, assert_holds: Holds
) -> None:
    place = f"{transport}:{folder}/out"
    write(place, image)
    if transport == "oci":
        write(place, other, name="app:v3")
        assert_holds(f"{place}:v2", image)
        assert_holds(f"{place}:v3", other)
        return
    with pytest.raises(OutputExists):
        write(place, other)
    assert_holds(place, image)
    write(place, other, force=True)
    assert_holds(place, other)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DigestMismatch("not those bytes"), OSError(5, "Input/output error")], ids=lambda e: type(e).__name__)
def test_a_write_that_fails_leaves_nothing(
    transport: str, folder: str, error: BaseException, image: GeneratedImage, write: Write, opened: Callable[[str], ImageReader]
) -> None:
    with pytest.raises(StorageError if isinstance(error, OSError) else type(error)):
        write(f"{transport}:{folder}/out", image, source=Failing(image, error))
    if not folder.startswith("memory:"):
        assert os.listdir(folder) == []
    with pytest.raises((NotFound, InvalidArchive)), opened(f"{transport}:{folder}/out") as reader:
        reader.root()


def test_a_write_over_another_that_fails_keeps_it(
    transport: str, tmp_path: Path, image: GeneratedImage, other: GeneratedImage, write: Write, assert_holds: Holds
) -> None:
    write(f"{transport}:{tmp_path}/out", image)
    with pytest.raises(DigestMismatch):
        write(f"{transport}:{tmp_path}/out", other, source=Failing(other, DigestMismatch("x")), name="app:v3", force=True)
    assert_holds(f"{transport}:{tmp_path}/out", image)
    assert os.listdir(tmp_path) == ["out"]


def test_after_a_failure_it_can_be_written(transport: str, folder: str, image: GeneratedImage, write: Write, assert_holds: Holds) -> None:
    with pytest.raises(DigestMismatch):
        write(f"{transport}:{folder}/out", image, source=Failing(image, DigestMismatch("x")))
    write(f"{transport}:{folder}/out", image)
    assert_holds(f"{transport}:{folder}/out", image)


def test_a_full_disk(transport: str, tmp_path: Path, image: GeneratedImage, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(NoSpace):
        write(f"{transport}:{tmp_path}/out", image)
    assert os.listdir(tmp_path) == []


def test_the_null_device(transport: str, image: GeneratedImage, write: Write) -> None:
    assert write(f"{transport}:/dev/null", image).status == "written"
    assert Path("/dev/null").is_char_device()


def test_what_is_no_image_is_not_deleted(transport: str, tmp_path: Path, image: GeneratedImage, write: Write) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(OutputExists):
            write(f"{transport}:{tmp_path}/out", image, force=force)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_a_file_in_the_way(transport: str, tmp_path: Path, image: GeneratedImage, write: Write, assert_holds: Holds) -> None:
    (tmp_path / "out").write_text("something")
    with pytest.raises(OutputExists):
        write(f"{transport}:{tmp_path}/out", image)
    assert (tmp_path / "out").read_text() == "something"
    write(f"{transport}:{tmp_path}/out", image, force=True)
    assert_holds(f"{transport}:{tmp_path}/out", image)
    assert os.listdir(tmp_path) == ["out"]


def test_what_appears_meanwhile_is_kept(transport: str, tmp_path: Path, image: GeneratedImage, write: Write) -> None:
    class Slow:
        def stream(self, descriptor: Descriptor) -> AbstractContextManager[Iterator[bytes]]:
            (tmp_path / "out").mkdir(exist_ok=True)
            (tmp_path / "out" / "thesis.txt").write_text("years of work")
            return image.stream(descriptor)

    with pytest.raises((OutputExists, InvalidOptions)):
        write(f"{transport}:{tmp_path}/out", image, source=Slow())
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"
    assert os.listdir(tmp_path) == ["out"]


def test_an_output_with_another_digest_is_refused(transport: str, tmp_path: Path, image: GeneratedImage, write: Write) -> None:
    reference = Reference(transport=transport, where=f"{tmp_path}/out", digest=Digest.of(b"another"))  # type: ignore[arg-type]
    with open_writer(reference) as writer, pytest.raises(InvalidOptions, match="digest"):
        writer.check(image.outgoing("app:v2"), force=False)


def test_nothing_there(transport: str, folder: str, opened: Callable[[str], ImageReader]) -> None:
    with pytest.raises(NotFound), opened(f"{transport}:{folder}/nowhere") as reader:
        reader.root()


def test_blobs_that_are_not_there_or_not_so_large(
    transport: str, folder: str, image: GeneratedImage, write: Write, opened: Callable[[str], ImageReader]
) -> None:
    write(f"{transport}:{folder}/out", image)
    absent = Descriptor(media_type="application/octet-stream", digest=Digest.of(b"absent"), size=6)
    with opened(f"{transport}:{folder}/out") as reader:
        assert not reader.holds(absent)
        with pytest.raises(NotFound), reader.stream(absent) as chunks:
            list(chunks)
        for size in (image.config.size - 1, image.config.size + 1):
            wrong = image.config.model_copy(update={"size": size})
            assert not reader.holds(wrong)
            with pytest.raises(SizeMismatch), reader.stream(wrong) as chunks:
                list(chunks)
        with pytest.raises(SizeMismatch, match="limit"):
            reader.document(image.config.model_copy(update={"size": 5 * 1024 * 1024}))


def test_altered_blobs(transport: str, tmp_path: Path, image: GeneratedImage, write: Write, opened: Callable[[str], ImageReader]) -> None:
    write(f"{transport}:{tmp_path}/out", image)
    content = image.blobs[image.layers[1].digest]
    path = next(path for path in (tmp_path / "out", *tmp_path.rglob("*")) if path.is_file() and content in path.read_bytes())
    data = bytearray(path.read_bytes())
    data[data.index(content) + len(content) // 2] ^= 1
    path.write_bytes(data)
    with opened(f"{transport}:{tmp_path}/out") as reader:
        reader.root()
        with pytest.raises(DigestMismatch), reader.stream(image.layers[1]) as chunks:
            list(chunks)
    if transport == "oci":
        # a layout is mended in place
        assert write(f"{transport}:{tmp_path}/out", image).status == "written"
    elif transport != "dir":
        with pytest.raises(OutputExists):
            write(f"{transport}:{tmp_path}/out", image)
    assert write(f"{transport}:{tmp_path}/out", image, force=True).status == ("unchanged" if transport == "oci" else "written")
    assert path.read_bytes().count(content) == 1


def test_many_threads_read_at_once(transport: str, tmp_path: Path, write: Write) -> None:
    image = random_image("threads", layers=4, layer_size=3_000_000, compression="none")
    write(f"{transport}:{tmp_path}/out", image)
    together = threading.Barrier(4)

    def read(layer: Descriptor) -> bool:
        with reader.stream(layer) as chunks:
            together.wait(timeout=60)
            return b"".join(chunks) == image.blobs[layer.digest]

    with open_reader(Reference.parse(f"{transport}:{tmp_path}/out")) as reader, ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, image.layers))


def test_obtained_blobs_are_not_asked_for(transport: str, tmp_path: Path, image: GeneratedImage, write: Write, assert_holds: Holds) -> None:
    place = f"{transport}:{tmp_path}/out"
    write(place, image)
    newer = next_version(image, "newer")
    with open_writer(Reference.parse(place)) as writer:
        had = [blob for blob in newer.outgoing("app:v3").blobs if writer.obtain(newer.outgoing("app:v3"), blob)]
    assert had == (list(image.layers[:2]) if transport == "oci" else [])
    if transport == "oci":
        rest = GeneratedImage(
            newer.root, newer.documents, newer.manifests, {d: b for d, b in newer.blobs.items() if d not in {h.digest for h in had}}, (), newer.config
        )
        write(place, newer, name="app:v3", source=rest)
        assert_holds(f"{place}:v3", newer)


def test_names_with_spaces_and_hashes(transport: str, tmp_path: Path, image: GeneratedImage, write: Write, assert_holds: Holds) -> None:
    place = f"{transport}:{tmp_path}/a b#c%41/out"
    write(place, image)
    assert_holds(place, image)
