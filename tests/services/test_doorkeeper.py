"""Association slots: counted per peer and altogether, given back, swept."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.config import parse
from archive.db.engine import Database
from archive.db.tables import association_slot
from archive.errors import Unavailable
from archive.services import processes
from archive.services.peers import Peers
from archive.services.processes import is_alive, this_worker
from tests.services.peer_world import World, embedded, made


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An archive on the embedded database."""
    with embedded(tmp_path) as made_here:
        yield made_here


@pytest.fixture
def anywhere(database: Database, tmp_path: Path) -> World:
    """An archive on each engine in turn."""
    return made(database, tmp_path)


def slots(world: World) -> int:
    with world.database.read() as tx:
        return int(tx.execute(sa.select(sa.func.count()).select_from(association_slot)).scalar_one())


def test_slots_are_counted_per_peer_and_given_back(anywhere: World, tmp_path: Path) -> None:
    certificate = anywhere.issued("CT1", tmp_path / "ct1", max_associations=2)
    peer_id = anywhere.admit("CT1", certificate).subject.peer_id
    assert peer_id is not None
    worker = this_worker()
    with anywhere.peers.slot(peer_id, worker), anywhere.peers.slot(peer_id, worker):
        assert slots(anywhere) == 2
        with pytest.raises(Unavailable), anywhere.peers.slot(peer_id, worker):
            pass
    assert slots(anywhere) == 0
    with pytest.raises(ZeroDivisionError), anywhere.peers.slot(peer_id, worker):
        raise ZeroDivisionError
    assert slots(anywhere) == 0
    assert anywhere.peers.list(anywhere.console)[0]["last_seen_at"] == anywhere.clock()


def test_slots_of_the_whole_archive(world: World, tmp_path: Path) -> None:
    raw = {"archive": {"storage": "storage"}, "dimse": {"max_associations": 3}}
    peers = Peers(world.database, world.ledger, world.keyring, world.clock, parse(raw, Path(world.config.path)))
    ids = []
    for name in ("A", "B"):
        certificate = world.issued(name, tmp_path / name)
        ids.append(world.admit(name, certificate).subject.peer_id or 0)
    worker = this_worker()
    with peers.slot(ids[0], worker), peers.slot(ids[0], worker), peers.slot(ids[1], worker):
        fourth = peers.slot(ids[1], worker)
        with pytest.raises(Unavailable):
            fourth.__enter__()
    assert slots(world) == 0


def test_slots_of_the_whole_archive_that_peers_ask_for_at_once(anywhere: World, tmp_path: Path) -> None:
    """Two processes: neither sees what the other is about to take."""
    raw = {"archive": {"storage": "storage"}, "dimse": {"max_associations": 1}}
    peers = Peers(anywhere.database, anywhere.ledger, anywhere.keyring, anywhere.clock, parse(raw, Path(anywhere.config.path)))
    ids = [anywhere.admit(name, anywhere.issued(name, tmp_path / name)).subject.peer_id or 0 for name in ("A", "B", "C")]
    together = threading.Barrier(len(ids))
    counted: list[int] = []

    def associate(peer_id: int) -> None:
        for _ in range(10):
            together.wait()
            with contextlib.suppress(Unavailable), peers.slot(peer_id, this_worker()):
                counted.append(slots(anywhere))
                together.wait()
                continue
            together.wait()

    threads = [threading.Thread(target=associate, args=(one,)) for one in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted == [1] * 10


def test_slots_of_a_dead_worker_are_swept(world: World, tmp_path: Path) -> None:
    certificate = world.issued("CT1", tmp_path / "ct1", max_associations=1)
    peer_id = world.admit("CT1", certificate).subject.peer_id or 0
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    name = f"{child.pid}-{processes._started(child.pid)}"
    assert is_alive(name)
    held = world.peers.slot(peer_id, name)
    held.__enter__()
    with pytest.raises(Unavailable), world.peers.slot(peer_id, this_worker()):
        pass
    child.kill()
    child.wait()
    assert not is_alive(name)
    with world.peers.slot(peer_id, this_worker()):
        assert slots(world) == 1
    held.__exit__(None, None, None)


def test_sweeping_a_worker_that_ends(world: World, tmp_path: Path) -> None:
    certificate = world.issued("CT1", tmp_path / "ct1")
    peer_id = world.admit("CT1", certificate).subject.peer_id or 0
    held = world.peers.slot(peer_id, world.peers.worker)
    held.__enter__()
    world.peers.sweep("1-1")
    assert slots(world) == 1
    world.peers.sweep(world.peers.worker)
    assert slots(world) == 0
    held.__exit__(None, None, None)


def test_a_process_id_that_came_back_is_another_worker() -> None:
    assert is_alive(this_worker())
    assert not is_alive(f"{os.getpid()}-1")
    assert not is_alive("4194304-1")
    assert not is_alive("nonsense")


def test_slots_from_many_threads(anywhere: World, tmp_path: Path) -> None:
    certificate = anywhere.issued("CT1", tmp_path / "ct1", max_associations=3)
    peer_id = anywhere.admit("CT1", certificate).subject.peer_id or 0
    inside, most, lock = 0, 0, threading.Lock()
    refused = 0

    def associate() -> None:
        nonlocal inside, most, refused
        for _ in range(6):
            try:
                with anywhere.peers.slot(peer_id, this_worker()):
                    with lock:
                        inside += 1
                        most = max(most, inside)
                    with lock:
                        inside -= 1
            except Unavailable:
                with lock:
                    refused += 1

    threads = [threading.Thread(target=associate) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most <= 3
    assert slots(anywhere) == 0


@pytest.fixture(autouse=True)
def _no_left_over_threads() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() <= before
