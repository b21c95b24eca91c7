"""The worker process: several share the listening sockets, each drains on SIGTERM."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from archive.config import Config
from archive.dimse.listener import Endpoint
from archive.dimse.worker import run_worker
from archive.errors import DatabaseUnavailable
from tests.dimse.conftest import Pki, archive_with
from tests.dimse.fakes import FakeLog, FakePeer, FakePeers, FakeStore, eventually
from tests.dimse.rawpeer import ABORT, AC, CT, IMPLICIT, VERIFICATION, RawPeer


@dataclass
class FakeNode:
    """What a worker needs of an opened archive."""

    config: Config
    store: FakeStore
    peers: FakePeers
    query: None = None
    sending: None = None
    worklist: None = None
    steps: None = None
    commitments: None = None
    association_log: FakeLog = field(default_factory=FakeLog)


def serve(config: Config, endpoints: list[Endpoint], pipe: Connection, fingerprint: str) -> None:
    """The body of a worker process, reporting through a pipe."""
    peers = FakePeers([FakePeer(1, "CT1", ("CT1",)), FakePeer(2, "CT1 tls", ("CT1",), fingerprint)])
    node = FakeNode(config, FakeStore(), peers)
    orderly = run_worker(node, endpoints, threading.Event(), ready=lambda: pipe.send("ready"), drain_s=5)  # type: ignore[arg-type]
    pipe.send((orderly, len(node.store.kept), len(peers.swept)))


def test_two_workers_share_the_sockets_and_drain(pki: Pki, tmp_path: Path) -> None:
    config = archive_with(pki, tmp_path)
    plain, tls = (socket.create_server(("127.0.0.1", 0), backlog=128) for _ in range(2))
    endpoints = [Endpoint(plain, tls=False), Endpoint(tls, tls=True)]
    start = multiprocessing.get_context("fork")
    workers = []
    for _ in range(2):
        ours, theirs = start.Pipe()
        process = start.Process(target=serve, args=(config, endpoints, theirs, pki.ct1.sha256))
        process.start()
        theirs.close()
        workers.append((process, ours))
    for _, pipe in workers:
        assert pipe.poll(60)
        assert pipe.recv() == "ready"
    for _ in range(10):
        with RawPeer(socket.create_connection(plain.getsockname(), timeout=60)) as peer:
            assert peer.associate([(VERIFICATION, [IMPLICIT])]) == AC
            assert peer.echo() == 0
            peer.release()
    secured = pki.client_context(pki.ct1).wrap_socket(socket.create_connection(tls.getsockname(), timeout=60))
    with RawPeer(secured) as peer:
        assert peer.associate([(CT, [IMPLICIT])]) == AC
        assert peer.store(1, CT, "1.2.3", b"data") == 0
        for process, _ in workers:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGTERM)
        assert peer.read_pdu()[0] == ABORT
    plain.close()
    tls.close()
    stored = 0
    for process, pipe in workers:
        assert pipe.poll(60)
        orderly, kept, swept = pipe.recv()
        assert (orderly, swept) == (True, 1)
        stored += kept
        process.join(60)
        assert process.exitcode == 0
        pipe.close()
    assert stored == 1


def test_of_two_that_share_a_socket_the_idle_one_is_first(pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archive.dimse.listener._YIELD_S", 1.0)
    config = archive_with(pki, tmp_path)
    nodes = [FakeNode(config, FakeStore(), FakePeers([FakePeer(1, "CT1", ("CT1",))])) for _ in range(2)]
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening, ExitStack() as held:
        threads = []
        for node in nodes:
            ready = threading.Event()
            args, more = (node, [Endpoint(listening.dup(), tls=False)], stop), {"ready": ready.set, "shared": True, "drain_s": 5}
            threads.append(threading.Thread(target=run_worker, args=args, kwargs=more))
            threads[-1].start()
            assert ready.wait(60)
        for number in range(4):
            peer = held.enter_context(RawPeer(socket.create_connection(listening.getsockname(), timeout=60)))
            assert peer.associate([(CT, [IMPLICIT])]) == AC
            assert peer.store(1, CT, f"1.2.{number}", b"data") == 0
        assert [len(node.store.kept) for node in nodes] == [2, 2]
        stop.set()
        for thread in threads:
            thread.join(60)


def test_the_event_stops_it_as_well(pki: Pki, tmp_path: Path) -> None:
    node = FakeNode(archive_with(pki, tmp_path), FakeStore(), FakePeers([FakePeer(1, "CT1", ("CT1",))]))
    stop, ready = threading.Event(), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ended: list[bool] = []
        thread = threading.Thread(
            target=lambda: ended.append(
                run_worker(node, [Endpoint(listening, tls=False)], stop, ready=ready.set)  # type: ignore[arg-type]
            )
        )
        thread.start()
        assert ready.wait(60)
        with RawPeer(socket.create_connection(listening.getsockname(), timeout=60)) as peer:
            assert peer.associate([(VERIFICATION, [IMPLICIT])]) == AC
            peer.release()
        stop.set()
        thread.join(60)
    assert ended == [True]
    assert eventually(lambda: len(node.peers.swept) == 1)


def test_without_its_database_it_stops_as_it_was_told(pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = FakeNode(archive_with(pki, tmp_path), FakeStore(), FakePeers())

    def away(_worker: str) -> None:
        message = "the connection to the database was lost"
        raise DatabaseUnavailable(message)

    monkeypatch.setattr(node.peers, "sweep", away)
    stop = threading.Event()
    stop.set()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert run_worker(node, [Endpoint(listening, tls=False)], stop)  # type: ignore[arg-type]
    assert node.association_log.flushed == 1


def test_a_hard_limit_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    from archive.dimse import worker

    wanted: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _what, limits: wanted.append(limits))
    worker._allow_descriptors()
    assert wanted == [(4096, 4096)]
