"""The write-ahead log: who moves it makes nobody wait for a reader."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.db import wal
from archive.db.engine import Database
from archive.db.migrate import create_all
from archive.db.tables import archive_state
from tests.db.test_engine import names, put


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database.embedded(tmp_path / "i.db", os.urandom(32), tmp_path / "lock")
    create_all(database)
    return database


def test_a_reader_holds_up_no_writer_while_the_log_is_moved(database: Database) -> None:
    with ThreadPoolExecutor(2) as pool, database.read() as reading:
        assert not reading.execute(sa.select(archive_state)).all()
        database.group(put("first"))
        moved = pool.submit(database.checkpoint, patient=False)
        assert moved.result(timeout=10) is False  # the reader's state is still needed
        assert pool.submit(database.group, put("second")).result(timeout=10) == "second"
        assert not reading.execute(sa.select(archive_state)).all()
    assert database.checkpoint(patient=False)
    assert database.log_bytes() == 0
    assert names(database) == ["first", "second"]
    database.close()


def test_connections_wait_for_locks_as_before_after_the_log_was_moved(database: Database) -> None:
    database.group(put("one"))
    assert database.log_bytes() > 0
    assert database.checkpoint(patient=False)
    for _ in range(3):
        with database.read() as tx:
            assert tx.execute(sa.text("PRAGMA busy_timeout")).scalar_one() == wal.BUSY_MS
            assert tx.execute(sa.text("PRAGMA wal_autocheckpoint")).scalar_one() == wal.AUTOMATIC_PAGES
    database.close()


def test_a_log_that_is_not_cut_is_written_again_from_its_beginning(database: Database) -> None:
    assert database.checkpoint()
    for number in range(20):
        database.group(put(f"{number:02d}"))
    length = database.log_bytes()
    assert database.log_waiting_bytes() == length - 32  # all but the log's own header
    assert database.checkpoint(patient=False, cut=False)
    assert (database.log_bytes(), database.log_waiting_bytes()) == (length, 0)
    database.group(put("again"))
    assert database.log_bytes() == length
    assert 0 < database.log_waiting_bytes() < length / 2
    assert names(database) == sorted([*(f"{number:02d}" for number in range(20)), "again"])
    assert database.checkpoint(patient=False)
    assert (database.log_bytes(), database.log_waiting_bytes()) == (0, 0)
    database.close()


def test_a_reader_keeps_what_it_sees_from_being_overwritten(database: Database) -> None:
    database.group(put("first"))
    with database.read() as reading:
        assert len(reading.execute(sa.select(archive_state)).all()) == 1
        database.group(put("second"))
        assert database.checkpoint(patient=False, cut=False) is False
        assert database.log_waiting_bytes() > 0
        database.group(put("third"))
        assert len(reading.execute(sa.select(archive_state)).all()) == 1
    assert database.checkpoint(patient=False, cut=False)
    assert names(database) == ["first", "second", "third"]
    database.close()


def test_without_its_index_all_of_the_log_counts(database: Database) -> None:
    database.group(put("one"))
    assert wal.waiting_bytes(database.url.set(database=str(Path(str(database.url.database)).with_name("none.db")))) == 0
    database.close()
