"""Data sets of worklist entries and procedure steps: read within bounds, kept as DICOM JSON, checked for what a step must say.

They come from files, from programs and from devices; whatever does not fit a small data set of text and numbers is refused, binary values
are left out.

Source: PS3.4 Annexes F and K, PS3.18 F.2, PS3.5 6.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from archive.dicom import registry
from archive.dicom.attributes import BY_TAG
from archive.dicom.dictionary import vr_of
from archive.dicom.filemeta import sniff
from archive.dicom.matching import UID
from archive.dicom.metadata import dataset_json
from archive.errors import InvalidInstance, InvalidRequest

Element = dict[str, Any]
DataSet = dict[str, Element]

MAXIMUM_BYTES = 1 << 20
MAXIMUM_ELEMENTS = 40_000
_MAXIMUM_DEPTH = 8
_MAXIMUM_CHARACTERS = 10_240
_SHORT = {"AE": 16, "CS": 16, "SH": 16, "DA": 8, "TM": 16, "DT": 26, "LO": 64, "UI": 64, "DS": 16, "IS": 12, "AS": 4}
_TEXT = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"})
_NUMBER = frozenset({"DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"})
_INTEGERS = {"SL": (-(1 << 31), 1 << 31), "SS": (-(1 << 15), 1 << 15), "SV": (-(1 << 63), 1 << 63), "UL": (0, 1 << 32), "US": (0, 1 << 16),
             "UV": (0, 1 << 64)}
_LEFT_OUT = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
_NO_TEXT = re.compile("[\\x00-\\x08\\x0b\\x0e-\\x1f\\ud800-\\udfff]")
_TAG = re.compile(r"[0-9A-F]{8}")
_DATE, _TIME = re.compile(r"\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])"), re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?")


def read(data: bytes, *, transfer_syntax_uid: str = "") -> DataSet:
    """Read a data set from its bytes: of a Part 10 file, of one without its head, or of a message in a known transfer syntax.

    Raises:
        InvalidRequest: too large, or not a data set that can be kept here.
    """
    if len(data) > MAXIMUM_BYTES:
        raise _refused("is larger than 1 MiB")
    start = 0
    if not transfer_syntax_uid and data[128:132] == b"DICM":
        start = _after_meta(data)
        named = re.search(rb"\x02\x00\x10\x00UI..([0-9.]+)", data[132:start], re.DOTALL)
        transfer_syntax_uid = named[1].decode() if named else ""
    try:
        implicit, little, _ = sniff(data[start : start + 8], transfer_syntax_uid or "1.2.840.10008.1.2")
        found = dataset_json(data, start, implicit, little, lambda _path, vr, _buffer, _from, _to: {"vr": vr.lstrip("=")})
    except InvalidInstance as error:
        raise _refused("cannot be read") from error
    return checked(found, lenient=True)


def _after_meta(data: bytes) -> int:
    """Return where the data set begins: behind the elements of group 0002, which are explicit little endian."""
    at = 132
    while data[at : at + 2] == b"\x02\x00" and at + 12 <= len(data):
        long = data[at + 4 : at + 6] in (b"OB", b"UN", b"UT")
        at += 12 + int.from_bytes(data[at + 8 : at + 12], "little") if long else 8 + int.from_bytes(data[at + 6 : at + 8], "little")
    return at


def checked(dataset: Any, *, lenient: bool = False) -> DataSet:
    """Return a data set of the DICOM JSON Model as it is kept: known shape, bounded, without binary values and character set.

    A device cannot be told to mend its values: where it sent the data set (`lenient`), those that break their VR are left empty.

    Raises:
        InvalidRequest: names the attribute, never the value.
    """
    return _Checker(lenient).dataset(dataset, 0)


class _Checker:
    def __init__(self, lenient: bool) -> None:
        self._lenient = lenient
        self._left = MAXIMUM_ELEMENTS

    def dataset(self, found: Any, depth: int) -> DataSet:
        if not isinstance(found, Mapping):
            raise _refused("is not a DICOM JSON data set")
        if depth > _MAXIMUM_DEPTH:
            raise _refused("is nested too deeply")
        kept: DataSet = {}
        for name in sorted(found, key=str):
            if not isinstance(name, str) or not _TAG.fullmatch(name):
                raise _refused("has a key that is no tag of eight hexadecimal digits")
            tag = int(name, 16)
            if not tag & 0xFFFF or tag >> 16 < 8 or name in ("00080005", "00080001"):
                continue  # text is Unicode here, and no group is counted
            self._left -= 1
            if self._left < 0:
                raise _refused("has too many attributes")
            made = self._element(name, found[name], depth)
            if made is not None:
                kept[name] = made
        return kept

    def _element(self, name: str, found: Any, depth: int) -> Element | None:
        if not isinstance(found, Mapping):
            raise _refused("is no element of the DICOM JSON Model", name)
        vr, values = _vr(name, found.get("vr")), found.get("Value")
        if vr in _LEFT_OUT:
            return None
        if vr != "SQ" and vr not in _TEXT and vr not in _NUMBER and vr != "AT":
            raise _refused("has a VR that is none", name)
        if values is None:
            return {"vr": vr}
        if not isinstance(values, list):
            raise _refused("has a Value that is no list", name)
        if vr == "SQ":
            items = [self.dataset(item or {}, depth + 1) for item in values]
            self._left -= len(items)
            return {"vr": vr, "Value": items} if items else {"vr": vr}
        try:
            kept = [_value(name, vr, one) for one in values]
        except InvalidRequest:
            if not self._lenient:
                raise
            return {"vr": vr}
        while kept and kept[-1] is None:
            kept.pop()
        return {"vr": vr, "Value": kept} if kept else {"vr": vr}


def _vr(name: str, said: Any) -> str:
    """Return the standard's VR, or what is said where it has none or leaves it open."""
    known = BY_TAG.get(int(name, 16))
    vr = known.vr if known is not None else vr_of(int(name, 16))
    if vr in ("UN", "xs"):
        return said if isinstance(said, str) else "UN"
    return vr


def _value(name: str, vr: str, value: Any) -> Any:
    if value is None:
        return None
    if vr == "PN":
        return _name(name, value)
    if vr in _NUMBER and not isinstance(value, str):
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) == float("inf"):  # noqa: PLR0124
            raise _refused("takes numbers", name)
        if vr in _INTEGERS or vr == "IS":
            low, high = _INTEGERS.get(vr, (-(1 << 31), 1 << 31))
            if not isinstance(value, int) or not low <= value < high:
                raise _refused("takes whole numbers", name)
        return value
    if vr in _NUMBER and vr not in ("DS", "IS"):
        raise _refused("takes numbers", name)
    if not isinstance(value, str):
        raise _refused("takes text", name)
    text = value.strip(" \0") if vr not in ("LT", "ST", "UT") else value.rstrip(" \0")
    return _text(name, vr, text) or None


def _text(name: str, vr: str, text: str) -> str:
    if len(text) > _SHORT.get(vr, _MAXIMUM_CHARACTERS) or _NO_TEXT.search(text):
        raise _refused("holds a text that is too long or no text", name)
    if text and vr == "UI" and not UID.fullmatch(text):
        raise _refused("takes UIDs", name)
    if text and vr == "DA" and not _DATE.fullmatch(text):
        raise _refused("takes dates YYYYMMDD", name)
    if text and vr == "TM" and not _TIME.fullmatch(text):
        raise _refused("takes times HHMMSS", name)
    if vr == "AT" and not _TAG.fullmatch(text):
        raise _refused("takes tags", name)
    if vr in ("AE", "CS", "SH", "LO", "PN") and "\\" in text:
        raise _refused("holds a backslash", name)
    return text


def _name(tag: str, value: Any) -> dict[str, str] | None:
    if isinstance(value, str):  # as programs write it that have one group only
        groups = dict(zip(_GROUPS, value.split("=", 2), strict=False))
    elif isinstance(value, Mapping) and all(isinstance(one, str) for one in value.values()):
        groups = {group: value[group] for group in _GROUPS if group in value}
    else:
        raise _refused("takes names", tag)
    kept = {group: _text(tag, "PN", text.strip(" \0")) for group, text in groups.items()}
    return {group: text for group, text in kept.items() if text} or None


def text(dataset: Mapping[str, Any], tag: str) -> str:
    """Return the first value of an attribute as text, empty when there is none."""
    values = texts(dataset, tag)
    return values[0] if values else ""


def texts(dataset: Mapping[str, Any], tag: str) -> list[str]:
    """Return the values of an attribute as text; of a name its groups, joined by =."""
    found = []
    for value in (dataset.get(tag) or {}).get("Value") or []:
        if isinstance(value, Mapping):
            found.append("=".join(str(value.get(group) or "") for group in _GROUPS).rstrip("="))
        elif value is not None:
            found.append(str(value))
    return found


def items(dataset: Mapping[str, Any], tag: str) -> list[DataSet]:
    """Return the items of a sequence."""
    return [item for item in (dataset.get(tag) or {}).get("Value") or [] if isinstance(item, dict)]


def element(vr: str, values: Iterable[Any]) -> Element:
    """Return an element of the DICOM JSON Model."""
    kept = list(values)
    return {"vr": vr, "Value": kept} if kept else {"vr": vr}


def _refused(what: str, name: str = "") -> InvalidRequest:
    subject = registry.keyword_of(int(name, 16)) or f"attribute {name}" if name else "the data set"
    return InvalidRequest(f"{subject} {what}", remedy="see docs/worklist.md for what an entry holds")
