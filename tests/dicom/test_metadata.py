"""metadata: the JSON Model equals pydicom's where pydicom has one, and is valid JSON where it has none."""

from __future__ import annotations

import base64
import io
import json
import math
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archive.dicom.metadata import bulk_value, to_json
from archive.dicom.part10 import Scanned, scan
from archive.errors import InvalidInstance, NotFound
from tests.dicom.conftest import UIDS, dataset, el, im, item, part10, pixels, sequence


def document_of(data: bytes, inline_bytes: int = 4096) -> dict[str, Any]:
    scanned = scan(data)
    head = data if scanned.deflated else data[: scanned.head_bytes]
    document = to_json(head, scanned, lambda path: f"bulk/{path}", inline_bytes)
    json.dumps(document, allow_nan=False, ensure_ascii=False).encode("utf-8")
    return document


def test_every_file_gives_valid_json_that_agrees_with_its_scan(corpus_files: list[Path], hostile: Path) -> None:
    for path in [*corpus_files, *hostile.glob("*.dcm")]:
        data = path.read_bytes()
        try:
            scanned = scan(data)
        except InvalidInstance:
            continue
        document = document_of(data)
        assert document.keys() >= scanned.attributes.keys(), path.name
        for name, element in scanned.attributes.items():
            assert document[name] == element or name == "00080005", (path.name, name)
        assert not [name for name in document if name.endswith("0000") or name.startswith(("0000", "0002"))], path.name


# pydicom fails on the first (a DS that is none) or reads nothing; the others differ for a reason given.
UNLIKE = {
    "GH195.dcm",
    "GH1339.dcm",
    "emri_small_jpeg_2k_lossless_too_short.dcm",
    "GH179A.dcm",  # an element without VR: pydicom reads the rest of the data set as its value
    "chrGB2312.dcm",  # escape sequences stay in pydicom's name
}


def differences(ours: dict[str, Any], theirs: dict[str, Any], path: str = "") -> Iterator[str]:
    for name in sorted(ours.keys() | theirs.keys()):
        group, element = int(name[:4], 16), name[4:]
        if group in (0x0000, 0x0002, 0xFFFC, 0x7FE0) or element == "0000" or name == "00080005":
            continue
        if name not in ours or name not in theirs:
            yield f"{path}{name} is missing"
            continue
        one, other = ours[name], theirs[name]
        if one["vr"] != other["vr"] and not (group & 1 and one["vr"] == "UN"):  # pydicom knows private tags
            yield f"{path}{name} {one['vr']} {other['vr']}"
        elif one["vr"] == "SQ":
            items, other_items = one.get("Value", []), other.get("Value", [])
            if len(items) != len(other_items):
                yield f"{path}{name} items"
            for n, (mine, their) in enumerate(zip(items, other_items, strict=False)):
                yield from differences(mine, their, f"{path}{name}/{n}/")
        elif one["vr"] == other["vr"] and "BulkDataURI" not in one and not alike(one, other):
            yield f"{path}{name} {one} {other}"


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    mine, theirs = one.get("Value", []), other.get("Value", [])
    if one.get("InlineBinary") != other.get("InlineBinary") or len(mine) != len(theirs):
        return False
    return all(
        a == (b or None)
        or a == b
        or (isinstance(b, str) and a == b.strip())
        or (isinstance(b, float | int) and float(a) == float(b))
        or (isinstance(b, dict) and {key: value for key, value in b.items() if value} == a)
        for a, b in zip(mine, theirs, strict=True)
    )


def test_it_is_what_pydicom_says(corpus_files: list[Path]) -> None:
    compared = 0
    for path in corpus_files:
        data = path.read_bytes()
        try:
            scanned = scan(data)
        except InvalidInstance:
            continue
        if path.name in UNLIKE:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True).to_json_dict(bulk_data_threshold=1 << 40)
        found = list(differences(document_of(data, 1 << 30), theirs))
        if scanned.transfer_syntax_uid == "1.2.840.10008.1.2.2":
            found = [line for line in found if "'vr': 'OW'" not in line]  # words in little endian, as PS3.18 F.2.7 asks
        assert found == [], path.name
        compared += 1
    assert compared > 160


# --- values


def value(vr: str, raw: bytes, tag: int = 0x00091001) -> dict[str, Any]:
    return document_of(part10(dataset({tag: el(tag, vr, raw)})))[f"{tag:08X}"]


@pytest.mark.parametrize(
    ("vr", "raw", "expected"),
    [
        ("IS", b"12\\-3 ", [12, -3]),
        ("IS", b"abc ", ["abc"]),
        ("IS", b"1.5 ", ["1.5"]),
        ("IS", b"9" * 40, ["9" * 40]),
        ("DS", b"1.50\\2 ", [1.5, 2]),
        ("DS", b"1,5 ", ["1,5"]),
        ("DS", b"1e400 ", ["1e400"]),
        ("DS", b"nan ", ["nan"]),
        ("DS", b"0.1234567890123456789 ", ["0.1234567890123456789"]),  # more than a double holds
        ("DS", b"-1.2345678901234", [-1.2345678901234]),
        ("DS", b"1\\\\3 ", [1, None, 3]),
        ("FD", struct.pack("<3d", math.nan, math.inf, -math.inf), ["NaN", "inf", "-inf"]),
        ("FL", struct.pack("<f", 1.5), [1.5]),
        ("SV", struct.pack("<2q", -5, -(1 << 60)), [-5, str(-(1 << 60))]),
        ("UV", struct.pack("<Q", 1 << 63), [str(1 << 63)]),
        ("US", struct.pack("<2H", 1, 65535), [1, 65535]),
        ("US", b"\1\0\2", [1]),  # half a value is dropped
        ("SS", struct.pack("<h", -2), [-2]),
        ("AT", struct.pack("<HHHH", 0x0010, 0x0020, 0x7FE0, 0x0010), ["00100020", "7FE00010"]),
        ("LO", b"a\\\\b ", ["a", None, "b"]),
        ("LT", b"one\\text ", ["one\\text"]),
        ("UI", b"1.2.3\0", ["1.2.3"]),
        ("PN", b"A^B==C \\", [{"Alphabetic": "A^B", "Phonetic": "C"}, None]),
        ("UR", b"https://x/a\\b ", ["https://x/a\\b"]),
    ],
)
def test_values(vr: str, raw: bytes, expected: list[Any]) -> None:
    assert value(vr, raw) == {"vr": vr, "Value": expected}


@pytest.mark.parametrize("vr", ["SH", "PN", "IS", "DS", "FD", "US", "OB", "UN", "SQ", "UI", "AT"])
def test_an_empty_element_is_its_vr_only(vr: str) -> None:
    assert value(vr, b"") == {"vr": vr}


@pytest.mark.parametrize("vr", ["LO", "PN", "DS", "UI", "SH"])
def test_nothing_but_padding_is_empty(vr: str) -> None:
    assert value(vr, b"    ") == {"vr": vr}


def test_the_character_set_says_what_the_json_is_in() -> None:
    charset = el(0x00080005, "CS", "ISO_IR 100")
    document = document_of(part10(dataset({0x00080005: charset, 0x00100010: el(0x00100010, "PN", b"M\xfcller")})))
    assert document["00080005"] == {"vr": "CS", "Value": ["ISO_IR 192"]}
    assert document["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": "Müller"}]}


def test_an_item_may_have_its_own_character_set() -> None:
    greek = el(0x00080005, "CS", "ISO_IR 126") + el(0x00080104, "LO", "Δ".encode("iso8859_7"))
    latin = el(0x00080104, "LO", b"\xc4")
    data = part10(
        dataset(
            {
                0x00080005: el(0x00080005, "CS", "ISO_IR 100"),
                0x00081140: sequence(0x00081140, item(greek), item(latin)),
                0x00081030: el(0x00081030, "LO", b"\xc4"),
            }
        )
    )
    document = document_of(data)
    items = document["00081140"]["Value"]
    assert [entry["00080104"]["Value"] for entry in items] == [["Δ"], ["Ä"]]
    assert document["00081030"]["Value"] == ["Ä"]


# --- binary


NESTED = dataset(
    {
        0x00091001: el(0x00091001, "OB", b"\1\2"),
        0x00091002: el(0x00091002, "UN", b"\3\4"),
        0x60030010: el(0x60030010, "LO", "ACME"),
        0x60031010: sequence(0x60031010, item(b""), item(el(0x60031011, "OW", bytes(range(200)) * 50), undefined=True), undefined=True),
        **pixels(2, 2, b"abcd"),
    }
)


def test_long_binary_values_are_bulk_data_with_a_path_and_short_ones_inline() -> None:
    document = document_of(part10(NESTED))
    assert document["00091001"] == {"vr": "OB", "InlineBinary": "AQI="}
    assert document["60031010"]["Value"][1]["60031011"] == {"vr": "OW", "BulkDataURI": "bulk/60031010/2/60031011"}
    assert document["60031010"]["Value"][0] == {}
    assert document["7FE00010"] == {"vr": "OB", "BulkDataURI": "bulk/7FE00010"}
    assert document_of(part10(NESTED), 1)["00091002"] == {"vr": "UN", "BulkDataURI": "bulk/00091002"}


def test_bulk_values() -> None:
    data = part10(NESTED)
    scanned = scan(data)
    assert bulk_value(data, scanned, "60031010/2/60031011") == bytes(range(200)) * 50
    assert bulk_value(data, scanned, "00091002") == b"\3\4"
    assert bulk_value(data, scanned, "7FE00010") == b"abcd"
    for path in ("60031010/1/60031011", "60031010", "00100010", "", "../7FE00010", "7FE00011"):
        with pytest.raises(NotFound):
            bulk_value(data, scanned, path)


def test_a_pdf_comes_back_whole(corpus: Path) -> None:
    data = (corpus / "own__encapsulated" / "report-pdf.dcm").read_bytes()
    pdf = bulk_value(data, scan(data), "00420011")
    assert pdf == pydicom.dcmread(io.BytesIO(data)).EncapsulatedDocument
    assert pdf.startswith(b"%PDF")


def test_bulk_data_of_encapsulated_pixels(corpus: Path) -> None:
    folder = corpus / "pydicom__pydicom-data" / "data"
    many = (folder / "emri_small_RLE.dcm").read_bytes()
    with pytest.raises(NotFound):
        bulk_value(many, scan(many), "7FE00010")
    one = (folder / "MR2_J2KR.dcm").read_bytes()
    assert bulk_value(one, scan(one), "7FE00010").startswith(b"\xff\x4f\xff\x51")


def test_big_endian_words_are_given_in_little_endian() -> None:
    body = b"".join(el(tag, "UI", uid.encode() + b"\0" * (len(uid) & 1), order=">") for tag, uid in sorted(UIDS.items()))
    body += el(0x00280010, "US", b"\0\5", order=">") + el(0x00281201, "OW", b"\1\2\3\4", order=">")
    body += el(0x00660016, "OF", b"\1\2\3\4", order=">") + el(0x7FE00009, "OD", bytes(range(8)), order=">")
    data = part10(body, "1.2.840.10008.1.2.2")
    document = document_of(data)
    assert document["00280010"]["Value"] == [5]
    assert document["00281201"]["InlineBinary"] == base64.b64encode(b"\2\1\4\3").decode()
    assert document["00660016"]["InlineBinary"] == base64.b64encode(b"\4\3\2\1").decode()
    assert bulk_value(data, scan(data), "7FE00009") == bytes(range(7, -1, -1))
    assert bulk_value(data, scan(data), "00281201") == b"\2\1\4\3"


def test_pixel_representation_decides_us_or_ss_in_implicit() -> None:
    body = b"".join(im(tag, uid + "\0" * (len(uid) & 1)) for tag, uid in sorted(UIDS.items()))
    for signed, expected in ((0, ("US", 65534)), (1, ("SS", -2))):
        document = document_of(
            part10(body + im(0x00280103, struct.pack("<H", signed)) + im(0x00280106, struct.pack("<h", -2)), "1.2.840.10008.1.2")
        )
        assert (document["00280106"]["vr"], document["00280106"]["Value"][0]) == expected


# --- robustness


def test_what_stands_twice_counts_once_in_index_and_metadata_alike(hostile: Path) -> None:
    data = (hostile / "dup-tag.dcm").read_bytes()
    assert document_of(data)["00100020"] == scan(data).attributes["00100020"]
    twice = sequence(0x00081140, item(el(0x00080100, "SH", "A"))) + sequence(0x00081140, item(el(0x00080100, "SH", "B")))
    document = document_of(part10(dataset({0x00081140: twice, 0x00100020: el(0x00100020, "LO", "X")})))
    assert document["00081140"]["Value"] == [{"00080100": {"vr": "SH", "Value": ["A"]}}]
    assert document["00100020"]["Value"] == ["X"]


def test_tags_behind_the_pixel_data_that_the_index_has_are_there() -> None:
    document = document_of(part10(dataset(pixels(2, 2, bytes(4))) + el(0x00100020, "LO", "LATE")))
    assert document["00100020"] == {"vr": "LO", "Value": ["LATE"]}
    assert list(document) == sorted(document)


def test_a_deflated_instance_has_its_metadata(corpus: Path) -> None:
    data = (corpus / "cornerstonejs__dicomParser" / "deflate" / "image_dfl").read_bytes()
    assert document_of(data)["00280010"]["Value"] == [512]


def test_a_deflated_data_set_is_read_as_the_scanner_read_it() -> None:
    """Its first element says nothing of its encoding: that of group 0800 looks like big endian."""
    packer = zlib.compressobj(wbits=-15)
    data = part10(packer.compress(el(0x08000010, "LO", "x ") + dataset()) + packer.flush(), "1.2.840.10008.1.2.1.99")
    scanned = scan(data)
    document = to_json(data, scanned, str)
    assert document["08000010"] == {"vr": "LO", "Value": ["x"]}
    assert document["00080018"] == scanned.attributes["00080018"]


def test_a_stored_deflate_bomb_costs_no_more_than_the_limit(hostile: Path) -> None:
    data = (hostile / "deflate-bomb-128M.dcm").read_bytes()
    tracemalloc.start()
    try:
        document = document_of(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert document["00100020"] == scan(data).attributes["00100020"]
    assert peak < 256 << 20


def test_a_broken_sequence_hides_nothing_behind_it() -> None:
    broken = el(0x00081140, "SQ", item(el(0x00080100, "SH", b"ABCD", length=4000)) + b"\1\2\3\4")
    document = document_of(part10(dataset({0x00081140: broken, 0x00100020: el(0x00100020, "LO", "P1")})))
    assert document["00100020"]["Value"] == ["P1"]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_never_make_it_raise(data: st.DataObject) -> None:
    good = part10(NESTED)
    scanned = scan(good)
    body = bytearray(good)
    for _ in range(data.draw(st.integers(1, 8))):
        body[data.draw(st.integers(scanned.dataset_offset + 8, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(scanned.dataset_offset + 8, len(body)))
    document = to_json(bytes(body[:cut]), Scanned.from_json(scanned.to_json()), lambda path: path)
    json.dumps(document, allow_nan=False).encode()
