"""Rows of the DICOMweb checklist over a whole archive: ranges, WADO-URI, XML, CORS; each test names its row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from xml.etree import ElementTree as ET

import pytest

from archive.dicom.xml import NAMESPACE
from tests.services import archives
from tests.web import real
from tests.web.real import ABSENT, HIDDEN, SEEN, Place

I = f"/dicomweb/studies/{SEEN}/series/{SEEN}.1/instances/{SEEN}.1.1"  # noqa: E741
STORED = "application/dicom; transfer-syntax=*"
XML = 'multipart/related; type="application/dicom+xml"'
OTHER_SITE = "https://viewer.example"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("checklist")
    config = archives.made(folder, archive={"public_url": real.ORIGIN}, http={"cors_origins": [OTHER_SITE]})
    with archives.opened(config) as node:
        yield real.place(node)


def uri(study: str = SEEN, **more: str) -> str:
    asked = {"requestType": "WADO", "studyUID": study, "seriesUID": f"{study}.1", "objectUID": f"{study}.1.1", **more}
    return "/dicomweb/wado?" + "&".join(f"{name}={value}" for name, value in asked.items() if value)


@pytest.mark.parametrize(("sent", "start", "stop"), [
    ("bytes=0-9", 0, 10), ("bytes=128-131", 128, 132), ("bytes=100-", 100, None), ("bytes=-7", -7, None), ("bytes=0-999999", 0, None),
])
def test_b20_a_range_of_an_instance(place: Place, sent: str, start: int, stop: int | None) -> None:
    whole = place.ask("GET", I, headers={"Accept": STORED})
    assert (whole.status_code, whole.headers["Accept-Ranges"]) == (200, "bytes")
    answer = place.ask("GET", I, headers={"Accept": STORED, "Range": sent})
    assert (answer.status_code, answer.data) == (206, whole.data[start:stop])
    first = whole.data.index(answer.data) if len(answer.data) > 20 else (start if start >= 0 else len(whole.data) + start)
    assert answer.headers["Content-Range"] == f"bytes {first}-{first + len(answer.data) - 1}/{len(whole.data)}"
    assert answer.headers["ETag"] == whole.headers["ETag"]


def test_b20_ranges_that_are_none(place: Place) -> None:
    whole = place.ask("GET", I, headers={"Accept": STORED})
    for sent in ("bytes=5-2", "bytes=-", "items=1-2", "bytes=0-1,4-5", "bytes=x-y", "bytes=" + "9" * 99 + "-"):
        answer = place.ask("GET", I, headers={"Accept": STORED, "Range": sent})
        assert (answer.status_code, answer.data) == (200, whole.data), sent
    for sent in (f"bytes={len(whole.data)}-", "bytes=-0"):
        answer = place.ask("GET", I, headers={"Accept": STORED, "Range": sent})
        assert (answer.status_code, answer.headers["Content-Range"]) == (416, f"bytes */{len(whole.data)}")


def test_b20_if_range_head_and_if_none_match(place: Place) -> None:
    whole = place.ask("GET", I, headers={"Accept": STORED})
    ranged = {"Accept": STORED, "Range": "bytes=0-3"}
    assert place.ask("GET", I, headers={**ranged, "If-Range": whole.headers["ETag"]}).status_code == 206
    assert place.ask("GET", I, headers={**ranged, "If-Range": '"other"'}).data == whole.data
    head = place.ask("HEAD", I, headers=ranged)
    assert (head.status_code, head.data, head.headers["Content-Length"]) == (200, b"", str(len(whole.data)))
    assert place.ask("GET", I, headers={**ranged, "If-None-Match": whole.headers["ETag"]}).status_code == 304


@pytest.mark.parametrize("path", ["frames/1", "bulk/7FE00010"])
def test_d17_a_range_of_a_value(place: Place, path: str) -> None:
    single = {"Accept": "application/octet-stream"}
    whole = place.ask("GET", f"{I}/{path}", headers=single).data
    answer = place.ask("GET", f"{I}/{path}", headers={**single, "Range": "bytes=4-99"})
    assert (answer.status_code, answer.data) == (206, whole[4:100])
    several = place.ask("GET", f"{I}/{path}", headers={"Range": "bytes=4-99"})
    assert several.status_code == 200
    assert several.content_type.startswith("multipart/related")


def test_g04_ranges_tell_nothing_of_what_is_hidden(place: Place) -> None:
    for more in ("", "/frames/1", "/bulk/7FE00010"):
        told = [place.ask("GET", I.replace(SEEN, uid) + more, headers={"Accept": "*/*", "Range": "bytes=99999999-"})
                for uid in (HIDDEN, ABSENT)]
        assert told[0].status_code == told[1].status_code == 404
        assert told[0].data.replace(HIDDEN.encode(), b"") == told[1].data.replace(ABSENT.encode(), b"")


def test_c04_metadata_as_xml(place: Place) -> None:
    answer = place.ask("GET", f"/dicomweb/studies/{SEEN}/metadata", headers={"Accept": XML})
    assert answer.status_code == 200
    assert answer.content_type.startswith('multipart/related; type="application/dicom+xml"')
    boundary = answer.content_type.rpartition("boundary=")[2].strip('"').encode()
    parts = [part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in answer.data.split(b"--" + boundary)[1:-1]]
    found = [ET.fromstring(part) for part in parts]
    uids = [one.findtext(f"*[@keyword='SOPInstanceUID']/{{{NAMESPACE}}}Value") for one in found]
    assert uids == [f"{SEEN}.1.1", f"{SEEN}.1.2"]
    tag = answer.headers["ETag"]
    assert tag != place.ask("GET", f"/dicomweb/studies/{SEEN}/metadata").headers["ETag"]
    assert place.ask("GET", f"/dicomweb/studies/{SEEN}/metadata", headers={"Accept": XML, "If-None-Match": tag}).status_code == 304


def test_e14_a_search_as_xml(place: Place) -> None:
    answer = place.ask("GET", "/dicomweb/studies", headers={"Accept": XML})
    assert answer.data.count(b"<NativeDicomModel") == 1
    assert f'<Value number="1">{SEEN}</Value>'.encode() in answer.data
    assert HIDDEN.encode() not in answer.data
    assert place.ask("GET", "/dicomweb/studies?PatientID=nobody", headers={"Accept": XML}).status_code == 200


def test_d28_an_instance_by_wado_uri(place: Place) -> None:
    answer = place.ask("GET", uri(contentType="application/dicom"))
    assert answer.status_code == 200
    assert answer.content_type == "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"
    stored = place.ask("GET", I, headers={"Accept": STORED}).data
    assert hashlib.sha256(answer.data).digest() == hashlib.sha256(stored).digest()
    assert place.ask("GET", uri(contentType="application/dicom").replace("/wado?", "?")).data == stored


@pytest.mark.parametrize("form", ["jpeg", "png"])
def test_d28_the_same_picture_as_rendered(place: Place, form: str) -> None:
    answer = place.ask("GET", uri(contentType=f"image/{form}", windowCenter="100", windowWidth="50"))
    assert (answer.status_code, answer.content_type) == (200, f"image/{form}")
    assert answer.data == place.ask("GET", f"{I}/rendered?window=100,50", headers={"Accept": f"image/{form}"}).data
    assert place.ask("GET", uri(), headers={"Accept": "*/*"}).content_type == "image/jpeg"
    assert place.ask("GET", uri(rows="8", contentType=f"image/{form}")).status_code == 200


@pytest.mark.parametrize("more", [
    {"requestType": ""}, {"requestType": "x"}, {"studyUID": ""}, {"seriesUID": ""}, {"objectUID": ""}, {"objectUID": "abc"},
    {"windowCenter": "1"}, {"frameNumber": "0"}, {"frameNumber": "x"}, {"imageQuality": "0"}, {"rows": "x"}, {"rows": "0"},
    {"anonymize": "yes"}, {"region": "0,0,1,1"},
])
def test_d28_missing_and_malformed(place: Place, more: dict[str, str]) -> None:
    assert place.ask("GET", uri(**more)).status_code == 400


def test_d28_mismatch_and_unseen(place: Place) -> None:
    for more in ({"contentType": "application/dicom"}, {"contentType": "image/png"}, {}):
        assert place.ask("GET", uri(seriesUID="1.2.9", **more)).status_code == 404
        assert place.ask("GET", uri(studyUID=HIDDEN, **more)).status_code == 404
        hidden, absent = (place.ask("GET", uri(uid, **more)) for uid in (HIDDEN, ABSENT))
        assert (hidden.status_code, hidden.data, list(hidden.headers)) == (404, absent.data, list(absent.headers))
    assert place.ask("GET", uri(frameNumber="9")).status_code == 404
    assert place.ask("GET", uri(contentType="text/html")).status_code == 406
    assert place.ask("GET", uri(contentType="application/dicom", transferSyntax="1.2.840.10008.1.2.4.100")).status_code == 406


def test_f07_options_and_cors(place: Place) -> None:
    asked = {"Origin": OTHER_SITE, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    answer = place.app.test_client().open("/dicomweb/studies", method="OPTIONS", headers=asked)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == OTHER_SITE
    assert {"GET", "POST"} <= set(answer.headers["Access-Control-Allow-Methods"].split(", "))
    assert "Authorization" in answer.headers["Access-Control-Allow-Headers"]
    answer = place.ask("GET", "/dicomweb/studies", headers={"Origin": OTHER_SITE})
    assert answer.headers["Access-Control-Allow-Origin"] == OTHER_SITE
    assert {"ETag", "Warning", "X-Total-Count", "Content-Range"} <= set(answer.headers["Access-Control-Expose-Headers"].split(", "))
    assert "Access-Control-Allow-Credentials" not in answer.headers
    refused = place.app.test_client().get("/dicomweb/studies", headers={"Origin": OTHER_SITE})
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, OTHER_SITE)
    for path, origin in (("/dicomweb/studies", "https://evil.example"), ("/studies", OTHER_SITE), ("/dicomweb/studies", "null")):
        assert "Access-Control-Allow-Origin" not in place.ask("GET", path, headers={"Origin": origin}).headers
    # A page of the other site cannot use the session of the browser it runs in.
    by_cookie = {"Origin": OTHER_SITE, "Sec-Fetch-Site": "cross-site"}
    assert place.ask("GET", "/dicomweb/studies", browser=True, headers=by_cookie).status_code == 403
