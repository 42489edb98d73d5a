"""Images at hand, and the tools that judge what is written."""

from __future__ import annotations

import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_diffah.engine.oci import Reference
from prefect_diffah.engine.testing.images import GeneratedImage, random_image
from prefect_diffah.engine.transports import ImageReader, WriteOptions, Written, open_reader, open_writer

Command = Callable[..., str]


@pytest.fixture(scope="session")
def image() -> GeneratedImage:
    return random_image("first", layers=3, layer_size=30_000)


@pytest.fixture(scope="session")
def other() -> GeneratedImage:
    return random_image("second", layers=2, layer_size=30_000)


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place on a disk, and one on an object store."""
    return str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def write() -> Callable[..., Written]:
    """``write(reference, image, name=…, force=…)``."""

    def written(reference: str, image: GeneratedImage, name: str = "app:v2", source: Any = None, **options: Any) -> Written:
        with open_writer(Reference.parse(reference)) as writer:
            return writer.write(image.outgoing(name), source or image, WriteOptions(**options))

    return written


@pytest.fixture
def opened() -> Callable[[str], ImageReader]:
    """``opened(reference)``: a reader."""
    return lambda reference: open_reader(Reference.parse(reference))


@pytest.fixture
def assert_holds(opened: Callable[[str], ImageReader]) -> Callable[[str, GeneratedImage], None]:
    """That a place has exactly an image: its root's bytes, its documents, every blob."""

    def check(reference: str, image: GeneratedImage) -> None:
        with opened(reference) as reader:
            root, raw = reader.root()
            assert raw == image.manifest
            assert (root.digest, root.size, root.media_type) == (image.root.digest, image.root.size, image.root.media_type)
            for manifest in image.manifests:
                assert reader.document(manifest) == image.documents[manifest.digest]
            for blob in image.outgoing("x").blobs:
                assert reader.holds(blob)
                with reader.stream(blob) as chunks:
                    assert b"".join(chunks) == image.blobs[blob.digest]

    return check


@pytest.fixture
def skopeo(program: Callable[[str], str]) -> Command:
    return _command(program("skopeo"))


@pytest.fixture
def umoci(program: Callable[[str], str]) -> Command:
    return _command(program("umoci"))


@pytest.fixture
def podman(program: Callable[[str], str]) -> Iterator[Command]:
    """podman with a storage of its own."""
    # its names may have 50 characters, fewer than pytest's temporary folders
    with tempfile.TemporaryDirectory(prefix="podman") as folder:
        yield _command(program("podman"), "--root", f"{folder}/root", "--runroot", f"{folder}/run", "--storage-driver", "vfs")


def _command(*base: str) -> Command:
    def run(*arguments: str) -> str:
        done = subprocess.run([*base, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{base[0]} {' '.join(arguments)}: {done.stderr[-1000:]}"
        return done.stdout

    return run
