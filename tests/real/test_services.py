"""Each real part is what the tests take it for."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .services.images import ImagePairs
    from .services.objects import ObjectStore
    from .services.registries import Registry

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
PART = 5 * 1024 * 1024
"""Bytes; the least that S3 allows a part to have, except the last."""


@pytest.fixture
def repository() -> str:
    """A repository name that no other test uses."""
    return f"tests/{uuid.uuid4().hex}"


def run(*command: str | Sequence[str], check: bool = True, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    words = [word for part in command for word in ([part] if isinstance(part, str) else part)]
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, env={**os.environ, **(environment or {})}, timeout=300)
    if check and done.returncode:
        raise AssertionError(f"{words} ended with {done.returncode}: {done.stderr}")
    return done


def challenge(answer: httpx.Response) -> dict[str, str]:
    scheme, _, parameters = answer.headers["WWW-Authenticate"].partition(" ")
    assert scheme == "Bearer"
    return dict(re.findall(r'(\w+)="([^"]*)"', parameters))


def token_for(registry: Registry, repository: str, actions: str, login: tuple[str, str] | None) -> httpx.Response:
    """Do what the registry's challenge asks."""
    with registry.client() as client:
        asked = challenge(client.get("/v2/"))
        query = {"service": asked["service"], "scope": f"repository:{repository}:{actions}"}
        return client.get(asked["realm"], params=query, auth=login)


def pushed_blob(client: httpx.Client, repository: str, content: bytes, headers: dict[str, str] | None = None) -> str:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    session = client.post(f"/v2/{repository}/blobs/uploads/", headers=headers)
    assert session.status_code == 202, session.text
    answer = client.put(
        session.headers["Location"], params={**httpx.URL(session.headers["Location"]).params, "digest": digest}, content=content, headers=headers
    )
    assert answer.status_code == 201, answer.text
    return digest


class TestPlainRegistry:
    def test_is_open_to_everybody(self, plain_registry: Registry, repository: str) -> None:
        with plain_registry.client() as client:
            assert client.get("/v2/").status_code == 200
            digest = pushed_blob(client, repository, b"content")
            assert client.get(f"/v2/{repository}/blobs/{digest}").content == b"content"

    def test_serves_ranges(self, plain_registry: Registry, repository: str) -> None:
        with plain_registry.client() as client:
            digest = pushed_blob(client, repository, b"0123456789")
            answer = client.get(f"/v2/{repository}/blobs/{digest}", headers={"Range": "bytes=4-"})
        assert (answer.status_code, answer.content) == (206, b"456789")

    def test_has_no_referrers_api(self, plain_registry: Registry) -> None:
        with plain_registry.client() as client:
            assert client.get(f"/v2/app/referrers/sha256:{'0' * 64}").status_code == 404


class TestBasicRegistry:
    def test_asks_for_a_name_and_password(self, basic_registry: Registry) -> None:
        assert basic_registry.username
        assert basic_registry.password
        with basic_registry.client() as client:
            refused = client.get("/v2/")
            assert refused.status_code == 401
            assert refused.headers["WWW-Authenticate"].startswith("Basic ")
            assert client.get("/v2/", auth=(basic_registry.username, "wrong")).status_code == 401
            assert client.get("/v2/", auth=(basic_registry.username, basic_registry.password)).status_code == 200


@pytest.fixture(params=["http", "https"])
def guarded(request: pytest.FixtureRequest, token_registry: Registry, token_tls_registry: Registry) -> Registry:
    """Each registry that asks for tokens."""
    return {"http": token_registry, "https": token_tls_registry}[request.param]


class TestTokenRegistry:
    def test_refuses_who_has_no_token(self, guarded: Registry) -> None:
        with guarded.client() as client:
            answer = client.get("/v2/app/manifests/v1")
        assert answer.status_code == 401
        assert challenge(answer)["scope"] == "repository:app:pull"

    def test_refuses_a_token_of_nobody(self, guarded: Registry, repository: str) -> None:
        token = token_for(guarded, repository, "pull", None).json()["token"]
        with guarded.client() as client:
            answer = client.get(f"/v2/{repository}/tags/list", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 401
        assert challenge(answer)["error"] == "insufficient_scope"

    def test_gives_no_token_for_a_wrong_password(self, guarded: Registry, repository: str) -> None:
        assert token_for(guarded, repository, "pull", ("writer", "wrong")).status_code == 401

    def test_writer_pushes_and_reader_only_pulls(self, guarded: Registry, repository: str) -> None:
        assert guarded.username
        assert guarded.password
        assert guarded.reader
        writer, reader = (
            {"Authorization": f"Bearer {token_for(guarded, repository, 'pull,push', login).json()['token']}"}
            for login in ((guarded.username, guarded.password), guarded.reader)
        )
        with guarded.client() as client:
            digest = pushed_blob(client, repository, b"content", writer)
            assert client.get(f"/v2/{repository}/blobs/{digest}", headers=reader).content == b"content"
            assert client.post(f"/v2/{repository}/blobs/uploads/", headers=reader).status_code == 401

    def test_a_token_is_for_one_repository(self, guarded: Registry, repository: str) -> None:
        assert guarded.reader
        token = token_for(guarded, repository, "pull", guarded.reader).json()["token"]
        with guarded.client() as client:
            assert client.get(f"/v2/{repository}/elsewhere/tags/list", headers={"Authorization": f"Bearer {token}"}).status_code == 401

    def test_skopeo_logs_in(self, guarded: Registry, repository: str, image_pairs: ImagePairs, program: Callable[[str], str]) -> None:
        skopeo, target = program("skopeo"), guarded.reference(repository)
        refused = run(skopeo, "inspect", "--raw", [*guarded.skopeo(), "--creds=writer:wrong"], target, check=False)
        assert "unauthorized" in refused.stderr.lower() or "authentication required" in refused.stderr.lower()
        run(skopeo, "copy", guarded.skopeo("dest"), image_pairs.small_change.baseline, target)
        inside = run(skopeo, "inspect", "--raw", image_pairs.small_change.baseline).stdout
        assert run(skopeo, "inspect", "--raw", guarded.skopeo(), target).stdout == inside


class TestTLSRegistry:
    def test_is_not_trusted_without_its_authority(self, token_tls_registry: Registry) -> None:
        with token_tls_registry.client(trusting=False) as client, pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            client.get("/v2/")

    def test_certs_d_folder_is_what_skopeo_needs(self, token_tls_registry: Registry, repository: str, program: Callable[[str], str]) -> None:
        missing = [program("skopeo"), "inspect", "--no-creds", token_tls_registry.reference(repository)]
        assert "certificate signed by unknown authority" in run(missing, check=False).stderr
        assert token_tls_registry.cert_dir
        assert "unauthorized" in run(missing, f"--cert-dir={token_tls_registry.cert_dir}", check=False).stderr

    def test_speaks_no_plain_http(self, token_tls_registry: Registry) -> None:
        answer = httpx.get(f"http://{token_tls_registry.host}/v2/", trust_env=False)
        assert answer.status_code == 400

    def test_token_server_has_the_same_authority(self, token_tls_registry: Registry) -> None:
        with token_tls_registry.client() as client:
            realm = challenge(client.get("/v2/"))["realm"]
        assert realm.startswith("https://")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(realm, trust_env=False)


class TestRedirectingRegistry:
    def test_sends_readers_of_blobs_to_the_object_store(self, redirecting_registry: Registry, s3: ObjectStore, repository: str) -> None:
        with redirecting_registry.client() as client:
            digest = pushed_blob(client, repository, b"0123456789")
            answer = client.get(f"/v2/{repository}/blobs/{digest}")
            assert answer.status_code == 307
            assert answer.headers["Location"].startswith(s3.endpoint)
            there = client.get(answer.headers["Location"], headers={"Range": "bytes=4-"})
        assert (there.status_code, there.content) == (206, b"456789")

    def test_presigned_urls_are_the_only_way_in(self, redirecting_registry: Registry, repository: str) -> None:
        with redirecting_registry.client() as client:
            digest = pushed_blob(client, repository, b"content")
            location = httpx.URL(client.get(f"/v2/{repository}/blobs/{digest}").headers["Location"])
            assert client.get(location.copy_with(query=None)).status_code == 403


class TestReferrersRegistry:
    def test_lists_what_names_a_manifest_as_its_subject(
        self, referrers_registry: Registry, repository: str, image_pairs: ImagePairs, program: Callable[[str], str], tmp_path: Path
    ) -> None:
        target = referrers_registry.reference(repository)
        run(program("skopeo"), "copy", referrers_registry.skopeo("dest"), image_pairs.small_change.baseline, target)
        (tmp_path / "note.txt").write_text("attached")
        image = target.removeprefix("docker://")
        with referrers_registry.client() as client:
            subject = client.get(f"/v2/{repository}/manifests/v1", headers={"Accept": MANIFEST}).headers["Docker-Content-Digest"]
            assert client.get(f"/v2/{repository}/referrers/{subject}").json()["manifests"] == []
            attach = ["attach", "--plain-http", "--artifact-type", "text/plain", "--disable-path-validation", "--format", "json"]
            attached = run(program("oras"), attach, image, str(tmp_path / "note.txt"), environment=referrers_registry.environment)
            listed = client.get(f"/v2/{repository}/referrers/{subject}")
        assert listed.headers["Content-Type"] == "application/vnd.oci.image.index.v1+json"
        assert [entry["digest"] for entry in listed.json()["manifests"]] == [json.loads(attached.stdout)["digest"]]


class TestObjectStore:
    @pytest.fixture
    def client(self, s3: ObjectStore) -> Any:
        return s3.client()

    @pytest.fixture
    def key(self) -> str:
        return f"{uuid.uuid4().hex}/object"

    def test_refuses_a_wrong_secret(self, s3: ObjectStore, key: str) -> None:
        with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
            replace(s3, secret="wrong").client().put_object(Bucket=s3.bucket, Key=key, Body=b"")

    def test_writes_on_condition(self, s3: ObjectStore, client: Any, key: str) -> None:
        tag = client.put_object(Bucket=s3.bucket, Key=key, Body=b"first", IfNoneMatch="*")["ETag"]
        with pytest.raises(ClientError, match="PreconditionFailed"):
            client.put_object(Bucket=s3.bucket, Key=key, Body=b"second", IfNoneMatch="*")
        client.put_object(Bucket=s3.bucket, Key=key, Body=b"third", IfMatch=tag)
        with pytest.raises(ClientError, match="PreconditionFailed"):
            client.put_object(Bucket=s3.bucket, Key=key, Body=b"fourth", IfMatch=tag)
        assert client.get_object(Bucket=s3.bucket, Key=key)["Body"].read() == b"third"

    def test_multipart_upload_appears_when_completed(self, s3: ObjectStore, client: Any, key: str) -> None:
        where = {"Bucket": s3.bucket, "Key": key}
        upload = client.create_multipart_upload(**where)["UploadId"]
        contents = [b"a" * PART, b"b" * 10]
        parts = [
            {"PartNumber": number, "ETag": client.upload_part(**where, UploadId=upload, PartNumber=number, Body=content)["ETag"]}
            for number, content in enumerate(contents, 1)
        ]
        assert client.list_objects_v2(Bucket=s3.bucket, Prefix=key)["KeyCount"] == 0
        done = client.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})
        assert done["ETag"].strip('"').endswith("-2")
        assert client.get_object(**where)["Body"].read() == b"".join(contents)

    def test_aborted_multipart_upload_leaves_nothing(self, s3: ObjectStore, client: Any, key: str) -> None:
        where = {"Bucket": s3.bucket, "Key": key}
        upload = client.create_multipart_upload(**where)["UploadId"]
        client.upload_part(**where, UploadId=upload, PartNumber=1, Body=b"a" * PART)
        client.abort_multipart_upload(**where, UploadId=upload)
        with pytest.raises(ClientError, match="404"):
            client.head_object(**where)
        assert not client.list_multipart_uploads(Bucket=s3.bucket, Prefix=key).get("Uploads")

    def test_s3fs_reaches_it(self, s3: ObjectStore, key: str) -> None:
        from s3fs import S3FileSystem

        fs = S3FileSystem(**s3.storage_options, skip_instance_cache=True)
        fs.pipe_file(f"{s3.bucket}/{key}", b"content")
        assert fs.cat_file(f"{s3.bucket}/{key}") == b"content"


class TestImagePairs:
    def test_only_the_top_layer_of_the_small_change_differs(self, image_pairs: ImagePairs, program: Callable[[str], str]) -> None:
        old, new = layers(program("skopeo"), image_pairs.small_change.baseline), layers(program("skopeo"), image_pairs.small_change.target)
        assert len(old) == len(new) == 3
        assert old[:2] == new[:2]
        assert old[2] != new[2]
        assert old[2][1] < old[1][1] / 4

    def test_the_largest_layer_of_the_big_change_differs(self, image_pairs: ImagePairs, program: Callable[[str], str]) -> None:
        old, new = layers(program("skopeo"), image_pairs.big_change.baseline), layers(program("skopeo"), image_pairs.big_change.target)
        assert old[0] == new[0]
        assert old[1] != new[1]
        assert max(size for _, size in new) == new[1][1] > 2_000_000

    def test_judges_accept_them(self, image_pairs: ImagePairs, program: Callable[[str], str], tmp_path: Path) -> None:
        for pair in image_pairs:
            run(program("umoci"), "raw", "unpack", "--rootless", "--image", f"{pair.layout}:v2", str(tmp_path / pair.name))
            assert (tmp_path / pair.name / "app/VERSION").read_text() == "2.0.0\n"


def layers(skopeo: str, reference: str) -> list[tuple[str, int]]:
    manifest = json.loads(run(skopeo, "inspect", "--raw", reference).stdout)
    return [(layer["digest"], layer["size"]) for layer in manifest["layers"]]
