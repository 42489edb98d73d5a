"""The demo: flows on an embedded server of its own, whatever the environment says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from prefect_diffah.engine.images import Place
from prefect_diffah.engine.oci import Reference
from prefect_diffah.engine.pipeline import verify_delta


def test_demo_does_the_main_job_on_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    environment = os.environ | {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_HOME": str(tmp_path / "mine"), "HOME": str(tmp_path / "home")}
    (tmp_path / "prefect.toml").write_text('[api]\nurl = "http://127.0.0.1:9/api"\n')
    ended = subprocess.run(
        [sys.executable, "-m", "prefect_diffah.cli", "demo", "--folder", str(folder), "--json"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    data = json.loads(ended.stdout)["data"]
    exported, imported = data["exported"], data["imported"]
    assert imported["digest"] == exported["summary"]["target"]
    assert exported["summary"]["required"] == 2
    assert exported["summary"]["saved_percent"] > 90
    assert "ERROR" not in ended.stderr
    assert not (tmp_path / "mine").exists()
    place = Place(reference=Reference(transport="oci-archive", where=exported["output"]))
    assert verify_delta(place, [Place(reference=Reference.parse(f"oci:{folder}/images:v1"))]).canonical
    assert (folder / "app_v2.tar").is_file()
