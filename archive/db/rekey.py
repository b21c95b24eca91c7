"""An embedded database under another key, in place: SQLCipher writes every page anew in one transaction with a rollback journal.

A crash leaves the journal, whose pages are under the old key, and the next who opens it with that key rolls back.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from archive.errors import DatabaseUnavailable


def rekey(path: Path, old: bytes, new: bytes) -> None:
    """Encrypt the database at `path` anew; nobody else may have it open.

    Raises:
        DatabaseUnavailable: in use, damaged, not under the old key, or no space; it is then as it was.
    """
    import sqlcipher3.dbapi2 as dbapi

    connection = _opened(path, old)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        # Leaving the write-ahead log behind needs the file for oneself: whoever has it open would go on with the old key.
        if connection.execute("PRAGMA journal_mode = DELETE").fetchone()[0] != "delete":
            raise dbapi.OperationalError
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("COMMIT")
        connection.execute(f"PRAGMA rekey = \"x'{new.hex()}'\"")
    except dbapi.Error as error:
        message = "the database cannot be encrypted anew: it is in use, or there is no space"
        raise DatabaseUnavailable(message, remedy="stop the archive and every command that uses it, then try again") from error
    finally:
        connection.close()
    if not opens(path, new):
        message = "the database was not encrypted anew"
        raise DatabaseUnavailable(message, remedy="stop the archive and every command that uses it, then try again")


def opens(path: Path, key: bytes) -> bool:
    """Whether the key opens the database at `path`."""
    import sqlcipher3.dbapi2 as dbapi

    if not path.exists():
        return False
    connection = _opened(path, key)
    try:
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
    connection.execute(f"PRAGMA key = \"x'{key.hex()}'\"")
    connection.execute("PRAGMA cipher_memory_security = OFF")
    return connection
