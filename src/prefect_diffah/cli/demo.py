"""``prefect-diffah demo``: the main job on this machine alone."""

from __future__ import annotations

import io
import json
import os
import sysconfig
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prefect_diffah.cli import export_image, import_image
from prefect_diffah.cli.options import output_options
from prefect_diffah.cli.result import show
from prefect_diffah.cli.running import run_flow
from prefect_diffah.engine.delta.report import ExportReport, ImportReport
from prefect_diffah.engine.errors import InternalError, OutputExists
from prefect_diffah.engine.model import Model
from prefect_diffah.engine.testing.images import GeneratedImage, image_of, layer_of, write_layout
from prefect_diffah.flows.requests import ExportRequest, ImportRequest

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["command"]

BASE = ("json", "email", "http", "logging", "unittest", "xml", "asyncio", "encodings")
"""Packages of the standard library that make the base layer, which stays."""
LIBRARY = ("argparse.py", "dataclasses.py", "functools.py", "inspect.py", "shutil.py", "typing.py")
"""Modules that make the middle layer, which stays too."""


class DemoReport(Model):
    """What the demo did."""

    folder: str
    exported: ExportReport
    imported: ImportReport


@click.command(name="demo")
@click.option("--folder", metavar="DIR", help="Where everything is left; by default a new temporary folder.")
@output_options
def command(**options: Any) -> None:
    """Export and import an image made of this machine's files; no network, no server needed."""
    folder = _folder(options["folder"])
    _own_prefect(folder)
    images = {"v1": _image("1"), "v2": _image("2")}
    layout = write_layout(folder / "images", images)
    target, baseline, archive = f"oci:{layout}:v2", f"oci:{layout}:v1", folder / "app_v1_to_v2.tar"
    run: dict[str, Any] = {"level": options["log_level"], "quiet": options["quiet"]}
    store = str(folder / "store")
    export = ExportRequest(target=target, baselines=(baseline,), output=str(archive), store=store, name="app:v2")
    exported: ExportReport = run_flow("export_delta", export, **run)
    import_ = ImportRequest(delta=str(archive), baselines=(baseline,), output=str(folder / "app_v2.tar"), store=str(folder / "receiver-store"))
    imported: ImportReport = run_flow("import_delta", import_, **run)
    if imported.digest != images["v2"].root.digest:
        raise InternalError(f"the rebuilt image has the digest {imported.digest}, the target {images['v2'].root.digest}")
    report = DemoReport(folder=str(folder), exported=exported, imported=imported)
    lines = [
        *export_image.lines(exported),
        "",
        *import_image.lines(imported)[:4],
        "",
        f"the rebuilt image has the target's manifest digest: {imported.digest}",
        f"everything is in {folder}",
    ]
    show("demo", report, lines, as_json=options["as_json"])


def _folder(given: str | None) -> Path:
    if given is None:
        return Path(tempfile.mkdtemp(prefix="prefect-diffah-demo-"))
    folder = Path(given).absolute()
    if folder.exists() and any(folder.iterdir()):
        raise OutputExists(f"{folder} is not empty", next_action="Choose another folder.", path=str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _own_prefect(folder: Path) -> None:
    """An embedded server of the demo's own, which reports to nobody. Prefect also reads settings from files in the working folder."""
    os.chdir(folder)
    for name in [name for name in os.environ if name.startswith("PREFECT_") and name != "PREFECT_LOGGING_LEVEL"]:
        del os.environ[name]
    os.environ |= {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


def _image(version: str) -> GeneratedImage:
    library = Path(sysconfig.get_path("stdlib"))
    base = _layer("usr/lib/python", library, (path for name in BASE for path in sorted((library / name).rglob("*.py"))))
    middle = _layer("usr/lib/python", library, (library / name for name in LIBRARY))
    program = f'VERSION = "{version}"\n\n\ndef main() -> None:\n    print(f"app {{VERSION}}")\n'
    application = _files({"app/main.py": program.encode(), "app/version.json": json.dumps({"version": version}).encode()})
    return image_of([layer_of(base), layer_of(middle), layer_of(application)])


def _layer(prefix: str, root: Path, paths: Iterable[Path]) -> bytes:
    return _files({f"{prefix}/{path.relative_to(root).as_posix()}": path.read_bytes() for path in paths})


def _files(contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o644
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
