"""What a C-STORE is answered, whatever the store and the peer do; and that its data set streams."""

from __future__ import annotations

import hashlib
import socket
import struct
import threading
import time
import warnings

import pytest

from archive.dimse.contexts import VERIFICATION
from archive.errors import Forbidden, InvalidInstance, OutOfSpace, UnsupportedClass
from tests.dimse import rawpeer
from tests.dimse.conftest import Running, StartNode
from tests.dimse.fakes import FakeStore, eventually
from tests.dimse.rawpeer import AC, CT, DATA, EXPLICIT, IMPLICIT, RawPeer
from tests.memory import forget_peak, peak_bytes


@pytest.mark.parametrize(
    ("outcome", "status"), [("stored", 0), ("duplicate", 0), ("held", 0xB000), ("conflict", 0x0111), ("quarantined", 0xC000)]
)
def test_outcomes(node: Running, peer: RawPeer, outcome: str, status: int) -> None:
    node.store.outcome = outcome
    assert peer.store(1, CT, "1.2.3.4.5", b"anything") == status
    assert peer.last[0x0002].rstrip(b"\0") == CT.encode()
    assert peer.last[0x1000].rstrip(b"\0") == b"1.2.3.4.5"
    assert peer.last[0x0120] == b"\x01\x00"
    peer.release()


@pytest.mark.parametrize("stage", ["on_open", "on_write", "on_finish"])
@pytest.mark.parametrize(("error", "status"), [
    (Forbidden("no"), 0x0124), (OutOfSpace("full"), 0xA700), (InvalidInstance("CANARY", reason="bad-uid"), 0xC000),
    (InvalidInstance("CANARY", reason="class-mismatch"), 0xA900), (UnsupportedClass("x"), 0x0122), (KeyError("CANARY"), 0x0110),
])
def test_failures_are_answered_and_the_association_goes_on(
    node: Running, peer: RawPeer, caplog: pytest.LogCaptureFixture, stage: str, error: Exception, status: int
) -> None:
    setattr(node.store, stage, error)
    assert peer.store(1, CT, "1.2.3.4.5", bytes(300_000)) == status
    assert len(peer.last.get(0x0902, b"")) <= 64
    assert b"CANARY" not in peer.last.get(0x0902, b"")
    setattr(node.store, stage, None)
    assert node.store.opened == node.store.aborted
    assert peer.store(1, CT, "1.2.3.4.5", b"good", message_id=7) == 0
    assert peer.last[0x0120] == b"\x07\x00"
    assert peer.echo(3) == 0
    peer.release()
    assert "CANARY" not in caplog.text
    assert "1.2.3.4.5" not in caplog.text


@pytest.mark.parametrize("uid", ["../../../../etc/passwd", "1.2\x003", "1." + "2" * 90, "", "abc.123", "1.2' OR '1'='1", "1.2.3 "])
def test_odd_uids_reach_the_store_and_are_repeated_exactly(node: Running, peer: RawPeer, uid: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert peer.store(1, CT, uid, b"x") == 0
    sent = uid.encode().rstrip(b"\0 ")
    assert peer.last[0x1000].rstrip(b"\0 ") == sent
    assert node.store.kept[0].sop_instance_uid == sent.decode()
    peer.release()


def test_a_class_that_is_not_the_contexts(node: Running, peer: RawPeer) -> None:
    assert peer.store(1, "1.2.840.10008.5.1.4.1.1.4", "1.2.3", b"x") == 0x0122
    assert peer.store(3, VERIFICATION, "1.2.3", b"x") == 0x0122
    assert peer.store(1, CT, "1.2.3", b"x") == 0
    peer.release()
    assert node.store.opened == 1


def test_a_store_without_data_set(node: Running, peer: RawPeer) -> None:
    peer.message(1, rawpeer.store_command(CT.encode(), b"1.2.3", data_set=False))
    assert int.from_bytes(peer.response()[0x0900], "little") == 0xC000
    assert peer.store(1, CT, "1.2.3", b"x") == 0
    peer.release()


def test_an_empty_data_set_reaches_the_store(node: Running, peer: RawPeer) -> None:
    assert peer.store(1, CT, "1.2.3", b"") == 0
    assert node.store.kept[0].length == 0
    peer.release()


def test_a_data_set_beyond_the_limit(start_node: StartNode) -> None:
    node = start_node(max_dataset_bytes=1_000_000)
    with RawPeer(node.connect()) as peer:
        assert peer.associate([(CT, [IMPLICIT])]) == AC
        assert peer.store(1, CT, "1.2.3", bytes(1_000_001)) == 0xA700
        assert peer.store(1, CT, "1.2.3", bytes(1_000_000)) == 0
        peer.send(rawpeer.p_data(1, 3, rawpeer.store_command(CT.encode(), b"1.2.3")))
        for _ in range(150):  # endless: aborted at twice the limit
            peer.send(rawpeer.p_data(1, 0, bytes(16000)))
        assert peer.read_pdu()[0] == rawpeer.ABORT
    assert [kept.length for kept in node.store.kept] == [1_000_000]
    assert node.store.opened == 3
    assert eventually(lambda: node.store.aborted == 2)


def test_success_only_after_the_store_has_finished(start_node: StartNode) -> None:
    store = FakeStore(gate=threading.Event())
    node = start_node(store=store)
    with RawPeer(node.connect()) as peer:
        assert peer.associate([(CT, [IMPLICIT])]) == AC
        peer.message(1, rawpeer.store_command(CT.encode(), b"1.2.3"), b"data")
        assert store.finishing.wait(60)
        peer.connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            peer.read_pdu()
        peer.connection.settimeout(10)
        assert store.gate is not None
        store.gate.set()
        assert peer.response()[0x0900] == b"\0\0"
        peer.release()


@pytest.mark.parametrize("after", ["command", "fragment", "half-pdu"])
@pytest.mark.parametrize("how", ["close", "reset", "abort"])
def test_a_dropped_connection_leaves_nothing(node: Running, after: str, how: str) -> None:
    peer = RawPeer(node.connect())
    assert peer.associate([(CT, [IMPLICIT])]) == AC
    peer.send(rawpeer.p_data(1, 3, rawpeer.store_command(CT.encode(), b"1.2.3")))
    if after != "command":
        peer.send(rawpeer.p_data(1, 0, bytes(10_000)))
    if after == "half-pdu":
        peer.send(rawpeer.p_data(1, 2, bytes(10_000))[:5000])
    assert eventually(lambda: node.store.opened == 1)
    if how == "abort":
        peer.send(rawpeer.pdu(rawpeer.ABORT, bytes(4)))
    elif how == "reset":
        peer.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.connection.close()
    assert eventually(lambda: node.store.aborted == 1)
    assert eventually(lambda: node.listener.associations == 0)
    assert node.store.kept == []


def test_a_peer_with_a_tiny_maximum_pdu_gets_its_answer_in_pieces(node: Running) -> None:
    with RawPeer(node.connect()) as peer:
        assert peer.associate([(CT, [IMPLICIT])], max_pdu=40) == AC
        assert peer.store(1, CT, "1.2.3.4.5", b"x") == 0
        assert peer.last[0x1000].rstrip(b"\0") == b"1.2.3.4.5"
        peer.release()


def test_several_values_in_one_pdu(node: Running, peer: RawPeer) -> None:
    """Command and data set in one P-DATA-TF, as some toolkits send small instances."""
    encoded = rawpeer.store_command(CT.encode(), b"1.2.3")
    values = [(3, encoded), (0, b"first"), (2, b" second")]
    body = b"".join(struct.pack(">LBB", len(data) + 2, 1, control) + data for control, data in values)
    peer.send(rawpeer.pdu(DATA, body))
    assert peer.response()[0x0900] == b"\0\0"
    assert node.store.kept[0].data == b"first second"
    peer.release()


def test_a_command_in_fragments(node: Running, peer: RawPeer) -> None:
    encoded = rawpeer.store_command(CT.encode(), b"1.2.3")
    for at in range(0, len(encoded), 7):
        peer.send(rawpeer.p_data(1, 3 if at + 7 >= len(encoded) else 1, encoded[at : at + 7]))
    peer.send(rawpeer.p_data(1, 2, b"data"))
    assert peer.response()[0x0900] == b"\0\0"
    peer.release()


def test_three_hundred_megabytes_stream_through(start_node: StartNode) -> None:
    """The growth of the peak is what one association may cost; the test's own sender stays out of it by sending one block over and over."""
    node = start_node(store=FakeStore(keep_bytes=False))
    block = hashlib.sha256(b"block").digest() * 4096  # 128 KiB less the header of a value
    block = block[: 131072 - 6]
    pdus = 300_000_000 // len(block)
    with RawPeer(node.connect_tls(node.pki.ct1)) as peer:
        assert peer.associate([(CT, [EXPLICIT])]) == AC
        assert peer.store(1, CT, "1.2.3", bytes(1000)) == 0
        forget_peak()
        before = peak_bytes()
        peer.send(rawpeer.p_data(1, 3, rawpeer.store_command(CT.encode(), b"1.2.4")))
        started = time.monotonic()
        fragment = rawpeer.p_data(1, 0, block)
        for _ in range(pdus):
            peer.send(fragment)
        peer.send(rawpeer.p_data(1, 2, b""))
        assert peer.response()[0x0900] == b"\0\0"
        took_s = time.monotonic() - started
        grown = peak_bytes() - before
        peer.release()
    assert node.store.kept[1].length == pdus * len(block)
    digest = hashlib.sha256()
    for _ in range(pdus):
        digest.update(block)
    assert node.store.kept[1].sha256 == digest.hexdigest()
    assert grown < 100_000_000, f"{grown} bytes"
    assert took_s < 60


def test_a_slow_store_makes_the_peer_wait(start_node: StartNode) -> None:
    """Back-pressure: what the store has not taken stays in the sender, not in our memory."""

    store = FakeStore()
    node = start_node(store=store)
    hold = threading.Event()
    real = store.open_dataset

    def slow_open(*args: object, **named: object) -> object:
        incoming = real(*args, **named)  # type: ignore[arg-type]
        hold.wait(20)
        return incoming

    store.open_dataset = slow_open  # type: ignore[method-assign,assignment]
    with RawPeer(node.connect()) as peer:
        assert peer.associate([(CT, [IMPLICIT])]) == AC
        peer.send(rawpeer.p_data(1, 3, rawpeer.store_command(CT.encode(), b"1.2.3")))
        peer.connection.settimeout(0.5)
        with pytest.raises(TimeoutError):  # two megabytes of socket buffers at most, of two hundred
            peer.flood(rawpeer.p_data(1, 0, bytes(100_000)), 2000)
        hold.set()
