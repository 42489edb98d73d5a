"""The base of every JSON value."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import prefect_diffah.engine
from prefect_diffah.engine.model import ByteCount, Model, canonical_json

for module in pkgutil.walk_packages(prefect_diffah.engine.__path__, "prefect_diffah.engine."):
    importlib.import_module(module.name)


def derived(model: type[Model]) -> Iterator[type[Model]]:
    for child in model.__subclasses__():
        yield child
        yield from derived(child)


@pytest.mark.parametrize("model", sorted({each for each in derived(Model) if each.__module__.startswith("prefect_diffah.")}, key=lambda each: each.__name__))
def test_what_may_be_null_may_be_left_out(model: type[Model]) -> None:
    """Null counts as left out: a field that allows it and has no default could not be made at all."""
    assert [name for name, field in model.model_fields.items() if field.is_required() and type(None) in get_args(field.annotation)] == []


class Value(Model):
    """For the tests below."""

    some_size: ByteCount = 0
    text: str | None = None


def test_names_are_camel_case_as_json_and_both_are_read() -> None:
    assert Value(some_size=1).model_dump_json() == '{"someSize":1,"text":null}'
    assert Value.model_validate({"someSize": 1}) == Value.model_validate({"some_size": 1, "text": None, "unknown": 2})


def test_values_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Value().some_size = 1  # type: ignore[misc]


@pytest.mark.parametrize("size", [-1, 2**63, 1.0, "1", True])
def test_sizes_are_integers_within_bounds(size: object) -> None:
    with pytest.raises(ValidationError):
        Value(some_size=size)  # type: ignore[arg-type]


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(JSON)
def test_canonical_json_is_json_and_only_one_way_of_it(value: object) -> None:
    import json

    raw = canonical_json(value)
    assert json.loads(raw) == value
    assert canonical_json(json.loads(raw)) == raw


def test_canonical_json_byte_by_byte() -> None:
    value = {"b": [1, "ü\u2028\x7f"], "a": None, "\U0001f600": 1, "\uffff": 'quote " slash / back \\ \b\t\n\f\r\x00\x1f'}
    expected = '{"a":null,"b":[1,"ü\u2028\x7f"],"\uffff":"quote \\" slash / back \\\\ \\b\\t\\n\\f\\r\\u0000\\u001f","\U0001f600":1}'
    assert canonical_json(value) == expected.encode()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"])
def test_what_has_no_canonical_form(value: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        canonical_json(value)
