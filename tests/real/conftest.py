"""The real parts that end-to-end tests run against.

Each is a fixture of session scope: every test process runs its own, on ports
that the kernel chooses, with its state below pytest's temporary folder. What
is missing on this machine is named and the test skipped; where ``CI`` is
``true`` it fails instead.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING, NoReturn

import pytest

from .services import images, objects, prefect_api, referrers, registries
from .services.authority import make_authority, make_signer
from .services.tokens import token_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .services.authority import Authority, Signer

# helpers of tests that are imported later fail as tests do, saying what was compared
pytest.register_assert_rewrite(f"{__package__}.journeys", f"{__package__}.running")

DISTRIBUTIONS = {"distribution-2.8": "docker-registry", "distribution-3": "registry"}
"""Debian's package, and what upstream builds."""


def _unavailable(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all test processes of this run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority that nothing on this machine trusts."""
    return make_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    """The key of the token servers."""
    return make_signer(tmp_path_factory.mktemp("signer"))


@pytest.fixture(scope="session", params=DISTRIBUTIONS)
def distribution(request: pytest.FixtureRequest, program: Callable[[str], str]) -> str:
    """A program that serves the CNCF distribution; tests run on each."""
    return program(DISTRIBUTIONS[request.param])


@pytest.fixture(scope="session")
def plain_registry(distribution: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[registries.Registry]:
    """A distribution registry over plain HTTP that asks for no credentials."""
    with registries.plain_registry(distribution, tmp_path_factory.mktemp("plain-registry") / "registry") as registry:
        yield registry


@pytest.fixture(scope="session")
def basic_registry(distribution: str, program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[registries.Registry]:
    """A distribution registry over plain HTTP with Basic authentication."""
    folder = tmp_path_factory.mktemp("basic-registry") / "registry"
    with registries.basic_registry(distribution, folder, program("htpasswd")) as registry:
        yield registry


@pytest.fixture(scope="session")
def token_registry(distribution: str, signer: Signer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[registries.Registry]:
    """A distribution registry over plain HTTP with bearer tokens."""
    with contextlib.ExitStack() as stack:
        realm = stack.enter_context(token_server(signer, None))
        folder = tmp_path_factory.mktemp("token-registry") / "registry"
        yield stack.enter_context(registries.token_registry(distribution, folder, realm, signer))


@pytest.fixture(scope="session")
def token_tls_registry(distribution: str, signer: Signer, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[registries.Registry]:
    """The same over HTTPS, token server included, with a certificate of ``authority``."""
    with contextlib.ExitStack() as stack:
        realm = stack.enter_context(token_server(signer, authority))
        folder = tmp_path_factory.mktemp("token-tls-registry") / "registry"
        yield stack.enter_context(registries.token_registry(distribution, folder, realm, signer, authority))


@pytest.fixture(scope="session")
def redirecting_registry(distribution: str, s3: objects.ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[registries.Registry]:
    """A distribution registry that sends readers of blobs to ``s3``, another origin."""
    folder = tmp_path_factory.mktemp("redirecting-registry")
    with registries.redirecting_registry(distribution, folder / folder.name, s3) as registry:
        yield registry


@pytest.fixture(scope="session")
def referrers_registry(program: Callable[[str], str], pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[registries.Registry]:
    """A registry that answers the referrers API, in memory, plain HTTP."""
    go = program("go")
    try:
        server = referrers.build(go, pytestconfig.cache.mkdir("referrers-registry"))
    except subprocess.CalledProcessError as error:
        _unavailable(f"the referrers registry does not build: {error.stderr}")
    with registries.referrers_registry(str(server), tmp_path_factory.mktemp("referrers-registry")) as registry:
        yield registry


@pytest.fixture(scope="session")
def s3(program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[objects.ObjectStore]:
    """An S3 server with a bucket."""
    with pytest.MonkeyPatch.context() as patch, objects.object_store(program("versitygw"), tmp_path_factory.mktemp("s3")) as store:
        # named as an option instead, it makes clients send a location constraint that versitygw refuses
        patch.setenv("AWS_DEFAULT_REGION", store.region)
        yield store


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[prefect_api.PrefectServer]:
    """A Prefect server; flow runs find it through the environment that it gives."""
    with prefect_api.prefect_server(tmp_path_factory.mktemp("prefect-server")) as server:
        yield server


@pytest.fixture(scope="session")
def image_pairs(program: Callable[[str], str], run_folder: Path) -> images.ImagePairs:
    """Images in two versions, built by buildah; for reading only, since all test processes share them."""
    try:
        return images.build_pairs(program("buildah"), run_folder / "image-pairs")
    except subprocess.CalledProcessError as error:
        _unavailable(f"buildah cannot build images here: {error.stderr}")
