"""Requests: what contradicts itself is refused when it is made, secrets are looked up where the run happens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from prefect_diffah.engine.errors import InvalidOptions, NotFound
from prefect_diffah.engine.oci import Platform
from prefect_diffah.flows.requests import AccessRequest, ExportRequest, ImportRequest, VerifyRequest

EXPORT: dict[str, Any] = {"target": "docker://example.com/app:v2", "baselines": ["docker://example.com/app:v1"], "output": "delta.tar"}
IMPORT: dict[str, Any] = {"delta": "delta.tar", "baselines": ["docker://example.com/app:v1"], "output": "out.tar"}


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFECT_DIFFAH_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)


def test_an_export_becomes_a_job(tmp_path: Path) -> None:
    request = ExportRequest(**EXPORT, platform="linux/arm64/v8", name="app:new", force=True, workers=7, workdir="/work", baseline_manifests=["a.json"])
    job = request.resolve()
    assert str(job.target) == "docker://example.com/app:v2"
    assert [str(place) for place in job.baselines] == ["docker://example.com/app:v1"]
    assert [location.url for location in job.baseline_manifests] == ["a.json"]
    assert str(job.output) == "oci-archive:delta.tar"
    assert job.store.url == str(tmp_path / "store")
    assert job.platform == Platform.parse("linux/arm64")
    assert str(job.name) == "app:new"
    assert (job.options.force, job.options.workers, job.options.mtime) == (True, 7, 0)
    assert {place.workdir for place in (job.target, job.output, *job.baselines)} == {"/work"}


def test_an_import_becomes_a_job() -> None:
    job = ImportRequest(**IMPORT).resolve()
    assert (str(job.delta), str(job.output)) == ("oci-archive:delta.tar", "docker-archive:out.tar")
    assert (job.name, job.dry_run, job.options.force, job.options.workers) == (None, False, False, 4)


@pytest.mark.parametrize(
    ("output", "chosen", "export", "imported"),
    [
        ("x.tar", None, "oci-archive:x.tar", "docker-archive:x.tar"),
        ("x", "oci", "oci:x", "oci:x"),
        ("x", "dir", "dir:x", "dir:x"),
        ("x.tar", "oci-archive", "oci-archive:x.tar", "oci-archive:x.tar"),
        ("oci:x:v2", None, "oci:x:v2", "oci:x:v2"),
        ("oci:x:v2", "oci", "oci:x:v2", "oci:x:v2"),
        ("oci:x:v2", "dir", None, None),
        ("docker://example.com/app:v2", None, "docker://example.com/app:v2", "docker://example.com/app:v2"),
        ("docker://example.com/app:v2", "oci", None, None),
        ("s3://bucket/a:b.tar", None, "oci-archive:s3://bucket/a:b.tar", "docker-archive:s3://bucket/a:b.tar"),
        ("s3://bucket/x", "dir", "dir:s3://bucket/x", "dir:s3://bucket/x"),
        ("oci:s3://bucket/x:v2", None, "oci:s3://bucket/x:v2", "oci:s3://bucket/x:v2"),
        ("oci-archive:memory://x.tar:v2", None, "oci-archive:memory://x.tar:v2", "oci-archive:memory://x.tar:v2"),
        ("C:x.tar", None, "oci-archive:C:x.tar", "docker-archive:C:x.tar"),
    ],
)
def test_the_outputs_transport(output: str, chosen: Any, export: str | None, imported: str | None) -> None:
    for kind, fields, expected in ((ExportRequest, EXPORT, export), (ImportRequest, IMPORT, imported)):
        if expected is None:
            with pytest.raises(ValidationError, match="output format"):
                kind(**fields | {"output": output}, output_format=chosen)
        else:
            assert str(kind(**fields | {"output": output}, output_format=chosen).resolve().output) == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target", "example.com/app:v2"),
        ("target", "containers-storage:app"),
        ("target", ""),
        ("baselines", ["app.tar"]),
        ("baselines", ["docker:app"]),
        ("output", ""),
        ("output", "containers-storage:app"),
        ("output", "docker://UPPER/app:v 2"),
        ("output_format", "docker-archive"),
        ("output_format", "zip"),
        ("platform", "linux"),
        ("platform", "all"),
        ("platform", "linux/"),
        ("name", "host:5000/app:v2"),
        ("name", "App"),
        ("workers", 0),
        ("workers", 65),
        ("workers", "4"),
        ("patch", "on"),
    ],
)
def test_what_an_export_must_not_say(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        ExportRequest(**EXPORT | {field: value})
    assert caught.value.errors()[0]["loc"][0] == field


def test_a_delta_needs_a_baseline() -> None:
    with pytest.raises(ValidationError, match="needs a baseline"):
        ExportRequest(**EXPORT | {"baselines": []})
    assert ExportRequest(**EXPORT | {"baselines": [], "baseline_manifests": ["x.json"]})
    assert ImportRequest(**IMPORT | {"baselines": []})


def test_hints_reach_the_message() -> None:
    with pytest.raises(ValidationError, match=r"Did you mean docker://example\.com/app:v2"):
        ExportRequest(**EXPORT | {"target": "example.com/app:v2"})
    with pytest.raises(ValidationError, match="reserved for whole indexes"):
        ExportRequest(**EXPORT | {"platform": "all"})


@pytest.mark.parametrize(
    ("text", "mtime"),
    [("0", 0), ("1700000000", 1_700_000_000), ("8589934591", 8589934591), ("8589934592", None), ("-1", None), ("", None), ("1.5", None), ("²", None)],
)
def test_source_date_epoch(monkeypatch: pytest.MonkeyPatch, text: str, mtime: int | None) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
    for request in (ExportRequest(**EXPORT), ImportRequest(**IMPORT)):
        if mtime is None:
            with pytest.raises(InvalidOptions, match="SOURCE_DATE_EPOCH"):
                request.resolve()
        else:
            assert request.resolve().options.mtime == mtime


class TestAccess:
    def test_nothing_given_leaves_it_to_the_machine(self) -> None:
        access = AccessRequest().resolve()
        assert (access.username, access.password, access.registry_token, access.anonymous, access.tls_verify, access.options) == (
            None,
            None,
            None,
            False,
            None,
            {},
        )

    def test_creds_env(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CREDS", "me:pass:word")
        access = AccessRequest(creds_env="CREDS").resolve()
        assert access.username == "me"
        assert access.password is not None
        assert access.password.get_secret_value() == "pass:word"

    @pytest.mark.parametrize("value", [None, "", "hunter2"])
    def test_creds_env_that_holds_none(self, monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
        monkeypatch.delenv("CREDS", raising=False)
        if value is not None:
            monkeypatch.setenv("CREDS", value)
        with pytest.raises(InvalidOptions, match="does not hold USERNAME:PASSWORD") as caught:
            AccessRequest(creds_env="CREDS").resolve()
        assert "hunter2" not in str(caught.value.as_json())

    def test_a_token_file(self, tmp_path: Path) -> None:
        (tmp_path / "token").write_text("t0ken\n")
        access = AccessRequest(registry_token_file=str(tmp_path / "token")).resolve()
        assert access.registry_token is not None
        assert access.registry_token.get_secret_value() == "t0ken"
        with pytest.raises(NotFound):
            AccessRequest(registry_token_file=str(tmp_path / "nothing")).resolve()

    @pytest.mark.parametrize("field", ["authfile", "cert_dir"])
    def test_paths_must_be_there(self, tmp_path: Path, field: str) -> None:
        assert getattr(AccessRequest(**{field: str(tmp_path)}).resolve(), field) == str(tmp_path)
        with pytest.raises(NotFound):
            AccessRequest(**{field: str(tmp_path / "nothing")}).resolve()

    @pytest.mark.parametrize("one", ["credentials", "creds_env", "registry_token_file", "no_creds"])
    @pytest.mark.parametrize("other", ["credentials", "creds_env", "registry_token_file", "no_creds"])
    def test_one_way_of_giving_credentials(self, one: str, other: str) -> None:
        fields = {name: True if name == "no_creds" else "x" for name in (one, other)}
        if one == other:
            assert AccessRequest(**fields)
        else:
            with pytest.raises(ValidationError, match="exclude each other"):
                AccessRequest(**fields)

    def test_blocks(self) -> None:
        asked = []

        def blocks(kind: str, name: str) -> dict[str, Any]:
            asked.append((kind, name))
            if kind == "delta-store":
                return {"url": "memory://store", "storage_options": {"key": "k"}}
            return {"username": "me", "password": SecretStr("hunter2"), "registry_token": None, "cert_dir": None, "tls_verify": False}

        access = AccessRequest(credentials="production", store_block="bucket", cert_dir="/").resolve(blocks)
        assert asked == [("registry-credentials", "production"), ("delta-store", "bucket")]
        assert (access.username, access.tls_verify, access.cert_dir, access.options) == ("me", False, "/", {"key": "k"})
        job = ExportRequest(**EXPORT, store_block="bucket", output_access=AccessRequest(store_block="bucket")).resolve(blocks)
        assert (job.store.url, job.store.root.access.options, job.output.access.options) == ("memory://store", {"key": "k"}, {"key": "k"})

    @pytest.mark.parametrize("fields", [{"store_block": "x"}, {"target_access": {"credentials": "x"}}, {"output_access": {"store_block": "x"}}])
    def test_blocks_need_prefect(self, fields: dict[str, Any]) -> None:
        with pytest.raises(InvalidOptions, match="needs Prefect") as caught:
            ExportRequest(**EXPORT | fields).resolve()
        assert "--direct" in caught.value.next_action

    def test_what_was_given_goes_before_what_a_block_says(self) -> None:
        block = {"username": "me", "password": SecretStr("hunter2"), "registry_token": None, "cert_dir": "/block", "tls_verify": False}
        access = AccessRequest(credentials="x", tls_verify=True, cert_dir="/").resolve(lambda kind, name: block)
        assert (access.username, access.tls_verify, access.cert_dir) == ("me", True, "/")

    def test_each_place_has_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("T", "B", "O", "D"):
            monkeypatch.setenv(name, f"{name}:x")
        export = ExportRequest(**EXPORT, target_access={"creds_env": "T"}, baseline_access={"creds_env": "B"}, output_access={"creds_env": "O"}).resolve()
        assert [place.access.username for place in (export.target, *export.baselines, export.output)] == ["T", "B", "O"]
        imported = ImportRequest(**IMPORT, delta_access={"creds_env": "D"}, baseline_access={"creds_env": "B"}, output_access={"creds_env": "O"}).resolve()
        assert [place.access.username for place in (imported.delta, *imported.baselines, imported.output)] == ["D", "B", "O"]


def test_one_way_of_naming_the_store() -> None:
    with pytest.raises(ValidationError, match="exclude each other"):
        ExportRequest(**EXPORT, store="/x", store_block="y")
    assert ExportRequest(**EXPORT, store="s3://bucket/x").resolve().store.url == "s3://bucket/x"


@pytest.mark.parametrize(
    "fields", [{"store": "ftp://bob:hunter2@example.com/x"}, {"output": "s3://k:hunter2@bucket/x"}, {"target": "docker://bob:hunter2@example.com/app"}]
)
def test_credentials_do_not_belong_in_urls(fields: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="credentials in it") as caught:
        ExportRequest(**EXPORT | fields)
    assert "hunter2" not in str(caught.value)


def test_fields_that_are_none_are_refused() -> None:
    for kind, fields in ((ExportRequest, EXPORT), (ImportRequest, IMPORT), (AccessRequest, {})):
        with pytest.raises(ValidationError, match="plattform"):
            kind(**fields, plattform="linux/amd64")


def test_verifying_names_places() -> None:
    delta, baselines = VerifyRequest(delta="oci:x", baselines=["dir:y", "docker://example.com/z"]).places()
    assert (str(delta), [str(place) for place in baselines]) == ("oci:x", ["dir:y", "docker://example.com/z:latest"])


@pytest.mark.parametrize("request_type", [ExportRequest, ImportRequest])
def test_requests_are_json_and_back(request_type: Any) -> None:
    request = request_type(**(EXPORT if request_type is ExportRequest else IMPORT))
    assert request_type.model_validate_json(request.model_dump_json()) == request
    assert all(field.title for name, field in request_type.model_fields.items())
