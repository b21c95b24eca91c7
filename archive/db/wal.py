"""SQLite's write-ahead log: moved into the database file, and cut.

Copying goes on beside writers; only the cut needs them to wait, and by then little is left to copy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa

BUSY_MS = 30_000
AUTOMATIC_PAGES = 16_000
"""When a commit copies the log itself (64 MB): only where no background worker came first."""


def bytes_of(url: sa.URL) -> int:
    """Return the length of the log's file; 0 when there is none."""
    try:
        return Path(f"{url.database}-wal").stat().st_size
    except OSError:
        return 0


def copy(engine: sa.Engine) -> None:
    """Copy what no reader needs as it was, without waiting for anybody or making anybody wait."""
    _run(engine, "PASSIVE", wait=False)


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
