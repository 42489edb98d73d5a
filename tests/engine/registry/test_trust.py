from __future__ import annotations

import json
import shutil
import ssl
import sys
from pathlib import Path
from typing import Any

import pytest

from prefect_diffah.engine.access import Access
from prefect_diffah.engine.errors import InvalidOptions, NetworkError, NotFound, TLSUntrusted
from prefect_diffah.engine.registry import connect_for_reading
from prefect_diffah.engine.registry.trust import certificate_folder, tls_context
from prefect_diffah.engine.testing.faults import FakeTime, Fault
from prefect_diffah.engine.testing.registry import InProcessRegistry

INSECURE = '[[registry]]\nlocation = "{host}"\ninsecure = true\n'


def ask(registry: InProcessRegistry, time: FakeTime, access: Access | None = None) -> None:
    """One request that gets through where it ends in NotFound."""
    connect_for_reading(f"{registry.host}/app", access or Access(), patience=time.patience())[0].manifest("v1")


def authorities(certificates: Any, folder: Path) -> Path:
    folder.mkdir(parents=True)
    shutil.copy(certificates.folder / "ca.crt", folder)
    return folder


def test_an_unknown_authority_is_not_trusted_and_not_asked_again(certificates: Any, time: FakeTime) -> None:
    with InProcessRegistry(tls=certificates.server()) as registry:
        for access in (Access(), Access(tls_verify=True)):
            with pytest.raises(TLSUntrusted, match="not trusted") as caught:
                ask(registry, time, access)
            assert "--cert-dir" in caught.value.next_action
        assert registry.requests == []
        assert time.pauses == []


def test_cert_dir_vouches(certificates: Any, time: FakeTime, tmp_path: Path) -> None:
    folder = authorities(certificates, tmp_path / "certs")
    with InProcessRegistry(tls=certificates.server()) as registry, pytest.raises(NotFound):
        ask(registry, time, Access(cert_dir=str(folder), tls_verify=True))


def test_certs_d_vouches_for_its_host_and_port(certificates: Any, time: FakeTime, home: Path) -> None:
    with InProcessRegistry(tls=certificates.server()) as registry, InProcessRegistry(tls=certificates.server()) as other:
        authorities(certificates, home / ".config/containers/certs.d" / registry.host)
        with pytest.raises(NotFound):
            ask(registry, time)
        with pytest.raises(TLSUntrusted):
            ask(other, time)


def test_a_certificate_for_another_name_is_not_trusted(certificates: Any, time: FakeTime, tmp_path: Path) -> None:
    folder = authorities(certificates, tmp_path / "certs")
    with InProcessRegistry(tls=certificates.server()) as registry:
        name = registry.host.replace("127.0.0.1", "localhost")
        with pytest.raises(TLSUntrusted, match="localhost"):
            connect_for_reading(f"{name}/app", Access(cert_dir=str(folder)), patience=time.patience())[0].manifest("v1")


def test_any_certificate_will_do_where_that_is_accepted(certificates: Any, time: FakeTime, registries_conf: Path) -> None:
    with InProcessRegistry(tls=certificates.server()) as registry:
        with pytest.raises(NotFound):
            ask(registry, time, Access(tls_verify=False))
        registries_conf.write_text(INSECURE.format(host=registry.host))
        with pytest.raises(NotFound):
            ask(registry, time)
        with pytest.raises(TLSUntrusted):
            ask(registry, time, Access(tls_verify=True))


def test_plain_http_needs_to_be_accepted(time: FakeTime, registries_conf: Path) -> None:
    with InProcessRegistry() as registry:
        for access in (Access(), Access(tls_verify=True)):
            with pytest.raises(NetworkError, match="does not speak TLS") as caught:
                ask(registry, time, access)
            assert "--tls-verify=false" in caught.value.next_action
            assert not caught.value.transient
        assert time.pauses == []
        assert registry.requests == []
        with pytest.raises(NotFound):
            ask(registry, time, Access(tls_verify=False))
        registries_conf.write_text(INSECURE.format(host=registry.host))
        with pytest.raises(NotFound):
            ask(registry, time)


def test_what_was_wrong_with_https_is_told_where_plain_http_does_not_work_either(certificates: Any, time: FakeTime) -> None:
    settings = certificates.server(ask_for_client=True)
    # in newer versions the client learns only later that it was refused
    settings.maximum_version = ssl.TLSVersion.TLSv1_2
    with InProcessRegistry(tls=settings) as registry, pytest.raises(TLSUntrusted, match="https://"):
        ask(registry, time, Access(tls_verify=False))
    assert time.pauses == []


def test_a_plain_registry_that_breaks_once_is_asked_again(time: FakeTime) -> None:
    with InProcessRegistry(faults=(Fault(path="/v2/$", hang_up=True, times=1),)) as registry, pytest.raises(NotFound):
        ask(registry, time, Access(tls_verify=False))
    assert len(time.pauses) == 1


def test_client_certificates_are_shown(certificates: Any, time: FakeTime, tmp_path: Path) -> None:
    folder = authorities(certificates, tmp_path / "certs")
    with InProcessRegistry(tls=certificates.server(ask_for_client=True)) as registry:
        with pytest.raises((TLSUntrusted, NetworkError)):
            ask(registry, time, Access(cert_dir=str(folder)))
        for name in ("client.cert", "client.key"):
            shutil.copy(certificates.folder / name, folder)
        connect = Access(cert_dir=str(folder), tls_verify=True)
        with pytest.raises(NotFound):
            ask(registry, time, connect)


def test_the_first_certs_d_folder_counts(home: Path) -> None:
    assert certificate_folder("no.such.host.test:5000") is None
    folder = home / ".config/containers/certs.d/r.test:5000"
    folder.mkdir(parents=True)
    assert certificate_folder("r.test:5000") == folder
    assert certificate_folder("r.test") is None


@pytest.mark.parametrize("name", ["client.cert", "client.key"])
def test_half_a_pair_is_refused(certificates: Any, tmp_path: Path, name: str) -> None:
    shutil.copy(certificates.folder / name, tmp_path)
    with pytest.raises(InvalidOptions, match=name):
        tls_context(tmp_path, verify=True)


@pytest.mark.parametrize("name", ["ca.crt", "client.cert"])
def test_what_is_no_certificate_is_refused(certificates: Any, tmp_path: Path, name: str) -> None:
    shutil.copy(certificates.folder / "client.key", tmp_path)
    shutil.copy(certificates.folder / "client.cert", tmp_path)
    (tmp_path / name).write_text("nonsense")
    with pytest.raises(InvalidOptions, match=name):
        tls_context(tmp_path, verify=True)


def test_a_folder_that_is_asked_for_must_exist() -> None:
    with pytest.raises(InvalidOptions, match="/no/such/folder"):
        tls_context(Path("/no/such/folder"), verify=True)


def test_proxies_of_the_environment_are_used(time: FakeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    with InProcessRegistry() as registry:
        monkeypatch.setenv("HTTP_PROXY", registry.url)
        # it cannot tunnel, so that plain HTTP is what is left
        monkeypatch.setenv("HTTPS_PROXY", registry.url)
        with pytest.raises(NotFound):
            connect_for_reading("nowhere.invalid/app", Access(tls_verify=False), patience=time.patience())[0].manifest("v1")
        assert ("GET", "http://nowhere.invalid/v2/app/manifests/v1", 404) in registry.requests


@pytest.mark.parametrize("address", ["socks5://me:SECRET@127.0.0.1:1", "ftp://me:SECRET@127.0.0.1:1", "http://me:SECRET@[::1"])
def test_a_proxy_that_cannot_be_used_is_told_by_its_variable(time: FakeTime, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", address)
    # as where the optional package for such proxies is missing
    monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(InvalidOptions, match="HTTPS_PROXY") as caught:
        connect_for_reading("r.test/app", patience=time.patience())
    assert "httpx[socks]" in caught.value.next_action
    assert "SECRET" not in json.dumps(caught.value.as_json())


def test_no_proxy_spares_hosts(time: FakeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with InProcessRegistry() as registry, pytest.raises(NotFound):
        ask(registry, time, Access(tls_verify=False))
