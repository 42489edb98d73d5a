"""FORMAT.md says what the code does, as far as that can be told by looking; test_archive writes an archive by it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from prefect_diffah.engine import tarindex
from prefect_diffah.engine.delta import sidecar
from prefect_diffah.engine.delta.plan import Role
from prefect_diffah.engine.delta.sidecar import KNOWN_FEATURES, MAX_SIDECAR, Sidecar, Travels
from prefect_diffah.engine.model import canonical_json
from prefect_diffah.engine.oci import MAX_CONFIG, MAX_MANIFEST, mediatypes

TEXT = files("prefect_diffah.engine.delta").joinpath("FORMAT.md").read_text(encoding="utf-8")


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_in(inner)


def reachable(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for inner in models_in(field.annotation):
            yield from reachable(inner)


@pytest.mark.parametrize("model", sorted(set(reachable(Sidecar)), key=lambda model: model.__name__))
def test_every_member_is_described_and_marked_if_it_must_be_there(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        alias = field.alias or name
        assert f"`{alias}`" in TEXT, f"{model.__name__}.{alias}"
        if field.is_required():
            assert re.search(rf"`{re.escape(alias)}`(?: and `\w+`)? \*\(r\)\*", TEXT), f"{model.__name__}.{alias} must be there"


def test_the_example_is_one() -> None:
    block = re.search(r"### Example\n\n[^\n]+\n\n((?:    .*\n)+)", TEXT)
    assert block is not None
    example = json.loads(block[1])
    read = Sidecar.parse(canonical_json(example))
    assert read.raw == canonical_json(example)
    assert {blob.travels for blob in read.blobs} == {"carried", "required"}


def test_types_roles_and_limits_are_named() -> None:
    types = [mediatypes.DELTA, mediatypes.DELTA_CONFIG, mediatypes.DELTA_MANIFEST, mediatypes.DELTA_BLOB, mediatypes.DELTA_PATCH, mediatypes.OCI_MANIFEST]
    for word in [*types, *get_args(Role), *get_args(Travels), *KNOWN_FEATURES, sidecar.VERSION]:
        assert f"`{word}`" in TEXT
    assert f"sidecar over {MAX_SIDECAR // 2**20} MiB" in TEXT
    assert MAX_MANIFEST == MAX_CONFIG
    assert f"config over {MAX_CONFIG // 2**20} MiB" in TEXT
    assert f"more than {tarindex.MAX_MEMBERS:,} members" in TEXT


def test_features_that_are_reserved_are_those_that_are_checked(example: Any) -> None:
    reserved = set(re.findall(r"^\| `([a-z0-9.-]+)` \|", TEXT.partition("Reserved for this:")[2], re.MULTILINE))
    assert reserved == {"patch.v1", "zstd", "index", "referrers", "uncompressed-baseline"}
    assert reserved >= KNOWN_FEATURES
