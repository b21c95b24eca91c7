"""Association slots while the database fails: none stays taken for longer than that, and none is taken from who holds it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.db.engine import Database
from archive.db.tables import association_slot
from archive.errors import CommitUncertain, DatabaseUnavailable
from archive.services import slots as slots_module
from archive.services.processes import this_worker
from archive.services.slots import Slots
from tests.services.peer_world import World, made


class Failing:
    """The database, which fails as the test says."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.before = self.behind = False
        self.undone = self.later = False
        self.asked = threading.Semaphore(0)

    @contextmanager
    def begin(self, *, durable: bool) -> Iterator[sa.Connection]:
        self.asked.release()
        if self.before:
            raise DatabaseUnavailable("it is gone", remedy="wait")
        with self.database.begin(durable=durable) as tx:
            yield tx
            if self.undone or (self.later and threading.current_thread().name == "slots"):
                raise DatabaseUnavailable("it went meanwhile", remedy="wait")
        if self.behind:
            raise CommitUncertain("nobody knows", remedy="look")


@pytest.fixture(autouse=True)
def _soon(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:  # which is closed after this
    monkeypatch.setattr(slots_module, "AGAIN_S", 0.02)
    yield
    end = time.monotonic() + 30
    while any(thread.name == "slots" for thread in threading.enumerate()):
        assert time.monotonic() < end, "what gives slots back goes on without end"
        time.sleep(0.01)


@pytest.fixture
def world(database: Database, tmp_path: Path) -> World:
    return made(database, tmp_path)


def opened(world: World, tmp_path: Path) -> tuple[Failing, Slots, int]:
    peer_id = world.admit("CT1", world.issued("CT1", tmp_path / "ct1", max_associations=1)).subject.peer_id
    assert peer_id is not None
    failing = Failing(world.database)
    return failing, Slots(failing, world.clock, most=10, most_of_a_peer=10), peer_id  # type: ignore[arg-type]


def keys(world: World) -> list[int]:
    with world.database.read() as tx:
        return list(tx.execute(sa.select(association_slot.c.id)).scalars())


def emptied(world: World) -> None:
    end = time.monotonic() + 30
    while keys(world):
        assert time.monotonic() < end, "the slot stays taken"
        time.sleep(0.01)


def test_what_could_not_be_given_back_is_given_back_when_the_database_answers(world: World, tmp_path: Path) -> None:
    failing, slots, peer_id = opened(world, tmp_path)
    with slots.hold(peer_id, this_worker()):
        failing.before = True
    for _ in range(6):
        assert failing.asked.acquire(timeout=30)
    assert len(keys(world)) == 1
    failing.before = False
    emptied(world)
    with slots.hold(peer_id, this_worker()):
        assert len(keys(world)) == 1
    assert not keys(world)


def test_one_that_nobody_knows_to_be_taken_is_given_back(world: World, tmp_path: Path) -> None:
    failing, slots, peer_id = opened(world, tmp_path)
    failing.behind = True
    with pytest.raises(CommitUncertain), slots.hold(peer_id, this_worker()):
        raise AssertionError
    failing.behind = False
    emptied(world)


def test_a_number_that_is_given_out_anew_is_not_given_back_for_the_one_before(world: World, tmp_path: Path) -> None:
    failing, slots, peer_id = opened(world, tmp_path)
    failing.undone = failing.later = True
    with pytest.raises(DatabaseUnavailable), slots.hold(peer_id, this_worker()):
        raise AssertionError
    failing.undone = False
    with slots.hold(peer_id, this_worker()):  # SQLite gives it the number of the row that was never committed
        failing.later = False
        end = time.monotonic() + 30
        while any(thread.name == "slots" for thread in threading.enumerate()):
            assert time.monotonic() < end
            time.sleep(0.01)
        assert len(keys(world)) == 1
    assert not keys(world)
