"""TLS from memory: whatever way records are cut, the same bytes; every wait has an end; nothing passes by the session."""

from __future__ import annotations

import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from archive.dimse import pdus, tls
from archive.dimse.pdus import Closed, PduStream
from archive.dimse.secured import Secured
from tests.dimse.conftest import Pki, StartNode
from tests.dimse.fakes import eventually
from tests.dimse.rawpeer import AC, CT, DATA, EXPLICIT, associate_rq, p_data, pdu, store_command


class Client:
    """A TLS client that has its records in hand before they are sent."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        self.connection = connection
        connection.settimeout(10)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = context.wrap_bio(self._incoming, self._outgoing)

    def shake(self) -> None:
        while True:
            try:
                self.session.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.connection.sendall(self._outgoing.read())
                self._incoming.write(self.connection.recv(65536))
        self.connection.sendall(self._outgoing.read())

    def encrypted(self, data: bytes) -> bytes:
        """The records of `data`."""
        self.session.write(data)
        return self._outgoing.read()

    def goodbye(self) -> bytes:
        """A close_notify."""
        with pytest.raises(ssl.SSLWantReadError):
            self.session.unwrap()
        return self._outgoing.read()

    def read(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            try:
                found += self.session.read(count - len(found))
            except ssl.SSLWantReadError:
                received = self.connection.recv(65536)
                if not received:
                    raise EOFError from None
                self._incoming.write(received)
        return found


@dataclass
class Pair:
    """Both ends of one session."""

    secured: Secured
    client: Client


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def pair(pki: Pki, request: pytest.FixtureRequest) -> Iterator[Pair]:
    listening = socket.create_server(("127.0.0.1", 0))
    theirs = socket.create_connection(listening.getsockname(), timeout=60)
    ours, _ = listening.accept()
    listening.close()
    context = pki.client_context(pki.ct1)
    context.maximum_version = request.param
    client = Client(theirs, context)
    thread = threading.Thread(target=client.shake)
    thread.start()
    secured = tls.handshake(ours, pki.files, timeout_s=10)
    thread.join(60)
    secured.settimeout(10)
    with secured, theirs:
        yield Pair(secured, client)


def received(secured: Secured, count: int, sizes: Iterator[int]) -> bytes:
    found = b""
    while len(found) < count:
        buffer = bytearray(next(sizes))
        got = secured.recv_into(buffer)
        assert 0 < got <= len(buffer)
        found += buffer[:got]
    return found


@pytest.mark.parametrize("seed", range(6))
def test_records_cut_anywhere(pair: Pair, seed: int) -> None:
    chance = random.Random(seed)
    pieces = [chance.randbytes(chance.choice([1, 7, 300, 16384, 16385, 40000])) for _ in range(12)]
    data = b"".join(pieces)
    sealed = b"".join(pair.client.encrypted(piece) for piece in pieces)
    cuts = sorted(chance.sample(range(1, len(sealed)), 30))

    def send() -> None:
        for start, stop in zip([0, *cuts], [*cuts, len(sealed)], strict=True):
            pair.client.connection.sendall(sealed[start:stop])
            time.sleep(chance.choice([0, 0, 0.001]))

    thread = threading.Thread(target=send)
    thread.start()
    assert received(pair.secured, len(data), iter(lambda: chance.choice([1, 6, 1000, 16384, 200_000]), 0)) == data
    thread.join(60)
    pair.secured.sendall(data)
    assert pair.client.read(len(data)) == data


@pytest.mark.parametrize("politely", [True, False])
def test_the_end_stays_the_end(pair: Pair, politely: bool) -> None:
    pair.client.connection.sendall(pair.client.encrypted(b"last") + (pair.client.goodbye() if politely else b""))
    if not politely:
        pair.client.connection.shutdown(socket.SHUT_WR)
    assert pair.secured.recv(100) == b"last"
    assert pair.secured.recv(100) == b""
    assert pair.secured.recv(100) == b""


def test_a_changed_record_is_refused(pair: Pair) -> None:
    sealed = bytearray(pair.client.encrypted(b"some bytes"))
    sealed[-1] ^= 1
    pair.client.connection.sendall(sealed)
    with pytest.raises(ssl.SSLError):
        pair.secured.recv(100)


@pytest.mark.parametrize("of_the_system", [False, True])
def test_a_record_that_trickles_has_an_end(pair: Pair, of_the_system: bool) -> None:
    if of_the_system:
        PduStream(pair.secured, maximum_pdu_bytes=16384, timeout_s=0.4)
    else:
        pair.secured.settimeout(0.4)
    stop = threading.Event()

    def trickle() -> None:
        for byte in pair.client.encrypted(bytes(1000)):
            if stop.wait(0.05):
                return
            pair.client.connection.sendall(bytes((byte,)))

    thread = threading.Thread(target=trickle)
    thread.start()
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        pair.secured.recv(100)
    assert time.monotonic() - started < 15
    stop.set()
    thread.join(60)


def test_silence_has_an_end(pair: Pair) -> None:
    stream = PduStream(pair.secured, maximum_pdu_bytes=16384, timeout_s=0.3)
    with pytest.raises(pdus.Silence):
        stream.next()


def test_who_is_interrupted_has_the_last_word(pair: Pair) -> None:
    stream = PduStream(pair.secured, maximum_pdu_bytes=16384, timeout_s=20)
    timer = threading.Timer(0.1, stream.interrupt)
    timer.start()
    started = time.monotonic()
    with pytest.raises(Closed):
        stream.next()
    assert time.monotonic() - started < 15
    stream.send(b"last words")
    assert pair.client.read(10) == b"last words"


def test_what_was_received_is_pending(pair: Pair) -> None:
    assert pair.secured.pending() == 0
    pair.client.connection.sendall(pair.client.encrypted(b"abcdef") + pair.client.encrypted(b"ghi"))
    assert pair.secured.recv(2) == b"ab"
    assert pair.secured.pending() > 0  # of a record that is open
    assert pair.secured.recv(4) == b"cdef"
    assert pair.secured.pending() > 0  # the next one, still closed
    assert pair.secured.recv(3) == b"ghi"
    assert pair.secured.pending() == 0


def test_nothing_passes_by_the_session(pair: Pair) -> None:
    for name in ("sendmsg", "sendto", "sendfile", "recvmsg", "recvmsg_into", "recvfrom", "recvfrom_into"):
        with pytest.raises(NotImplementedError):
            getattr(pair.secured, name)(b"")


def test_a_client_that_leaves_amid_the_handshake(pki: Pki) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(b"\x16\x03\x01")
    theirs.close()
    with pytest.raises(tls.HandshakeFailed, match="connection was lost"):
        tls.handshake(ours, pki.files, timeout_s=5)
    assert ours.fileno() == -1


def test_a_store_byte_by_byte(start_node: StartNode) -> None:
    """Both lanes, over TLS: records of one byte, and sent in pieces of one byte."""
    node = start_node()
    data = random.Random(5).randbytes(700)
    client = Client(node.connect_raw_tls(), node.pki.client_context(node.pki.ct1))
    client.shake()
    with client.connection:
        client.connection.sendall(client.encrypted(associate_rq([(CT, [EXPLICIT])])))
        kind, length = (head := client.read(6))[0], int.from_bytes(head[2:], "big")
        client.read(length)
        assert kind == AC
        said = p_data(1, 3, store_command(CT.encode(), b"1.2.3")) + p_data(1, 0, data[:400]) + p_data(1, 2, data[400:])
        for byte in said[:200]:
            client.connection.sendall(client.encrypted(bytes((byte,))))
        for byte in client.encrypted(said[200:]):
            client.connection.sendall(bytes((byte,)))
        assert client.read(6)[0] == DATA
        client.connection.sendall(client.encrypted(pdu(7, bytes(4))))
    assert eventually(lambda: [one.data for one in node.store.kept] == [data])
