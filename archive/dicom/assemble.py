"""An instance put together from its metadata in the DICOM JSON Model and bulk data that came beside it.

The data set is written in explicit VR little endian, its text in UTF-8; pixel data that came as compressed frames are encapsulated, in the
transfer syntax they came in. A URI is only ever looked up among the parts of the request.

Source: PS3.18 10.5.1 and F.2, PS3.5 7.1 and A.4.
"""

from __future__ import annotations

import binascii
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from archive.dicom import reencode
from archive.dicom.compose import text_of
from archive.dicom.part10 import meta
from archive.dicom.repertoires import UTF_8
from archive.dicom.transcode import encapsulated
from archive.dicom.transfer import EXPLICIT_LE, TRANSFER_SYNTAXES, UNCOMPRESSED
from archive.dicom.values import BINARY, LONG, SHORT
from archive.errors import InvalidInstance

DEPTH = 64
"""How deep sequences may lie in each other."""

_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_NAMED = re.compile(r"[0-9]+(\.[0-9]+)*")
_VRS = frozenset(code.decode("ascii") for code in SHORT | LONG)
_INTEGERS = {"US": "<H", "SS": "<h", "UL": "<I", "SL": "<i", "UV": "<Q", "SV": "<q"}
_FLOATS = {"FL": "<f", "FD": "<d"}
_LEFT_OUT = frozenset({"0000", "0002", "FFFC", "FFFE"})
_CHARACTER_SET, _PIXEL_DATA = "00080005", "7FE00010"
_TRANSFER_SYNTAX, _AVAILABLE_TRANSFER_SYNTAX = "00020010", "00083002"
_UNDEFINED = 0xFFFFFFFF


@dataclass(slots=True)
class Bulk:
    """What came under one URI: a value in little endian, or frames one after the other where a transfer syntax is told."""

    pieces: list[bytes]
    compressed: bool = False
    transfer_syntax_uid: str = ""


Lookup = Callable[[str], Bulk | None]


def uid_of(document: Mapping[str, Any], tag: str) -> str:
    """Return a UID of the data set, empty when it has none; never raises."""
    found = document.get(tag)
    values = found.get("Value") if isinstance(found, dict) else None
    value = values[0] if isinstance(values, list) and values else ""
    text = value.strip(" \0") if isinstance(value, str) else ""
    return text if len(text) <= 64 and _NAMED.fullmatch(text) else ""


def part10(document: object, bulk: Lookup) -> Iterator[bytes]:
    """Yield the Part 10 file, piece by piece, once every piece is known to be sound.

    Raises:
        InvalidInstance: not a data set, or bulk data that did not come.
    """
    if not isinstance(document, dict):
        raise _unsound("the metadata are not a data set")
    sop_class, sop_instance = uid_of(document, "00080016"), uid_of(document, "00080018")
    if not sop_class or not sop_instance:
        message = "SOPClassUID or SOPInstanceUID is missing"
        raise InvalidInstance(message, reason="missing-uid")
    writer = _Writer(bulk, uid_of(document, _TRANSFER_SYNTAX) or uid_of(document, _AVAILABLE_TRANSFER_SYNTAX))
    try:
        body = writer.dataset(document, 0)
    except (ValueError, TypeError, struct.error, OverflowError, AttributeError) as error:
        raise _unsound("a value is not what its VR says") from error
    return iter((meta(sop_class, sop_instance, writer.transfer_syntax_uid), *body))


def _unsound(message: str) -> InvalidInstance:
    return InvalidInstance(message, reason="cannot-understand")


class _Writer:
    def __init__(self, bulk: Lookup, told: str) -> None:
        self._bulk = bulk
        self._told = told
        self.transfer_syntax_uid = EXPLICIT_LE

    def dataset(self, document: Mapping[str, Any], depth: int) -> list[bytes]:
        if depth > DEPTH:
            message = "sequences lie too deep in each other"
            raise InvalidInstance(message, reason="too-deep")
        elements = {str(tag).upper(): one for tag, one in document.items()}
        if any(not _TAG.fullmatch(tag) or not isinstance(one, dict) for tag, one in elements.items()):
            raise _unsound("an element is not named by its tag")
        # (0008,0005) is what the text is written in, whatever the metadata were made from.
        if depth == 0 or _CHARACTER_SET in elements:
            elements[_CHARACTER_SET] = {"vr": "CS", "Value": [UTF_8.decode("ascii")]}
        pieces: list[bytes] = []
        for tag in sorted(elements):
            if tag[:4] not in _LEFT_OUT and not tag.endswith("0000") and tag != _AVAILABLE_TRANSFER_SYNTAX:
                pieces += self._element(tag, elements[tag], depth)
        return pieces

    def _element(self, name: str, one: Mapping[str, Any], depth: int) -> list[bytes]:
        tag, vr, values = int(name, 16), one.get("vr"), one.get("Value") or []
        if vr not in _VRS or not isinstance(values, list):
            raise _unsound("an element has no VR of the standard")
        if vr == "SQ":
            return self._sequence(tag, values, depth)
        uri = one.get("BulkDataURI")
        if uri is not None:
            return self._found(name, tag, vr, uri, depth)
        inline = one.get("InlineBinary")
        if inline is not None:
            if not isinstance(inline, str):
                raise _unsound("binary data are not in base64")
            return [reencode.element(tag, vr, binascii.a2b_base64(inline.encode("ascii"), strict_mode=True))]
        return [reencode.element(tag, vr, _value(vr, values))]

    def _found(self, name: str, tag: int, vr: str, uri: object, depth: int) -> list[bytes]:
        bulk = self._bulk(uri) if isinstance(uri, str) else None
        if bulk is None:
            raise _unsound("bulk data that the metadata name did not come with the request")
        if name == _PIXEL_DATA and depth == 0 and bulk.compressed:
            syntax = bulk.transfer_syntax_uid or self._told
            if syntax not in TRANSFER_SYNTAXES or syntax in UNCOMPRESSED:
                raise _unsound("the transfer syntax of the frames is not told")
            self.transfer_syntax_uid = syntax
            return [encapsulated(bulk.pieces)]
        return [reencode.element(tag, vr, b"".join(bulk.pieces))]

    def _sequence(self, tag: int, items: list[Any], depth: int) -> list[bytes]:
        head = struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, b"SQ", 0)
        if not items:
            return [head + struct.pack("<I", 0)]
        pieces = [head + struct.pack("<I", _UNDEFINED)]
        for item in items:
            if item is not None and not isinstance(item, dict):
                raise _unsound("an item is not a data set")
            pieces.append(struct.pack("<HHI", 0xFFFE, 0xE000, _UNDEFINED))
            pieces += self.dataset(item or {}, depth + 1)
            pieces.append(struct.pack("<HHI", 0xFFFE, 0xE00D, 0))
        pieces.append(struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))
        return pieces


def _value(vr: str, values: list[Any]) -> bytes:
    if vr in BINARY:
        if values:
            raise _unsound("binary data are not in base64")
        return b""
    if any(isinstance(value, bool | list) or (isinstance(value, dict) and vr != "PN") for value in values):
        raise _unsound("a value is not what its VR says")
    if vr in _INTEGERS:
        return b"".join(struct.pack(_INTEGERS[vr], _whole(value)) for value in values)
    if vr in _FLOATS:
        return b"".join(struct.pack(_FLOATS[vr], float(value)) for value in values)
    if vr == "AT":
        tags = [int(value, 16) for value in values]
        return b"".join(struct.pack("<HH", tag >> 16, tag & 0xFFFF) for tag in tags)
    text = "\\".join(text_of(vr, value) for value in values)
    if "\0" in text:
        raise _unsound("a text holds a character no text can hold")
    return text.encode("utf-8")


def _whole(value: object) -> int:
    if isinstance(value, float) and not value.is_integer():
        raise _unsound("a value is not what its VR says")
    if not isinstance(value, str | int | float):
        raise _unsound("a value is not what its VR says")
    return int(value)
