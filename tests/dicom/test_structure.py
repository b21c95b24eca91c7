"""structure and filemeta: nesting, broken sequences, order of tags, trailing bytes, encodings that lie."""

from __future__ import annotations

import struct
import zlib

import pytest

from archive.dicom import metadata
from archive.dicom.part10 import Limits, Scanned, scan
from archive.errors import UnsupportedClass
from tests.dicom.conftest import UIDS, dataset, el, im, item, part10, pixels, sequence
from tests.dicom.test_scan import refusal
from tests.dicom.test_stream import outcome


def test_nesting_up_to_the_limit_and_not_beyond() -> None:
    def nested(depth: int, *, undefined: bool) -> bytes:
        inner = el(0x00080100, "SH", "X")
        for _ in range(depth):
            inner = sequence(0x00081140, item(inner, undefined=undefined), undefined=undefined)
        return part10(dataset({0x00081140: inner}))

    for undefined in (False, True):
        assert scan(nested(64, undefined=undefined)).findings == ()
        assert refusal(nested(65, undefined=undefined)) == "too-deep"


def test_sequences_in_un_are_followed_too() -> None:
    inner = im(0x00080100, "X ")
    for _ in range(70):
        inner = struct.pack("<HHI", 0x0008, 0x1140, len(inner) + 8) + item(inner)
    un = el(0x00091001, "UN", item(inner) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0), length=0xFFFFFFFF)
    assert refusal(part10(dataset({0x00091001: un}))) == "too-deep"
    public = el(0x00081140, "UN", item(inner))
    assert refusal(part10(dataset({0x00081140: public}))) == "too-deep"


def test_too_many_elements() -> None:
    assert refusal(part10(dataset()), Limits(elements=3)) == "too-large"
    fragments = item(b"") * 50
    body = dataset({0x7FE00010: el(0x7FE00010, "OB", fragments, length=0xFFFFFFFF)})
    assert refusal(part10(body, "1.2.840.10008.1.2.4.90"), Limits(elements=30)) == "too-large"


def test_a_broken_sequence_of_known_length_is_passed_over() -> None:
    broken = el(0x00081140, "SQ", item(el(0x00080100, "SH", b"ABCD", length=4000)) + b"\1\2\3\4")
    scanned = scan(part10(dataset({0x00081140: broken, 0x00100020: el(0x00100020, "LO", "P1")})))
    assert scanned.text("PatientID") == "P1"
    assert [finding.text for finding in scanned.findings] == ["the structure of a sequence is broken; it is passed over"]


def test_a_broken_sequence_without_an_end_is_refused() -> None:
    broken = el(0x00081140, "SQ", b"\1\2\3\4\5\6\7\x08" * 4, length=0xFFFFFFFF)
    assert refusal(part10(dataset({0x00081140: broken}))) == "cannot-understand"


_PASSED_OVER = "the structure of a sequence is broken; it is passed over"
_SEQUENCE_END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
_OPEN_ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)


def _held_by(sequence: bytes, behind: bytes) -> bytes:
    """A data set with a sequence, what follows it, and a value in which another Patient ID is written."""
    hidden = el(0x00100020, "LO", "OTHER ") + el(0x00100021, "LO", "")
    late = el(0x00100020, "LO", "P1") + el(0x00290010, "LT", hidden)
    return part10(dataset({0x00081140: sequence + behind, 0x00100020: late}))


@pytest.mark.parametrize("inside", range(1, 8))
def test_what_holds_a_delimiter_in_part_ends_before_it_does(inside: int) -> None:
    """What of the delimiter lies behind the stated end is read as what follows it, by the scanner and for the metadata alike."""
    inner = _OPEN_ITEM + el(0x00081115, "SQ", b"", length=0xFFFFFFFF)
    broken = el(0x00081140, "SQ", inner + _SEQUENCE_END[:inside])
    first = _held_by(broken, b"")
    scanned = scan(first)
    assert scanned.text("PatientID") == "P1"
    assert [finding.text for finding in scanned.findings if finding.tag == "FFFEE000"] == [_PASSED_OVER]
    whole = _held_by(broken, _SEQUENCE_END[inside:])
    result = outcome([whole])
    if isinstance(result, Scanned):
        assert metadata.to_json(whole, result, str).get("00100020") == result.attributes.get("00100020")
    assert all(outcome([whole[:at], whole[at:]]) == result for at in range(len(whole)))


def test_fragments_in_an_item_end_where_it_does() -> None:
    """Fragments that run past the stated end of what holds them are left at that end, not read on to their own."""
    swallowing = el(0x00091010, "OB", item(b"") + item(b"abcd" * 20), length=0xFFFFFFFF)
    for size in range(len(swallowing) - 80, len(swallowing), 4):
        data = _held_by(el(0x00081140, "SQ", _OPEN_ITEM + swallowing[:size]), b"")
        scanned = scan(data)
        assert scanned.text("PatientID") == "P1"
        assert scanned.findings[0].text == _PASSED_OVER
        assert metadata.to_json(data, scanned, str)["00100020"]["Value"] == ["P1"]
        assert all(outcome([data[:at], data[at:]]) == scanned for at in range(len(data)))


def test_nothing_is_read_again_after_a_sequence_that_ends_too_early() -> None:
    """Its fragments once led past its end, and back again: bytes of a value were then read as elements."""
    taken = el(0x00082111, "ST", b"x" * 8 + _SEQUENCE_END)
    broken = _OPEN_ITEM + el(0x00091010, "OB", item(taken[:-8]) + _SEQUENCE_END, length=0xFFFFFFFF)
    data = _held_by(el(0x00081140, "SQ", broken, length=28), b"")
    assert all(outcome([data[:at], data[at:]]) == outcome([data]) for at in range(len(data)))


def test_a_broken_sequence_at_the_end_is_passed_over_as_anywhere() -> None:
    broken = el(0x00400275, "SQ", _OPEN_ITEM + el(0x00400007, "LO", "KEPT") + b"\1\2\3\4")
    whole = part10(dataset() + broken)
    scanned = scan(whole)
    assert [finding.text for finding in scanned.findings] == [_PASSED_OVER]
    assert all(outcome([whole[:at], whole[at:]]) == scanned for at in range(len(whole)))


def test_what_ends_with_a_long_value_inside_of_a_sequence_is_cut_short() -> None:
    """However the value came: it is not kept, so the end of the data may be the first thing that follows it."""
    opened = part10(dataset()) + el(0x0040A730, "SQ", _OPEN_ITEM + el(0x0040A160, "UT", "x" * 5000), length=0xFFFFFFFF)
    assert all(outcome([opened[:at], opened[at:]]) == outcome([opened]) for at in range(len(opened) - 5020, len(opened)))
    assert refusal(opened) == "cannot-understand"
    image = el(0x7FE00010, "OB", item(b"") + item(b"x" * 5000), length=0xFFFFFFFF)
    fragments = part10(dataset({0x7FE00010: image}), "1.2.840.10008.1.2.4.70")
    assert all(outcome([fragments[:at], fragments[at:]]) == outcome([fragments]) for at in range(len(fragments) - 5020, len(fragments)))


def test_what_ends_inside_of_an_offset_table_is_cut_short() -> None:
    table = part10(dataset({0x7FE00010: el(0x7FE00010, "OB", item(bytes(400)), length=0xFFFFFFFF)}), "1.2.840.10008.1.2.4.70")
    assert [refusal(table[:-left]) for left in (1, 100, 399)] == ["cannot-understand"] * 3


def test_the_first_of_two_counts_and_is_said() -> None:
    twice = el(0x00100020, "LO", "FIRST ") + el(0x00100020, "LO", "SECOND")
    scanned = scan(part10(dataset({0x00100020: twice})))
    assert scanned.text("PatientID") == "FIRST"
    assert "00100020" in {finding.tag for finding in scanned.findings}


def test_tags_out_of_order_and_behind_the_pixel_data_are_found() -> None:
    late = el(0x00100020, "LO", "LATE") + el(0x00100010, "PN", "A^B")
    scanned = scan(part10(dataset(pixels(2, 2, bytes(4))) + late))
    assert (scanned.text("PatientID"), scanned.text("PatientName")) == ("LATE", "A^B")
    assert {"00100010", "00100020"} <= {finding.tag for finding in scanned.findings}


def test_padding_behind_the_data_set_is_part_of_it() -> None:
    padded = dataset(pixels(2, 2, bytes(4))) + el(0xFFFCFFFC, "OB", bytes(100))
    assert scan(part10(padded)).findings == ()


@pytest.mark.parametrize("garbage", [b"\0" * 14, b"GARBAGE", b"\0" * 7 + b"GARBAGE", b"\n", b"\xff" * 300])
def test_bytes_behind_the_data_set_are_said(garbage: bytes) -> None:
    scanned = scan(part10(dataset(pixels(2, 2, bytes(4))) + garbage))
    assert [finding.text for finding in scanned.findings] == ["bytes after the data set"]
    assert scanned.frames is not None
    assert scanned.frames.count == 1


def test_implicit_data_under_an_explicit_meta() -> None:
    body = b"".join(im(tag, uid + "\0" * (len(uid) & 1)) for tag, uid in UIDS.items())
    scanned = scan(part10(body, "1.2.840.10008.1.2.1"))
    assert scanned.study_instance_uid == "1.2.3.1"
    assert {finding.tag for finding in scanned.findings} == {"00020010"}
    assert scan(part10(body, "1.2.840.10008.1.2")).findings == ()


def test_explicit_data_under_an_implicit_meta() -> None:
    scanned = scan(part10(dataset(), "1.2.840.10008.1.2"))
    assert scanned.study_instance_uid == "1.2.3.1"
    assert {finding.tag for finding in scanned.findings} == {"00020010"}


def test_the_other_byte_order_than_said_is_refused() -> None:
    big = b"".join(el(tag, "UI", uid.encode() + b"\0" * (len(uid) & 1), order=">") for tag, uid in UIDS.items())
    assert scan(part10(big, "1.2.840.10008.1.2.2")).study_instance_uid == "1.2.3.1"
    assert refusal(part10(big, "1.2.840.10008.1.2.1")) == "cannot-understand"
    assert refusal(part10(dataset(), "1.2.840.10008.1.2.2")) == "cannot-understand"


def test_deflated_with_and_without_padding() -> None:
    def deflated(tail: bytes) -> bytes:
        packer = zlib.compressobj(wbits=-15)
        return part10(packer.compress(dataset(pixels(2, 2, bytes(4)))) + packer.flush() + tail, "1.2.840.10008.1.2.1.99")

    assert scan(deflated(b"")).findings == ()
    assert scan(deflated(b"\0")).findings == ()
    assert scan(deflated(b"junk")).findings != ()
    assert refusal(deflated(b"")[:-3]) == "cannot-understand"
    for path in (deflated(b""),):
        assert outcome([path[at : at + 1] for at in range(len(path))]) == scan(path)


def test_an_unknown_transfer_syntax_is_kept_only_when_explicit() -> None:
    assert {finding.tag for finding in scan(part10(dataset(), "1.2.3.4.5")).findings} == {"00020010"}
    implicit = b"".join(im(tag, uid + "\0" * (len(uid) & 1)) for tag, uid in UIDS.items())
    with pytest.raises(UnsupportedClass):
        scan(part10(implicit, "1.2.3.4.5"))


def test_implicit_private_elements_and_us_or_ss() -> None:
    body = b"".join(im(tag, uid + "\0" * (len(uid) & 1)) for tag, uid in UIDS.items())
    body += im(0x00280010, struct.pack("<H", 7)) + im(0x00290010, "ACME") + im(0x00291001, b"\1\2\3\4")
    assert scan(part10(body, "1.2.840.10008.1.2")).number("Rows") == 7
