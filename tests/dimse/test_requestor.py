"""Requestor: a destination may answer late, but not for ever with something else."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from archive.dimse import pdus
from archive.dimse.contexts import Answered, Proposed
from archive.dimse.requestor import Broken, Requestor, Terms
from archive.services.sending import Leaving
from tests.dimse.rawpeer import CT, EXPLICIT, command, element, p_data, uid_value

ANSWER_S = 0.5


def stored(message_id: int, status: int = 0) -> bytes:
    return command(
        element(0x0002, uid_value(CT.encode())), element(0x0100, b"\x01\x80"), element(0x0120, struct.pack("<H", message_id)),
        element(0x0800, b"\x01\x01"), element(0x0900, struct.pack("<H", status)),
    )


def whole(connection: socket.socket) -> tuple[int, bytes]:
    head = exactly(connection, 6)
    kind, length = struct.unpack(">BxL", head)
    return kind, head + exactly(connection, length)


def exactly(connection: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        piece = connection.recv(count - len(found))
        if not piece:
            raise EOFError
        found += piece
    return found


class Peer:
    """Takes one association and one C-STORE, and then does as it is told."""

    def __init__(self, then: Callable[[socket.socket, Peer], None]) -> None:
        self.over = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._then = then
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listening.accept()
        with connection, suppress(OSError, EOFError):
            _, request = whole(connection)
            connection.sendall(pdus.associate_ac(request, [Answered(1, CT, 0, EXPLICIT)], (), maximum_pdu_bytes=16384))
            while True:  # until the data set is there
                kind, body = whole(connection)
                if kind == pdus.RELEASE_RQ or (kind == pdus.P_DATA_TF and body[11] == pdus.LAST):
                    break
            self._then(connection, self)

    def close(self) -> None:
        self.over.set()
        self._thread.join(10)
        self._listening.close()


@pytest.fixture
def peer() -> Iterator[Callable[[Callable[[socket.socket, Peer], None]], Requestor]]:
    made: list[Peer] = []

    def start(then: Callable[[socket.socket, Peer], None], answer_s: float = ANSWER_S) -> Requestor:
        made.append(Peer(then))
        terms = Terms("127.0.0.1", made[-1].port, "STRONGROOM", "DST", None, None, 30, answer_s, 16384)
        return Requestor(terms, (Proposed(1, CT, (EXPLICIT,)),))

    yield start
    for one in made:
        one.close()


def store(association: Requestor) -> int:
    return association.store(1, CT, "1.2.3", Leaving(4, iter((b"abcd",))), originator=None)


def test_an_answer(peer: Callable[..., Requestor]) -> None:
    association = peer(lambda connection, _: connection.sendall(p_data(1, 3, stored(1, 0xA700))), 30)
    assert store(association) == 0xA700
    association.abort()


@pytest.mark.parametrize("said", [p_data(1, 3, stored(7)), p_data(1, 0, b"xx"), p_data(1, 1, b"")], ids=["another", "data", "empty"])
def test_something_else_for_ever_is_no_answer(peer: Callable[..., Requestor], said: bytes) -> None:
    def go_on(connection: socket.socket, it: Peer) -> None:
        while not it.over.wait(0.05):
            connection.sendall(said)

    association = peer(go_on)
    ending = threading.Timer(60, association.abort)
    ending.start()
    started = time.monotonic()
    with pytest.raises(Broken):
        store(association)
    assert time.monotonic() - started < 15
    ending.cancel()


def test_a_byte_now_and_then_is_no_answer(peer: Callable[..., Requestor]) -> None:
    def go_on(connection: socket.socket, it: Peer) -> None:
        for byte in p_data(1, 3, stored(1)):
            if it.over.wait(0.3):
                return
            connection.sendall(bytes((byte,)))

    started = time.monotonic()
    with pytest.raises(Broken):
        store(peer(go_on))
    assert time.monotonic() - started < 15


def test_who_does_not_let_us_go_is_left(peer: Callable[..., Requestor]) -> None:
    def go_on(connection: socket.socket, it: Peer) -> None:
        while not it.over.wait(0.05):
            connection.sendall(p_data(1, 0, b"xx"))

    association = peer(go_on)
    ending = threading.Timer(60, association.abort)
    ending.start()
    started = time.monotonic()
    association.release()
    assert time.monotonic() - started < 20
    ending.cancel()
