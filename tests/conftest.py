"""What tests of every layer share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import pytest
from hypothesis import settings

# how long an example takes says nothing of the code on a machine that others use too
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """``program(name)``: the path of an installed program; without it the test is skipped, and fails where CI is true.

    Looked for in ``PREFECT_DIFFAH_TEST_BIN``, on PATH, and where ``go install`` puts programs.
    """
    go = os.environ.get("GOBIN") or os.path.join(os.environ.get("GOPATH") or os.path.expanduser("~/go"), "bin")
    folders = [os.environ.get("PREFECT_DIFFAH_TEST_BIN"), os.environ.get("PATH", os.defpath), go]
    search = os.pathsep.join(folder for folder in folders if folder)

    def find(name: str) -> str:
        path = shutil.which(name, path=search)
        if path is None:
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{name} is not installed")
        return path

    return find
