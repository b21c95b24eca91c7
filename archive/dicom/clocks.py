"""The clock of whoever asks: dates and times in a request with a Timezone Offset From UTC are those of a clock that hangs there.

A time, and the date that belongs to it where both are asked about, is held against what that clock showed then; a date and time (DT)
without an offset has that of the request. Of a data set without an offset nobody knows where its clock hung: it is taken as written.

Source: PS3.4 C.2.2.2, C.2.2.2.1.3 and C.2.2.2.5; PS3.3 C.12.1.1.8.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from archive.dicom import compose, registry, zones
from archive.dicom.attributes import Attribute, Level
from archive.dicom.matching import Match, Range, Single, normal
from archive.dicom.row_keys import Key
from archive.errors import InvalidQuery

_BIRTH_TIME = 0x00100032
"""Whoever asks means the day that is celebrated."""
_SOME_DAY = "20000115"
_FURTHEST = timedelta(days=2)
"""More than the dates that any two clocks show are apart."""
_WITHOUT_SIGN = re.compile(r"[ ](\d{4})")
_DATE = Attribute("Date", 0, "DA", Level.IMAGE, None, returned=False)
_TIME = Attribute("Time", 0, "TM", Level.IMAGE, None, returned=False)

Dataset = Mapping[str, Mapping[str, Any]]


def asked(text: str) -> str:
    """Read the offset of a request; empty when it says none.

    Raises:
        InvalidQuery.
    """
    sign_lost = _WITHOUT_SIGN.fullmatch(text)  # in an address a bare + is a space
    text = f"+{sign_lost[1]}" if sign_lost else text.strip(" \0")
    if text.strip("*") and zones.zone_of(text) != text:
        message = "TimezoneOffsetFromUTC takes an offset as +0100"
        raise InvalidQuery(message)
    return text.strip("*")


def date_of(time: int) -> int | None:
    """Return the tag of the date that belongs to a time, None when none does."""
    return _date_of(time)


@lru_cache(maxsize=256)
def _date_of(time: int) -> int | None:
    keyword = registry.keyword_of(time)
    found = registry.tag_of(f"{keyword[:-4]}Date") if keyword.endswith("Time") and time != _BIRTH_TIME else None
    return found if found is not None and registry.vr_of(found) == "DA" else None


def moving(keys: Iterable[Key]) -> frozenset[int]:
    """Return the tags of those keys of one data set that are about what a clock showed: times, and dates with their times."""
    times = {key.tag for key in keys if key.vr == "TM" and not key.universal and key.tag != _BIRTH_TIME}
    return frozenset(times | {date for time in times if (date := _date_of(time)) is not None})


def timed(key: Key, zone: str) -> Key:
    """Return a key whose dates and times without an offset have this one."""
    if key.items:
        return replace(key, items=tuple(tuple(timed(inner, zone) for inner in item) for item in key.items))
    return replace(key, zone=zone) if key.vr == "DT" else key


def wide(match: Match) -> Match:
    """Return what the dates of every clock meet where one clock's date meets the match."""
    if isinstance(match, Single):
        return Range(_day(match.value, -_FURTHEST), _day(match.value, _FURTHEST))
    if isinstance(match, Range):
        return Range(_day(match.low, -_FURTHEST) if match.low else "", _day(match.high, _FURTHEST) if match.high else "")
    return match


def shown(dataset: Dataset, keys: Iterable[Key], zone: str, to: str) -> Dataset:
    """Return a data set of offset `zone` with what the keys are about as a clock of offset `to` showed it."""
    if not to or not zones.zone_of(zone) or zone == to:
        return dataset
    keys = tuple(keys)
    made: dict[str, Mapping[str, Any]] = {}
    for key in keys:
        if key.items:
            items = (dataset.get(key.tag_hex) or {}).get("Value") or []
            inner = [one for item in key.items for one in item]
            made[key.tag_hex] = {"vr": "SQ", "Value": [shown(item or {}, inner, zone, to) for item in items]}
    for time in (key.tag for key in keys if key.vr == "TM" and key.tag in moving((key,))):
        date = _date_of(time)
        clock, day = moved(_first(dataset, time, _TIME), "" if date is None else _first(dataset, date, _DATE), zone, to)
        if clock:
            made[f"{time:08X}"] = {"vr": "TM", "Value": [clock]}
        if clock and date is not None and day:
            made[f"{date:08X}"] = {"vr": "DA", "Value": [day]}
    return {**dataset, **made}


def moved(time: str, date: str, zone: str, to: str) -> tuple[str, str]:
    """Return the time and date, in the form of `normal`, that another clock showed; empty where that cannot be said."""
    if not time:
        return "", ""
    utc = zones.at_utc((date or _SOME_DAY) + time, zone)
    clock = utc and zones.at_utc(utc, ("-" if to[0] == "+" else "+") + to[1:])
    return clock[8:], clock[:8] if date else ""


def _first(dataset: Dataset, tag: int, attribute: Attribute) -> str:
    values = (dataset.get(f"{tag:08X}") or {}).get("Value") or []
    return next((text for value in values if (text := normal(attribute, compose.text_of(attribute.vr, value)))), "")


def _day(date: str, by: timedelta) -> str:
    try:
        # Of the days that a month may have and this one has not, the first of the next is far enough.
        at = datetime(int(date[:4]), int(date[4:6]), 1) + timedelta(days=int(date[6:]) - 1) + by  # noqa: DTZ001 # a calendar's
    except (ValueError, OverflowError):
        return "" if by > timedelta() else "00000101"
    return f"{at.year:04d}{at:%m%d}"
