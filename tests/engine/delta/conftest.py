"""A place to export to and import from, and the archive that most tests look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prefect_diffah.engine.delta.report import ExportReport, ImportReport
from prefect_diffah.engine.images import Place
from prefect_diffah.engine.oci import Reference
from prefect_diffah.engine.pipeline import Direct, ExportJob, ImportJob, Runner, export_delta, import_delta
from prefect_diffah.engine.store import Store
from prefect_diffah.engine.testing.images import GeneratedImage, image_of, next_version, random_layer, write_layout
from prefect_diffah.engine.transports import WriteOptions


def place(text: str) -> Place:
    return Place(reference=Reference.parse(text))


@dataclass(frozen=True)
class Bench:
    """A folder with images in ``images`` by tag, a store, and room for archives."""

    folder: Path

    def put(self, **images: GeneratedImage) -> None:
        """Make ``oci:images`` hold these images by tag."""
        write_layout(self.folder / "images", images)

    def image(self, tag: str) -> Place:
        return place(f"oci:{self.folder}/images:{tag}")

    def at(self, name: str, transport: str = "oci-archive") -> Place:
        return place(f"{transport}:{self.folder}/{name}")

    def store(self, name: str = "store") -> Store:
        return Store(str(self.folder / name))

    def export(
        self,
        output: str | Place = "delta.tar",
        target: str = "v2",
        baselines: tuple[str, ...] = ("v1",),
        *,
        runner: Runner | None = None,
        force: bool = False,
        mtime: int = 0,
        job: dict[str, Any] | None = None,
    ) -> ExportReport:
        """Export; ``job`` replaces fields of the job."""
        fields: dict[str, Any] = {
            "target": self.image(target),
            "baselines": tuple(map(self.image, baselines)),
            "output": self.at(output) if isinstance(output, str) else output,
            "store": self.store(),
            "options": WriteOptions(force=force, mtime=mtime),
        }
        return export_delta(ExportJob(**fields | (job or {})), runner or Direct(2))

    def rebuild(
        self,
        delta: str | Place = "delta.tar",
        output: str | Place = "out.tar",
        baselines: tuple[str, ...] = ("v1",),
        *,
        runner: Runner | None = None,
        force: bool = False,
        job: dict[str, Any] | None = None,
    ) -> ImportReport:
        """Import; ``job`` replaces fields of the job."""
        fields: dict[str, Any] = {
            "delta": self.at(delta) if isinstance(delta, str) else delta,
            "baselines": tuple(map(self.image, baselines)),
            "output": self.at(output) if isinstance(output, str) else output,
            "store": self.store("store-of-import"),
            "options": WriteOptions(force=force),
        }
        return import_delta(ImportJob(**fields | (job or {})), runner or Direct(2))

    def bytes_of(self, name: str = "delta.tar") -> bytes:
        return (self.folder / name).read_bytes()


def small_pair(**options: Any) -> tuple[GeneratedImage, GeneratedImage]:
    """Two versions of an image of two layers of some hundred bytes, the upper one changed."""
    old = image_of([random_layer("base", 600), random_layer("application", 300)], **options)
    return old, next_version(old, "newer")


@dataclass(frozen=True)
class Example:
    """A small delta; its tests change nothing here."""

    bench: Bench
    raw: bytes
    old: GeneratedImage
    new: GeneratedImage


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    bench = Bench(tmp_path_factory.mktemp("example"))
    old, new = small_pair()
    bench.put(v1=old, v2=new)
    bench.export()
    return Example(bench, bench.bytes_of(), old, new)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """With ``v1`` and ``v2`` of a small image."""
    bench = Bench(tmp_path)
    old, new = small_pair()
    bench.put(v1=old, v2=new)
    return bench


@pytest.fixture(scope="session")
def pair() -> Callable[..., tuple[GeneratedImage, GeneratedImage]]:
    return small_pair
