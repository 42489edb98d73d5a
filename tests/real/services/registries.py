"""Registries of the CNCF distribution, 2.8 and 3, in the set-ups that users have."""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from prefect_diffah.engine.access import Access

from .processes import serving
from .tokens import ISSUER, READER, READER_PASSWORD, SERVICE, WRITER, WRITER_PASSWORD

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from .authority import Authority, Signer
    from .objects import ObjectStore

_QUIET = {"OTEL_TRACES_EXPORTER": "none"}


@dataclass(frozen=True)
class Registry:
    """A running registry and how it is reached."""

    host: str
    """``127.0.0.1:PORT``"""
    folder: Path
    """Its state; what the judges need lies here too."""
    scheme: str = "http"
    username: str | None = None
    password: str | None = None
    reader: tuple[str, str] | None = None
    """Name and password of an account that may pull, not push."""
    ca_file: Path | None = None
    cert_dir: Path | None = None

    @property
    def access(self) -> Access:
        """What our own client needs: the account that may push, and trust."""
        return self.access_as(self.username, self.password)

    def access_as(self, username: str | None, password: str | None) -> Access:
        """The same with another account, or with none."""
        return Access.model_validate(
            {
                "username": username,
                "password": password,
                "anonymous": username is None,
                "cert_dir": str(self.cert_dir) if self.cert_dir else None,
                "tls_verify": self.scheme == "https",
            }
        )

    def reference(self, repository: str, tag: str = "v1") -> str:
        return f"docker://{self.host}/{repository}:{tag}"

    def client(self, *, trusting: bool = True) -> httpx.Client:
        """A bare HTTP client of it, without credentials; ``trusting`` its authority."""
        verify = ssl.create_default_context(cafile=self.ca_file if trusting else None)
        return httpx.Client(base_url=f"{self.scheme}://{self.host}", verify=verify, trust_env=False, timeout=60)

    def skopeo(self, side: str = "") -> list[str]:
        """skopeo's and podman's options for it; ``side`` is ``src``, ``dest`` or nothing."""
        prefix = f"--{side}-" if side else "--"
        options = [f"{prefix}tls-verify={'true' if self.scheme == 'https' else 'false'}"]
        if self.username:
            options.append(f"{prefix}creds={self.username}:{self.password}")
        if self.cert_dir:
            options.append(f"{prefix}cert-dir={self.cert_dir}")
        return options

    @property
    def environment(self) -> dict[str, str]:
        """Environment in which crane and oras can reach it."""
        config = self.folder / "docker-config"
        config.mkdir(exist_ok=True)
        login = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
        auths = {self.host: {"auth": login}} if self.username else {}
        (config / "config.json").write_text(json.dumps({"auths": auths}))
        return {"DOCKER_CONFIG": str(config), **({"SSL_CERT_FILE": str(self.ca_file)} if self.ca_file else {})}


@contextlib.contextmanager
def plain_registry(program: str, folder: Path) -> Iterator[Registry]:
    """Plain HTTP, open to everybody."""
    with _distribution(program, folder, {}) as port:
        yield Registry(host=f"127.0.0.1:{port}", folder=folder)


@contextlib.contextmanager
def basic_registry(program: str, folder: Path, htpasswd: str) -> Iterator[Registry]:
    """Basic authentication over plain HTTP; ``htpasswd`` is Apache's program."""
    file = folder.parent / "htpasswd"
    subprocess.run([htpasswd, "-cbB", file, WRITER, WRITER_PASSWORD], check=True, capture_output=True)
    with _distribution(program, folder, {"auth": {"htpasswd": {"realm": "test registry", "path": str(file)}}}) as port:
        yield Registry(host=f"127.0.0.1:{port}", folder=folder, username=WRITER, password=WRITER_PASSWORD)


@contextlib.contextmanager
def token_registry(program: str, folder: Path, realm: str, signer: Signer, tls: Authority | None = None) -> Iterator[Registry]:
    """Bearer tokens from ``realm``, signed by ``signer``; with ``tls`` over HTTPS."""
    settings: dict[str, Any] = {"auth": {"token": {"realm": realm, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": str(signer.certificate_file)}}}
    if tls:
        settings["http"] = {"tls": {"certificate": str(tls.certificate), "key": str(tls.key)}}
    with _distribution(program, folder, settings) as port:
        yield Registry(
            host=f"127.0.0.1:{port}",
            folder=folder,
            scheme="https" if tls else "http",
            username=WRITER,
            password=WRITER_PASSWORD,
            reader=(READER, READER_PASSWORD),
            ca_file=tls.ca_file if tls else None,
            cert_dir=tls.cert_dir if tls else None,
        )


@contextlib.contextmanager
def redirecting_registry(program: str, folder: Path, store: ObjectStore) -> Iterator[Registry]:
    """Plain HTTP and open; blobs lie in ``store``, and readers are sent there with 307."""
    driver = {
        "accesskey": store.key,
        "secretkey": store.secret,
        "region": store.region,
        "regionendpoint": store.endpoint,
        "bucket": store.bucket,
        "rootdirectory": f"/{folder.name}",
        "forcepathstyle": True,
        "secure": False,
    }
    with _distribution(program, folder, {"storage": {"s3": driver, "redirect": {"disable": False}}}) as port:
        yield Registry(host=f"127.0.0.1:{port}", folder=folder)


@contextlib.contextmanager
def referrers_registry(program: str, folder: Path) -> Iterator[Registry]:
    """go-containerregistry's registry in memory, which answers the referrers API."""
    with serving([program], folder) as port:
        yield Registry(host=f"127.0.0.1:{port}", folder=folder)


@contextlib.contextmanager
def _distribution(program: str, folder: Path, settings: Mapping[str, Any]) -> Iterator[int]:
    folder.mkdir(parents=True)
    storage = settings.get("storage") or {"filesystem": {"rootdirectory": str(folder / "storage")}}
    config = {
        **settings,
        "version": "0.1",
        "log": {"level": "info"},
        "storage": {**storage, "delete": {"enabled": True}},
        "http": {"addr": "127.0.0.1:0", "secret": "shared by nobody", **settings.get("http", {})},
    }
    file = folder / "config.yml"
    file.write_text(json.dumps(config))  # JSON is YAML
    with serving([program, "serve", file], folder, _QUIET) as port:
        yield port
