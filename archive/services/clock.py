"""The one clock: read by services, passed down as `at`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The clock of a running archive."""
    return datetime.now(UTC)
