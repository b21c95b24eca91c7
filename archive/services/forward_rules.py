"""What a rule of forwarding says: which instances, and at which hours."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from archive.dicom.attributes import BY_KEYWORD, Level
from archive.errors import InvalidRequest
from archive.index.arrivals import Arrived

LONGEST_QUIET_S = 7 * 86400
_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a rule is about; every condition that is set must hold, by one of its patterns (* and ?)."""

    modality: tuple[str, ...] = ()
    calling_ae: tuple[str, ...] = ()
    called_ae: tuple[str, ...] = ()
    station: tuple[str, ...] = ()
    attributes: dict[str, str] = field(default_factory=dict)
    """Patterns by keyword, of patient, study and series."""

    @classmethod
    def of(cls, kept: dict[str, Any]) -> Conditions:
        """Return what a row holds."""
        lists = {name: tuple(kept.get(name) or ()) for name in ("modality", "calling_ae", "called_ae", "station")}
        return cls(**lists, attributes=dict(kept.get("attributes") or {}))

    def hold(self, one: Arrived) -> bool:
        """Whether an instance is one of those."""
        if self.modality and not _any(self.modality, [one.modality]):
            return False
        if self.calling_ae or self.called_ae:
            source = _source(one.envelope)
            for patterns, name in ((self.calling_ae, "aet"), (self.called_ae, "called")):
                if patterns and not _any(patterns, [str(source.get(name, ""))]):
                    return False
        wanted = [("StationName", self.station)] if self.station else []
        wanted += [(keyword, (pattern,)) for keyword, pattern in self.attributes.items()]
        return all(_any(patterns, _values(one, keyword)) for keyword, patterns in wanted)


def check(name: str, conditions: Conditions, hours: str, quiet_s: int) -> None:
    """Check what a new rule says.

    Raises:
        InvalidRequest.
    """
    if not _NAME.fullmatch(name):
        message = "a rule is named by letters, digits, dot, dash and underscore"
        raise InvalidRequest(message, remedy="for example to-reading-room")
    if hours and not _HOURS.fullmatch(hours):
        message = "hours are HH:MM-HH:MM"
        raise InvalidRequest(message, remedy="for example 20:00-06:00, in the archive's local time")
    if not 0 <= quiet_s <= LONGEST_QUIET_S:
        message = "a study is quiet after at most a week"
        raise InvalidRequest(message, remedy="give minutes, for example --quiet 5")
    for keyword in conditions.attributes:
        known = BY_KEYWORD.get(keyword)
        if known is None or known.level is Level.IMAGE or known.computed:
            message = f"{keyword[:64]} is no attribute of patient, study or series that is indexed"
            raise InvalidRequest(message, remedy="name it by its keyword, for example StudyDescription=*chest*")


def closed_until(hours: str, at: datetime) -> datetime | None:
    """Return when a window of hours opens next, in the machine's local time; None while it is open."""
    found = _HOURS.fullmatch(hours)
    if found is None:
        return None
    here = at.astimezone()
    begin, end = (here.replace(hour=int(found[n]), minute=int(found[n + 1]), second=0, microsecond=0) for n in (1, 3))
    inside = begin <= here < end if begin < end else here >= begin or here < end
    if inside or begin == end:
        return None
    return (begin if here < begin else begin + timedelta(days=1)).astimezone(at.tzinfo)


def _any(patterns: Sequence[str], values: Sequence[str]) -> bool:
    return any(fnmatchcase(value.strip().casefold(), pattern.strip().casefold().replace("[", "[[]"))
               for value in values for pattern in patterns)


def _values(one: Arrived, keyword: str) -> list[str]:
    tag = BY_KEYWORD[keyword].tag_hex
    found: list[str] = []
    for attributes in one.attributes:
        for value in (attributes.get(tag) or {}).get("Value") or []:
            found += value.values() if isinstance(value, dict) else [str(value)]
    return [str(value) for value in found]


def _source(envelope: bytes | None) -> dict[str, Any]:
    """Return where an instance came from, as its statement says."""
    if envelope is None:
        return {}
    payload = msgspec.json.decode(base64.b64decode(msgspec.json.decode(envelope)["payload"]))
    return dict(payload.get("src") or {})
