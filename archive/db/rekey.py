"""An embedded database under another key. A crash leaves it whole under one of the two keys.

In place, SQLCipher writes every page anew in one transaction with a rollback journal, whose pages are under the old key: the next who
opens the file with that key rolls back. A file whose pages are of a former way (`db/pages.py`) becomes a new file of the present one,
which takes its name once it is whole.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from archive.db import pages
from archive.errors import DatabaseUnavailable

_REMEDY = "stop the archive and every command that uses it, then try again"


def rekey(path: Path, old: bytes, new: bytes) -> None:
    """Encrypt the database at `path` anew; nobody else may have it open.

    Raises:
        DatabaseUnavailable: in use, damaged, not under the old key, or no space; it is then as it was.
    """
    import sqlcipher3.dbapi2 as dbapi

    try:
        connection = _opened(path, old)
    except dbapi.Error as error:
        raise _in_use() from error
    try:
        connection.execute("PRAGMA synchronous = FULL")
        # Leaving the write-ahead log behind needs the file for oneself: whoever has it open would go on with the old key.
        if connection.execute("PRAGMA journal_mode = DELETE").fetchone()[0] != "delete":
            raise dbapi.OperationalError
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # until the connection is closed
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("COMMIT")
        if pages.at_hand(connection) is pages.PRESENT:
            connection.execute(f"PRAGMA rekey = \"x'{new.hex()}'\"")
        else:
            _anew(connection, path, new)
    except (dbapi.Error, OSError) as error:
        raise _in_use() from error
    finally:
        connection.close()
    if not opens(path, new):
        message = "the database was not encrypted anew"
        raise DatabaseUnavailable(message, remedy=_REMEDY)


def _in_use() -> DatabaseUnavailable:
    return DatabaseUnavailable("the database cannot be encrypted anew: it is in use, or there is no space", remedy=_REMEDY)


def _anew(connection: Any, path: Path, new: bytes) -> None:
    """Put a copy in the present way under the new key in the place of the file that the connection has for itself."""
    coming = path.with_name(f"{path.name}.coming")
    _remove(coming)
    try:
        connection.execute("ATTACH DATABASE ? AS coming KEY ?", (str(coming), f"x'{new.hex()}'"))
        for setting in pages.PRESENT.settings:
            connection.execute(f"PRAGMA coming.{setting}")
        connection.execute("PRAGMA coming.synchronous = FULL")
        connection.execute("SELECT sqlcipher_export('coming')").fetchall()
        sound = connection.execute("PRAGMA coming.integrity_check").fetchall() == [("ok",)]
        if not sound or _contents(connection, "coming") != _contents(connection, "main"):
            raise OSError
        connection.execute("DETACH DATABASE coming")
        coming.chmod(0o600)
        coming.replace(path)
    except BaseException:
        _remove(coming)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _contents(connection: Any, schema: str) -> tuple[set[tuple[str, ...]], dict[str, int]]:
    """Return what the schema says, and how many rows each table with pages of its own has."""
    stated = connection.execute(f"SELECT type, name, tbl_name, sql, rootpage > 0 FROM {schema}.sqlite_master").fetchall()  # noqa: S608 # ours
    tables = [name for kind, name, _table, _sql, own in stated if kind == "table" and own]
    rows = {name: connection.execute(f'SELECT count(*) FROM {schema}."{name}"').fetchone()[0] for name in tables}  # noqa: S608 # ours
    return {row[:4] for row in stated}, rows


def _remove(path: Path) -> None:
    for suffix in ("", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def opens(path: Path, key: bytes) -> bool:
    """Whether the key opens the database at `path`."""
    import sqlcipher3.dbapi2 as dbapi

    if not path.exists():
        return False
    connection = _opened(path, key)
    try:
        with pages.in_silence(connection):
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except dbapi.DatabaseError:
        return False
    finally:
        with suppress(dbapi.Error):
            connection.close()
    return True


def _opened(path: Path, key: bytes) -> Any:
    import sqlcipher3.dbapi2 as dbapi

    connection = dbapi.connect(str(path), timeout=2, isolation_level=None)
    pages.of(path, key).unlock(connection, key)
    return connection
