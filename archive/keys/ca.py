"""The built-in certificate authority: the archive's own certificate and those of its peers.

ECDSA P-256 throughout. The authority's private key is sealed in the keyring; tls/ca.pem is its certificate for everyone. If that file
is lost it is made again from the same key and name, and what was issued before still verifies; so it is in the last year of its life.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from archive.config import Config
from archive.errors import InvalidRequest, KeysUnavailable
from archive.keys import private_files
from archive.keys.keyring import Keyring

CA_LIFE = timedelta(days=3650)
SERVER_LIFE = timedelta(days=397)
PEER_LIFE = timedelta(days=730)
RENEW_BEFORE = timedelta(days=30)
RENEW_CA_BEFORE = timedelta(days=365)
"""Whoever has the earlier one has that long to get the next."""
_CLOCK_SKEW = timedelta(hours=1)
_PUBLIC = 0o644
_MACHINE_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate: SHA-256 of its DER, until when it holds, and whether it was made just now."""

    fingerprint: bytes
    not_after: datetime
    renewed: bool = True


def fingerprint(certificate: bytes) -> bytes:
    """Return SHA-256 of a DER certificate, as peers are pinned by."""
    return hashlib.sha256(certificate).digest()


def read(certificate: bytes) -> Issued:
    """Return fingerprint and end of a certificate, PEM (the first one) or DER.

    Raises:
        InvalidRequest: it is no certificate.
    """
    try:
        load = x509.load_pem_x509_certificate if b"-----BEGIN" in certificate else x509.load_der_x509_certificate
        parsed = load(certificate)
    except ValueError as error:
        message = "this is not a certificate"
        raise InvalidRequest(message, remedy="give an X.509 certificate as PEM or DER") from error
    return Issued(parsed.fingerprint(hashes.SHA256()), parsed.not_valid_after_utc, renewed=False)


def not_after(certificate: bytes) -> datetime:
    """Return until when a certificate (PEM or DER) holds.

    Raises:
        InvalidRequest: it is no certificate.
    """
    return read(certificate).not_after


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        message = f"the certificate {path} cannot be read: {error.strerror}"
        raise KeysUnavailable(message, remedy="start the archive, which makes it again") from error
    except ValueError as error:
        message = f"{path} is not a certificate"
        raise KeysUnavailable(message, remedy="remove it and start the archive, which makes it again") from error


def create(config: Config, keyring: Keyring, *, at: datetime) -> None:
    """Make the authority's key and tls/ca.pem where they are not there.

    Raises:
        KeysUnavailable: ca.pem is of another authority, or this process may not sign.
    """
    _authority(config.tls_dir, keyring, at)


def _authority(directory: Path, keyring: Keyring, at: datetime) -> x509.Certificate:
    path = directory / "ca.pem"
    entry = keyring.ca_key
    if entry is None:
        key = ec.generate_private_key(ec.SECP256R1())
        entry = keyring.set_ca_key(_private_der(key), _public_der(key.public_key()), at=at)
    if path.exists():
        certificate = _read_certificate(path)
        if _public_der(certificate.public_key()) != entry.public:  # type: ignore[arg-type] # compared as bytes only
            message = f"{path} belongs to another certificate authority"
            raise KeysUnavailable(message, remedy="remove it and start the archive, which makes it again")
        good = certificate.not_valid_before_utc <= at < certificate.not_valid_after_utc - RENEW_CA_BEFORE
        if good or not entry.secret:
            return certificate
    key = _signing_key(keyring)
    name = _ca_name(keyring)
    certificate = (
        _builder(name, name, key.public_key(), at, CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    private_files.make_directory(directory)
    private_files.write(path, certificate.public_bytes(Encoding.PEM), mode=_PUBLIC)
    return certificate


def ensure_server_certificate(config: Config, keyring: Keyring, *, at: datetime, hosts: Sequence[str] = ()) -> Issued:
    """Return the archive's certificate (tls/server.pem, tls/server.key), made anew when it is not good enough.

    It is for the hosts of the configuration, this machine's name, localhost and `hosts`, and for both sides of TLS, since the archive
    also calls its peers. Not good enough: absent, damaged, of another key or authority, for other hosts, ending within 30 days.

    Raises:
        KeysUnavailable: it must be made, but this process may not sign, or it cannot be written.
        InvalidRequest: a host is neither a name nor an address.
    """
    directory = config.tls_dir
    authority = _authority(directory, keyring, at)
    wanted = [*hosts, *_configured_hosts(config)]
    names = _names(wanted)
    found = _still_good(directory, authority, names, at)
    if found is not None:
        return found
    key, certificate = _issue(keyring, authority, wanted[0], names, at=at, life=SERVER_LIFE)
    private_files.write(directory / "server.key", _private_pem(key))
    private_files.write(directory / "server.pem", certificate.public_bytes(Encoding.PEM), mode=_PUBLIC)
    return Issued(certificate.fingerprint(hashes.SHA256()), certificate.not_valid_after_utc)


def issue_peer(
    config: Config, keyring: Keyring, name: str, directory: Path, *, at: datetime, hosts: Sequence[str] = (), replace: bool = False
) -> Issued:
    """Write key.pem (0600), cert.pem and ca.pem for a peer to `directory`; with `replace` over earlier ones.

    Raises:
        KeysUnavailable: there is a key already, it cannot be written, or this process may not sign. InvalidRequest: a host is none.
    """
    authority = _authority(config.tls_dir, keyring, at)
    key, certificate = _issue(keyring, authority, name, _names(hosts), at=at, life=PEER_LIFE)
    private_files.make_directory(directory)
    private_files.write(directory / "key.pem", _private_pem(key), replace=replace)
    private_files.write(directory / "cert.pem", certificate.public_bytes(Encoding.PEM), mode=_PUBLIC)
    private_files.write(directory / "ca.pem", authority.public_bytes(Encoding.PEM), mode=_PUBLIC)
    return Issued(certificate.fingerprint(hashes.SHA256()), certificate.not_valid_after_utc)


# ------------------------------------------------------------------------------------------------------------------------------------


def _still_good(
    directory: Path, authority: x509.Certificate, names: list[x509.GeneralName], at: datetime
) -> Issued | None:
    try:
        certificate = _read_certificate(directory / "server.pem")
        key = load_pem_private_key(private_files.read(directory / "server.key"), None)
        certificate.verify_directly_issued_by(authority)
        covered = list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (KeysUnavailable, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return None
    same_key = isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == certificate.public_key()
    if not same_key or covered != names or not certificate.not_valid_before_utc <= at < certificate.not_valid_after_utc - RENEW_BEFORE:
        return None
    return Issued(certificate.fingerprint(hashes.SHA256()), certificate.not_valid_after_utc, renewed=False)


def _issue(
    keyring: Keyring, authority: x509.Certificate, name: str, names: list[x509.GeneralName], *, at: datetime, life: timedelta
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    signing = _signing_key(keyring)
    subject = x509.Name([
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Strongroom"), x509.NameAttribute(NameOID.COMMON_NAME, name[:64]),
    ])
    usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = (
        _builder(subject, authority.subject, key.public_key(), at, life, until=authority.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(sign_certificates=False), critical=True)
        .add_extension(usages, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return key, builder.sign(signing, hashes.SHA256())


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, at: datetime, life: timedelta, *,
    until: datetime | None = None,
) -> x509.CertificateBuilder:
    start = (at - _CLOCK_SKEW).replace(microsecond=0)
    end = start + life if until is None else min(start + life, until)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=sign_certificates, crl_sign=sign_certificates, encipher_only=False, decipher_only=False,
    )


def _ca_name(keyring: Keyring) -> x509.Name:
    return x509.Name([
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Strongroom"),
        x509.NameAttribute(NameOID.COMMON_NAME, f"Strongroom CA {keyring.archive_uuid[:8]}"),
    ])


def _configured_hosts(config: Config) -> list[str]:
    url = urlsplit(config.archive.public_url).hostname or ""
    fixed = [url, config.http.host, config.dimse.tls.host, "localhost", "127.0.0.1", "::1"]
    machine = socket.gethostname()
    return [*fixed, machine] if _MACHINE_NAME.fullmatch(machine) else fixed  # a name DNS could not carry must not stop the start


def _names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    """Return the subject alternative names; addresses that mean every interface name nobody."""
    names: list[x509.GeneralName] = []
    for host in hosts:
        made = _name(host.strip().strip("[]"))
        if made is not None and made not in names:
            names.append(made)
    return names


def _name(host: str) -> x509.GeneralName | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    else:
        return None if address.is_unspecified else x509.IPAddress(address)
    try:
        return x509.DNSName(host.encode("idna").decode().lower()) if host else None
    except UnicodeError as error:
        message = "a host name is neither an address nor a DNS name"
        raise InvalidRequest(message, remedy="check archive.public_url and http.host") from error


def _signing_key(keyring: Keyring) -> ec.EllipticCurvePrivateKey:
    entry = keyring.ca_key
    if entry is None or not entry.secret:
        message = "a worker process cannot issue certificates"
        raise KeysUnavailable(message, remedy="do this at the console, with the archive command")
    key = load_der_private_key(entry.secret, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _private_der(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _public_der(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
