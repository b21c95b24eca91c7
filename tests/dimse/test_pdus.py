"""PduStream: what is said to be ready is never waited for, and nobody who takes their time is waited for without an end."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from archive.dimse.pdus import P_DATA_TF, Closed, PduStream, Silence
from tests.dimse.fakes import eventually
from tests.dimse.rawpeer import p_data
from tests.dimse.test_secured import Pair, pair  # noqa: F401 # a fixture

WHOLE = p_data(1, 3, b"C-CANCEL")


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    listening = socket.create_server(("127.0.0.1", 0))
    theirs = socket.create_connection(listening.getsockname(), timeout=60)
    ours, _ = listening.accept()
    listening.close()
    with ours, theirs:
        yield ours, theirs


def taken(stream: PduStream) -> int:
    started = time.monotonic()
    pdu_type, _ = stream.next()
    assert time.monotonic() - started < 5
    return pdu_type


def test_a_part_of_a_pdu_is_not_ready(ends: tuple[socket.socket, socket.socket]) -> None:
    stream = PduStream(ends[0], maximum_pdu_bytes=16384, timeout_s=20)
    for at in range(len(WHOLE)):
        assert not stream.ready, at
        ends[1].sendall(WHOLE[at : at + 1])
    assert eventually(lambda: stream.ready)
    assert taken(stream) == P_DATA_TF
    assert not stream.ready
    ends[1].sendall(WHOLE * 2 + WHOLE[:9])
    assert eventually(lambda: stream.ready)
    assert [stream.ready, taken(stream), stream.ready, taken(stream), stream.ready] == [True, P_DATA_TF, True, P_DATA_TF, False]


def test_a_part_of_a_record_is_not_ready(pair: Pair) -> None:  # noqa: F811
    """A C-FIND that listens for C-CANCEL goes on while half a record lies there."""
    stream = PduStream(pair.secured, maximum_pdu_bytes=16384, timeout_s=20)
    sealed = pair.client.encrypted(WHOLE)
    for at in range(len(sealed)):
        assert not stream.ready, at
        pair.client.connection.sendall(sealed[at : at + 1])
    assert eventually(lambda: stream.ready)
    assert taken(stream) == P_DATA_TF
    assert not stream.ready


@pytest.mark.parametrize(
    "said", [b"", WHOLE[:9], b"\x09\0\0\0\0\x04", b"\x04\0\xff\xff\xff\xff"], ids=["end", "half", "no-pdu", "too-long"]
)
def test_what_ends_it_is_ready(ends: tuple[socket.socket, socket.socket], said: bytes) -> None:
    stream = PduStream(ends[0], maximum_pdu_bytes=16384, timeout_s=20)
    ends[1].sendall(said)
    if len(said) != 6:
        ends[1].shutdown(socket.SHUT_WR)
    assert eventually(lambda: stream.ready)
    started = time.monotonic()
    with pytest.raises(Exception) as caught:  # noqa: PT011 # Closed or ProtocolError
        stream.next()
    assert type(caught.value).__name__ in {"Closed", "ProtocolError"}
    assert time.monotonic() - started < 5


def test_pdus_without_an_end_are_not_waited_for(ends: tuple[socket.socket, socket.socket]) -> None:
    stream = PduStream(ends[0], maximum_pdu_bytes=16384, timeout_s=20)
    ends[1].sendall(WHOLE * 3)
    assert stream.next(by=time.monotonic() + 30)[0] == P_DATA_TF
    with pytest.raises(Silence):
        stream.next(by=time.monotonic() - 0.001)


@pytest.mark.parametrize("over_tls", [False, True])
def test_who_reads_a_little_now_and_then_is_as_good_as_gone(
    ends: tuple[socket.socket, socket.socket], pair: Pair, over_tls: bool,  # noqa: F811
) -> None:
    connection, reader = (pair.secured, pair.client.connection) if over_tls else ends
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    stop = threading.Event()

    def read() -> None:
        while not stop.wait(0.05):
            reader.recv(16384)

    stream = PduStream(connection, maximum_pdu_bytes=16384, timeout_s=0.4)
    thread = threading.Thread(target=read)
    thread.start()
    started = time.monotonic()
    stopping = threading.Timer(20, lambda: (stop.set(), connection.close()))
    stopping.start()
    with pytest.raises(Closed):
        stream.send(bytes(8 << 20))
    assert time.monotonic() - started < 12
    stop.set()
    stopping.cancel()
    thread.join(10)
