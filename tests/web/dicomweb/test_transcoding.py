"""Instances in another transfer syntax than they are stored in, over a real archive: rows B03 to B08 and B13 of the DICOMweb checklist."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pydicom
import pytest
from pydicom.pixels import pixel_array
from werkzeug.test import TestResponse

from archive.dicom.transcode import ENCODERS, JPEG_2000, JPEG_LOSSLESS, JPEG_LS, RLE
from archive.dicom.transfer import EXPLICIT_LE
from tests.services import archives
from tests.web import real
from tests.web.dicomweb.test_wado import parts
from tests.web.real import SEEN, Place

LOSSLESS = sorted(ENCODERS)
BASE = f"/dicomweb/studies/{SEEN}"
SERIES = f"{BASE}/series/{SEEN}.7"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with archives.opened(real.config(tmp_path_factory.mktemp("transcoding"))) as node:
        made = real.place(node)
        for number in (1, 2):
            archives.store(node, archives.instance(number, study=SEEN, series=f"{SEEN}.7", rows=64, PatientID=f"P{SEEN}"))
        yield made


def ask(place: Place, path: str, syntax: str, *, single: bool = False) -> TestResponse:
    kind = "application/dicom" if single else 'multipart/related; type="application/dicom"'
    return place.ask("GET", path, headers={"Accept": f"{kind}; transfer-syntax={syntax}"})


def original(place: Place, number: int) -> np.ndarray:  # type: ignore[type-arg]
    return pixel_array(pydicom.dcmread(io.BytesIO(ask(place, f"{SERIES}/instances/{SEEN}.7.{number}", "*", single=True).data)), raw=True)


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_b06_a_lossless_syntax_is_made(place: Place, syntax: str) -> None:
    answer = ask(place, f"{SERIES}/instances/{SEEN}.7.1", syntax, single=True)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, f"application/dicom; transfer-syntax={syntax}")
    read = pydicom.dcmread(io.BytesIO(answer.data))
    assert (read.file_meta.TransferSyntaxUID, read.SOPInstanceUID) == (syntax, f"{SEEN}.7.1")
    assert np.array_equal(pixel_array(read, raw=True), original(place, 1))
    again = place.ask("GET", f"{SERIES}/instances/{SEEN}.7.1", headers={
        "Accept": f"application/dicom; transfer-syntax={syntax}", "If-None-Match": answer.headers["ETag"],
    })
    assert again.status_code == 304
    assert ask(place, f"{SERIES}/instances/{SEEN}.7.1", EXPLICIT_LE, single=True).headers["ETag"] != answer.headers["ETag"]


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_b06_a_whole_series(place: Place, syntax: str) -> None:
    answer = ask(place, SERIES, syntax)
    assert answer.status_code == 200
    found = parts(answer)
    assert len(found) == 2
    for number, (head, body) in enumerate(found, 1):
        assert head["content-type"] == f"application/dicom; transfer-syntax={syntax}"
        assert np.array_equal(pixel_array(pydicom.dcmread(io.BytesIO(body)), raw=True), original(place, number))


@pytest.mark.parametrize("syntax", [*(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 81, 91, 100)), "nope"])
def test_b07_b08_what_is_never_made(place: Place, syntax: str) -> None:
    """Video of a still, lossy ones that would alter it, and what is no transfer syntax."""
    for path in (SERIES, f"{SERIES}/instances/{SEEN}.7.1"):
        assert ask(place, path, syntax).status_code == 406


def test_b05_as_stored_is_byte_for_byte(place: Place) -> None:
    path, stored = f"{SERIES}/instances/{SEEN}.7.1", archives.instance(1, study=SEEN, series=f"{SEEN}.7", rows=64, PatientID=f"P{SEEN}")
    assert ask(place, path, EXPLICIT_LE, single=True).data == ask(place, path, "*", single=True).data == stored


@pytest.mark.parametrize(("asked", "given"), [
    (((JPEG_LS, ""), (EXPLICIT_LE, "")), EXPLICIT_LE), (((JPEG_LS, ""), ("*", "")), EXPLICIT_LE), (((RLE, ""), (JPEG_LS, "")), RLE),
    (((JPEG_LS, ""), (EXPLICIT_LE, ";q=0.9")), JPEG_LS), (((JPEG_LS, ";q=.1"), (RLE, ";q=.2"), ("nope", "")), RLE),
    (((JPEG_LOSSLESS, ";q=0"), (JPEG_LS, ";q=.001")), JPEG_LS),
])
def test_b18_the_best_of_several_and_as_stored_among_equals(place: Place, asked: tuple[tuple[str, str], ...], given: str) -> None:
    header = ", ".join(f"application/dicom; transfer-syntax={syntax}{quality}" for syntax, quality in asked)
    answer = place.ask("GET", f"{SERIES}/instances/{SEEN}.7.1", headers={"Accept": header})
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, f"application/dicom; transfer-syntax={given}")


def test_b13_a_study_is_never_answered_in_part(place: Place) -> None:
    """The study's other series has images too small for JPEG 2000."""
    assert ask(place, BASE, JPEG_2000).status_code == 406
    assert ask(place, BASE, JPEG_LS).status_code == 200
    assert ask(place, BASE, "*").status_code == 200
