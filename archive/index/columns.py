"""How a scanned instance becomes column values, and what keys without a column are matched by.

Columns hold the normal form of dicom.matching, so that SQL compares what `matches` compares. A text column holds one value as it is
and several as `\\A\\B`: a backslash never begins a single value, so one index range finds rows whose values lie in JSON (terms.py).
Dates and times with a column have one value; further ones do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import msgspec
import sqlalchemy as sa

from archive.db.tables import instance, series, study
from archive.dicom.attributes import ATTRIBUTES, Attribute, Level
from archive.dicom.matching import normal
from archive.dicom.part10 import Scanned
from archive.dicom.values import plain

Element = dict[str, Any]
Elements = Mapping[str, Element]

SEVERAL = "\\"
"""Begins a text column that holds several values."""

UID_COLUMNS = frozenset({"study_instance_uid", "series_instance_uid", "sop_instance_uid", "sop_class_uid", "transfer_syntax_uid"})
"""Filled from the scanner's checked UIDs, never from the elements."""

ONE_VALUE = frozenset({"DA", "TM"})
NUMBERS = frozenset({"IS", "US"})
_NORMALISED_NUMBERS = frozenset({"DA", "TM", "DT", "PN"})
_NORMALISED = _NORMALISED_NUMBERS | {"IS"}
_ATTRIBUTE = {attribute.tag_hex: attribute for attribute in ATTRIBUTES}
_BY_COLUMN = frozenset(tag for tag, attribute in _ATTRIBUTE.items() if attribute.column is not None and attribute.vr not in NUMBERS)
_COMPARED_AS_IS = frozenset(
    tag for tag, attribute in _ATTRIBUTE.items() if not attribute.folded and attribute.vr not in {*_NORMALISED, "SQ"}
)
_PADDING = " \0"
STUDY_LEVELS = frozenset({Level.PATIENT, Level.STUDY})


def texts(element: Element | None) -> list[str]:
    """Return the values of an element as plain text without those that are empty."""
    values = (element or {}).get("Value", ())
    return [text for value in values if (text := plain(value).strip(" \0"))]


def _normals(attribute: Attribute, element: Element | None) -> list[str]:
    values = (element or {}).get("Value", ())
    return [text for value in values if (text := normal(attribute, plain(value)))]


def _joined(values: list[str]) -> str:
    if len(values) == 1 and not values[0].startswith(SEVERAL):
        return values[0]
    return SEVERAL + SEVERAL.join(values) if values else ""


@dataclass(frozen=True, slots=True)
class _Source:
    column: str
    tag_hex: str
    convert: Callable[[Element | None], Any]


def _number(limit: int) -> Callable[[Element | None], int | None]:
    def convert(element: Element | None) -> int | None:
        values = (element or {}).get("Value", ())
        if len(values) == 1 and type(values[0]) is int and -limit <= values[0] < limit:
            return int(values[0])
        return None

    return convert


def _shown(element: Element | None) -> str:
    return _joined(texts(element))


def _compared(attribute: Attribute) -> Callable[[Element | None], str]:
    if attribute.vr in ONE_VALUE:
        return lambda element: next(iter(_normals(attribute, element)), "")
    if attribute.vr in _NORMALISED or attribute.folded:
        return lambda element: _joined(_normals(attribute, element))
    return _shown


def _sources(table: sa.Table, levels: frozenset[Level]) -> tuple[_Source, ...]:
    found = []
    for attribute in ATTRIBUTES:
        name = attribute.column
        if name is None or attribute.level not in levels or name in UID_COLUMNS:
            continue
        column, tag = table.c[name], attribute.tag_hex
        if not isinstance(column.type, sa.Text):
            found.append(_Source(name, tag, _number(1 << (63 if isinstance(column.type, sa.BigInteger) else 31))))
        elif attribute.folded:
            found += [_Source(name, tag, _shown), _Source(f"{name}_folded", tag, _compared(attribute))]
        else:
            found.append(_Source(name, tag, _compared(attribute)))
    return tuple(found)


_STUDY = _sources(study, STUDY_LEVELS)
_SERIES = _sources(series, frozenset({Level.SERIES}))
_INSTANCE = _sources(instance, frozenset({Level.IMAGE}))


@lru_cache(maxsize=16)
def _tags(levels: frozenset[Level]) -> frozenset[str]:
    return frozenset(tag for tag, attribute in _ATTRIBUTE.items() if attribute.level in levels)


def of_levels(attributes: Elements, levels: frozenset[Level]) -> dict[str, Element]:
    """Return the elements that belong to these levels."""
    tags = _tags(levels)
    return {tag: element for tag, element in attributes.items() if tag in tags}


def _row(sources: tuple[_Source, ...], elements: dict[str, Element]) -> dict[str, Any]:
    # PostgreSQL can keep U+0000 in JSON but fails every search that reads it.
    if b"\\u0000" in msgspec.json.encode(elements):
        elements = _without_nul(elements)
    row = {source.column: source.convert(elements.get(source.tag_hex)) for source in sources}
    return row | {"attributes": elements, "normalised": normalised(elements)}


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "")
    if isinstance(value, dict):
        return {key: _without_nul(item) for key, item in value.items()}
    return [_without_nul(item) for item in value] if isinstance(value, list) else value


def normalised(elements: Elements) -> dict[str, list[str]] | None:
    """Return normal forms of the elements that neither a column nor the JSON itself can be compared by, if there are any."""
    found = {}
    for tag, element in elements.items():
        values = element.get("Value")
        if not values or (tag in _BY_COLUMN and len(values) == 1):
            continue
        if tag in _COMPARED_AS_IS and _all_as_they_are(values):
            continue
        attribute = _ATTRIBUTE[tag]
        if attribute.vr == "SQ":
            continue
        if attribute.column is not None and (len(values) == 1 or attribute.vr in ONE_VALUE) and attribute.vr not in NUMBERS:
            continue
        if attribute.folded or not all(_comparable(attribute, value) for value in values):
            found[tag] = _normals(attribute, element)
    return found or None


def _all_as_they_are(values: list[Any]) -> bool:
    """Whether it takes no closer look to see that every value is its own normal form, where none is needed for its VR."""
    for value in values:
        kind = type(value)
        if kind is str:
            if value and (value[0] in _PADDING or value[-1] in _PADDING):
                return False
        elif kind is not int and not (kind is float and len(text := repr(value)) <= 16 and "e" not in text and text != "-0.0"):
            return False
    return True


def _comparable(attribute: Attribute, value: object) -> bool:
    """Whether the JSON value, cast to text by either engine, is its own normal form."""
    if value is None or (type(value) is int and attribute.vr not in _NORMALISED_NUMBERS):
        return True
    if isinstance(value, str):
        return (normal(attribute, value) if attribute.vr in _NORMALISED or attribute.folded else value.strip(" \0")) == value
    if attribute.vr in _NORMALISED_NUMBERS:
        return False
    if isinstance(value, float):
        # SQLite prints fifteen digits, and neither engine writes an exponent or a negative zero as Python does.
        text = str(value)
        return len(text) <= 16 and "e" not in text and text != "-0.0"
    return isinstance(value, int)


def of_study(scanned: Scanned) -> dict[str, Any]:
    """Return the study's columns as its first instance says, with those of the patient."""
    return study_row(of_levels(scanned.attributes, STUDY_LEVELS)) | {"study_instance_uid": scanned.study_instance_uid}


def study_row(elements: dict[str, Element]) -> dict[str, Any]:
    """Return the study's columns that these elements of patient and study level fill."""
    return _row(_STUDY, elements)


def of_series(scanned: Scanned) -> dict[str, Any]:
    """Return the series' columns as its first instance says."""
    elements = of_levels(scanned.attributes, frozenset({Level.SERIES}))
    return _row(_SERIES, elements) | {"series_instance_uid": scanned.series_instance_uid}


def series_row(elements: dict[str, Element]) -> dict[str, Any]:
    """Return the series' columns that these elements of series level fill."""
    return _row(_SERIES, elements)


def of_instance(scanned: Scanned) -> dict[str, Any]:
    """Return the instance's columns."""
    return _row(_INSTANCE, of_levels(scanned.attributes, frozenset({Level.IMAGE}))) | {
        "sop_instance_uid": scanned.sop_instance_uid,
        "sop_class_uid": scanned.sop_class_uid,
        "transfer_syntax_uid": scanned.transfer_syntax_uid,
    }


_SLOW_BYTES = 64 << 10
"""Of a header: making the columns of a shorter one takes less than a millisecond or two."""


class Rows:
    """What an instance says, as columns: each row is made once, when it is first asked for."""

    def __init__(self, scanned: Scanned) -> None:
        """Make nothing yet."""
        self._scanned = scanned

    def prepare(self) -> None:
        """Make before the turn to write, in which all others wait, what is surely needed there, and all that would take long."""
        _ = self.instance
        # Few instances are the first of their series; how long a deflated header is, its stream does not say.
        if self._scanned.head_bytes > _SLOW_BYTES or self._scanned.deflated:
            _ = self.study, self.series

    @cached_property
    def study(self) -> dict[str, Any]:
        """The study's columns."""
        return of_study(self._scanned)

    @cached_property
    def series(self) -> dict[str, Any]:
        """The series' columns."""
        return of_series(self._scanned)

    @cached_property
    def instance(self) -> dict[str, Any]:
        """The instance's columns."""
        return of_instance(self._scanned)


def differing(kept: Elements, arriving: Elements) -> list[str]:
    """Return keywords of attributes that arrive with another value than the one kept; what arrives empty differs from nothing."""
    if arriving == kept:
        return []
    return [
        _ATTRIBUTE[tag].keyword
        for tag, element in arriving.items()
        if element.get("Value") and element.get("Value") != kept.get(tag, {}).get("Value")
    ]
