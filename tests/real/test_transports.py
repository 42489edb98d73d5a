"""Images go to real registries and a real object store and come back the same; other tools agree."""

from __future__ import annotations

import os
import subprocess
import uuid
from contextlib import contextmanager
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any, NoReturn

import pytest

from prefect_diffah.engine.access import Access
from prefect_diffah.engine.errors import AccessDenied, DiffahError, NetworkError, NotFound, OutputExists, TLSUntrusted
from prefect_diffah.engine.oci import Descriptor, Digest, Manifest, Reference, parse_document
from prefect_diffah.engine.registry import Patience, connect_for_writing, upload_blob
from prefect_diffah.engine.storage import BLOCK, FileLocation
from prefect_diffah.engine.testing.images import random_image
from prefect_diffah.engine.transports import OutgoingImage, WriteOptions, open_reader, open_writer
from prefect_diffah.engine.transports.docker import RegistryReader, RegistryWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from prefect_diffah.engine.transports import BlobSource, ImageReader

    from .services.images import ImagePair, ImagePairs
    from .services.objects import ObjectStore
    from .services.registries import Registry


class Nothing:
    """A source that must not be asked."""

    def stream(self, descriptor: Descriptor) -> Any:
        raise AssertionError(f"asked for {descriptor.digest}")


class BrokenOff(Exception):
    pass


class Failing:
    """A source that breaks off in the middle of one blob."""

    def __init__(self, source: BlobSource, digest: Digest) -> None:
        self._source, self._digest = source, digest

    @contextmanager
    def stream(self, descriptor: Descriptor) -> Iterator[Iterator[bytes]]:
        with self._source.stream(descriptor) as chunks:
            yield self._cut(chunks) if descriptor.digest == self._digest else chunks

    def _cut(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            yield chunk[: len(chunk) // 2]
            raise BrokenOff


def run(*command: str, environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env={**os.environ, **(environment or {})}, timeout=300)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def outgoing(source: ImageReader, *, mountable_from: tuple[str, ...] = ()) -> OutgoingImage:
    root, raw = source.root()
    manifest = parse_document(raw, root.media_type)
    assert isinstance(manifest, Manifest)
    blobs = (manifest.config, *dict.fromkeys(manifest.layers))
    return OutgoingImage("app:v2", root, {root.digest: raw}, (root,), blobs, mountable_from)


def content_of(source: ImageReader) -> dict[Digest, bytes]:
    """Every document and blob of a single image; reading checks them against their digests."""
    image = outgoing(source)
    content = dict(image.documents)
    for blob in image.blobs:
        with source.stream(blob) as chunks:
            content[blob.digest] = b"".join(chunks)
    return content


def layout_reader(reference: str) -> ImageReader:
    return open_reader(Reference.parse(reference))


@pytest.fixture
def repository() -> str:
    """A repository name that no other test uses."""
    return f"tests/{uuid.uuid4().hex}"


@pytest.fixture
def pair(image_pairs: ImagePairs) -> ImagePair:
    return image_pairs.small_change


@pytest.fixture(params=["plain", "basic", "token", "token-tls", "redirecting", "referrers"])
def registry(
    request: pytest.FixtureRequest,
    plain_registry: Registry,
    basic_registry: Registry,
    token_registry: Registry,
    token_tls_registry: Registry,
    redirecting_registry: Registry,
    referrers_registry: Registry,
) -> Registry:
    """Each kind of registry in turn."""
    kinds = {
        "plain": plain_registry,
        "basic": basic_registry,
        "token": token_registry,
        "token-tls": token_tls_registry,
        "redirecting": redirecting_registry,
        "referrers": referrers_registry,
    }
    return kinds[request.param]


@pytest.fixture(params=["basic", "token", "token-tls"])
def guarded(request: pytest.FixtureRequest, basic_registry: Registry, token_registry: Registry, token_tls_registry: Registry) -> Registry:
    """Each registry that asks for a password."""
    return {"basic": basic_registry, "token": token_registry, "token-tls": token_tls_registry}[request.param]


def push(registry: Registry, repository: str, layout: str, access: Access | None = None) -> OutgoingImage:
    with layout_reader(layout) as source, open_writer(Reference.parse(registry.reference(repository)), access or registry.access) as writer:
        image = outgoing(source)
        assert writer.check(image, force=False) is False
        written = writer.write(image, source, WriteOptions())
    assert (written.status, written.root) == ("written", image.root.digest)
    return image


class TestRegistries:
    def test_pushed_image_comes_back_the_same(self, registry: Registry, repository: str, pair: ImagePair) -> None:
        image = push(registry, repository, pair.target)
        with layout_reader(pair.target) as source:
            expected = content_of(source)
        for reference in (registry.reference(repository), f"docker://{registry.host}/{repository}@{image.root.digest}"):
            with open_reader(Reference.parse(reference), registry.access) as reader:
                assert content_of(reader) == expected

    def test_other_clients_agree_on_what_was_pushed(self, registry: Registry, repository: str, pair: ImagePair, program: Callable[[str], str]) -> None:
        image = push(registry, repository, pair.target)
        name = registry.reference(repository).removeprefix("docker://")
        assert run(program("crane"), "digest", "--insecure", name, environment=registry.environment).strip() == image.root.digest
        run(program("crane"), "validate", "--insecure", "--remote", name, environment=registry.environment)
        seen = run(program("skopeo"), "inspect", "--raw", *registry.skopeo(), registry.reference(repository))
        assert seen.encode() == image.documents[image.root.digest]

    @pytest.mark.parametrize("form", ["oci", "v2s2"])
    def test_reads_what_skopeo_pushed(self, registry: Registry, repository: str, pair: ImagePair, program: Callable[[str], str], form: str) -> None:
        run(program("skopeo"), "copy", "--format", form, *registry.skopeo("dest"), pair.target, registry.reference(repository))
        with open_reader(Reference.parse(registry.reference(repository)), registry.access) as reader, layout_reader(pair.target) as source:
            here, there = content_of(source), content_of(reader)
            layers = outgoing(source).blobs[1:]
        assert {layer.digest: there[layer.digest] for layer in layers} == {layer.digest: here[layer.digest] for layer in layers}
        assert (there == here) == (form == "oci")

    def test_second_push_changes_nothing(self, registry: Registry, repository: str, pair: ImagePair) -> None:
        image = push(registry, repository, pair.target)
        with open_writer(Reference.parse(registry.reference(repository)), registry.access) as writer:
            assert writer.check(image, force=False) is True
            assert writer.write(image, Nothing(), WriteOptions()).status == "unchanged"

    def test_tags_move(self, registry: Registry, repository: str, pair: ImagePair) -> None:
        push(registry, repository, pair.baseline)
        image = push(registry, repository, pair.target)
        with open_reader(Reference.parse(registry.reference(repository)), registry.access) as reader:
            assert reader.root()[0].digest == image.root.digest

    def test_blobs_of_another_repository_are_mounted(self, registry: Registry, repository: str, pair: ImagePair) -> None:
        push(registry, repository, pair.target)
        other = Reference.parse(registry.reference(f"{repository}/other"))
        with layout_reader(pair.target) as source, open_writer(other, registry.access) as writer:
            image = outgoing(source, mountable_from=(f"{registry.host}/{repository}",))
            assert all(writer.obtain(image, blob) for blob in image.blobs)
            writer.write(image, Nothing(), WriteOptions())
            with open_reader(other, registry.access) as reader:
                assert content_of(reader) == content_of(source)

    def test_blob_larger_than_a_request_goes_in_chunks(self, registry: Registry, repository: str) -> None:
        content = os.urandom(12 * 1024 * 1024)
        digest, opened = Digest.of(content), []

        @contextmanager
        def source() -> Iterator[Iterator[bytes]]:
            opened.append(True)
            yield (content[start : start + 1_000_000] for start in range(0, len(content), 1_000_000))

        place = connect_for_writing(f"{registry.host}/{repository}", registry.access)
        assert upload_blob(place, digest, len(content), source, chunk_size=5 * 1024 * 1024) == len(content)
        assert len(opened) == 1
        with open_reader(Reference.parse(registry.reference(repository)), registry.access) as reader:
            blob = Descriptor(media_type="application/octet-stream", digest=digest, size=len(content))
            assert reader.holds(blob)
            with reader.stream(blob) as chunks:
                assert b"".join(chunks) == content

    def test_what_is_not_there_is_not_found(self, registry: Registry, repository: str, pair: ImagePair) -> None:
        with open_reader(Reference.parse(registry.reference(repository)), registry.access) as reader, pytest.raises(NotFound):
            reader.root()
        push(registry, repository, pair.target)
        with open_reader(Reference.parse(registry.reference(repository, "other")), registry.access) as reader:
            with pytest.raises(NotFound):
                reader.root()
            absent = Descriptor(media_type="application/octet-stream", digest=Digest.of(b"absent"), size=6)
            assert not reader.holds(absent)
            with pytest.raises(NotFound), reader.stream(absent) as chunks:
                b"".join(chunks)

    def test_failed_push_moves_no_tag(self, registry: Registry, repository: str, pair: ImagePair) -> None:
        before = push(registry, repository, pair.baseline)
        reference = Reference.parse(registry.reference(repository))
        generated = random_image(repository)  # some registries have blobs for all repositories in one place
        image = generated.outgoing("app:v2")
        with open_writer(reference, registry.access) as writer, pytest.raises(BrokenOff):
            writer.write(image, Failing(generated, image.blobs[-1].digest), WriteOptions())
        with open_reader(reference, registry.access) as reader:
            assert reader.root()[0].digest == before.root.digest
            assert not reader.holds(image.blobs[-1])


class TestAccess:
    def test_wrong_password_is_denied(self, guarded: Registry, repository: str, pair: ImagePair) -> None:
        reference, access = Reference.parse(guarded.reference(repository)), guarded.access_as(guarded.username, "mistaken")
        with open_reader(reference, access) as reader, pytest.raises(AccessDenied) as denied:
            reader.root()
        assert "mistaken" not in str(denied.value.as_json())
        with layout_reader(pair.target) as source, open_writer(reference, access) as writer, pytest.raises(AccessDenied):
            writer.check(outgoing(source), force=False)

    def test_nobody_is_denied(self, guarded: Registry, repository: str) -> None:
        with open_reader(Reference.parse(guarded.reference(repository)), guarded.access_as(None, None)) as reader, pytest.raises(AccessDenied):
            reader.root()

    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_who_may_only_read_cannot_push(self, scheme: str, token_registry: Registry, token_tls_registry: Registry, repository: str, pair: ImagePair) -> None:
        guarded = {"http": token_registry, "https": token_tls_registry}[scheme]
        assert guarded.reader
        reader_access = guarded.access_as(*guarded.reader)
        push(guarded, repository, pair.baseline)
        reference = Reference.parse(guarded.reference(repository))
        with open_reader(reference, reader_access) as reader:
            assert content_of(reader)
        with layout_reader(pair.target) as source, open_writer(reference, reader_access) as writer:
            image = outgoing(source)
            with pytest.raises(AccessDenied):
                writer.check(image, force=False)
            with pytest.raises(AccessDenied):
                writer.write(image, source, WriteOptions())

    def test_authfile_of_other_tools_is_read(self, guarded: Registry, repository: str, pair: ImagePair) -> None:
        push(guarded, repository, pair.target)
        authfile = f"{guarded.environment['DOCKER_CONFIG']}/config.json"
        access = guarded.access.model_copy(update={"username": None, "password": None, "anonymous": False, "authfile": authfile})
        with open_reader(Reference.parse(guarded.reference(repository)), access) as reader:
            assert content_of(reader)


class TestTrust:
    def test_unknown_authority_is_not_trusted(self, token_tls_registry: Registry, repository: str, pair: ImagePair) -> None:
        access = token_tls_registry.access.model_copy(update={"cert_dir": None})
        reference = Reference.parse(token_tls_registry.reference(repository))
        with open_reader(reference, access) as reader, pytest.raises(TLSUntrusted):
            reader.root()
        with layout_reader(pair.target) as source, open_writer(reference, access) as writer, pytest.raises(TLSUntrusted):
            writer.check(outgoing(source), force=False)

    def test_unless_the_user_says_so(self, token_tls_registry: Registry, repository: str, pair: ImagePair) -> None:
        access = token_tls_registry.access.model_copy(update={"cert_dir": None, "tls_verify": False})
        push(token_tls_registry, repository, pair.target, access)

    def test_plain_http_is_not_spoken_unless_the_user_says_so(self, plain_registry: Registry, repository: str) -> None:
        reference, access = Reference.parse(plain_registry.reference(repository)), Access(anonymous=True, tls_verify=True)
        with RegistryReader(reference, access, patience=Patience(total=0)) as reader, pytest.raises((NetworkError, TLSUntrusted)):
            reader.root()

    def test_nobody_listening_is_a_network_error(self, repository: str, pair: ImagePair) -> None:
        reference = Reference.parse(f"docker://127.0.0.1:1/{repository}:v1")
        with RegistryReader(reference, Access(anonymous=True), patience=Patience(total=0)) as reader, pytest.raises(NetworkError):
            reader.root()
        with layout_reader(pair.target) as source:
            image = outgoing(source)
        with RegistryWriter(reference, Access(anonymous=True), patience=Patience(total=0)) as writer, pytest.raises(NetworkError):
            writer.check(image, force=False)


@pytest.fixture
def folder(s3: ObjectStore) -> str:
    """``s3://`` URL below which nothing is yet."""
    return s3.url(uuid.uuid4().hex)


def _write_and_fail(file: IO[bytes], content: bytes) -> NoReturn:
    file.write(content)
    raise BrokenOff


def keys(store: ObjectStore, url: str) -> set[str]:
    """Keys below ``url``, and uploads that were begun and neither completed nor aborted."""
    client, prefix = store.client(), url.removeprefix(store.url(""))
    objects = client.list_objects_v2(Bucket=store.bucket, Prefix=prefix).get("Contents", [])
    uploads = client.list_multipart_uploads(Bucket=store.bucket, Prefix=prefix).get("Uploads", [])
    return {item["Key"].removeprefix(prefix).lstrip("/") for item in objects} | {f"upload of {item['Key']}" for item in uploads}


@pytest.mark.parametrize("size", [0, 10, BLOCK, 2 * BLOCK + 10])
class TestFilesInAnObjectStore:
    def test_a_file_comes_back_the_same(self, s3: ObjectStore, folder: str, size: int) -> None:
        content, place = os.urandom(size), FileLocation(f"{folder}/file", s3.access)
        with place.replacing(size) as file:
            for start in range(0, size, 1_000_000):
                file.write(content[start : start + 1_000_000])
        assert place.size() == size
        with place.open() as file:
            assert file.read() == content
        assert keys(s3, folder) == {"file"}

    @pytest.mark.parametrize("before", [None, b"before"])
    def test_a_failure_leaves_what_was_there(self, s3: ObjectStore, folder: str, size: int, before: bytes | None) -> None:
        place = FileLocation(f"{folder}/file", s3.access)
        if before is not None:
            with place.replacing() as file:
                file.write(before)
        with pytest.raises(BrokenOff), place.replacing() as file:
            _write_and_fail(file, os.urandom(size))
        assert keys(s3, folder) == (set() if before is None else {"file"})
        if before is not None:
            assert place.read(100) == before


class TestFaultsOfAnObjectStore:
    def test_absent_file_and_bucket(self, s3: ObjectStore, folder: str) -> None:
        for url in (f"{folder}/absent", "s3://no-such-bucket/file"):
            place = FileLocation(url, s3.access)
            assert not place.exists()
            with pytest.raises(NotFound):
                place.size()
            with pytest.raises(NotFound):
                place.read(1)

    def test_wrong_secret_is_denied_and_not_told(self, s3: ObjectStore, folder: str) -> None:
        place = FileLocation(f"{folder}/file", replace(s3, secret="wrong-secret").access)
        with pytest.raises(AccessDenied) as reading:
            place.read(1)
        with pytest.raises(AccessDenied) as writing, place.replacing() as file:
            file.write(b"content")
        assert "wrong-secret" not in f"{reading.value.as_json()} {writing.value.as_json()}"

    def test_nobody_listening_is_transient(self, s3: ObjectStore, folder: str) -> None:
        place = FileLocation(f"{folder}/file", replace(s3, endpoint="http://127.0.0.1:1").access)
        with pytest.raises(DiffahError) as error:
            place.read(1)
        assert error.value.transient


@pytest.mark.parametrize("transport", ["oci", "oci-archive", "docker-archive", "dir"])
class TestImagesInAnObjectStore:
    @pytest.fixture
    def reference(self, transport: str, folder: str) -> Reference:
        suffix = {"oci": "image:v2", "oci-archive": "image.tar:v2", "docker-archive": "image.tar:app:v2", "dir": "image"}[transport]
        return Reference.parse(f"{transport}:{folder}/{suffix}")

    def test_an_image_comes_back_the_same(self, s3: ObjectStore, reference: Reference, pair: ImagePair, program: Callable[[str], str], tmp_path: Path) -> None:
        with layout_reader(pair.target) as source:
            image = outgoing(source)
            with open_writer(reference, s3.access) as writer:
                assert writer.check(image, force=False) is False
                assert writer.write(image, source, WriteOptions()).root == image.root.digest
            content = content_of(source)
        with open_reader(reference, s3.access) as reader:
            assert content_of(reader) == content
        with open_writer(reference, s3.access) as writer:
            assert writer.check(image, force=False) is True
            assert writer.write(image, Nothing(), WriteOptions()).status == "unchanged"
        place = FileLocation(reference.where, s3.access)
        place.fs.get(place.path, str(tmp_path / "copy"), recursive=place.is_dir())
        local = reference.model_copy(update={"where": str(tmp_path / "copy")})
        assert run(program("skopeo"), "inspect", "--config", "--raw", str(local)).encode() == content[image.blobs[0].digest]
        if reference.transport != "docker-archive":  # of which skopeo makes a manifest of its own
            assert run(program("skopeo"), "inspect", "--raw", str(local)).encode() == image.documents[image.root.digest]

    def test_a_failure_leaves_no_image(self, s3: ObjectStore, folder: str, reference: Reference, pair: ImagePair) -> None:
        with layout_reader(pair.target) as source:
            image = outgoing(source)
            with open_writer(reference, s3.access) as writer, pytest.raises(BrokenOff):
                writer.write(image, Failing(source, image.blobs[-1].digest), WriteOptions())
            left = keys(s3, folder)
            assert not [key for key in left if key.startswith("upload of") or key.endswith((".tar", "index.json", "manifest.json"))]
            assert not [key for key in left if image.blobs[-1].digest.hex in key]
            with pytest.raises(DiffahError), open_reader(reference, s3.access) as reader:
                reader.root()
            with open_writer(reference, s3.access) as writer:
                assert writer.write(image, source, WriteOptions()).status == "written"
            with open_reader(reference, s3.access) as reader:
                assert content_of(reader) == content_of(source)

    def test_another_image_is_kept_or_its_tag_moves(self, s3: ObjectStore, transport: str, reference: Reference, pair: ImagePair) -> None:
        with layout_reader(pair.baseline) as old, layout_reader(pair.target) as new:
            with open_writer(reference, s3.access) as writer:
                writer.write(outgoing(old), old, WriteOptions())
            with open_writer(reference, s3.access) as writer:
                if transport != "oci":
                    with pytest.raises(OutputExists):
                        writer.check(outgoing(new), force=False)
                writer.write(outgoing(new), new, WriteOptions(force=True))
            with open_reader(reference, s3.access) as reader:
                assert content_of(reader) == content_of(new)
