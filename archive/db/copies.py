"""Whole databases copied: one file as it stands at one moment, or rows from one engine to another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from archive.db import guard, pages
from archive.db.engine import Database
from archive.db.failures import translated
from archive.db.tables import access_study, metadata, study, study_name_fts
from archive.errors import DatabaseUnavailable

_BATCH = 500
Progress = Callable[[str, int], None]


def copy_file(database: Database, target: Path) -> None:
    """Write an embedded database into a new file as it stands now, under the same key; others read and write on meanwhile.

    Page by page: VACUUM INTO would make pages in SQLCipher's own way, whatever those of the source are. Durable when this returns.

    Raises:
        DatabaseUnavailable, OutOfSpace.
    """
    driver: Any = database.engine.dialect.loaded_dbapi
    assert database.key is not None
    with translated(), closing(database.engine.raw_connection()) as connection:  # outside the transaction of the begin event
        try:
            driven: Any = connection.driver_connection
            with closing(driver.connect(str(target), isolation_level=None)) as copy:
                pages.at_hand(driven).unlock(copy, database.key)
                driven.backup(copy)  # in one step, so that no commit of another makes it begin again
                copy.execute("PRAGMA journal_mode = DELETE").close()  # one file alone is all of it
        except driver.Error as error:
            raise sa.exc.DBAPIError(None, None, error) from None
        descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fchmod(descriptor, 0o600)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def copy_rows(
    source: sa.Connection, target: sa.Connection, token: guard.Token, tables: Iterable[sa.Table] = (), *,
    progress: Progress = lambda _table, _done: None,
) -> None:
    """Put every row of `tables` (all of the index when none are named) into empty tables of the other transaction.

    Derived tables are left to whoever derives them, but for the names of studies.
    """
    source, target = (tx.execution_options(**{guard.OPTION: token}) for tx in (source, target))
    chosen = list(tables) or metadata.sorted_tables
    for table in metadata.sorted_tables:
        if table not in chosen or table is access_study:
            continue
        rows = source.execution_options(stream_results=True).execute(sa.select(table))
        done = 0
        while batch := rows.mappings().fetchmany(_BATCH):
            target.execute(sa.insert(table), [dict(row) for row in batch])
            done += len(batch)
            progress(table.name, done)
    if study in chosen and target.dialect.name == "sqlite":
        names = sa.select(study.c.id, study.c.patient_name_folded)
        target.execute(sa.insert(study_name_fts).from_select(["rowid", "folded"], names))
    number_on(target, chosen)


def number_on(tx: sa.Connection, tables: Iterable[sa.Table]) -> None:
    """Let new rows of tables whose ids were given come after them."""
    if tx.dialect.name != "postgresql":
        return  # SQLite goes on after the largest id
    for table in tables:
        column: Any = table.autoincrement_column
        if column is None or column.name != "id":
            continue
        highest = sa.select(sa.func.coalesce(sa.func.max(column), 0) + 1).scalar_subquery()
        tx.execute(sa.select(sa.func.setval(sa.func.pg_get_serial_sequence(table.name, "id"), highest, False)))


def is_sound(database: Database) -> bool:
    """Whether every page of an embedded database opens and its tables hold together; a server looks after its own."""
    if not database.sqlite:
        return True
    try:
        with database.read() as tx:
            return bool(tx.execute(sa.text("PRAGMA quick_check(1)")).scalar() == "ok")
    except DatabaseUnavailable:
        return False
