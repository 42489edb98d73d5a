"""Sidecars that nobody should have written are refused in so many words; members of the future are not."""

from __future__ import annotations

import copy
import json
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_diffah.engine.delta import apply
from prefect_diffah.engine.delta.archive import DeltaArtifact
from prefect_diffah.engine.delta.pack import PackedBlob, sidecar_of
from prefect_diffah.engine.delta.plan import compute_diff
from prefect_diffah.engine.delta.sidecar import Method, Payload, Sidecar
from prefect_diffah.engine.errors import ContentError, DiffahError, InvalidArchive, InvalidDocument, UnsupportedVersion
from prefect_diffah.engine.images import ImageName, ImageTree, Place, TreeManifest
from prefect_diffah.engine.model import canonical_json
from prefect_diffah.engine.oci import Digest, Reference, mediatypes
from prefect_diffah.engine.pipeline import inspect_delta, verify_delta
from prefect_diffah.engine.store import Store
from prefect_diffah.engine.testing.images import GeneratedImage, image_of, random_image, random_layer

SOME = Digest.of(b"some")
OTHER = Digest.of(b"other")


def path_of(value: object, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from path_of(inner, (*place, key))


def at(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        value = value[key]
    return value


def changed(value: Any, place: tuple[Any, ...], new: object) -> Any:
    value = copy.deepcopy(value)
    at(value, place[:-1])[place[-1]] = new
    return value


def deep(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.fixture
def sidecar(example: Any) -> dict[str, Any]:
    return json.loads(raw_sidecar(example))


def raw_sidecar(example: Any) -> bytes:
    return example.raw[512 : example.raw.index(b"\0", 512)]


def archive_of(example: Any, sidecar: bytes, folder: Path) -> Place:
    """An archive that is canonical around whatever this sidecar says, so that nothing but the sidecar can be refused."""
    layout = DeltaArtifact.of(sidecar).layout()
    blobs = example.new.documents | example.new.blobs

    def blob(wanted: Any) -> Any:
        return nullcontext([blobs.get(wanted.digest, bytes(wanted.size if wanted.size < 10**6 else 0))])

    (folder / "delta.tar").write_bytes(b"".join(layout.stream(blob)))
    return Place(reference=Reference.parse(f"oci-archive:{folder}/delta.tar"))


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(
        [
            SOME,
            OTHER,
            "sha256:../../../../etc/passwd",
            "sha256:/etc/passwd",
            "sha256:" + "A" * 64,
            "md5:" + "0" * 32,
            "../x",
            "/etc/passwd",
            "a:b:c",
            "patched",
            "required",
            "carried",
            "zstd",
            "config",
            "layer",
            "manifest",
            "signature",
            "application/vnd.oci.image.index.v1+json",
            "application/vnd.docker.distribution.manifest.v1+json",
        ]
    ),
    st.recursive(
        st.integers(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["digest", "size", "x"]), inner, max_size=3), max_leaves=5
    ),
    st.builds(deep, st.sampled_from([50, 300, 700])),
)


@st.composite
def mutated(draw: st.DrawFn, original: dict[str, Any]) -> dict[str, Any]:
    value = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from([path for path in path_of(value) if path]))
        parent, key = at(value, place[:-1]), place[-1]
        match draw(st.sampled_from(["drop", "replace", "swap", "duplicate", "add", "near"])):
            case "drop":
                del parent[key]
            case "replace":
                parent[key] = draw(JUNK)
            case "swap":
                parent[key] = copy.deepcopy(at(value, draw(st.sampled_from([path for path in path_of(value) if path]))))
            case "duplicate" if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[key]))
            case "add" if isinstance(parent, dict):
                parent[draw(st.sampled_from(["unknown", "sources", "referrers", "omitted", "urls", "parent", "encoder", "stats", "method"]))] = draw(JUNK)
            case "near" if type(parent[key]) is int:
                parent[key] += draw(st.sampled_from([-1, 1, 2**62]))
            case _:
                pass
    return value


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_mutated_sidecar_is_read_or_refused(example: Any, data: st.DataObject) -> None:
    raw = canonical_json(data.draw(mutated(json.loads(raw_sidecar(example)))))
    try:
        read = Sidecar.parse(raw)
    except ContentError:
        return
    assert Sidecar.parse(read.raw) == read
    assert pickle.loads(pickle.dumps(read)) == read


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_an_archive_around_a_mutated_sidecar_gives_the_image_or_nothing(example: Any, data: st.DataObject) -> None:
    raw = canonical_json(data.draw(mutated(json.loads(raw_sidecar(example)))))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            delta = archive_of(example, raw, folder)
        except ContentError:
            return
        room = folder / "room"
        room.mkdir()
        output = Place(reference=Reference.parse(f"oci:{room}/out"))
        try:
            report = example.bench.rebuild(delta, output, job={"store": Store(str(folder / "store"))})
        except DiffahError:
            assert list(room.iterdir()) == []
            return
        assert report.digest == example.new.root.digest
        with output.open() as reader:
            for blob in (example.new.config, *example.new.layers):
                with reader.stream(blob) as chunks:
                    assert b"".join(chunks) == example.new.blobs[blob.digest]


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode(errors="surrogatepass")))
def test_bytes_that_are_no_sidecar_are_refused(raw: bytes) -> None:
    with pytest.raises(ContentError):
        Sidecar.parse(raw)


@pytest.mark.parametrize(
    ("place", "new", "error"),
    [
        (("version",), "v2", UnsupportedVersion),
        (("version",), None, UnsupportedVersion),
        (("version",), 1, UnsupportedVersion),
        (("version",), deep(300), UnsupportedVersion),
        (("requires",), ["patch.v1"], UnsupportedVersion),
        (("requires",), ["patch.v1", []], UnsupportedVersion),
        (("requires",), [[]], InvalidDocument),
        (("requires",), "patch.v1", InvalidDocument),
        (("mediaType",), "application/json", InvalidDocument),
        (("images",), [], InvalidDocument),
        (("blobs",), [], InvalidDocument),
        (("payloads",), [], InvalidDocument),
        (("tool",), None, InvalidDocument),
        (("images", 0, "name"), "Not A Name", InvalidDocument),
        (("images", 0, "name"), "app:v2", InvalidDocument),
        (("images", 0, "name"), "../app", InvalidDocument),
        (("images", 0, "tags"), ["v2", "v:3"], InvalidDocument),
        (("images", 0, "tags"), ["-x"], InvalidDocument),
        (("images", 0, "manifests"), [], InvalidDocument),
        (("images", 0, "manifests", 0, "digest"), SOME, InvalidArchive),
        (("images", 0, "manifests", 0, "parent"), SOME, InvalidArchive),
        (("images", 0, "target", "size"), 5, InvalidArchive),
        (("images", 0, "target", "mediaType"), "application/vnd.docker.distribution.manifest.v2+json", InvalidArchive),
        (("images", 0, "target", "digest"), SOME, InvalidArchive),
        (("images", 0, "target", "digest"), "sha256:../" + "0" * 61, InvalidDocument),
        (("images", 0, "target", "digest"), "/etc/passwd", InvalidDocument),
        (("images", 0, "referrers"), [{"descriptor": {"mediaType": "x", "digest": SOME, "size": 1}, "subject": OTHER}], InvalidArchive),
        (("blobs", 0, "descriptor", "mediaType"), "application/vnd.oci.image.index.v1+json", InvalidArchive),
        (("blobs", 0, "role"), "layer", InvalidArchive),
        (("blobs", 0, "role"), "attestation", InvalidDocument),
        (("blobs", 0, "travels"), "flies", InvalidDocument),
        (("blobs", 2, "travels"), "carried", InvalidArchive),
        (("blobs", 2, "travels"), "patched", InvalidArchive),
        (("blobs", 3, "travels"), "required", InvalidArchive),
        (("blobs", 3, "travels"), "patched", InvalidArchive),
        (("blobs", 3, "method"), None, InvalidArchive),
        (("blobs", 3, "method"), {"name": "bsdiff"}, InvalidArchive),
        (("blobs", 3, "method"), {"name": "identity", "version": 2}, InvalidArchive),
        (("blobs", 3, "method"), {"name": "identity", "version": "1"}, InvalidDocument),
        (("blobs", 3, "method"), {"name": "identity", "params": {"deep": deep(300)}}, InvalidDocument),
        (("blobs", 3, "stats"), {"deep": deep(700)}, InvalidDocument),
        (("blobs", 3, "reason"), 1, InvalidDocument),
        (("images", 0, "manifests", 0, "chosen"), "yes", InvalidDocument),
        (("blobs", 3, "payloads"), [SOME], InvalidArchive),
        (("blobs", 3, "descriptor", "size"), 1.0, InvalidDocument),
        (("blobs", 3, "descriptor", "size"), -1, InvalidDocument),
        (("blobs", 3, "descriptor", "size"), 2**63, InvalidDocument),
        (("blobs", 3, "descriptor", "size"), "823", InvalidDocument),
        (("blobs", 3, "descriptor", "size"), 5, InvalidArchive),
        (("payloads", 0, "encoding"), "zstd", InvalidArchive),
        (("payloads", 0, "encoding"), "brotli", InvalidDocument),
        (("payloads", 0, "digest"), SOME, InvalidArchive),
        (("annotations",), {"a": 1}, InvalidDocument),
    ],
)
def test_what_breaks_the_rules_is_refused(sidecar: dict[str, Any], place: tuple[Any, ...], new: object, error: type[DiffahError]) -> None:
    Sidecar.parse(canonical_json(sidecar))
    with pytest.raises(error) as caught:
        Sidecar.parse(canonical_json(changed(sidecar, place, new)))
    assert type(caught.value) is error


def test_a_name_has_no_tag(sidecar: dict[str, Any]) -> None:
    del sidecar["images"][0]["tags"]
    Sidecar.parse(canonical_json(sidecar))
    with pytest.raises(InvalidDocument):
        Sidecar.parse(canonical_json(changed(sidecar, ("images", 0, "name"), "app:v2")))


def test_a_manifest_is_carried(sidecar: dict[str, Any]) -> None:
    del sidecar["blobs"][0]["payloads"], sidecar["blobs"][0]["method"]
    sidecar["blobs"][0]["travels"] = "required"
    with pytest.raises(InvalidArchive, match="does not travel"):
        Sidecar.parse(canonical_json(sidecar))


@pytest.mark.parametrize("listed", ["blobs", "payloads"])
def test_nothing_is_listed_twice(sidecar: dict[str, Any], listed: str) -> None:
    sidecar[listed].append(sidecar[listed][-1])
    with pytest.raises(InvalidArchive, match="twice"):
        Sidecar.parse(canonical_json(sidecar))


def test_a_payload_serves_a_blob(sidecar: dict[str, Any]) -> None:
    sidecar["payloads"].append(sidecar["payloads"][-1] | {"digest": SOME})
    with pytest.raises(InvalidArchive, match="belongs to no blob"):
        Sidecar.parse(canonical_json(sidecar))


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_sources_may_not_lead_in_a_circle(example: Any, data: st.DataObject) -> None:
    sidecar = json.loads(raw_sidecar(example))
    digests = [blob["descriptor"]["digest"] for blob in sidecar["blobs"]]
    edges = {digest: data.draw(st.lists(st.sampled_from([*digests, SOME]), max_size=3)) for digest in digests}
    for blob in sidecar["blobs"]:
        blob["sources"] = [{"digest": source, "size": 1} for source in edges[blob["descriptor"]["digest"]]]

    def ends(digest: str, above: tuple[str, ...] = ()) -> bool:
        return digest not in above and all(ends(source, (*above, digest)) for source in edges.get(digest, []))

    if all(ends(digest) for digest in digests):
        Sidecar.parse(canonical_json(sidecar))
    else:
        with pytest.raises(InvalidArchive, match="rebuilt from itself"):
            Sidecar.parse(canonical_json(sidecar))


def test_many_ways_to_one_source_are_followed_once(sidecar: dict[str, Any]) -> None:
    """Two sources each on forty levels: as many ways as no computer could try."""
    template = sidecar["blobs"][2]
    levels = [[Digest.of(f"{level} {side}".encode()) for side in "ab"] for level in range(40)]
    for level, below in zip(levels, [*levels[1:], []], strict=True):
        sources = [{"digest": digest, "size": 1} for digest in below]
        sidecar["blobs"] += [template | {"descriptor": template["descriptor"] | {"digest": digest}, "sources": sources} for digest in level]
    Sidecar.parse(canonical_json(sidecar))


def test_a_long_chain_of_sources_is_followed(sidecar: dict[str, Any]) -> None:
    template = sidecar["blobs"][2]
    digests = [Digest.of(str(number).encode()) for number in range(5000)]
    for digest, source in zip(digests, [*digests[1:], SOME], strict=True):
        blob = template | {"descriptor": template["descriptor"] | {"digest": digest}, "sources": [{"digest": source, "size": 1}]}
        sidecar["blobs"].append(blob)
    Sidecar.parse(canonical_json(sidecar))
    sidecar["blobs"][-1]["sources"] = [{"digest": digests[0], "size": 1}]
    with pytest.raises(InvalidArchive, match="rebuilt from itself"):
        Sidecar.parse(canonical_json(sidecar))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw + b"\n",
        lambda raw: b" " + raw,
        lambda raw: raw.replace(b'"requires":[]', b'"requires": []'),
        lambda raw: raw.replace(b'"requires":[]', b'"requires":[],"requires":[]'),
        lambda raw: b'{"zzz":0,' + raw[1:],
        lambda raw: raw.replace(b'"annotations":{}', b'"annotations":{"x":"\\u0041"}'),
        lambda raw: raw.replace(b'"annotations":{}', b'"a":NaN,"annotations":{}'),
        lambda raw: raw.replace(b'"annotations":{}', b'"a":"\\ud800","annotations":{}'),
        lambda raw: raw.replace(b'"annotations":{}', b'"a":1e3,"annotations":{}'),
        lambda raw: b"\xef\xbb\xbf" + raw,
        lambda raw: raw.decode().encode("utf-16"),
    ],
)
def test_a_sidecar_is_in_canonical_form(example: Any, spoil: Any) -> None:
    raw = raw_sidecar(example)
    spoilt = spoil(raw)
    assert spoilt != raw
    with pytest.raises(InvalidDocument):
        Sidecar.parse(spoilt)


def test_unknown_members_are_ignored_and_kept(example: Any, sidecar: dict[str, Any], tmp_path: Path) -> None:
    for place in [path for path in path_of(sidecar) if isinstance(at(sidecar, path), dict) and path[-1:] != ("annotations",)]:
        at(sidecar, place)["zFuture"] = {"anything": [1, None, "ü"]}
    raw = canonical_json(sidecar)
    assert Sidecar.parse(raw) == Sidecar.parse(raw_sidecar(example))
    delta = archive_of(example, raw, tmp_path)
    assert verify_delta(delta, []).canonical
    assert raw in (tmp_path / "delta.tar").read_bytes()
    report = example.bench.rebuild(delta, Place(reference=Reference.parse(f"oci:{tmp_path}/out")), job={"store": Store(str(tmp_path / "store"))})
    assert report.digest == example.new.root.digest


def test_a_member_that_is_null_counts_as_left_out(sidecar: dict[str, Any]) -> None:
    assert Sidecar.parse(canonical_json(changed(sidecar, ("blobs", 2, "method"), None))) == Sidecar.parse(canonical_json(sidecar))


@pytest.mark.parametrize(
    ("place", "new"),
    [
        (("blobs", 1, "role"), "other"),
        (("blobs", 3, "role"), "other"),
        (("blobs", 3, "diffID"), SOME),
        (("blobs", 2, "diffID"), SOME),
        (("blobs", 2, "descriptor", "size"), 5),
        (("blobs", 2, "descriptor", "digest"), SOME),
        (("images", 0, "target", "platform"), {"os": "linux", "architecture": "arm64"}),
        (("blobs", 4), {"descriptor": {"mediaType": "x", "digest": SOME, "size": 1}, "role": "layer", "travels": "required"}),
    ],
)
def test_the_manifests_must_agree(example: Any, sidecar: dict[str, Any], tmp_path: Path, place: tuple[Any, ...], new: object) -> None:
    sidecar["blobs"].append(None)
    spoilt = changed(sidecar, place, new)
    spoilt["blobs"] = [blob for blob in spoilt["blobs"] if blob]
    with pytest.raises(InvalidArchive):
        verify_delta(archive_of(example, canonical_json(spoilt), tmp_path), [])


def archive_around(image: GeneratedImage, folder: Path) -> Place:
    """An archive of an image that export may not have agreed to."""
    manifest = TreeManifest(descriptor=image.root, config=image.config, layers=image.layers)
    plan = compute_diff([ImageTree(name=ImageName.parse("app"), root=image.root, manifests=(manifest,))], [])
    packed = [
        PackedBlob(
            digest=blob.descriptor.digest,
            method=Method(name="identity"),
            payloads=(Payload(digest=blob.descriptor.digest, size=blob.descriptor.size, media_type=mediatypes.DELTA_BLOB, encoding="identity"),),
        )
        for blob in plan.travelling
    ]
    layout = DeltaArtifact.of(sidecar_of(plan, packed).raw).layout()
    contents = image.documents | image.blobs
    (folder / "delta.tar").write_bytes(b"".join(layout.stream(lambda blob: nullcontext([contents[blob.digest]]))))
    return Place(reference=Reference.parse(f"oci-archive:{folder}/delta.tar"))


def test_a_sound_image_needs_no_more_than_its_blobs(tmp_path: Path) -> None:
    assert verify_delta(archive_around(random_image("x", 2, 200), tmp_path), []).canonical


@pytest.mark.parametrize("diff_ids", [[], [SOME], [SOME, OTHER, SOME]])
def test_a_config_names_as_many_layers_as_the_manifest(tmp_path: Path, diff_ids: list[str]) -> None:
    image = image_of([random_layer("a", 100), random_layer("b", 100)], config={"rootfs": {"type": "layers", "diff_ids": diff_ids}})
    with pytest.raises(InvalidDocument, match="has 2 layers"):
        verify_delta(archive_around(image, tmp_path), [])


def test_a_config_over_the_limit_is_refused(example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "MAX_CONFIG", example.new.config.size - 1)
    store = Store(str(tmp_path))
    with pytest.raises(InvalidArchive, match="in at most"):
        apply.read_delta(example.bench.at("delta.tar"), store)
    assert not store.has(example.new.config)


def test_what_it_says_of_itself_is_told_without_reading_blobs(example: Any) -> None:
    summary = inspect_delta(example.bench.at("delta.tar"))
    assert summary.target == example.new.root.digest
    assert summary.baselines == (example.old.root.digest,)
    carried = {example.new.config.digest: example.new.config.size, example.new.layers[1].digest: example.new.layers[1].size}
    assert (summary.shipped, summary.shipped_bytes) == (2, sum(carried.values()))
    assert (summary.required, summary.required_bytes) == (1, example.new.layers[0].size)
    assert summary.saved_percent == round(100 * example.new.layers[0].size / (sum(carried.values()) + example.new.layers[0].size), 1)
