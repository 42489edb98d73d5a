from __future__ import annotations

from pathlib import Path

import pytest

from prefect_diffah.engine.errors import AccessDenied, InvalidOptions
from prefect_diffah.engine.registry.hosts import Endpoint, RegistriesConf

CONF = """
unqualified-search-registries = ["docker.io"]

[[registry]]
location = "plain.test"
insecure = true

[[registry]]
prefix = "r.test/team"
location = "new.test/old-team"
[[registry.mirror]]
location = "m1.test/cache"
insecure = true
[[registry.mirror]]
location = "m2.test"
pull-from-mirror = "digest-only"
[[registry.mirror]]
location = "m3.test"
pull-from-mirror = "tag-only"

[[registry]]
prefix = "r.test/team/special"
location = "special.test/x"

[[registry]]
prefix = "digests.test"
location = "digests.test"
mirror-by-digest-only = true
[[registry.mirror]]
location = "m4.test"

[[registry]]
prefix = "*.wild.test"
location = "tame.test/all"

[[registry]]
location = "docker.io"
[[registry.mirror]]
location = "hub-cache.test"

[[registry]]
location = "bad.test"
blocked = true
"""


@pytest.fixture
def conf(tmp_path: Path) -> RegistriesConf:
    (tmp_path / "r.conf").write_text(CONF)
    return RegistriesConf([tmp_path / "r.conf"])


def places(conf: RegistriesConf, name: str, *, by_digest: bool = False) -> list[str]:
    return [f"{place.host}/{place.repository}" for place in conf.for_reading(name, by_digest=by_digest)]


@pytest.mark.parametrize(
    ("name", "tagged", "digested"),
    [
        ("other.test/app", ["other.test/app"], ["other.test/app"]),
        (
            "r.test/team/app",
            ["m1.test/cache/app", "m3.test/app", "new.test/old-team/app"],
            ["m1.test/cache/app", "m2.test/app", "new.test/old-team/app"],
        ),
        ("r.test/teams/app", ["r.test/teams/app"], ["r.test/teams/app"]),
        ("r.test/team/special/app", ["special.test/x/app"], ["special.test/x/app"]),
        ("digests.test/app", ["digests.test/app"], ["m4.test/app", "digests.test/app"]),
        ("a.wild.test/app", ["tame.test/all/app"], ["tame.test/all/app"]),
        ("wild.test/app", ["wild.test/app"], ["wild.test/app"]),
        (
            "docker.io/library/debian",
            ["hub-cache.test/library/debian", "docker.io/library/debian"],
            ["hub-cache.test/library/debian", "docker.io/library/debian"],
        ),
        ("plain.test:5000/app", ["plain.test:5000/app"], ["plain.test:5000/app"]),
    ],
)
def test_where_images_are_read_from(conf: RegistriesConf, name: str, tagged: list[str], digested: list[str]) -> None:
    assert places(conf, name) == tagged
    assert places(conf, name, by_digest=True) == digested


def test_each_place_has_its_own_trust(conf: RegistriesConf) -> None:
    assert [(p.insecure, p.mirror) for p in conf.for_reading("r.test/team/app", by_digest=False)] == [(True, True), (False, True), (False, False)]
    assert conf.for_reading("plain.test/app", by_digest=False) == [Endpoint("plain.test", "app", insecure=True)]


def test_writing_is_neither_mirrored_nor_rewritten(conf: RegistriesConf) -> None:
    assert conf.for_writing("r.test/team/app") == Endpoint("r.test", "team/app")
    assert conf.for_writing("plain.test/app") == Endpoint("plain.test", "app", insecure=True)


def test_blocked_registries_are_refused(conf: RegistriesConf) -> None:
    for call in (lambda: conf.for_reading("bad.test/app", by_digest=False), lambda: conf.for_writing("bad.test/app")):
        with pytest.raises(AccessDenied, match=r"bad\.test/app is blocked"):
            call()


def test_a_later_file_replaces_an_entry_whole(tmp_path: Path) -> None:
    (tmp_path / "1.conf").write_text('[[registry]]\nlocation = "r.test"\ninsecure = true\n[[registry]]\nlocation = "kept.test"\ninsecure = true\n')
    (tmp_path / "2.conf").write_text('[[registry]]\nprefix = "r.test"\nlocation = "s.test"\n')
    conf = RegistriesConf([tmp_path / "1.conf", tmp_path / "2.conf"])
    assert conf.for_reading("r.test/app", by_digest=False) == [Endpoint("s.test", "app")]
    assert conf.for_writing("kept.test/app").insecure


def insecure(name: str) -> bool:
    return RegistriesConf.load().for_writing(f"{name}.test/app").insecure


def entry(path: Path, name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'[[registry]]\nlocation = "{name}.test"\ninsecure = true\n')


def test_files_are_found_as_containers_finds_them(home: Path, registries_conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry(registries_conf, "chosen")
    entry(home / ".config/containers/registries.conf", "own")
    entry(home / ".config/containers/registries.conf.d/a.conf", "drop-in")
    entry(home / ".config/containers/registries.conf.d/a.txt", "ignored")
    assert [insecure(name) for name in ("chosen", "own", "drop-in", "ignored")] == [True, False, True, False]
    monkeypatch.delenv("CONTAINERS_REGISTRIES_CONF")
    assert [insecure(name) for name in ("chosen", "own", "drop-in", "ignored")] == [False, True, True, False]


def test_a_file_that_is_asked_for_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", "/no/such/registries.conf")
    with pytest.raises(InvalidOptions, match=r"/no/such/registries\.conf"):
        RegistriesConf.load()


@pytest.mark.parametrize(
    "text",
    [
        "not toml",
        "[[registry]]\ninsecure = true",
        '[[registry]]\nlocation = "r.test"\nblocked = 7',
        '[[registry]]\nlocation = "r.test"\n[[registry.mirror]]\npull-from-mirror = "x"',
        '[registries.search]\nregistries = ["docker.io"]\n[registries.insecure]\nregistries = ["r.test"]',
        '[registries.block]\nregistries = ["r.test"]',
    ],
)
def test_broken_files_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "broken.conf").write_text(text)
    with pytest.raises(InvalidOptions, match=r"broken\.conf"):
        RegistriesConf([tmp_path / "broken.conf"])


def test_version_1_may_say_where_to_search(tmp_path: Path) -> None:
    (tmp_path / "r.conf").write_text('[registries.search]\nregistries = ["docker.io"]\n[registries.insecure]\nregistries = []\n')
    assert RegistriesConf([tmp_path / "r.conf"]).for_reading("r.test/app", by_digest=False) == [Endpoint("r.test", "app")]


def test_a_location_must_be_a_place(tmp_path: Path) -> None:
    (tmp_path / "r.conf").write_text('[[registry]]\nprefix = "r.test"\nlocation = "https://r.test"\n')
    with pytest.raises(InvalidOptions, match="not host/repository"):
        RegistriesConf([tmp_path / "r.conf"]).for_reading("r.test/app", by_digest=False)
