"""Offsets from UTC of dates and times: which instant it was when a clock showed them.

Source: PS3.5 6.2 (DT), PS3.3 C.12.1.1.8 (Timezone Offset From UTC), PS3.4 C.2.2.2.5.
"""

from __future__ import annotations

import re
from calendar import monthrange
from datetime import datetime, timedelta

TIMEZONE_OFFSET = 0x00080201

_ZONE = re.compile(r"[+-](?:0\d|1[0-4])[0-5]\d")
_FURTHEST = timedelta(hours=30)
"""More than any two clocks are apart."""


def zone_of(text: str) -> str:
    """Return the offset that a date and time ends with, empty when it has none."""
    zone = text.strip(" \0")[-5:]
    return zone if _ZONE.fullmatch(zone) else ""


def later(clock: str, zone: str, than: str, than_zone: str) -> bool:
    """Say whether what one clock showed came after what another did; where an offset is not known, as they showed it.

    Both begin with YYYYMMDDHHMM, the rest being in an order of its own.
    """
    first, second = at_utc(clock, zone), at_utc(than, than_zone)
    return first > second if first and second else clock > than


def at_utc(clock: str, zone: str) -> str:
    """Return what a clock at UTC showed at that instant; empty when that cannot be said."""
    if not _ZONE.fullmatch(zone):
        return ""
    ahead = timedelta(hours=int(zone[1:3]), minutes=int(zone[3:5]))
    return _moved(clock, -ahead if zone[0] == "+" else ahead)


def earliest(clock: str) -> str:
    """Return a time that no clock anywhere showed after that instant."""
    return _moved(clock, -_FURTHEST) or "00000101000000"


def latest(clock: str) -> str:
    """Return a time that no clock anywhere showed before that instant."""
    return _moved(clock, _FURTHEST) or "99991231235960.999999"


def _moved(clock: str, by: timedelta) -> str:
    year, month, day, hour, minute = int(clock[:4]), *(int(clock[at : at + 2]) for at in (4, 6, 8, 10))
    try:
        # The last instant of a month whose day was left out is said to be on its 31st.
        at = datetime(year, month, min(day, monthrange(year, month)[1]), hour, minute) + by  # noqa: DTZ001 # a clock, wherever it hangs
    except (ValueError, OverflowError):
        return ""
    return f"{at.year:04d}{at:%m%d%H%M}{clock[12:]}"
