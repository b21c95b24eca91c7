"""What one clock showed when another did: against the calendar of the standard library."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archive.dicom import clocks
from archive.dicom.attributes import BY_KEYWORD
from archive.dicom.matching import Range, Single, parse
from archive.dicom.row_keys import Key

_ZONES = st.tuples(st.sampled_from("+-"), st.integers(0, 14), st.integers(0, 59)).map(lambda of: f"{of[0]}{of[1]:02}{of[2]:02}")


def _hangs(zone: str) -> timezone:
    ahead = timedelta(hours=int(zone[1:3]), minutes=int(zone[3:]))
    return timezone(ahead if zone[0] == "+" else -ahead)


@given(st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31)), _ZONES, _ZONES)  # noqa: DTZ001 # clocks
def test_clocks_agree_with_the_calendar(at: datetime, zone: str, to: str) -> None:
    at = at.replace(microsecond=0)
    there = at.replace(tzinfo=_hangs(zone)).astimezone(_hangs(to))
    day = f"{at.year:04}{at:%m%d}"
    time, date = clocks.moved(f"{at:%H%M%S}", day, zone, to)
    assert (date, time) == (f"{there.year:04}{there:%m%d}", f"{there:%H%M%S}")
    wide = clocks.wide(Single(day))
    assert isinstance(wide, Range)
    assert wide.low <= date <= wide.high
    assert clocks.moved(f"{at:%H%M%S}", "", zone, to) == (time, "")


def test_what_moves() -> None:
    def key(keyword: str, text: str) -> Key:
        attribute = BY_KEYWORD[keyword]
        return Key(attribute.tag, attribute.vr, text)

    asked = [key("StudyDate", "20260301"), key("StudyTime", "10-11"), key("SeriesDate", "20260301"), key("SeriesTime", ""),
             key("PatientBirthDate", "19700101"), key("PatientBirthTime", "1200")]
    assert clocks.moving(asked) == {0x00080020, 0x00080030}
    row = {"00080020": {"vr": "DA", "Value": ["20260301"]}, "00080030": {"vr": "TM", "Value": ["233000"]},
           "00080021": {"vr": "DA", "Value": ["20260301"]}, "00100030": {"vr": "DA", "Value": ["19700101"]},
           "00100032": {"vr": "TM", "Value": ["233000"]}}
    moved = clocks.shown(row, asked, "+0000", "+0100")
    assert {tag: one["Value"] for tag, one in moved.items() if one != row[tag]} == {"00080020": ["20260302"], "00080030": ["003000"]}
    assert clocks.shown(row, asked, "", "+0100") is row
    assert row["00080020"]["Value"] == ["20260301"]


@pytest.mark.parametrize("text", ["00000101", "99991231", "20240230", "-99991231", "00000101-"])
def test_the_ends_of_the_calendar_are_wide_enough(text: str) -> None:
    match = parse(BY_KEYWORD["StudyDate"], text)
    wide = clocks.wide(match)
    assert isinstance(wide, Range)
    low, high = (match.value, match.value) if isinstance(match, Single) else (wide.low, wide.high)
    assert wide.low <= low
    assert not wide.high or not high or high <= wide.high
