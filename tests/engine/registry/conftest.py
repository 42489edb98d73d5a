"""A machine without container configuration, and time that does not pass."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from prefect_diffah.engine.registry import close_all
from prefect_diffah.engine.testing.faults import FakeTime


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The home folder: empty. No variable of this machine has a say."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in ("REGISTRY_AUTH_FILE", "XDG_CONFIG_HOME", "DOCKER_CONFIG", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    (tmp_path / "registries.conf").touch()
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(tmp_path / "registries.conf"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("HOME", str(folder))
    yield folder
    close_all()


@pytest.fixture
def registries_conf(tmp_path: Path) -> Path:
    """The file that registries.conf is read from."""
    return tmp_path / "registries.conf"


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@dataclass(frozen=True)
class Certificates:
    """A throw-away authority, and what it signed."""

    folder: Path
    """``ca.crt``, ``server.cert``, ``server.key``, ``client.cert``, ``client.key``."""

    def server(self, *, ask_for_client: bool = False) -> ssl.SSLContext:
        """Settings of a server at 127.0.0.1."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "server.cert", self.folder / "server.key")
        if ask_for_client:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.folder / "ca.crt")
        return context


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    folder = tmp_path_factory.mktemp("certificates")
    now = datetime.datetime.now(datetime.UTC)
    names = {who: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"test {who}")]) for who in ("ca", "server", "client")}
    keys = {who: ec.generate_private_key(ec.SECP256R1()) for who in names}
    for who, name in names.items():
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(names["ca"])
            .public_key(keys[who].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=who == "ca", path_length=None), critical=True)
        )
        if who == "server":
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        pem = builder.sign(keys["ca"], hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        (folder / f"{who}.{'crt' if who == 'ca' else 'cert'}").write_bytes(pem)
        if who != "ca":
            key = keys[who].private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            (folder / f"{who}.key").write_bytes(key)
    return Certificates(folder)
