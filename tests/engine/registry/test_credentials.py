from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from prefect_diffah.engine.access import Access
from prefect_diffah.engine.errors import AccessDenied, InvalidOptions
from prefect_diffah.engine.registry.credentials import Credentials, find_credentials


def entry(user: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:pass:{user}".encode()).decode()}


def write(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def user_for(name: str, access: Access | None = None) -> str | None:
    registry, _, repository = name.partition("/")
    found = find_credentials(registry, repository, access or Access())
    if found is not None and found.identity_token is None:
        assert found.password == f"pass:{found.username}"
    return found.username if found else None


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``helper(name, shell)`` installs a credential helper."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def install(name: str, script: str) -> None:
        path = folder / f"docker-credential-{name}"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return install


def test_files_are_read_in_order(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert user_for("r.test/app") is None
    docker = write(home / ".docker/config.json", {"auths": {"r.test": entry("docker"), "only.test": entry("docker")}})
    assert user_for("r.test/app") == "docker"
    write(home / ".config/containers/auth.json", {"auths": {"r.test": entry("config")}})
    assert user_for("r.test/app") == "config"
    write(Path(os.environ["XDG_RUNTIME_DIR"], "containers/auth.json"), {"auths": {"r.test": entry("runtime")}})
    assert user_for("r.test/app") == "runtime"
    assert user_for("only.test/app") == "docker"
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(write(tmp_path / "chosen.json", {"auths": {"r.test": entry("chosen")}})))
    assert user_for("r.test/app") == "chosen"
    assert user_for("only.test/app") is None
    assert user_for("r.test/app", Access(authfile=str(docker))) == "docker"


def test_docker_config_moves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "elsewhere/config.json", {"auths": {"r.test": entry("moved")}})
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "elsewhere"))
    assert user_for("r.test/app") == "moved"


def test_what_is_given_beats_files(tmp_path: Path) -> None:
    path = write(tmp_path / "auth.json", {"auths": {"r.test": entry("file")}})
    given = Access(username="given", password=SecretStr("pass:given"), authfile=str(path))
    assert user_for("r.test/app", given) == "given"
    assert user_for("r.test/app", Access(anonymous=True, authfile=str(path))) is None


@pytest.mark.parametrize(
    ("name", "user"),
    [
        ("r.test/team/app", "app"),
        ("r.test/team/app/deeper", "app"),
        ("r.test/team/other", "team"),
        ("r.test/teams", "host"),
        ("r.test:5000/team/app", "port"),
        ("elsewhere.test/app", None),
        ("docker.io/library/debian", "hub"),
        ("old.test/app", "url"),
    ],
)
def test_the_narrowest_key_wins(tmp_path: Path, name: str, user: str | None) -> None:
    auths = {
        "r.test/team/app": entry("app"),
        "r.test/team": entry("team"),
        "r.test": entry("host"),
        "r.test:5000": entry("port"),
        "https://index.docker.io/v1/": entry("hub"),
        "https://old.test/v2/": entry("url"),
    }
    assert user_for(name, Access(authfile=str(write(tmp_path / "auth.json", {"auths": auths})))) == user


def test_an_exact_hub_key_beats_the_old_one(tmp_path: Path) -> None:
    path = write(tmp_path / "auth.json", {"auths": {"docker.io": entry("new"), "https://index.docker.io/v1/": entry("old")}})
    assert user_for("docker.io/library/debian", Access(authfile=str(path))) == "new"


def test_identity_tokens(tmp_path: Path) -> None:
    path = write(tmp_path / "auth.json", {"auths": {"r.test": {"auth": base64.b64encode(b"00000000-0000:").decode(), "identitytoken": "refresh"}}})
    assert find_credentials("r.test", "app", Access(authfile=str(path))) == Credentials("00000000-0000", "", "refresh")


def test_helpers_are_asked_by_host(tmp_path: Path, helper: Any) -> None:
    helper("good", 'read server; echo "{\\"ServerURL\\": \\"$server\\", \\"Username\\": \\"$server\\", \\"Secret\\": \\"pass:$server\\"}"')
    document = {"credHelpers": {"r.test": "good", "docker.io": "good"}, "auths": {"r.test": entry("file"), "other.test": entry("file")}}
    access = Access(authfile=str(write(tmp_path / "auth.json", document)))
    assert user_for("r.test/app", access) == "r.test"
    assert user_for("other.test/app", access) == "file"
    assert user_for("docker.io/library/debian", access) == "https://index.docker.io/v1/"


def test_a_helper_may_hold_an_identity_token(tmp_path: Path, helper: Any) -> None:
    helper("token", """echo '{"Username": "<token>", "Secret": "refresh"}'""")
    access = Access(authfile=str(write(tmp_path / "auth.json", {"credHelpers": {"r.test": "token"}})))
    found = find_credentials("r.test", "app", access)
    assert found == Credentials("", "", "refresh")


def test_a_helper_may_know_nothing(tmp_path: Path, helper: Any) -> None:
    helper("empty", "echo 'credentials not found in native keychain'; exit 1")
    assert user_for("r.test/app", Access(authfile=str(write(tmp_path / "auth.json", {"credHelpers": {"r.test": "empty"}})))) is None


@pytest.mark.parametrize("script", ["echo oops-SECRET; exit 3", "echo 'SECRET, no JSON'", """echo '{"Username": "SECRET"}'"""])
def test_a_helper_that_fails_is_named_and_its_words_are_not_repeated(tmp_path: Path, helper: Any, script: str) -> None:
    helper("bad", script)
    access = Access(authfile=str(write(tmp_path / "auth.json", {"credHelpers": {"r.test": "bad"}})))
    with pytest.raises(AccessDenied, match="docker-credential-bad") as caught:
        user_for("r.test/app", access)
    assert "SECRET" not in json.dumps(caught.value.as_json())


@pytest.mark.parametrize("name", ["missing", "../../bin/sh", "a b"])
def test_only_installed_helpers_are_run(tmp_path: Path, name: str) -> None:
    with pytest.raises(AccessDenied, match="not installed"):
        user_for("r.test/app", Access(authfile=str(write(tmp_path / "auth.json", {"credHelpers": {"r.test": name}}))))


def test_a_helper_without_a_name_means_the_file(tmp_path: Path) -> None:
    document = {"credHelpers": {"r.test": ""}, "auths": {"r.test": entry("file")}}
    assert user_for("r.test/app", Access(authfile=str(write(tmp_path / "auth.json", document)))) == "file"


def test_the_store_serves_where_no_entry_does(tmp_path: Path, helper: Any) -> None:
    helper("store", """echo '{"Username": "store", "Secret": "pass:store"}'""")
    access = Access(authfile=str(write(tmp_path / "auth.json", {"credsStore": "store", "auths": {"r.test": {}, "file.test": entry("file")}})))
    assert user_for("r.test/app", access) == "store"
    assert user_for("file.test/app", access) == "file"


def test_a_store_that_fails_does_not_stop_anonymous_pulls(tmp_path: Path) -> None:
    assert user_for("r.test/app", Access(authfile=str(write(tmp_path / "auth.json", {"credsStore": "missing"})))) is None


@pytest.mark.parametrize(
    "document", ["{not json SECRET", "[]", '{"auths": ["SECRET"]}', '{"auths": {"r.test": {"auth": "SECRET!"}}}', '{"credHelpers": "SECRET"}']
)
def test_a_broken_file_is_named_and_not_quoted(tmp_path: Path, document: str) -> None:
    path = write(tmp_path / "auth.json", document)
    with pytest.raises(InvalidOptions, match=r"auth\.json") as caught:
        user_for("r.test/app", Access(authfile=str(path)))
    assert "SECRET" not in json.dumps(caught.value.as_json())


def test_an_authfile_that_is_asked_for_must_exist() -> None:
    with pytest.raises(InvalidOptions, match="does not exist"):
        user_for("r.test/app", Access(authfile="/no/such/auth.json"))


def test_credentials_hide_their_secrets() -> None:
    assert "hush" not in repr(Credentials("user", "hush", "hush"))
