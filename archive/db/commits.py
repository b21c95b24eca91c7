"""Whether anything was committed: what was read before then is still so."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from archive.db.engine import Database
from archive.db.prepared import Prepared

State = tuple[Any, int, int]
"""One connection, and what it says of all commits: those of others, and its own."""


def state(database: Database) -> State | None:
    """Return what stays equal for as long as nobody commits anything; None where the database does not tell.

    Both numbers are of one connection: on another the answer differs, and means that something may have changed.

    Source: SQLite's PRAGMA data_version, which changes with every commit of another connection, and sqlite3_total_changes, which counts
    what this one has changed.

    Raises:
        DatabaseUnavailable.
    """
    if not database.sqlite:
        return None
    with database.glance() as tx:
        driver: Any = tx.connection.driver_connection
        return driver, _VERSION.scalar(tx, {}), driver.total_changes


_VERSION = Prepared(sa.text("PRAGMA data_version").columns(sa.column("version", sa.Integer)))
