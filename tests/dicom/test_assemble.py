"""assemble, native_model: metadata and bulk data become the instance they were made from; what is unsound is refused, whatever it is."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archive.dicom import assemble, native_model
from archive.dicom.assemble import Bulk
from archive.dicom.metadata import bulk_value, to_json
from archive.dicom.part10 import scan
from archive.errors import InvalidInstance, NotAcceptable, NotFound
from tests.dicom.conftest import to_explicit_le

UIDS: dict[str, Any] = {
    "00080016": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.2"]}, "00080018": {"vr": "UI", "Value": ["1.2.3.4"]},
    "0020000D": {"vr": "UI", "Value": ["1.2.3"]}, "0020000E": {"vr": "UI", "Value": ["1.2.3.1"]},
}
RLE = "1.2.840.10008.1.2.5"


def made(document: Any, bulk: dict[str, Bulk] | None = None) -> bytes:
    return b"".join(assemble.part10(document, (bulk or {}).get))


def read(data: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(data))


def test_the_corpus_there_and_back(corpus_files: list[Path]) -> None:
    """Metadata and bulk data of every file give a file with the same metadata and bulk data."""
    same = 0
    for path in corpus_files:
        data = path.read_bytes()
        if len(data) > 4 << 20:
            continue
        try:
            native = to_explicit_le(data, scan(data))
            scanned = scan(native)
        except (InvalidInstance, NotAcceptable):
            continue
        document = to_json(native, scanned, lambda uri: f"https://a/{uri}")
        try:
            bulk = {uri: Bulk([bulk_value(native, scanned, uri.removeprefix("https://a/"))]) for uri in uris(document)}
        except NotFound:
            continue
        again = made(json.loads(json.dumps(document)), bulk)
        seen = scan(again)
        after = to_json(again, seen, lambda uri: f"https://a/{uri}")
        assert without_set(after) == without_set(document), path.name
        for uri, value in bulk.items():
            assert bulk_value(again, seen, uri.removeprefix("https://a/")).rstrip(b"\0") == value.pieces[0].rstrip(b"\0"), (path.name, uri)
        same += 1
    assert same > 80, same


def uris(document: Any) -> list[str]:
    if isinstance(document, dict):
        own = document.get("BulkDataURI")
        return ([own] if isinstance(own, str) else []) + [uri for one in document.values() for uri in uris(one)]
    return [uri for one in document for uri in uris(one)] if isinstance(document, list) else []


def without_set(document: dict[str, Any]) -> dict[str, Any]:
    """Everything but (0008,0005); an item that declares none gets none."""
    return {tag: strip(one) for tag, one in document.items() if tag != "00080005"}


def strip(one: dict[str, Any]) -> dict[str, Any]:
    if one.get("vr") != "SQ" or "Value" not in one:
        return one
    return {"vr": "SQ", "Value": [without_set(item) for item in one["Value"]]}


def test_values_of_each_kind() -> None:
    document = UIDS | {
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎", "Phonetic": "やまだ^たろう"}]},
        "00080008": {"vr": "CS", "Value": ["ORIGINAL", None, "AXIAL"]}, "00180050": {"vr": "DS", "Value": [1.5]},
        "00200013": {"vr": "IS", "Value": ["7"]}, "00280010": {"vr": "US", "Value": ["12"]}, "00189087": {"vr": "FD", "Value": [0.25]},
        "00280009": {"vr": "AT", "Value": ["00181063"]}, "00420011": {"vr": "OB", "InlineBinary": base64.b64encode(b"abc").decode()},
        "00081115": {"vr": "SQ", "Value": [{"0020000E": {"vr": "UI", "Value": ["1.2.9"]}}, {}]}, "00104000": {"vr": "LT"},
        "00020010": {"vr": "UI", "Value": ["1.2.840.10008.1.2.1"]}, "00080000": {"vr": "UL", "Value": [1]},
    }
    found = read(made(document))
    assert found.SpecificCharacterSet == "ISO_IR 192"
    assert str(found.PatientName) == "Yamada^Tarou=山田^太郎=やまだ^たろう"
    assert list(found.ImageType) == ["ORIGINAL", "", "AXIAL"]
    assert (found.SliceThickness, found.InstanceNumber, found.Rows, found.DiffusionBValue) == (1.5, 7, 12, 0.25)
    assert found.FrameIncrementPointer == 0x00181063
    assert found.EncapsulatedDocument == b"abc\0"
    assert [item.get("SeriesInstanceUID") for item in found.ReferencedSeriesSequence] == ["1.2.9", None]


def test_compressed_frames_are_encapsulated() -> None:
    document = UIDS | {"00280008": {"vr": "IS", "Value": ["2"]}, "7FE00010": {"vr": "OB", "BulkDataURI": "b"}}
    found = read(made(document, {"b": Bulk([b"one", b"second"], compressed=True, transfer_syntax_uid=RLE)}))
    assert found.file_meta.TransferSyntaxUID == RLE
    assert list(pydicom.encaps.generate_frames(found.PixelData, number_of_frames=2)) == [b"one\0", b"second"]


@pytest.mark.parametrize("document", [
    [], None, "x", {}, UIDS | {"00080018": {"vr": "UI"}}, UIDS | {"00080016": {"vr": "UI", "Value": ["x"]}}, UIDS | {"0028": {"vr": "US"}},
    UIDS | {"00280010": {"vr": "US", "Value": [70000]}}, UIDS | {"00280010": {"vr": "US", "Value": ["x"]}},
    UIDS | {"00280010": {"vr": "US", "Value": [True]}}, UIDS | {"00280010": {"vr": "US", "Value": [1.5]}},
    UIDS | {"00280010": {"vr": "QQ"}}, UIDS | {"00280010": 7}, UIDS | {"00280010": {"vr": ["US"]}},
    UIDS | {"00420011": {"vr": "OB", "InlineBinary": "%%"}}, UIDS | {"00420011": {"vr": "OB", "InlineBinary": "ü"}},
    UIDS | {"00420011": {"vr": "OB", "InlineBinary": 7}}, UIDS | {"00420011": {"vr": "OB", "Value": [7]}},
    UIDS | {"7FE00010": {"vr": "OW", "BulkDataURI": "https://elsewhere.example/x"}}, UIDS | {"7FE00010": {"vr": "OW", "BulkDataURI": 7}},
    UIDS | {"00081115": {"vr": "SQ", "Value": [7]}}, UIDS | {"00080008": {"vr": "CS", "Value": "AXIAL"}},
    UIDS | {"00080008": {"vr": "CS", "Value": ["A\0B"]}}, UIDS | {"00100020": {"vr": "LO", "Value": ["\ud800"]}},
])
def test_what_is_unsound_is_refused(document: Any) -> None:
    with pytest.raises(InvalidInstance):
        made(document)


def test_deep_nesting_is_refused() -> None:
    inner: dict[str, Any] = {}
    for _ in range(100):
        inner = {"00081115": {"vr": "SQ", "Value": [inner]}}
    with pytest.raises(InvalidInstance) as refusal:
        made(UIDS | inner)
    assert refusal.value.reason == "too-deep"


_JUNK = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                     lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
                         ["vr", "Value", "InlineBinary", "BulkDataURI", "00280010", "00081115", "00100010", "Alphabetic"]),
                         inner, max_size=3))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["AT", "CS", "DS", "FD", "IS", "LO", "OB", "OW", "PN", "SQ", "SV", "UI", "UN", "US", "UT"]), _JUNK, _JUNK)
def test_whatever_comes_is_an_instance_or_refused(vr: str, value: Any, document: Any) -> None:
    for one in (UIDS | {"00091001": {"vr": vr, "Value": value}}, UIDS | {"00091001": {"vr": vr, "Value": [value]}}, document,
                UIDS | document if isinstance(document, dict) else document, UIDS | {"00091001": {"vr": vr, "InlineBinary": value}}):
        try:
            scan(made(one))
        except InvalidInstance:
            continue


XML = """<?xml version="1.0" encoding="utf-8"?>
<NativeDicomModel xml:space="preserve" xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM">
 <DicomAttribute tag="00080016" vr="UI" keyword="SOPClassUID"><Value number="1">1.2.840.10008.5.1.4.1.1.2</Value></DicomAttribute>
 <DicomAttribute tag="00080008" vr="CS"><Value number="3">AXIAL</Value><Value number="1">ORIGINAL</Value></DicomAttribute>
 <DicomAttribute tag="00100010" vr="PN"><PersonName number="1"><Alphabetic><FamilyName>Yamada</FamilyName><GivenName>Tarou</GivenName>
  </Alphabetic><Ideographic><FamilyName>山田</FamilyName></Ideographic></PersonName></DicomAttribute>
 <DicomAttribute tag="00081115" vr="SQ"><Item number="1"><DicomAttribute tag="0020000E" vr="UI"><Value number="1">1.2.9</Value>
  </DicomAttribute></Item></DicomAttribute>
 <DicomAttribute tag="00420011" vr="OB"><InlineBinary>YWJj
  ZA==</InlineBinary></DicomAttribute>
 <DicomAttribute tag="7FE00010" vr="OW"><BulkData uri="b"/></DicomAttribute>
</NativeDicomModel>"""


def test_xml() -> None:
    assert native_model.to_json(XML.encode()) == [{
        "00080016": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.2"]}, "00080008": {"vr": "CS", "Value": ["ORIGINAL", None, "AXIAL"]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Yamada^Tarou", "Ideographic": "山田"}]},
        "00081115": {"vr": "SQ", "Value": [{"0020000E": {"vr": "UI", "Value": ["1.2.9"]}}]},
        "00420011": {"vr": "OB", "InlineBinary": "YWJjZA=="}, "7FE00010": {"vr": "OW", "BulkDataURI": "b"},
    }]


@pytest.mark.parametrize("text", [
    "", "<a", "<a>" * 1000, '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
    '<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>',
    '<NativeDicomModel><DicomAttribute tag="00080008" vr="CS"><Value number="9999999">x</Value></DicomAttribute></NativeDicomModel>'])
def test_unsound_xml_is_refused(text: str) -> None:
    with pytest.raises(InvalidInstance):
        native_model.to_json(text.encode())


def test_what_is_left_empty_is_bounded_for_all_of_a_document() -> None:
    """A number in a few bytes makes a list as long as it says."""
    attribute = '<DicomAttribute tag="0009{:04X}" vr="CS"><Value number="600000">x</Value></DicomAttribute>'
    once, twice = (f"<NativeDicomModel>{''.join(attribute.format(n) for n in range(count))}</NativeDicomModel>" for count in (1, 2))
    assert len(native_model.to_json(once.encode())[0]["00090000"]["Value"]) == 600_000
    with pytest.raises(InvalidInstance):
        native_model.to_json(twice.encode())


def test_the_elements_of_a_document_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_model, "MOST", 100)
    assert len(native_model.to_json(b"<a>" + b"<NativeDicomModel/>" * 99 + b"</a>")) == 99
    with pytest.raises(InvalidInstance):
        native_model.to_json(b"<a>" + b"<NativeDicomModel/>" * 100 + b"</a>")
