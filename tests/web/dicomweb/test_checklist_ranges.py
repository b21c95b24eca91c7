"""Checklist B20: HEAD, Range, If-Range and If-None-Match on an instance and on bulk data."""

from __future__ import annotations

import pydicom
import pytest
from flask.testing import FlaskClient

from tests.web.fakes import FakeNode
from tests.web.samples import STUDY, instance

I = f"/dicomweb/studies/{STUDY}.1/series/{STUDY}.1.1/instances/{STUDY}.1.1.1"  # noqa: E741
BULK = f"{I}/bulk/7FE00010"
SINGLE = {"Accept": "application/dicom; transfer-syntax=*"}
OCTETS = {"Accept": "application/octet-stream"}


@pytest.fixture
def whole(node: FakeNode) -> bytes:
    data = instance(1)
    node.add(data)
    return data


def both(whole: bytes) -> list[tuple[str, dict[str, str], bytes]]:
    import io

    return [(I, SINGLE, whole), (BULK, OCTETS, bytes(pydicom.dcmread(io.BytesIO(whole)).PixelData))]


@pytest.mark.parametrize(("sent", "cut"), [
    ("bytes=0-9", slice(0, 10)), ("bytes=5-", slice(5, None)), ("bytes=-7", slice(-7, None)), ("Bytes=0-999999999", slice(0, None)),
    ("bytes=-999999999", slice(0, None)), ("bytes = 3 - 3", slice(3, 4)),
])
def test_b20_one_range(client: FlaskClient, whole: bytes, sent: str, cut: slice) -> None:
    for path, accept, all_of_it in both(whole):
        answer = client.get(path, headers={**accept, "Range": sent})
        assert answer.status_code == 206
        wanted = all_of_it[cut]
        assert answer.data == wanted
        first = range(len(all_of_it))[cut][0]
        assert answer.headers["Content-Range"] == f"bytes {first}-{first + len(wanted) - 1}/{len(all_of_it)}"
        assert answer.headers["Content-Length"] == str(len(wanted))


@pytest.mark.parametrize("sent", [
    "bytes=", "bytes=-", "bytes=9-3", "bytes=0-1,4-5", "items=0-1", "nonsense", "bytes=x-y", "bytes=" + "9" * 400,
])
def test_b20_what_is_no_single_range_gives_the_whole(client: FlaskClient, whole: bytes, sent: str) -> None:
    for path, accept, all_of_it in both(whole):
        answer = client.get(path, headers={**accept, "Range": sent})
        assert (answer.status_code, answer.data) == (200, all_of_it)
        assert answer.headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize("sent", ["bytes=99999999-", "bytes=-0"])
def test_b20_outside(client: FlaskClient, whole: bytes, sent: str) -> None:
    for path, accept, all_of_it in both(whole):
        answer = client.get(path, headers={**accept, "Range": sent})
        assert answer.status_code == 416
        assert answer.headers["Content-Range"] == f"bytes */{len(all_of_it)}"


def test_b20_head_tells_what_get_would(client: FlaskClient, whole: bytes) -> None:
    for path, accept, all_of_it in both(whole):
        head, get = client.head(path, headers={**accept, "Range": "bytes=0-1"}), client.get(path, headers=accept)
        assert (head.status_code, head.data) == (200, b"")
        assert head.headers["Content-Length"] == get.headers["Content-Length"] == str(len(all_of_it))
        assert head.headers["ETag"] == get.headers["ETag"]


def test_b20_if_none_match_comes_before_range(client: FlaskClient, whole: bytes) -> None:
    for path, accept, _ in both(whole):
        etag = client.get(path, headers=accept).headers["ETag"]
        answer = client.get(path, headers={**accept, "Range": "bytes=0-1", "If-None-Match": etag})
        assert (answer.status_code, answer.data) == (304, b"")


def test_b20_if_range(client: FlaskClient, whole: bytes) -> None:
    for path, accept, all_of_it in both(whole):
        etag = client.get(path, headers=accept).headers["ETag"]
        held = client.get(path, headers={**accept, "Range": "bytes=0-1", "If-Range": etag})
        assert (held.status_code, held.data) == (206, all_of_it[:2])
        for other in (f"W/{etag}", '"another"', "Sat, 29 Oct 1994 19:43:31 GMT"):
            answer = client.get(path, headers={**accept, "Range": "bytes=0-1", "If-Range": other})
            assert (answer.status_code, answer.data) == (200, all_of_it)


def test_b20_multipart_has_no_ranges(client: FlaskClient, whole: bytes) -> None:
    answer = client.get(I, headers={"Range": "bytes=0-9"})
    assert answer.status_code == 200
    assert "Accept-Ranges" not in answer.headers
