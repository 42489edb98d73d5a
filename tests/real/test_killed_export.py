"""Exports that are killed with SIGKILL, wherever that may be, and run again."""

from __future__ import annotations

import signal
import uuid
from typing import TYPE_CHECKING

import pytest

from .journeys import PLACES, FileOutput, Journey, ObjectOutput, Undisturbed, assert_survives_a_kill, assert_survives_an_interruption, push, write_versions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .services.objects import ObjectStore
    from .services.prefect_api import PrefectServer
    from .services.registries import Registry

pytestmark = pytest.mark.parametrize("distribution", ["distribution-3"], indirect=True)


@pytest.fixture(scope="module")
def words(token_registry: Registry, program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Export from a registry with token authentication."""
    layout, repository = write_versions(tmp_path_factory.mktemp("images")), f"killed/{uuid.uuid4().hex}"
    baseline, target = (push(layout, token_registry, repository, version, program("skopeo")) for version in ("v1", "v2"))
    return (
        "export",
        "--target",
        target,
        "--baseline",
        baseline,
        "--target-creds-env=SENDER",
        "--baseline-creds-env=SENDER",
        "--tls-verify=false",
        "--name=app:v2",
    )


@pytest.fixture(scope="module")
def environment(token_registry: Registry, s3: ObjectStore, prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    login = {"SENDER": f"{token_registry.username}:{token_registry.password}"}
    return {**s3.environment, **prefect_server.environment(tmp_path_factory.mktemp("prefect")), **login}


@pytest.fixture(scope="module", params=["flow-into-object-store", "direct-into-file"])
def setting_out(request: pytest.FixtureRequest, words: tuple[str, ...], environment: dict[str, str], s3: ObjectStore) -> Callable[[Path], Journey]:
    """A new run, into an output of its own."""
    client = s3.client()

    def make(folder: Path) -> Journey:
        if request.param == "direct-into-file":
            return Journey((*words, "--direct"), environment, FileOutput(folder / "out" / "app.tar"), folder)
        return Journey(words, environment, ObjectOutput(s3, f"killed/{uuid.uuid4().hex}/app.tar", client), folder)

    return make


@pytest.fixture(scope="module")
def undisturbed(setting_out: Callable[[Path], Journey], tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed.of(setting_out(tmp_path_factory.mktemp("undisturbed")))


@pytest.mark.parametrize("number", range(PLACES))
def test_killed_and_run_again(number: int, setting_out: Callable[[Path], Journey], undisturbed: Undisturbed, tmp_path: Path) -> None:
    assert_survives_a_kill(setting_out(tmp_path), undisturbed, number)


@pytest.mark.parametrize(("number", "where"), [(signal.SIGINT, "inside blobs/"), (signal.SIGTERM, "app.tar at MiB 9")], ids=["packing", "writing"])
def test_interrupted_and_run_again(
    number: signal.Signals, where: str, setting_out: Callable[[Path], Journey], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    assert_survives_an_interruption(setting_out(tmp_path), undisturbed, where, number)
