"""SQLite's write-ahead log: moved into the database file, then written again from its beginning, or cut.

Copying goes on beside writers; only its end needs them to wait, and by then little is left to copy. A log that is not cut is
overwritten where it lies, which costs a tenth less than making its pages anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa

BUSY_MS = 30_000
_FRAME_HEAD_BYTES = 24
AUTOMATIC_PAGES = 32_000
"""When a commit copies the log itself (64 MB): only where no background worker came first."""


def bytes_of(url: sa.URL) -> int:
    """Return the length of the log's file; 0 when there is none."""
    try:
        return Path(f"{url.database}-wal").stat().st_size
    except OSError:
        return 0


def waiting_bytes(engine: sa.Engine) -> int:
    """Return how much of the log the database file does not have yet.

    SQLite is asked (a checkpoint that does nothing, 3.51 and later; an older one copies what it can): whoever opens and closes a file
    of SQLite's gives up every lock that the process holds on it (POSIX fcntl), readers' locks on the log's index among them.
    """
    connection = engine.raw_connection()
    driven: Any = connection.driver_connection
    try:
        _busy, frames, copied = driven.execute("PRAGMA wal_checkpoint(NOOP)").fetchone()
        (page_bytes,) = driven.execute("PRAGMA page_size").fetchone()
    except engine.dialect.loaded_dbapi.Error as error:
        raise sa.exc.DBAPIError(None, None, error) from None
    finally:
        connection.close()
    return max(0, int(frames) - int(copied)) * (int(page_bytes) + _FRAME_HEAD_BYTES)


def copy(engine: sa.Engine) -> None:
    """Copy what no reader needs as it was, without waiting for anybody or making anybody wait."""
    _run(engine, "PASSIVE", wait=False)


def restart(engine: sa.Engine) -> bool:
    """Copy all of the log, so that it is written again from its beginning; False when readers held some of it back."""
    return _run(engine, "RESTART", wait=False)


def cut(engine: sa.Engine, *, wait: bool) -> bool:
    """Copy all of the log and cut it to nothing; False when readers held some of it back, at once or after BUSY_MS."""
    return _run(engine, "TRUNCATE", wait=wait)


def _run(engine: sa.Engine, mode: str, *, wait: bool) -> bool:
    connection = engine.raw_connection()  # a checkpoint cannot run inside the transaction that the begin event opens
    try:
        cursor = connection.cursor()
        row: Any = None
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_MS if wait else 0}")
        try:
            cursor.execute(f"PRAGMA wal_checkpoint({mode})")
            row = cursor.fetchone()
        finally:
            cursor.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
            cursor.close()
    except engine.dialect.loaded_dbapi.Error as error:
        connection.invalidate()
        raise sa.exc.DBAPIError(None, None, error) from None
    finally:
        connection.close()
    return row is not None and not row[0]
