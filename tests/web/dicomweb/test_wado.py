"""WADO-RS instances and metadata: rows B01 to B21 and C01 to C16 of the DICOMweb checklist."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pydicom
import pytest
from flask import Flask
from flask.testing import FlaskClient
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless
from werkzeug.test import TestResponse

from archive.errors import DatabaseUnavailable, NotFound, SealBroken
from archive.services.retrieve import Found, MetadataAnswer
from archive.web import streaming
from archive.web.dicomweb import parameters, wado
from archive.web.dicomweb.multipart import Reader
from tests.web.fakes import UNDECODABLE, FakeNode
from tests.web.samples import STUDY, instance

BASE = "https://pacs.example:8443/dicomweb"
S, E = f"/dicomweb/studies/{STUDY}.1", f"/dicomweb/studies/{STUDY}.1/series/{STUDY}.1.1"
I = f"{E}/instances/{STUDY}.1.1.1"  # noqa: E741
ANY = 'multipart/related; type="application/dicom"; transfer-syntax=*'


@pytest.fixture
def filled(node: FakeNode) -> FakeNode:
    for data in (instance(1), instance(2, syntax=RLELossless), instance(1, series=2, syntax=ImplicitVRLittleEndian), instance(1, study=2)):
        node.add(data)
    return node


Get = Callable[..., TestResponse]


@pytest.fixture
def get(client: FlaskClient) -> Get:
    def ask(path: str, accept: str | None = None, **headers: str) -> TestResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return client.get(path, headers={"Accept": accept, **named})

    return ask


def parts(answer: TestResponse) -> list[tuple[dict[str, str], bytes]]:
    told = parameters.parse(answer.headers["Content-Type"])
    assert told is not None
    assert told.name == "multipart/related"
    whole = iter([answer.data])
    reader = Reader(lambda: next(whole, b""), told.parameters["boundary"])
    return [(part.headers, b"".join(bytes(chunk) for chunk in part.chunks())) for part in reader]


@pytest.mark.parametrize("accept", [None, "", "*/*", "multipart/related", 'multipart/related; type="application/dicom"',
    "multipart/related; type=application/dicom", "text/html,application/xml;q=0.9,*/*;q=0.8"])
def test_b01_b02_b03_default(get: Get, filled: FakeNode, accept: str | None) -> None:
    answer = get(S, accept)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith('multipart/related; type="application/dicom"; boundary=')
    found = parts(answer)
    assert [headers["content-type"] for headers, _ in found] == [
        f"application/dicom; transfer-syntax={uid}" for uid in (ExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian)
    ]
    assert found[0][1] == instance(1)
    assert found[2][1] == instance(1, series=2, syntax=ImplicitVRLittleEndian)
    decoded = pydicom.dcmread(io.BytesIO(found[1][1]))
    assert decoded.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert decoded.PixelData == pydicom.dcmread(io.BytesIO(instance(2))).PixelData


def test_b04_a29_as_stored(get: Get, filled: FakeNode) -> None:
    answer = get(S, ANY)
    assert [content for _, content in parts(answer)] == [kept.data for kept in filled.visible_in(f"{STUDY}.1")]
    assert int(answer.headers["Content-Length"]) == len(answer.data)
    assert filled.retrieve.decoded == []


def test_b05_the_stored_transfer_syntax_by_name(get: Get, filled: FakeNode) -> None:
    path = I.replace(".1.1.1", ".1.1.2")
    for accept in (
        f'multipart/related; type="application/dicom"; transfer-syntax={RLELossless}',
        f"application/dicom; transfer-syntax={RLELossless}",
    ):
        answer = get(path, accept)
        assert answer.status_code == 200
        content = parts(answer)[0][1] if "multipart" in accept else answer.data
        assert content == filled.kept[f"{STUDY}.1.1.2"].data


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.100", "nope", ""])
def test_b06_b07_b08_a_transfer_syntax_that_cannot_be_made(get: Get, filled: FakeNode, syntax: str) -> None:
    assert get(S, f'multipart/related; type="application/dicom"; transfer-syntax={syntax}').status_code == 406
    assert filled.retrieve.opened == []


def test_explicit_little_endian_by_name(get: Get, filled: FakeNode) -> None:
    accept = f'multipart/related; type="application/dicom"; transfer-syntax={ExplicitVRLittleEndian}'
    assert get(I, accept).status_code == 200
    answer = get(E, accept)
    assert [headers["content-type"].rpartition("=")[2] for headers, _ in parts(answer)] == [ExplicitVRLittleEndian] * 2


@pytest.mark.parametrize("accept", ["multipart/related; type=application/octet-stream", "nope", "multipart/nope", "application/nope",
    "multipart/related; type=application/nope", "image/jpeg", "text/html"])
def test_b09_b12_other_types(get: Get, filled: FakeNode, accept: str) -> None:
    for path in (S, E, I):
        answer = get(path, accept)
        assert (answer.status_code, answer.content_type) == (406, "application/problem+json")


def test_b10_a_single_part(get: Get, filled: FakeNode) -> None:
    for accept in ("application/dicom", "application/dicom; transfer-syntax=*", "application/dicom;q=0.9, image/png"):
        answer = get(I, accept)
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == f"application/dicom; transfer-syntax={ExplicitVRLittleEndian}"
        assert answer.data == instance(1)
        assert answer.headers["Content-Length"] == str(len(instance(1)))
        assert answer.headers["Content-Location"] == f"{BASE}{I.removeprefix('/dicomweb')}"
        assert answer.headers["Repr-Digest"] == f"sha-256=:{base64.b64encode(hashlib.sha256(instance(1)).digest()).decode()}:"


def test_b10_a_decoded_single_part_has_no_digest_of_the_original(get: Get, filled: FakeNode) -> None:
    answer = get(I.replace(".1.1.1", ".1.1.2"), "application/dicom")
    assert answer.headers["Content-Type"] == f"application/dicom; transfer-syntax={ExplicitVRLittleEndian}"
    assert "Repr-Digest" not in answer.headers
    assert pydicom.dcmread(io.BytesIO(answer.data)).file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


def test_b11_no_single_part_for_many(get: Get, filled: FakeNode) -> None:
    for path in (S, E):
        assert get(path, "application/dicom").status_code == 406
        assert get(path, "application/dicom; transfer-syntax=*").status_code == 406


def test_b13_one_that_cannot_be_decoded_refuses_all_and_star_gives_all(get: Get, filled: FakeNode) -> None:
    video = instance(3)
    kept = filled.add(video)
    kept.dataset.file_meta.TransferSyntaxUID = next(iter(UNDECODABLE))
    answer = get(S)
    assert answer.status_code == 406
    assert "transfer-syntax=*" in answer.json["remedy"]
    assert filled.retrieve.opened == []
    assert len(parts(get(S, ANY))) == 4
    both = f'multipart/related; type="application/dicom"; transfer-syntax={ExplicitVRLittleEndian}, {ANY}'
    assert len(parts(get(S, both))) == 4


def test_b14_g04_absent_and_unseen_are_one_answer(client: FlaskClient, filled: FakeNode) -> None:
    filled.hidden.add(f"{STUDY}.2.1.1")
    hidden = f"{STUDY}.2"
    answers: dict[str, set[tuple[str, str, bytes]]] = {}
    for uid in (hidden, "1.2.3.4.5"):
        for tail in ("", "/metadata", f"/series/{hidden}.1", f"/series/{hidden}.1/metadata", f"/series/{hidden}.1/instances/{hidden}.1.1",
                     f"/series/{hidden}.1/instances/{hidden}.1.1/metadata", f"/series/{hidden}.1/instances/{hidden}.1.1/frames/1",
                     f"/series/{hidden}.1/instances/{hidden}.1.1/bulk/7FE00010"):
            answer = client.get(f"/dicomweb/studies/{uid}{tail}")
            answers.setdefault(tail, set()).add((answer.status, str(answer.headers), answer.data))
    assert all(len(found) == 1 for found in answers.values())
    assert {found.pop()[0] for found in answers.values()} == {"404 NOT FOUND"}


@pytest.mark.parametrize(
    "path", [S + ".9", S + "/series/1.2", E + "/instances/1.2", E.replace(".1/series", ".2/series"), I.replace(".1/series", ".2/series")]
)
def test_b14_unknown_or_under_the_wrong_parent(get: Get, filled: FakeNode, path: str) -> None:
    for tail in ("", "/metadata"):
        assert get(path + tail).status_code == 404


@pytest.mark.parametrize("uid", ["x", "1..2", "1.", ".1", "1" * 65, "1.2;3", "1.2 3", "%00", "1,2"])
def test_b15_malformed_uids(get: Get, filled: FakeNode, uid: str) -> None:
    for path in (f"/dicomweb/studies/{uid}", f"{S}/series/{uid}", f"{E}/instances/{uid}"):
        for tail in ("", "/metadata"):
            answer = get(path + tail)
            assert answer.status_code == 400
            assert uid not in answer.text or uid == "x"


def test_b17_every_part_says_what_it_is(get: Get, filled: FakeNode) -> None:
    for headers, content in parts(get(S, ANY)):
        sop = pydicom.dcmread(io.BytesIO(content)).SOPInstanceUID
        assert headers["content-location"].endswith(f"/instances/{sop}")
        assert headers["content-location"].startswith(BASE)
        assert int(headers["content-length"]) == len(content)
        assert headers["repr-digest"] == f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


def test_b18_the_best_supported(get: Get, filled: FakeNode) -> None:
    answer = get(I, f"image/png, application/dicom;q=0.1, {ANY};q=0.5")
    assert answer.headers["Content-Type"].startswith("multipart/related")
    assert get(I, f"application/dicom, {ANY};q=0.5").headers["Content-Type"].startswith("application/dicom")


def test_t16_b19_what_is_revoked_meanwhile_cuts_the_answer_short(get: Get, filled: FakeNode) -> None:
    filled.retrieve.fail_open[f"{STUDY}.1.2.1"] = NotFound("gone")
    answer = get(S, ANY)
    assert answer.status_code == 200
    assert int(answer.headers["Content-Length"]) > len(answer.data)
    assert not answer.data.endswith(b"--\r\n")
    assert f"{STUDY}.1.2.1/".encode() not in answer.data


def test_an_error_before_the_first_byte_is_an_answer(get: Get, filled: FakeNode) -> None:
    filled.retrieve.fail_open[f"{STUDY}.1.1.1"] = NotFound("gone")
    assert get(S, ANY).status_code == 404
    assert get(I, "application/dicom").status_code == 404
    filled.retrieve.fail_open[f"{STUDY}.1.1.1"] = SealBroken("no", verdict="V05")
    answer = get(S, ANY)
    assert answer.status_code == 500
    assert b"CANARY" not in answer.data


def test_damage_in_the_middle_cuts_a_long_answer_short(
    get: Get, filled: FakeNode, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "AT_ONCE_BYTES", 512)
    filled.damage = SealBroken("CANARY")
    filled.retrieve.chunk_bytes = 256
    filled.retrieve.fail_after = 2
    answer = get(I, "application/dicom")
    assert answer.status_code == 200
    assert answer.data == instance(1)[:512]
    assert filled.retrieve.closed == [f"{STUDY}.1.1.1"]
    assert "CANARY" not in caplog.text
    assert [record.error for record in caplog.records if record.getMessage() == "answer cut short"] == ["seal-broken"]


@pytest.mark.parametrize("accept", ["application/dicom", ANY])
def test_damage_in_the_middle_of_a_short_instance_is_an_error_answer(get: Get, filled: FakeNode, accept: str) -> None:
    filled.damage = SealBroken("CANARY")
    filled.retrieve.chunk_bytes = 256
    filled.retrieve.fail_after = 2
    answer = get(I, accept)
    assert answer.status_code == 500
    assert b"CANARY" not in answer.data
    assert instance(1)[128:256] not in answer.data
    assert filled.retrieve.closed == [f"{STUDY}.1.1.1"]


def test_b20_head_reads_nothing(client: FlaskClient, filled: FakeNode) -> None:
    for path, accept in ((S, ANY), (I, "application/dicom"), (I, ANY)):
        answer = client.head(path, headers={"Accept": accept})
        assert (answer.status_code, answer.data) == (200, b"")
        assert int(answer.headers["Content-Length"]) > 1000
        assert answer.headers["ETag"]
    assert "Content-Length" not in client.head(S).headers
    assert filled.retrieve.opened == []


def test_b20_etag(get: Get, filled: FakeNode) -> None:
    for path, accept in ((S, ANY), (S, None), (E, None), (I, ANY), (I, "application/dicom")):
        tag = get(path, accept).headers["ETag"]
        assert tag.startswith('"')
        filled.retrieve.opened.clear()
        filled.retrieve.decoded.clear()
        for sent in (tag, f'"x", {tag}', f"W/{tag}", "*"):
            answer = get(path, accept, If_None_Match=sent)
            assert (answer.status_code, answer.data, answer.headers["ETag"]) == (304, b"", tag)
        assert filled.retrieve.opened == filled.retrieve.decoded == []
        assert get(path, accept, If_None_Match='"x"').status_code == 200


def test_b20_each_representation_has_its_own_etag(get: Get, filled: FakeNode) -> None:
    ways = [(S, ANY), (S, None), (E, ANY), (I, ANY), (I, "application/dicom")]
    assert len({get(path, accept).headers["ETag"] for path, accept in ways}) == len(ways)


def test_if_none_match_is_asked_after_the_right_to_it(client: FlaskClient, filled: FakeNode) -> None:
    tag = client.get(I).headers["ETag"]
    headers = {"If-None-Match": tag, "Authorization": "Bearer ole-token"}
    assert client.get(I, headers=headers).status_code == 404
    assert client.get(I + "/metadata", headers={**headers, "If-None-Match": "*"}).status_code == 404


def test_b21_memory_is_flat_and_the_first_byte_early(app: Flask, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    count, size = 500, 512 << 10  # 250 MiB
    one = node.add(instance(1))
    block = bytes(64 << 10)
    opened: list[int] = []

    def instances(*_: object) -> list[Found]:
        meta = "1.2.840.10008.1.2.1"
        return [
            Found(*one.uids[:2], f"1.2.{n}", "1.2", meta, size, 0, b"d" * 32, f'"{n}"', 1, None, "clinical", None) for n in range(count)
        ]

    def open_one(_: object, found: Found, *__: object, **___: object) -> Iterator[memoryview]:
        opened.append(1)
        for _at in range(size // len(block)):
            yield memoryview(block)

    monkeypatch.setattr(node.retrieve, "instances", instances)
    monkeypatch.setattr(node.retrieve, "open", open_one)
    environ: dict[str, Any] = {"Authorization": "Bearer mia-token", "Accept": ANY}
    tracemalloc.start()
    try:
        answer = app.test_client().get("/dicomweb/studies/1.2.3", headers=environ, buffered=False)
        stream = iter(answer.response)
        next(stream)
        assert len(opened) <= 1
        seen = sum(len(chunk) for chunk in stream)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen > count * size
    assert len(opened) == count
    assert peak < 6 << 20


def test_a_client_that_goes_away_closes_what_was_open(app: Flask, filled: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "AT_ONCE_BYTES", 512)
    filled.retrieve.chunk_bytes = 256
    answer = app.test_client().get(I, headers={"Authorization": "Bearer mia-token", "Accept": "application/dicom"}, buffered=False)
    next(iter(answer.response))
    assert filled.retrieve.closed == []
    answer.close()
    assert filled.retrieve.closed == [f"{STUDY}.1.1.1"]


# Metadata ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", [None, "application/json", "application/dicom+json", "application/dicom+json, application/json",
    "toto, application/dicom+json", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html, *; q=.2, */*; q=.2",
    "application/dicom+json, multipart/related; type=application/octet-stream"])
def test_c01_c02_json(get: Get, filled: FakeNode, accept: str | None) -> None:
    for path, count in ((S, 3), (E, 2), (I, 1)):
        answer = get(path + "/metadata", accept)
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/dicom+json")
        assert len(json.loads(answer.data)) == count


@pytest.mark.parametrize(
    "accept",
    [
        "application/nope",
        "toto, tata",
        "multipart/related",
        'multipart/related; type="application/dicom+xml"; transfer-syntax=nope',
        "application/dicom",
    ],
)
def test_c03_c04_c05_other_types(get: Get, filled: FakeNode, accept: str) -> None:
    assert get(S + "/metadata", accept).status_code == 406


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        (None, False),
        ("", False),
        ("gzip", True),
        ("gzip, deflate, br, zstd", True),
        ("deflate", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("gzip;q=0.5", True),
        ("*", True),
        ("*;q=0", False),
        ("*;q=0, gzip", True),
        ("identity", False),
        ("GZIP", True),
        ("x-gzip", True),
    ],
)
def test_2a13_gzip_goes_out_as_it_is_kept(get: Get, filled: FakeNode, coding: str | None, packed: bool) -> None:
    answer = get(S + "/metadata", None, **({"Accept_Encoding": coding} if coding is not None else {}))
    assert answer.headers.get("Content-Encoding") == ("gzip" if packed else None)
    body = gzip.decompress(answer.data) if packed else answer.data
    assert len(json.loads(body)) == 3
    assert "Accept-Encoding" in answer.headers["Vary"]


def test_inflating_takes_several_members_and_any_split() -> None:
    data = gzip.compress(b"[1," * 1000) + gzip.compress(b"2]") + gzip.compress(b"")
    for size in (1, 7, 10_000):
        assert b"".join(wado.inflated(iter([data[at : at + size] for at in range(0, len(data), size)]))) == b"[1," * 1000 + b"2]"


def test_inflating_is_bounded() -> None:
    bomb = gzip.compress(bytes(64 << 20))
    assert max(len(chunk) for chunk in wado.inflated(iter([bomb]))) <= 1 << 20


def test_c15_etag(get: Get, filled: FakeNode) -> None:
    for path in (S, E, I):
        tag = get(path + "/metadata").headers["ETag"]
        assert get(path + "/metadata", Accept_Encoding="gzip").headers["ETag"] == tag
        answer = get(path + "/metadata", If_None_Match=tag)
        assert (answer.status_code, answer.data) == (304, b"")
        assert "Content-Encoding" not in answer.headers


def test_c16_a_new_instance_changes_it(get: Get, filled: FakeNode) -> None:
    tag = get(S + "/metadata").headers["ETag"]
    filled.add(instance(9))
    answer = get(S + "/metadata", If_None_Match=tag)
    assert answer.status_code == 200
    assert answer.headers["ETag"] != tag


def test_metadata_that_cannot_be_made_is_an_error_answer(get: Get, filled: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[bytes]:
        raise DatabaseUnavailable("x")
        yield b""

    monkeypatch.setattr(filled.retrieve, "metadata", lambda *_: MetadataAnswer('"x"', broken))
    for coding in ("gzip", "identity"):
        assert get(S + "/metadata", Accept_Encoding=coding).status_code == 503


def test_head_of_metadata(client: FlaskClient, filled: FakeNode) -> None:
    answer = client.head(S + "/metadata")
    assert (answer.status_code, answer.data) == (200, b"")
    assert answer.headers["ETag"]
