"""Column types that mean the same on SQLite and PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

FOREVER = datetime(9999, 12, 31, tzinfo=UTC)
"""The end of a grant without --until; access reviews list these."""


def to_micros(at: datetime) -> int:
    """Return microseconds since 1970-01-01 UTC of an aware datetime, exactly."""
    return (at - _EPOCH) // timedelta(microseconds=1)


def from_micros(value: int) -> datetime:
    """Return the aware UTC datetime of microseconds since 1970-01-01; what no datetime can hold, nearest to it.

    The archive writes nothing beyond FOREVER, but whoever edits the database may, and that must be told, not crash.
    """
    try:
        return _EPOCH + timedelta(microseconds=value)
    except OverflowError:
        return FOREVER if value > 0 else datetime.min.replace(tzinfo=UTC)


class Instant(sa.types.TypeDecorator[datetime]):
    """An aware UTC datetime kept as BIGINT microseconds: it compares alike on both engines and never loses its zone."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> int | None:  # noqa: ARG002 # SQLAlchemy's signature
        """Refuse naive datetimes: they would mean another instant on another machine."""
        if value is None:
            return None
        if value.tzinfo is None:
            message = "a naive datetime reached the database"
            raise TypeError(message)
        return to_micros(value)

    def process_result_value(self, value: Any | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002 # SQLAlchemy's signature
        """Return the instant, always UTC."""
        return None if value is None else from_micros(int(value))


# Collation C on PostgreSQL: compared and ordered by code point there too, whatever the server's locale, and prefixes use the index.
CodePointText = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

# SQLite gives a row id only to INTEGER PRIMARY KEY.
BigId = sa.BigInteger().with_variant(sa.Integer, "sqlite")
