"""Which way a file's pages are enciphered is told from the file and its key alone; each way is read, written, copied and re-keyed."""

from __future__ import annotations

import errno
import os
import random
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import sqlcipher3.dbapi2 as sqlcipher

from archive.db import pages, rekey
from archive.db.copies import copy_file
from archive.db.engine import Database
from archive.db.pages import PRESENT, WAYS, Pages
from archive.errors import DatabaseUnavailable
from tests import posix_locks
from tests.vectors.make_databases import FOLDER, KEY, ROWS
from tests.vectors.make_databases import WAYS as FROZEN

every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: str(way.size))


def made(path: Path, way: Pages, key: bytes = KEY, *, rows: int = 200) -> Any:
    """A database of that way by the driver alone, and the connection to it."""
    connection = sqlcipher.connect(str(path), isolation_level=None)
    for pragma in (f"key = \"x'{key.hex()}'\"", f"cipher_page_size = {way.size}", f"cipher_hmac_algorithm = HMAC_{way.digest.upper()}"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE instance (id INTEGER PRIMARY KEY, text TEXT)")
    connection.executemany("INSERT INTO instance VALUES (?, ?)", [(number, "x" * 100) for number in range(rows)])
    return connection


def count(path: Path, key: bytes = KEY) -> int:
    database = Database.embedded(path, key, path.with_suffix(".lock"), guarded=False)
    try:
        with database.read() as tx:
            return int(tx.execute(sa.text("SELECT count(*) FROM instance")).scalar_one())
    finally:
        database.close()


def test_no_two_ways_have_pages_of_one_size() -> None:
    assert len({way.size for way in WAYS}) == len(WAYS)
    assert PRESENT in WAYS


@pytest.mark.parametrize("name", FROZEN)
def test_what_was_written_once_opens(name: str, tmp_path: Path) -> None:
    path = tmp_path / "i.db"
    shutil.copy(FOLDER / f"{name}.db", path)
    way = pages.of(path, KEY)
    assert f"{way.size}-{way.digest}" == name
    database = Database.embedded(path, KEY, tmp_path / "lock", guarded=False)
    with database.read() as tx:
        assert [tuple(row) for row in tx.execute(sa.text("SELECT id, text FROM instance ORDER BY id"))] == ROWS
    with database.begin() as tx:
        tx.execute(sa.text("INSERT INTO instance VALUES (1000, 'more')"))
    database.close()
    assert pages.of(path, KEY) is way
    assert count(path) == len(ROWS) + 1


def test_a_new_database_is_made_in_the_present_way(tmp_path: Path) -> None:
    path = tmp_path / "i.db"
    assert pages.of(path, KEY) is PRESENT
    database = Database.embedded(path, KEY, tmp_path / "lock", guarded=False)
    with database.begin() as tx:
        tx.execute(sa.text("CREATE TABLE instance (id INTEGER PRIMARY KEY)"))
        assert tx.execute(sa.text("PRAGMA page_size")).scalar_one() == str(PRESENT.size)
        assert tx.execute(sa.text("PRAGMA cipher_hmac_algorithm")).scalar_one() == "HMAC_SHA256"
    database.close()
    assert pages.of(path, KEY) is PRESENT
    assert count(path) == 0


@every_way
def test_the_file_tells(way: Pages, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    randoms = random.Random(way.size)
    for number in range(20):
        key, path = randoms.randbytes(32), tmp_path / f"{number}.db"
        made(path, way, key, rows=number).close()
        assert [one for one in WAYS if one.opens(path, key)] == [way]
        assert not any(one.opens(path, randoms.randbytes(32)) for one in WAYS)
        assert pages.of(path, key) is way
        data = bytearray(path.read_bytes())
        data[randoms.randrange(way.size)] ^= 1 << randoms.randrange(8)
        path.write_bytes(data)
        assert not any(one.opens(path, key) for one in WAYS)
    assert capfd.readouterr() == ("", "")


@every_way
def test_finding_out_takes_no_lock_away(way: Pages, tmp_path: Path) -> None:
    path = tmp_path / "i.db"
    with closing(made(path, way)) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM instance").fetchall()
        before = locks(path)
        assert before
        assert pages.of(path, KEY) is way
        assert [one for one in WAYS if one.opens(path, KEY)] == [way]  # as where no log tells
        assert locks(path) == before


def locks(path: Path) -> list[tuple[str, ...]]:
    """The locks this process holds on a database and its log's index."""
    return posix_locks.held(Path(f"{path}{suffix}") for suffix in ("", "-shm"))


@every_way
def test_a_log_beside_it_tells_where_the_first_page_cannot(way: Pages, tmp_path: Path) -> None:
    path, left = tmp_path / "i.db", tmp_path / "left.db"
    connection = made(path, way)
    shutil.copy(f"{path}-wal", f"{left}-wal")
    data = bytearray(path.read_bytes())
    data[100] ^= 1  # a page half written when the power went; the log has it whole
    left.write_bytes(data)
    connection.close()
    assert pages.of(left, KEY) is way
    assert count(left) == 200


@every_way
def test_a_journal_beside_it_tells_and_is_rolled_back(way: Pages, tmp_path: Path) -> None:
    path, left = tmp_path / "i.db", tmp_path / "left.db"
    connection = made(path, way)
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.execute("PRAGMA cache_size = 2")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE instance SET text = text || 'y'")
    connection.execute("DELETE FROM instance WHERE id >= 10")
    shutil.copy(path, left)
    shutil.copy(f"{path}-journal", f"{left}-journal")
    connection.execute("ROLLBACK")
    connection.close()
    assert left.read_bytes() != path.read_bytes(), "nothing was written before the end"
    assert pages.of(left, KEY) is way
    assert count(left) == 200


@every_way
def test_a_log_that_has_not_begun_tells_nothing(way: Pages, tmp_path: Path) -> None:
    path = tmp_path / "i.db"
    made(path, way).close()
    for suffix, content in (("-wal", b""), ("-wal", bytes(32)), ("-journal", bytes(512)), ("-wal", b"\x37\x7f")):
        beside = Path(f"{path}{suffix}")
        beside.write_bytes(content)
        assert pages.of(path, KEY) is way, (suffix, content)
        beside.unlink(missing_ok=True)  # SQLite may have


@every_way
def test_another_key_opens_nothing_and_changes_nothing(way: Pages, tmp_path: Path) -> None:
    path = tmp_path / "i.db"
    made(path, way).close()
    before = path.read_bytes()
    with pytest.raises(DatabaseUnavailable):
        count(path, os.urandom(32))
    assert path.read_bytes() == before
    assert count(path) == 200


@every_way
def test_a_copy_is_one_file_of_the_same_way(way: Pages, tmp_path: Path) -> None:
    path, target = tmp_path / "i.db", tmp_path / "copy.db"
    with closing(made(path, way)):
        database = Database.embedded(path, KEY, tmp_path / "lock", guarded=False)
        with database.begin() as tx:  # lies in the log alone
            tx.execute(sa.text("INSERT INTO instance VALUES (1000, 'more')"))
        copy_file(database, target)
        database.close()
    assert sorted(one.name for one in tmp_path.glob("copy*")) == ["copy.db"]
    assert target.stat().st_mode & 0o777 == 0o600
    assert pages.of(target, KEY) is way
    with closing(sqlcipher.connect(f"file:{target}?mode=ro&immutable=1", uri=True)) as connection:
        way.unlock(connection, KEY)
        assert connection.execute("PRAGMA cipher_integrity_check").fetchall() == []
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT count(*) FROM instance").fetchone() == (201,)


def test_what_is_rekeyed_is_of_the_present_way_afterwards(tmp_path: Path) -> None:
    for way in WAYS:
        path, new = tmp_path / f"{way.size}.db", os.urandom(32)
        with closing(made(path, way)) as connection:
            connection.execute("CREATE TABLE numbered (id INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT UNIQUE)")
            connection.execute("CREATE VIRTUAL TABLE folded USING fts5(text, tokenize = 'trigram')")
            connection.execute("CREATE TRIGGER kept AFTER INSERT ON instance BEGIN INSERT INTO numbered (text) VALUES (new.text); END")
            connection.execute("INSERT INTO numbered VALUES (70, 'seventy')")
            connection.execute("DELETE FROM numbered")
            connection.execute("INSERT INTO folded (rowid, text) VALUES (9, 'Yamada^Tarou')")
        rekey.rekey(path, KEY, new)
        assert pages.of(path, new) is PRESENT
        assert rekey.opens(path, new)
        assert not rekey.opens(path, KEY)
        assert count(path, new) == 200
        with closing(sqlcipher.connect(str(path), isolation_level=None)) as connection:
            PRESENT.unlock(connection, new)
            connection.execute("INSERT INTO instance VALUES (1000, 'more')")
            assert connection.execute("SELECT * FROM numbered").fetchall() == [(71, "more")]
            assert connection.execute("SELECT rowid FROM folded WHERE folded MATCH 'mad'").fetchall() == [(9,)]
        assert sorted(one.name for one in tmp_path.glob(f"{way.size}*")) == [path.name]


def test_a_file_somebody_has_open_is_not_rekeyed(tmp_path: Path) -> None:
    for way in WAYS:
        path = tmp_path / f"{way.size}.db"
        with closing(made(path, way)) as connection:
            with pytest.raises(DatabaseUnavailable, match="in use"):
                rekey.rekey(path, KEY, os.urandom(32))
            assert connection.execute("SELECT count(*) FROM instance").fetchone() == (200,)
        assert pages.of(path, KEY) is way
        assert count(path) == 200
        assert list(tmp_path.glob("*.coming*")) == []


@pytest.mark.parametrize("step", ["chmod", "replace", "fsync"])
def test_cut_short_a_file_of_a_former_way_opens_under_one_key(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, new = tmp_path / "i.db", os.urandom(32)
    made(path, WAYS[1]).close()
    path.with_name("i.db.coming").write_bytes(b"left by an earlier one")

    def broken(*_arguments: Any, **_named: Any) -> None:
        raise OSError(errno.ENOSPC, "none left")

    with monkeypatch.context() as then:
        then.setattr(os if step == "fsync" else Path, step, broken)
        with pytest.raises(DatabaseUnavailable):
            rekey.rekey(path, KEY, new)
    done = step == "fsync"
    assert (rekey.opens(path, KEY), rekey.opens(path, new)) == (not done, done)
    assert count(path, new if done else KEY) == 200
    assert [one.name for one in tmp_path.glob("*.coming*")] == []
