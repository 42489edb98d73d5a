from __future__ import annotations

import hashlib
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from prefect_diffah.engine.errors import DigestMismatch, InvalidReference, SizeMismatch
from prefect_diffah.engine.oci import Digest, verified

HEX = "0123456789abcdef" * 4
algorithms = st.sampled_from(["sha256", "sha512"])


@given(st.binary(max_size=100), algorithms)
def test_of(data: bytes, algorithm: str) -> None:
    digest = Digest.of(data, algorithm)
    assert digest == f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
    assert (digest.algorithm, digest.hex) == tuple(digest.split(":"))
    assert digest.short == digest.hex[:12]
    assert digest.matches(data)
    assert not digest.matches(data + b"x")
    assert Digest(str(digest)) == digest
    assert type(pickle.loads(pickle.dumps(digest))) is Digest
    assert json.loads(json.dumps(digest)) == digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        HEX,
        f"sha256:{HEX[:-1]}",
        f"sha256:{HEX}0",
        f"sha256:{HEX.upper()}",
        f"SHA256:{HEX}",
        f"sha512:{HEX}",
        f"sha1:{HEX[:40]}",
        f"md5:{HEX[:32]}",
        f" sha256:{HEX}",
        f"sha256:{HEX}\n",
        f"sha256:{HEX[:-1]}g",
        f"sha256:{HEX[:-1]}\u0661",
        "sha256:../../../../etc/passwd".ljust(71, "0"),
        f"sha256:/{HEX[1:]}",
        None,
        7,
    ],
)
def test_anything_else_is_refused(text: object) -> None:
    with pytest.raises(InvalidReference, match="not a digest"):
        Digest(text)  # type: ignore[arg-type]


@given(st.text(max_size=90))
def test_no_text_passes_that_is_no_safe_path_component(text: str) -> None:
    try:
        digest = Digest(text)
    except InvalidReference:
        return
    assert digest.hex.isalnum()


def test_in_models() -> None:
    adapter = TypeAdapter(Digest)
    parsed = adapter.validate_json(f'"sha256:{HEX}"')
    assert type(parsed) is Digest
    assert adapter.dump_json(parsed) == f'"sha256:{HEX}"'.encode()
    with pytest.raises(ValidationError, match="not a digest"):
        adapter.validate_python("sha256:short")


@given(st.binary(max_size=60), algorithms, st.integers(1, 10))
def test_what_is_right_passes_unchanged(data: bytes, algorithm: str, step: int) -> None:
    chunks = [data[at : at + step] for at in range(0, len(data), step)]
    assert list(verified(chunks, Digest.of(data, algorithm), len(data))) == chunks


@given(st.binary(min_size=1, max_size=60), st.data())
def test_an_altered_byte(data: bytes, draw: st.DataObject) -> None:
    at = draw.draw(st.integers(0, len(data) - 1))
    altered = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    with pytest.raises(DigestMismatch) as caught:
        list(verified([altered], Digest.of(data), len(data)))
    assert caught.value.details["actual"] == Digest.of(altered)


@given(st.binary(min_size=1, max_size=60), st.integers(1, 9), st.integers(1, 20))
def test_never_more_than_declared(data: bytes, step: int, less: int) -> None:
    size = max(0, len(data) - less)
    passed: list[bytes] = []
    with pytest.raises(SizeMismatch, match="longer"):
        passed.extend(verified([data[at : at + step] for at in range(0, len(data), step)], Digest.of(data), size))
    assert sum(map(len, passed)) <= size


def test_an_endless_source_ends() -> None:
    def endless():  # type: ignore[no-untyped-def]
        while True:
            yield b"x" * 1000

    with pytest.raises(SizeMismatch):
        list(verified(endless(), Digest.of(b""), 5000))


def test_too_short() -> None:
    with pytest.raises(SizeMismatch, match="ends after 2 of 3") as caught:
        list(verified([b"ab"], Digest.of(b"abc"), 3, "layer"))
    assert caught.value.message.startswith("layer ")
