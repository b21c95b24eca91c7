"""Encapsulated icons, decoded where the data set around them is made into another transfer syntax.

Pixel data of an Icon Image Sequence may be native whatever those of the instance are, so a decoded icon has its place everywhere. What
has no decoder, is damaged or larger than icons are is left out, as all other encapsulated data that are not the instance's pixel data.

Source: PS3.3 C.7.6.1.1.6, PS3.5 A.4.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import replace

from archive.dicom.charsets import Text
from archive.dicom.decode import Frame, decode
from archive.dicom.layout import Layout, layout_of
from archive.dicom.part10 import Scanned
from archive.dicom.pieces import Piece
from archive.dicom.pixels import bytes_of
from archive.dicom.reencode import element, header
from archive.dicom.runs import READ, UNDEFINED
from archive.dicom.transfer import UNCOMPRESSED
from archive.dicom.values import LONG, SHORT, Element, element_json
from archive.errors import NotAcceptable

MOST_BYTES = 8 << 20
"""Of all icons of an instance together, decoded; the standard recommends 128 pixels a side."""

LEAST_BYTES = 64 << 10
"""What an icon counts at least, so that there is an end to them."""

MOST_ELEMENTS = 200
"""Of an item before its pixel data."""

_PIXEL_DATA, _PLANAR, _PHOTOMETRIC = 0x7FE00010, 0x00280006, 0x00280004
_ITEM = (0xFFFE, 0xE000)
_VRS = SHORT | LONG
_NOTHING: Mapping[int, Iterable[Piece]] = {}


class Icons:
    """The icons of one instance, as its data set is gone through."""

    def __init__(self, scanned: Scanned, *, explicit: bool) -> None:
        """Nothing is decoded yet; `explicit` is how elements are written."""
        self._scanned, self._explicit = scanned, explicit
        self._left = 0 if scanned.transfer_syntax_uid in UNCOMPRESSED else MOST_BYTES

    def changed(self, buffer: bytes, position: int, stop: int) -> Mapping[int, Iterable[Piece]]:
        """Return the elements of the item from `position` on, in explicit little endian, that differ once its pixel data are native.

        Nothing of it changes where they are native already or cannot be decoded.
        """
        if self._left <= 0:
            return _NOTHING
        self._left -= LEAST_BYTES
        found = _read(buffer, position, stop, self._left)
        if found is None:
            return _NOTHING
        attributes, coded = found
        try:
            layout = replace(layout_of(replace(self._scanned, attributes=attributes)), whole=True)
            size = layout.pixels * layout.dtype.itemsize
            if size > self._left:
                return _NOTHING
            self._left -= size
            frame = decode(layout, coded)
        except NotAcceptable:
            return _NOTHING
        return self._native(layout, frame, attributes)

    def _native(self, layout: Layout, frame: Frame, attributes: dict[str, Element]) -> Mapping[int, Iterable[Piece]]:
        explicit = self._explicit
        value = bytes_of(layout, frame)
        value += bytes(len(value) % 2)
        kind = "OW" if layout.bits_allocated > 8 else "OB"
        made: dict[int, Iterable[Piece]] = {_PIXEL_DATA: (header(_PIXEL_DATA, kind, len(value), explicit=explicit), value)}
        if frame.photometric != layout.photometric:
            made[_PHOTOMETRIC] = (element(_PHOTOMETRIC, "CS", frame.photometric.encode("ascii"), explicit=explicit),)
        if layout.samples > 1 and "00280006" not in attributes:
            made[_PLANAR] = (element(_PLANAR, "US", struct.pack("<H", 0), explicit=explicit),)
        return made


def _read(buffer: bytes, position: int, stop: int, most: int) -> tuple[dict[str, Element], bytes] | None:
    """Return the image attributes of an item and its code stream, up to `most` bytes; None where it is not as simple as icons are."""
    head, short, long, _, _ = READ["<"]
    attributes: dict[str, Element] = {}
    last, text = 0, Text()
    for _ in range(MOST_ELEMENTS):
        if position + 12 > stop:
            return None
        group, number = head(buffer, position)
        tag, code = group << 16 | number, buffer[position + 4 : position + 6]
        if tag <= last or code not in _VRS:
            return None
        start, length = (position + 8, short(buffer, position + 6)[0]) if code in SHORT else (position + 12, long(buffer, position + 8)[0])
        if tag == _PIXEL_DATA:
            coded = _fragments(buffer, start, stop, most) if length == UNDEFINED else None
            return None if coded is None else (attributes, coded)
        if start + length > stop:
            return None
        if group == 0x0028 and code in SHORT:
            attributes[f"{tag:08X}"] = element_json(code.decode("ascii"), buffer[start : start + length], True, text)
        last, position = tag, start + length
    return None


def _fragments(buffer: bytes, position: int, stop: int, most: int) -> bytes | None:
    """Return the fragments behind the offset table together."""
    head, _, long, _, _ = READ["<"]
    found: list[bytes] = []
    first = True
    while position + 8 <= stop and head(buffer, position) == _ITEM:
        length = long(buffer, position + 4)[0]
        most -= 0 if first else length
        position += 8
        if most < 0 or position + length > stop:
            return None
        if not first:
            found.append(buffer[position : position + length])
        first, position = False, position + length
    return b"".join(found) or None
