"""Deltas of images that buildah built: other tools agree on what import writes, and may carry the delta in between."""

from __future__ import annotations

import json
import tarfile
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefect_diffah.engine import pipeline
from prefect_diffah.engine.errors import BaselineIncomplete
from prefect_diffah.engine.images import Place
from prefect_diffah.engine.oci import Digest, Reference
from prefect_diffah.flows.requests import AccessRequest

from .running import PLAIN, digest_of, export, files_in, import_, layers_of, manifest_of, run, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .services.images import ImagePair, ImagePairs
    from .services.registries import Registry

TRANSPORTS = ("docker-archive", "oci-archive", "oci", "dir")
HERE = AccessRequest()
"""How a file is reached."""
ON_ONE_REGISTRY = pytest.mark.parametrize("distribution", ["distribution-3"], indirect=True)
"""Where the registry is but a place to put something, one kind of it will do."""


@dataclass(frozen=True)
class Delta:
    """The delta of a pair, and what other tools say of the pair's target."""

    pair: ImagePair
    archive: Path
    manifest: bytes
    config: bytes

    @property
    def digest(self) -> Digest:
        return Digest.of(self.manifest)

    @property
    def config_digest(self) -> str:
        return str(json.loads(self.manifest)["config"]["digest"])


@dataclass(frozen=True)
class Copy:
    """What another tool made of a delta."""

    reference: str
    access: AccessRequest = HERE


@pytest.fixture(scope="module")
def skopeo(program: Callable[[str], str]) -> str:
    return program("skopeo")


@pytest.fixture(scope="module", params=["small_change", "big_change"])
def delta(request: pytest.FixtureRequest, image_pairs: ImagePairs, skopeo: str, tmp_path_factory: pytest.TempPathFactory) -> Delta:
    """The delta of each pair."""
    pair, folder = getattr(image_pairs, request.param), tmp_path_factory.mktemp("delta")
    export(target=pair.target, baselines=(pair.baseline,), output=str(folder / "delta.tar"), name="app:v2", store=str(folder / "store"))
    config = run(skopeo, "inspect", "--config", "--raw", pair.target).stdout.encode()
    return Delta(pair, folder / "delta.tar", manifest_of(skopeo, pair.target), config)


@pytest.fixture(scope="module")
def expected(delta: Delta, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The layout that import makes of the delta as it was exported."""
    folder = tmp_path_factory.mktemp("expected")
    import_(delta=str(delta.archive), baselines=(delta.pair.baseline,), output=f"oci:{folder / 'image'}", store=str(folder / "store"))
    return files_in(folder / "image")


@pytest.fixture
def repository(plain_registry: Registry) -> str:
    """``host/name`` of a repository that no other test uses."""
    return f"{plain_registry.host}/{uuid.uuid4().hex}"


@pytest.fixture
def podman(program: Callable[[str], str]) -> Iterator[list[str]]:
    """podman with a storage of its own."""
    # its names may have 50 characters, fewer than pytest's temporary folders
    with tempfile.TemporaryDirectory(prefix="podman") as folder:
        yield [program("podman"), "--root", f"{folder}/root", "--runroot", f"{folder}/run", "--storage-driver", "vfs"]


class TestExport:
    def test_every_byte_is_sound_and_the_baseline_has_the_rest(self, delta: Delta) -> None:
        report = verify(delta=str(delta.archive), baselines=(delta.pair.baseline,))
        assert (report.canonical, report.baseline_checked, report.notes) == (True, True, ())
        assert report.summary.target == delta.digest

    def test_only_layers_that_the_baseline_lacks_travel(self, delta: Delta, skopeo: str) -> None:
        held = {digest for digest, _ in layers_of(manifest_of(skopeo, delta.pair.baseline))}
        new = {digest: size for digest, size in layers_of(delta.manifest) if digest not in held}
        summary = verify(delta=str(delta.archive)).summary
        assert {row.digest: row.payload for row in summary.blobs if row.role == "layer" and row.travels == "carried"} == new
        assert {row.digest for row in summary.blobs if row.travels == "required"} == {digest for digest, _ in layers_of(delta.manifest)} - new.keys()
        assert sum(new.values()) < delta.archive.stat().st_size < sum(new.values()) + 40_000

    def test_another_image_is_no_baseline(self, delta: Delta, tmp_path: Path, program: Callable[[str], str]) -> None:
        run(program("umoci"), "init", "--layout", str(tmp_path / "other"))
        run(program("umoci"), "new", "--image", f"{tmp_path / 'other'}:v1")
        with pytest.raises(BaselineIncomplete) as error:
            verify(delta=str(delta.archive), baselines=(f"oci:{tmp_path / 'other'}:v1",))
        assert {item["digest"] for item in error.value.details["missing"]} == {
            row.digest for row in verify(delta=str(delta.archive)).summary.blobs if row.travels == "required"
        }


class TestImport:
    @pytest.fixture(params=TRANSPORTS)
    def output(self, request: pytest.FixtureRequest, delta: Delta, tmp_path: Path) -> Reference:
        """The rebuilt image in each transport that is a file or folder."""
        report = import_(
            delta=str(delta.archive), baselines=(delta.pair.baseline,), output=f"{request.param}:{tmp_path / 'image'}", store=str(tmp_path / "store")
        )
        assert (report.status, report.digest) == ("written", delta.digest)
        return Reference.parse(f"{request.param}:{tmp_path / 'image'}")

    def test_skopeo_finds_the_target(self, output: Reference, delta: Delta, skopeo: str) -> None:
        assert run(skopeo, "inspect", "--config", "--raw", str(output)).stdout.encode() == delta.config
        if output.transport == "docker-archive":
            # skopeo reads manifest.json, which has no digest of its own; the layout beside it has
            inside = run(skopeo, "inspect", "--raw", str(output)).stdout.encode()
            assert [digest for digest, _ in layers_of(inside)] == json.loads(delta.config)["rootfs"]["diff_ids"]
            output = output.model_copy(update={"transport": "oci-archive"})
        assert manifest_of(skopeo, str(output)) == delta.manifest

    @ON_ONE_REGISTRY
    def test_skopeo_copies_it_unchanged(self, output: Reference, delta: Delta, skopeo: str, plain_registry: Registry, repository: str) -> None:
        if output.transport == "docker-archive":
            output = output.model_copy(update={"transport": "oci-archive"})
        options = plain_registry.skopeo("dest")
        run(skopeo, "copy", "--preserve-digests", options, str(output), f"docker://{repository}:copy")
        assert manifest_of(skopeo, f"docker://{repository}:copy", *plain_registry.skopeo()) == delta.manifest

    def test_our_own_reader_finds_the_target(self, output: Reference, delta: Delta) -> None:
        with Place(reference=output).open() as reader:
            descriptor, raw = reader.root()
            assert (descriptor.digest, raw) == (delta.digest, delta.manifest)


class TestJudges:
    def import_as(self, transport: str, delta: Delta, folder: Path) -> str:
        output = f"{transport}:{folder / 'image'}"
        import_(delta=str(delta.archive), baselines=(delta.pair.baseline,), output=output, store=str(folder / "store"))
        return output

    @pytest.mark.parametrize("transport", ["docker-archive", "oci-archive"])
    def test_podman_loads_the_target(self, transport: str, delta: Delta, tmp_path: Path, podman: list[str]) -> None:
        self.import_as(transport, delta, tmp_path)
        run(podman, "load", "--quiet", "--input", str(tmp_path / "image"))
        (image,) = json.loads(run(podman, "images", "--format", "json").stdout)
        assert f"sha256:{image['Id']}" == delta.config_digest
        if transport == "docker-archive":
            assert [name.rpartition("/")[2] for name in image["Names"]] == ["app:v2"]
        (found,) = json.loads(run(podman, "image", "inspect", image["Id"]).stdout)
        assert found["RootFS"]["Layers"] == json.loads(delta.config)["rootfs"]["diff_ids"]

    @ON_ONE_REGISTRY
    def test_podman_pulls_what_was_pushed(self, delta: Delta, tmp_path: Path, podman: list[str], plain_registry: Registry, repository: str) -> None:
        report = import_(
            delta=str(delta.archive),
            baselines=(delta.pair.baseline,),
            output=f"docker://{repository}:v2",
            output_access=PLAIN,
            store=str(tmp_path / "store"),
        )
        assert (report.status, report.digest) == ("written", delta.digest)
        run(podman, "pull", "--quiet", plain_registry.skopeo(), f"docker://{repository}:v2")
        (image,) = json.loads(run(podman, "images", "--format", "json").stdout)
        assert (image["Digest"], f"sha256:{image['Id']}") == (delta.digest, delta.config_digest)

    def test_crane_and_skopeo_find_what_was_pushed(
        self, delta: Delta, tmp_path: Path, skopeo: str, program: Callable[[str], str], plain_registry: Registry, repository: str
    ) -> None:
        import_(
            delta=str(delta.archive), baselines=(delta.pair.baseline,), output=f"docker://{repository}:v2", output_access=PLAIN, store=str(tmp_path / "store")
        )
        run(program("crane"), "validate", "--insecure", "--remote", f"{repository}:v2")
        assert manifest_of(skopeo, f"docker://{repository}:v2", *plain_registry.skopeo()) == delta.manifest

    def test_umoci_unpacks_the_same_files(self, delta: Delta, tmp_path: Path, program: Callable[[str], str]) -> None:
        self.import_as("oci", delta, tmp_path)
        for name, layout in (("rebuilt", tmp_path / "image"), ("target", delta.pair.layout)):
            run(program("umoci"), "raw", "unpack", "--rootless", "--image", f"{layout}:v2", str(tmp_path / name))
        rebuilt = files_in(tmp_path / "rebuilt")
        assert rebuilt == files_in(tmp_path / "target")
        assert rebuilt["app/VERSION"][1] == b"2.0.0\n"


class TestDeltaCarriedByOtherTools:
    """Each way in which another tool may carry a delta; what import makes of it is always the same."""

    @pytest.fixture
    def layout(self, delta: Delta, tmp_path: Path) -> Path:
        """The archive's members as a folder: an OCI layout, and ``diffah.json``."""
        with tarfile.open(delta.archive) as tar:
            tar.extractall(tmp_path / "layout")
        return tmp_path / "layout"

    def assert_imports_the_same(self, copy: Copy, delta: Delta, expected: dict[str, Any], folder: Path) -> None:
        report = import_(
            delta=copy.reference,
            delta_access=copy.access,
            baselines=(delta.pair.baseline,),
            output=f"oci:{folder / 'imported'}",
            store=str(folder / "store"),
        )
        assert report.digest == delta.digest
        assert files_in(folder / "imported") == expected
        checked = verify(delta=copy.reference, delta_access=copy.access, baselines=(delta.pair.baseline,))
        assert (checked.canonical, checked.notes) == (False, (pipeline.REPACKED,))
        assert checked.summary == verify(delta=str(delta.archive)).summary

    def assert_in_registry(self, delta: Delta, expected: dict[str, Any], folder: Path, skopeo: str, registry: Registry, repository: str) -> None:
        """It imports the same from the registry, and from what skopeo pulls out of it."""
        self.assert_imports_the_same(Copy(f"docker://{repository}:delta", PLAIN), delta, expected, folder / "registry")
        for transport in ("oci-archive", "oci"):
            pulled = f"{transport}:{folder / f'pulled-{transport}'}:delta"
            run(skopeo, "copy", registry.skopeo("src"), f"docker://{repository}:delta", pulled)
            self.assert_imports_the_same(Copy(pulled), delta, expected, folder / transport)

    def test_pushed_with_oras_and_pulled_with_skopeo(
        self, delta: Delta, expected: dict[str, Any], tmp_path: Path, skopeo: str, program: Callable[[str], str], plain_registry: Registry, repository: str
    ) -> None:
        run(program("oras"), "cp", "--no-tty", "--from-oci-layout", f"{delta.archive}:delta", "--to-plain-http", f"{repository}:delta")
        self.assert_in_registry(delta, expected, tmp_path, skopeo, plain_registry, repository)

    @ON_ONE_REGISTRY
    def test_pushed_and_pulled_with_skopeo(
        self, delta: Delta, expected: dict[str, Any], tmp_path: Path, skopeo: str, plain_registry: Registry, repository: str
    ) -> None:
        run(skopeo, "copy", plain_registry.skopeo("dest"), f"oci-archive:{delta.archive}:delta", f"docker://{repository}:delta")
        self.assert_in_registry(delta, expected, tmp_path, skopeo, plain_registry, repository)

    @ON_ONE_REGISTRY
    def test_copied_with_regctl(
        self, delta: Delta, expected: dict[str, Any], layout: Path, tmp_path: Path, program: Callable[[str], str], plain_registry: Registry, repository: str
    ) -> None:
        regctl = [program("regctl"), "image", "copy", "--host", f"reg={plain_registry.host},tls=disabled"]
        settings = {"REGCTL_CONFIG": str(tmp_path / "regctl.json")}
        run(regctl, f"ocidir://{layout}:delta", f"{repository}:delta", environment=settings)
        run(regctl, f"{repository}:delta", f"ocidir://{tmp_path / 'pulled'}:delta", environment=settings)
        self.assert_imports_the_same(Copy(f"oci:{tmp_path / 'pulled'}:delta"), delta, expected, tmp_path)

    @ON_ONE_REGISTRY
    def test_pushed_and_pulled_with_crane(
        self, delta: Delta, expected: dict[str, Any], layout: Path, tmp_path: Path, program: Callable[[str], str], repository: str
    ) -> None:
        run(program("crane"), "push", "--insecure", str(layout), f"{repository}:delta")
        run(program("crane"), "pull", "--insecure", "--format", "oci", f"{repository}:delta", str(tmp_path / "pulled"))
        self.assert_imports_the_same(Copy(f"oci:{tmp_path / 'pulled'}"), delta, expected, tmp_path)

    @ON_ONE_REGISTRY
    def test_pulled_with_oras(
        self, delta: Delta, expected: dict[str, Any], tmp_path: Path, program: Callable[[str], str], plain_registry: Registry, repository: str
    ) -> None:
        report = export(
            target=delta.pair.target,
            baselines=(delta.pair.baseline,),
            output=f"docker://{repository}:delta",
            output_access=PLAIN,
            name="app:v2",
            store=str(tmp_path / "export-store"),
        )
        run(program("oras"), "cp", "--no-tty", "--from-plain-http", f"{repository}:delta", "--to-oci-layout", f"{tmp_path / 'pulled'}:delta")
        fetched = run(program("oras"), "manifest", "fetch", "--plain-http", f"{repository}:delta").stdout
        assert Digest.of(fetched.encode()) == report.delta
        self.assert_imports_the_same(Copy(f"oci:{tmp_path / 'pulled'}:delta"), delta, expected, tmp_path)

    def test_unpacked(self, delta: Delta, expected: dict[str, Any], layout: Path, tmp_path: Path) -> None:
        self.assert_imports_the_same(Copy(f"oci:{layout}:delta"), delta, expected, tmp_path)

    @pytest.mark.parametrize("compression", ["", "gz"])
    def test_packed_again(self, delta: Delta, expected: dict[str, Any], layout: Path, tmp_path: Path, compression: str) -> None:
        with tarfile.open(tmp_path / "again.tar", f"w:{compression}") as tar:  # type: ignore[call-overload]
            tar.add(layout / "blobs", "blobs")
            for name in ("oci-layout", "index.json"):
                tar.add(layout / name, name)
        self.assert_imports_the_same(Copy(f"oci-archive:{tmp_path / 'again.tar'}"), delta, expected, tmp_path)

    @ON_ONE_REGISTRY
    def test_is_the_same_artifact_wherever_it_is_exported_to(
        self, delta: Delta, tmp_path: Path, skopeo: str, plain_registry: Registry, repository: str
    ) -> None:
        artifact = digest_of(skopeo, f"oci-archive:{delta.archive}:delta")
        for number, (output, access) in enumerate(((f"docker://{repository}:delta", PLAIN), (f"oci:{tmp_path / 'layout'}:delta", HERE))):
            report = export(
                target=delta.pair.target,
                baselines=(delta.pair.baseline,),
                output=output,
                output_access=access,
                name="app:v2",
                store=str(tmp_path / f"store-{number}"),
            )
            assert report.delta == artifact
            assert digest_of(skopeo, output, *(plain_registry.skopeo() if output.startswith("docker:") else ())) == artifact
