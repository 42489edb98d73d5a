from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_diffah.engine.errors import DiffahError, InvalidDocument, PlatformError, SizeMismatch, Unsupported
from prefect_diffah.engine.oci import MAX_MANIFEST, Descriptor, Digest, ImageConfig, Index, Manifest, Platform, mediatypes, parse_document
from prefect_diffah.engine.testing.images import index_of, random_image

SHA = "sha256:" + "a" * 64
BLOB = {"mediaType": mediatypes.OCI_LAYER_GZIP, "digest": SHA, "size": 3}
CONFIG = {"mediaType": mediatypes.OCI_CONFIG, "digest": SHA, "size": 2}
MANIFEST: dict[str, Any] = {"schemaVersion": 2, "mediaType": mediatypes.OCI_MANIFEST, "config": CONFIG, "layers": [BLOB]}
INDEX: dict[str, Any] = {"schemaVersion": 2, "mediaType": mediatypes.OCI_INDEX, "manifests": [BLOB | {"mediaType": mediatypes.OCI_MANIFEST}]}


def raw(document: object) -> bytes:
    return json.dumps(document, indent=1).encode()


def without(document: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in names}


@pytest.mark.parametrize("media_type", [mediatypes.OCI_MANIFEST, mediatypes.DOCKER_MANIFEST])
@pytest.mark.parametrize("served", ["same", None, "application/octet-stream", "APPLICATION/JSON; charset=utf-8"])
def test_manifests(media_type: str, served: str | None) -> None:
    data = raw(MANIFEST | {"mediaType": media_type, "annotations": {"a": "b"}, "unknown": 1})
    manifest = parse_document(data, media_type if served == "same" else served)
    assert isinstance(manifest, Manifest)
    assert manifest.raw == data
    assert manifest.descriptor() == Descriptor(media_type=media_type, digest=Digest.of(data), size=len(data))
    assert manifest.descriptor("sha512").digest == Digest.of(data, "sha512")
    assert (manifest.config.digest, manifest.layers[0].size, manifest.annotations) == (SHA, 3, {"a": "b"})


@pytest.mark.parametrize("media_type", [mediatypes.OCI_INDEX, mediatypes.DOCKER_INDEX])
def test_indexes(media_type: str) -> None:
    index = parse_document(raw(INDEX | {"mediaType": media_type}), media_type)
    assert isinstance(index, Index)
    assert index.manifests[0].digest == SHA


@pytest.mark.parametrize(
    ("document", "served", "kind"),
    [
        (without(MANIFEST, "mediaType"), None, mediatypes.OCI_MANIFEST),
        (without(MANIFEST, "mediaType"), mediatypes.DOCKER_MANIFEST, mediatypes.DOCKER_MANIFEST),
        (without(INDEX, "mediaType"), None, mediatypes.OCI_INDEX),
        (without(INDEX, "mediaType"), mediatypes.OCI_INDEX, mediatypes.OCI_INDEX),
    ],
)
def test_the_kind_of_those_that_do_not_say_it(document: dict[str, Any], served: str | None, kind: str) -> None:
    assert parse_document(raw(document), served).media_type == kind


@pytest.mark.parametrize(
    ("document", "served"),
    [
        (MANIFEST, mediatypes.OCI_INDEX),
        (INDEX, mediatypes.OCI_MANIFEST),
        (MANIFEST, mediatypes.DOCKER_MANIFEST),
        (MANIFEST | {"manifests": []}, None),
        (INDEX | {"layers": []}, None),
        (INDEX | {"config": CONFIG}, None),
        (MANIFEST | {"fsLayers": []}, None),
        (without(MANIFEST | INDEX, "mediaType"), None),
        (MANIFEST | {"Layers": []}, None),
        (MANIFEST | {"mediatype": mediatypes.OCI_INDEX}, None),
        (MANIFEST | {"SchemaVersion": 1}, None),
    ],
)
def test_documents_that_can_be_taken_for_two_things(document: dict[str, Any], served: str | None) -> None:
    with pytest.raises(InvalidDocument):
        parse_document(raw(document), served)


@pytest.mark.parametrize(
    "document",
    [
        without(MANIFEST, "config"),
        without(MANIFEST, "layers"),
        without(MANIFEST, "schemaVersion"),
        MANIFEST | {"schemaVersion": "2"},
        MANIFEST | {"schemaVersion": 3},
        MANIFEST | {"layers": {}},
        MANIFEST | {"layers": [without(BLOB, "digest")]},
        MANIFEST | {"layers": [BLOB | {"digest": "sha256:../../x"}]},
        MANIFEST | {"layers": [BLOB | {"size": -1}]},
        MANIFEST | {"layers": [BLOB | {"size": 2**63}]},
        MANIFEST | {"layers": [BLOB | {"size": "3"}]},
        MANIFEST | {"layers": [BLOB | {"size": 3.0}]},
        MANIFEST | {"config": CONFIG | {"mediaType": 7}},
        without(INDEX, "manifests"),
        [],
        "text",
        None,
    ],
)
def test_broken_documents(document: object) -> None:
    with pytest.raises(InvalidDocument):
        parse_document(raw(document))


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"\xef\xbb\xbf{}", b'{"a":' * 50_000])
def test_what_is_not_json(data: bytes) -> None:
    with pytest.raises(InvalidDocument):
        parse_document(data)


@pytest.mark.parametrize(
    ("document", "served"),
    [
        ({"schemaVersion": 1, "fsLayers": [], "name": "app"}, None),
        (MANIFEST | {"schemaVersion": 1}, None),
        (MANIFEST, "application/vnd.docker.distribution.manifest.v1+prettyjws"),
    ],
)
def test_schema_1_is_refused_by_name(document: dict[str, Any], served: str | None) -> None:
    with pytest.raises(Unsupported, match="schema 1"):
        parse_document(raw(document), served)


def test_other_kinds() -> None:
    with pytest.raises(Unsupported, match="text/html"):
        parse_document(raw(MANIFEST | {"mediaType": "text/html"}))


def test_a_manifest_of_more_than_4_mib() -> None:
    data = raw(MANIFEST)
    assert parse_document(data + b" " * (MAX_MANIFEST - len(data)))
    with pytest.raises(SizeMismatch, match="limit"):
        parse_document(data + b" " * (MAX_MANIFEST - len(data) + 1))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from([*MANIFEST, "manifests", "subject", "annotations", "x"]), v, max_size=5),
        max_leaves=15,
    )
)
def test_any_json_parses_or_is_refused_by_us(value: object) -> None:
    for document in (value, MANIFEST | value if isinstance(value, dict) else value):
        try:
            parsed = parse_document(raw(document))
        except DiffahError:
            continue
        assert parsed.raw == raw(document)


def test_foreign_layers_keep_their_urls() -> None:
    layer = BLOB | {"mediaType": mediatypes.DOCKER_FOREIGN_LAYER, "urls": ["https://example.com/a"]}
    manifest = parse_document(raw(MANIFEST | {"layers": [layer]}))
    assert isinstance(manifest, Manifest)
    assert manifest.layers[0].urls == ("https://example.com/a",)
    assert mediatypes.is_foreign(manifest.layers[0].media_type)


@pytest.fixture(scope="module")
def index() -> Index:
    images = {name: random_image(name, layers=1, layer_size=10, platform=name) for name in ("linux/amd64", "linux/arm64", "linux/arm/v7")}
    document = parse_document(index_of(images).manifest)
    assert isinstance(document, Index)
    return document


class TestChoosing:
    def test_the_best(self, index: Index) -> None:
        assert index.choose(Platform.parse("linux/arm64")) == index.manifests[1]
        assert index.choose(Platform.parse("linux/arm64/v9")) == index.manifests[1]

    @pytest.mark.parametrize("platform", [None, Platform.parse("linux/riscv64")])
    def test_none_lists_what_there_is(self, index: Index, platform: Platform | None) -> None:
        with pytest.raises(PlatformError, match="linux/amd64, linux/arm64, linux/arm/v7") as caught:
            index.choose(platform, "app:v1")
        assert caught.value.message.startswith("app:v1 ")
        assert caught.value.details["platforms"] == ["linux/amd64", "linux/arm64", "linux/arm/v7"]

    def test_attestations_and_artifacts_are_no_images(self) -> None:
        entry = BLOB | {"mediaType": mediatypes.OCI_MANIFEST}
        linux = {"os": "linux", "architecture": "amd64"}
        entries = [entry | {"platform": linux, "artifactType": "a/b"}, entry | {"platform": {"os": "unknown", "architecture": "unknown"}}, entry]
        index = parse_document(raw(INDEX | {"manifests": entries}))
        assert isinstance(index, Index)
        with pytest.raises(PlatformError, match="none named"):
            index.choose(Platform.parse("linux/amd64"))


class TestConfig:
    def test_what_deltas_need(self) -> None:
        config = ImageConfig.parse(
            raw({"os": "linux", "architecture": "arm", "variant": "v7", "rootfs": {"type": "layers", "diff_ids": [SHA]}, "history": None})
        )
        assert (str(config.platform), config.diff_ids) == ("linux/arm/v7", (SHA,))

    def test_without_anything(self) -> None:
        config = ImageConfig.parse(b"{}")
        assert (config.platform, config.diff_ids) == (None, ())

    @pytest.mark.parametrize("data", [b"[]", b"", raw({"rootfs": []}), raw({"rootfs": {"diff_ids": ["x"]}}), raw({"os": 7})])
    def test_broken(self, data: bytes) -> None:
        with pytest.raises(InvalidDocument):
            ImageConfig.parse(data)
