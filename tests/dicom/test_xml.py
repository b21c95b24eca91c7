"""The Native DICOM Model (PS3.19 A.1) of DICOM JSON data sets."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from archive.dicom import xml

NS = f"{{{xml.NAMESPACE}}}"
DOCUMENT = {
    "00080005": {"vr": "CS", "Value": ["ISO_IR 192"]},
    "00090010": {"vr": "LO", "Value": ['ACME "1" <x>']},
    "00091002": {"vr": "LO", "Value": ["a&b", None, "\x00c"]},
    "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Yamada^Tarou^^Dr", "Ideographic": "山田^太郎"}]},
    "00100020": {"vr": "LO"},
    "00280010": {"vr": "US", "Value": [512]},
    "0040A043": {"vr": "SQ", "Value": [{"00080104": {"vr": "LO", "Value": ["meaning"]}}, {}]},
    "00420011": {"vr": "OB", "InlineBinary": "AAE="},
    "7FE00010": {"vr": "OW", "BulkDataURI": "https://x/bulk?a=1&b=2"},
}


def by_tag(root: ET.Element, tag: str) -> ET.Element:
    return next(one for one in root.findall(f"{NS}DicomAttribute") if one.get("tag") == tag)


def test_c04_each_kind_of_element() -> None:
    root = ET.fromstring(xml.native(DOCUMENT))
    assert root.tag == f"{NS}NativeDicomModel"
    assert by_tag(root, "00280010").get("keyword") == "Rows"
    private = by_tag(root, "00090002")
    assert private.get("privateCreator") == 'ACME "1" <x>'
    assert [(one.get("number"), one.text) for one in private] == [("1", "a&b"), ("3", "\ufffdc")]
    name = by_tag(root, "00100010").find(f"{NS}PersonName")
    assert name is not None
    assert name.findtext(f"{NS}Alphabetic/{NS}FamilyName") == "Yamada"
    assert name.findtext(f"{NS}Alphabetic/{NS}NamePrefix") == "Dr"
    assert name.findtext(f"{NS}Ideographic/{NS}GivenName") == "太郎"
    assert list(by_tag(root, "00100020")) == []
    items = by_tag(root, "0040A043").findall(f"{NS}Item")
    assert [one.get("number") for one in items] == ["1", "2"]
    assert items[0].findtext(f"{NS}DicomAttribute/{NS}Value") == "meaning"
    assert by_tag(root, "00420011").findtext(f"{NS}InlineBinary") == "AAE="
    bulk = by_tag(root, "7FE00010").find(f"{NS}BulkData")
    assert bulk is not None
    assert bulk.get("uri") == "https://x/bulk?a=1&b=2"


def test_ends_of_lines_are_as_they_were() -> None:
    text = "first\r\nsecond\rthird\n"
    document = {"00104000": {"vr": "LT", "Value": [text]}, "00100010": {"vr": "PN", "Value": [{"Alphabetic": "A\rB^C"}]}}
    root = ET.fromstring(xml.native(document))
    assert by_tag(root, "00104000").findtext(f"{NS}Value") == text
    assert by_tag(root, "00100010").findtext(f"{NS}PersonName/{NS}Alphabetic/{NS}FamilyName") == "A\rB"


@given(st.lists(st.dictionaries(st.text(max_size=4), st.text() | st.none() | st.lists(st.text(), max_size=3), max_size=4), max_size=5),
       st.integers(1, 9))
def test_data_sets_are_found_in_pieces(documents: list[dict[str, object]], size: int) -> None:
    whole = json.dumps(documents, ensure_ascii=False).encode("utf-8", "replace")
    pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
    assert list(xml.each(iter(pieces))) == json.loads(whole)


def test_numbers_keep_their_text() -> None:
    assert list(xml.each([b'[{"a": 1.10}, {"b": 12345678901234567890}]'])) == [{"a": "1.10"}, {"b": "12345678901234567890"}]


@given(st.dictionaries(st.sampled_from(["00100010", "00091001", "00080060"]), st.text().map(lambda text: {"vr": "LO", "Value": [text]})))
def test_t22_whatever_a_text_holds_the_document_is_well_formed(document: dict[str, object]) -> None:
    ET.fromstring(xml.native(document))
