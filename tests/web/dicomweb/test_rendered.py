"""Rendered resources and thumbnails over a real archive: rows D18 to D27 of the DICOMweb checklist."""

from __future__ import annotations

import email.policy
import io
import struct
from collections.abc import Iterator
from email.parser import BytesParser
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import MPEG2MPML, JPEGBaseline8Bit
from werkzeug.test import TestResponse

from archive.services import picture_cache, pictures
from archive.web.dicomweb import picture_parameters
from tests.services import archives
from tests.web import real
from tests.web.real import HIDDEN, SEEN, Place

SIDE = 64
MULTI, LARGE, MIXED, REPORT, VIDEO, DAMAGED, INVERSE = (f"{SEEN}.{n}" for n in (20, 21, 22, 23, 24, 25, 26))
"""Series of the study that mia sees; REPORT and MIXED are studies, or hold, what is no image."""


def study(uid: str) -> str:
    return f"/dicomweb/studies/{uid}"


def series(uid: str) -> str:
    return f"{study(SEEN)}/series/{uid}"


def one(uid: str, number: int = 1) -> str:
    return f"{series(uid)}/instances/{uid}.{number}"


def pixels(number: int, rows: int = SIDE) -> bytes:
    return ((np.arange(rows * rows, dtype="<u2") * 3 + number * 500) % 4096).astype("<u2").tobytes()


def put(place: Place, number: int, uid: str, **attributes: Any) -> None:
    archives.store(place.node, archives.instance(number, study=SEEN, series=uid, rows=SIDE, PatientID=f"P{SEEN}",
                                                 PatientName="Canary^Hidden", **{"PixelData": pixels(number), **attributes}))


def coded(data: bytes, syntax: str, frame: bytes) -> bytes:
    read = pydicom.dcmread(io.BytesIO(data))
    read.file_meta.TransferSyntaxUID = syntax
    read.PixelData = pydicom.encaps.encapsulate([frame])
    read["PixelData"].VR = "OB"
    read["PixelData"].is_undefined_length = True
    out = io.BytesIO()
    read.save_as(out, enforce_file_format=True)
    return out.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with archives.opened(real.config(tmp_path_factory.mktemp("pictures"))) as node:
        made = real.place(node)
        groups = []
        for center in (500, 2500):
            voi = Dataset()
            voi.WindowCenter, voi.WindowWidth = center, 1
            group = Dataset()
            group.FrameVOILUTSequence = Sequence([voi])
            groups.append(group)
        put(made, 1, MULTI, NumberOfFrames=2, PixelData=pixels(0) * 2, PerFrameFunctionalGroupsSequence=Sequence(groups))
        for number in range(1, 6):
            put(made, number, LARGE, WindowCenter=2000, WindowWidth=4000)
        put(made, 1, MIXED)
        put(made, 2, MIXED, Rows=None, Columns=None, PixelData=None, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
        plain = archives.instance(1, study=SEEN, series=VIDEO, rows=SIDE, PatientID=f"P{SEEN}", PatientName="Canary^Hidden",
                                  BitsAllocated=8, BitsStored=8, HighBit=7)
        archives.store(node, coded(plain, MPEG2MPML, bytes(100)))
        archives.store(node, coded(plain.replace(VIDEO.encode(), DAMAGED.encode()), JPEGBaseline8Bit, b"\xff\xd8 damaged"))
        put(made, 1, INVERSE, PhotometricInterpretation="MONOCHROME1", WindowCenter=2000, WindowWidth=4000)
        archives.store(node, archives.instance(1, study=SEEN, series=REPORT, PatientID=f"P{SEEN}", PatientName="Canary^Hidden", Rows=None,
                                               Columns=None, PixelData=None))
        yield made


def got(place: Place, path: str, accept: str | None = None, **headers: str) -> TestResponse:
    return place.ask("GET", path, headers={**({} if accept is None else {"Accept": accept}), **headers})


def picture(answer: TestResponse, form: str = "JPEG") -> Image.Image:
    assert answer.status_code == 200, answer.get_data()
    assert answer.headers["Content-Type"] == f"image/{form.lower()}"
    assert answer.headers["Cache-Control"] == "private, no-store"
    return opened(answer.get_data(), form)


def opened(data: bytes, form: str = "JPEG") -> Image.Image:
    image = Image.open(io.BytesIO(data))
    assert image.format == form
    image.load()
    return image


def parts(answer: TestResponse) -> list[tuple[str, str, bytes]]:
    head = f"Content-Type: {answer.headers['Content-Type']}\r\n\r\n".encode()
    message = BytesParser(policy=email.policy.HTTP).parsebytes(head + answer.get_data())
    return [(part["Content-Type"], part["Content-Location"], part.get_payload(decode=True)) for part in message.iter_parts()]


def shades(place: Place, path: str) -> np.ndarray[Any, Any]:
    return np.asarray(picture(got(place, path, "image/png"), "PNG")).astype(int)


@pytest.mark.parametrize("accept", [None, "", "*/*", "image/*", "image/jpeg", "image/webp, image/jpeg;q=0.5, text/html",
                                    "text/html,application/xhtml+xml,*/*;q=0.8"])
def test_d18_an_instance_is_a_jpeg(place: Place, accept: str | None) -> None:
    assert picture(got(place, f"{one(LARGE)}/rendered", accept)).size == (SIDE, SIDE)


def test_d19_the_type_asked_for_in_the_images_size(place: Place) -> None:
    assert picture(got(place, f"{one(LARGE)}/rendered", "image/png"), "PNG").size == (SIDE, SIDE)
    assert picture(got(place, f"{one(LARGE)}/rendered?accept=image/png"), "PNG").size == (SIDE, SIDE)
    assert picture(got(place, f"{one(MULTI)}/frames/2/rendered", "image/png;q=0.9, image/jpeg;q=0.1"), "PNG").size == (SIDE, SIDE)
    assert picture(got(place, f"{one(LARGE)}/rendered", "image/jpeg;q=0, image/*"), "PNG").size == (SIDE, SIDE)


@pytest.mark.parametrize("accept", ["image/gif", "video/mp4", "application/dicom", "text/html", "nonsense", "image/jpeg;q=0",
                                    'multipart/related; type="application/dicom"'])
@pytest.mark.parametrize("path", [f"{one(LARGE)}/rendered", f"{study(SEEN)}/thumbnail", f"{one(MULTI)}/frames/1,2/rendered"])
def test_what_nothing_satisfies_is_406(place: Place, path: str, accept: str) -> None:
    assert got(place, path, accept).status_code == 406


def test_d20_quality(place: Place) -> None:
    sizes = [len(picture(got(place, f"{one(LARGE)}/rendered?quality={quality}")).tobytes()) and
             len(got(place, f"{one(LARGE)}/rendered?quality={quality}").get_data()) for quality in (1, 50, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[1] < sizes[2]
    for bad in ("0", "101", "x", "-1", "", "1.5", "١"):
        assert got(place, f"{one(LARGE)}/rendered?quality={bad}").status_code == 400


@pytest.mark.parametrize("function", ["linear", "LINEAR", "linear-exact", "sigmoid", "SIGMOID", None])
def test_d21_a_window(place: Place, function: str | None) -> None:
    raw = np.frombuffer(pixels(1), "<u2").reshape(SIDE, SIDE).astype(float)
    window = "window=200,800" + (f",{function}" if function else "")
    if function and function.lower() == "sigmoid":
        expected = 255 / (1 + np.exp(-4 * (raw - 200) / 800))
    elif function == "linear-exact":
        expected = ((raw - 200) / 800 + 0.5) * 255
    else:
        expected = ((raw - 199.5) / 799 + 0.5) * 255
    assert np.abs(shades(place, f"{one(LARGE)}/rendered?{window}") - np.clip(expected, 0, 255)).max() <= 1


@pytest.mark.parametrize("query", [
    "window=1", "window=1,x,linear", "window=1,0,linear", "window=1,-5,linear", "window=1,2,cubic", "window=", "window=1,2,linear,3",
    "window=nan,2,linear", "window=1,inf,linear", "window=1,1e99,linear", "viewport=", "viewport=1", "viewport=0,1", "viewport=-1,1",
    "viewport=1,x", "viewport=70000,1", "viewport=20000,20000", "viewport=1,2,3", "viewport=1,2,3,4,5,6,7", "viewport=10,10,-1,0,5,5",
    "viewport=10,10,0,0,0,5", "viewport=10,10,x,0,5,5", "viewport=10,10,64,0,5,5", "viewport=10,10,0,64,5,5", "viewport=9,9,0,0,nan,5",
    "annotation=secrets", "annotation=", "iccprofile=mine", "quality=0",
])
def test_d21_bad_parameters_are_400(place: Place, query: str) -> None:
    answer = got(place, f"{one(LARGE)}/rendered?{query}")
    assert answer.status_code == 400
    assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("query", ["viewport=0,1", "viewport=1", "viewport=10,10,0,0,5,5", "quality=0", "viewport=x,y"])
def test_bad_parameters_of_thumbnails_are_400(place: Place, query: str) -> None:
    assert got(place, f"{one(LARGE)}/thumbnail?{query}").status_code == 400


def test_d21_a_viewport(place: Place) -> None:
    whole = shades(place, f"{one(LARGE)}/rendered")
    base = f"{one(LARGE)}/rendered?viewport="
    assert picture(got(place, base + "32,16")).size == (16, 16)
    assert picture(got(place, base + "128,500")).size == (128, 128)
    assert np.array_equal(shades(place, base + "20,10,4,6,20,10"), whole[6:16, 4:24])
    assert np.array_equal(shades(place, base + "20,10,4,6,-20,10"), whole[6:16, 4:24][:, ::-1])
    assert np.array_equal(shades(place, base + "20,10,4,6,20,-10"), whole[6:16, 4:24][::-1])
    assert np.array_equal(shades(place, base + "64,64,,,-64,"), whole[:, ::-1])
    assert np.array_equal(shades(place, base + "4,64,60,0,64,64"), whole[:, 60:])
    assert picture(got(place, f"{one(LARGE)}/thumbnail?viewport=32,16")).size == (16, 16)
    assert picture(got(place, f"{one(LARGE)}/thumbnail?viewport=500,500")).size == (SIDE, SIDE)


def test_d22_d24_frames(place: Place) -> None:
    first, second = (shades(place, f"{one(MULTI)}/frames/{n}/rendered") for n in (1, 2))
    assert np.array_equal(shades(place, f"{one(MULTI)}/rendered"), first)
    assert not np.array_equal(first, second)
    for bad, status in (("0", 400), ("-1", 400), ("x", 400), ("1,,2", 400), ("3", 404), ("999999999", 404), ("2,3", 404)):
        assert got(place, f"{one(MULTI)}/frames/{bad}/rendered").status_code == status, bad
    for bad, status in (("0", 400), ("3", 404), ("999999999", 404)):
        assert got(place, f"{one(MULTI)}/frames/{bad}/thumbnail").status_code == status, bad


def test_several_frames_are_multipart_in_the_asked_order(place: Place) -> None:
    for accept in (None, "*/*", "multipart/related", 'multipart/related; type="image/jpeg"'):
        answer = got(place, f"{one(MULTI)}/frames/2,1/rendered", accept)
        assert answer.headers["Content-Type"].startswith('multipart/related; type="image/jpeg"; boundary=')
        found = parts(answer)
        assert [kind for kind, _, _ in found] == ["image/jpeg"] * 2
        assert [where.rsplit("/", 2)[1:] for _, where, _ in found] == [["frames", "2"], ["frames", "1"]]
        assert found[1][2] == got(place, f"{one(MULTI)}/rendered").get_data()
    assert got(place, f"{one(MULTI)}/frames/2,1/rendered", "image/png").status_code == 406
    [(kind, _, data)] = parts(got(place, f"{one(MULTI)}/rendered", "multipart/related; type=image/png"))
    assert kind == "image/png"
    assert opened(data, "PNG").size == (SIDE, SIDE)


def test_d23_a_series_and_a_study_are_one_picture_or_one_of_each_image(place: Place) -> None:
    middle = got(place, f"{one(LARGE, 3)}/rendered").get_data()
    for path in (series(LARGE), study(SEEN)):  # the series with the most images stands for the study
        answer = got(place, f"{path}/rendered")
        assert picture(answer)
        assert answer.get_data() == middle
        assert answer.headers["Content-Location"].endswith(f"/instances/{LARGE}.3/frames/1")
    found = parts(got(place, f"{series(LARGE)}/rendered", 'multipart/related; type="image/png"'))
    assert [where.split("/")[-3] for _, where, _ in found] == [f"{LARGE}.{n}" for n in range(1, 6)]
    assert all(opened(data, "PNG").size == (SIDE, SIDE) for _, _, data in found)
    assert len({data for _, _, data in found}) == 5
    [(_, where, _)] = parts(got(place, f"{series(MIXED)}/rendered", "multipart/related"))
    assert f"/instances/{MIXED}.1/" in where
    # Never in part: the study holds a video.
    assert got(place, f"{study(SEEN)}/rendered", "multipart/related").status_code == 406


def test_a_thumbnail_is_at_most_128_pixels(place: Place) -> None:
    put(place, 9, f"{SEEN}.30", Rows=200, Columns=400, PixelData=bytes(160000))
    for path in (one(f"{SEEN}.30", 9), series(f"{SEEN}.30"), f"{one(f'{SEEN}.30', 9)}/frames/1"):
        assert picture(got(place, f"{path}/thumbnail")).size == (128, 64)
        assert picture(got(place, f"{path}/thumbnail", "image/png"), "PNG").size == (128, 64)
    assert got(place, f"{series(LARGE)}/thumbnail").get_data() == got(place, f"{one(LARGE, 3)}/thumbnail").get_data()
    assert got(place, f"{study(SEEN)}/thumbnail").get_data() == got(place, f"{one(LARGE, 3)}/thumbnail").get_data()
    [(kind, _, data)] = parts(got(place, f"{one(LARGE)}/thumbnail", "multipart/related; type=image/jpeg"))
    assert (kind, data) == ("image/jpeg", got(place, f"{one(LARGE)}/thumbnail").get_data())
    assert picture(got(place, f"{series(MIXED)}/thumbnail"))


def test_what_is_made_ahead_is_what_is_asked_for() -> None:
    assert picture_parameters.of_thumbnail({}).as_form("jpeg").text == pictures.PREPARED.text


def test_d25_what_has_no_pixels_is_404(place: Place) -> None:
    report = f"{series(REPORT)}/instances/{REPORT}.1"
    for path in (report, series(REPORT), f"{report}/frames/1", f"{one(MIXED, 2)}"):
        for what in ("rendered", "thumbnail"):
            assert got(place, f"{path}/{what}").status_code == 404
    assert got(place, f"{series(REPORT)}/rendered", "multipart/related").status_code == 404


def test_what_cannot_be_decoded_is_406_with_the_reason(place: Place) -> None:
    for uid, reason in ((VIDEO, b"there is no decoder"), (DAMAGED, b"cannot be decoded")):
        for path in (one(uid), series(uid), f"{one(uid)}/frames/1"):
            for what in ("rendered", "thumbnail"):
                answer = got(place, f"{path}/{what}")
                assert answer.status_code == 406, path
                assert reason in answer.get_data()
                assert "ETag" not in answer.headers


def test_d26_the_frames_own_window(place: Place) -> None:
    raw = np.frombuffer(pixels(0), "<u2").reshape(SIDE, SIDE)
    for n, center in ((1, 500), (2, 2500)):
        assert np.array_equal(shades(place, f"{one(MULTI)}/frames/{n}/rendered"), np.where(raw > center - 0.5, 255, 0))


def test_d27_monochrome1_is_inverted(place: Place) -> None:
    assert np.array_equal(255 - shades(place, f"{one(INVERSE)}/rendered"), shades(place, f"{one(LARGE)}/rendered"))


def test_annotation_and_iccprofile_are_said_not_to_be_applied(place: Place) -> None:
    plain = got(place, f"{one(LARGE)}/rendered")
    assert "Warning" not in plain.headers
    for query in ("annotation=patient", "annotation=patient,technique", "iccprofile=srgb"):
        answer = got(place, f"{one(LARGE)}/rendered?{query}")
        assert answer.get_data() == plain.get_data()
        assert answer.headers["Warning"].startswith("299 strongroom ")
    assert "Warning" not in got(place, f"{one(LARGE)}/rendered?iccprofile=no&_=17").headers


def test_entity_tags_tell_every_picture_apart(place: Place) -> None:
    paths = [f"{one(LARGE)}/rendered", f"{one(LARGE, 2)}/rendered", f"{one(MULTI)}/frames/1/rendered", f"{one(MULTI)}/frames/2/rendered",
             f"{one(LARGE)}/rendered?quality=3", f"{one(LARGE)}/rendered?window=1,2,linear", f"{one(LARGE)}/rendered?window=1,2,sigmoid",
             f"{one(LARGE)}/rendered?viewport=10,10", f"{one(LARGE)}/thumbnail", f"{one(LARGE)}/thumbnail?viewport=10,10",
             f"{one(LARGE)}/rendered?accept=image/png", f"{one(LARGE)}/rendered?viewport=10,10,0,0,-10,10",
             f"{series(LARGE)}/rendered?accept=multipart/related"]
    etags = [got(place, path).headers["ETag"] for path in paths]
    assert len(set(etags)) == len(paths)
    for path, etag in zip(paths, etags, strict=True):
        answer = got(place, path, **{"If-None-Match": etag})
        assert answer.status_code == 304
        assert not answer.get_data()
        assert got(place, path, **{"If-None-Match": '"another"'}).status_code == 200
        assert answer.headers["Vary"] == "Accept"


def test_head_tells_what_get_would(place: Place) -> None:
    for path in (f"{one(LARGE)}/rendered", f"{study(SEEN)}/thumbnail"):
        head, get = place.ask("HEAD", path), got(place, path)
        assert not head.get_data()
        for name in ("Content-Type", "Content-Length", "ETag", "Content-Location"):
            assert head.headers[name] == get.headers[name]
    assert place.ask("HEAD", f"{one(DAMAGED)}/rendered").status_code == 406


def test_malformed_and_unknown_addresses(place: Place) -> None:
    for path in ("/dicomweb/studies/x/rendered", f"{study(SEEN)}/series/1..2/thumbnail", f"{series(LARGE)}/instances/-/rendered"):
        assert got(place, path).status_code == 400
    for path in (study("9.9"), series("9.9"), f"{series(LARGE)}/instances/9.9", f"{series(MULTI)}/instances/{LARGE}.1", study(HIDDEN)):
        for what in ("rendered", "thumbnail"):
            assert got(place, f"{path}/{what}").status_code == 404


def test_no_credential_no_picture(place: Place) -> None:
    answer = place.app.test_client(use_cookies=False).get(f"{one(LARGE)}/thumbnail", base_url=real.ORIGIN)
    assert answer.status_code == 401


def test_the_same_picture_out_of_the_cache_and_without_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"{one(LARGE, 2)}/rendered?quality=77"
    fresh, kept = got(place, path).get_data(), got(place, path).get_data()
    monkeypatch.setattr(picture_cache.PictureCache, "find", lambda *_: None)
    assert fresh == kept == got(place, path).get_data()


def test_colours_of_16_bits(place: Place) -> None:
    uid = f"{SEEN}.31"
    data = struct.pack("<12H", *(65535, 0, 0, 0, 65535, 0, 0, 0, 65535, 257, 257, 257))
    put(place, 1, uid, Rows=2, Columns=2, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, BitsStored=16,
        HighBit=15, PixelData=data)
    assert shades(place, f"{one(uid)}/rendered").tolist() == [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [1, 1, 1]]]
