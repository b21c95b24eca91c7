"""Values as nearly every instance writes them: straight to JSON, and known to conform.

A reader answers None for all that is not of the usual form; `values.element_json` and `conformity.faults_of` then say what it is. Where
it answers, they would say the same.

Source: PS3.5 6.2.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any

from archive.dicom.attributes import SCANNED
from archive.dicom.charsets import Text
from archive.dicom.conformity import single
from archive.dicom.values import Element, decimal, element_json

Reader = Callable[[bytes], list[Any] | None]
"""Reads the bytes of one value in little endian."""


def is_uid(text: bytes) -> bool:
    """Whether these bytes are a UID: numbers apart by dots, at most 64 characters."""
    return text.replace(b".", b"").isdigit() and len(text) <= 64 and b".." not in text and text[0] != _DOT and text[-1] != _DOT


def _one(pattern: bytes) -> Reader:
    """Read one value, the first group of the pattern."""
    match = re.compile(pattern).fullmatch

    def read(raw: bytes) -> list[Any] | None:
        found = match(raw)
        return None if found is None else [found[1].decode("ascii")]

    return read


def _codes(raw: bytes) -> list[Any] | None:
    if _CODES(raw) is None:
        return None
    values = [value.strip(" ") for value in raw.decode("ascii").split("\\")]
    return values if all(values) and len(max(values, key=len)) <= 16 else None


def _name(raw: bytes) -> list[Any] | None:
    found = _NAME(raw)
    return None if found is None else [{"Alphabetic": found[1].decode("ascii")}]


def _integer(raw: bytes) -> list[Any] | None:
    found = _INTEGER(raw)
    return None if found is None else [int(found[1])]


def _decimal(raw: bytes) -> list[Any] | None:
    if _SHORT_DECIMAL(raw) is None:
        return None if b"\\" in raw else _decimals(raw)
    return [float(raw) if b"." in raw else int(raw)]


def _decimals(raw: bytes) -> list[Any] | None:
    # What has at most fifteen characters and no exponent is the number it reads as; longer ones `decimal` looks at.
    if _SHORT_DECIMALS(raw) is not None:
        return [float(part) if b"." in part else int(part) for part in raw.split(b"\\")]
    if _DECIMALS(raw) is None:
        return None
    values = [decimal(part.strip(" ")) for part in raw.decode("ascii").split("\\")]
    for value in values:
        if isinstance(value, str):
            return None
    return values


def _uid(raw: bytes) -> list[Any] | None:
    uid = raw[:-1] if raw.endswith(b"\0") else raw
    return [uid.decode("ascii")] if is_uid(uid) else None


def _word(raw: bytes) -> list[Any] | None:
    return list(_WORD(raw)) if len(raw) == 2 else None


_DOT = ord(".")
_CODES = re.compile(rb"[A-Z0-9 _\\]+").fullmatch
_NAME = re.compile(rb"([!-<>-\[\]-~](?:[ -<>-\[\]-~]{0,62}[!-<>-\[\]-~])?) ?").fullmatch
_INTEGER = re.compile(rb" ?([+-]?[0-9]{1,11}) ?").fullmatch
_SHORT = rb"[+-]?(?:[0-9]{1,12}|[0-9]{1,6}\.[0-9]{0,7}|\.[0-9]{1,10}) ?"
_SHORT_DECIMAL = re.compile(_SHORT).fullmatch
_SHORT_DECIMALS = re.compile(_SHORT + rb"(?:\\" + _SHORT + rb")*").fullmatch
_DECIMALS = re.compile(rb"[-+.0-9eE]+ ?(?:\\[-+.0-9eE]+ ?)*").fullmatch
_WORD = struct.Struct("<H").unpack


def _text(longest: int) -> Reader:
    """Read one value of printable ASCII, which says the same in every repertoire."""
    return _one(rb"([ -\[\]-~]{0,%d}[!-\[\]-~]) ?" % (longest - 1))


_SINGLE: dict[str, Reader] = {
    "AS": _one(rb"([0-9]{3}[DWMY])"),
    "CS": _one(rb"([A-Z0-9_](?:[A-Z0-9 _]{0,14}[A-Z0-9_])?) ?"),
    "DA": _one(rb"([0-9]{4}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01]))"),
    "DS": _decimal,
    "IS": _integer,
    "LO": _text(64),
    "PN": _name,
    "SH": _text(16),
    "TM": _one(rb"((?:[01][0-9]|2[0-3])[0-5][0-9][0-5][0-9](?:\.[0-9]{1,6})?) ?"),
    "UI": _uid,
    "US": _word,
}
_SEVERAL: dict[str, Reader] = _SINGLE | {"CS": _codes, "DS": _decimals}



def usual_json(vr: str, raw: bytes, little: bool, text: Text) -> Element:
    """Return what `element_json` returns, most often sooner."""
    reader = _SEVERAL.get(vr)
    value = reader(raw) if reader is not None and little else None
    return element_json(vr, raw, little, text) if value is None else {"vr": vr, "Value": value}


READERS: dict[int, tuple[str, str, Reader | None]] = {
    tag: (attribute.vr, attribute.tag_hex, (_SINGLE if single(tag) else _SEVERAL).get(attribute.vr)) for tag, attribute in SCANNED.items()
}
"""VR, tag as DICOM JSON spells it, and reader of every scanned attribute."""
