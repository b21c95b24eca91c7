"""Calls to witnesses: no redirect followed, no long wait, no long answer, and TLS that shows whose the answer is."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from archive.services.outgoing import Undeliverable
from archive.services.witness_calls import MAX_ANSWER_BYTES, Line
from archive.witness import memory, service
from tests.ports import free_port


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers each connection so, and what it was asked."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _address = listening.accept()
                except OSError:
                    return
                with connection:
                    taken = connection.recv(65536)
                    while b"Content-Length: 4" in taken and not taken.endswith(b"body"):
                        taken += connection.recv(65536)
                    asked.append(taken)
                    with suppress(OSError):
                        answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", asked
        listening.shutdown(socket.SHUT_RDWR)


def test_a_redirect_is_an_answer_like_another() -> None:
    elsewhere = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/x\r\nContent-Length: 0\r\n\r\n"
    with answering(lambda to: to.sendall(elsewhere)) as (url, asked):
        said = Line(f"{url}/prefix/").add_checkpoint(b"body")
    assert (said.status, said.proven, len(asked)) == (302, False, 1)
    assert asked[0].startswith(b"POST /prefix/add-checkpoint HTTP/1.1\r\n")
    assert asked[0].endswith(b"body")


def test_a_long_answer_is_cut_off() -> None:
    with answering(lambda to: to.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (MAX_ANSWER_BYTES + 10))) as (url, _asked), pytest.raises(
        Undeliverable, match="too long"
    ):
        Line(url).add_checkpoint(b"")


def test_an_answer_cut_short_is_none() -> None:
    half = b"HTTP/1.1 409 Conflict\r\nContent-Length: 5\r\n\r\n12"
    with answering(lambda to: to.sendall(half)) as (url, _asked), pytest.raises(Undeliverable, match="cut short"):
        Line(url).add_checkpoint(b"")


def test_one_that_answers_byte_by_byte_is_not_waited_for() -> None:
    def drip(to: socket.socket) -> None:
        to.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(600):
            to.sendall(b"x")
            time.sleep(0.05)

    began = time.monotonic()
    with answering(drip) as (url, _asked), pytest.raises(Undeliverable):
        Line(url, timeout_s=0.3).add_checkpoint(b"")
    assert time.monotonic() - began < 15


def test_nobody_there_and_nonsense() -> None:
    for url in (f"http://127.0.0.1:{free_port()}", "http://no-such-host.invalid"):
        with pytest.raises(Undeliverable):
            Line(url).add_checkpoint(b"")
    for nonsense in (b"", b"nonsense\r\n\r\n"):
        with answering(lambda to, data=nonsense: to.sendall(data)) as (url, _asked), pytest.raises(Undeliverable):  # type: ignore[misc]
            Line(url).newest("origin")


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return folder / "certificate.pem", folder / "key.pem"


def test_tls_shows_whose_the_answer_is(tmp_path: Path) -> None:
    memory.make(tmp_path / "state", "nas.example/w")
    held = memory.Memory(tmp_path / "state")
    pem, key = certificate(tmp_path)
    server = service.Server(("127.0.0.1", 0), service.Witness(held, []), service.tls_context(pem, key))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    port = server.server_address[1]
    try:
        with socket.create_connection(("127.0.0.1", port)):  # one that says nothing holds up nobody's handshake
            said = Line(f"https://localhost:{port}", str(pem)).add_checkpoint(b"nonsense")
            assert (said.status, said.proven) == (400, True)
        for line in (Line(f"https://localhost:{port}"), Line(f"https://127.0.0.1:{port}", str(pem)), Line(f"http://127.0.0.1:{port}")):
            with pytest.raises(Undeliverable):
                line.add_checkpoint(b"nonsense")
    finally:
        server.shutdown()
        server.server_close()
        held.close()
