"""What the commands print and write when all is well."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from prefect_diffah import __version__
from prefect_diffah.engine.testing.images import index_of, random_image, write_layout


def test_version_and_help(run):
    assert run("--version").out == f"prefect-diffah {__version__}\n"
    helped = run("--help")
    assert helped.code == 0
    assert all(verb in helped.out for verb in ("export", "import", "inspect", "verify", "prune", "demo", "completion"))
    for verb in ("export", "import", "inspect", "verify", "prune", "demo", "completion"):
        assert run(verb, "--help").code == 0


def test_inspect_prints_what_users_were_promised(run, pair, delta):
    shown = run("inspect", "./delta.tar")
    assert shown.code == 0
    blobs = pair.v2.blobs
    layer = pair.v2.layers[-1]
    shipped, total = pair.v2.config.size + layer.size, sum(map(len, blobs.values()))
    assert shown.out.splitlines()[:8] == [
        "archive: ./delta.tar",
        "version: v1",
        "image: app:v2",
        "platform: linux/amd64",
        f"target manifest digest: {pair.v2.root.digest}",
        f"baseline manifest digest: {pair.v1.root.digest}",
        f"shipped: 2 blobs ({shipped} bytes)",
        f"required: 2 blobs ({total - shipped} bytes)",
    ]
    assert f"saved {round(100 * (1 - shipped / total), 1)}% vs full image" in shown.out
    rows = [line.split() for line in shown.out.splitlines() if "sha256:" in line and line.startswith(("carried", "required"))]
    assert sorted(row[2] for row in rows) == sorted(blobs)
    assert run("inspect", delta, "--json").json["data"]["target"] == pair.v2.root.digest


@pytest.mark.parametrize("output", ["app.tar", "oci-archive:app.tar:v2", "oci:app:v2", "dir:app"])
def test_import_writes_the_image_and_a_second_time_nothing(run, pair, delta, output):
    arguments = ("import", "--direct", "--delta", delta, "--baseline", pair.baseline, "--output", output, "--json")
    first = run(*arguments)
    assert first.code == 0, first.err
    assert first.json["data"]["status"] == "written"
    assert first.json["data"]["digest"] == pair.v2.root.digest
    before = _contents(Path("app.tar" if "tar" in output else "app"))
    again = run(*arguments).json["data"]
    assert again["status"] == "unchanged"
    assert again["bytes_written"] == 0
    assert _contents(Path("app.tar" if "tar" in output else "app")) == before


def _contents(path: Path) -> dict[str, tuple[str, int]]:
    files = [path] if path.is_file() else [entry for entry in path.rglob("*") if entry.is_file()]
    return {str(file): (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns) for file in files}


def test_export_of_the_same_again_leaves_the_archive_alone(run, pair, delta):
    before = _contents(delta)
    again = run("export", "--direct", "--target", pair.target, "--baseline", pair.baseline, "--output", delta, "--name", "app:v2", "--json")
    assert again.json["data"]["status"] == "unchanged"
    assert _contents(delta) == before


def test_dry_runs_write_nothing_and_report_the_same(run, pair, delta, tmp_path):
    exported = run("inspect", delta, "--json").json["data"]
    before = _contents(tmp_path)
    for output in ("never.tar", os.devnull):
        dry = run(
            "export", "--direct", "--target", pair.target, "--baseline", pair.baseline, "--output", output, "--dry-run", "--name", "app:v2", "--json"
        ).json["data"]
        assert dry["status"] == "dry-run"
        assert {key: value for key, value in dry["summary"].items() if key != "blobs"} == {key: value for key, value in exported.items() if key != "blobs"}
        imported = run("import", "--direct", "--delta", delta, "--baseline", pair.baseline, "--output", output, "--dry-run", "--json").json["data"]
        assert imported["status"] == "dry-run"
        assert imported["digest"] == pair.v2.root.digest
        assert imported["rebuilt"] == 4
    assert _contents(tmp_path) == before


def test_output_to_the_null_device_is_a_dry_run(run, pair, delta):
    assert run("export", "--direct", "--target", pair.target, "--baseline", pair.baseline, "--output", os.devnull, "--json").json["data"]["status"] == "dry-run"
    assert Path(os.devnull).is_char_device()


def test_verify_checks_with_and_without_baseline(run, pair, delta):
    alone = run("verify", "--delta", delta)
    assert alone.code == 0
    assert "sound: every byte checked" in alone.out
    assert "baseline: not checked" in alone.out
    assert "baseline: has all 2 required blobs" in run("verify", "--delta", delta, "--baseline", pair.baseline).out


def test_baseline_manifest_stands_for_a_baseline_that_is_gone(run, pair, delta, tmp_path):
    (tmp_path / "manifest.json").write_bytes(pair.v1.manifest)
    outcome = run("export", "--direct", "--target", pair.target, "--baseline-manifest", "manifest.json", "--output", "other.tar", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["data"]["summary"]["required"] == 2
    assert run("import", "--direct", "--delta", "other.tar", "--baseline", pair.baseline, "--output", "app.tar").code == 0


def test_an_index_needs_a_platform_and_lists_those_it_has(run, pair, tmp_path):
    amd, arm = random_image("amd"), random_image("arm", platform="linux/arm64")
    layout = write_layout(tmp_path / "index", {"v2": index_of({"linux/amd64": amd, "linux/arm64": arm})})
    arguments = ("export", "--direct", "--target", f"oci:{layout}:v2", "--baseline", pair.baseline, "--output", "x.tar")
    refused = run(*arguments, "--json")
    assert refused.code == 2
    assert refused.json["error"]["details"]["platforms"] == ["linux/amd64", "linux/arm64"]
    assert "--platform" in refused.json["error"]["next_action"]
    assert run(*arguments, "--platform", "linux/s390x").code == 2
    reserved = run(*arguments, "--platform", "all")
    assert reserved.code == 2
    assert "reserved" in reserved.err
    chosen = run(*arguments, "--platform", "linux/arm64", "--json")
    assert chosen.code == 2  # the baseline is for another platform
    assert chosen.json["error"]["code"] == "platform"
    write_layout(tmp_path / "arm", {"v1": random_image("arm base", platform="linux/arm64")})
    good = run("export", "--direct", "--target", f"oci:{layout}:v2", "--baseline", "oci:arm:v1", "--output", "x.tar", "--platform", "linux/arm64", "--json")
    assert good.json["data"]["summary"]["target"] == arm.root.digest


def test_stdout_has_only_the_result_and_quiet_means_quiet(run, pair, delta):
    outcome = run("import", "--direct", "--delta", delta, "--baseline", pair.baseline, "--output", "app.tar", "--json")
    assert outcome.json["command"] == "import"
    assert re.search(r"^layer [0-9a-f]{12}: ", outcome.err, re.MULTILINE)
    assert run("import", "--direct", "-q", "--delta", delta, "--baseline", pair.baseline, "--output", "other.tar").err == ""


def test_passwords_come_from_standard_input_and_stay_out_of_requests(run, pair, monkeypatch):
    import io

    from prefect_diffah.engine import pipeline
    from prefect_diffah.flows.requests import ExportRequest

    seen: list[ExportRequest] = []
    resolve = ExportRequest.resolve
    monkeypatch.setattr(ExportRequest, "resolve", lambda self, blocks=None: seen.append(self) or resolve(self, blocks))
    jobs: list[pipeline.ExportJob] = []
    monkeypatch.setattr(pipeline, "export_delta", lambda job, runner: jobs.append(job) or (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(sys, "stdin", io.StringIO("s3cret\n"))
    outcome = run(
        "export",
        "--direct",
        "--target",
        pair.target,
        "--baseline",
        pair.baseline,
        "--output",
        "x.tar",
        "--target-username",
        "joe",
        "--password-stdin",
        "--no-creds",
    )
    assert outcome.code == 130
    assert jobs[0].target.access.username == "joe"
    assert jobs[0].target.access.password.get_secret_value() == "s3cret"
    assert jobs[0].baselines[0].access.anonymous
    assert "s3cret" not in seen[0].model_dump_json()
    assert "s3cret" not in repr(jobs[0])


def test_completion_scripts(run):
    for shell in ("bash", "zsh", "fish"):
        assert "_PREFECT_DIFFAH_COMPLETE" in run("completion", shell).out


def test_prune_empties_the_store_down_to_a_size(run, pair, delta, tmp_path):
    store = tmp_path / "store"
    assert run("prune", "--max-size", "0", "--dry-run", "--json").json["data"]["removed"] > 0
    assert any((store / "blobs").rglob("*"))
    assert run("prune", "--max-size", "0").code == 0
    assert not [path for path in (store / "blobs").rglob("*") if path.is_file()]
    assert run("prune", "--max-size", "lots").code == 2


def test_inspect_and_verify_leave_prefect_alone(pair, delta):
    code = (
        "import sys; from prefect_diffah.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "assert 'prefect' not in sys.modules, 'Prefect was imported'\n"
    )
    for arguments in (["inspect", str(delta)], ["verify", "--delta", str(delta)]):
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)


def test_reading_less_than_all_of_the_output_is_no_fault(delta):
    process = subprocess.Popen([sys.executable, "-m", "prefect_diffah.cli", "inspect", str(delta)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(60) == 0
    assert process.stderr.read() == b""
    process.stderr.close()
