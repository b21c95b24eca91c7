"""Lock files hold between processes, and end with the process that holds them."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from archive import locks
from archive.errors import VaultUnavailable

_CONTEXT = multiprocessing.get_context("spawn")


def _in_turn(lock: Path, log: Path) -> None:
    for _ in range(20):
        with locks.alone(lock):
            with log.open("a") as file:
                file.write("in\n")
            with log.open("a") as file:
                file.write("out\n")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    workers = [_CONTEXT.Process(target=_in_turn, args=(tmp_path / "lock", tmp_path / "log")) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert (tmp_path / "log").read_text().split() == ["in", "out"] * 60


def _hold(lock: Path, told: Connection) -> None:
    told.send(locks.take(lock) is not None)
    told.recv()


def test_a_lock_ends_with_a_process_that_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert not locks.is_taken(lock)
    assert not lock.exists()
    here, there = _CONTEXT.Pipe()
    holder = _CONTEXT.Process(target=_hold, args=(lock, there))
    holder.start()
    assert here.recv()
    assert locks.is_taken(lock)
    assert locks.take(lock) is None
    with locks.alone_if_free(lock) as free:
        assert not free
    holder.kill()
    holder.join(60)
    assert not locks.is_taken(lock)
    with locks.alone_if_free(lock) as free:
        assert free
        assert locks.is_taken(lock)
    descriptor = locks.take(lock)
    assert descriptor is not None
    os.close(descriptor)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(VaultUnavailable):
        locks.take(tmp_path / "none" / "lock")
    with pytest.raises(VaultUnavailable), locks.alone(tmp_path / "none" / "lock"):
        pass
    assert not locks.is_taken(tmp_path / "none" / "lock")
