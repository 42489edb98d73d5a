from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from prefect_diffah.engine.access import Access
from prefect_diffah.engine.errors import (
    AccessDenied,
    DigestMismatch,
    Interrupted,
    InvalidOptions,
    NetworkError,
    NotFound,
    RegistryUnavailable,
    RequestError,
    SizeMismatch,
    Unsupported,
)
from prefect_diffah.engine.oci import Descriptor, Digest, Reference, mediatypes
from prefect_diffah.engine.progress import cancellable
from prefect_diffah.engine.registry import close_all
from prefect_diffah.engine.testing.faults import FakeTime, Fault
from prefect_diffah.engine.testing.images import GeneratedImage, index_of, next_version, random_image
from prefect_diffah.engine.testing.registry import InProcessRegistry
from prefect_diffah.engine.transports import OutgoingImage, WriteOptions, open_reader, open_writer
from prefect_diffah.engine.transports.docker import RegistryReader, RegistryWriter

PLAIN = Access(tls_verify=False)
USER = Access(username="user", password=SecretStr("pass"), tls_verify=False)
IMAGE = random_image("docker", layers=3, layer_size=3000)
NEXT = next_version(IMAGE, "docker 2")
INDEX = index_of({"linux/amd64": IMAGE, "linux/arm64": random_image("arm", layers=1, platform="linux/arm64")})
IMAGES = [IMAGE, INDEX, random_image("docker", media="docker"), random_image("sha512", algorithm="sha512")]


def can_be_named(image: GeneratedImage, by: str) -> bool:
    """A tag names no algorithm, so that sha256 is what it stands for."""
    return by != "tag" or image.root.digest.algorithm == "sha256"


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A machine without container configuration; the path of its registries.conf."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    conf = tmp_path / "registries.conf"
    conf.touch()
    (tmp_path / "auth.json").write_text("{}")
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(conf))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    monkeypatch.setenv("HOME", str(tmp_path))
    yield conf
    close_all()


@pytest.fixture
def registry() -> Iterator[InProcessRegistry]:
    with InProcessRegistry() as registry:
        yield registry


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


def reference(registry: InProcessRegistry, name: str = "app:v1") -> Reference:
    return Reference.parse(f"docker://{registry.host}/{name}")


def reader(registry: InProcessRegistry, time: FakeTime, name: str = "app:v1", access: Access = PLAIN) -> RegistryReader:
    return RegistryReader(reference(registry, name), access, patience=time.patience())


def writer(registry: InProcessRegistry, time: FakeTime, name: str = "app:v1", access: Access = PLAIN) -> RegistryWriter:
    return RegistryWriter(reference(registry, name), access, patience=time.patience())


def everything(image: GeneratedImage) -> tuple[dict[str, bytes], dict[str, bytes]]:
    return {str(k): v for k, v in image.blobs.items()}, {str(k): v for k, v in image.documents.items()}


def held(registry: InProcessRegistry, repository: str = "app") -> tuple[dict[str, bytes], dict[str, bytes]]:
    stored = registry.repository(repository)
    return stored.blobs, {digest: raw for digest, (_, raw) in stored.manifests.items()}


def asked(registry: InProcessRegistry, *chosen: str) -> list[str]:
    """Paths of the requests of these methods, uploads' sessions left out."""
    return [path for method, path, _ in registry.requests if method in chosen and "/uploads/" not in path and path != "/v2/"]


# -- reading ----------------------------------------------------------------------


@pytest.mark.parametrize(("image", "by"), [(image, by) for image in IMAGES for by in ("tag", "digest", "both") if can_be_named(image, by)])
def test_images_are_read(registry: InProcessRegistry, time: FakeTime, image: GeneratedImage, by: str) -> None:
    registry.put_image("app", "v1", image)
    with reader(registry, time, {"tag": "app:v1", "digest": f"app@{image.root.digest}", "both": f"app:v1@{image.root.digest}"}[by]) as source:
        root, raw = source.root()
        assert (root.media_type, root.digest, root.size, raw) == (image.root.media_type, image.root.digest, image.root.size, image.manifest)
        assert source.entries() == (root,)
        for manifest in image.manifests:
            assert source.document(manifest) == image.documents[manifest.digest]
        for blob in image.outgoing("app:v1").blobs:
            assert source.holds(blob)
            with source.stream(blob) as chunks:
                assert b"".join(chunks) == image.blobs[blob.digest]
        assert source.document(image.config) == image.blobs[image.config.digest]
        assert source.notes == ()


def test_the_root_is_fetched_once(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.put_image("app", "v1", IMAGE)
    with reader(registry, time) as source:
        for _ in range(2):
            source.root()
            source.entries()
            source.document(IMAGE.root)
    assert asked(registry, "GET") == ["/v2/app/manifests/v1"]


def test_the_digest_decides_where_a_tag_moved(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.put_image("app", None, IMAGE)
    registry.put_image("app", "v1", NEXT)
    assert reader(registry, time, f"app:v1@{IMAGE.root.digest}").root()[0].digest == IMAGE.root.digest


def test_what_is_absent(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.put_image("app", "v1", IMAGE)
    other = NEXT.layers[-1]
    with reader(registry, time) as source:
        assert not source.holds(other)
        assert not source.holds(NEXT.root)
        assert source.holds(IMAGE.root)
        with pytest.raises(NotFound), source.stream(other):
            pytest.fail("entered")
        with pytest.raises(NotFound):
            source.document(NEXT.root)
    with pytest.raises(NotFound, match="v9"):
        reader(registry, time, "app:v9").root()


def test_documents_are_limited_and_checked(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.put_image("app", "v1", IMAGE)
    with reader(registry, time) as source:
        for huge in (IMAGE.config, IMAGE.root):
            with pytest.raises(SizeMismatch, match="over the limit"):
                source.document(huge.model_copy(update={"size": 4 * 1024 * 1024 + 1}))
        with pytest.raises(SizeMismatch):
            source.document(IMAGE.root.model_copy(update={"size": IMAGE.root.size + 1}))
        registry.faults.append(Fault(path="/blobs/", flip=3))
        with pytest.raises(DigestMismatch):
            source.document(IMAGE.config)


def test_schema_1_is_refused_by_name(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.repository("app").manifests["sha256:x"] = (mediatypes.DOCKER_SCHEMA1[1], json.dumps({"schemaVersion": 1, "fsLayers": []}).encode())
    registry.faults.append(
        Fault(path="/manifests/", status=200, headers={"Content-Type": mediatypes.DOCKER_SCHEMA1[1]}, body=b'{"schemaVersion": 1, "fsLayers": []}')
    )
    with pytest.raises(Unsupported, match="schema 1"):
        reader(registry, time).root()


def test_factories_know_it(registry: InProcessRegistry) -> None:
    registry.put_image("app", "v1", IMAGE)
    with open_reader(reference(registry), PLAIN) as source:
        assert source.root()[0].digest == IMAGE.root.digest
    with open_writer(reference(registry), PLAIN) as place:
        assert place.check(IMAGE.outgoing("app:v1"), force=False)


# -- cancelling -------------------------------------------------------------------


def test_a_reader_gives_up_with_its_run(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.put_image("app", "v1", IMAGE)
    registry.faults.append(Fault(path="/blobs/", cut=100, times=None))
    with contextlib.suppress(ZeroDivisionError), cancellable():
        source = reader(registry, time)
        with source.stream(IMAGE.layers[0]) as chunks:
            next(chunks)
            raise ZeroDivisionError
    asked_before = len(registry.requests)
    for question in (source.root, lambda: source.holds(IMAGE.layers[0]), lambda: source.document(IMAGE.config)):
        with pytest.raises(Interrupted):
            question()
    assert len(registry.requests) == asked_before
    assert time.pauses == []


def test_a_writer_gives_up_with_its_run(registry: InProcessRegistry, time: FakeTime) -> None:
    with contextlib.suppress(ZeroDivisionError), cancellable():
        place = writer(registry, time)
        assert place.check(IMAGE.outgoing("app:v1"), force=False) is False
        raise ZeroDivisionError
    asked_before = len(registry.requests)
    with pytest.raises(Interrupted):
        place.write(IMAGE.outgoing("app:v1"), IMAGE, WriteOptions())
    assert len(registry.requests) == asked_before


def test_one_writers_end_is_not_its_runs(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.put_image("app", "v1", IMAGE)
    with cancellable():
        writer(registry, time).close()
        with reader(registry, time) as source, writer(registry, time) as place:
            assert source.root()[0].digest == IMAGE.root.digest
            assert place.check(IMAGE.outgoing("app:v1"), force=False)


# -- mirrors ----------------------------------------------------------------------


@contextmanager
def mirrored(conf: Path, registry: InProcessRegistry) -> Iterator[InProcessRegistry]:
    with InProcessRegistry() as mirror:
        conf.write_text(
            f'[[registry]]\nlocation = "{registry.host}"\ninsecure = true\n[[registry.mirror]]\nlocation = "{mirror.host}/cache"\ninsecure = true\n',
        )
        yield mirror


def test_a_mirror_serves_first(registry: InProcessRegistry, time: FakeTime, machine: Path) -> None:
    with mirrored(machine, registry) as mirror:
        mirror.put_image("cache/app", "v1", IMAGE)
        with reader(registry, time, access=Access()) as source:
            assert source.document(source.root()[0]) == IMAGE.manifest
            with source.stream(IMAGE.layers[0]) as chunks:
                assert b"".join(chunks) == IMAGE.blobs[IMAGE.layers[0].digest]
        assert registry.requests == []


def test_the_registry_serves_what_a_mirror_lacks(registry: InProcessRegistry, time: FakeTime, machine: Path) -> None:
    registry.put_image("app", "v1", IMAGE)
    with mirrored(machine, registry) as mirror:
        mirror.repository("cache/app").manifests[IMAGE.root.digest] = (IMAGE.root.media_type, IMAGE.manifest)
        mirror.repository("cache/app").tags["v1"] = IMAGE.root.digest
        with reader(registry, time, access=Access()) as source:
            source.root()
            assert source.holds(IMAGE.layers[0])
            assert not source.holds(NEXT.layers[-1])
            with source.stream(IMAGE.layers[0]) as chunks:
                assert b"".join(chunks) == IMAGE.blobs[IMAGE.layers[0].digest]
            with pytest.raises(NotFound, match=registry.host):
                source.document(NEXT.root)
        assert asked(registry, "GET")[0] == f"/v2/app/blobs/{IMAGE.layers[0].digest}"


def test_a_mirror_that_is_down_is_not_waited_for_twice(registry: InProcessRegistry, time: FakeTime, machine: Path) -> None:
    registry.put_image("app", "v1", IMAGE)
    with mirrored(machine, registry) as mirror:
        mirror.faults.append(Fault(path="/v2/.", status=503, times=None))
        with reader(registry, time, access=Access()) as source:
            source.root()
            assert 0 < sum(time.pauses) <= 10
            tried = len(mirror.requests)
            assert source.holds(IMAGE.layers[0])
            assert len(mirror.requests) == tried


@pytest.mark.parametrize("fault", [{"cut": 100}, {"truncate": 100}, {"cut": 0}])
def test_the_registry_goes_on_where_a_mirror_breaks_off(registry: InProcessRegistry, time: FakeTime, machine: Path, fault: dict[str, int]) -> None:
    layer = IMAGE.layers[0]
    registry.put_image("app", "v1", IMAGE)
    with mirrored(machine, registry) as mirror:
        mirror.put_image("cache/app", "v1", IMAGE)
        mirror.faults.append(Fault(path="/blobs/", times=None, **fault))
        with reader(registry, time, access=Access()) as source, source.stream(layer) as chunks:
            assert b"".join(chunks) == IMAGE.blobs[layer.digest]
            blobs = [headers for headers, (_, path, _) in zip(registry.request_headers, registry.requests, strict=True) if "/blobs/" in path]
            # each of the mirror's answers brought as much
            seen = len([path for _, path, _ in mirror.requests if "/blobs/" in path]) * fault.get("cut", 100)
            assert [headers.get("range") for headers in blobs] == [f"bytes={seen}-" if seen else None]
            tried = len(mirror.requests)
            assert source.holds(layer)
        assert len(mirror.requests) == tried


def test_a_mirror_that_lost_a_blob_half_way_is_not_asked_again(registry: InProcessRegistry, time: FakeTime, machine: Path) -> None:
    registry.put_image("app", "v1", IMAGE)
    with mirrored(machine, registry) as mirror:
        mirror.put_image("cache/app", "v1", IMAGE)
        mirror.faults += [Fault(path="/blobs/", **fault) for _ in range(3) for fault in ({"cut": 0}, {"status": 404})]
        with reader(registry, time, access=Access()) as source, source.stream(IMAGE.layers[0]) as chunks:
            assert b"".join(chunks) == IMAGE.blobs[IMAGE.layers[0].digest]
        assert len(asked(mirror, "GET")) == 2


def test_a_blob_that_a_mirror_damaged_comes_from_the_registry_next(registry: InProcessRegistry, time: FakeTime, machine: Path) -> None:
    layer, other = IMAGE.layers[:2]
    registry.put_image("app", "v1", IMAGE)
    with mirrored(machine, registry) as mirror:
        mirror.put_image("cache/app", "v1", IMAGE)
        mirror.faults.append(Fault(path=layer.digest, flip=100, times=None))
        with reader(registry, time, access=Access()) as source, source.stream(layer) as chunks, pytest.raises(NetworkError, match=mirror.host) as caught:
            b"".join(chunks)
        assert caught.value.transient
        with reader(registry, time, access=Access()) as source:
            for blob in (layer, other):
                with source.stream(blob) as chunks:
                    assert b"".join(chunks) == IMAGE.blobs[blob.digest]
        assert asked(registry, "GET") == [f"/v2/app/blobs/{layer.digest}"]


def test_what_the_registry_itself_damaged_stays_an_error(registry: InProcessRegistry, time: FakeTime, machine: Path) -> None:
    registry.put_image("app", "v1", IMAGE)
    registry.faults.append(Fault(path="/blobs/", flip=100, times=None))
    with mirrored(machine, registry):
        source = reader(registry, time, access=Access())
        with source.stream(IMAGE.layers[0]) as chunks, pytest.raises(DigestMismatch):
            b"".join(chunks)


@pytest.mark.parametrize("fault", [{"flip": 3}, {"truncate": 3}])
def test_a_config_that_a_mirror_damaged_comes_from_the_registry(registry: InProcessRegistry, time: FakeTime, machine: Path, fault: dict[str, int]) -> None:
    registry.put_image("app", "v1", IMAGE)
    with mirrored(machine, registry) as mirror:
        mirror.put_image("cache/app", "v1", IMAGE)
        mirror.faults.append(Fault(path="/blobs/", times=None, **fault))
        assert reader(registry, time, access=Access()).document(IMAGE.config) == IMAGE.blobs[IMAGE.config.digest]


def test_a_mirror_does_not_get_the_registrys_credentials(time: FakeTime, machine: Path) -> None:
    with InProcessRegistry(auth="basic") as registry, mirrored(machine, registry) as mirror:
        registry.put_image("app", "v1", IMAGE)
        mirror.auth = "basic"
        given = Access(username="user", password=SecretStr("pass"))
        assert reader(registry, time, access=given).root()[0].digest == IMAGE.root.digest
        assert len(mirror.requests) > 0
        assert not any("authorization" in headers for headers in mirror.request_headers)
        token = Access(registry_token=SecretStr("token"))
        with pytest.raises(AccessDenied):
            reader(registry, time, access=token).root()
        assert not any("authorization" in headers for headers in mirror.request_headers)


def test_mirrors_are_not_written_to(registry: InProcessRegistry, time: FakeTime, machine: Path) -> None:
    with mirrored(machine, registry) as mirror:
        writer(registry, time, access=Access()).write(IMAGE.outgoing("app:v1"), IMAGE, WriteOptions())
        assert mirror.requests == []
    assert held(registry) == everything(IMAGE)


# -- writing ----------------------------------------------------------------------


@pytest.mark.parametrize(("image", "by"), [(image, by) for image in IMAGES for by in ("tag", "digest") if can_be_named(image, by)])
@pytest.mark.parametrize("auth", [None, "token"])
def test_images_are_written(time: FakeTime, image: GeneratedImage, by: str, auth: str | None) -> None:
    with InProcessRegistry(auth=auth) as registry:
        target = "app:v1" if by == "tag" else f"app@{image.root.digest}"
        out = image.outgoing("app:v1")
        with writer(registry, time, target, USER) as place:
            assert place.check(out, force=False) is False
            written = place.write(out, image, WriteOptions())
        assert (written.status, written.root, written.bytes_written) == ("written", image.root.digest, sum(map(len, image.blobs.values())))
        assert written.location == str(reference(registry, target))
        assert held(registry) == everything(image)
        assert registry.repository("app").tags == ({"v1": image.root.digest} if by == "tag" else {})
        with writer(registry, time, target, USER) as place:
            assert place.check(out, force=False) is True
            again = place.write(out, Nothing(), WriteOptions())
        assert (again.status, again.bytes_written) == ("unchanged", 0)


class Nothing:
    """A source that must not be asked."""

    @contextmanager
    def stream(self, descriptor: Descriptor) -> Iterator[Iterator[bytes]]:
        pytest.fail(f"asked for {descriptor.digest}")
        yield


def test_blobs_go_before_manifests_children_before_the_root_and_the_tag_last(registry: InProcessRegistry, time: FakeTime) -> None:
    writer(registry, time).write(INDEX.outgoing("app:v1"), INDEX, WriteOptions())
    puts = [path for method, path, _ in registry.requests if method == "PUT"]
    count = len(INDEX.blobs)
    assert all("/uploads/" in path for path in puts[:count])
    assert puts[count:] == [f"/v2/app/manifests/{descriptor.digest}" for descriptor in INDEX.manifests] + ["/v2/app/manifests/v1"]


def test_only_what_is_missing_is_sent(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.put_image("app", "v1", IMAGE)
    with writer(registry, time) as place:
        out = NEXT.outgoing("app:v1")
        assert [place.obtain(out, layer) for layer in NEXT.layers] == [True, True, False]
        written = place.write(out, NEXT, WriteOptions())
    assert written.bytes_written == NEXT.layers[-1].size + NEXT.config.size
    assert registry.repository("app").tags == {"v1": NEXT.root.digest}


def test_a_tag_alone_is_moved_without_bytes(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.put_image("app", "v1", IMAGE)
    with writer(registry, time, "app:v2") as place:
        assert place.check(IMAGE.outgoing("app:v2"), force=False) is False
        written = place.write(IMAGE.outgoing("app:v2"), Nothing(), WriteOptions())
    assert (written.status, written.bytes_written) == ("written", 0)
    assert registry.repository("app").tags == {"v1": IMAGE.root.digest, "v2": IMAGE.root.digest}


@pytest.mark.parametrize("mounts", [True, False])
@pytest.mark.parametrize("obtain_first", [True, False])
def test_blobs_are_mounted_where_that_works(time: FakeTime, mounts: bool, obtain_first: bool) -> None:
    with InProcessRegistry(mounts=mounts, auth="token") as registry:
        registry.put_image("base", "v1", IMAGE)
        origins = ("elsewhere.test/base", f"{registry.host}/empty", f"{registry.host}/base", f"{registry.host}/app", registry.host)
        out = replace(NEXT.outgoing("app:v2"), mountable_from=origins)
        shared = sum(layer.size for layer in NEXT.layers[:2])
        with writer(registry, time, "app:v2", USER) as place:
            if obtain_first:
                assert [place.obtain(out, layer) for layer in NEXT.layers] == [mounts, mounts, False]
            written = place.write(out, NEXT, WriteOptions())
        assert written.bytes_written == sum(map(len, NEXT.blobs.values())) - (shared if mounts else 0)
        assert held(registry) == everything(NEXT)
        assert registry.uploads == {}
        assert not any("from=app" in path for _, path, _ in registry.requests)


FOREIGN = Descriptor(media_type=mediatypes.DOCKER_FOREIGN_LAYER, digest=Digest.of(b"windows"), size=7, urls=("https://mcr.test/base",))


class WithForeign:
    """``IMAGE`` with a foreign layer at the bottom, whose bytes are here or not."""

    def __init__(self, here: bool) -> None:
        self.here = here
        manifest = json.loads(IMAGE.manifest)
        manifest["layers"].insert(0, {"mediaType": FOREIGN.media_type, "digest": FOREIGN.digest, "size": 7, "urls": list(FOREIGN.urls)})
        raw = json.dumps(manifest).encode()
        self.root = Descriptor(media_type=IMAGE.root.media_type, digest=Digest.of(raw), size=len(raw))
        self.out = OutgoingImage("app:v1", self.root, {self.root.digest: raw}, (self.root,), (IMAGE.config, FOREIGN, *IMAGE.layers))

    @contextmanager
    def stream(self, descriptor: Descriptor) -> Iterator[Iterator[bytes]]:
        if descriptor == FOREIGN and self.here:
            yield iter([b"windows"])
        else:
            with IMAGE.stream(descriptor) as chunks:
                yield chunks


@pytest.mark.parametrize("here", [True, False])
def test_foreign_layers_go_along_where_they_are_at_hand(registry: InProcessRegistry, time: FakeTime, here: bool) -> None:
    image = WithForeign(here)
    with writer(registry, time) as place:
        assert not place.obtain(image.out, FOREIGN)
        written = place.write(image.out, image, WriteOptions())
    assert (FOREIGN.digest in registry.repository("app").blobs) == here
    assert registry.repository("app").tags == {"v1": image.root.digest}
    assert registry.uploads == {}
    assert written.bytes_written == sum(map(len, IMAGE.blobs.values())) + (7 if here else 0)
    assert [FOREIGN.digest in note for note in written.notes] == ([] if here else [True])


def test_foreign_layers_are_obtained_where_the_registry_has_them(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.put_blob("base", b"windows")
    out = replace(WithForeign(here=False).out, mountable_from=(f"{registry.host}/base",))
    with writer(registry, time) as place:
        assert place.obtain(out, FOREIGN)
    assert FOREIGN.digest in registry.repository("app").blobs


def test_an_ordinary_layer_must_be_at_hand(registry: InProcessRegistry, time: FakeTime) -> None:
    bare = FOREIGN.model_copy(update={"urls": ()})
    with writer(registry, time) as place, pytest.raises(NotFound):
        place.write(replace(IMAGE.outgoing("app:v1"), blobs=(bare,)), IMAGE, WriteOptions())


def test_a_registry_that_takes_no_urls_is_named_as_such(registry: InProcessRegistry, time: FakeTime) -> None:
    body = {"errors": [{"code": "UNKNOWN"}, {"code": "MANIFEST_BLOB_UNKNOWN"}]}
    registry.faults.append(Fault(method="PUT", path="/manifests/", status=500, body=json.dumps(body).encode(), times=None))
    image = WithForeign(here=True)
    with writer(registry, time) as place, pytest.raises(RequestError) as caught:
        place.write(image.out, image, WriteOptions())
    assert "urls.allow" in caught.value.next_action
    assert time.pauses == []


def test_force_finds_what_the_registry_lost(registry: InProcessRegistry, time: FakeTime) -> None:
    out = IMAGE.outgoing("app:v1")
    registry.put_image("app", "v1", IMAGE)
    del registry.repository("app").blobs[IMAGE.layers[0].digest]
    for force, complete in ((False, True), (True, False)):
        with writer(registry, time) as place:
            assert place.check(out, force=force) is complete
    with writer(registry, time) as place:
        written = place.write(out, IMAGE, WriteOptions(force=True))
    assert (written.status, written.bytes_written) == ("written", IMAGE.layers[0].size)
    assert held(registry) == everything(IMAGE)
    with writer(registry, time) as place:
        assert place.check(out, force=True) is True
        assert place.write(out, Nothing(), WriteOptions(force=True)).status == "unchanged"


def test_a_tag_cannot_keep_a_digest_of_another_algorithm(registry: InProcessRegistry, time: FakeTime) -> None:
    image = random_image("sha512", algorithm="sha512")
    written = writer(registry, time).write(image.outgoing("app:v1"), image, WriteOptions())
    assert written.root is None
    assert len(written.notes) == 1
    registry.faults.append(Fault(method="PUT", path="/manifests/", status=400, times=None))
    with pytest.raises(Unsupported, match="sha512"):
        writer(registry, time).write(image.outgoing("app:v1"), image, WriteOptions())


def test_a_digest_that_is_not_the_images_is_refused(registry: InProcessRegistry, time: FakeTime) -> None:
    with writer(registry, time, f"app:v1@{IMAGE.root.digest}") as place:
        for call in (lambda: place.check(NEXT.outgoing("x:y"), force=True), lambda: place.write(NEXT.outgoing("x:y"), NEXT, WriteOptions())):
            with pytest.raises(InvalidOptions, match="names a digest"):
                call()
    assert registry.requests == []


def test_a_missing_right_is_told_before_any_work(time: FakeTime) -> None:
    with InProcessRegistry(auth="token", grants="pull") as registry, writer(registry, time, access=USER) as place, pytest.raises(AccessDenied):
        place.check(IMAGE.outgoing("app:v1"), force=False)


def test_the_first_failure_stops_the_others_and_is_raised(registry: InProcessRegistry, time: FakeTime) -> None:
    class Source:
        """Its first layer breaks once another one is under way and would never end."""

        def __init__(self) -> None:
            self.under_way = threading.Event()
            self.opened: list[Digest] = []

        @contextmanager
        def stream(self, descriptor: Descriptor) -> Iterator[Iterator[bytes]]:
            self.opened.append(descriptor.digest)
            yield self.broken() if descriptor == layers[0] else self.endless(descriptor)

        def broken(self) -> Iterator[bytes]:
            assert self.under_way.wait(30)
            raise NotFound("the source lost it")
            yield

        def endless(self, descriptor: Descriptor) -> Iterator[bytes]:
            for _ in range(descriptor.size - 1):
                yield b"x"
                self.under_way.set()

    layers = tuple(Descriptor(media_type=mediatypes.OCI_LAYER, digest=Digest.of(str(n).encode()), size=10**12) for n in range(5))
    out = replace(IMAGE.outgoing("app:v1"), blobs=layers)
    source = Source()
    with writer(registry, time) as place, pytest.raises(NotFound, match="the source lost it"):
        place.write(out, source, WriteOptions(workers=2))
    assert len(source.opened) <= 3
    assert held(registry) == ({}, {})
    assert registry.repository("app").tags == {}


def test_a_failed_push_leaves_no_manifest(registry: InProcessRegistry, time: FakeTime) -> None:
    registry.faults.append(Fault(method="PUT", path=f"digest={IMAGE.layers[1].digest.replace(':', '%3A')}", status=500, times=None))
    with writer(registry, time) as place, pytest.raises(RegistryUnavailable):
        place.write(IMAGE.outgoing("app:v1"), IMAGE, WriteOptions())
    assert held(registry)[1] == {}


_seen: ContextVar[str] = ContextVar("seen", default="nothing")


def test_the_context_reaches_every_worker_and_they_are_bounded(registry: InProcessRegistry, time: FakeTime) -> None:
    image = random_image("many", layers=8, layer_size=500)
    lock, contexts, running, most = threading.Lock(), [], 0, 0

    class Source:
        @contextmanager
        def stream(self, descriptor: Descriptor) -> Iterator[Iterator[bytes]]:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
                contexts.append(_seen.get())
            with image.stream(descriptor) as chunks:
                yield chunks
            with lock:
                running -= 1

    token = _seen.set("mine")
    try:
        writer(registry, time).write(image.outgoing("app:v1"), Source(), WriteOptions(workers=3))
    finally:
        _seen.reset(token)
    assert contexts == ["mine"] * len(image.blobs)
    assert most <= 3


def test_skopeo_reads_what_was_written_and_writes_what_is_read(registry: InProcessRegistry, time: FakeTime, skopeo: Callable[..., str], tmp_path: Path) -> None:
    with writer(registry, time) as place:
        place.write(IMAGE.outgoing("app:v1"), IMAGE, WriteOptions())
    copy = ("--insecure-policy", "copy", "--quiet")
    skopeo(*copy, "--src-tls-verify=false", str(reference(registry)), f"oci:{tmp_path}/layout:v1")
    skopeo(*copy, "--dest-tls-verify=false", f"oci:{tmp_path}/layout:v1", str(reference(registry, "copy:v1")))
    assert held(registry, "copy") == everything(IMAGE)
    assert reader(registry, time, "copy:v1").root()[1] == IMAGE.manifest
