"""What copying tools make of a delta is read too; what nobody should have made is refused."""

from __future__ import annotations

import gzip
import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefect_diffah.engine import tarindex
from prefect_diffah.engine.delta.archive import open_delta
from prefect_diffah.engine.errors import ContentError, DiffahError, InvalidArchive, InvalidDocument, InvalidOptions, NoSpace, SizeMismatch
from prefect_diffah.engine.images import Place
from prefect_diffah.engine.oci import Digest, Reference
from prefect_diffah.engine.pipeline import inspect_delta, verify_delta
from prefect_diffah.engine.storage import CHUNK, MARGIN
from prefect_diffah.engine.store import Store
from prefect_diffah.engine.testing.images import random_image, write_layout

Members = list[tuple[str, bytes]]


def members_of(raw: bytes) -> Members:
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def tar_of(members: Members, **fields: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o600
            for field, value in fields.items():
                setattr(info, field, value)
            if name.endswith("/"):
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def shuffled(members: Members) -> bytes:
    random.Random(7).shuffle(members)
    return tar_of(sorted(members, key=lambda member: member[0] == "diffah.json"))


def with_folders(members: Members) -> bytes:
    return tar_of([("blobs/", b""), ("blobs/sha256/", b""), *members])


def from_the_current_folder(members: Members) -> bytes:
    return tar_of([("./", b""), *((f"./{name}", content) for name, content in members)])


def without_the_copy(members: Members) -> bytes:
    return tar_of([member for member in members if member[0] != "diffah.json"], uid=1000, gid=1000, uname="somebody", mtime=1_700_000_000)


def compressed(members: Members) -> bytes:
    return gzip.compress(tar_of(members))


def beside_an_image(members: Members) -> bytes:
    image = random_image("neighbour", 1, 100)
    files = dict(members)
    index = json.loads(files["index.json"])
    neighbour = {"mediaType": image.root.media_type, "digest": image.root.digest, "size": image.root.size}
    unknown = {"mediaType": "application/vnd.example.thing", "digest": Digest.of(b"not here"), "size": 8}
    tagged_again = index["manifests"][0] | {"annotations": {"org.opencontainers.image.ref.name": "again"}}
    index["manifests"] = [unknown, neighbour, *index["manifests"], tagged_again]
    files["index.json"] = json.dumps(index, indent=2).encode()
    files |= {f"blobs/sha256/{digest.hex}": content for digest, content in (image.documents | image.blobs).items()}
    return tar_of(sorted(files.items()))


def with_a_false_copy(members: Members) -> bytes:
    return tar_of([*((name, content) for name, content in members if name != "diffah.json"), ("diffah.json", b"{}")])


def without_artifact_type_in_the_index(members: Members) -> bytes:
    files = dict(members)
    index = json.loads(files.pop("index.json"))
    for entry in index["manifests"]:
        del entry["artifactType"], entry["annotations"]
    return tar_of([("index.json", json.dumps(index).encode()), *files.items()])


REPACKS: list[Callable[[Members], bytes]] = [
    shuffled,
    with_folders,
    from_the_current_folder,
    without_the_copy,
    compressed,
    beside_an_image,
    with_a_false_copy,
    without_artifact_type_in_the_index,
]


def placed(raw: bytes, folder: Path) -> Place:
    (folder / "repacked.tar").write_bytes(raw)
    return Place(reference=Reference.parse(f"oci-archive:{folder}/repacked.tar"))


@pytest.fixture
def imported(example: Any, tmp_path: Path) -> Callable[[Place], Digest | None]:
    """Imports a delta against the example's baseline."""

    def run(delta: Place) -> Digest | None:
        (tmp_path / "room").mkdir()
        output = Place(reference=Reference.parse(f"oci-archive:{tmp_path}/room/out.tar"))
        try:
            report = example.bench.rebuild(delta, output, job={"store": Store(str(tmp_path / "store"))})
        except DiffahError:
            assert list((tmp_path / "room").iterdir()) == []
            raise
        with output.open() as reader:
            assert reader.root()[1] == example.new.manifest
        return report.digest

    return run


@pytest.mark.parametrize("repack", REPACKS)
def test_a_repack_is_imported(example: Any, tmp_path: Path, repack: Callable[[Members], bytes], imported: Any) -> None:
    delta = placed(repack(members_of(example.raw)), tmp_path)
    report = verify_delta(delta, [example.bench.image("v1")])
    assert not report.canonical
    assert "copy by another tool" in report.notes[0]
    assert report.summary == inspect_delta(example.bench.at("delta.tar"))
    assert imported(delta) == example.new.root.digest


@pytest.mark.parametrize("neighbour", [False, True])
def test_an_unpacked_delta_is_imported(example: Any, tmp_path: Path, imported: Any, neighbour: bool) -> None:
    for name, content in members_of(beside_an_image(members_of(example.raw)) if neighbour else example.raw):
        (tmp_path / "unpacked" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "unpacked" / name).write_bytes(content)
    delta = Place(reference=Reference.parse(f"oci:{tmp_path}/unpacked"))
    assert not verify_delta(delta, []).canonical
    assert imported(delta) == example.new.root.digest


def test_a_delta_goes_to_a_layout_of_others_and_back(bench: Any, example: Any, imported: Any) -> None:
    write_layout(bench.folder / "shelf", {"other": random_image("other", 1, 100)})
    bench.export(bench.at("shelf:first", "oci"))
    assert imported(bench.at("shelf:first", "oci")) == example.new.root.digest
    assert inspect_delta(bench.at("shelf", "oci")).target == example.new.root.digest


@pytest.mark.parametrize("transport", ["oci", "dir"])
def test_a_delta_written_to_a_folder_is_the_same_artifact(bench: Any, example: Any, transport: str) -> None:
    output = bench.at("folder", transport)
    report = bench.export(output)
    with open_delta(output) as in_folder, open_delta(example.bench.at("delta.tar")) as in_archive:
        assert in_folder.manifest.digest == in_archive.manifest.digest == report.delta
    assert bench.export(output).status == "unchanged"
    assert bench.rebuild(output).digest == example.new.root.digest


def test_several_deltas_are_told_apart_by_digest(bench: Any, example: Any) -> None:
    first = bench.export(bench.at("shelf:first", "oci"))
    second = bench.export(bench.at("shelf:second", "oci"), target="v1", baselines=("v2",))
    with pytest.raises(InvalidOptions) as caught:
        inspect_delta(bench.at("shelf", "oci"))
    assert set(caught.value.details["digests"]) == {first.delta, second.delta}
    assert inspect_delta(bench.at(f"shelf@{second.delta}", "oci")).target == example.old.root.digest


@pytest.mark.parametrize("what", ["oci:images:v2", "oci-archive:image.tar"])
def test_an_image_is_no_delta(bench: Any, what: str) -> None:
    bench.export(bench.at("delta", "oci"))
    bench.rebuild(bench.at("delta", "oci"), "image.tar")
    transport, _, where = what.partition(":")
    with pytest.raises(InvalidArchive, match="is not a delta"):
        verify_delta(bench.at(where, transport), [])


def test_an_archive_that_begins_with_the_sidecar_claims_to_be_canonical(example: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidArchive):
        verify_delta(placed(tar_of(members_of(example.raw)), tmp_path), [])


def test_a_damaged_blob_of_a_repack_is_noticed(example: Any, tmp_path: Path, imported: Any) -> None:
    for number, (name, content) in enumerate(members := members_of(example.raw)):
        if name.startswith("blobs/"):
            spoilt = [*members[:number], (name, content[:-1] + bytes([content[-1] ^ 1])), *members[number + 1 :]]
            with pytest.raises(ContentError):
                verify_delta(placed(without_the_copy(spoilt), tmp_path), [])
    with pytest.raises(ContentError):
        imported(placed(without_the_copy(spoilt), tmp_path))


def test_a_repack_without_a_payload_is_refused(example: Any, tmp_path: Path, imported: Any) -> None:
    layer = f"blobs/sha256/{example.new.layers[1].digest.hex}"
    delta = placed(without_the_copy([member for member in members_of(example.raw) if member[0] != layer]), tmp_path)
    with pytest.raises(InvalidArchive) as caught:
        verify_delta(delta, [])
    assert caught.value.details["digest"] == example.new.layers[1].digest
    with pytest.raises(InvalidArchive):
        imported(delta)


def rewritten(members: Members, change: Callable[[dict[str, Any]], None]) -> bytes:
    """A re-pack whose artifact manifest was changed, and its digests with it."""
    files = dict(members)
    index = json.loads(files["index.json"])
    entry = index["manifests"][0]
    manifest = json.loads(files.pop(f"blobs/sha256/{entry['digest'].removeprefix('sha256:')}"))
    change(manifest)
    raw = json.dumps(manifest).encode()
    entry |= {"digest": Digest.of(raw), "size": len(raw)}
    files["index.json"] = json.dumps(index).encode()
    return without_the_copy([*files.items(), (f"blobs/sha256/{entry['digest'].removeprefix('sha256:')}", raw)])


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda manifest: manifest["layers"].pop(), InvalidArchive),
        (lambda manifest: manifest["layers"][0].update(size=1), InvalidArchive),
        (lambda manifest: manifest["config"].update(size=2**40), SizeMismatch),
        (lambda manifest: manifest["config"].update(mediaType="application/vnd.oci.image.config.v1+json"), InvalidDocument),
        (lambda manifest: manifest["config"].update(digest="sha256:../../etc/passwd"), InvalidDocument),
        (lambda manifest: manifest["config"].update(digest="/etc/passwd"), InvalidDocument),
    ],
)
def test_a_manifest_that_does_not_fit_its_sidecar_is_refused(example: Any, tmp_path: Path, change: Any, error: type[DiffahError]) -> None:
    with pytest.raises(error) as caught:
        verify_delta(placed(rewritten(members_of(example.raw), change), tmp_path), [])
    assert type(caught.value) is error


def test_a_manifest_may_lose_its_artifact_type_or_gain_layers(example: Any, tmp_path: Path, imported: Any) -> None:
    def change(manifest: dict[str, Any]) -> None:
        del manifest["artifactType"]
        manifest["layers"].append({"mediaType": "application/octet-stream", "digest": Digest.of(b"more"), "size": 4})

    assert imported(placed(rewritten(members_of(example.raw), change), tmp_path)) == example.new.root.digest


def with_member(name: str, first: bool, **fields: Any) -> Callable[[Members], bytes]:
    def build(members: Members) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
            hostile = tarfile.TarInfo(name)
            for field, value in fields.items():
                setattr(hostile, field, value)
            if first:
                tar.addfile(hostile, io.BytesIO(bytes(max(hostile.size, 0))))
            for each, content in members:
                info = tarfile.TarInfo(each)
                info.size, info.mode = len(content), 0o644
                tar.addfile(info, io.BytesIO(content))
            if not first:
                tar.addfile(hostile, io.BytesIO(bytes(max(hostile.size, 0))))
        return buffer.getvalue()

    return build


def larger_than_declared(members: Members) -> bytes:
    """The last blob's member claims a size that reaches beyond the archive."""
    raw = bytearray(without_the_copy(members))
    with tarfile.open(fileobj=io.BytesIO(bytes(raw))) as tar:
        last = tar.getmembers()[-1]
        last.size = 2**40
        raw[last.offset : last.offset + 512] = last.tobuf(tarfile.GNU_FORMAT)[:512]
    return bytes(raw)


def negative(members: Members) -> bytes:
    """diffah.json with a negative size, as base-256 numbers allow."""
    raw = bytearray(tar_of(members))
    raw[124:136] = b"\xff" * 12
    info = tarfile.TarInfo("diffah.json")
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    assert info.name.encode() == bytes(raw[: len(info.name)])
    return bytes(raw)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("link", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("link", {"type": tarfile.LNKTYPE, "linkname": "index.json"}),
        ("null", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}),
        ("disk", {"type": tarfile.BLKTYPE, "devmajor": 8}),
        ("pipe", {"type": tarfile.FIFOTYPE}),
        ("index.json", {}),
        ("oci-layout", {"size": 30}),
        ("/etc/passwd", {}),
        ("../outside", {}),
        ("blobs/../../outside", {}),
    ],
)
def test_hostile_members_are_refused(example: Any, tmp_path: Path, imported: Any, first: bool, name: str, fields: dict[str, Any]) -> None:
    build = with_member(name, first, **fields)
    members = [member for member in members_of(example.raw) if member[0] != "diffah.json"]
    with pytest.raises(InvalidArchive):
        imported(placed(build(members), tmp_path))


@pytest.mark.parametrize(("build", "error"), [(larger_than_declared, InvalidArchive), (negative, SizeMismatch)])
def test_sizes_that_lie_are_refused(example: Any, tmp_path: Path, imported: Any, build: Callable[[Members], bytes], error: type[DiffahError]) -> None:
    with pytest.raises(error):
        imported(placed(build(members_of(example.raw)), tmp_path))


def test_a_sidecar_over_the_limit_is_not_read(example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import prefect_diffah.engine.delta.archive as archive

    monkeypatch.setattr(archive, "MAX_SIDECAR", 1000)
    for raw in (example.raw, without_the_copy(members_of(example.raw))):
        with pytest.raises(SizeMismatch, match="over the limit"):
            verify_delta(placed(raw, tmp_path), [])


@pytest.mark.parametrize("junk", [b"", b"\0", bytes(512), bytes(20480), b"PK\3\4" + bytes(600), b"\x1f\x8b\x08 and no more", b"x" * 5000])
def test_what_is_no_archive_is_refused(tmp_path: Path, junk: bytes, imported: Any) -> None:
    with pytest.raises(ContentError):
        imported(placed(junk, tmp_path))


def test_an_archive_that_inflates_without_end_stops_where_room_ends(example: Any, tmp_path: Path, imported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tar_of([member for member in members_of(example.raw) if member[0] != "diffah.json"])
    bomb = gzip.compress(whole[:-1024] + bytes(64 * 1024 * 1024), compresslevel=1)
    assert len(bomb) < 1024 * 1024
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk._replace(free=MARGIN + 2 * CHUNK - 1))
    delta = placed(bomb, tmp_path).model_copy(update={"workdir": str(tmp_path / "work")})
    written: list[int] = []
    require = tarindex.require_room
    monkeypatch.setattr(tarindex, "require_room", lambda folder, size: written.append(size) or require(folder, sum(written)))
    with pytest.raises(NoSpace):
        imported(delta)
    assert len(written) <= 3
    assert list((tmp_path / "work").iterdir()) == []
