"""DICOM JSON data sets to bytes: what a query answers over DIMSE. Bulk values are left out.

Source: PS3.5 7.1, A.1 and A.2, PS3.18 F.2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from archive.dicom import reencode
from archive.dicom.repertoires import UTF_8, encoded

Element = Mapping[str, Any]
DataSet = Mapping[str, Element]

SPECIFIC_CHARACTER_SET = "00080005"
_BINARY = {"US": "<H", "SS": "<h", "UL": "<I", "SL": "<i", "UV": "<Q", "SV": "<q", "FL": "<f", "FD": "<d"}
_TEXTS = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
_ASCII = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI", "UR"})
_WRITTEN = _TEXTS | _ASCII
_UNDEFINED = 0xFFFFFFFF
_DECIMAL_BYTES = 16


class _Beyond(Exception):
    """A text that the character set does not hold."""


def dataset(elements: DataSet, *, explicit: bool, declared: bytes) -> bytes:
    """Return the data set in little endian, its text in the character set asked for, or in UTF-8 where that has not all of it.

    (0008,0005) is always there; ASCII alone, asked for without a character set, is called ISO_IR 100.
    """
    try:
        return _written(elements, explicit=explicit, declared=declared, called=declared or b"ISO_IR 100")
    except _Beyond:
        return _written(elements, explicit=explicit, declared=UTF_8, called=UTF_8)


def _written(elements: DataSet, *, explicit: bool, declared: bytes, called: bytes) -> bytes:
    pieces = []
    for tag in sorted({*elements, SPECIFIC_CHARACTER_SET}):
        if tag == SPECIFIC_CHARACTER_SET:
            pieces.append(element(0x00080005, "CS", called, explicit=explicit))
        else:
            pieces.append(_element(tag, elements[tag], explicit, declared))
    return b"".join(pieces)


def element(tag: int, vr: str, value: bytes, *, explicit: bool) -> bytes:
    """Return one element in little endian, padded to even length."""
    if explicit:
        return reencode.element(tag, vr, value)
    if len(value) & 1:
        value += b"\0" if vr in {"OB", "UI", "UN"} else b" "
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value


def _element(tag: str, found: Element, explicit: bool, declared: bytes) -> bytes:
    vr = found.get("vr", "UN")
    values = found.get("Value") or []
    if vr == "SQ":
        return _sequence(int(tag, 16), values, explicit, declared)
    value = _value(vr, values, declared)
    if len(value) < _MOST_SHORT and vr in _WRITTEN:  # nearly all of them: what does not depend on the value is made once
        begins, pad, length = _form(tag, vr, explicit)
        return b"".join((begins, length[len(value)], value, pad)) if len(value) & 1 else b"".join((begins, length[len(value)], value))
    return element(int(tag, 16), vr, value, explicit=explicit)


@lru_cache(maxsize=2048)
def _form(tag: str, vr: str, explicit: bool) -> tuple[bytes, bytes, tuple[bytes, ...]]:
    """Return what stands before an element's length and behind an odd value, and its lengths."""
    whole = element(int(tag, 16), vr, b"", explicit=explicit)
    odd = element(int(tag, 16), vr, b"x", explicit=explicit)
    wide = 2 if explicit and len(whole) == _SHORT_HEAD else 4
    return whole[:-wide], odd[-1:], _LENGTHS[wide]


_SHORT_HEAD = 8  # PS3.5 7.1.2: tag, VR and a length of 16 bits
_MOST_SHORT = 129
_LENGTHS = {wide: tuple((n + n % 2).to_bytes(wide, "little") for n in range(_MOST_SHORT)) for wide in (2, 4)}


def _sequence(tag: int, items: Iterable[DataSet], explicit: bool, declared: bytes) -> bytes:
    body = bytearray()
    for item in items:
        body += struct.pack("<HHI", 0xFFFE, 0xE000, _UNDEFINED)
        for inner in sorted(item or {}):
            body += _element(inner, item[inner], explicit, declared)
        body += struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + (b"SQ\0\0" if explicit else b"")
    if not body:
        return head + struct.pack("<I", 0)
    return head + struct.pack("<I", _UNDEFINED) + bytes(body) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def _value(vr: str, values: Sequence[Any], declared: bytes) -> bytes:
    if vr in _WRITTEN and len(values) == 1 and type(values[0]) is str and values[0].isascii():
        return values[0].encode()  # in every repertoire the same
    if vr in _BINARY:
        return b"".join(struct.pack(_BINARY[vr], value) for value in values if isinstance(value, int | float))
    if vr == "AT":
        tags = [int(value, 16) for value in values]
        return b"".join(struct.pack("<HH", tag >> 16, tag & 0xFFFF) for tag in tags)
    if vr not in _WRITTEN:
        return b""
    text = "\\".join(text_of(vr, value) for value in values)
    made = encoded(text, declared if vr in _TEXTS else UTF_8, name=vr == "PN")
    if made is None:
        raise _Beyond
    return made


def text_of(vr: str, value: Any) -> str:
    """Return one value of DICOM JSON as the text of a data set."""
    if value is None:
        return ""
    if isinstance(value, dict | Mapping):  # dict first: asking whether it is a Mapping takes longer than all else
        groups = [str(value.get(group) or "") for group in ("Alphabetic", "Ideographic", "Phonetic")]
        return "=".join(groups).rstrip("=")
    if vr == "DS" and isinstance(value, float):
        return _decimal(value)
    return str(value)


def _decimal(value: float) -> str:
    """Return the number in the sixteen bytes of a DS, as exactly as they allow."""
    text = repr(value)
    for digits in range(16, 0, -1):
        if len(text) <= _DECIMAL_BYTES:
            break
        text = f"{value:.{digits}g}"
    return text
