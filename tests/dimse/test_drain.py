"""A worker that drains lets running messages end, and leaves nobody waiting at its door."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from archive.dimse.listener import Endpoint
from archive.dimse.worker import run_worker
from tests.dimse.conftest import Pki, archive_with
from tests.dimse.fakes import FakePeer, FakePeers, FakeStore, eventually
from tests.dimse.rawpeer import AC, CT, IMPLICIT, RawPeer, p_data, store_command
from tests.dimse.test_worker import FakeNode


def refused(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=30).close()
    except ConnectionRefusedError:
        return True
    return False


def test_who_connects_while_a_worker_drains_is_refused_at_once(pki: Pki, tmp_path: Path) -> None:
    node = FakeNode(archive_with(pki, tmp_path), FakeStore(), FakePeers([FakePeer(1, "CT1", ("CT1",))]))
    listening = socket.create_server(("127.0.0.1", 0), backlog=8)
    address = listening.getsockname()
    stop, ready = threading.Event(), threading.Event()
    worker = threading.Thread(
        target=run_worker, args=(node, [Endpoint(listening, tls=False)], stop), kwargs={"ready": ready.set, "drain_s": 10}, daemon=True,
    )
    worker.start()
    assert ready.wait(60)
    with RawPeer(socket.create_connection(address, timeout=60)) as peer:
        assert peer.associate([(CT, [IMPLICIT])]) == AC
        peer.send(p_data(1, 3, store_command(CT.encode(), b"1.2.3")))
        peer.send(p_data(1, 0, b"half"))
        assert eventually(lambda: node.store.opened == 1)  # an association between two messages would be ended at once
        stop.set()
        assert eventually(lambda: refused(address))
        peer.send(p_data(1, 2, b"rest"))
        assert peer.response()[0x0900] == b"\0\0"
    worker.join(60)
    assert not worker.is_alive()
