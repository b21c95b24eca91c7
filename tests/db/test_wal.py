"""The write-ahead log: who moves it makes nobody wait for a reader."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.db import wal
from archive.db.engine import Database
from archive.db.migrate import create_all
from archive.db.tables import archive_state
from tests.db.test_engine import names, put

KEY = os.urandom(32)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database.embedded(tmp_path / "i.db", KEY, tmp_path / "lock")
    create_all(database)
    return database


def test_a_reader_holds_up_no_writer_while_the_log_is_moved(database: Database) -> None:
    with ThreadPoolExecutor(2) as pool, database.read() as reading:
        assert not reading.execute(sa.select(archive_state)).all()
        database.group(put("first"))
        moved = pool.submit(database.checkpoint, patient=False)
        assert moved.result(timeout=25) is False  # the reader's state is still needed
        assert pool.submit(database.group, put("second")).result(timeout=25) == "second"
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


def test_without_its_index_the_log_is_gone_through(database: Database, tmp_path: Path) -> None:
    database.group(put("one"))
    left = tmp_path / "left"
    left.mkdir()
    for name in ("i.db", "i.db-wal"):
        shutil.copy(tmp_path / name, left / name)
    waiting = database.log_waiting_bytes()
    other = Database.embedded(left / "i.db", KEY, left / "lock")
    assert other.log_waiting_bytes() == waiting > 0
    assert names(other) == ["one"]
    other.close()
    database.close()


OTHER = """
import sys
from pathlib import Path
from archive.db.engine import Database
database = Database.embedded(Path(sys.argv[1]), bytes.fromhex(sys.argv[2]), Path(sys.argv[3]))
print(database.checkpoint(patient=False))
database.close()
"""


def test_asking_how_long_the_log_is_takes_no_lock_away(tmp_path: Path) -> None:
    """Who closes a file of SQLite's gives up every lock the process has on it, and others write over what its readers still read."""
    key = os.urandom(32)
    database = Database.embedded(tmp_path / "i.db", key, tmp_path / "lock")
    create_all(database)

    def moved_by_another() -> bool:
        arguments = [sys.executable, "-c", OTHER, str(tmp_path / "i.db"), key.hex(), str(tmp_path / "lock")]
        return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout == "True\n"

    database.group(put("first"))
    with database.read() as reading:
        assert len(reading.execute(sa.select(archive_state)).all()) == 1
        database.group(put("second"))
        assert database.log_bytes() > 0
        assert database.log_waiting_bytes() > 0
        assert not moved_by_another()
        assert len(reading.execute(sa.select(archive_state)).all()) == 1
    assert moved_by_another()
    database.close()
