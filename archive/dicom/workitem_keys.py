"""Keys of a search among workitems: any attribute of a workitem, at the top or inside a sequence, with the archive's one matcher.

Source: PS3.18 8.3.4 and 11.9; PS3.4 C.2.2.2, CC.2.8.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from archive.dicom import clocks, registry
from archive.dicom.attributes import Attribute, Level
from archive.dicom.dictionary import vr_of
from archive.dicom.matching import Match, Universal, fold_group, fuzzy_words, matches, matches_fuzzy, parse
from archive.dicom.workitem import TRANSACTION_UID, Dataset
from archive.dicom.zones import TIMEZONE_OFFSET
from archive.errors import InvalidQuery

_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_WORD = re.compile(r"[A-Za-z0-9_.]{1,200}")
_DEEPEST = 4
_TIMEZONE = f"{TIMEZONE_OFFSET:08X}"


@dataclass(frozen=True, slots=True)
class Key:
    """One key: where to look, and what must be there."""

    path: tuple[str, ...]  # tags from the outermost sequence in
    attribute: Attribute
    match: Match
    text: str
    fuzzy: str = ""

    @property
    def name(self) -> str:
        """The path as one word."""
        return ".".join(self.path)

    def holds(self, dataset: Dataset, depth: int = 0, zone: str = "") -> bool:
        """Return whether a data set so deep inside a workitem, or one item of its sequence, meets the key."""
        values = list(_values(dataset, self.path[depth:]))
        if self.fuzzy:
            return matches_fuzzy(self.fuzzy, values)
        return matches(self.match, self.attribute, values, zone)


def met(keys: Sequence[Key], dataset: Dataset) -> bool:
    """Return whether a workitem meets all keys; those inside one sequence are met by one item of it."""
    return _met(keys, dataset, 0, next(iter(_values(dataset, (_TIMEZONE,))), ""))


def _met(keys: Sequence[Key], dataset: Dataset, depth: int, zone: str) -> bool:
    inside: dict[str, list[Key]] = {}
    for one in keys:
        if len(one.path) > depth + 1:
            inside.setdefault(one.path[depth], []).append(one)
        elif not one.holds(dataset, depth, zone):
            return False
    return all(
        some[0].holds(dataset, depth, zone) if len(some) == 1
        else any(_met(some, item, depth + 1, zone) for item in dataset.get(tag, {}).get("Value") or [] if isinstance(item, dict))
        for tag, some in inside.items()
    )


def read(texts: Mapping[str, str], *, fuzzy: bool = False) -> tuple[Key, ...]:
    """Read parameters; an offset from UTC is none of the keys, and says how the times of others are meant.

    Raises:
        InvalidQuery: names the attribute, never the value.
    """
    offsets = [name for name in texts if path_of(name) == (_TIMEZONE,)]
    zone = clocks.asked(texts[offsets[0]]) if offsets else ""
    return tuple(key(name, text, fuzzy=fuzzy, zone=zone) for name, text in texts.items() if name not in offsets)


def key(name: str, text: str, *, fuzzy: bool = False, zone: str = "") -> Key:
    """Read one parameter; `zone` is the offset from UTC of a date and time that has none of its own.

    Raises:
        InvalidQuery: names the attribute, never the value.
    """
    path = path_of(name)
    tag = int(path[-1], 16)
    vr = vr_of(tag)
    if "\0" in text.strip(" \0"):
        message = f"{registry.keyword_of(tag) or path[-1]} takes text"
        raise InvalidQuery(message)
    attribute = Attribute(registry.keyword_of(tag) or path[-1], tag, vr, Level.STUDY, None, returned=True, folded=vr == "PN")
    match: Match = Universal() if vr == "SQ" and not text.strip() else parse(attribute, text, zone)
    wanted = text if fuzzy and vr == "PN" and not isinstance(match, Universal) and fuzzy_words(text) and fold_group(text) else ""
    return Key(path, attribute, match, text, wanted)


def path_of(name: str) -> tuple[str, ...]:
    """Return the tags of `00404025.00080100`, or of its keywords.

    Raises:
        InvalidQuery.
    """
    parts = name.split(".")
    tags = [_tag(part) for part in parts]
    told = name if _WORD.fullmatch(name) else "a parameter"
    if len(parts) > _DEEPEST or any(tag is None for tag in tags):
        message = f"{told} is not known here"
        raise InvalidQuery(message, remedy="name attributes by keyword or tag, those in sequences by a path with dots")
    path = tuple(tag for tag in tags if tag is not None)
    if any(vr_of(int(tag, 16)) != "SQ" for tag in path[:-1]) or path[-1] == TRANSACTION_UID:
        message = f"{told} is not a key of this resource"
        raise InvalidQuery(message)
    return path


def _tag(part: str) -> str | None:
    if _TAG.fullmatch(part):
        found: int | None = int(part, 16)
    else:
        found = registry.tag_of(part) if part.isascii() and part.isalnum() else None
    return None if found is None or vr_of(found) == "UN" else f"{found:08X}"


def _values(dataset: Dataset, path: tuple[str, ...]) -> list[str]:
    found = dataset.get(path[0], {}).get("Value") or []
    if len(path) > 1:
        return [text for item in found if isinstance(item, dict) for text in _values(item, path[1:])]
    return [_text(one) for one in found if one is not None]


def _text(one: object) -> str:
    if isinstance(one, dict):  # a person name, or a sequence's item: there is something
        groups = [str(one.get(group, "")) for group in ("Alphabetic", "Ideographic", "Phonetic")]
        return "=".join(groups).rstrip("=") or "item"
    return str(one)
