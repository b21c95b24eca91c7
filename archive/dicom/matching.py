"""Attribute matching: one parser and one plain matcher for C-FIND and QIDO-RS.

The index turns a Match into SQL; `matches` says in plain Python what that SQL must mean. Stored dates and times are compared in the
form `normal` gives them. A value that is empty after `normal` meets only Universal and Empty.

Source: PS3.4 C.2.2.2, PS3.18 8.3.4.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from archive.dicom import zones
from archive.dicom.attributes import Attribute
from archive.dicom.marks import bounded
from archive.errors import InvalidQuery


@dataclass(frozen=True, slots=True)
class Universal:
    """Every instance meets it, with or without a value."""


@dataclass(frozen=True, slots=True)
class Single:
    """One value, already in the form of `normal`; folded when the attribute is."""

    value: str


@dataclass(frozen=True, slots=True)
class Wildcard:
    """`*` stands for any run of characters, `?` for one; nothing else is special. Folded when the attribute is."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Range:
    """Both ends belong to it; an empty end is open. Compared as text in the form of `normal`.

    An end with an offset from UTC is an instant: a value that has an offset too is compared with it as such.
    """

    low: str
    high: str
    low_zone: str = ""
    high_zone: str = ""

    @property
    def zoned(self) -> bool:
        """Whether an end is an instant, which text alone cannot be compared with."""
        return bool(self.low_zone or self.high_zone)


@dataclass(frozen=True, slots=True)
class UidList:
    """Any of these UIDs, or of the ways one number may be written."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Empty:
    """The attribute is absent or without a value."""


Match = Universal | Single | Wildcard | Range | UidList | Empty

UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_WILD = frozenset({"AE", "AS", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
_TIME = re.compile(r"(\d\d)(?::?(\d\d)(?::?(\d\d)(\.\d{1,6})?)?)?")
_DATE = re.compile(r"(\d{4})([.\-/]?)(\d\d)\2(\d\d)")
_DATETIME = re.compile(r"(\d{4})(\d\d)?(\d\d)?(\d\d)?(\d\d)?(\d\d)?(\.\d{1,6})?([+-]\d{4})?")
_NO_ZONE = re.compile(r"[+-](?!0\d|1[0-4])\d{4}")
"""What ends a date and time like a zone and lies beyond -1200 and +1400 (PS3.5 6.2): a year, then."""
_KANA_MARKS = "\u3099\u309a"


def fold(text: str) -> str:
    """Return text without case, accents, width and invisible characters, spaces collapsed; CJK stays as it is.

    Voiced kana keep their mark: it makes another letter, not an accented one.
    """
    if text.isascii():
        return " ".join(_CONTROL.sub(" ", text).lower().split())
    apart = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", bounded(text)).casefold())
    kept = []
    for character in apart:
        category = unicodedata.category(character)
        if category == "Cc":
            kept.append(" ")
        elif category not in {"Mn", "Cf", "Me"} or character in _KANA_MARKS:
            kept.append(character)
    return " ".join(unicodedata.normalize("NFC", bounded("".join(kept))).split())


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def fold_name(pn: str) -> str:
    """Return all three component groups of a person name folded: " alphabetic=ideographic=phonetic ".

    Components are separated by one space; absent groups are empty.
    """
    groups = [*pn.split("=", 2), "", ""][:3]
    return " " + "=".join(fold_group(group) for group in groups) + " "


def fold_group(group: str) -> str:
    """Return one component group folded, components separated by one space."""
    # Folding makes "=" of "≠" and of full-width signs: in a group it separates nothing.
    return " ".join(fold(group.replace("^", " ")).replace("=", " ").split())


def name_groups(text: str) -> tuple[str, str, str] | None:
    """Return the three folded groups of a query that names several ("A=I=P"), None when it names one for any group."""
    if "=" not in text:
        return None
    alphabetic, ideographic, phonetic = (fold_group(group) for group in [*text.split("=", 2), "", ""][:3])
    return alphabetic, ideographic, phonetic


def fuzzy_words(text: str) -> tuple[str, ...]:
    """Return the folded words of a fuzzy query; each must begin a component of the name."""
    return tuple(fold_group(text.replace("=", " ").replace("*", " ").replace("?", " ")).split())


def matches_fuzzy(text: str, values: Sequence[str]) -> bool:
    """Say whether each word of `text` begins a word of one of these person names."""
    words = fuzzy_words(text)
    return any(
        all(any(part.startswith(word) for part in fold_name(value).replace("=", " ").split()) for word in words) for value in values
    )


def normal(attribute: Attribute, value: str) -> str:
    """Return a stored value in the form it is compared in; empty when it cannot be compared.

    DA becomes YYYYMMDD, TM becomes HHMMSS[.FFFFFF] with missing parts zero, IS loses sign and leading zeros, folded text is folded
    (a person name by `fold_name`), all other text loses surrounding spaces.
    """
    text = value.strip(" \0")
    if attribute.vr == "DA":
        return _date(text) or ""
    if attribute.vr == "TM":
        return _time(text, last=False) or ""
    if attribute.vr == "DT":
        return _instant(text, last=False) or ""
    if attribute.vr == "IS":
        return str(int(text)) if re.fullmatch(r"[+-]?\d{1,12}", text) else ""
    if attribute.vr == "PN":
        return fold_name(text) if text.strip("^= ") else ""
    return fold(text) if attribute.folded else text


def parse(attribute: Attribute, text: str, zone: str = "") -> Match:  # noqa: PLR0911 # one branch for each kind of matching
    """Read the value of a query key; `zone` is the offset from UTC of a date and time (DT) that has none of its own.

    Raises:
        InvalidQuery: a value this attribute cannot be matched with; the message names the attribute, never the value.

    Source: PS3.4 C.2.2.2.1 to C.2.2.2.7.
    """
    text = text.strip(" \0")
    if text == '""':
        return Empty()
    if not text or not text.strip("*＊"):
        return Universal()
    if attribute.vr == "UI":
        return _uids(attribute, text)
    if attribute.vr in {"DA", "TM", "DT"}:
        return _range(attribute, text, zone if attribute.vr == "DT" else "")
    if attribute.vr in {"IS", "US", "UL", "SS", "SL"}:
        if not re.fullmatch(r"[+-]?\d{1,12}", text):
            raise _invalid(attribute, "a whole number")
        return Single(str(int(text)))
    if attribute.vr == "DS":
        if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", text):
            raise _invalid(attribute, "a number")
        return UidList(_ways(text))
    if attribute.vr not in _WILD:
        raise _invalid(attribute, "a key without a value")
    return _text(attribute, text)


def _ways(text: str) -> tuple[str, ...]:
    """Return how a decimal number may stand in DICOM JSON: it is the number that is kept there, not what was written."""
    number = float(text)
    ways = [text, str(number)]
    if number.is_integer():
        ways += [str(int(number)), *(["0.0", "-0.0"] if not number else [])]
    return tuple(dict.fromkeys(ways))


def _text(attribute: Attribute, text: str) -> Match:
    if len(text) > 1024:
        raise _invalid(attribute, "at most 1024 characters")
    if attribute.vr == "PN":
        # Three groups stay apart; fold_name's outer spaces belong to stored text only.
        folded = "=".join(groups) if (groups := name_groups(text)) is not None else fold_group(text)
    else:
        folded = fold(text) if attribute.folded else text
    if not folded.strip("="):
        return Universal()
    if "*" in folded or "?" in folded:
        collapsed = re.sub(r"\*+", "*", folded)
        return Universal() if collapsed == "*" else Wildcard(collapsed)
    return Single(folded)


def _uids(attribute: Attribute, text: str) -> Match:
    # Clients separate by a backslash, two of them, or a comma (PS3.18 8.3.4.1), and leave empty members.
    members = [member.strip(" \0") for member in re.split(r"[\\,]", text)]
    uids = tuple(dict.fromkeys(member for member in members if member))
    if not uids:
        return Universal()
    if any(len(uid) > 64 or UID.fullmatch(uid) is None for uid in uids):
        raise _invalid(attribute, "a UID or a list of UIDs")
    return UidList(uids)


def _range(attribute: Attribute, text: str, zone: str) -> Match:
    expected = {"DA": "a date YYYYMMDD or a range of dates", "TM": "a time HHMMSS or a range of times"}.get(attribute.vr, "a date and time")
    whole = _bounds(attribute, text)
    if whole is not None:
        zone = _zone_of(attribute, text) or zone
        return Single(whole[0]) if whole[0] == whole[1] and not zone else Range(*whole, zone, zone)
    for at, character in enumerate(text):
        if character != "-":
            continue
        low, high = text[:at].strip(), text[at + 1 :].strip()
        if not low and not high:
            break
        first = _bounds(attribute, low) if low else ("", "")
        last = _bounds(attribute, high) if high else ("", "")
        if first is not None and last is not None:
            zones_of = [(_zone_of(attribute, end) or zone) if end else "" for end in (low, high)]
            return Range(first[0], last[1], *zones_of)
    raise _invalid(attribute, expected)


def _bounds(attribute: Attribute, text: str) -> tuple[str, str] | None:
    """Return the first and the last instant that a date or time of any precision covers."""
    if attribute.vr == "DA":
        date = _date(text)
        return None if date is None else (date, date)
    if attribute.vr == "DT" and _NO_ZONE.fullmatch(text[-5:]):
        return None
    reader = _time if attribute.vr == "TM" else _instant
    low, high = reader(text, last=False), reader(text, last=True)
    return None if low is None or high is None else (low, high)


def _zone_of(attribute: Attribute, text: str) -> str:
    return zones.zone_of(text) if attribute.vr == "DT" else ""


def _date(text: str) -> str | None:
    found = _DATE.fullmatch(text)
    if found is None or not (1 <= int(found[3]) <= 12 and 1 <= int(found[4]) <= 31):
        return None
    return found[1] + found[3] + found[4]


def _time(text: str, *, last: bool) -> str | None:
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    fill = "59" if last else "00"
    hour, minute, second = found[1], found[2] or fill, found[3] or fill
    if int(hour) > 23 or int(minute) > 59 or int(second) > 60:
        return None
    return hour + minute + second + _fraction(found[4], last=last)


def _instant(text: str, *, last: bool) -> str | None:
    found = _DATETIME.fullmatch(text)
    if found is None:
        return None
    fills = ("12", "31", "23", "59", "59") if last else ("01", "01", "00", "00", "00")
    parts = [found[n] or fill for n, fill in zip(range(2, 7), fills, strict=True)]
    month, day, hour, minute, second = (int(part) for part in parts)
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour <= 23 and minute <= 59 and second <= 60):
        return None
    return found[1] + "".join(parts) + _fraction(found[7], last=last)


def _fraction(text: str | None, *, last: bool) -> str:
    digits = (text or ".")[1:]
    if last:
        return "." + digits.ljust(6, "9")
    digits = digits.rstrip("0")
    return "." + digits if digits else ""


def _invalid(attribute: Attribute, expected: str) -> InvalidQuery:
    return InvalidQuery(f"{attribute.keyword} takes {expected}")


def rough(match: Match) -> Match:
    """Return what text alone can be held against: every value that meets the match meets it, and others may."""
    if not isinstance(match, Range) or not match.zoned:
        return match
    low = zones.earliest(match.low) if match.low_zone else match.low
    return Range(low, zones.latest(match.high) if match.high_zone else match.high)


def matches(match: Match, attribute: Attribute, values: Sequence[str], zone: str = "") -> bool:
    """Say whether an attribute with these values meets the match; a person name's value is "Alphabetic=Ideographic=Phonetic".

    `zone` is the offset from UTC of dates and times that have none of their own.
    """
    if isinstance(match, Universal):
        return True
    if isinstance(match, Range) and match.zoned:
        return any(_inside(match, text, zones.zone_of(value) or zone) for value in values if (text := normal(attribute, value)))
    stored = [text for value in values if (text := normal(attribute, value))]
    if isinstance(match, Empty):
        return not any(value.strip(" \0^=") for value in values)
    return any(_meets(match, attribute, text) for text in stored)


def _inside(match: Range, text: str, zone: str) -> bool:
    early = match.low and zones.later(match.low, match.low_zone, text, zone)
    late = match.high and zones.later(text, zone, match.high, match.high_zone)
    return not early and not late


def _meets(match: Match, attribute: Attribute, text: str) -> bool:
    if isinstance(match, UidList):
        return text in match.values
    if isinstance(match, Range):
        return (not match.low or match.low <= text) and (not match.high or text <= match.high)
    if attribute.vr == "PN":
        wanted = match.pattern if isinstance(match, Wildcard) else match.value if isinstance(match, Single) else ""
        groups = text.strip(" ").split("=") if text.strip(" =") else []
        if "=" not in wanted:
            return any(_same(match, wanted, group.strip()) for group in groups if group)
        pairs = zip(wanted.split("="), [group.strip() for group in [*groups, "", "", ""][:3]], strict=True)
        return all(not part or _same(match, part, group) for part, group in pairs)
    if isinstance(match, Wildcard):
        return glob(match.pattern, text)
    return isinstance(match, Single) and match.value == text


def _same(match: Match, wanted: str, group: str) -> bool:
    return glob(wanted, group) if isinstance(match, Wildcard) else wanted == group


def glob(pattern: str, text: str) -> bool:
    """Say whether `*` and `?` of the pattern can stand for the whole text.

    All that a beginning of the text may have matched of the pattern is one number, a bit for each place in the pattern: it takes the time
    of the text's characters, where going back takes that of both lengths multiplied.
    """
    end = loops = anything = 0
    places: dict[str, int] = {}
    for character in pattern:
        if character == "*":
            loops |= 1 << end
            continue
        if character == "?":
            anything |= 1 << end
        else:
            places[character] = places.get(character, 0) | 1 << end
        end += 1
    reached = 1
    for character in text:
        reached = (reached & (places.get(character, 0) | anything)) << 1 | reached & loops
        if not reached:
            return False
    return bool(reached >> end & 1)
