"""What strangers and broken devices send: the archive stays up, answers others, keeps nothing half."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable

import pytest

from tests.dimse import rawpeer
from tests.dimse.conftest import Running, StartNode
from tests.dimse.fakes import eventually
from tests.dimse.rawpeer import ABORT, AC, CT, DATA, IMPLICIT, RQ, VERIFICATION, RawPeer, associate_rq, element, item, p_data, pdu

CONTEXTS = [(CT, [IMPLICIT]), (VERIFICATION, [IMPLICIT])]
FIND_COMMAND = rawpeer.command(
    element(0x0002, rawpeer.uid_value(VERIFICATION.encode())), element(0x0100, b"\x20\x00"), element(0x0110, b"\1\0"),
    element(0x0700, b"\0\0"), element(0x0800, b"\0\0"),
)


def echo_works(node: Running, within_s: float = 4.0) -> None:
    """A legitimate peer is served, promptly, on both listeners."""
    for connect in (node.connect, lambda: node.connect_tls(node.pki.ct1)):
        started = time.monotonic()
        with RawPeer(connect()) as peer:
            assert peer.associate([(VERIFICATION, [IMPLICIT])]) == AC
            assert peer.echo() == 0
            peer.release()
        assert time.monotonic() - started < within_s


# --- silence (what froze the stock listener) -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"], ids=["nothing", "a byte", "half a hello"])
def test_a_silent_client_harms_nobody_and_is_dropped(start_node: StartNode, said: bytes) -> None:
    node = start_node(handshake_timeout_s=1)
    with RawPeer(node.connect_raw_tls()) as silent:
        silent.send(said)
        echo_works(node)
        started = time.monotonic()
        while not silent.at_end():
            pass
        assert time.monotonic() - started < 4.5
    assert eventually(lambda: node.listener.visitors == 0)
    if said:
        assert [reason for _, reason, _ in node.peers.away] == ["no TLS handshake in time"]


def test_a_hello_that_trickles_has_one_deadline_for_all_of_it(start_node: StartNode) -> None:
    node = start_node(handshake_timeout_s=1)
    with RawPeer(node.connect_raw_tls()) as slow:
        started = time.monotonic()
        with pytest.raises(OSError):  # noqa: PT011 # reset or broken pipe
            slow.trickle(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), 0.2)
        assert time.monotonic() - started < 15


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
def test_a_request_that_trickles_has_one_deadline_for_all_of_it(start_node: StartNode, secured: bool) -> None:
    node = start_node(request_timeout_s=1)
    with RawPeer(node.connect_tls(node.pki.ct1) if secured else node.connect()) as slow:
        started = time.monotonic()
        with pytest.raises(OSError):  # noqa: PT011 # reset or broken pipe
            slow.trickle(associate_rq(CONTEXTS), 0.2)
        assert time.monotonic() - started < 15
    echo_works(node)


def test_nobody_speaks_after_the_handshake(start_node: StartNode) -> None:
    node = start_node(request_timeout_s=1)
    started = time.monotonic()
    with RawPeer(node.connect_tls(node.pki.ct1)) as silent:
        assert silent.at_end()
    assert 0.9 < time.monotonic() - started < 8


@pytest.mark.parametrize("port", ["tls_port", "plain_port"])
def test_a_thousand_idle_sockets(node: Running, port: str) -> None:
    """Each stays open at the attacker's side; a legitimate echo still works promptly, before and after the time-out."""
    idle: list[socket.socket] = []
    try:
        idle.extend(socket.create_connection(("127.0.0.1", getattr(node, port)), timeout=60) for _ in range(1000))
        echo_works(node)
        assert node.listener.visitors <= 257
        threads = [thread for thread in threading.enumerate() if thread.name.startswith("dimse-")]
        assert len(threads) < 20
        for connection in idle[-100:]:
            connection.send(b"\x01")  # now each of these costs a thread, until its deadline
        echo_works(node, 4)
    finally:
        for connection in idle:
            connection.close()
    assert eventually(lambda: node.listener.visitors == 0)


def test_a_full_lobby_drops_whoever_waits_longest(start_node: StartNode) -> None:
    node = start_node(lobby_connections=4)
    waiting = [RawPeer(node.connect()) for _ in range(4)]
    for peer in waiting:
        peer.send(b"\x01")
    assert eventually(lambda: node.listener.visitors == 4)
    with RawPeer(node.connect()) as late:
        assert late.associate(CONTEXTS) == AC
        assert waiting[0].at_end()
        waiting[3].send(associate_rq(CONTEXTS)[1:])
        assert waiting[3].read_pdu()[0] == AC
        late.release()
    for peer in waiting:
        peer.connection.close()


def test_the_refused_who_stay_are_bounded(start_node: StartNode) -> None:
    """Whoever is told no has a little time to read it, and no thread beyond the lobby's number."""
    node = start_node(lobby_connections=8)
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            peer = stack.enter_context(RawPeer(node.connect()))
            peer.send(associate_rq(CONTEXTS, calling="NOBODY"))
            assert peer.read_pdu()[0] == rawpeer.RJ
        threads = [thread for thread in threading.enumerate() if thread.name.startswith("dimse-")]
        assert len(threads) < 20
        echo_works(node)


# --- malformed PDUs ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        bytes(6),
        b"\xff" * 64,
        struct.pack(">BBL", RQ, 0, 0xFFFFFFFF),
        struct.pack(">BBL", RQ, 0, 300_000),
        pdu(RQ, b""),
        pdu(RQ, bytes(68)),
        pdu(RQ, bytes(67)),
        pdu(DATA, bytes(10)),
        pdu(AC, bytes(68)),
        pdu(rawpeer.RELEASE_RQ, bytes(4)),
        pdu(8, bytes(4)),
        associate_rq(CONTEXTS)[:-3] + b"\xff\xff\xff",
        pdu(RQ, associate_rq(CONTEXTS)[6:] + item(0x20, bytes((2, 0, 0, 0)) + item(0x30, b"1.2"))),  # an even context ID
        pdu(RQ, associate_rq(CONTEXTS)[6:] + item(0x20, bytes((1, 0, 0, 0)) + item(0x30, b"1.2") + item(0x40, b"1.2"))),  # one twice
        pdu(RQ, associate_rq(CONTEXTS)[6:] + item(0x99, bytes(10))),
        pdu(RQ, associate_rq(CONTEXTS)[6:] + b"\x50\0\xff\xff"),
    ],
)
def test_a_first_pdu_that_is_none(node: Running, said: bytes) -> None:
    with RawPeer(node.connect()) as peer:
        peer.send(said)
        kind, body = peer.read_pdu()
        assert kind == ABORT
        assert body[2] == 2  # service provider
        peer.connection.shutdown(socket.SHUT_WR)
        assert peer.at_end()
    assert node.peers.pending == []
    echo_works(node)


@pytest.mark.parametrize(
    "said",
    [
        struct.pack(">BBL", DATA, 0, 0xFFFFFFFF),
        struct.pack(">BBL", DATA, 0, 131_073),
        pdu(DATA, b""),
        pdu(DATA, bytes(3)),
        pdu(DATA, struct.pack(">LBB", 0, 1, 3)),
        pdu(DATA, struct.pack(">LBB", 1, 1, 3)),
        pdu(DATA, struct.pack(">LBB", 0xFFFFFFFF, 1, 3) + bytes(10)),
        pdu(DATA, struct.pack(">LBB", 100, 1, 3) + bytes(10)),
        p_data(5, 3, rawpeer.echo_command()),  # a context never proposed
        p_data(2, 3, rawpeer.echo_command()),
        p_data(3, 2, b"data before any command"),
        p_data(3, 3, b""),
        p_data(3, 3, bytes(7)),
        p_data(3, 3, b"\xff" * 100),
        p_data(3, 3, element(0, bytes(4)) + element(0x0100, b"\x30\x00")[:-1]),
        p_data(3, 3, element(0x0110, b"\1\0") + element(0x0100, b"\x30\x00")),  # out of order
        p_data(3, 3, rawpeer.command(element(0x0100, b"\x77\x77"), element(0x0800, b"\x01\x01"))),  # no such command
        p_data(3, 3, rawpeer.command(element(0x0100, b"\x01\x00"))),  # a C-STORE-RQ without anything
        p_data(3, 3, rawpeer.command(element(0x0100, b"\x30\x00"))),  # a C-ECHO-RQ without anything
        p_data(1, 3, rawpeer.store_command(CT.encode(), b"1.2")) + p_data(3, 2, b"x"),  # data on another context
        p_data(1, 3, rawpeer.store_command(CT.encode(), b"1.2")) + p_data(1, 3, rawpeer.echo_command()),  # a command amid data
        associate_rq(CONTEXTS),
        pdu(AC, bytes(68)),
        pdu(9, bytes(4)),
        pdu(rawpeer.RELEASE_RP, bytes(4)),
        struct.pack(">BBL", rawpeer.RELEASE_RQ, 0, 1_000_000),
    ],
)
def test_a_pdu_that_breaks_the_association(node: Running, said: bytes) -> None:
    with RawPeer(node.connect()) as peer:
        assert peer.associate(CONTEXTS) == AC
        peer.send(said)
        assert peer.read_pdu()[0] == ABORT
        peer.connection.shutdown(socket.SHUT_WR)
        assert peer.at_end()
    assert eventually(lambda: node.listener.associations == 0)
    assert node.store.kept == []
    assert node.store.opened == node.store.aborted
    echo_works(node)


def test_an_endless_command_set(node: Running) -> None:
    with RawPeer(node.connect()) as peer:
        assert peer.associate(CONTEXTS) == AC
        for _ in range(5):
            peer.send(p_data(1, 1, bytes(16000)))
        assert peer.read_pdu()[0] == ABORT


def test_an_endless_identifier(node: Running) -> None:
    """A data set where none belongs is bounded as well."""
    with RawPeer(node.connect()) as peer:
        assert peer.associate(CONTEXTS) == AC
        peer.send(p_data(3, 3, FIND_COMMAND))
        for _ in range(270):
            peer.send(p_data(3, 0, bytes(16000)))
        assert peer.read_pdu()[0] == ABORT


@pytest.mark.parametrize("before", [
    b"", p_data(1, 3, rawpeer.store_command(CT.encode(), b"1.2.3")) + p_data(1, 0, b"some"), p_data(1, 3, FIND_COMMAND),
], ids=["command", "data set", "identifier"])
def test_fragments_without_a_byte_come_to_an_end(node: Running, before: bytes) -> None:
    with RawPeer(node.connect()) as peer:
        assert peer.associate(CONTEXTS) == AC
        peer.send(before + p_data(1, 0 if before else 1, b"") * 1001)
        assert peer.read_pdu()[0] == ABORT
    assert eventually(lambda: node.listener.associations == 0)
    assert node.store.opened == node.store.aborted


def test_fragments_without_a_byte_are_counted_for_each_message(peer: RawPeer) -> None:
    for number in (1, 2):
        peer.send(p_data(1, 3, rawpeer.store_command(CT.encode(), b"1.2.3", number)) + p_data(1, 0, b"") * 999 + p_data(1, 0, b"good"))
        peer.send(p_data(1, 2, b""))
        assert peer.response()[0x0900] == b"\0\0"
    peer.release()


def test_a_flood_of_requests_without_reading_answers(start_node: StartNode) -> None:
    node = start_node(idle_timeout_s=2)
    with RawPeer(node.connect()) as peer:
        assert peer.associate(CONTEXTS) == AC
        peer.connection.settimeout(8)
        with pytest.raises(OSError):  # noqa: PT011 # reset, broken pipe or time-out
            peer.flood(p_data(3, 3, rawpeer.echo_command()) * 50, 100_000)
    echo_works(node)
    assert eventually(lambda: node.listener.associations == 0)


def test_seeded_fuzz_of_the_first_pdu(node: Running) -> None:
    """One byte or a slice of a good request changed, many times: an answer or an end every time, and the node goes on."""
    chance = random.Random(20260102)
    good = associate_rq(CONTEXTS, roles=[(CT, 1, 0)])
    for _ in range(300):
        said = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(6, len(said))
            if chance.random() < 0.7:
                said[at] = chance.randrange(256)
            else:
                del said[at : at + chance.randint(1, 8)]
        said[2:6] = struct.pack(">L", len(said) - 6)
        with RawPeer(node.connect()) as peer:
            peer.send(bytes(said))
            assert peer.read_pdu()[0] in (AC, rawpeer.RJ, ABORT)
    echo_works(node)
    assert eventually(lambda: node.listener.associations == 0)


def test_seeded_fuzz_of_an_association(node: Running) -> None:
    """Changed bytes anywhere in a C-STORE: it is stored, refused or aborted, never half."""
    chance = random.Random(20260103)
    good = p_data(1, 3, rawpeer.store_command(CT.encode(), b"1.2.3.4")) + p_data(1, 0, bytes(300)) + p_data(1, 2, bytes(200))
    for _ in range(200):
        said = bytearray(good)
        for _ in range(chance.randint(1, 3)):
            said[chance.randrange(len(said))] = chance.randrange(256)
        with RawPeer(node.connect()) as peer:
            assert peer.associate(CONTEXTS) == AC
            peer.send(bytes(said))
            peer.connection.shutdown(socket.SHUT_WR)
            try:
                kind, _ = peer.read_pdu()
            except (EOFError, ConnectionError):
                continue
            assert kind in (DATA, ABORT, rawpeer.RELEASE_RP)
    assert eventually(lambda: node.listener.associations == 0)
    assert eventually(lambda: node.store.opened == node.store.aborted + len(node.store.kept))
    echo_works(node)


def test_nothing_is_left_behind(start_node: StartNode, program: Callable[[str, str], str]) -> None:
    """Threads and descriptors come back, whichever way associations end."""
    import os

    node = start_node()
    echo_works(node)
    assert eventually(lambda: node.listener.associations == 0)

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    assert eventually(lambda: not [t for t in threading.enumerate() if t.name.startswith("dimse-")])
    before = descriptors(), threading.active_count()
    for number in range(60):
        with RawPeer(node.connect_tls(node.pki.ct1) if number % 2 else node.connect()) as peer:
            if number % 5 == 0:
                continue
            assert peer.associate(CONTEXTS) == AC
            if number % 3 == 0:
                peer.send(p_data(1, 3, rawpeer.store_command(CT.encode(), b"1.2")))
            elif number % 3 == 1:
                peer.release()
    assert eventually(lambda: (descriptors(), threading.active_count()) <= before)
    done = subprocess.run(
        [program("echoscu", "dcmtk"), "--repeat", "3", "-aet", "CT1", "127.0.0.1", str(node.plain_port)],
        capture_output=True, text=True, timeout=60, check=False,
    )
    assert done.returncode == 0
