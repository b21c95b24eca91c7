"""C-FIND: an identifier becomes the same search that QIDO-RS asks, page by page, and its rows become answers.

What SQL cannot match (keys inside sequences, values of which any may fit, counts) is matched here over the rows that the scope lets
through, so a key only ever narrows. Keys nobody can match are answered empty and reported by 0xFF01, as PS3.4 C.4.1.1.4 has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from archive.dicom import clocks, compose
from archive.dicom.attributes import BY_TAG, Attribute, Level
from archive.dicom.matching import parse
from archive.dicom.row_keys import Key, check, cut, is_instant, is_list
from archive.dicom.zones import TIMEZONE_OFFSET
from archive.dimse.identifiers import Identifier
from archive.dimse.models import SERIES_UID, STUDY_UID, Model, single_uid
from archive.services.query import SearchRequest, holds

if TYPE_CHECKING:
    from archive.access.subject import Subject
    from archive.services.query import Query

PAGE_ROWS = 500
"""How many answers are in memory at a time."""

_RANK = {Level.PATIENT: 0, Level.STUDY: 1, Level.SERIES: 2, Level.IMAGE: 3}
_RETRIEVE_URL = 0x00081190
# How an answer is made or said, not what is looked for.
_NEVER_MATCHED = frozenset({0x00080005, 0x00080054, 0x00080201, 0x00880130, 0x00880140})
_COUNTS = frozenset({"IS", "US", "UL"})
_MATCHED_BY_SQL = frozenset({"ModalitiesInStudy", "SOPClassesInStudy", "InstanceAvailability"})

Row = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Search:
    """What one C-FIND asks."""

    request: SearchRequest
    identifier: Identifier
    filters: tuple[Key, ...]
    """Keys that rows are held against here."""
    unsupported: bool
    """Whether a key with a value cannot be matched at all."""
    _told: tuple[tuple[str, Key, bool, Mapping[str, Any]], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Note what is the same for every answer: each key's tag, whether rows have it, and what stands where they do not."""
        object.__setattr__(self, "_told", tuple(
            (key.tag_hex, key, tag in BY_TAG, {"vr": key.vr}) for tag, key in self.identifier.keys.items()
        ))

    @classmethod
    def of(cls, identifier: Identifier, model: Model, datastore: str, *, relational: bool, fuzzy: bool) -> Search:
        """Turn an identifier into a search.

        Raises:
            DoesNotMatch: the level, or the unique keys above it.
            InvalidQuery: a value that cannot be matched.
        """
        level = model.level(identifier)
        if not relational:
            model.require_above(identifier, level)
        keys: list[tuple[Attribute, str]] = []
        include: list[Attribute] = []
        filters: list[Key] = []
        unsupported = False
        zone = clocks.asked(identifier.text(TIMEZONE_OFFSET))
        by_clock = clocks.moving(identifier.keys.values()) if zone else frozenset()
        for tag, asked in sorted(identifier.keys.items()):
            attribute, key = BY_TAG.get(tag), clocks.timed(asked, zone)
            if key.universal or tag in _NEVER_MATCHED:
                include += [attribute] if attribute is not None else []
            elif attribute is None or tag == _RETRIEVE_URL:
                unsupported = True
            elif key.items or _by_row(attribute, key) or (tag in by_clock and _RANK[attribute.level] <= _RANK[level]):
                if _RANK[attribute.level] > _RANK[level]:
                    unsupported = True
                    keys += [(attribute, key.text)] if attribute.vr == "DT" else []  # narrows, and does not decide
                    continue
                include.append(attribute)
                filters.append(key)
                check(key)
            elif attribute.vr == "SQ":
                include.append(attribute)
            else:
                keys.append((attribute, key.text))
        study, series = identifier.text(STUDY_UID), identifier.text(SERIES_UID)
        below_study, below_series = level in {Level.SERIES, Level.IMAGE}, level is Level.IMAGE
        request = SearchRequest(
            level, datastore, tuple(keys), include=tuple(include), limit=PAGE_ROWS, fuzzy=fuzzy, total=False, usual=False,
            study_instance_uid=study if below_study and single_uid(study) else None,
            series_instance_uid=series if below_series and single_uid(study) and single_uid(series) else None, also=tuple(filters),
            zone=zone,
        )
        return cls(request, identifier, tuple(filters), unsupported)

    def pages(self, query: Query, subject: Subject) -> Iterator[list[Row]]:
        """Yield the rows that match, a page at a time; each page is in the ledger before it is yielded.

        Raises:
            InvalidQuery, NotFound, Unavailable.
        """
        offset = 0
        while True:
            found = query.find(subject, replace(self.request, offset=offset)).rows
            yield [row for row in found if holds(row, self.filters, self.request.zone)]
            offset += len(found)
            if len(found) < PAGE_ROWS:
                return

    def answer(self, row: Row, ae_title: str, *, explicit: bool) -> bytes:
        """Return the identifier of one answer: the attributes asked for and what every answer has."""
        made: dict[str, Mapping[str, Any]] = {}
        for tag_hex, key, in_rows, empty in self._told:
            found = row.get(tag_hex) if in_rows else None
            made[tag_hex] = empty if not found else cut(key, found) if key.items else found
        made["00080052"] = {"vr": "CS", "Value": [self.request.level.value]}
        made["00080054"] = {"vr": "AE", "Value": [ae_title]}
        made["00080056"] = {"vr": "CS", "Value": ["ONLINE"]}
        return compose.dataset(made, explicit=explicit, declared=self.identifier.declared)


def _by_row(attribute: Attribute, key: Key) -> bool:
    """Whether a key is matched against rows: counts, instants, and several values of which any may fit."""
    if attribute.computed and attribute.keyword not in _MATCHED_BY_SQL:
        return attribute.vr in _COUNTS
    if attribute.vr == "DT":
        return is_instant(parse(attribute, key.text, key.zone))
    return is_list(attribute.vr, key.text)
