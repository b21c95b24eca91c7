"""zeros: a data set goes on behind zeros for the index, metadata, bulk data and what is converted, as for dcmtk and pydicom."""

from __future__ import annotations

import io
import random
import shutil
import struct
import subprocess
import warnings
from pathlib import Path

import pydicom
import pytest

from archive.dicom.bulk import find
from archive.dicom.metadata import to_json
from archive.dicom.part10 import Limits, scan
from archive.dicom.slim import slim
from archive.dicom.stream import StreamScanner
from archive.dicom.transfer import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE
from archive.errors import InvalidInstance, NotAcceptable
from tests.dicom import mangled
from tests.dicom.conftest import UIDS, dataset, el, im, item, part10, pixels, to_syntax
from tests.dicom.test_agreement import differences
from tests.dicom.test_bulk import Counted

_PIXELS, _NAME, _PRIVATE = 0x7FE00010, 0x00100010, 0x00091001
_SYNTAXES = (EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE)
_TAIL = "bytes after the data set"


def zeroed(before: int, count: int, syntax: str = EXPLICIT_LE) -> bytes:
    """An image with zeros before one of its elements, behind it all for 0."""
    order, elements = ">" if syntax == EXPLICIT_BE else "<", []
    texts = {tag: ("UI", uid + "\0" * (len(uid) & 1)) for tag, uid in UIDS.items()}
    texts |= {_NAME: ("PN", "Doe^Jane"), 0x00280004: ("CS", "MONOCHROME2 "), 0x00090010: ("LO", "MAKER ")}
    words = {0x00280002: 1, 0x00280010: 2, 0x00280011: 2, 0x00280100: 8, 0x00280101: 8, 0x00280102: 7, 0x00280103: 0}
    values = {tag: (vr, text.encode()) for tag, (vr, text) in texts.items()}
    values |= {tag: ("US", struct.pack(order + "H", word)) for tag, word in words.items()}
    values |= {_PRIVATE: ("OB", b"own!"), _PIXELS: ("OB", b"\1\2\3\4")}
    for tag in sorted(values):
        vr, value = values[tag]
        elements += [bytes(count)] if tag == before else []
        elements.append(im(tag, value) if syntax == IMPLICIT_LE else el(tag, vr, value, order=order))
    return part10(b"".join(elements) + (b"" if before else bytes(count)), syntax)


@pytest.mark.parametrize("before", [0x0020000D, _PRIVATE, _NAME, _PIXELS])
@pytest.mark.parametrize("count", [8, 24, 1 << 18])
@pytest.mark.parametrize("syntax", _SYNTAXES)
def test_what_stands_behind_zeros_is_read(syntax: str, count: int, before: int) -> None:
    data, plain = zeroed(before, count, syntax), zeroed(before, 0, syntax)
    scanned, sound = scan(data), scan(plain)
    assert [finding.text for finding in scanned.findings] == ["zeros between elements"]
    assert scanned.attributes == sound.attributes
    assert scanned.frames is not None
    assert [data[at : at + length] for at, length in scanned.frames.pieces(0)] == [b"\1\2\3\4"]
    document = to_json(data[: scanned.head_bytes], scanned, str)
    assert document == to_json(plain[: sound.head_bytes], sound, str)
    assert document["00091001"]["vr"] in ("OB", "UN")
    for target in (EXPLICIT_LE, IMPLICIT_LE):
        assert scan(made := to_syntax(data, scanned, target)).findings == ()
        assert made == to_syntax(plain, sound, target)


@pytest.mark.parametrize("step", [1, 7, 8, 13])
def test_it_does_not_matter_in_which_pieces_zeros_come(step: int) -> None:
    for data in (zeroed(_NAME, 40), zeroed(0, 41), zeroed(_NAME, 40, IMPLICIT_LE)):
        scanner = StreamScanner()
        for at in range(0, len(data), step):
            scanner.feed(data[at : at + step])
        assert scanner.finish() == scan(data)


@pytest.mark.parametrize("syntax", _SYNTAXES)
def test_bulk_data_behind_zeros_are_found(syntax: str) -> None:
    data = zeroed(_PRIVATE, 32, syntax)
    scanned, counted = scan(data), Counted(data)
    for path, value in (("00091001", b"own!"), ("7FE00010", b"\1\2\3\4")):
        assert b"".join(find(counted.read, len(data), scanned, path).part(counted.chunks, 0, 4)) == value


def test_long_values_behind_zeros_are_left_out_of_a_header_too() -> None:
    data = part10(dataset() + bytes(16) + el(0x00420011, "OB", bytes(100_000)) + el(0x00741204, "LO", "B"))
    scanned, counted = scan(data), Counted(data)
    head = slim(counted.read, len(data), scanned, 4096)
    assert len(head) < 1000
    assert to_json(head, scanned, str)["00741204"]["Value"] == ["B"]


@pytest.mark.parametrize("count", [1, 8, 14, 100_000])
def test_zeros_to_the_end_are_none_of_the_data_set(count: int) -> None:
    for syntax in _SYNTAXES:
        scanned = scan(zeroed(0, count, syntax))
        assert [finding.text for finding in scanned.findings] == [_TAIL]


@pytest.mark.parametrize("syntax", [EXPLICIT_LE, IMPLICIT_LE])
@pytest.mark.parametrize("rest", [
    b"GARBAGE", bytes(4) + el(_NAME, "PN", "Other^Name"), b"\xff" * 40, struct.pack("<HHI", 0xFFFE, 0xE000, 0)
])
def test_what_is_no_element_behind_zeros_ends_the_data_set(syntax: str, rest: bytes) -> None:
    body = b"".join(im(t, u + "\0" * (len(u) & 1)) if syntax == IMPLICIT_LE else el(t, "UI", u) for t, u in sorted(UIDS.items()))
    data = part10(body + bytes(16) + rest, syntax)
    scanned = scan(data)
    assert [finding.text for finding in scanned.findings] == [_TAIL]
    assert set(to_json(data, scanned, str)) == set(scanned.attributes)
    with pytest.raises(NotAcceptable) as refused:
        to_syntax(data, scanned, IMPLICIT_LE if syntax == EXPLICIT_LE else EXPLICIT_LE)
    assert refused.value.reason == "goes-on"


def test_zeros_are_no_elements_that_count() -> None:
    assert scan(part10(dataset() + bytes(1 << 20) + el(0x00741204, "LO", "B")), Limits(elements=30)).findings


def test_damaged_data_sets_with_zeros_are_read_alike() -> None:
    read = 0
    for seed in range(3000):
        made = random.Random(seed)
        data = mangled.instance(seed)
        at = made.randrange(200, len(data))
        data = data[:at] + bytes(8 * made.choice((1, 2, 9))) + data[at:]
        try:
            scanned = scan(data)
        except InvalidInstance:
            continue
        read += 1
        assert differences(data, scanned) == [], seed
    assert read > 150


def test_pixel_data_an_older_scanner_ended_before_are_not_left_out() -> None:
    body = dataset(pixels(2, 2, b"") | {_PIXELS: b""}) + bytes(8) + el(_PIXELS, "OB", item(b"") + item(bytes(40)), length=0xFFFFFFFF)
    data = part10(body + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0), "1.2.840.10008.1.2.5")
    now = scan(data)
    old = type(now).from_json(now.to_json() | {"frames": None, "head_bytes": len(data)})
    with pytest.raises(NotAcceptable) as refused:
        to_syntax(data, old, EXPLICIT_LE)
    assert refused.value.reason == "goes-on"


@pytest.mark.skipif(shutil.which("dcmdump") is None, reason="dcmtk is not installed")
@pytest.mark.parametrize("syntax", _SYNTAXES)
def test_dcmtk_and_pydicom_read_the_same(tmp_path: Path, syntax: str) -> None:
    data = zeroed(_NAME, 24, syntax)
    (tmp_path / "it.dcm").write_bytes(data)
    printed = subprocess.run(["dcmdump", "-q", str(tmp_path / "it.dcm")], capture_output=True, check=True).stdout.decode("latin-1")
    assert "[Doe^Jane]" in printed
    assert "PixelData" in printed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = pydicom.dcmread(io.BytesIO(data))
    assert str(read.PatientName) == scan(data).text("PatientName") == "Doe^Jane"
    assert read.PixelData == b"\1\2\3\4"
