"""How associations end, and how many there may be."""

from __future__ import annotations

import threading
import time

import pytest

from archive.dimse.contexts import VERIFICATION
from tests.dimse import rawpeer
from tests.dimse.conftest import StartNode, with_peer
from tests.dimse.fakes import FakeStore, eventually
from tests.dimse.rawpeer import AC, CT, IMPLICIT, RawPeer


def test_idle_associations_are_ended(start_node: StartNode) -> None:
    node = start_node(idle_timeout_s=3)
    with RawPeer(node.connect()) as peer:
        assert peer.associate([(VERIFICATION, [IMPLICIT])]) == AC
        started = time.monotonic()
        assert peer.echo() == 0
        assert peer.read_pdu()[0] == rawpeer.ABORT
        assert 2.9 < time.monotonic() - started < 30
        assert peer.at_end()
    assert eventually(lambda: node.listener.associations == 0)


def test_a_store_that_takes_long_is_not_idle(start_node: StartNode) -> None:
    store = FakeStore(gate=threading.Event())
    node = start_node(store=store, idle_timeout_s=3)
    with RawPeer(node.connect()) as peer:
        assert peer.associate([(CT, [IMPLICIT])]) == AC
        peer.message(1, rawpeer.store_command(CT.encode(), b"1.2.3"), b"data")
        assert store.finishing.wait(60)
        time.sleep(4)
        assert store.gate is not None
        store.gate.set()
        assert peer.response()[0x0900] == b"\0\0"
        time.sleep(1.3)  # the peer's silence begins with the answer
        peer.release()


def test_a_pdu_that_trickles_is_cut_off(start_node: StartNode) -> None:
    node = start_node(idle_timeout_s=1)
    with RawPeer(node.connect()) as peer:
        assert peer.associate([(CT, [IMPLICIT])]) == AC
        peer.send(rawpeer.p_data(1, 3, rawpeer.store_command(CT.encode(), b"1.2.3")))
        with pytest.raises(OSError):  # noqa: PT011 # reset or broken pipe
            peer.trickle(rawpeer.p_data(1, 0, bytes(10_000)), 0.2)
    assert eventually(lambda: node.store.aborted == 1)


def test_associations_are_limited_per_peer_and_altogether(start_node: StartNode) -> None:
    node = start_node(max_associations=3)
    with_peer(node, limit=2)
    peers = [RawPeer(node.connect()) for _ in range(5)]
    assert [p.associate([(VERIFICATION, [IMPLICIT])]) for p in peers[:2]] == [AC, AC]
    assert peers[2].associate([(VERIFICATION, [IMPLICIT])]) == rawpeer.RJ
    assert peers[2].answer[1:] == bytes((2, 3, 2))
    assert peers[3].associate([(VERIFICATION, [IMPLICIT])], calling="ECHO") == AC
    assert peers[4].associate([(VERIFICATION, [IMPLICIT])], calling="ECHO") == rawpeer.RJ
    assert peers[4].answer[1:] == bytes((2, 3, 2))
    peers[0].release()
    assert eventually(lambda: node.listener.associations == 2)
    assert eventually(lambda: node.peers.slots[2] == 1)  # given back a moment later
    with RawPeer(node.connect()) as again:
        assert again.associate([(VERIFICATION, [IMPLICIT])]) == AC
        again.release()
    for p in peers:
        p.connection.close()


def test_stopping_lets_a_running_instance_finish(start_node: StartNode) -> None:
    store = FakeStore(gate=threading.Event())
    node = start_node(store=store)
    busy, idle = RawPeer(node.connect()), RawPeer(node.connect())
    assert busy.associate([(CT, [IMPLICIT])]) == AC
    assert idle.associate([(VERIFICATION, [IMPLICIT])]) == AC
    busy.message(1, rawpeer.store_command(CT.encode(), b"1.2.3"), b"data")
    assert store.finishing.wait(60)
    drained: list[bool] = []
    draining = threading.Thread(target=lambda: drained.append(node.listener.drain(10)))
    draining.start()
    assert idle.read_pdu()[0] == rawpeer.ABORT
    assert busy.connection
    assert store.gate is not None
    store.gate.set()
    assert busy.response()[0x0900] == b"\0\0"
    draining.join(10)
    assert drained == [True]
    assert len(store.kept) == 1
    for p in (busy, idle):
        p.connection.close()
