"""The error tree: what its docstring draws is what there is, and errors cross process borders whole."""

from __future__ import annotations

import inspect
import json
import pickle
from collections.abc import Iterator

import pytest

from prefect_diffah.engine import errors
from prefect_diffah.engine.errors import DiffahError, is_transient


def tree_of(root: type[DiffahError]) -> Iterator[type[DiffahError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree_of(child)


CLASSES = [each for each in tree_of(DiffahError) if each.__module__ == errors.__name__]
CODES = {"request": 2, "surroundings": 3, "content": 4, "fault": 1, "interrupted": 130}


def drawn() -> list[tuple[int, str, str]]:
    """Depth, name and remark of every line of the tree in the module's docstring."""
    found = []
    for line in (errors.__doc__ or "").splitlines():
        name = line.lstrip(" │├└─")
        if line.startswith("    ") and name:
            word, _, remark = name.partition(" ")
            found.append(((len(line) - len(name)) // 4 - 1, word, remark.strip()))
    return found


def test_the_tree_drawn_is_the_tree_there_is() -> None:
    names, above, parents = set(), [], {}
    for depth, name, _ in drawn():
        above[depth:] = [name]
        names.add(name)
        parents[name] = above[depth - 1] if depth else "Exception"
    assert names == {each.__name__ for each in CLASSES}
    assert parents == {each.__name__: each.__bases__[0].__name__ for each in CLASSES}


def test_its_remarks_are_true() -> None:
    for _, name, remark in drawn():
        each = getattr(errors, name)
        assert each.transient == ("transient" in remark)
        if "exit" in remark:
            assert remark.partition("exit ")[2].startswith(str(each.exit_code))


@pytest.mark.parametrize("each", CLASSES)
def test_category_and_exit_code_belong_together(each: type[DiffahError]) -> None:
    assert each.exit_code == CODES[each.category]
    assert each.default_action.endswith(".")
    assert inspect.getdoc(each) != inspect.getdoc(each.__bases__[0])


def test_every_class_is_public_and_has_a_code_of_its_own() -> None:
    assert sorted({each.__name__ for each in CLASSES} | {"is_transient"}) == errors.__all__
    assert len({each.code for each in CLASSES}) == len(CLASSES)


@pytest.mark.parametrize("each", CLASSES)
@pytest.mark.parametrize("transient", [None, True, False])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_errors_survive_pickling(each: type[DiffahError], transient: bool | None, protocol: int) -> None:
    error = each("it went wrong", next_action="do this", transient=transient, digest="sha256:0", size=5, names=["a", {"b": 1}])
    copy = pickle.loads(pickle.dumps(error, protocol))
    assert type(copy) is each
    assert (copy.message, copy.next_action, copy.transient, copy.details) == (error.message, error.next_action, error.transient, error.details)
    assert str(copy) == "it went wrong"
    assert copy.as_json() == error.as_json()
    assert is_transient(copy) == (each.transient if transient is None else transient)


@pytest.mark.parametrize("each", CLASSES)
def test_as_json_is_json(each: type[DiffahError]) -> None:
    data = each("it went wrong", digest="sha256:0").as_json()
    assert json.loads(json.dumps(data)) == data
    assert list(data) == ["code", "category", "message", "next_action", "transient", "details"]
    assert data["next_action"] == each.default_action


def test_other_errors_are_not_transient() -> None:
    assert not is_transient(OSError("reset"))
    assert not is_transient(KeyboardInterrupt())
