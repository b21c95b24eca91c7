"""Requests that the archive sends by itself end in time, whatever the other side does."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from archive.services import outgoing
from archive.services.outgoing import Limits, Undeliverable


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Certificate and key of 127.0.0.1 in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "receiver")])
    at = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(at - timedelta(days=1)).not_valid_after(at + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "receiver.pem"
    plain = serialization.NoEncryption()
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    return path


@pytest.fixture(params=["http", "https"])
def url(request: pytest.FixtureRequest, certificate: Path) -> Iterator[str]:
    """A receiver that answers a byte at a time for longer than anybody waits."""
    over = threading.Event()
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listening.accept()
        with suppress(OSError):
            if request.param == "https":
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(certificate)
                connection = context.wrap_socket(connection, server_side=True)
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while not over.wait(0.1):
                connection.sendall(b"x")
        connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    stopping = threading.Timer(60, over.set)
    stopping.start()
    yield f"{request.param}://127.0.0.1:{listening.getsockname()[1]}/"
    over.set()
    stopping.cancel()
    thread.join(10)
    listening.close()


def test_a_receiver_that_answers_byte_by_byte_is_not_waited_for(url: str, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "DEADLINE_S", 0.6)
    started = time.monotonic()
    with pytest.raises(Undeliverable):
        outgoing.post(url, b"{}", {}, Limits(("127.0.0.0/8",), str(certificate)))
    assert time.monotonic() - started < 20
