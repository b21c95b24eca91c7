"""Bulk data over a real archive: any range of a long value, and the whole, in little memory; rows D16 and D17 of the checklist."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence

from tests import memory
from tests.services import archives
from tests.web import real
from tests.web.dicomweb.test_wado import parts
from tests.web.real import SEEN, Place

LONG_BYTES = 64 << 20
MOST_BYTES = 16 << 20
SERIES = f"{SEEN}.60"
BASE = f"/dicomweb/studies/{SEEN}/series/{SERIES}/instances/{SERIES}"
OCTETS = {"Accept": "application/octet-stream"}
LITTLE = "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1"
SHADES = np.arange(300, dtype=np.uint8).reshape(15, 20)
VIDEO = np.random.default_rng(5).bytes(3000)


def document(number: int) -> bytes:
    return np.random.default_rng(number).bytes(1 << 20) * (LONG_BYTES >> 20)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with archives.opened(real.config(tmp_path_factory.mktemp("bulk"))) as node:
        made = real.place(node)
        archives.store(node, archives.instance(
            1, study=SEEN, series=SERIES, PatientID=f"P{SEEN}", EncapsulatedDocument=document(1),
        ), pieces=1 << 20)
        within = Dataset()
        within.SpectroscopyData = np.arange(5000, dtype="<f4").tobytes()
        archives.store(node, archives.instance(2, study=SEEN, series=SERIES, PatientID=f"P{SEEN}", ReferencedImageSequence=Sequence([
            Dataset(), within])))
        given = archives.instance(3, study=SEEN, series=SERIES, PatientID=f"P{SEEN}", PixelData=bytes(range(256)) * 2)
        big = pydicom.dcmread(io.BytesIO(given))
        big.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
        out = io.BytesIO()
        pydicom.dcmwrite(out, big, little_endian=False, implicit_vr=False)
        archives.store(node, out.getvalue())
        for number, syntax in ((4, pydicom.uid.RLELossless), (5, pydicom.uid.MPEG4HP41)):
            coded = pydicom.dcmread(io.BytesIO(archives.instance(number, study=SEEN, series=SERIES, PatientID=f"P{SEEN}")))
            coded.Rows, coded.Columns, coded.PixelData = SHADES.shape[0], SHADES.shape[1], SHADES.tobytes()
            coded.BitsAllocated = coded.BitsStored = 8
            coded.SamplesPerPixel, coded.HighBit, coded.PixelRepresentation, coded.PhotometricInterpretation = 1, 7, 0, "MONOCHROME2"
            if syntax == pydicom.uid.RLELossless:
                coded.compress(syntax, generate_instance_uid=False)
            else:
                coded.file_meta.TransferSyntaxUID = syntax
                coded.PixelData, coded.NumberOfFrames = encapsulate([VIDEO[:1000], VIDEO[1000:]]), 30
                coded["PixelData"].is_undefined_length = True
            out = io.BytesIO()
            pydicom.dcmwrite(out, coded)
            archives.store(node, out.getvalue())
        yield made


def test_d17_a_range_of_a_long_value_costs_little_memory(place: Place) -> None:
    expected = document(1)
    place.ask("GET", f"{BASE}.1/bulk/00420011", headers={**OCTETS, "Range": "bytes=0-9"})  # what is imported and opened once
    memory.forget_peak()
    before = memory.peak_bytes()
    for first, last in ((LONG_BYTES // 2 + 3, LONG_BYTES // 2 + (1 << 20)), (LONG_BYTES - 5, LONG_BYTES - 1), (0, 0)):
        answer = place.ask("GET", f"{BASE}.1/bulk/00420011", headers={**OCTETS, "Range": f"bytes={first}-{last}"})
        assert answer.status_code == 206
        assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{LONG_BYTES}"
        assert answer.data == expected[first : last + 1]
    assert memory.peak_bytes() - before < MOST_BYTES


@pytest.mark.parametrize("accept", ["application/octet-stream", None])
def test_d16_the_whole_of_a_long_value_streams(place: Place, accept: str | None) -> None:
    memory.forget_peak()
    before = memory.peak_bytes()
    answer = place.ask("GET", f"{BASE}.1/bulk/00420011", headers={"Accept": accept} if accept else {}, buffered=False)
    taken, longest = 0, 0
    for chunk in answer.response:
        taken, longest = taken + len(chunk), max(longest, len(chunk))
    answer.close()
    assert answer.status_code == 200
    assert taken == int(answer.headers["Content-Length"]) >= LONG_BYTES
    assert longest <= 1 << 20
    assert memory.peak_bytes() - before < MOST_BYTES


def test_d16_a_value_inside_a_sequence_and_one_in_big_endian(place: Place) -> None:
    [(headers, body)] = parts(place.ask("GET", f"{BASE}.2/bulk/00081140/2/56000020"))
    assert body == np.arange(5000, dtype="<f4").tobytes()
    assert headers["content-length"] == str(len(body))
    swapped = (np.frombuffer(bytes(range(256)) * 2, "<u2")).byteswap().tobytes()
    stored = place.ask("GET", f"{BASE}.3/bulk/7FE00010", headers=OCTETS)
    assert stored.data == swapped
    part = place.ask("GET", f"{BASE}.3/bulk/7FE00010", headers={**OCTETS, "Range": "bytes=101-300"})
    assert (part.status_code, part.data) == (206, stored.data[101:301])


@pytest.mark.parametrize(("asked", "status"), [
    ("bytes=-5", 206), (f"bytes={LONG_BYTES}-", 416), ("bytes=5-4", 200), ("bytes=0-1,4-5", 200), ("lines=0-1", 200),
])
def test_ranges_of_every_kind(place: Place, asked: str, status: int) -> None:
    answer = place.ask("GET", f"{BASE}.1/bulk/00420011", headers={**OCTETS, "Range": asked}, buffered=False)
    answer.close()
    assert answer.status_code == status
    assert answer.headers.get("Accept-Ranges") == (None if status == 416 else "bytes")
    head = place.ask("HEAD", f"{BASE}.1/bulk/00420011", headers=OCTETS)
    assert (head.status_code, head.headers["Content-Length"], head.data) == (200, str(LONG_BYTES), b"")
    again = place.ask("GET", f"{BASE}.1/bulk/00420011", headers={**OCTETS, "If-None-Match": head.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")


def test_another_form_of_a_value_is_406(place: Place) -> None:
    for accept in ("image/jpeg", 'multipart/related; type="image/jls"', "multipart/related; type=image/jp2; transfer-syntax=*"):
        assert place.ask("GET", f"{BASE}.1/bulk/00420011", headers={"Accept": accept}).status_code == 406


@pytest.mark.parametrize("accept", ["application/octet-stream", None, "*/*", 'multipart/related; type="application/octet-stream"'])
def test_pixel_data_in_a_code_stream_are_not_taken_for_samples(place: Place, accept: str | None) -> None:
    answer = place.ask("GET", f"{BASE}.4/bulk/7FE00010", headers={"Accept": accept} if accept else {})
    assert answer.status_code == 200
    if accept == "application/octet-stream":
        told, body = answer.headers["Content-Type"], answer.data
    else:
        [(headers, body)] = parts(answer)
        told = headers["content-type"]
    assert (told, body) == (LITTLE, SHADES.tobytes())


@pytest.mark.parametrize(("number", "accept", "told"), [
    (4, "image/dicom-rle", "image/dicom-rle; transfer-syntax=1.2.840.10008.1.2.5"),
    (4, "application/octet-stream; transfer-syntax=*", "image/dicom-rle; transfer-syntax=1.2.840.10008.1.2.5"),
    (4, "multipart/related; type=image/dicom-rle", "image/dicom-rle; transfer-syntax=1.2.840.10008.1.2.5"),
    (5, "video/mp4", "video/mp4; transfer-syntax=1.2.840.10008.1.2.4.102"),
    (5, None, "video/mp4; transfer-syntax=1.2.840.10008.1.2.4.102"),
])
def test_a_code_stream_says_what_it_is(place: Place, number: int, accept: str | None, told: str) -> None:
    path = f"{BASE}.{number}/bulk/7FE00010"
    stored = pydicom.dcmread(io.BytesIO(place.ask("GET", f"{BASE}.{number}", headers={
        "Accept": "application/dicom; transfer-syntax=*"}).data)).PixelData
    expected = VIDEO if number == 5 else next(generate_frames(stored, number_of_frames=1))
    answer = place.ask("GET", path, headers={"Accept": accept} if accept else {})
    if answer.headers["Content-Type"].startswith("multipart"):
        [(headers, body)] = parts(answer)
        assert (headers["content-type"], body) == (told, expected)
        return
    assert (answer.headers["Content-Type"], answer.data) == (told, expected)
    part = place.ask("GET", path, headers={"Accept": accept, "Range": "bytes=10-29"} if accept else {"Range": "bytes=10-29"})
    assert (part.status_code, part.data, part.headers["Content-Type"]) == (206, expected[10:30], told)
    again = place.ask("GET", path, headers={"Accept": accept or "*/*", "If-None-Match": answer.headers["ETag"]})
    assert again.status_code == 304


def test_a_code_stream_nobody_decodes_is_never_said_to_be_something_else(place: Place) -> None:
    for accept in ("application/octet-stream", "image/jpeg", LITTLE):
        assert place.ask("GET", f"{BASE}.5/bulk/7FE00010", headers={"Accept": accept}).status_code == 406
