"""An archive's tables with a keyring, a ledger and a table of peers, and what tests ask of them."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from archive.access import bootstrap, principals, roles
from archive.access.subject import Subject
from archive.config import Config, parse
from archive.db.engine import Database
from archive.errors import Forbidden
from archive.keys.keyring import Keyring
from archive.ledger.audit import Kind
from archive.ledger.log import AuditFilter, AuditRow, Ledger
from archive.services.doorkeeper import Admission
from archive.services.peers import Peers
from tests import databases

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **by: float) -> None:
        self.now += timedelta(**by)


class World:
    """One archive's tables with what the tests ask of them."""

    def __init__(self, database: Database, config: Config) -> None:
        self.database = database
        self.config = config
        self.keyring = Keyring.create(config, at=START, recovery_kit=None)
        self.ledger = Ledger(self.keyring)
        self.clock = Clock()
        self.peers = Peers(database, self.ledger, self.keyring, self.clock, config)
        with database.begin() as tx:
            first = bootstrap.bootstrap(tx, at=START, admin="admin", password="lantern orbit gravel seventeen")
        self.datastore_id = first.datastore_id
        self.console = Subject(first.console_id, "console", "console", "console", operator="tester")

    def events(self, *kinds: Kind) -> list[AuditRow]:
        with self.database.read() as tx:
            return self.ledger.search(tx, AuditFilter(kinds=kinds))

    def user(self, name: str, *held: str) -> Subject:
        with self.database.begin() as tx:
            key = principals.add(tx, "user", name, at=START)
            for role in held:
                roles.assign(tx, key, roles.find(tx, role)["id"], by=self.console.principal_id, at=START)
        return Subject(key, name, "user", "token")

    def issued(self, name: str, folder: Path, *titles: str, **options: object) -> bytes:
        """Add a peer with a certificate made for it; returns that certificate."""
        self.peers.add(self.console, name, titles or [name], issue=folder, **options)  # type: ignore[arg-type]
        return ssl.PEM_cert_to_DER_cert((folder / "cert.pem").read_text())

    def admit(
        self, title: str, certificate: bytes | None = None, *, address: str = "192.0.2.7", tls: bool | None = None
    ) -> Admission:
        return self.peers.admit(
            calling_ae_title=title, called_ae_title="STRONGROOM", address=address, certificate=certificate,
            tls=certificate is not None if tls is None else tls,
        )

    def refused(self, title: str, certificate: bytes | None = None, **options: object) -> str:
        """Be refused, and return the reason that is pending."""
        with pytest.raises(Forbidden):
            self.admit(title, certificate, **options)  # type: ignore[arg-type]
        return str(self.peers.pending(self.console)[0]["reason"])


def made(database: Database, tmp_path: Path) -> World:
    """An archive whose plain listener takes two networks."""
    raw = {"archive": {"storage": "storage"}, "dimse": {"plain": {"networks": ["192.0.2.0/24", "2001:db8::/64"]}}}
    config = parse(raw, tmp_path / "config.toml")
    config.tls_dir.mkdir(parents=True)
    return World(database, config)


@contextmanager
def embedded(tmp_path: Path) -> Iterator[World]:
    """The same on the embedded database."""
    with closing(databases.embedded(tmp_path)) as database:
        yield made(database, tmp_path)


def foreign(days: int = 30, name: str = "foreign") -> bytes:
    """A self-signed certificate, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key()).serial_number(7)
    built = builder.not_valid_before(START - timedelta(days=90)).not_valid_after(START + timedelta(days=days)).sign(key, hashes.SHA256())
    return built.public_bytes(Encoding.PEM)


def der(pem: bytes) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem.decode())
