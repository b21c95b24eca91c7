"""A DIMSE node on real sockets, and certificates of every kind a peer may show up with."""

from __future__ import annotations

import dataclasses
import hashlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from archive.config import Archive, Config, Dimse
from archive.dimse import listener as listener_module
from archive.dimse.lanes import Lanes
from archive.dimse.listener import LOBBY_CONNECTIONS, Endpoint, Listener
from archive.dimse.tls import TlsFiles
from tests.dimse.fakes import FakePeer, FakePeers, FakeStore
from tests.dimse.rawpeer import AC, CT, EXPLICIT, IMPLICIT, VERIFICATION, RawPeer


@dataclass(frozen=True)
class Identity:
    """A key and a certificate on disk."""

    certificate: Path
    key: Path

    @property
    def der(self) -> bytes:
        """The certificate."""
        return ssl.PEM_cert_to_DER_cert(self.certificate.read_text())

    @property
    def sha256(self) -> str:
        """Its fingerprint, in hex."""
        return hashlib.sha256(self.der).hexdigest()


@dataclass(frozen=True)
class Pki:
    """The archive's built-in CA and whoever else there is."""

    files: TlsFiles
    ct1: Identity
    unbound: Identity
    foreign: Identity
    other_ca: Identity
    expired: Identity
    server_only: Identity

    def client_context(self, identity: Identity | None) -> ssl.SSLContext:
        """A client that trusts the archive."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(self.files.authority)
        if identity is not None:
            context.load_cert_chain(identity.certificate, identity.key)
        return context


class _Maker:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._now = datetime.now(UTC)

    def make(
        self, name: str, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None, *,
        authority: bool = False, days: tuple[int, int] = (-1, 30), usage: list[x509.ObjectIdentifier] | None = None,
    ) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey, Identity]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(issuer[0].subject if issuer else subject)
            .public_key(key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(self._now + timedelta(days=days[0])).not_valid_after(self._now + timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if usage:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        certificate = builder.sign(issuer[1] if issuer else key, hashes.SHA256())
        identity = Identity(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        identity.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
        identity.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return certificate, key, identity


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Certificates of every kind."""
    maker = _Maker(tmp_path_factory.mktemp("pki"))
    ca_certificate, ca_key, ca = maker.make("ca", authority=True)
    other_certificate, other_key, _ = maker.make("other-ca", authority=True)
    builtin, other = (ca_certificate, ca_key), (other_certificate, other_key)
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    server = maker.make("server", builtin, usage=both)[2]
    return Pki(
        files=TlsFiles(server.certificate, server.key, ca.certificate),
        ct1=maker.make("ct1", builtin)[2],
        unbound=maker.make("unbound", builtin)[2],
        foreign=maker.make("foreign")[2],
        other_ca=maker.make("other", other)[2],
        expired=maker.make("expired", builtin, days=(-60, -30))[2],
        server_only=maker.make("server-only", builtin, usage=[ExtendedKeyUsageOID.SERVER_AUTH])[2],
    )


@dataclass
class Running:
    """A node that accepts associations."""

    store: FakeStore
    peers: FakePeers
    config: Dimse
    listener: Listener
    plain_port: int
    tls_port: int
    pki: Pki

    def connect(self) -> socket.socket:
        """A plain TCP connection to the plain listener."""
        return socket.create_connection(("127.0.0.1", self.plain_port), timeout=60)

    def connect_raw_tls(self) -> socket.socket:
        """A plain TCP connection to the TLS listener."""
        return socket.create_connection(("127.0.0.1", self.tls_port), timeout=60)

    def connect_tls(self, identity: Identity | None) -> ssl.SSLSocket:
        """A TLS connection to the TLS listener."""
        return self.pki.client_context(identity).wrap_socket(socket.create_connection(("127.0.0.1", self.tls_port), timeout=60))


StartNode = Callable[..., Running]


@pytest.fixture(params=["own", "pynetdicom"])
def receiver(request: pytest.FixtureRequest) -> str:
    """Both lanes, one after the other."""
    return str(request.param)


@pytest.fixture
def start_node(pki: Pki, monkeypatch: pytest.MonkeyPatch, receiver: str) -> Iterator[StartNode]:
    """`start_node(idle_timeout_s=1, lobby_connections=8)`: a node with CT1 enrolled on both listeners."""
    running: list[tuple[threading.Event, threading.Thread, Listener, list[socket.socket]]] = []
    monkeypatch.setattr(listener_module, "_TICK_S", 0.02)  # how long stopping takes

    def start(*, lobby_connections: int = LOBBY_CONNECTIONS, store: FakeStore | None = None, **options: object) -> Running:
        config = msgspec.structs.replace(Dimse(), **{"receiver": receiver, **options})
        store = store or FakeStore()
        peers = FakePeers([
            FakePeer(1, "CT1", ("CT1", "CT1B"), pki.ct1.sha256),
            FakePeer(2, "CT1 plain", ("CT1",)),
            FakePeer(3, "ECHO", ("ECHO",), may_store=False),
            FakePeer(4, "FOREIGN", ("FOREIGN",), pki.foreign.sha256),
            FakePeer(5, "OLD", ("OLD",), pki.expired.sha256),
        ])
        sockets = [socket.create_server(("127.0.0.1", 0), backlog=1024) for _ in range(2)]
        endpoints = [Endpoint(sockets[0], tls=False), Endpoint(sockets[1], tls=True)]
        listener = Listener(
            endpoints, config=config, peers=peers, lane=Lanes(store, config), files=pki.files, worker="test",  # type: ignore[arg-type]
            lobby_connections=lobby_connections,
        )
        stop = threading.Event()
        thread = threading.Thread(target=listener.run, args=(stop.is_set,))
        thread.start()
        running.append((stop, thread, listener, sockets))
        ports = [s.getsockname()[1] for s in sockets]
        return Running(store, peers, config, listener, ports[0], ports[1], pki)

    yield start
    for stop, thread, listener, sockets in running:
        stop.set()
        thread.join(60)
        listener.drain(1.0)
        for listening in sockets:
            listening.close()
        assert not thread.is_alive()
        assert not listener.associations


@pytest.fixture
def node(start_node: StartNode) -> Running:
    """A node with the default limits."""
    return start_node()


@pytest.fixture
def peer(node: Running) -> Iterator[RawPeer]:
    """CT1 on the plain listener, associated for CT and Verification."""
    with RawPeer(node.connect()) as made:
        assert made.associate([(CT, [EXPLICIT, IMPLICIT]), (VERIFICATION, [IMPLICIT])]) == AC
        yield made


def archive_with(pki: Pki, folder: Path) -> Config:
    """A configuration whose storage holds the certificates."""
    tls = folder / "tls"
    tls.mkdir()
    (tls / "server.pem").write_bytes(pki.files.certificate.read_bytes())
    (tls / "server.key").write_bytes(pki.files.key.read_bytes())
    (tls / "ca.pem").write_bytes(pki.files.authority.read_bytes())
    return msgspec.structs.replace(Config(), archive=Archive(storage=str(folder)))


def with_peer(node: Running, **changes: object) -> None:
    """Change the enrolled peer CT1 of the plain listener."""
    node.peers.peers = [dataclasses.replace(p, **changes) if p.id == 2 else p for p in node.peers.peers]  # type: ignore[arg-type]
