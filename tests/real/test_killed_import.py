"""Imports that are killed with SIGKILL, wherever that may be, and run again."""

from __future__ import annotations

import signal
import uuid
from typing import TYPE_CHECKING

import pytest

from .journeys import PLACES, FileOutput, Journey, RegistryOutput, Undisturbed, assert_survives_a_kill, assert_survives_an_interruption, push, write_versions
from .running import export

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .services.prefect_api import PrefectServer
    from .services.registries import Registry

pytestmark = pytest.mark.parametrize("distribution", ["distribution-3"], indirect=True)


@pytest.fixture(scope="module")
def words(token_tls_registry: Registry, program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Import a delta of an image whose baseline is in a registry with token authentication and TLS."""
    folder = tmp_path_factory.mktemp("images")
    layout, delta = write_versions(folder / "layout"), folder / "app.tar"
    baseline = push(layout, token_tls_registry, f"killed/{uuid.uuid4().hex}", "v1", program("skopeo"))
    export(target=f"oci:{layout}:v2", baselines=(f"oci:{layout}:v1",), output=str(delta), store=str(folder / "store"), name="app:v2")
    reached = ("--baseline-creds-env=RECEIVER", "--output-creds-env=RECEIVER", f"--cert-dir={token_tls_registry.cert_dir}")
    return ("import", "--delta", str(delta), "--baseline", baseline, *reached)


@pytest.fixture(scope="module")
def environment(token_tls_registry: Registry, prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    login = {"RECEIVER": f"{token_tls_registry.username}:{token_tls_registry.password}"}
    return {**prefect_server.environment(tmp_path_factory.mktemp("prefect")), **login}


@pytest.fixture(scope="module", params=["flow-into-registry", "direct-into-docker-archive"])
def setting_out(
    request: pytest.FixtureRequest, words: tuple[str, ...], environment: dict[str, str], token_tls_registry: Registry, program: Callable[[str], str]
) -> Callable[[Path], Journey]:
    """A new run, into an output of its own."""
    skopeo = program("skopeo")

    def make(folder: Path) -> Journey:
        if request.param == "direct-into-docker-archive":
            return Journey((*words, "--direct"), environment, FileOutput(folder / "out" / "app.tar"), folder)
        return Journey(words, environment, RegistryOutput(token_tls_registry, f"killed/{uuid.uuid4().hex}", skopeo), folder)

    return make


@pytest.fixture(scope="module")
def undisturbed(setting_out: Callable[[Path], Journey], tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed.of(setting_out(tmp_path_factory.mktemp("undisturbed")))


@pytest.mark.parametrize("number", range(PLACES))
def test_killed_and_run_again(number: int, setting_out: Callable[[Path], Journey], undisturbed: Undisturbed, tmp_path: Path) -> None:
    assert_survives_a_kill(setting_out(tmp_path), undisturbed, number)


def test_interrupted_while_rebuilding(setting_out: Callable[[Path], Journey], undisturbed: Undisturbed, tmp_path: Path) -> None:
    assert_survives_an_interruption(setting_out(tmp_path), undisturbed, "inside blobs/", signal.SIGTERM)


def test_interrupted_while_publishing(setting_out: Callable[[Path], Journey], undisturbed: Undisturbed, tmp_path: Path) -> None:
    journey = setting_out(tmp_path)
    where = "inside PUT" if isinstance(journey.output, RegistryOutput) else "app.tar at MiB"
    assert_survives_an_interruption(journey, undisturbed, where, signal.SIGINT)
