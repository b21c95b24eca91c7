"""US or SS: of an element that is either, in implicit VR, the nearest PixelRepresentation around it decides (PS3.5 A.1)."""

from __future__ import annotations

import io
import struct

import pydicom
import pytest

from archive.dicom.metadata import to_json
from archive.dicom.part10 import scan
from archive.dicom.transfer import IMPLICIT_LE
from tests.dicom.conftest import UIDS, im, item, part10, to_explicit_le

_ICONS, _LUTS, _PERIMETER, _SIGN, _SMALLEST, _DESCRIPTOR = 0x00880200, 0x00283010, 0x00280071, 0x00280103, 0x00280106, 0x00283002
_HIGH = struct.pack("<H", 65000)


def instance(signed: int, inside: int | None) -> bytes:
    """Signed or not, with an icon whose own sign is another, or none, and a lookup table that never says."""
    sign = b"" if inside is None else im(_SIGN, struct.pack("<H", inside))
    icon = im(_ICONS, item(sign + im(_SMALLEST, _HIGH) + im(_LUTS, item(im(_DESCRIPTOR, _HIGH * 3)))))
    elements = {tag: im(tag, uid + "\0" * (len(uid) & 1)) for tag, uid in UIDS.items()} | {
        _PERIMETER: im(_PERIMETER, _HIGH), _SIGN: im(_SIGN, struct.pack("<H", signed)), _SMALLEST: im(_SMALLEST, _HIGH),
        _LUTS: im(_LUTS, item(im(_DESCRIPTOR, _HIGH * 3))), _ICONS: icon,
    }  # fmt: skip
    return part10(b"".join(value for _, value in sorted(elements.items())), IMPLICIT_LE)


@pytest.mark.parametrize(("signed", "inside"), [(0, 1), (1, 0), (1, None), (0, None)])
def test_the_nearest_sign_decides_in_what_is_converted(signed: int, inside: int | None) -> None:
    data = instance(signed, inside)
    there, made = (pydicom.dcmread(io.BytesIO(one)) for one in (data, to_explicit_le(data, scan(data))))
    # Of the attributes before PixelRepresentation pydicom leaves it open.
    assert [str(one) for one in made if one.tag != _PERIMETER] == [str(one) for one in there if one.tag != _PERIMETER]
    icon = made[_ICONS][0]
    assert ("SS" if signed else "US") == made[_SMALLEST].VR
    assert icon[_SMALLEST].VR == icon[_LUTS][0][_DESCRIPTOR].VR == ("SS" if (signed if inside is None else inside) else "US")


@pytest.mark.parametrize("signed", [0, 1])
def test_the_sign_counts_for_what_stands_before_it(signed: int) -> None:
    data = instance(signed, None)
    scanned = scan(data)
    document = to_json(data, scanned, lambda path: path)
    assert document["00280071"] == ({"vr": "SS", "Value": [-536]} if signed else {"vr": "US", "Value": [65000]})
    assert to_json(to_explicit_le(data, scanned), scan(to_explicit_le(data, scanned)), lambda path: path) == document


@pytest.mark.parametrize("length", [3, 70_001])
def test_words_of_odd_length_end_with_nothing(length: int) -> None:
    body = b"".join(im(tag, uid + "\0" * (len(uid) & 1)) for tag, uid in sorted(UIDS.items()))
    data = part10(body + im(0x00281201, bytes(length)) + im(0x00281203, b"ab"), IMPLICIT_LE)
    made = pydicom.dcmread(io.BytesIO(to_explicit_le(data, scan(data))))
    assert (made[0x00281201].value, made[0x00281203].value) == (bytes(length + 1), b"ab")
