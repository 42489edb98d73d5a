"""Running the command line inside the test's process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prefect_diffah.cli import main
from prefect_diffah.engine.testing.images import GeneratedImage, next_version, random_image, write_layout


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        data = json.loads(self.out)
        assert data["schema"] == 1
        return dict(data)


Run = Callable[..., Outcome]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """``run("inspect", path)`` in a folder of its own, with a store of its own."""
    monkeypatch.setenv("PREFECT_DIFFAH_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "no-auth.json"))
    (tmp_path / "no-auth.json").write_text("{}")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Outcome:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, out, err)

    return call


@dataclass(frozen=True)
class Pair:
    """Two versions of an image, in one layout."""

    v1: GeneratedImage
    v2: GeneratedImage
    layout: Path

    @property
    def baseline(self) -> str:
        return f"oci:{self.layout}:v1"

    @property
    def target(self) -> str:
        return f"oci:{self.layout}:v2"


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    v1 = random_image("cli", layer_size=3_000)
    v2 = next_version(v1, "cli 2")
    return Pair(v1, v2, write_layout(tmp_path / "images", {"v1": v1, "v2": v2}))


@pytest.fixture
def delta(run: Run, pair: Pair, tmp_path: Path) -> Path:
    """The delta from v1 to v2."""
    archive = tmp_path / "delta.tar"
    outcome = run("export", "--direct", "-q", "--target", pair.target, "--baseline", pair.baseline, "--output", archive, "--name", "app:v2")
    assert outcome.code == 0, outcome.err
    return archive
