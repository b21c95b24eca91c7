"""behind: metadata hold what stands behind the pixel data too, and nothing that is no element any more."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from archive.dicom import behind
from archive.dicom.attributes import SCANNED
from archive.dicom.metadata import to_json
from archive.dicom.part10 import meta, scan
from archive.dicom.transfer import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE
from archive.errors import InvalidInstance
from tests.dicom import mangled
from tests.dicom.conftest import CT, el, im
from tests.dicom.test_agreement import without_bytes
from tests.dicom.test_behind_pixels import GARBAGE, PADDING, SIGNATURE, SYNTAXES, instance
from tests.services import archives

PRIVATE = {0x7FE10010: el(0x7FE10010, "LO", "maker "), 0x7FE11001: el(0x7FE11001, "US", b"\1\0\3\0")}
LONG = {0x7FE11002: el(0x7FE11002, "OB", bytes(5000))}


def whole(data: bytes) -> dict[str, Any]:
    scanned = scan(data)
    head = data[: scanned.head_bytes]
    document = to_json(head, scanned, lambda path: path)
    tail = behind.tail_of(lambda at, count: data[at : at + count], len(data), scanned, head)
    return behind.joined(document, tail, head, scanned) if tail else document


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_elements_behind_the_pixel_data_are_there(syntax: str) -> None:
    data = instance(syntax, PRIVATE | LONG | {0xFFFAFFFA: SIGNATURE, 0xFFFCFFFC: PADDING})
    found = whole(data)
    before = to_json(data[: scan(data).head_bytes], scan(data), lambda path: path)
    assert {name: found[name] for name in before} == before
    assert list(found) == sorted(found)
    added = {name: element for name, element in found.items() if name not in before}
    assert added.keys() == {"7FE10010", "7FE11001", "FFFAFFFA"}
    assert added["7FE10010"]["Value"] == ["maker"]
    if syntax != IMPLICIT_LE:
        assert added["7FE11001"] == {"vr": "US", "Value": [1, 3]}
    [item] = added["FFFAFFFA"]["Value"]
    assert item["04000120"] == {"vr": "OB", "InlineBinary": "c2lnbmVk"}


def test_what_stands_before_the_pixel_data_counts_first() -> None:
    data = instance() + el(0x00081010, "SH", "LATE") + el(0x00280010, "US", struct.pack("<H", 7)) + el(0x00081010, "SH", "TOO LATE")
    found = whole(data)
    assert (found["00081010"]["Value"], found["00280010"]["Value"]) == (["LATE"], [40])


@pytest.mark.parametrize("stored", SYNTAXES)
@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_is_no_data_set_any_more_says_nothing(stored: str, garbage: str) -> None:
    if stored in (IMPLICIT_LE, EXPLICIT_BE):
        return  # it is made for the others
    data = instance(stored)
    assert whole(data + GARBAGE[garbage]) == whole(data)


def test_the_same_behind_implicit_elements() -> None:
    data = instance(IMPLICIT_LE)
    assert whole(data + im(0x00091001, b"abcd") + im(0x00100010, b"Other ")) == whole(data)


@pytest.mark.parametrize("syntax", [EXPLICIT_LE, IMPLICIT_LE])
def test_of_whatever_stands_there_metadata_say_what_the_index_says(syntax: str) -> None:
    before = instance(syntax)
    longer = taken = 0
    for seed in range(700):
        other = mangled.instance(seed)
        data = before + other[len(meta(CT, "1.2.3.4", syntax)) :]
        try:
            scanned = scan(data)
        except InvalidInstance:
            continue
        taken += 1
        found = whole(data)
        longer += len(found) > len(to_json(data[: scanned.head_bytes], scanned, lambda path: path))
        for name, element in scanned.attributes.items():
            assert name == "00080005" or without_bytes(found[name]) == without_bytes(element), (seed, name)
        for attribute in SCANNED.values():
            name = attribute.tag_hex
            odd = attribute.vr == "SQ" or found.get(name, {"vr": ""})["vr"] != attribute.vr
            assert odd or name in scanned.attributes or any("too long" in one.text for one in scanned.findings), (seed, name)
    assert taken > 100
    assert longer > 30


def test_they_are_in_what_is_served(tmp_path: Path) -> None:
    with archives.opened(archives.made(tmp_path)) as node:
        archives.store(node, archives.instance(1) + el(0x7FE10010, "LO", "maker ") + SIGNATURE)
        archives.store(node, archives.instance(2) + el(0x7FE11002, "OB", bytes(behind.MOST_BYTES)))
        answer = node.retrieve.metadata(archives.user(node), "clinical", "1.2.3")
        one, two = json.loads(gzip.decompress(b"".join(answer.gzip())))
        assert list(one)[-3:] == ["7FE00010", "7FE10010", "FFFAFFFA"]
        assert list(two)[-1] == "7FE00010"
