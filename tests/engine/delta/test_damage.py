"""Truncated, altered, lengthened: whatever happens to an archive is noticed, and nothing comes of it."""

from __future__ import annotations

import io
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example as case
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_diffah.engine.delta.apply import read_delta
from prefect_diffah.engine.errors import ContentError, DiffahError
from prefect_diffah.engine.images import Place
from prefect_diffah.engine.oci import Reference
from prefect_diffah.engine.store import Store

Damage = Callable[[bytes, int, int], bytes]

TRANSPORTS = ("docker-archive", "oci-archive", "oci", "dir")


def truncated(raw: bytes, at: int, bit: int) -> bytes:
    return raw[:at]


def flipped(raw: bytes, at: int, bit: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :]


def lengthened(raw: bytes, at: int, bit: int) -> bytes:
    return raw + raw[: 1 + at]


@contextmanager
def damaged(raw: bytes) -> Iterator[tuple[Place, Path]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "delta.tar").write_bytes(raw)
        yield Place(reference=Reference.parse(f"oci-archive:{folder}/delta.tar")), folder


def refusal(raw: bytes, store: Store) -> DiffahError | None:
    with damaged(raw) as (delta, _):
        try:
            read_delta(delta, store, thorough=True)
        except DiffahError as error:
            return error
    return None


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Shared by reads of damaged archives; whatever such a read leaves there is sound."""
    return Store(str(tmp_path_factory.mktemp("store")))


def members_of(raw: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        return tar.getmembers()


def test_truncation_is_noticed(example: Any, store: Store) -> None:
    """After every byte of the first header, around every block, and at places in between."""
    edges = {at + by for at in range(0, len(example.raw), 512) for by in (-1, 0, 1)}
    cuts = sorted(at for at in edges | set(range(512)) | set(range(0, len(example.raw), 101)) if 0 <= at < len(example.raw))
    unnoticed = [at for at in cuts if not isinstance(refusal(truncated(example.raw, at, 0), store), ContentError)]
    assert unnoticed == []


def test_a_flipped_bit_is_noticed(example: Any, store: Store) -> None:
    """In every byte of the first header and of a blob's, which are read by different code, and at places in the others, contents, padding and the end."""
    first, *_, last = members_of(example.raw)
    bytes_of_headers = {at for member in (first, last) for at in range(member.offset, member.offset_data)}
    tried = sorted(bytes_of_headers | set(range(0, len(example.raw), 53)))
    unnoticed = [at for at in tried if not isinstance(refusal(flipped(example.raw, at, at % 8), store), ContentError)]
    assert unnoticed == []


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damage_is_noticed(example: Any, store: Store, data: st.DataObject) -> None:
    damage = data.draw(st.sampled_from([truncated, flipped, lengthened]))
    at, bit = data.draw(st.integers(0, len(example.raw) - 1)), data.draw(st.integers(0, 7))
    error = refusal(damage(example.raw, at, bit), store)
    assert isinstance(error, ContentError), f"{damage.__name__} at {at}, bit {bit}: {error!r}"


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_within_the_sidecar_is_a_fault_of_the_content(example: Any, store: Store, data: st.DataObject) -> None:
    """There a flip may make another valid document, or one that only a later check refuses."""
    at, bit = data.draw(st.integers(512, 512 + 3000)), data.draw(st.integers(0, 7))
    error = refusal(flipped(example.raw, at, bit), store)
    assert isinstance(error, ContentError), f"at {at}, bit {bit}: {error!r}"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_nothing_is_imported_from_a_damaged_archive(example: Any, transport: str) -> None:
    @settings(max_examples=40, deadline=None)
    @given(damage=st.sampled_from([truncated, flipped, lengthened]), at=st.integers(0, len(example.raw) - 1), bit=st.integers(0, 7))
    @case(damage=flipped, at=example.raw.index(example.new.blobs[example.new.layers[1].digest]) + 100, bit=0)
    @case(damage=flipped, at=example.raw.index(example.new.blobs[example.new.config.digest]) + 100, bit=0)
    @case(damage=flipped, at=len(example.raw) - 1, bit=0)
    @case(damage=flipped, at=members_of(example.raw)[1].offset - 1, bit=7)
    @case(damage=truncated, at=len(example.raw) - 1, bit=0)
    @case(damage=lengthened, at=0, bit=0)
    def imported(damage: Damage, at: int, bit: int) -> None:
        with damaged(damage(example.raw, at, bit)) as (delta, folder):
            (folder / "room").mkdir()
            output = Place(reference=Reference.parse(f"{transport}:{folder}/room/out"))
            with pytest.raises(ContentError):
                example.bench.rebuild(delta, output, job={"store": Store(str(folder / "store"))})
            assert list((folder / "room").iterdir()) == []

    imported()


def test_an_undamaged_archive_is_imported_by_the_same_means(example: Any) -> None:
    with damaged(example.raw) as (delta, folder):
        for transport in TRANSPORTS:
            output = Place(reference=Reference.parse(f"{transport}:{folder}/{transport}"))
            report = example.bench.rebuild(delta, output, job={"store": Store(str(folder / "store"))})
            assert report.digest == example.new.root.digest


def test_a_baseline_that_is_damaged_is_noticed(bench: Any, example: Any) -> None:
    bench.export()
    layer = bench.folder / "images" / "blobs" / "sha256" / example.old.layers[0].digest.hex
    layer.write_bytes(flipped(layer.read_bytes(), 100, 3))
    with pytest.raises(ContentError) as caught:
        bench.rebuild()
    assert caught.value.details["digest"] == example.old.layers[0].digest
    assert not (bench.folder / "out.tar").exists()


def test_a_folder_is_no_archive(bench: Any) -> None:
    (bench.folder / "delta.tar").mkdir()
    with pytest.raises(DiffahError) as caught:
        bench.rebuild()
    assert caught.value.exit_code == 2
    shutil.rmtree(bench.folder / "delta.tar")
    with pytest.raises(DiffahError) as caught:
        bench.rebuild()
    assert caught.value.code == "not-found"
