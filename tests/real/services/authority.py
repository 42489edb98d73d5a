"""A certificate authority of one test session."""

from __future__ import annotations

import base64
import datetime
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Authority:
    """Files in PEM: the authority, and a certificate it issued for this machine's loopback names."""

    ca_file: Path
    """Alone in its folder, which therefore also serves as a ``certs.d`` folder."""
    certificate: Path
    key: Path

    @property
    def cert_dir(self) -> Path:
        return self.ca_file.parent


@dataclass(frozen=True)
class Signer:
    """A key that signs tokens, and its certificate."""

    key: rsa.RSAPrivateKey
    certificate_file: Path
    x5c: str
    """The certificate as a token's header carries it (RFC 7515, section 4.1.6)."""


def make_authority(folder: Path) -> Authority:
    """A new authority below ``folder``, and a certificate for localhost and 127.0.0.1."""
    trust = folder / "certs.d"
    trust.mkdir(parents=True)
    ca_key, key = _key(), _key()
    ca = _certificate("test authority", ca_key, "test authority", ca_key, authority=True)
    server = _certificate("localhost", key, "test authority", ca_key, authority=False)
    made = Authority(ca_file=trust / "ca.crt", certificate=folder / "server.pem", key=folder / "server-key.pem")
    made.ca_file.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    made.certificate.write_bytes(server.public_bytes(serialization.Encoding.PEM))
    made.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return made


def make_signer(folder: Path) -> Signer:
    """A new signing key with a self-signed certificate in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    key = _key()
    certificate = _certificate("token issuer", key, "token issuer", key, authority=True)
    file = folder / "token-issuer.pem"
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return Signer(key=key, certificate_file=file, x5c=base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode())


def _key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _certificate(subject: str, key: rsa.RSAPrivateKey, issuer: str, issuer_key: rsa.RSAPrivateKey, *, authority: bool) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_encipherment=not authority,
                key_cert_sign=authority,
                crl_sign=authority,
                content_commitment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if not authority:
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())
