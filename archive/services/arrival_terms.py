"""What a rule on arrival says: which series it is about, as the index describes them.

Every condition that is set must hold by one of its patterns, with * and ?, whatever case, accents and width: names of persons are compared
by component groups as a search compares them. What a series does not say meets no pattern.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import msgspec

from archive.dicom import matching
from archive.dicom.attributes import BY_KEYWORD
from archive.dicom.values import plain
from archive.errors import InvalidQuery, InvalidRequest

LONGEST_PATTERN = 256
MOST_PATTERNS = 50
LONGEST_S = 10 * 366 * 86400
USUAL_S = 90 * 86400
LEVELS = ("patient", "study", "series")
KEYWORDS = {
    "referring": "ReferringPhysicianName", "performing": "PerformingPhysicianName", "department": "InstitutionalDepartmentName",
    "station": "StationName", "modality": "Modality",
}
_LIFETIME = re.compile(r"([0-9]{1,5})([hdw])")
_UNITS = {"h": 3600, "d": 86400, "w": 7 * 86400}
Elements = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Facts:
    """One series as the index has it; where it came from is asked for only when a rule wants to know."""

    attributes: Elements  # of its study and its own, by tag
    calling_ae: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Conditions:
    """Patterns by what they are about; empty means any."""

    referring: tuple[str, ...] = ()
    performing: tuple[str, ...] = ()
    department: tuple[str, ...] = ()
    station: tuple[str, ...] = ()
    modality: tuple[str, ...] = ()
    calling_ae: tuple[str, ...] = ()

    @classmethod
    def of(cls, kept: Mapping[str, Sequence[str]]) -> Conditions:
        """Return what a row holds."""
        return cls(**{one.name: tuple(kept.get(one.name) or ()) for one in fields(cls)})

    def kept(self) -> dict[str, list[str]]:
        """Return what a row is to hold: the conditions that are set."""
        return {name: list(patterns) for name, patterns in asdict(self).items() if patterns}

    def check(self) -> None:
        """Refuse what could not be asked, and a rule that would be about everything without saying so.

        Raises:
            InvalidRequest.
        """
        given = self.kept()
        if not given:
            message = "a rule names at least one condition"
            raise InvalidRequest(message, remedy="for example --referring 'Maier^Anna*'; --modality '*' means every series")
        for name, patterns in given.items():
            if len(patterns) > MOST_PATTERNS or any(not 0 < len(one.strip()) <= LONGEST_PATTERN for one in patterns):
                message = f"{name} takes up to {MOST_PATTERNS} patterns of 1 to {LONGEST_PATTERN} characters"
                raise InvalidRequest(message)
            for one in patterns:
                try:
                    _meets(name, one, [])
                except InvalidQuery as error:
                    raise InvalidRequest(error.message) from error

    def hold(self, facts: Facts) -> bool:
        """Whether a series is one of those."""
        for name, patterns in asdict(self).items():
            if patterns:
                values = [facts.calling_ae()] if name == "calling_ae" else list(_values(facts.attributes, KEYWORDS[name]))
                if not any(_meets(name, one, values) for one in patterns):
                    return False
        return True


def _values(attributes: Elements, keyword: str) -> Iterator[str]:
    for value in attributes.get(BY_KEYWORD[keyword].tag_hex, {}).get("Value") or ():
        if text := plain(value).strip(" \0"):
            yield text


def _meets(name: str, pattern: str, values: Sequence[str]) -> bool:
    values = [value for value in values if value.strip(" ^=")]
    attribute = BY_KEYWORD[KEYWORDS[name]] if name in KEYWORDS else None
    if attribute is not None and attribute.vr == "PN":
        return bool(values) and matching.matches(matching.parse(attribute, pattern), attribute, values)
    wanted = matching.fold(pattern)
    return any(matching.glob(wanted, matching.fold(value)) for value in values)


def calling_ae_of(envelope: bytes | None) -> str:
    """Return the calling AE title an instance's statement says; empty when it came another way."""
    if envelope is None:
        return ""
    payload = msgspec.json.decode(base64.b64decode(msgspec.json.decode(envelope)["payload"]))
    return str((payload.get("src") or {}).get("aet", ""))


def lifetime(text: str) -> int:
    """Return how long the grants of a rule last, in seconds; never endless.

    Raises:
        InvalidRequest.
    """
    found = _LIFETIME.fullmatch(text.strip())
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < seconds <= LONGEST_S:
        message = "the grants of a rule last from an hour to ten years"
        raise InvalidRequest(message, remedy="write 8h, 90d or 12w")
    return seconds
