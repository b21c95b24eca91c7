"""What every table is made with: the two MetaData, their naming, and columns that recur."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column

from archive.db.types import BigId, CodePointText

CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
metadata = sa.MetaData(naming_convention=CONVENTION)
keystore_metadata = sa.MetaData(naming_convention=CONVENTION)


def id_column() -> Column[int]:
    """Return an internal key."""
    return Column("id", BigId, primary_key=True, autoincrement=True)


def text_column(name: str, **options: object) -> Column[str]:
    """Return a text that is empty, never NULL."""
    return Column(name, CodePointText, nullable=False, server_default="", **options)  # type: ignore[arg-type]
