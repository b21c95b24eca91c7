"""A database in memory for one question: every table, nobody else's, gone with the answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from archive.db.engine import Database
from archive.db.migrate import create_all


@contextmanager
def scratch() -> Iterator[sa.Connection]:
    """Yield a transaction on empty tables; nothing of it is ever written to a disk."""
    database = Database("sqlite://")
    try:
        create_all(database)
        with database.begin(durable=False) as tx:  # the pool's one connection, which is the database
            yield tx
    finally:
        database.close()
