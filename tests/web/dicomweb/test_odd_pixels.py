"""Pixel data that are not what their data set says, over a real archive: 406 before the first byte, and no frame for another."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from archive.dicom.part10 import scan
from archive.dicom.transcode import RLE
from archive.dicom.transfer import EXPLICIT_LE
from tests.dicom.conftest import el, part10, to_syntax
from tests.services import archives
from tests.web import real
from tests.web.dicomweb.test_wado import parts
from tests.web.real import SEEN, Place

SERIES = f"{SEEN}.9"
PATH = f"/dicomweb/studies/{SEEN}/series/{SERIES}"
FRAMES = 5
BITS = np.random.default_rng(9).integers(0, 2, (FRAMES, 3, 3)).astype(np.uint8)


def one(number: int, **attributes: object) -> bytes:
    return archives.instance(number, study=SEEN, series=SERIES, PatientID=f"P{SEEN}", **attributes)


def mislabelled(number: int) -> bytes:
    """RLE of noise, which is longer than its samples, said to be explicit little endian."""
    noise = np.random.default_rng(1).integers(0, 4096, (16, 16)).astype("<u2").tobytes()
    native = one(number, PixelData=noise)
    coded = to_syntax(native, scan(native), RLE)
    return part10(coded[scan(coded).dataset_offset :], EXPLICIT_LE, sop=f"{SERIES}.{number}")


def more_frames(number: int) -> bytes:
    native = one(number, NumberOfFrames=3, PixelData=bytes(16 * 16 * 2 * 3))
    return to_syntax(native, scan(native), RLE).replace(el(0x00280008, "IS", "3"), el(0x00280008, "IS", "2"))


def whole_chroma(number: int) -> bytes:
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_FULL_422", "PlanarConfiguration": 0}
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    return one(number, NumberOfFrames=2, **colour, **bits, PixelData=bytes(16 * 16 * 3 * 2))


def one_bit(number: int) -> bytes:
    packed = np.packbits(BITS.ravel(), bitorder="little").tobytes()
    bits = {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}
    return one(number, rows=3, NumberOfFrames=FRAMES, **bits, PixelData=packed + b"\0" * (len(packed) & 1))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with archives.opened(real.config(tmp_path_factory.mktemp("odd"))) as node:
        made = real.place(node)
        for data in (mislabelled(1), more_frames(2), one_bit(3), whole_chroma(4)):
            archives.store(node, data)
        yield made


OCTETS = 'multipart/related; type="application/octet-stream"'


@pytest.mark.parametrize("accept", [
    OCTETS, f"{OCTETS}; transfer-syntax=*", f"{OCTETS}; transfer-syntax={EXPLICIT_LE}", "application/octet-stream",
    'multipart/related; type="image/jls"', "*/*",
])
def test_a_code_stream_that_is_said_to_be_samples_is_no_frame(place: Place, accept: str) -> None:
    answer = place.ask("GET", f"{PATH}/instances/{SERIES}.1/frames/1", headers={"Accept": accept})
    assert answer.status_code == 406
    assert "encapsulated" in answer.get_data(as_text=True)


@pytest.mark.parametrize("tail", ["rendered", "thumbnail", "frames/1/rendered"])
def test_nor_a_picture(place: Place, tail: str) -> None:
    assert place.ask("GET", f"{PATH}/instances/{SERIES}.1/{tail}").status_code == 406


def test_nor_bulk_data_and_as_stored_it_is_there(place: Place) -> None:
    assert place.ask("GET", f"{PATH}/instances/{SERIES}.1/bulk/7FE00010").status_code == 404
    answer = place.ask("GET", f"{PATH}/instances/{SERIES}.1", headers={"Accept": "application/dicom; transfer-syntax=*"})
    assert (answer.status_code, answer.data) == (200, mislabelled(1))


@pytest.mark.parametrize("syntax", [f"; transfer-syntax={EXPLICIT_LE}", ""])
def test_an_instance_with_more_frames_than_it_says_is_refused_before_the_first_byte(place: Place, syntax: str) -> None:
    for path in (PATH, f"{PATH}/instances/{SERIES}.2"):
        answer = place.ask("GET", path, headers={"Accept": f'multipart/related; type="application/dicom"{syntax}'})
        assert answer.status_code == 406
    frame = place.ask("GET", f"{PATH}/instances/{SERIES}.2/frames/3", headers={"Accept": OCTETS})
    assert parts(frame)[0][1] == bytes(16 * 16 * 2)


@pytest.mark.parametrize("accept", [OCTETS, f"{OCTETS}; transfer-syntax=*", f"{OCTETS}; transfer-syntax={EXPLICIT_LE}"])
def test_frames_of_single_bits_hold_no_bits_of_others_however_they_are_asked_for(place: Place, accept: str) -> None:
    for n in range(FRAMES):
        answer = place.ask("GET", f"{PATH}/instances/{SERIES}.3/frames/{n + 1}", headers={"Accept": accept})
        assert parts(answer)[0][1] == np.packbits(BITS[n].ravel(), bitorder="little").tobytes()
    several = place.ask("GET", f"{PATH}/instances/{SERIES}.3/frames/2,5", headers={"Accept": accept})
    assert [body for _, body in parts(several)] == [np.packbits(BITS[n].ravel(), bitorder="little").tobytes() for n in (1, 4)]


@pytest.mark.parametrize("accept", [OCTETS, f"{OCTETS}; transfer-syntax=*", f"{OCTETS}; transfer-syntax={EXPLICIT_LE}"])
def test_frames_that_do_not_begin_where_they_seem_to_are_refused_however_they_are_asked_for(place: Place, accept: str) -> None:
    for frame in (1, 2, 1):
        answer = place.ask("GET", f"{PATH}/instances/{SERIES}.4/frames/{frame}", headers={"Accept": accept})
        assert answer.status_code == 406
    assert place.ask("GET", f"{PATH}/instances/{SERIES}.4/rendered").status_code == 406
