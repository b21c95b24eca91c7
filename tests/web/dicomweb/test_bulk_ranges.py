"""Bulk data over a real archive: any range of a long value, and the whole, in little memory; rows D16 and D17 of the checklist."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
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
