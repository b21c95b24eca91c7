"""Modality Worklist as SCP: a C-FIND identifier becomes a search of entries, whose rows become answers (PS3.4 K.4).

The service narrows by what it has columns for; every key is matched here, by the matcher of all searches. Where both the date and the
time of a step's start are ranges, they are one range of instants.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archive.dicom import clocks, compose, row_keys, scheduled
from archive.dicom.attributes import BY_KEYWORD, Attribute, Level
from archive.dicom.matching import Match, Range, Single, Universal, normal, parse
from archive.dicom.row_keys import Key
from archive.dicom.zones import TIMEZONE_OFFSET
from archive.dimse.identifiers import Identifier
from archive.services.worklist import WorklistRequest
from archive.services.worklist_rows import STEPS

if TYPE_CHECKING:
    from archive.access.subject import Subject
    from archive.services.worklist import Worklist

SOP_CLASS = "1.2.840.10008.5.1.4.31"

_STEPS, _START_DATE, _START_TIME = int(STEPS, 16), 0x00400002, 0x00400003
_DATE = Attribute("ScheduledProcedureStepStartDate", _START_DATE, "DA", Level.IMAGE, None, returned=False)
_TIME = Attribute("ScheduledProcedureStepStartTime", _START_TIME, "TM", Level.IMAGE, None, returned=False)
_NEVER_MATCHED = frozenset({0x00080005, 0x00080201, 0x00080052, 0x00080054})
_NUMBERS = frozenset({"US", "SS", "UL", "SL"})
_PATIENT_ID, _ACCESSION = BY_KEYWORD["PatientID"], BY_KEYWORD["AccessionNumber"]


@dataclass(frozen=True, slots=True)
class Search:
    """What one C-FIND asks of the worklist."""

    request: WorklistRequest
    identifier: Identifier

    @classmethod
    def of(cls, identifier: Identifier, datastore: str) -> Search:
        """Turn an identifier into a search.

        Raises:
            InvalidQuery: a value that cannot be matched.
        """
        zone = clocks.asked(identifier.text(TIMEZONE_OFFSET))
        keys = [
            clocks.timed(key, zone) for tag, key in sorted(identifier.keys.items()) if not _asks_nothing(key) and tag not in _NEVER_MATCHED
        ]
        span = _span(identifier)
        if span is not None:
            keys = [_without_start(key) if key.tag == _STEPS else key for key in keys]
            keys = [key for key in keys if not key.universal]
        for key in keys:
            row_keys.check(key)
        dates = _start(identifier, _START_DATE, _DATE)
        first, last = _ends(clocks.wide(dates) if zone and not isinstance(_start(identifier, _START_TIME, _TIME), Universal) else dates)
        asked = list(identifier.keys.values())

        def meets(entry: Mapping[str, Any]) -> bool:
            there = row_keys.zone_of(entry)
            entry = clocks.shown(entry, asked, there, zone)
            if span is not None and not any(_within(step, *span) for step in scheduled.items(entry, STEPS)):
                return False
            return all(row_keys.meets(key, entry.get(key.tag_hex), there) for key in keys)

        return cls(WorklistRequest(
            datastore, meets, first_date=first, last_date=last, patient_id=_exactly(identifier, _PATIENT_ID),
            accession_number=_exactly(identifier, _ACCESSION), keys=_words(keys),
        ), identifier)

    def pages(self, worklist: Worklist, subject: Subject) -> Iterator[list[Mapping[str, Any]]]:
        """Yield the data sets of entries that match; each page is in the ledger before it is yielded.

        Raises:
            NotFound, Unavailable.
        """
        for page in worklist.find(subject, self.request):
            yield [row["dataset"] for row in page]

    def answer(self, entry: Mapping[str, Any], *, explicit: bool) -> bytes:
        """Return the identifier of one answer: what was asked for, empty where the entry has it not."""
        made: dict[str, Mapping[str, Any]] = {}
        for tag, key in self.identifier.keys.items():
            if tag in _NEVER_MATCHED:
                continue
            found = entry.get(key.tag_hex)
            made[key.tag_hex] = row_keys.cut(key, found) if found else {"vr": key.vr}
        return compose.dataset(made, explicit=explicit, declared=self.identifier.declared)


def _asks_nothing(key: Key) -> bool:
    """Whether a key matches every entry: universal, or the binary zero that toolkits write for an empty number."""
    return key.universal or (key.vr in _NUMBERS and not key.text.strip(" 0"))


def _words(keys: list[Key]) -> dict[str, str]:
    words: dict[str, str] = {}
    for key in keys:
        if key.items:
            words |= _words([inner for item in key.items for inner in item if not inner.universal])
        else:
            words[key.tag_hex] = key.text[:256]
    return words


def _exactly(identifier: Identifier, attribute: Attribute) -> str:
    """Return the one value a key can only meet, empty when there may be others."""
    text = identifier.text(attribute.tag)
    if not text or "\\" in text or attribute.folded:
        return ""
    match = parse(attribute, text)
    return match.value if isinstance(match, Single) else ""


def _start(identifier: Identifier, tag: int, attribute: Attribute) -> Match:
    """Return what a key of the step's start asks for, of several items nothing."""
    key = identifier.keys.get(_STEPS)
    if key is None or len(key.items) != 1:
        return Universal()
    inner = next((one for one in key.items[0] if one.tag == tag), None)
    return Universal() if inner is None or inner.universal else parse(attribute, inner.text)


def _ends(dates: Match) -> tuple[str, str]:
    if isinstance(dates, Single):
        return dates.value, dates.value
    return (dates.low, dates.high) if isinstance(dates, Range) else ("", "")


def _span(identifier: Identifier) -> tuple[str, str] | None:
    """Return the first and last instant where date and time are both ranges (PS3.4 Table K.6-1)."""
    dates, times = _start(identifier, _START_DATE, _DATE), _start(identifier, _START_TIME, _TIME)
    if not isinstance(dates, Range) or not isinstance(times, Range) or _is_instant(identifier):
        return None
    low = dates.low + (times.low or "000000") if dates.low else ""
    high = dates.high + (times.high or "235959.999999") if dates.high else ""
    return low, high


def _is_instant(identifier: Identifier) -> bool:
    """Whether the time names one time, which parsing makes a range of when its seconds are left out."""
    inner = next((one for one in identifier.keys[_STEPS].items[0] if one.tag == _START_TIME), None)
    return inner is None or "-" not in inner.text


def _within(step: Mapping[str, Any], low: str, high: str) -> bool:
    date = normal(_DATE, scheduled.text(step, f"{_START_DATE:08X}"))
    instant = date + (normal(_TIME, scheduled.text(step, f"{_START_TIME:08X}")) or "000000")
    return bool(date) and (not low or low <= instant) and (not high or instant <= high)


def _without_start(key: Key) -> Key:
    """Return the key without what is matched as instants."""
    items = tuple(tuple(one for one in item if one.tag not in (_START_DATE, _START_TIME)) for item in key.items)
    return Key(key.tag, key.vr, key.text, items)
