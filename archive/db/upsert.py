"""INSERT … ON CONFLICT, the same words on both engines; only the dialect in use is imported."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa


def insert(table: sa.Table, *, sqlite: bool) -> Any:
    """Return an INSERT that takes `on_conflict_do_nothing` and `on_conflict_do_update`, for SQLite or for PostgreSQL."""
    if sqlite:
        from sqlalchemy.dialects.sqlite import insert as made

        return made(table)
    from sqlalchemy.dialects.postgresql import insert as other

    return other(table)
