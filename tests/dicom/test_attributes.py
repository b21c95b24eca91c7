"""attributes: the table agrees with the standard's dictionary and with the database's columns."""

from __future__ import annotations

import pytest
from pydicom.datadict import dictionary_VR, tag_for_keyword

from archive.db import tables
from archive.dicom.attributes import ATTRIBUTES, SCANNED, Level, lookup

TABLE = {Level.PATIENT: tables.study, Level.STUDY: tables.study, Level.SERIES: tables.series, Level.IMAGE: tables.instance}


@pytest.mark.parametrize("attribute", ATTRIBUTES, ids=lambda attribute: attribute.keyword)
def test_a_row_is_what_the_standard_and_the_tables_say(attribute) -> None:
    assert tag_for_keyword(attribute.keyword) == attribute.tag
    assert dictionary_VR(attribute.tag) == attribute.vr
    if attribute.column is not None:
        assert attribute.column in TABLE[attribute.level].c
        assert (attribute.column + "_folded" in TABLE[attribute.level].c) == attribute.folded


def test_no_row_stands_twice() -> None:
    assert len({attribute.tag for attribute in ATTRIBUTES}) == len(ATTRIBUTES)
    assert len({attribute.keyword for attribute in ATTRIBUTES}) == len(ATTRIBUTES)


def test_computed_attributes_are_never_scanned_and_have_no_column() -> None:
    computed = [attribute for attribute in ATTRIBUTES if attribute.computed]
    assert {"ModalitiesInStudy", "NumberOfStudyRelatedInstances", "RetrieveURL"} <= {attribute.keyword for attribute in computed}
    assert all(attribute.column is None and attribute.tag not in SCANNED for attribute in computed)


@pytest.mark.parametrize(
    ("level", "tags"),
    [
        (
            "STUDY",
            "0020000D 00080020 00080030 00080050 00080061 00080090 00081030 00100010 00100020 00100030 00100040 00201206 00201208 00081190",
        ),
        ("SERIES", "0020000E 00080060 0008103E 00200011 00201209 00080021 00400244 00400245 00400275"),
        ("IMAGE", "00080016 00080018 00200013 00280010 00280011 00280100 00280008"),
    ],
)
def test_what_clients_need_unasked_is_answered(level: str, tags: str) -> None:
    for tag in tags.split():
        found = lookup(tag)
        assert found is not None
        assert found.returned
        assert found.level == level or (level == "STUDY" and found.level == "PATIENT")


@pytest.mark.parametrize("text", ["PatientName", "00100010"])
def test_lookup_by_keyword_and_tag(text: str) -> None:
    found = lookup(text)
    assert found is not None
    assert found.tag_hex == "00100010"


@pytest.mark.parametrize("text", ["0008103e", "0008103E"])
def test_lookup_takes_either_case_of_hex(text: str) -> None:
    assert lookup(text) is lookup("SeriesDescription")


@pytest.mark.parametrize(
    "text", ["", "patientname", "0010001", "001000100", "0x100010", "+1000010", "1000 010", "12345678", "PatientName "]
)
def test_lookup_of_anything_else_finds_nothing(text: str) -> None:
    assert lookup(text) is None
