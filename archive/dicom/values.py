"""One element's bytes to its DICOM JSON form; never raises, whatever the bytes.

IS, DS, SV and UV are JSON numbers where a number says exactly the same, else strings; NaN and infinities are strings.

Source: PS3.18 F.2.
"""

from __future__ import annotations

import binascii
import math
import re
import struct
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from archive.dicom.charsets import Text

Element = dict[str, Any]
"""{"vr": …} with at most one of Value, InlineBinary, BulkDataURI."""

LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
SHORT = frozenset({b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS", b"ST",
                   b"TM", b"UI", b"UL", b"US"})  # fmt: skip
"""VRs whose explicit length has 32 bits after two reserved bytes, and those with 16 bits (PS3.5 7.1.2)."""

BINARY = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
WIDTH = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8, "US": 2, "SS": 2, "UL": 4, "SL": 4, "FL": 4, "FD": 8, "SV": 8, "UV": 8, "AT": 2}
"""Bytes swapped together between byte orders."""

_NUMBER = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "SV": "q", "UV": "Q"}
_SAFE = 1 << 53
_INTEGER = re.compile(r"[+-]?\d{1,15}")
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")
_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")


def element_json(vr: str, raw: bytes, little: bool, text: Text) -> Element:
    """Return the JSON element of a value that is not a sequence; binary values become InlineBinary."""
    if not raw:
        return {"vr": vr}
    values = _DECODERS.get(vr, _strings)(vr, raw, little, text)
    if isinstance(values, str):
        return {"vr": vr, "InlineBinary": values}
    return {"vr": vr, "Value": values} if values else {"vr": vr}


def _strings(vr: str, raw: bytes, little: bool, text: Text) -> list[Any]:  # noqa: ARG001 # one signature for all decoders
    decoded = raw.decode("ascii") if raw.isascii() else text.decode(raw)
    if "\\" not in decoded:
        stripped = decoded.strip(" \0")
        return [stripped] if stripped else []
    parts = [part.strip(" \0") for part in decoded.split("\\")]
    return [part or None for part in parts] if any(parts) else []


def _texts(vr: str, raw: bytes, little: bool, text: Text) -> list[Any]:  # noqa: ARG001
    decoded = text.decode(raw)  # (0008,0005) applies, and spaces in front count
    if "\\" not in decoded:
        stripped = decoded.rstrip(" \0")
        return [stripped] if stripped else []
    parts = [part.rstrip(" \0") for part in decoded.split("\\")]
    return [part or None for part in parts] if any(parts) else []


def _whole(vr: str, raw: bytes, little: bool, text: Text) -> list[Any]:  # noqa: ARG001 # a backslash is text
    stripped = text.decode(raw).rstrip(" \0")
    return [stripped] if stripped else []


def _location(vr: str, raw: bytes, little: bool, text: Text) -> list[Any]:  # noqa: ARG001
    stripped = (raw.decode("ascii") if raw.isascii() else text.decode(raw)).rstrip(" \0")
    return [stripped] if stripped else []


def _names(vr: str, raw: bytes, little: bool, text: Text) -> list[Any]:  # noqa: ARG001
    names: list[Any] = []
    for value in text.decode(raw, name=True).split("\\"):
        groups = {name: group for name, part in zip(_GROUPS, value.split("=", 2), strict=False) if (group := part.strip(" \0"))}
        names.append(groups or None)
    return names if any(names) else []


def _integers(vr: str, raw: bytes, little: bool, text: Text) -> list[Any]:
    if len(raw) <= 12 and raw.isdigit():
        return [int(raw)]
    strings = _strings(vr, raw, little, text)
    return [int(part) if part is not None and _INTEGER.fullmatch(part) else part for part in strings]


def _decimals(vr: str, raw: bytes, little: bool, text: Text) -> list[Any]:
    return [None if part is None else decimal(part) for part in _strings(vr, raw, little, text)]


def decimal(part: str) -> int | float | str:
    """Return the number that a DS says, itself where no number says exactly the same."""
    if len(part) <= 15 and part.isdigit() and part.isascii():
        return int(part)
    if len(part) > 64 or _DECIMAL.fullmatch(part) is None:
        return part
    number = float(part)
    if len(part) <= 15 and not ("e" in part or "E" in part):
        return int(number) if number.is_integer() and "." not in part else number
    # Fifteen digits always survive a double; more only sometimes.
    return number if math.isfinite(number) and Decimal(repr(number)) == Decimal(part) else part


def _numbers(vr: str, raw: bytes, little: bool, text: Text) -> list[Any]:  # noqa: ARG001
    if vr == "US" and len(raw) == 2:
        return [int.from_bytes(raw, "little" if little else "big")]
    count = len(raw) // WIDTH[vr]
    if not count:
        return []
    values: list[Any] = list(struct.unpack_from(f"{'<' if little else '>'}{count}{_NUMBER[vr]}", raw))
    if vr in {"FL", "FD"}:
        return [value if math.isfinite(value) else _special(value) for value in values]
    if vr in {"SV", "UV"}:
        return [value if -_SAFE <= value <= _SAFE else str(value) for value in values]
    return values


def _special(value: float) -> str:
    return "NaN" if math.isnan(value) else "inf" if value > 0 else "-inf"


def _tags(vr: str, raw: bytes, little: bool, text: Text) -> list[Any]:  # noqa: ARG001
    words = struct.unpack_from(f"{'<' if little else '>'}{len(raw) // 4 * 2}H", raw)
    return [f"{group:04X}{element:04X}" for group, element in zip(words[::2], words[1::2], strict=True)]


def _binary(vr: str, raw: bytes, little: bool, text: Text) -> str:  # noqa: ARG001
    return binascii.b2a_base64(raw if little else swapped(vr, raw), newline=False).decode("ascii")


def sample_vr(vr: str, bits: int | None) -> str:
    """Return the VR as which pixel data of so many bits a sample are swapped: a sample as a whole, whatever VR they have."""
    return {16: "OW", 32: "OL", 64: "OV"}.get(bits or 0, vr)


def swapped(vr: str, raw: bytes) -> bytes:
    """Return a value with its bytes in the other order; what does not fill a word at the end stays."""
    width = WIDTH.get(vr, 1)
    if width == 1:
        return raw
    whole = len(raw) // width * width
    out = bytearray(whole)
    for n in range(width):
        out[n::width] = raw[width - 1 - n : whole : width]
    return bytes(out) + raw[whole:]


_DECODERS: dict[str, Callable[[str, bytes, bool, Text], list[Any] | str]] = {
    "PN": _names,
    "IS": _integers,
    "DS": _decimals,
    "AT": _tags,
    "UR": _location,
    **dict.fromkeys(("LO", "SH", "UC"), _texts),
    **dict.fromkeys(("LT", "ST", "UT"), _whole),
    **dict.fromkeys(_NUMBER, _numbers),
    **dict.fromkeys(BINARY, _binary),
}


def plain(value: Any) -> str:
    """Return one JSON value as text; a person name as "Alphabetic=Ideographic=Phonetic" without trailing "="."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return "=".join(str(value.get(name, "")) for name in _GROUPS).rstrip("=")
    return str(value)
