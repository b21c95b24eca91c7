"""WHEN as people write it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from archive.access import when
from archive.errors import InvalidRequest


@pytest.mark.parametrize(("text", "after"), [
    ("45m", timedelta(minutes=45)), ("8h", timedelta(hours=8)), ("30d", timedelta(days=30)), (" 2w ", timedelta(weeks=2)),
])
def test_from_now(now: datetime, text: str, after: timedelta) -> None:
    assert when.parse(text, now) == now + after


def test_iso(now: datetime) -> None:
    assert when.parse("2026-01-31T18:00+01:00", now) == datetime(2026, 1, 31, 17, tzinfo=UTC)
    assert when.parse("2026-01-31T18:00:00Z", now) == datetime(2026, 1, 31, 18, tzinfo=UTC)
    local = when.parse("2026-01-31", now)
    assert local.tzinfo is UTC
    assert local == datetime(2026, 1, 31).astimezone()  # the machine's own midnight


@pytest.mark.parametrize("text", ["", "soon", "8", "8y", "-8h", "٣d", "2026-13-01", "999999w", "0001-01-01T00:00+14:00"])
def test_anything_else_is_refused(now: datetime, text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        when.parse(text, now)
    assert "8h" in refused.value.remedy
