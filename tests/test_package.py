"""What is installed is what is here, and importing it costs no more than it must."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

import prefect_diffah

ROOT = Path(__file__).parents[1]
FOLDERS = {"prefect_diffah": ROOT / "src" / "prefect_diffah", **{f"prefect_diffah.{name}": ROOT / name for name in ("flows", "tasks", "engine")}}
DATA = {"prefect_diffah/py.typed", "prefect_diffah/engine/delta/FORMAT.md"}
LONGEST = 400
"""Lines of a module."""

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the tree: its path as it is installed, and where it is."""
    for package, folder in FOLDERS.items():
        links = [path for path in folder.iterdir() if path.is_symlink()]
        for path in sorted(folder.rglob("*.py")):
            if not any(link in path.parents for link in links):
                yield f"{package.replace('.', '/')}/{path.relative_to(folder)}", path


MODULES = dict(modules())


def run(code: str, *arguments: str, cwd: Path | None = None) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("COV_", "PYTEST_"))}
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_packages_are_those_of_the_tree() -> None:
    found = {path.rpartition("/")[0].replace("/", ".") for path in MODULES}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found
    assert PROJECT["tool"]["setuptools"]["package-dir"] == {package: str(folder.relative_to(ROOT)) for package, folder in FOLDERS.items()}


def test_every_folder_of_modules_is_a_package() -> None:
    assert [path for path in MODULES if f"{path.rpartition('/')[0]}/__init__.py" not in MODULES] == []


def test_no_module_is_long() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_the_public_surface_is_what_it_says() -> None:
    public = prefect_diffah.__all__
    assert public == sorted(public)
    assert set(public) <= set(dir(prefect_diffah))
    for name in public:
        value = getattr(prefect_diffah, name)
        assert (getattr(value, "fn", None) or value).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = prefect_diffah.nothing
    assert prefect_diffah.__version__ == version("prefect-diffah") == PROJECT["project"]["version"]


def test_a_star_import_gives_the_public_surface() -> None:
    code = "import prefect_diffah; before = set(globals()); from prefect_diffah import *; print(*sorted(set(globals()) - before - {'before'}))"
    assert run(code).split() == prefect_diffah.__all__


def test_every_module_that_says_all_has_it() -> None:
    names = sorted(path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in MODULES if not path.endswith("__main__.py"))
    code = """
import importlib, sys
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", []):
        getattr(module, public)
    assert module.__doc__, name + " has no docstring"
"""
    run(code, *names)


def test_the_engine_and_the_package_leave_prefect_unloaded() -> None:
    names = sorted(path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in MODULES if path.startswith("prefect_diffah/engine/"))
    code = """
import importlib, sys
import prefect_diffah
assert not [name for name in sys.modules if name.startswith("prefect_diffah.")], "the root loads its parts"
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*(name for name in sys.modules if name.partition(".")[0] == "prefect"))
"""
    assert run(code, *names).split() == []


def test_the_engine_knows_no_layer_above_it() -> None:
    for name, path in MODULES.items():
        text = path.read_text()
        if name.startswith("prefect_diffah/engine/"):
            assert not [
                line for line in text.splitlines() if line.lstrip().startswith(("import prefect.", "import prefect\n", "from prefect.", "from prefect "))
            ], name
            assert "prefect_diffah.tasks" not in text, name
        if name.startswith(("prefect_diffah/engine/", "prefect_diffah/tasks/")):
            assert "prefect_diffah.flows" not in text, name
        if not name.startswith("prefect_diffah/cli/"):
            assert "prefect_diffah.cli" not in text, name


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The wheel built here, the source archive, and the wheel built from that; by the environment's setuptools, so that no network is needed."""
    wanted = int(PROJECT["build-system"]["requires"][0].partition(">=")[2])
    try:
        found = int(version("setuptools").partition(".")[0])
    except ImportError:
        found = 0
    if found < wanted:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"setuptools {wanted} is not installed (it is {found or 'absent'})")
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "target", "*.so")
    shutil.copytree(ROOT, source, symlinks=True, ignore=ignored)
    build = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"

    def make(what: str, tree: Path, out: str) -> Path:
        (folder / out).mkdir()
        return folder / out / run(build, what, str(folder / out), cwd=tree).split()[-1]

    sdist = make("build_sdist", source, "sdist")
    wheel = make("build_wheel", source, "wheel")
    with tarfile.open(sdist) as tar:
        tar.extractall(folder / "unpacked")
    (unpacked,) = (folder / "unpacked").iterdir()
    return wheel, sdist, make("build_wheel", unpacked, "again")


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_every_module_and_nothing_else(built: tuple[Path, Path, Path]) -> None:
    wheel, _, _ = built
    files = contents(wheel)
    info = f"prefect_diffah-{PROJECT['project']['version']}.dist-info"
    metadata = {f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt")}
    assert set(files) == set(MODULES) | DATA | metadata
    assert {name: files[name] for name in MODULES} == {name: path.read_bytes() for name, path in MODULES.items()}
    assert wheel.name.endswith("-py3-none-any.whl")
    assert files[f"{info}/top_level.txt"].split() == [b"prefect_diffah"]


def test_the_source_archive_builds_the_same_wheel(built: tuple[Path, Path, Path]) -> None:
    wheel, _, again = built
    assert contents(again) == contents(wheel)


def test_the_source_archive_holds_what_a_packager_needs(built: tuple[Path, Path, Path]) -> None:
    _, sdist, _ = built
    with tarfile.open(sdist) as tar:
        names = {member.name.partition("/")[2] for member in tar if member.isfile()}
        assert not [member.name for member in tar if not (member.isfile() or member.isdir())]
    assert {"LICENSE", "README.md", "pyproject.toml", "engine/delta/FORMAT.md"} <= names
    assert not [name for name in names if name.startswith(("src/prefect_diffah/engine/", "src/prefect_diffah/tasks/", "src/prefect_diffah/flows/"))]
