"""The identifier of a query or retrieve request: read within bounds, never by recursion that a peer decides about.

Source: PS3.4 C.4.1.1.3 and C.4.2.1.4, PS3.5 7.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from archive.dicom.attributes import BY_TAG, Level
from archive.dicom.charsets import repertoire
from archive.dicom.dictionary import vr_of
from archive.dicom.row_keys import Key
from archive.dicom.values import LONG, SHORT

MAXIMUM_BYTES = 1 << 20
"""Ten thousand UIDs fit."""

_MAXIMUM_ELEMENTS = 2048
_MAXIMUM_DEPTH = 8
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xE000, 0xE00D, 0xE0DD
_NUMBERS = {"US": "<H", "SS": "<h", "UL": "<I", "SL": "<i", "FL": "<f", "FD": "<d"}
_BINARY = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN", "AT", "SV", "UV"})
_SPECIFIC_CHARACTER_SET, _QUERY_RETRIEVE_LEVEL = 0x00080005, 0x00080052


class MalformedIdentifier(ValueError):
    """Not a data set, or far from any identifier; the message never repeats a value."""


@dataclass(frozen=True, slots=True)
class Identifier:
    """What a request asks for; `declared` is its own (0008,0005)."""

    declared: bytes
    level: Level | None
    keys: dict[int, Key]

    def text(self, tag: int) -> str:
        """Return the value of an attribute of the data set itself, empty when there is none."""
        key = self.keys.get(tag)
        return key.text.strip(" \0") if key is not None else ""


@dataclass(frozen=True, slots=True)
class _Raw:
    tag: int
    vr: str
    value: bytes
    items: tuple[tuple[_Raw, ...], ...] = ()


def read(encoded: bytes, *, explicit: bool, default: str = "") -> Identifier:
    """Read an identifier in little endian; `default` is the character set of one that names none.

    Raises:
        MalformedIdentifier.
    """
    try:
        found, _ = _Reader(encoded, explicit).elements(0, len(encoded), 0, delimited=False)
    except struct.error as error:
        message = "an element is cut short"
        raise MalformedIdentifier(message) from error
    raw = {one.tag: one for one in found}
    if len(raw) != len(found):
        message = "an attribute stands twice"
        raise MalformedIdentifier(message)
    own = raw.pop(_SPECIFIC_CHARACTER_SET, None)
    declared = (own.value.strip(b" \0") if own is not None else b"") or default.encode("ascii")
    text = repertoire(declared or None)
    keys = {tag: _key(one, text.decode) for tag, one in raw.items() if tag & 0xFFFF and tag >> 16 > 7}
    wanted = keys.pop(_QUERY_RETRIEVE_LEVEL, None)
    named = wanted.text.strip(" \0") if wanted is not None else ""
    return Identifier(declared, Level(named) if named in Level.__members__ else None, keys)


def _key(one: _Raw, decode: Callable[..., str]) -> Key:
    known = BY_TAG.get(one.tag)
    vr = known.vr if known is not None else one.vr
    if one.items or vr == "SQ":
        return Key(one.tag, "SQ", items=tuple(tuple(_key(inner, decode) for inner in item) for item in one.items))
    if vr in _NUMBERS and len(one.value) == struct.calcsize(_NUMBERS[vr]):
        return Key(one.tag, vr, str(struct.unpack(_NUMBERS[vr], one.value)[0]))
    if vr in _BINARY:
        return Key(one.tag, vr, one.value.hex())
    return Key(one.tag, vr, decode(one.value, name=vr == "PN"))


class _Reader:
    def __init__(self, data: bytes, explicit: bool) -> None:
        self._data = data
        self._explicit = explicit
        self._left = _MAXIMUM_ELEMENTS

    def elements(self, at: int, stop: int, depth: int, *, delimited: bool) -> tuple[tuple[_Raw, ...], int]:
        """Read elements from `at` to `stop`, or to the delimiter of their item; returns them and where they end."""
        found: list[_Raw] = []
        data = self._data
        while at < stop:
            group, number = struct.unpack_from("<HH", data, at)
            if group == 0xFFFE:
                if number == _ITEM_END and delimited:
                    return tuple(found), at + 8
                self._refuse("a delimiter out of place")
            self._left -= 1
            if self._left < 0:
                self._refuse("too many attributes")
            tag = group << 16 | number
            vr, at, length = self._header(tag, at)
            if vr == "SQ":
                items, at = self._items(at, length, stop, depth + 1)
                found.append(_Raw(tag, vr, b"", items))
                continue
            if length > stop - at:
                self._refuse("an element is longer than the identifier")
            found.append(_Raw(tag, vr, data[at : at + length]))
            at += length
        if delimited:
            self._refuse("an item has no end")
        return tuple(found), at

    def _header(self, tag: int, at: int) -> tuple[str, int, int]:
        data = self._data
        if not self._explicit:
            vr = vr_of(tag)
            return "US" if vr == "xs" else vr, at + 8, struct.unpack_from("<I", data, at + 4)[0]
        code = data[at + 4 : at + 6]
        if code in LONG:
            return code.decode("ascii"), at + 12, struct.unpack_from("<I", data, at + 8)[0]
        if code not in SHORT:
            self._refuse("an element without a VR")
        return code.decode("ascii"), at + 8, struct.unpack_from("<H", data, at + 6)[0]

    def _items(self, at: int, length: int, stop: int, depth: int) -> tuple[tuple[tuple[_Raw, ...], ...], int]:
        if depth > _MAXIMUM_DEPTH:
            self._refuse("sequences are nested too deeply")
        if length != _UNDEFINED and length > stop - at:
            self._refuse("a sequence is longer than the identifier")
        end = stop if length == _UNDEFINED else at + length
        items: list[tuple[_Raw, ...]] = []
        while at < end:
            group, number, size = struct.unpack_from("<HHI", self._data, at)
            at += 8
            if group == 0xFFFE and number == _SEQUENCE_END and length == _UNDEFINED:
                return tuple(items), at
            self._left -= 1
            if (group, number) != (0xFFFE, _ITEM) or self._left < 0 or (size != _UNDEFINED and size > end - at):
                self._refuse("an item out of place")
            inner, at = self.elements(at, end if size == _UNDEFINED else at + size, depth, delimited=size == _UNDEFINED)
            items.append(inner)
        if length == _UNDEFINED:
            self._refuse("a sequence has no end")
        return tuple(items), at

    @staticmethod
    def _refuse(message: str) -> NoReturn:
        raise MalformedIdentifier(message)
