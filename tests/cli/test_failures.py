"""What goes wrong: one message, the right exit code, and nothing where the output would be."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefect_diffah.engine.registry import PATIENCE, close_all
from prefect_diffah.engine.testing.images import next_version, random_image, write_layout
from prefect_diffah.engine.testing.registry import Fault, InProcessRegistry

OUTPUTS = ("app.tar", "oci-archive:app.tar:v2", "oci:app:v2", "dir:app")


@pytest.fixture
def impatient() -> Iterator[None]:
    """Registries are asked once: waiting is tested where it is built."""
    total = PATIENCE.total
    object.__setattr__(PATIENCE, "total", 0.0)
    yield
    object.__setattr__(PATIENCE, "total", total)


@pytest.fixture
def registry() -> Iterator[InProcessRegistry]:
    with InProcessRegistry() as running:
        yield running
    close_all()


@pytest.fixture
def refused(run, tmp_path: Path) -> Callable[..., str]:
    """``refused(code, …)`` runs a command that must fail so, and returns its message."""

    def call(code: int, *arguments: object, error: str | None = None) -> str:
        outcome = run(*arguments)
        assert outcome.code == code, outcome.out + outcome.err
        message = next(line for line in outcome.err.splitlines() if line.startswith("error: "))
        assert "  → " in outcome.err
        assert outcome.out == ""
        left = [path.name for path in tmp_path.iterdir() if path.name.startswith(("app", ".app", "out", ".out"))]
        assert left == [], "something is left where the output would be"
        again = run(*arguments, "--json")
        assert again.code == code
        data = again.json["error"]
        assert set(data) == {"code", "category", "message", "next_action", "transient", "details"}
        assert data["category"] == {2: "request", 3: "surroundings", 4: "content"}[code]
        if error:
            assert data["code"] == error
        return message

    return call


# -- the archive -----------------------------------------------------------


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("kept", [0, 1, 511, 512, 4000, 0.5, -1])
def test_truncated(refused, pair, delta, output, kept):
    data = delta.read_bytes()
    delta.write_bytes(data[: int(len(data) * kept) if isinstance(kept, float) else kept])
    refused(4, "import", "--direct", "--delta", delta, "--baseline", pair.baseline, "--output", output)
    refused(4, "verify", "--delta", delta)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("place", [0, 120, 300, 700, 0.1, 0.3, 0.5, 0.7, 0.9, -1])
def test_one_bit_changed(refused, pair, delta, output, place):
    data = bytearray(delta.read_bytes())
    data[int(len(data) * place) if isinstance(place, float) else place] ^= 4
    delta.write_bytes(data)
    refused(4, "verify", "--delta", delta)
    refused(4, "import", "--direct", "--delta", delta, "--baseline", pair.baseline, "--output", output)


def _repacked(delta: Path, change: Callable[[tarfile.TarInfo, bytes], tuple[tarfile.TarInfo, bytes] | None], *extra: tuple[tarfile.TarInfo, bytes]) -> None:
    """Write ``delta`` anew, its members changed; without diffah.json, so that nothing but the content speaks."""
    buffer = io.BytesIO()
    with tarfile.open(delta) as old, tarfile.open(fileobj=buffer, mode="w") as new:
        for member in old:
            file = old.extractfile(member)
            assert file is not None
            kept = None if member.name == "diffah.json" else change(member, file.read())
            if kept is not None:
                new.addfile(kept[0], io.BytesIO(kept[1]))
        for info, content in extra:
            new.addfile(info, io.BytesIO(content))
    delta.write_bytes(buffer.getvalue())


def _link(kind: bytes) -> Callable[[tarfile.TarInfo, bytes], tuple[tarfile.TarInfo, bytes]]:
    def change(info: tarfile.TarInfo, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
        if info.name == "oci-layout":
            info.type, info.linkname, info.size = kind, "/etc/passwd", 0
            return info, b""
        return info, content

    return change


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices(refused, pair, delta, kind):
    _repacked(delta, _link(kind))
    refused(4, "import", "--direct", "--delta", delta, "--baseline", pair.baseline, "--output", "app.tar", error="invalid-archive")


@pytest.mark.parametrize("name", ["../app.tar", "/app.tar", "blobs/../../app.tar"])
def test_names_that_lead_elsewhere(refused, pair, delta, name):
    info = tarfile.TarInfo(name)
    info.size = 3
    _repacked(delta, lambda member, content: (member, content), (info, b"bad"))
    refused(4, "import", "--direct", "--delta", delta, "--baseline", pair.baseline, "--output", "app.tar", error="invalid-archive")


def test_duplicate_members(refused, pair, delta):
    info = tarfile.TarInfo("oci-layout")
    info.size = 2
    _repacked(delta, lambda member, content: (member, content), (info, b"{}"))
    refused(4, "import", "--direct", "--delta", delta, "--baseline", pair.baseline, "--output", "app.tar", error="invalid-archive")


@pytest.mark.parametrize("digest", ["sha256:../../../../etc/passwd", "/etc/passwd", "sha256:" + "A" * 64, "md5:" + "a" * 32])
def test_digests_that_are_none(refused, pair, delta, digest):
    def change(info: tarfile.TarInfo, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
        if info.name == "index.json":
            index = json.loads(content)
            index["manifests"][0]["digest"] = digest
            content = json.dumps(index).encode()
            info.size = len(content)
        return info, content

    _repacked(delta, change)
    refused(4, "import", "--direct", "--delta", delta, "--baseline", pair.baseline, "--output", "app.tar")


def test_a_member_larger_than_declared(refused, pair, delta):
    def change(info: tarfile.TarInfo, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
        if info.name.endswith(pair.v2.layers[-1].digest.hex):
            content += b"more"
            info.size = len(content)
        return info, content

    _repacked(delta, change)
    refused(4, "import", "--direct", "--delta", delta, "--baseline", pair.baseline, "--output", "app.tar", error="size-mismatch")


def test_a_newer_version_and_a_feature_not_known(refused, pair, delta):
    original = delta.read_bytes()
    for key, value, named in (("version", "v2", "v2"), ("requires", ["telepathy"], "telepathy")):
        delta.write_bytes(original)
        _altered_sidecar(delta, key, value)
        message = refused(4, "import", "--direct", "--delta", delta, "--baseline", pair.baseline, "--output", "app.tar", error="unsupported-version")
        assert named in message


def _altered_sidecar(delta: Path, key: str, value: object) -> None:
    with tarfile.open(delta) as old:
        members = [(member, old.extractfile(member).read()) for member in old]  # type: ignore[union-attr]
    sidecar = json.loads(members[0][1]) | {key: value}
    content = json.dumps(sidecar, sort_keys=True, separators=(",", ":")).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as new:
        members[0][0].size = len(content)
        new.addfile(members[0][0], io.BytesIO(content))
        for member, data in members[1:]:
            new.addfile(member, io.BytesIO(data))
    delta.write_bytes(buffer.getvalue())


def test_something_that_is_no_delta(refused, pair, tmp_path):
    (tmp_path / "noise.tar").write_bytes(os.urandom(20_000))
    refused(4, "import", "--direct", "--delta", "noise.tar", "--baseline", pair.baseline, "--output", "app.tar")
    assert "not a delta" in refused(4, "import", "--direct", "--delta", pair.target, "--baseline", pair.baseline, "--output", "app.tar")
    refused(2, "import", "--direct", "--delta", "absent.tar", "--baseline", pair.baseline, "--output", "app.tar", error="not-found")


# -- the request -----------------------------------------------------------


def test_a_baseline_that_lacks_blobs_is_told_all_of_them(refused, run, pair, delta, tmp_path):
    other = write_layout(tmp_path / "other", {"v1": random_image("other")})
    arguments = ("import", "--direct", "--delta", delta, "--baseline", f"oci:{other}:v1", "--output", "app.tar")
    assert "2 of 2 required blobs" in refused(2, *arguments, error="baseline-incomplete")
    missing = run(*arguments, "--json").json["error"]["details"]["missing"]
    assert [(entry["digest"], entry["size"], entry["image"]) for entry in missing] == [(layer.digest, layer.size, "app:v2") for layer in pair.v2.layers[:2]]
    refused(2, "verify", "--delta", delta, "--baseline", f"oci:{other}:v1", error="baseline-incomplete")


def test_wrong_platform(refused, pair):
    arguments = ("export", "--direct", "--target", pair.target, "--baseline", pair.baseline, "--output", "out.tar", "--platform")
    assert "linux/amd64" in refused(2, *arguments, "linux/arm64", error="platform")
    refused(2, *arguments, "linux")


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_output_that_holds_something_else(run, pair, delta, output, tmp_path):
    other = next_version(pair.v1, "other")
    layout = write_layout(tmp_path / "other", {"v3": other})
    arguments = ("import", "--direct", "--delta", delta, "--baseline", pair.baseline, "--output", output)
    first = ("export", "--direct", "--target", f"oci:{layout}:v3", "--baseline", pair.baseline, "--output", "other.tar", "--name", "app:v2")
    assert run(*first).code == 0
    assert run("import", "--direct", "--delta", "other.tar", "--baseline", pair.baseline, "--output", output).code == 0
    path = tmp_path / ("app.tar" if "tar" in output else "app")
    before = {str(file): file.read_bytes() for file in [path, *path.rglob("*")] if file.is_file()}
    outcome = run(*arguments, "--json")
    if output.startswith("oci:"):  # tags move
        assert outcome.json["data"]["status"] == "written"
        return
    assert outcome.code == 2
    assert outcome.json["error"]["code"] == "output-exists"
    assert {str(file): file.read_bytes() for file in [path, *path.rglob("*")] if file.is_file()} == before
    assert run(*arguments, "--force", "--json").json["data"]["digest"] == pair.v2.root.digest


def test_an_export_over_something_else(run, pair, delta, tmp_path):
    before = delta.read_bytes()
    arguments = ("export", "--direct", "--target", pair.baseline, "--baseline", pair.target, "--output", delta)
    assert run(*arguments, "--json").json["error"]["code"] == "output-exists"
    assert delta.read_bytes() == before
    (tmp_path / "notes.txt").write_text("precious")
    assert run(*arguments[:-1], "notes.txt").code == 2
    assert (tmp_path / "notes.txt").read_text() == "precious"
    assert run(*arguments, "--force").code == 0


@pytest.mark.parametrize("output", ["delta.tar", "dir:kept"])
def test_a_dry_export_tells_that_the_output_is_taken(run, pair, delta, output):
    arguments = ("export", "--direct", "--target", pair.target, "--baseline", pair.baseline, "--output", output)
    if output.startswith("dir:"):
        assert run(*arguments).code == 0
    for changed in (("--name", "other:v9"), ("--baseline", pair.target)):
        for dry in ((), ("--dry-run",)):
            assert run(*arguments, *changed, *dry, "--json").json["error"]["code"] == "output-exists"
    assert run(*arguments, "--name", "app:v2" if output == "delta.tar" else "images:v2", "--dry-run").code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "--target", "alpine", "--baseline", "docker://a/b", "--output", "out.tar"], "docker://alpine"),
        (["export", "--target", "dcoker://a/b", "--baseline", "docker://a/b", "--output", "out.tar"], "docker://a/b"),
        (["export", "--target", "docker://a/b", "--output", "out.tar"], "--baseline"),
        (["export", "--target", "docker://a/b", "--baseline", "docker://a/b", "--output", "out.tar", "--name", "host:5000/app:v1"], "app:v2"),
        (["export", "--target", "docker://a/b", "--baseline", "docker://a/b", "--output", "out.tar", "--workers", "0"], "workers"),
        (["import", "--delta", "x.tar", "--output", "oci:app:v1", "--output-format", "dir"], "agree"),
        (["import", "--delta", "x.tar"], "--output"),
        (["import", "--delta", "x.tar", "--output", "app.tar", "--creds-env", "UNSET_VARIABLE"], "UNSET_VARIABLE"),
        (["import", "--delta", "x.tar", "--output", "app.tar", "--username", "joe"], "--password-stdin"),
        (["import", "--delta", "x.tar", "--output", "app.tar", "--no-creds", "--creds-env", "X"], "exclude"),
        (["import", "--delta", "x.tar", "--output", "app.tar", "--credentials", "block"], "needs Prefect"),
        (["import", "--delta", "x.tar", "--output", "app.tar", "--authfile", "absent.json"], "absent.json"),
        (["imprt"], "import"),
        (["import", "--delta", "x.tar", "--output", "app.tar", "--password-stdin"], "--username"),
        (["import", "--delta", "x.tar", "--output", "app.tar", "--username", "joe", "--creds-env", "X", "--password-stdin"], "exclude"),
        (["import", "--delta", "x.tar", "--output", "docker-archve:app.tar"], "docker-archive:app.tar"),
        (["import", "--delta", "x.tar", "--output", "app.tar", "--store", "ftp://joe:hunter2@example.com/x"], "credentials"),
        (["import", "--delta", "x.tar", "--output", "app.tar", "--store", "a", "--store-block", "b"], "exclude"),
        (["verify", "--delta", "x.tar", "--credentials", "block"], "No such option"),
    ],
)
def test_requests_that_make_no_sense(run, tmp_path, arguments, said):
    outcome = run(*arguments, *(["--direct"] if len(arguments) > 1 else []))
    assert outcome.code == 2, outcome.err
    assert said in outcome.err
    assert outcome.err.count("error: ") == 1
    assert "hunter2" not in outcome.err
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(("app", "out"))]


# -- registries ------------------------------------------------------------

EXPORT = ("export", "--direct", "--tls-verify=false", "--output", "out.tar")


def _from(registry: InProcessRegistry) -> tuple[str, ...]:
    return (*EXPORT, "--target", f"docker://{registry.host}/app:v2", "--baseline", f"docker://{registry.host}/app:v1")


@pytest.fixture
def stocked(registry: InProcessRegistry, pair) -> InProcessRegistry:
    registry.put_image("app", "v1", pair.v1)
    registry.put_image("app", "v2", pair.v2)
    return registry


@pytest.mark.parametrize(
    ("fault", "code", "error"),
    [
        (Fault(path="/manifests/", status=401, times=None), 2, "access-denied"),
        (Fault(path="/blobs/", status=403, times=None), 2, "access-denied"),
        (Fault(path="/manifests/v2", status=404, times=None), 2, "not-found"),
        (Fault(path="/blobs/", status=404, times=None), 2, "not-found"),
        (Fault(path="/blobs/", status=429, headers={"Retry-After": "3600"}, times=None), 3, "registry-unavailable"),
        (Fault(path="/blobs/", status=500, times=None), 3, "registry-unavailable"),
        (Fault(path="/blobs/", cut=100, times=None), 3, "network"),
        (Fault(path="/blobs/", truncate=100, times=None), 4, "size-mismatch"),
        (Fault(path="/blobs/", flip=50, times=None), 4, "digest-mismatch"),
        (Fault(path="/manifests/v2", flip=5, times=None), 4, None),
        (Fault(path="/manifests/v2", headers={"Docker-Content-Digest": "sha256:" + "0" * 64}, times=None), 4, "digest-mismatch"),
    ],
    ids=lambda value: str(value.status or ("cut" if value.cut else "short" if value.truncate else "lies")) if isinstance(value, Fault) else None,
)
def test_registries_that_fail(refused, stocked, impatient, fault, code, error):
    stocked.faults.append(fault)
    refused(code, *_from(stocked), error=error)


def test_a_registry_that_is_not_there(refused, impatient):
    refused(3, *EXPORT, "--target", "docker://127.0.0.1:9/app:v2", "--baseline", "docker://127.0.0.1:9/app:v1", error="network")


def test_a_registry_that_stumbles_is_got_over(run, stocked, pair):
    stocked.faults += [Fault(path="/blobs/", cut=100, times=2), Fault(path="/manifests/v2", status=503, times=1)]
    assert run(*_from(stocked)).code == 0


def test_wrong_credentials(run, pair, monkeypatch):
    with InProcessRegistry(auth="token") as registry:
        registry.put_image("app", "v1", pair.v1)
        registry.put_image("app", "v2", pair.v2)
        monkeypatch.setenv("CREDS", "user:hunter2")
        outcome = run(*_from(registry), "--creds-env", "CREDS", "--json")
        assert outcome.code == 2
        assert outcome.json["error"]["code"] == "access-denied"
        assert "hunter2" not in outcome.out + outcome.err
        monkeypatch.setenv("CREDS", "user:pass")
        assert run(*_from(registry), "--creds-env", "CREDS").code == 0
    close_all()


def test_a_source_blob_that_is_not_what_it_says(refused, pair, tmp_path):
    layer = pair.v2.layers[-1]
    blob = pair.layout / "blobs" / "sha256" / layer.digest.hex
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    message = refused(4, "export", "--direct", "--target", pair.target, "--baseline", pair.baseline, "--output", "out.tar", error="digest-mismatch")
    assert layer.digest in message
    assert not list((tmp_path / "store").rglob(f"*{layer.digest.hex}*"))


# -- the surroundings ------------------------------------------------------


def test_disk_full(refused, pair, delta, monkeypatch, tmp_path):
    opened = Path.open

    class Full(io.FileIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", lambda self, mode="r", *rest, **more: Full(self, mode) if "x" in mode else opened(self, mode, *rest, **more))
    refused(3, "import", "--direct", "--delta", delta, "--baseline", pair.baseline, "--output", "app.tar", error="no-space")
    assert not list(tmp_path.rglob("*.part"))


def test_no_room_is_told_before_anything_is_written(refused, pair, delta, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 100})())
    refused(3, "import", "--direct", "--delta", delta, "--baseline", pair.baseline, "--output", "app.tar", error="no-space")


def test_no_prefect_server(run, pair, delta, tmp_path):
    script = "import sys; from prefect_diffah.cli import main; main(sys.argv[1:])"
    environment = os.environ | {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_HOME": str(tmp_path / "prefect")}
    arguments = ["import", "--delta", str(delta), "--baseline", pair.baseline, "--output", "app.tar", "--json"]
    ended = subprocess.run([sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True, check=False)
    error = json.loads(ended.stdout)["error"]
    assert (ended.returncode, error["code"]) == (3, "server-unreachable")
    assert "--direct" in error["next_action"]
    assert not (tmp_path / "app.tar").exists()


def test_interrupted_while_a_registry_says_nothing(pair, tmp_path):
    """Both baselines are asked at once; neither answers, and nobody waits for that."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        reference = f"docker://127.0.0.1:{silent.getsockname()[1]}/app:v1"
        script = "import sys; from prefect_diffah.cli import main; main(sys.argv[1:])"
        arguments = [*EXPORT, "--target", pair.target, "--baseline", reference, "--baseline", reference]
        process = subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        connection, _ = silent.accept()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        connection.close()
    assert process.returncode == 130, err
    assert "error: interrupted" in err
    assert out == ""


def test_no_prefect_server_for_a_block(tmp_path):
    script = "import sys; from prefect_diffah.cli import main; main(sys.argv[1:])"
    environment = os.environ | {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_HOME": str(tmp_path / "prefect")}
    arguments = ["prune", "--max-size", "0", "--store-block", "builds", "--json"]
    ended = subprocess.run([sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, json.loads(ended.stdout)["error"]["code"]) == (3, "server-unreachable"), ended.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(pair, stocked, tmp_path, number, monkeypatch):
    """The registry holds the layer back until the signal is on its way."""
    script = "import sys; from prefect_diffah.cli import main; main(sys.argv[1:])"
    stocked.faults.append(Fault(method="GET", path=f"/blobs/{pair.v2.layers[-1].digest}", cut=100, times=None))
    process = subprocess.Popen([sys.executable, "-c", script, *_from(stocked)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not any(pair.v2.layers[-1].digest in path for _, path, _ in stocked.requests):
        assert process.poll() is None, process.communicate()
    process.send_signal(number)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 130, err
    assert out == ""
    assert "error: interrupted" in err
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(("out", ".out"))]
