"""Names that differ in case alone are one name.

Compared here and not in SQL: what lower() makes of a letter beyond ASCII each database says otherwise, PostgreSQL by its locale.
"""

from __future__ import annotations

import unicodedata
from typing import Any

import sqlalchemy as sa

from archive.dicom.marks import bounded


def alike(tx: sa.Connection, column: sa.Column[Any], name: str, *which: sa.ColumnElement[bool]) -> list[int]:
    """Return the ids of the rows that have a name in a column, in whatever case; no index is about that."""
    wanted, ids = _plain(name), column.table.c.id
    rows = tx.execute(sa.select(ids, column).where(column.is_not(None), *which).order_by(ids))
    return [int(key) for key, text in rows if _plain(text) == wanted]


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", bounded(name)).casefold()
