"""What SQLite keeps in memory: little after a long read, and no more than a process may have."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
import sqlcipher3._sqlite3

from archive.db import connect
from archive.db.engine import Database

ROWS, ROW_BYTES = 2000, 3000


@pytest.fixture
def used() -> Callable[[], int]:
    library = ctypes.CDLL(sqlcipher3._sqlite3.__file__)
    if not hasattr(library, "sqlite3_memory_used"):
        pytest.skip("this build of SQLite does not tell what it has")
    library.sqlite3_memory_used.restype = ctypes.c_int64
    return lambda: int(library.sqlite3_memory_used())


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database.embedded(tmp_path / "i.db", os.urandom(32), tmp_path / "lock", guarded=False)
    with database.begin() as tx:
        tx.exec_driver_sql("CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB)")
        tx.exec_driver_sql("INSERT INTO t (b) VALUES (?)", [(os.urandom(ROW_BYTES),) for _ in range(ROWS)])
    return database


def read(tx: sa.Connection) -> None:
    assert tx.exec_driver_sql("SELECT count(*), sum(length(b)) FROM t").one() == (ROWS, ROWS * ROW_BYTES)


def test_a_long_read_gives_its_pages_back(database: Database, used: Callable[[], int]) -> None:
    before = used()
    with database.read() as tx:
        read(tx)
        during = used() - before
        time.sleep(2 * connect.LONG_S)
    assert during > ROWS * ROW_BYTES // 2
    assert used() - before < 1 << 20
    database.close()


def test_many_readers_share_one_bound(database: Database, used: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each alone may have 16 MB; all together stop growing at the bound, and still read everything."""
    assert connect.MEMORY_BYTES > 16 << 20
    monkeypatch.setattr(connect, "MEMORY_BYTES", 12 << 20)
    database.engine.dispose()
    held = [database.engine.connect() for _ in range(6)]
    try:
        before = used()
        for one in held:
            read(one)
        assert used() < max(before, 12 << 20) + (4 << 20)
        for one in held:
            read(one)
    finally:
        for one in held:
            one.close()
        database.engine.dispose()
        monkeypatch.undo()
        with database.read() as tx:  # the bound is the process's: as it was, for those who come
            assert tx.exec_driver_sql("PRAGMA soft_heap_limit").scalar() == connect.MEMORY_BYTES
        database.close()
