"""The canonical archive: the same bytes every time, and all of them as FORMAT.md says."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from prefect_diffah.engine.delta import pack
from prefect_diffah.engine.delta.archive import DeltaArtifact, open_delta
from prefect_diffah.engine.errors import InvalidArchive, NotFound
from prefect_diffah.engine.images import Place
from prefect_diffah.engine.model import canonical_json
from prefect_diffah.engine.oci import Descriptor, Digest, Reference
from prefect_diffah.engine.pipeline import Direct, inspect_delta, verify_delta
from prefect_diffah.engine.storage import FileLocation
from prefect_diffah.engine.tarlayout import Blob, Member, TarLayout
from prefect_diffah.engine.testing.images import image_of, random_layer

GOLDEN = Path(__file__).parents[2] / "data" / "delta-v1"


def written_by_the_book(sidecar: bytes, blobs: dict[str, bytes], mtime: int = 0) -> bytes:
    """An archive made from a sidecar's bytes and blobs, after FORMAT.md alone: none of the engine's code."""

    def compact(value: object) -> bytes:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    def sha256(data: bytes) -> str:
        return "sha256:" + hashlib.sha256(data).hexdigest()

    def path(digest: str) -> str:
        return "blobs/" + digest.replace(":", "/")

    data = json.loads(sidecar)
    metadata = {digest for blob in data["blobs"] if blob["role"] in ("manifest", "config") for digest in blob["payloads"]}
    layers = sorted(data["payloads"], key=lambda payload: (payload["digest"] not in metadata, payload["digest"]))
    manifest = compact(
        {
            "annotations": {"vnd.diffah.targets": " ".join(image["target"]["digest"] for image in data["images"])},
            "artifactType": "application/vnd.diffah.delta.v1",
            "config": {"digest": sha256(sidecar), "mediaType": "application/vnd.diffah.delta.config.v1+json", "size": len(sidecar)},
            "layers": [{key: payload[key] for key in ("digest", "mediaType", "size")} for payload in layers],
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "schemaVersion": 2,
        }
    )
    entry = {
        "annotations": {"org.opencontainers.image.ref.name": "delta"},
        "artifactType": "application/vnd.diffah.delta.v1",
        "digest": sha256(manifest),
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "size": len(manifest),
    }
    index = compact({"manifests": [entry], "mediaType": "application/vnd.oci.image.index.v1+json", "schemaVersion": 2})
    described = {path(sha256(manifest)): manifest, path(sha256(sidecar)): sidecar} | {path(digest): blobs[digest] for digest in metadata}
    members = [("diffah.json", sidecar), ("index.json", index), ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')]
    members += sorted(described.items())
    members += [(path(payload["digest"]), blobs[payload["digest"]]) for payload in layers if payload["digest"] not in metadata]
    out = b"".join(header_by_the_book(name, len(content), mtime) + content + bytes(-len(content) % 512) for name, content in members)
    out += bytes(1024)
    return out + bytes(-len(out) % 10240)


def header_by_the_book(name: str, size: int, mtime: int) -> bytes:
    def block(name: bytes, mode: int, size: int, mtime: int, kind: bytes) -> bytes:
        fields = [name.ljust(100, b"\0"), b"%07o\0" % mode, b"0000000\0", b"0000000\0", b"%011o\0" % size, b"%011o\0" % mtime]
        rest = [kind, bytes(100), b"ustar\x0000", bytes(32), bytes(32), bytes(8), bytes(8), bytes(155), bytes(12)]
        total = sum(b"".join(fields) + b" " * 8 + b"".join(rest))
        return b"".join([*fields, b"%06o\0 " % total, *rest])

    records = b""
    for key, value, fits in (("path", name, len(name) <= 100), ("size", str(size), size < 8**11)):
        if not fits:
            body = f" {key}={value}\n".encode()
            length = next(total for total in range(len(body), len(body) + 20) if total == len(body) + len(str(total)))
            records += str(length).encode() + body
    extended = block(b"././@PaxHeader", 0, len(records), 0, b"x") + records + bytes(-len(records) % 512) if records else b""
    return extended + block(name.encode()[:100], 0o644, size if size < 8**11 else 0, mtime, b"0")


def sidecar_in(raw: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        first = tar.next()
        assert first is not None
        assert first.name == "diffah.json"
        content = tar.extractfile(first)
        assert content is not None
        return content.read()


def contents(image: Any) -> dict[str, bytes]:
    return {str(digest): content for digest, content in (image.documents | image.blobs).items()}


def test_the_archive_is_what_the_specification_says(example: Any) -> None:
    assert example.raw == written_by_the_book(sidecar_in(example.raw), contents(example.new))


def test_the_order_within_a_sidecar_is_a_writers_own(example: Any, tmp_path: Path) -> None:
    """Whoever lists payloads otherwise makes another archive, whose members are in the same order all the same."""
    sidecar = json.loads(sidecar_in(example.raw))
    for listed in ("payloads", "blobs"):
        sidecar[listed].reverse()
    (tmp_path / "delta.tar").write_bytes(written_by_the_book(canonical_json(sidecar), contents(example.new)))
    assert verify_delta(Place(reference=Reference.parse(f"oci-archive:{tmp_path}/delta.tar")), []).canonical


def test_source_date_epoch_is_the_time_of_every_member(bench: Any, example: Any) -> None:
    bench.export(mtime=1_700_000_000)
    assert bench.bytes_of() == written_by_the_book(sidecar_in(example.raw), contents(example.new), 1_700_000_000)
    assert verify_delta(bench.at("delta.tar"), []).canonical
    assert bench.rebuild().digest == example.new.root.digest


def test_sha512_names_are_held_by_pax_records(bench: Any, pair: Any) -> None:
    old, new = pair(algorithm="sha512")
    bench.put(v1=old, v2=new)
    bench.export()
    raw = bench.bytes_of()
    assert b"path=blobs/sha512/" in raw
    assert raw == written_by_the_book(sidecar_in(raw), contents(new))
    report = verify_delta(bench.at("delta.tar"), [bench.image("v1")])
    assert report.canonical
    assert report.summary.target.algorithm == "sha512"
    assert bench.rebuild().digest == new.root.digest


@pytest.mark.parametrize("size", [8**11 - 1, 8**11, 9 * 2**40])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_sizes_of_8_gib_and_more_are_held_by_pax_records(size: int, algorithm: str) -> None:
    digest = Digest.of(b"", algorithm)
    name = f"blobs/{algorithm}/{digest.hex}"
    header, blob, *rest = TarLayout((Member(name, Blob(digest, size)),), 7).segments()
    assert header == header_by_the_book(name, size, 7)
    assert blob == Blob(digest, size)
    assert TarLayout((Member(name, Blob(digest, size)),)).size == len(header) + size + sum(map(len, rest))


def test_every_byte_follows_from_the_sidecar(example: Any) -> None:
    layout = DeltaArtifact.of(sidecar_in(example.raw)).layout()

    def blob(wanted: Blob) -> Any:
        return nullcontext([contents(example.new)[wanted.digest]])

    assert b"".join(layout.stream(blob)) == example.raw
    assert layout.size == len(example.raw)


def test_order_and_number_of_workers_change_no_byte(bench: Any, example: Any) -> None:
    layers = [random_layer(f"shared {number}", 200) for number in range(6)]
    target = image_of([*layers, random_layer("new", 200), random_layer("newer", 200)])
    bench.put(v2=target, a=image_of(layers[:3]), b=image_of(layers[2:]), c=image_of(layers[:1]))
    manifest = bench.folder / "a.manifest.json"
    manifest.write_bytes(image_of(layers[:3]).manifest)
    written = set()
    for number, (baselines, workers) in enumerate([("abc", 1), ("cba", 8), ("bac", 3), ("aabbcc", 2)]):
        bench.export("delta.tar", baselines=tuple(baselines), runner=Direct(workers), force=True, job={"store": bench.store(f"store {number}")})
        written.add(bench.bytes_of())
    assert len(written) == 1


def test_a_baseline_known_twice_is_listed_once_with_its_diffids(bench: Any, example: Any) -> None:
    bench.export("plain.tar")
    (bench.folder / "v1.json").write_bytes(example.old.manifest)
    bench.export("both.tar", job={"baseline_manifests": (FileLocation(f"{bench.folder}/v1.json"),)})
    assert bench.bytes_of("plain.tar") == bench.bytes_of("both.tar")


def test_an_archive_with_time_or_place_in_it_would_not_be_reproducible(example: Any) -> None:
    text = sidecar_in(example.raw).decode()
    assert str(example.bench.folder) not in text
    assert "oci:" not in text


def test_a_tag_or_digest_in_the_reference_must_be_the_deltas(example: Any) -> None:
    where = str(example.bench.folder / "delta.tar")

    def reference(tail: str) -> Place:
        return Place(reference=Reference.parse(f"oci-archive:{where}{tail}"))

    with open_delta(reference("")) as delta:
        own = delta.manifest.digest
    assert inspect_delta(reference(":delta")) == inspect_delta(reference(f"@{own}")) == inspect_delta(reference(""))
    for other in (":v2", f"@{example.new.root.digest}", f"@{Digest.of(b'nothing')}"):
        with pytest.raises(NotFound):
            inspect_delta(reference(other))


class TestGolden:
    """An archive of version 1 that was written once and is kept: it must be read for ever."""

    TARGET = "sha256:3b32506740a867e829c14cc6e5d11d259ccce5f092ae119936b9424e113f04ad"
    ARTIFACT = "sha256:b79085683459444ccf77902728747cadd52fef5818c3bc17f45a05e881ba6076"

    def test_it_verifies(self) -> None:
        report = verify_delta(Place(reference=Reference.parse(f"oci-archive:{GOLDEN}/delta.tar")), [])
        assert report.canonical
        assert report.summary.target == self.TARGET

    @pytest.mark.parametrize("transport", ["docker-archive", "oci-archive", "oci", "dir"])
    def test_it_is_imported(self, bench: Any, transport: str) -> None:
        delta, baseline = (Place(reference=Reference.parse(text)) for text in (f"oci-archive:{GOLDEN}/delta.tar", f"oci:{GOLDEN}/images:v1"))
        report = bench.rebuild(delta, bench.at("out", transport), job={"baselines": (baseline,)})
        assert report.digest == self.TARGET
        with bench.at("out", transport).open() as reader:
            descriptor, raw = reader.root()
            assert (descriptor.digest, Digest.of(raw)) == (self.TARGET, self.TARGET)
            for layer in json.loads(raw)["layers"]:
                with reader.stream(Descriptor.model_validate(layer)) as chunks:
                    assert sum(map(len, chunks)) == layer["size"]

    def test_it_is_written_again(self, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pack, "version", lambda name: "0.1.0")
        images = [Place(reference=Reference.parse(f"oci:{GOLDEN}/images:{tag}")) for tag in ("v2", "v1")]
        manifest = FileLocation(f"{GOLDEN}/v0.manifest.json")
        report = bench.export("golden.tar", job={"target": images[0], "baselines": (images[1],), "baseline_manifests": (manifest,)})
        assert report.delta == self.ARTIFACT
        assert bench.bytes_of("golden.tar") == (GOLDEN / "delta.tar").read_bytes()


def test_the_sidecar_must_come_with_the_bytes_of_its_version(example: Any, tmp_path: Path) -> None:
    changed = sidecar_in(example.raw).replace(b'"reason":', b'"reasom":')
    (tmp_path / "x.tar").write_bytes(example.raw.replace(sidecar_in(example.raw), changed, 1))
    with pytest.raises(InvalidArchive):
        verify_delta(Place(reference=Reference.parse(f"oci-archive:{tmp_path}/x.tar")), [])
