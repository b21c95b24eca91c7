"""Keys that are held against rows, because SQL cannot match them: those inside sequences, counts, lists of values.

One matcher for C-FIND, the worklist and QIDO-RS: of a sequence, one item has to meet all keys of the key's item.

Source: PS3.4 C.2.2.2.6.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from archive.dicom import compose, registry
from archive.dicom.attributes import BY_TAG, Attribute, Level
from archive.dicom.matching import Match, Range, Single, UidList, Wildcard, matches, parse
from archive.dicom.zones import TIMEZONE_OFFSET

LISTED = frozenset({"AE", "AS", "CS", "LO", "SH", "IS", "UC"})
"""What may hold several values, of which any may fit."""

_AS_IT_IS = frozenset({"AE", "AS", "CS", "LO", "LT", "SH", "ST", "UC", "UI", "UR", "UT"})
_UNESCAPED = re.compile(r"[A-Za-z0-9 ._-]+")
_WILD = re.compile(r"[*?]+")
_MOST_TEXTS = 8


@dataclass(frozen=True, slots=True)
class Key:
    """One attribute of an identifier; of a sequence `items` holds the keys of its items, else `text` the value, decoded."""

    tag: int
    vr: str
    text: str = ""
    items: tuple[tuple[Key, ...], ...] = ()
    zone: str = ""
    """The offset from UTC of a date and time that has none of its own."""

    @property
    def tag_hex(self) -> str:
        """The tag as DICOM JSON spells it."""
        return f"{self.tag:08X}"

    @property
    def universal(self) -> bool:
        """Whether it asks for the attribute and matches everything."""
        if self.vr == "SQ":
            return all(key.universal for item in self.items for key in item)
        return not self.text.strip(" \0*")


def check(key: Key) -> None:
    """Read every value once, so that what cannot be matched is refused before the search.

    Raises:
        InvalidQuery.
    """
    for item in key.items:
        for inner in item:
            check(inner)
    if not key.items:
        _terms(key)


def _terms(key: Key) -> list[Match]:
    attribute = _attribute(key)
    parts = key.text.split("\\") if attribute.vr in LISTED else [key.text]
    return [parse(attribute, part, key.zone) for part in parts if part.strip(" \0") or len(parts) == 1]


def _attribute(key: Key) -> Attribute:
    known = BY_TAG.get(key.tag)
    if known is not None:
        return known
    return Attribute(registry.keyword_of(key.tag) or key.tag_hex, key.tag, key.vr, Level.IMAGE, None, returned=False, folded=key.vr == "PN")


def is_list(vr: str, text: str) -> bool:
    """Whether it is several values, of which any may fit."""
    return vr in LISTED and "\\" in text.strip("\\")


def is_instant(match: Match) -> bool:
    """Whether values meet it by the instant they say, which SQL cannot tell."""
    return isinstance(match, Range) and match.zoned


def zone_of(row: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the offset from UTC that a data set's dates and times have which say none."""
    values = row.get(f"{TIMEZONE_OFFSET:08X}", {}).get("Value") or [""]
    return compose.text_of("SH", values[0]).strip(" \0")


def meets(key: Key, found: Mapping[str, Any] | None, zone: str) -> bool:
    """Say whether an element of a row meets a key; of a sequence, whether one item meets all keys of the key's item.

    `zone` is `zone_of` the row.
    """
    values = (found or {}).get("Value") or []
    if key.items:
        wanted = [inner for item in key.items for inner in item if not inner.universal]
        return any(all(meets(inner, (item or {}).get(inner.tag_hex), zone) for inner in wanted) for item in values)
    attribute = _attribute(key)
    texts = [compose.text_of(attribute.vr, value) for value in values]
    return any(matches(term, attribute, texts, zone) for term in _terms(key))


def certain(key: Key) -> tuple[str, ...]:
    """Return texts that the JSON of a sequence holds wherever it meets the key: plain ones, which nothing escapes or folds."""
    found: list[str] = []
    for inner in (inner for item in key.items for inner in item if not inner.universal):
        if inner.items:
            found += certain(inner)
        elif (text := _plain(inner)) and _UNESCAPED.fullmatch(text):
            found.append(text)
    return tuple(dict.fromkeys(found))[:_MOST_TEXTS]


def _plain(key: Key) -> str:
    attribute, terms = _attribute(key), _terms(key)
    if attribute.folded or attribute.vr not in _AS_IT_IS or len(terms) != 1:
        return ""
    [term] = terms
    if isinstance(term, Wildcard):
        return max(_WILD.split(term.pattern), key=len)
    if isinstance(term, UidList) and len(term.values) == 1:
        return term.values[0]
    return term.value if isinstance(term, Single) else ""


def cut(key: Key, found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an element with no more of a sequence's items than was asked for; an empty key asks for all of them."""
    wanted = {inner.tag_hex: inner for item in key.items for inner in item}
    if not wanted or found.get("vr") != "SQ":
        return found
    items = [
        {tag: cut(inner, item[tag]) if item.get(tag) else {"vr": inner.vr} for tag, inner in wanted.items()}
        for item in found.get("Value") or [] if item
    ]
    return {"vr": "SQ", "Value": items}
