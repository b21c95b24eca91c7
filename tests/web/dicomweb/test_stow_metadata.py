"""STOW-RS of metadata and bulk data (PS3.18 10.5.1), with rows A01, A04, A05, A07, A10, A16, A28 of the checklist in this form."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pytest
from flask.testing import FlaskClient
from pydicom.encaps import generate_frames
from pydicom.uid import ExplicitVRLittleEndian, RLELossless
from werkzeug.test import TestResponse

from archive.access.grants import Target
from archive.errors import Forbidden, Unavailable
from archive.web.body import Body
from archive.web.dicomweb import stow, stow_metadata
from tests.services import archives
from tests.web import real
from tests.web.fakes import FakeNode
from tests.web.real import SEEN, Place
from tests.web.samples import STUDY, instance

BASE = "https://pacs.example:8443/dicomweb"
JSON, XML = (f'multipart/related; type="application/dicom+{kind}"; boundary=b' for kind in ("json", "xml"))
Part = tuple[dict[str, str], bytes]


def body(*parts: Part) -> bytes:
    pieces = []
    for headers, data in parts:
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        pieces.append(f"--b\r\n{head}\r\n".encode() + data + b"\r\n")
    return b"".join(pieces) + b"--b--\r\n"


def taken_apart(data: bytes, uri: str) -> tuple[dict[str, Any], list[bytes]]:
    """The metadata of an instance, and its pixel data or frames."""
    found = pydicom.dcmread(io.BytesIO(data))
    pixels = found.PixelData
    del found.PixelData
    document = found.to_json_dict()
    document["7FE00010"] = {"vr": "OW", "BulkDataURI": uri}
    frames = [pixels] if found.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian else list(
        generate_frames(pixels, number_of_frames=int(found.get("NumberOfFrames", 1))))
    return document, frames


def metadata(*documents: Any, name: str = "application/dicom+json") -> Part:
    return {"Content-Type": name}, json.dumps(documents).encode()


def bulk(uri: str, data: bytes, name: str = "application/octet-stream") -> Part:
    return {"Content-Type": name, "Content-Location": uri}, data


def post(client: FlaskClient, *parts: Part, path: str = "/dicomweb/studies", content_type: str = JSON) -> TestResponse:
    return client.post(path, data=body(*parts), content_type=content_type)


def failures(answer: TestResponse) -> list[tuple[int, str]]:
    return [(item["00081197"]["Value"][0], item["00081155"].get("Value", [""])[0])
            for item in answer.json.get("00081198", {"Value": []})["Value"]]


def kept(node: FakeNode, number: int = 1) -> pydicom.Dataset:
    return node.kept[f"{STUDY}.1.1.{number}"].dataset


@pytest.mark.parametrize("uri", ["bulk/1", "https://elsewhere.example/x?y=1", "cid:part1", "../x", "urn:uuid:1"])
def test_a01_native_pixel_data(client: FlaskClient, node: FakeNode, uri: str) -> None:
    document, (pixels,) = taken_apart(instance(1), uri)
    answer = post(client, metadata(document), bulk(uri, pixels))
    assert (answer.status_code, failures(answer)) == (200, [])
    assert kept(node).PixelData == pixels
    assert kept(node).file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert str(kept(node).PatientName) == "CANARY^One"


def test_bulk_data_before_the_metadata_and_by_content_id(client: FlaskClient, node: FakeNode) -> None:
    document, (pixels,) = taken_apart(instance(1), "cid:a@b")
    part = {"Content-Type": "application/octet-stream", "Content-ID": "<a@b>"}, pixels
    assert post(client, part, metadata(document)).status_code == 200
    assert kept(node).PixelData == pixels


def test_a_relative_uri_meets_an_absolute_location(client: FlaskClient, node: FakeNode) -> None:
    document, (pixels,) = taken_apart(instance(1), "bulk/1")
    assert post(client, metadata(document), bulk(f"{BASE}/bulk/1", pixels)).status_code == 200


@pytest.mark.parametrize("name", ["image/dicom-rle", f"image/dicom-rle; transfer-syntax={RLELossless}",
                                  f"application/octet-stream; transfer-syntax={RLELossless}"])
def test_compressed_frames(client: FlaskClient, node: FakeNode, name: str) -> None:
    document, frames = taken_apart(instance(1, syntax=RLELossless, frames=3), "f")
    answer = post(client, metadata(document), *(bulk("f", frame, name) for frame in frames))
    assert answer.status_code == 200
    assert kept(node).file_meta.TransferSyntaxUID == RLELossless
    assert list(generate_frames(kept(node).PixelData, number_of_frames=3)) == frames


def test_a04_several_instances_one_without_its_bulk_data(client: FlaskClient, node: FakeNode) -> None:
    first, (pixels,) = taken_apart(instance(1), "a")
    second, _ = taken_apart(instance(2), "b")
    third, _ = taken_apart(instance(3), "a")  # shares what came once
    answer = post(client, metadata(first, second), metadata(third), bulk("a", pixels))
    assert (answer.status_code, failures(answer)) == (202, [(stow.CANNOT_UNDERSTAND, f"{STUDY}.1.1.2")])
    assert set(node.kept) == {f"{STUDY}.1.1.1", f"{STUDY}.1.1.3"}


def test_a05_all_of_them_broken(client: FlaskClient, node: FakeNode) -> None:
    answer = post(client, metadata({}, 7, {"00080018": {"vr": "UI", "Value": ["1.2"]}}))
    assert (answer.status_code, len(failures(answer))) == (409, 3)
    assert not node.kept


@pytest.mark.parametrize("parts", [
    [], [({"Content-Type": "application/dicom+json"}, b"{")], [({"Content-Type": "application/dicom+json"}, b"[" * 100_000)],
    [({"Content-Type": "application/octet-stream"}, b"x")], [({"Content-Type": "image/jpeg", "Content-Location": "a"}, b"x")],
    [({"Content-Type": "application/dicom+xml"}, b"<!DOCTYPE a []><a/>")], [({}, b"\xff\xfe")],
])
def test_a07_a28_malformed(client: FlaskClient, parts: list[Part]) -> None:
    assert post(client, *parts).status_code == 400


def test_a10_metadata_alone_are_no_instance(client: FlaskClient) -> None:
    document, _ = taken_apart(instance(1), "a")
    for name in ("application/dicom+json", "application/json"):
        assert client.post("/dicomweb/studies", data=json.dumps([document]), content_type=name).status_code == 415


def test_a16_another_study(client: FlaskClient) -> None:
    document, (pixels,) = taken_apart(instance(1), "a")
    answer = post(client, metadata(document), bulk("a", pixels), path="/dicomweb/studies/1.2.3")
    assert (answer.status_code, failures(answer)[0][0]) == (409, stow.WRONG_STUDY)


def test_what_is_too_large_is_refused_and_gives_its_place_back(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, node: FakeNode
) -> None:
    document, (pixels,) = taken_apart(instance(1), "a")
    with monkeypatch.context() as patched:
        patched.setattr(stow_metadata, "HELD_BYTES", 1000)
        for _ in range(stow_metadata.AT_ONCE + 1):
            assert post(client, metadata(document), bulk("a", pixels)).status_code == 413
    assert not node.kept
    assert post(client, metadata(document), bulk("a", pixels)).status_code == 200


def test_too_many_at_once_wait_and_are_told_to_come_later(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stow, "TURN_S", 0.01)
    document, (pixels,) = taken_apart(instance(1), "a")
    for _ in range(stow_metadata.AT_ONCE):
        assert stow_metadata.TURNS.acquire(blocking=False)
    try:
        assert post(client, metadata(document), bulk("a", pixels)).status_code == 503
    finally:
        for _ in range(stow_metadata.AT_ONCE):
            stow_metadata.TURNS.release()


class Slow(io.RawIOBase):
    """A body of which a part has come; the rest follows when it may."""

    def __init__(self, data: bytes, at: int) -> None:
        self.left = [data[:at], data[at:]]
        self.waiting = threading.Event()
        self.may_go_on = threading.Event()

    def read(self, size: int = -1) -> bytes:
        if len(self.left) == 1:
            self.waiting.set()
            self.may_go_on.wait(20)
        return self.left.pop(0) if self.left else b""


@contextmanager
def slow_senders(client: FlaskClient, data: bytes, answers: list[int]) -> Iterator[None]:
    """As many requests under way as are read at once, of which half of the data has come."""
    bodies = [Slow(data, len(data) // 2) for _ in range(stow_metadata.AT_ONCE)]

    def send(slow: Slow) -> None:
        answers.append(client.application.test_client(use_cookies=False).post(
            "/dicomweb/studies", content_type=JSON, environ_overrides={"CONTENT_LENGTH": str(len(data)), "wsgi.input": slow},
        ).status_code)

    threads = [threading.Thread(target=send, args=(slow,)) for slow in bodies]
    for thread in threads:
        thread.start()
    try:
        assert all(slow.waiting.wait(20) for slow in bodies)
        yield
    finally:
        for slow in bodies:
            slow.may_go_on.set()
        for thread in threads:
            thread.join(20)


def test_slow_senders_keep_nobody_waiting(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stow, "TURN_S", 0.01)
    first, second = (body(metadata(document), bulk("a", pixels)) for document, (pixels,) in (taken_apart(instance(n), "a") for n in (1, 2)))
    answers: list[int] = []
    with slow_senders(client, first, answers):
        assert client.post("/dicomweb/studies", data=second, content_type=JSON).status_code == 200
    assert answers == [200] * stow_metadata.AT_ONCE


def test_requests_share_what_they_may_hold_and_give_it_back(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stow, "TURN_S", 0.01)
    document, (pixels,) = taken_apart(instance(1), "a")
    size = 2 * len(body(metadata(document), bulk("a", pixels)))
    monkeypatch.setattr(stow_metadata, "ROOM", room := stow_metadata.Room(size))
    for _ in range(3):
        assert post(client, metadata(document), bulk("a", pixels)).status_code == 200
    room.take(size - 100, 0)
    assert post(client, metadata(document), bulk("a", pixels)).status_code == 503
    room.give_back(size - 100)
    assert post(client, ({"Content-Type": "application/dicom+json"}, b"{")).status_code == 400
    assert post(client, metadata(document), bulk("a", pixels)).status_code == 200
    room.take(size, 0)


def test_a_sender_that_trickles_gives_way_to_others(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stow, "TURN_S", 15.0)
    first, second = (body(metadata(document), bulk("a", pixels)) for document, (pixels,) in (taken_apart(instance(n), "a") for n in (1, 2)))
    monkeypatch.setattr(stow_metadata, "ROOM", stow_metadata.Room(len(first) + 2000))
    answers: list[int] = []
    with slow_senders(client, first, answers):
        assert client.post("/dicomweb/studies", data=second, content_type=JSON).status_code == 200
        assert 1 <= answers.count(408) <= stow_metadata.AT_ONCE
    assert set(answers) <= {200, 408}


class Fast(io.RawIOBase):
    """Gives much at once, and ends when it may."""

    def __init__(self, blocks: int) -> None:
        self.left = blocks
        self.may_end = threading.Event()

    def read(self, size: int = -1) -> bytes:
        self.left -= 1
        return bytes(size) if self.left >= 0 or not self.may_end.wait(20) else b""


def test_who_sends_fast_enough_is_not_ended_for_others() -> None:
    room = stow_metadata.Room(20 << 20)
    opened = Body(fast := Fast(80), content_length=None, max_bytes=1 << 30)
    held = stow_metadata.Held(room, opened, most=20 << 20, wait_s=0)
    room.enter(held)
    came: list[int] = []

    def receive() -> None:
        for block in iter(opened.read, b""):
            held.add(len(block))
        came.append(held.size)

    receiving = threading.Thread(target=receive)
    receiving.start()
    time.sleep(0.5)
    with pytest.raises(Unavailable):
        room.take(1, 1.0)
    fast.may_end.set()
    receiving.join(20)
    with pytest.raises(Unavailable):
        room.take(1, 4.0)
    assert (came, opened.over) == ([20 << 20], False)
    room.leave(held)
    room.take(20 << 20, 0)


def test_who_may_not_store_is_told_before_the_body_is_read(client: FlaskClient, node: FakeNode) -> None:
    node.store.faults["open", 0] = Forbidden("not permitted")
    answer = post(client, ({"Content-Type": "application/dicom+json"}, b"{"))
    assert answer.status_code == 403
    assert node.store.counts["open"] == 1


def test_who_waits_for_memory_goes_on_once_it_is_there() -> None:
    room = stow_metadata.Room(10)
    room.take(10, 0)
    threading.Timer(0.05, room.give_back, (10,)).start()
    room.take(10, 20)


def test_the_names_of_parts_count_too(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stow_metadata, "HELD_BYTES", 100_000)
    document, _ = taken_apart(instance(1), "a")
    assert post(client, metadata(document), *(bulk(f"{n}" + "x" * 10_000, b"") for n in range(12))).status_code == 413


def test_bulk_data_that_is_named_again_and_again_is_bounded(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, node: FakeNode
) -> None:
    """What comes once must not fill the memory by being asked for a thousand times."""
    document, (pixels,) = taken_apart(instance(1), "a")
    named = document | {f"0009{n:04X}": {"vr": "OB", "BulkDataURI": "a"} for n in range(0x1000, 0x1020)}
    monkeypatch.setattr(stow_metadata, "HELD_BYTES", len(json.dumps([named])) + 20 * len(pixels))
    answer = post(client, metadata(named), bulk("a", pixels))
    assert (answer.status_code, failures(answer)) == (409, [(stow.CANNOT_UNDERSTAND, f"{STUDY}.1.1.1")])
    assert post(client, metadata(document), bulk("a", pixels)).status_code == 200


def test_what_one_request_makes_of_its_bulk_data_is_bounded(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, node: FakeNode
) -> None:
    documents = [taken_apart(instance(n), "a")[0] for n in range(1, 6)]
    _, (pixels,) = taken_apart(instance(1), "a")
    monkeypatch.setattr(stow_metadata, "MADE_BYTES", 3 * (len(pixels) + 600))
    answer = post(client, metadata(*documents), bulk("a", pixels))
    assert answer.status_code == 202
    assert set(node.kept) == {f"{STUDY}.1.1.{n}" for n in (1, 2, 3)}


def test_data_sets_are_counted_as_parts_are(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stow, "MAX_PARTS", 10)
    assert post(client, metadata(*[{}] * 10)).status_code == 409
    assert post(client, metadata(*[{}] * 11)).status_code == 413
    assert post(client, metadata(*[{}] * 6), metadata(*[{}] * 6)).status_code == 413


def test_what_takes_far_more_memory_than_it_has_bytes_is_not_read(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stow_metadata, "MOST_BRACKETS", 1000)
    assert post(client, metadata({"00100020": {"vr": "LO", "Value": [[]] * 900}})).status_code == 409
    assert post(client, metadata({"00100020": {"vr": "LO", "Value": [[]] * 1100}})).status_code == 413
    half = metadata({"00100020": {"vr": "LO", "Value": [[]] * 600}})
    assert post(client, half, half).status_code == 413


XML_DOCUMENT = """<?xml version="1.0"?><NativeDicomModel>{}
<DicomAttribute tag="7FE00010" vr="OW"><BulkData uri="b"/></DicomAttribute></NativeDicomModel>"""


def test_xml(client: FlaskClient, node: FakeNode) -> None:
    document, (pixels,) = taken_apart(instance(1), "b")
    told = "".join(
        f'<DicomAttribute tag="{tag}" vr="{one["vr"]}">' + "".join(
            f'<PersonName number="{n}"><Alphabetic><FamilyName>{value["Alphabetic"]}</FamilyName></Alphabetic></PersonName>'
            if isinstance(value, dict) else f'<Value number="{n}">{value}</Value>' for n, value in enumerate(one.get("Value", []), 1)
        ) + "</DicomAttribute>" for tag, one in document.items() if tag != "7FE00010")
    part = {"Content-Type": "application/dicom+xml"}, XML_DOCUMENT.format(told).encode()
    assert post(client, part, bulk("b", pixels), content_type=XML).status_code == 200
    assert kept(node).PixelData == pixels
    assert kept(node).Rows == 12
    assert str(kept(node).PatientName) == "CANARY^One"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with archives.opened(real.config(tmp_path)) as node:
        found = real.place(node)
        node.accounts.add_grant(archives.the_console(node), to="mia", role="researcher", target=Target("everything"))
        yield found


def test_a_whole_archive_gives_it_back(place: Place) -> None:
    """What the archive answers as metadata, frames and bulk data is what was sent."""
    study = f"/dicomweb/studies/{SEEN}"
    asked = place.ask("GET", f"{study}/series/{SEEN}.1/instances/{SEEN}.1.1/metadata")
    document = asked.json[0]
    uri = document["7FE00010"]["BulkDataURI"]
    pixels = place.ask("GET", uri.removeprefix(real.ORIGIN), headers={"Accept": "application/octet-stream"}).data
    document["00080018"]["Value"] = [f"{SEEN}.1.77"]
    sent = place.ask("POST", "/dicomweb/studies", data=body(metadata(document), bulk(uri, pixels)), content_type=JSON)
    assert sent.status_code in (200, 202)
    copied = f"{study}/series/{SEEN}.1/instances/{SEEN}.1.77"
    again = place.ask("GET", f"{copied}/metadata").json[0]
    differing = {tag for tag in document.keys() | again.keys() if document.get(tag) != again.get(tag)}
    assert differing <= {"7FE00010", "00080005"}
    for path in ("frames/1", "rendered"):
        one, other = (place.ask("GET", f"{where}/{path}", headers={"Accept": accept}).data for where in (
            f"{study}/series/{SEEN}.1/instances/{SEEN}.1.1", copied) for accept in (
            "application/octet-stream" if path == "frames/1" else "image/png",))
        assert one == other
        assert one
    assert place.node.verify.run(archives.the_console(place.node), "full").findings == []


def test_dicomweb_client_reads_it_back(place: Place) -> None:
    document, (pixels,) = taken_apart(instance(1), "a")
    assert place.ask("POST", "/dicomweb/studies", data=body(metadata(document), bulk("a", pixels)), content_type=JSON).status_code == 200
    found = place.ask("GET", f"/dicomweb/studies/{STUDY}.1", headers={"Accept": 'multipart/related; type="application/dicom"'})
    assert found.status_code == 200
    assert pixels in found.data
