from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_diffah.engine.errors import DiffahError, InvalidReference, Unsupported
from prefect_diffah.engine.oci import Digest, Reference

SHA = "sha256:" + "a" * 64
SHA512 = "sha512:" + "b" * 128


@pytest.mark.parametrize(
    ("text", "where", "tag", "digest"),
    [
        ("docker://registry.example.com/app:v2", "registry.example.com/app", "v2", None),
        ("docker://registry.example.com/team/app", "registry.example.com/team/app", "latest", None),
        (f"docker://host:5000/app@{SHA}", "host:5000/app", None, SHA),
        (f"docker://host:5000/app:v1@{SHA512}", "host:5000/app", "v1", SHA512),
        ("docker://localhost/app", "localhost/app", "latest", None),
        ("docker://[::1]:5000/app:v1", "[::1]:5000/app", "v1", None),
        ("docker://app", "docker.io/library/app", "latest", None),
        ("docker://team/app:v1", "docker.io/team/app", "v1", None),
        ("docker://docker.io/app", "docker.io/library/app", "latest", None),
        ("docker://index.docker.io/team/app", "docker.io/team/app", "latest", None),
        ("docker://host.io/a/b_c/d.e/f--g/h__i:T_.-", "host.io/a/b_c/d.e/f--g/h__i", "T_.-", None),
    ],
)
def test_registries(text: str, where: str, tag: str | None, digest: str | None) -> None:
    reference = Reference.parse(text)
    assert (reference.transport, reference.where, reference.tag, reference.digest) == ("docker", where, tag, digest)
    assert f"{reference.registry}/{reference.repository}" == where
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    ("text", "transport", "where", "tag", "digest"),
    [
        ("oci:/a/b", "oci", "/a/b", None, None),
        ("oci:/a/b:v1", "oci", "/a/b", "v1", None),
        (f"oci:b:v1@{SHA}", "oci", "b", "v1", SHA),
        (f"oci-archive:a.tar@{SHA}", "oci-archive", "a.tar", None, SHA),
        ("oci-archive:s3://bucket/app.tar:v2", "oci-archive", "s3://bucket/app.tar", "v2", None),
        ("oci-archive:s3://bucket/app.tar", "oci-archive", "s3://bucket/app.tar", None, None),
        ("docker-archive:a.tar:host:5000/team/app:v2", "docker-archive", "a.tar", "host:5000/team/app:v2", None),
        ("docker-archive:a.tar:app", "docker-archive", "a.tar", "app", None),
        ("dir:/a:b@c", "dir", "/a:b@c", None, None),
        ("dir:memory://x/y", "dir", "memory://x/y", None, None),
        ("oci:a@b", "oci", "a@b", None, None),
        ("oci:a:", "oci", "a", None, None),
    ],
)
def test_files(text: str, transport: str, where: str, tag: str | None, digest: str | None) -> None:
    reference = Reference.parse(text)
    assert (reference.transport, reference.where, reference.tag, reference.digest) == (transport, where, tag, digest)
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("registry.example.com/app:v2", "docker://registry.example.com/app:v2"),
        ("app", "docker://app"),
        ("docke://host/app", "docker://host/app"),
        ("docker:host/app", "docker://host/app"),
        ("docker:/host/app", "docker://host/app"),
        ("oci-archiv:a.tar", "oci-archive:a.tar"),
        ("https://host/app", "docker://host/app"),
        ("./app.tar", "oci-archive:./app.tar"),
        ("app.tar", "docker-archive:app.tar"),
        ("oci:", "oci:PATH"),
        ("dir:", "dir:PATH"),
        ("oci-archive:s3://", "oci-archive:PATH"),
    ],
)
def test_a_missing_or_misspelt_prefix_gets_a_hint(text: str, hint: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        Reference.parse(text)
    assert hint in caught.value.next_action


@pytest.mark.parametrize(
    "text",
    [
        "",
        "docker://",
        "docker:///app",
        "docker://host.io/",
        "docker://host.io/App",
        "docker://host.io/app:",
        "docker://host.io/app:-x",
        "docker://host.io/app:" + "x" * 129,
        "docker://host.io/a//b",
        "docker://host.io/../b",
        "docker://host.io/a/./b",
        "docker://-host.io/app",
        "docker://ho st.io/app",
        "docker://user:password@host.io/app",
        "docker://host.io/app@sha256:abc",
        f"docker://host.io/app@{SHA.upper()}",
        "docker://host.io/" + "a" * 256,
        "docker://host.io:port/app",
        "oci:a\nb",
        "oci-archive:a@sha256:abc",
    ],
)
def test_what_does_not_parse(text: str) -> None:
    with pytest.raises(InvalidReference):
        Reference.parse(text)


@pytest.mark.parametrize("text", ["containers-storage:app", "docker-daemon:app:v1"])
def test_transports_of_others(text: str) -> None:
    with pytest.raises(Unsupported) as caught:
        Reference.parse(text)
    assert f"skopeo copy {text}" in caught.value.next_action


@given(st.text(max_size=60))
def test_any_text_parses_or_is_refused_by_us(text: str) -> None:
    for prefix in ("", "docker://", "oci:", "docker-archive:", "dir:"):
        try:
            reference = Reference.parse(prefix + text)
        except DiffahError:
            continue
        assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    ("text", "transport", "where"),
    [("./a.tar", "oci-archive", "./a.tar"), ("s3://bucket/a:b.tar", "oci", "s3://bucket/a:b.tar"), ("oci:a:v1", "oci", "a"), ("c:\\x", "dir", "c:\\x")],
)
def test_where_a_plain_path_is_allowed(text: str, transport: str, where: str) -> None:
    reference = Reference.of_file(text, "dir" if transport == "dir" else "oci-archive" if transport == "oci-archive" else "oci")
    assert (reference.transport, reference.where) == (transport, where)


def test_an_empty_path() -> None:
    with pytest.raises(InvalidReference, match="empty"):
        Reference.of_file("", "oci")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("docker://secret.example.com:5000/team/app:v2", "app:v2"),
        (f"docker://secret.example.com/app@{SHA}", "app"),
        ("oci:/home/somebody/App Layout:v2", "app-layout:v2"),
        ("oci-archive:/home/somebody/app_v1.tar.gz", "app-v1"),
        ("docker-archive:/x/a.tar:secret.example.com/team/app:v2", "app:v2"),
        ("dir:/home/somebody/app/", "app"),
        ("dir:/", "image"),
    ],
)
def test_the_short_name_tells_no_host_and_no_folder(text: str, name: str) -> None:
    assert Reference.parse(text).short_name == name


def test_digests_are_digests() -> None:
    assert type(Reference.parse(f"oci:a@{SHA}").digest) is Digest
