"""WHEN: an instant as people write it: ISO 8601, or a time from now (45m, 8h, 30d, 2w)."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from archive.errors import InvalidRequest

_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
_FROM_NOW = re.compile(r"([0-9]{1,5})([mhdw])")


def parse(text: str, now: datetime) -> datetime:
    """Return the aware UTC instant `text` means; without a zone the machine's own counts, a date alone is its first moment.

    Raises:
        InvalidRequest: neither form, or beyond the calendar.
    """
    word = text.strip()
    try:
        found = _FROM_NOW.fullmatch(word)
        if found:
            return (now + int(found[1]) * _UNITS[found[2]]).astimezone(UTC)
        return datetime.fromisoformat(word).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        message = "that is no date or time"
        remedy = "write 2026-01-31, 2026-01-31T18:00+01:00, or a time from now: 45m, 8h, 30d, 2w"
        raise InvalidRequest(message, remedy=remedy) from error
