"""The index, metadata, bulk data and what is converted read a damaged data set alike: none of them says what another does not."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from archive.dicom.attributes import SCANNED
from archive.dicom.metadata import bulk_value, encoding, to_json
from archive.dicom.part10 import Scanned, scan
from archive.dicom.reencode import little_endian
from archive.dicom.transfer import EXPLICIT_LE
from archive.dicom.values import BINARY
from archive.errors import InvalidInstance, NotAcceptable, NotFound
from tests.dicom import mangled
from tests.dicom.conftest import dataset, el, im, item, part10, sequence
from tests.dicom.test_bulk import Counted, paths

CASES = 4000
_NOT_KEPT = {"a value too long to index", "a sequence too long to index"}
_FRAGMENTS = {"OB", "OW", "OF", "OD", "OL", "OV"}
_HIDDEN = el(0x00100020, "LO", "HIDDEN")
_ITEM_END, _SEQUENCE_END = (struct.pack("<HHI", 0xFFFE, number, 0) for number in (0xE00D, 0xE0DD))


def metadata(data: bytes, scanned: Scanned) -> dict[str, Any]:
    return to_json(data[: scanned.head_bytes], scanned, lambda path: path, 1 << 30)


def without_bytes(found: Any) -> Any:
    """Binary values lie in the document only."""
    if isinstance(found, list):
        return [without_bytes(one) for one in found]
    if isinstance(found, dict):
        return {"vr": found["vr"]} if found.get("vr") in BINARY else {name: without_bytes(one) for name, one in found.items()}
    return found


def differences(data: bytes, scanned: Scanned) -> list[tuple[str, Any, Any]]:
    document = metadata(data, scanned)
    found = []
    for tag, attribute in SCANNED.items():
        name = attribute.tag_hex
        indexed, said = without_bytes(scanned.attributes.get(name)), without_bytes(document.get(name))
        if indexed == said or tag == 0x00080005:
            continue
        too_long = any(one.text in _NOT_KEPT for one in scanned.findings)
        if indexed is None and said["vr"] in {"SQ", *_FRAGMENTS} and (attribute.vr != "SQ" or too_long):
            continue  # nothing that an index could hold
        if indexed is None and attribute.vr == "SQ" != said["vr"]:
            continue
        found.append((name, indexed, said))
    return found


def taken(seeds: range) -> list[tuple[int, bytes, Scanned]]:
    found = []
    for seed in seeds:
        data = mangled.instance(seed)
        try:
            found.append((seed, data, scan(data)))
        except InvalidInstance:
            continue
    assert len(found) > len(seeds) // 10
    return found


def test_metadata_say_of_every_indexed_attribute_what_the_index_says() -> None:
    for seed, data, scanned in taken(range(CASES)):
        assert differences(data, scanned) == [], seed


def test_bulk_data_are_found_where_metadata_name_them() -> None:
    for seed, data, scanned in taken(range(CASES // 2)):
        for path in paths(data, scanned):
            outcomes = []
            for how in (bulk_value, _in_pieces):
                try:
                    outcomes.append(how(data, scanned, path))
                except NotFound:
                    outcomes.append(None)
            assert outcomes[0] == outcomes[1], (seed, path)


def _in_pieces(data: bytes, scanned: Scanned, path: str) -> bytes:
    from archive.dicom import bulk

    counted = Counted(data)
    value = bulk.find(counted.read, len(data), scanned, path)
    return b"".join(value.part(counted.chunks, 0, value.length))


def uids(scanned: Scanned) -> list[str]:
    return [scanned.sop_instance_uid, scanned.study_instance_uid, scanned.series_instance_uid, scanned.text("PatientID")]


def test_what_is_converted_is_of_the_same_patient() -> None:
    for seed, data, scanned in taken(range(CASES // 2)):
        if scanned.head_bytes != len(data):
            continue
        try:
            body = b"".join(little_endian(data, scanned.dataset_offset, *encoding(data, scanned), {}, "US"))
        except NotAcceptable:  # what is behind zeros
            continue
        assert uids(scan(part10(body, EXPLICIT_LE))) == uids(scanned), seed


@pytest.mark.parametrize("broken", [
    sequence(0x00081140, item(el(0x00081155, "UI", "1.2") + _SEQUENCE_END + _HIDDEN)),
    sequence(0x00081140, item(el(0x00081155, "UI", "1.2") + _SEQUENCE_END + _HIDDEN), undefined=True),
    el(0x00081140, "SQ", struct.pack("<HHI", 0xFFFE, 0xE000, 200) + _ITEM_END + _SEQUENCE_END + _HIDDEN),
    sequence(0x00081140, item(el(0x00081199, "SQ", _SEQUENCE_END + _HIDDEN, length=200))),
], ids=["item", "item-in-undefined", "item-too-long", "sequence-too-long"])
def test_a_delimiter_that_belongs_to_nothing_ends_nothing(broken: bytes) -> None:
    data = part10(dataset() + broken + el(0x00100020, "LO", "REAL"))
    scanned = scan(data)
    assert scanned.text("PatientID") == "REAL"
    assert metadata(data, scanned)["00100020"]["Value"] == ["REAL"]
    body = b"".join(little_endian(data, scanned.dataset_offset, False, True, {}, "US"))
    assert scan(part10(body)).text("PatientID") == "REAL"


def test_un_of_undefined_length_is_a_sequence_whatever_its_tag_has_else() -> None:
    raw = item(im(0x00080104, "A "), undefined=True) + _SEQUENCE_END
    data = part10(dataset({0x00420011: el(0x00420011, "UN", raw, length=0xFFFFFFFF), 0x00741204: el(0x00741204, "LO", "B")}))
    document = metadata(data, scan(data))
    assert document["00420011"] == {"vr": "SQ", "Value": [{"00080104": {"vr": "LO", "Value": ["A"]}}]}
    assert document["00741204"]["Value"] == ["B"]


def test_a_character_set_out_of_order_counts_for_what_came_before_it() -> None:
    data = part10(dataset() + el(0x00100020, "LO", b"\xb6") + el(0x00080005, "CS", "ISO_IR 144"))
    scanned = scan(data)
    document = metadata(data, scanned)
    assert scanned.text("PatientID") == "Ж"
    assert (document["00100020"]["Value"], document["00080005"]["Value"]) == (["Ж"], ["ISO_IR 192"])


@pytest.mark.parametrize("vr", ["OB", "OW"])
def test_text_under_the_vr_of_something_else_is_read_as_it_is_searched(vr: str) -> None:
    data = part10(dataset({0x00100020: el(0x00100020, vr, b"ID")}))
    scanned = scan(data)
    assert scanned.attributes["00100020"] == metadata(data, scanned)["00100020"] == {"vr": "LO", "Value": ["ID"]}


@pytest.mark.parametrize("undefined", [False, True])
def test_a_sequence_in_the_place_of_a_text_is_not_taken_for_one(undefined: bool) -> None:
    data = part10(dataset({0x00100020: sequence(0x00100020, item(el(0x00080104, "LO", "X")), undefined=undefined)}))
    scanned = scan(data)
    assert "00100020" not in scanned.attributes


@pytest.mark.parametrize("inside", [el(0x00080104, "LO", "IN"), im(0x00080104, "IN")], ids=["explicit", "implicit"])
def test_a_sequence_that_came_as_un_is_indexed_as_it_is_served(inside: bytes) -> None:
    data = part10(dataset({0x0040A043: el(0x0040A043, "UN", item(inside))}))
    scanned = scan(data)
    document = metadata(data, scanned)
    assert scanned.attributes["0040A043"] == document["0040A043"] == {"vr": "SQ", "Value": [{"00080104": {"vr": "LO", "Value": ["IN"]}}]}
