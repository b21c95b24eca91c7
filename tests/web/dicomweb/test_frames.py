"""WADO-RS frames and bulk data: rows D01 to D17 of the DICOMweb checklist."""

from __future__ import annotations

import pydicom
import pytest
from flask.testing import FlaskClient
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless

from archive.web.dicomweb import frames
from archive.web.dicomweb.frames import numbers
from tests.web.dicomweb.test_wado import Get, get, parts  # noqa: F401 # get is a fixture
from tests.web.fakes import UNDECODABLE, FakeNode
from tests.web.samples import STUDY, instance

BASE = "https://pacs.example:8443/dicomweb"
SERIES = f"/dicomweb/studies/{STUDY}.1/series/{STUDY}.1.1/instances"
ONE, MANY, RLE = f"{SERIES}/{STUDY}.1.1.1", f"{SERIES}/{STUDY}.1.1.2", f"{SERIES}/{STUDY}.1.1.3"
FRAME_BYTES = 12 * 16 * 2
NATIVE = f"application/octet-stream; transfer-syntax={ExplicitVRLittleEndian}"


@pytest.fixture
def filled(node: FakeNode) -> FakeNode:
    for data in (instance(1), instance(2, frames=3), instance(3, syntax=RLELossless, frames=2)):
        node.add(data)
    return node


def pixels(node: FakeNode, number: int, frame: int = 1) -> bytes:
    source = pydicom.dcmread(__import__("io").BytesIO(instance(number, frames={1: 1, 2: 3, 3: 2}[number])))
    return bytes(source.PixelData[(frame - 1) * FRAME_BYTES : frame * FRAME_BYTES])


@pytest.mark.parametrize("accept", [None, "*/*", "multipart/related", "multipart/related; type=application/octet-stream",
    'multipart/related; type = "application/octet-stream"', 'multipart/related; type="*/*"'])
def test_d01_d02_d03_default(get: Get, filled: FakeNode, accept: str | None) -> None:  # noqa: F811
    for path, number in ((ONE, 1), (RLE, 3)):
        answer = get(f"{path}/frames/1", accept)
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith('multipart/related; type="application/octet-stream"; boundary=')
        [(headers, content)] = parts(answer)
        assert content == pixels(filled, number)
        assert len(content) == FRAME_BYTES
        assert headers["content-type"] == NATIVE
        assert headers["content-location"] == f"{BASE}{path.removeprefix('/dicomweb')}/frames/1"


def test_d04_d06_as_stored(get: Get, filled: FakeNode) -> None:  # noqa: F811
    for accept in (
        "multipart/related; type=application/octet-stream; transfer-syntax=*", 'multipart/related; type="*/*"; transfer-syntax=*',
        f"multipart/related; type=image/dicom-rle; transfer-syntax={RLELossless}", "multipart/related; type=image/x-dicom-rle",
    ):
        answer = get(f"{RLE}/frames/2", accept)
        assert answer.headers["Content-Type"].startswith('multipart/related; type="image/dicom-rle"')
        [(headers, content)] = parts(answer)
        assert headers["content-type"] == f"image/dicom-rle; transfer-syntax={RLELossless}"
        assert headers["content-location"].endswith("/frames/2")
        assert content == filled.retrieve.frames(*asked(filled), [2]).stored(2)


def asked(node: FakeNode) -> tuple:
    from tests.web.fakes import USER

    return USER, "clinical", f"{STUDY}.1", f"{STUDY}.1.1", f"{STUDY}.1.1.3"


def test_d05_a_type_it_is_not_stored_in(get: Get, filled: FakeNode) -> None:  # noqa: F811
    for accept in (
        "multipart/related; type=image/jp2; transfer-syntax=1.2.840.10008.1.2.4.90",
        f"image/jpeg; transfer-syntax={JPEGBaseline8Bit}",
    ):
        assert get(f"{ONE}/frames/1", accept).status_code == 406


@pytest.mark.parametrize("order", [[1, 2], [2, 1], [3, 1, 2], [2, 2]])
def test_d07_in_the_order_asked(get: Get, filled: FakeNode, order: list[int]) -> None:  # noqa: F811
    listed = ",".join(str(number) for number in order)
    for separator in (",", "%2C"):
        found = parts(get(f"{MANY}/frames/{listed.replace(',', separator)}"))
        assert [content for _, content in found] == [pixels(filled, 2, number) for number in order]
        assert [headers["content-location"].rpartition("/")[2] for headers, _ in found] == [str(number) for number in order]


def test_d08_a_single_part(get: Get, filled: FakeNode) -> None:  # noqa: F811
    answer = get(f"{RLE}/frames/1", "application/octet-stream; transfer-syntax=*")
    assert answer.headers["Content-Type"] == f"image/dicom-rle; transfer-syntax={RLELossless}"
    answer = get(f"{ONE}/frames/1", "application/octet-stream")
    assert (answer.headers["Content-Type"], answer.data) == (NATIVE, pixels(filled, 1))
    assert answer.headers["Content-Location"].endswith("/frames/1")
    assert answer.headers["Content-Length"] == str(FRAME_BYTES)


def test_d08_no_single_part_for_two_frames(get: Get, filled: FakeNode) -> None:  # noqa: F811
    assert get(f"{MANY}/frames/1,2", "application/octet-stream").status_code == 406


@pytest.mark.parametrize("listed", ["0", "-1", "1,-1", "0,1", "x", "1,", ",1", "1,,2", "1.0", "+1", " 1", "1" * 10, "%D9%A1", "1;2"])
def test_d09_malformed_lists(get: Get, filled: FakeNode, listed: str) -> None:  # noqa: F811
    assert get(f"{ONE}/frames/{listed}").status_code == 400


def test_d09_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_FRAMES", 3)
    assert numbers("1,2,3") == [1, 2, 3]
    with pytest.raises(frames.InvalidRequest):
        numbers("1,2,3,4")


def test_d10_past_the_end(get: Get, filled: FakeNode) -> None:  # noqa: F811
    for listed in ("4", "1,4", "999999999"):
        assert get(f"{MANY}/frames/{listed}").status_code == 404


def test_d15_a_type_that_is_not(get: Get, filled: FakeNode) -> None:  # noqa: F811
    for accept in ("multipart/related; type=nope", "nope", "multipart/nope", "text/plain", "application/dicom"):
        assert get(f"{ONE}/frames/1", accept).status_code == 406


def test_what_cannot_be_decoded_goes_out_as_stored_or_406_never_500(get: Get, filled: FakeNode) -> None:  # noqa: F811
    filled.kept[f"{STUDY}.1.1.3"].dataset.file_meta.TransferSyntaxUID = next(iter(UNDECODABLE))
    [(headers, _)] = parts(get(f"{RLE}/frames/1", "*/*"))
    assert headers["content-type"].startswith("video/mp4")
    answer = get(f"{RLE}/frames/1", "multipart/related; type=application/octet-stream")
    assert (answer.status_code, answer.json["detail"]) == (406, "no codec decodes it")


def test_frames_have_etags_per_representation(get: Get, filled: FakeNode) -> None:  # noqa: F811
    ways = [(f"{RLE}/frames/1", None), (f"{RLE}/frames/1", "multipart/related; transfer-syntax=*"), (f"{RLE}/frames/2", None),
            (f"{RLE}/frames/1", "application/octet-stream")]
    tags = [get(path, accept).headers["ETag"] for path, accept in ways]
    assert len(set(tags)) == len(ways)
    for (path, accept), tag in zip(ways, tags, strict=True):
        assert get(path, accept, If_None_Match=tag).status_code == 304


def test_head_of_a_frame(client: FlaskClient, filled: FakeNode) -> None:
    answer = client.head(f"{ONE}/frames/1")
    assert (answer.status_code, answer.data) == (200, b"")
    assert int(answer.headers["Content-Length"]) > FRAME_BYTES


def test_an_instance_without_pixels_has_no_frames(get: Get, node: FakeNode) -> None:  # noqa: F811
    node.add(instance(1, PixelData=None))
    assert get(f"{ONE}/frames/1").status_code == 404


@pytest.mark.parametrize(
    "accept",
    [
        None,
        "*/*",
        "multipart/related",
        'multipart/related; type="*/*"',
        "multipart/related; type=application/octet-stream",
        "multipart/related; type=application/octet-stream; transfer-syntax=*",
    ],
)
def test_d16_bulk_in_multipart(get: Get, filled: FakeNode, accept: str | None) -> None:  # noqa: F811
    answer = get(f"{ONE}/bulk/7fe00010", accept)
    [(headers, content)] = parts(answer)
    assert content == pixels(filled, 1)
    assert headers["content-type"] == "application/octet-stream"
    assert headers["content-location"] == f"{BASE}{ONE.removeprefix('/dicomweb')}/bulk/7FE00010"


def test_d17_bulk_as_a_single_part(get: Get, filled: FakeNode) -> None:  # noqa: F811
    answer = get(f"{ONE}/bulk/7FE00010", "application/octet-stream")
    assert (answer.headers["Content-Type"], answer.data) == ("application/octet-stream", pixels(filled, 1))


@pytest.mark.parametrize("accept", ["multipart/related; type=nope", "multipart/nope", "image/jpeg", "application/dicom"])
def test_d16_bulk_of_another_type(get: Get, filled: FakeNode, accept: str) -> None:  # noqa: F811
    assert get(f"{ONE}/bulk/7FE00010", accept).status_code == 406


@pytest.mark.parametrize(
    "path", ["x", "7FE0001", "7FE000100", "7FE00010/", "7FE00010/1", "7FE00010/x/7FE00010", "../../etc", "60031010/1/60031011/2"]
)
def test_malformed_bulk_paths(get: Get, filled: FakeNode, path: str) -> None:  # noqa: F811
    assert get(f"{ONE}/bulk/{path}").status_code in {400, 404}
    assert get(f"{ONE}/bulk/x").status_code == 400


def test_bulk_that_is_not_there(get: Get, filled: FakeNode) -> None:  # noqa: F811
    for path in ("00420011", "60031010/1/60031011"):
        assert get(f"{ONE}/bulk/{path}").status_code == 404
