"""Blocks pass Prefect's own tests, and show no secret."""

from __future__ import annotations

import subprocess
import sys

import pytest
from prefect.testing.standard_test_suites import BlockStandardTestSuite

from prefect_diffah.tasks.blocks import DeltaStore, RegistryCredentials


@pytest.mark.parametrize("block", [RegistryCredentials, DeltaStore])
class TestBlocks(BlockStandardTestSuite):
    @pytest.fixture
    def block(self, request):
        return request.param

    def test_has_a_valid_image(self, block):
        """Instead of Prefect's own, which downloads the logo: tests need no network."""
        assert str(block._logo_url).startswith("https://")
        assert str(block._logo_url).endswith(".png")


def test_secrets_are_hidden():
    credentials = RegistryCredentials(username="joe", password="s3cret", registry_token="t0ken")
    store = DeltaStore(url="s3://bucket", storage_options={"secret": "s3cret"})
    for shown in (repr(credentials), repr(store), credentials.model_dump_json(), store.model_dump_json()):
        assert "s3cret" not in shown
        assert "t0ken" not in shown


def test_the_collection_registers_its_blocks():
    from importlib.metadata import entry_points

    (entry,) = [each for each in entry_points(group="prefect.collections") if each.name == "prefect_diffah"]
    assert entry.load().RegistryCredentials is RegistryCredentials
    code = "import prefect_diffah; print(prefect_diffah.DeltaStore.get_block_type_slug(), prefect_diffah.RegistryCredentials.get_block_type_slug())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["delta-store", "registry-credentials"]
