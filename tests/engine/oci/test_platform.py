from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_diffah.engine.errors import InvalidReference
from prefect_diffah.engine.oci import Platform

platforms = st.builds(
    Platform,
    os=st.sampled_from(["linux", "Linux", "windows", "darwin", "macos"]),
    architecture=st.sampled_from(["amd64", "x86_64", "arm64", "aarch64", "arm", "armhf", "armel", "386", "i386", "riscv64", "s390x"]),
    variant=st.sampled_from(["", "v1", "v2", "v3", "v5", "v6", "v7", "v8", "v9", "8"]),
)


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("linux/amd64", "linux/amd64"),
        ("Linux/x86_64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm64/v9", "linux/arm64/v9"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/7", "linux/arm/v7"),
        ("linux/arm/5", "linux/arm/v5"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/i386", "linux/386"),
        ("macos/arm64", "darwin/arm64"),
        ("linux/riscv64", "linux/riscv64"),
    ],
)
def test_normalized_as_containerd_does(text: str, normalized: str) -> None:
    assert str(Platform.parse(text)) == normalized


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "linux/amd64/", "linux/amd64/v2/x", "linux amd64", "linux/amd64\n", "all", "linux/am d64"])
def test_what_does_not_parse(text: str) -> None:
    with pytest.raises(InvalidReference, match="not a platform"):
        Platform.parse(text)


@pytest.mark.parametrize(
    ("wanted", "offered", "best"),
    [
        ("linux/amd64", ["linux/386", "linux/amd64"], "linux/amd64"),
        ("linux/amd64", ["linux/386"], "linux/386"),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], "linux/amd64/v2"),
        ("linux/amd64", ["linux/amd64/v2"], None),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"], "linux/arm/v6"),
        ("linux/arm/v6", ["linux/arm/v7"], None),
        ("linux/arm64", ["linux/arm/v7", "linux/arm/v6"], "linux/arm/v7"),
        ("linux/arm64/v9", ["linux/arm64", "linux/arm/v7"], "linux/arm64"),
        ("linux/arm64", ["linux/arm64/v9"], None),
        ("linux/arm64", ["linux/amd64", "windows/arm64"], None),
        ("linux/386", ["linux/amd64"], None),
    ],
)
def test_matched_as_containerd_does(wanted: str, offered: list[str], best: str | None) -> None:
    platform = Platform.parse(wanted)
    ranked = [(rank, name) for name in offered if (rank := platform.rank(Platform.parse(name))) is not None]
    assert (min(ranked)[1] if ranked else None) == best


@given(platforms)
def test_normalizing_twice_is_normalizing_once(platform: Platform) -> None:
    once = platform.normalized()
    assert once.normalized() == once
    assert Platform.parse(str(once)) == once


@given(platforms)
def test_a_platform_suits_itself_best(platform: Platform) -> None:
    assert platform.rank(platform) == 0
    assert len(set(map(str, platform.accepted()))) == len(platform.accepted())


def test_os_version_counts_only_where_it_is_asked_for() -> None:
    offered = Platform(os="windows", architecture="amd64", os_version="10.0.1")
    assert Platform.parse("windows/amd64").rank(offered) == 0
    assert Platform(os="windows", architecture="amd64", os_version="10.0.1").rank(offered) == 0
    assert Platform(os="windows", architecture="amd64", os_version="10.0.2").rank(offered) is None


def test_as_json() -> None:
    data = {"os": "windows", "architecture": "amd64", "os.version": "10.0.1"}
    platform = Platform.model_validate(data)
    assert platform.os_version == "10.0.1"
    assert {key: value for key, value in platform.model_dump().items() if value} == data
