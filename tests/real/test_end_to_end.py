"""From one registry over an object store into another, through the command line, as flows and without Prefect."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from prefect_diffah.engine.testing.images import GeneratedImage, next_version, random_image
from prefect_diffah.engine.testing.registry import InProcessRegistry

from .running import diffah, digest_of, manifest_of, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .services.images import ImagePair, ImagePairs
    from .services.objects import ObjectStore
    from .services.prefect_api import PrefectServer
    from .services.registries import Registry

DIRECT = "direct"
FLOW = "flow"


@pytest.fixture
def skopeo(program: Callable[[str], str]) -> str:
    return program("skopeo")


@pytest.fixture
def pair(image_pairs: ImagePairs) -> ImagePair:
    return image_pairs.small_change


@pytest.fixture
def repository() -> str:
    """A repository name that no other test uses."""
    return f"tests/{uuid.uuid4().hex}"


@pytest.fixture
def key(s3: ObjectStore) -> str:
    """Name of an object, or of a folder of objects, that no other test uses."""
    return uuid.uuid4().hex


class Site:
    """A machine that exports or imports: its command line, with what it finds in its environment."""

    def __init__(self, way: str, folder: Path, environment: dict[str, str]) -> None:
        self.way, self.folder, self.environment = way, folder, environment
        folder.mkdir()

    def run(self, verb: str, *words: str, code: int = 0, **environment: str) -> dict[str, Any]:
        where = ["--store", str(self.folder / "store")] if "--store" not in words and "--store-block" not in words else []
        how = ["--direct"] if self.way == DIRECT else []
        return diffah(verb, words, where, how, environment={**self.environment, **environment}, code=code)


@pytest.fixture
def site(prefect_server: PrefectServer, s3: ObjectStore, tmp_path: Path) -> Callable[[str, str], Site]:
    """``site(way, name)``: a new one; ``way`` is how pipelines run there."""

    def make(way: str, name: str) -> Site:
        prefect = prefect_server.environment(tmp_path / name / "prefect") if way == FLOW else {"PREFECT_API_URL": "http://127.0.0.1:1/api"}
        return Site(way, tmp_path / name, {**s3.environment, **prefect, "HOME": str(tmp_path / name)})

    return make


def read_object(s3: ObjectStore, key: str) -> bytes:
    content: bytes = s3.client().get_object(Bucket=s3.bucket, Key=key)["Body"].read()
    return content


def authfile_of(registry: Registry) -> str:
    return f"{registry.environment['DOCKER_CONFIG']}/config.json"


class TestBetweenRegistriesThroughAnObjectStore:
    """Token authentication on both sides, TLS on the receiver's."""

    @pytest.fixture
    def sender(self, token_registry: Registry, repository: str, pair: ImagePair, skopeo: str) -> Registry:
        """Has both versions."""
        for version, reference in (("v1", pair.baseline), ("v2", pair.target)):
            run(skopeo, "copy", token_registry.skopeo("dest"), reference, token_registry.reference(repository, version))
        return token_registry

    @pytest.fixture
    def receiver(self, token_tls_registry: Registry, repository: str, pair: ImagePair, skopeo: str) -> Registry:
        """Has the baseline."""
        run(skopeo, "copy", token_tls_registry.skopeo("dest"), pair.baseline, token_tls_registry.reference(repository))
        return token_tls_registry

    def export(self, site: Site, sender: Registry, repository: str, output: str, *words: str, **environment: str) -> dict[str, Any]:
        images = ["--target", sender.reference(repository, "v2"), "--baseline", sender.reference(repository)]
        reached = words or ("--target-tls-verify=false", "--baseline-tls-verify=false", "--authfile", authfile_of(sender))
        return site.run("export", *images, "--output", output, "--name", "app:v2", *reached, **environment)

    @pytest.mark.parametrize("way", [DIRECT, FLOW])
    def test_digest_survives(
        self,
        way: str,
        site: Callable[[str, str], Site],
        sender: Registry,
        receiver: Registry,
        repository: str,
        s3: ObjectStore,
        key: str,
        pair: ImagePair,
        skopeo: str,
        program: Callable[[str], str],
        prefect_server: PrefectServer,
    ) -> None:
        target, archive = digest_of(skopeo, pair.target), s3.url(f"{key}/app.tar")
        exported = self.export(site(way, "sender"), sender, repository, archive)
        assert (exported["status"], exported["summary"]["target"]) == ("written", target)
        assert len(read_object(s3, f"{key}/app.tar")) == exported["size"]

        words = ["--delta", archive, "--baseline", receiver.reference(repository), "--output", receiver.reference(repository, "v2")]
        reached = ["--creds-env", "RECEIVER", "--cert-dir", str(receiver.cert_dir)]
        imported = site(way, "receiver").run("import", *words, *reached, RECEIVER=f"{receiver.username}:{receiver.password}")
        assert (imported["status"], imported["digest"]) == ("written", target)
        assert manifest_of(skopeo, receiver.reference(repository, "v2"), *receiver.skopeo()) == manifest_of(skopeo, pair.target)
        run(program("crane"), "validate", "--remote", f"{receiver.host}/{repository}:v2", environment=receiver.environment)

        assert receiver.password
        recorded = [json.dumps(each) for name in ("export-delta", "import-delta") for each in prefect_server.flow_runs(name)]
        mine = [text for text in recorded if key in text]
        assert len(mine) == (2 if way == FLOW else 0)
        assert not any(receiver.password in text or s3.secret in text for text in mine)

    def test_both_ways_give_the_same_bytes(
        self, site: Callable[[str, str], Site], sender: Registry, repository: str, s3: ObjectStore, key: str, tmp_path: Path
    ) -> None:
        archives = {}
        for way in (DIRECT, FLOW):
            self.export(site(way, f"{way}-s3"), sender, repository, s3.url(f"{key}/{way}.tar"))
            archives[f"{way} to S3"] = read_object(s3, f"{key}/{way}.tar")
            self.export(site(way, f"{way}-file"), sender, repository, str(tmp_path / f"{way}.tar"))
            archives[f"{way} to a file"] = (tmp_path / f"{way}.tar").read_bytes()
        assert len(set(archives.values())) == 1, {name: len(content) for name, content in archives.items()}

    def test_credentials_come_from_blocks(
        self,
        site: Callable[[str, str], Site],
        sender: Registry,
        repository: str,
        s3: ObjectStore,
        key: str,
        pair: ImagePair,
        skopeo: str,
        prefect_server: PrefectServer,
        tmp_path: Path,
    ) -> None:
        name, here = f"block-{key}", site(FLOW, "sender")
        for variable in s3.environment:
            del here.environment[variable]
        blocks = {
            "registry": {"username": sender.username, "password": sender.password, "tls_verify": False},
            "archives": {"url": s3.url(f"{key}/store"), "storage_options": s3.storage_options},
        }
        program = (
            "import json, sys\n"
            "from prefect_diffah import DeltaStore, RegistryCredentials\n"
            "blocks = json.load(sys.stdin)\n"
            f"RegistryCredentials(**blocks['registry']).save({name!r})\n"
            f"DeltaStore(**blocks['archives']).save({name!r})\n"
        )
        environment = {"PATH": "", **here.environment, **prefect_server.environment(tmp_path / "blocks")}
        subprocess.run([sys.executable, "-c", program], input=json.dumps(blocks), text=True, env=environment, check=True, timeout=300)
        words = ("--credentials", name, "--output-no-creds", "--output-store-block", name, "--store-block", name)
        report = self.export(here, sender, repository, s3.url(f"{key}/app.tar"), *words)
        assert report["summary"]["target"] == digest_of(skopeo, pair.target)
        assert len(read_object(s3, f"{key}/app.tar")) == report["size"]
        stored = s3.client().list_objects_v2(Bucket=s3.bucket, Prefix=f"{key}/store/blobs/")
        assert stored["KeyCount"] > 0
        (mine,) = [text for text in map(json.dumps, prefect_server.flow_runs("export-delta")) if key in text]
        assert sender.password
        assert sender.password not in mine
        assert s3.secret not in mine

    def test_wrong_password_leaves_nothing(self, site: Callable[[str, str], Site], sender: Registry, repository: str, s3: ObjectStore, key: str) -> None:
        error = self.export(
            site(FLOW, "sender"), sender, repository, s3.url(f"{key}/app.tar"), "--tls-verify=false", "--creds-env=WRONG", code=2, WRONG="writer:mistaken"
        )
        assert (error["code"], error["category"]) == ("access-denied", "request")
        assert "mistaken" not in json.dumps(error)
        assert s3.client().list_objects_v2(Bucket=s3.bucket, Prefix=key)["KeyCount"] == 0


class TestRegistryWithReferrers:
    @pytest.mark.parametrize("way", [DIRECT, FLOW])
    def test_holds_a_delta(
        self, way: str, site: Callable[[str, str], Site], referrers_registry: Registry, repository: str, pair: ImagePair, skopeo: str, tmp_path: Path
    ) -> None:
        delta, reached = referrers_registry.reference(repository, "delta"), ("--tls-verify=false", "--no-creds")
        exported = site(way, "sender").run("export", "--target", pair.target, "--baseline", pair.baseline, "--output", delta, *reached)
        assert digest_of(skopeo, delta, *referrers_registry.skopeo()) == exported["delta"]
        with referrers_registry.client() as client:
            listed = client.get(f"/v2/{repository}/referrers/{exported['delta']}")
        assert (listed.status_code, listed.json()["manifests"]) == (200, [])
        output = f"oci:{tmp_path / 'image'}:v2"
        site(way, "receiver").run("import", "--delta", delta, "--baseline", pair.baseline, "--output", output, *reached)
        assert manifest_of(skopeo, output) == manifest_of(skopeo, pair.target)


@pytest.fixture
def versions() -> tuple[GeneratedImage, GeneratedImage]:
    """An image in two versions; one layer of three changes."""
    old = random_image(uuid.uuid4().hex)
    return old, next_version(old, uuid.uuid4().hex)


@pytest.fixture
def counting(versions: tuple[GeneratedImage, GeneratedImage]) -> Iterator[InProcessRegistry]:
    """A registry that logs requests; has both versions in ``app`` and the old one in ``received``."""
    with InProcessRegistry(auth="token") as registry:
        for tag, image in zip(("v1", "v2"), versions, strict=True):
            registry.put_image("app", tag, image)
        registry.put_image("received", "v1", versions[0])
        yield registry


def downloads(registry: InProcessRegistry, kind: str) -> Counter[str]:
    """How often what was read, of ``blobs`` or ``manifests``."""
    asked = (path.partition(f"/{kind}/") for method, path, status in registry.requests if method == "GET" and status in (200, 206))
    return Counter(last for _, found, last in asked if found and not last.startswith("uploads/"))


@pytest.mark.parametrize("way", [DIRECT, FLOW])
class TestRequests:
    REACHED = ("--tls-verify=false", "--creds-env=CREDS")

    @pytest.fixture
    def here(self, way: str, site: Callable[[str, str], Site]) -> Site:
        made = site(way, "here")
        made.environment["CREDS"] = "user:pass"
        return made

    def export(self, here: Site, registry: InProcessRegistry, output: str, *words: str) -> dict[str, Any]:
        images = ("--target", f"docker://{registry.host}/app:v2", "--baseline", f"docker://{registry.host}/app:v1")
        return here.run("export", *images, "--output", output, *self.REACHED, *words)

    def test_export_reads_manifests_configs_and_what_changed_once(
        self, here: Site, counting: InProcessRegistry, versions: tuple[GeneratedImage, GeneratedImage], tmp_path: Path
    ) -> None:
        old, new = versions
        self.export(here, counting, str(tmp_path / "delta.tar"))
        assert downloads(counting, "manifests") == {"v1": 1, "v2": 1}
        assert downloads(counting, "blobs") == {old.config.digest: 1, new.config.digest: 1, new.layers[-1].digest: 1}

    def test_import_into_the_baselines_repository_downloads_no_blob(
        self, here: Site, counting: InProcessRegistry, versions: tuple[GeneratedImage, GeneratedImage], tmp_path: Path
    ) -> None:
        self.export(here, counting, str(tmp_path / "delta.tar"))
        counting.forget_requests()
        baseline, output = (f"docker://{counting.host}/received:{tag}" for tag in ("v1", "v2"))
        report = here.run("import", "--delta", str(tmp_path / "delta.tar"), "--baseline", baseline, "--output", output, *self.REACHED)
        assert report["digest"] == counting.repository("received").tags["v2"] == versions[1].root.digest
        assert not downloads(counting, "blobs")
        sent = [path for method, path, status in counting.requests if method == "PUT" and "/blobs/uploads/" in path and status == 201]
        new = {versions[1].config.digest, versions[1].layers[-1].digest}
        assert len(sent) == 2
        assert all(any(digest.replace(":", "%3A") in path or digest in path for path in sent) for digest in new)

    def test_a_store_on_s3_saves_the_second_run_all_packing(
        self, way: str, here: Site, site: Callable[[str, str], Site], counting: InProcessRegistry, s3: ObjectStore, key: str, tmp_path: Path
    ) -> None:
        store = ("--store", s3.url(f"{key}/store"))
        self.export(here, counting, str(tmp_path / "first.tar"), *store)
        written = {item["Key"]: item["LastModified"] for item in s3.client().list_objects_v2(Bucket=s3.bucket, Prefix=key)["Contents"]}
        assert len([name for name in written if "/records/pack_blobs/" in name]) == 3
        counting.forget_requests()
        other = site(way, "other")
        other.environment["CREDS"] = here.environment["CREDS"]
        self.export(other, counting, str(tmp_path / "second.tar"), *store)
        assert not downloads(counting, "blobs")
        assert {item["Key"]: item["LastModified"] for item in s3.client().list_objects_v2(Bucket=s3.bucket, Prefix=key)["Contents"]} == written
        assert (tmp_path / "second.tar").read_bytes() == (tmp_path / "first.tar").read_bytes()
