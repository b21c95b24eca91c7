"""The accepting thread goes on whatever comes, and whatever the machine runs out of."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress

import pytest
from pynetdicom.pdu_items import PresentationContextItemRQ

from archive.config import Dimse
from archive.dimse.listener import Endpoint, Listener
from tests.dimse import fakes, rawpeer


class Door:
    """A listener run in the test's own thread: before each look at its sockets one step of the test."""

    def __init__(self, lobby_connections: int) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.callers: list[socket.socket] = []
        self.heard = b""
        self.peers = fakes.FakePeers()
        self.listener = Listener(
            [Endpoint(self.listening, tls=False)], config=Dimse(), peers=self.peers, lane=None,  # type: ignore[arg-type]
            files=None, worker="test",
            lobby_connections=lobby_connections,
        )

    def call(self) -> None:
        self.callers.append(socket.create_connection(self.listening.getsockname(), timeout=60))

    def say(self, caller: int, data: bytes) -> None:
        self.callers[caller].sendall(data)

    def hear(self, caller: int) -> None:
        self.heard = self.callers[caller].recv(1)

    def hung_up_on(self, caller: int) -> bool:
        try:
            return self.callers[caller].recv(1) == b""
        except ConnectionError:
            return True

    def run(self, *steps: Callable[[], object]) -> None:
        left = iter(steps)

        def stopping() -> bool:
            step = next(left, None)
            if step is not None:
                step()
            return step is None

        self.listener.run(stopping)


@pytest.fixture
def door() -> Iterator[Door]:
    made = Door(lobby_connections=1)
    yield made
    made.listener.drain(5)
    for one in (made.listening, *made.callers):
        one.close()


def test_who_speaks_while_another_takes_its_place_ends_nothing(door: Door) -> None:
    def at_once() -> None:
        door.call()
        door.say(0, b"\x01")

    seen: list[int] = []
    door.run(door.call, at_once, lambda: seen.append(door.listener.visitors))
    assert seen == [1]
    assert door.hung_up_on(0)


def test_without_a_thread_for_a_visitor_the_others_are_served(
    door: Door, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none_left(self: threading.Thread) -> None:
        message = "can't start new thread"
        raise RuntimeError(message)

    monkeypatch.setattr(threading.Thread, "start", none_left)
    door.run(
        door.call, lambda: door.say(0, b"\x01"), door.call, lambda: door.say(1, b"\x01"), monkeypatch.undo,
        door.call, lambda: door.say(2, bytes(6)), lambda: door.hear(2),
    )
    assert door.hung_up_on(0)
    assert door.hung_up_on(1)
    assert door.heard == b"\x07"
    assert [record.getMessage() for record in caplog.records].count("a connection could not be accepted") == 1


def test_without_a_place_in_the_selector_the_others_are_served(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(door.listener._selector, "register", full)
        door.run(door.call, patched.undo, door.call, lambda: door.say(1, bytes(6)), lambda: door.hear(1))
    assert door.hung_up_on(0)
    assert door.heard == b"\x07"


def test_who_come_at_the_same_time_are_no_more_than_there_may_be(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first has a place from the moment it is let in: what comes before it is served takes a look into the database."""
    peers, both = door.peers, threading.Barrier(2)
    peers.peers.append(fakes.FakePeer(1, "CT1", ("CT1",)))
    slot, given = peers.slot, list[int]()

    def slow(peer_id: int, worker: str) -> AbstractContextManager[None]:
        given.append(peer_id)
        with suppress(threading.BrokenBarrierError):
            both.wait(3)
        return slot(peer_id, worker)

    monkeypatch.setattr(peers, "slot", slow)
    monkeypatch.setattr(door.listener, "_config", Dimse(max_associations=1))
    monkeypatch.setattr(door.listener, "_places", 1, raising=False)
    asked = rawpeer.associate_rq([(rawpeer.VERIFICATION, [rawpeer.IMPLICIT])])
    door.run(
        door.call, lambda: door.say(0, asked), lambda: fakes.eventually(lambda: given),
        door.call, lambda: door.say(1, asked), lambda: door.hear(1),
    )
    assert door.heard == bytes((rawpeer.RJ,))
    assert len(given) == 1


def test_of_who_is_unknown_nothing_is_read_but_who_it_says_it_is(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """What 128 contexts propose takes a third of a second of processor time, and a stranger may send them again and again."""
    read: list[bytes] = []
    monkeypatch.setattr(PresentationContextItemRQ, "decode", lambda _, encoded: read.append(encoded))
    proposed = rawpeer.associate_rq([(rawpeer.CT, [rawpeer.IMPLICIT] * 70)] * 127, calling="NOBODY")
    door.run(door.call, lambda: door.say(0, proposed), lambda: door.hear(0))
    assert door.heard == bytes((rawpeer.RJ,))
    assert not read
