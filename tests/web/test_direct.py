"""The short way answers every request as the application does: byte for byte, and asking the same of the services, once."""

from __future__ import annotations

import itertools
import logging
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from flask import Flask
from pydicom.uid import ImplicitVRLittleEndian, RLELossless
from werkzeug.test import EnvironBuilder, run_wsgi_app

from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.dicom.recipe import Recipe
from archive.errors import ArchiveError, KeyShredded, NotAcceptable, NotFound, SealBroken, Unavailable
from archive.services.retrieve import FramesAnswer, MetadataAnswer
from archive.web import permissions, probes, rate, streaming
from archive.web.app import create_app
from archive.web.permissions import Rule
from tests.web.fakes import FakeNode, config_of
from tests.web.samples import STUDY, instance

SERIES = f"/dicomweb/studies/{STUDY}.1/series/{STUDY}.1.1"
ONE, CODED, HIDDEN, GONE, IMPLICIT = (f"{SERIES}/instances/{STUDY}.1.1.{n}" for n in (1, 2, 3, 4, 5))
DICOM = "application/dicom"
ANY = f'multipart/related; type="{DICOM}"; transfer-syntax=*'
OCTETS = "application/octet-stream"
JSON = "application/dicom+json"
MIA = "Bearer mia-token"
RANDOM = re.compile(rb"[0-9a-f]{40}|(?<=request_id\":\")[0-9a-f]{16}")


@dataclass
class _Row:
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str


@dataclass
class _Picture:
    row: _Row
    frame: int
    etag: str
    media_type: str
    fault: ArchiveError | None = None

    def data(self) -> bytes:
        if self.fault is not None:
            raise self.fault
        return b"a picture"


@dataclass
class _Pictures:
    asked: list[Any] = field(default_factory=list)
    fault: ArchiveError | None = None
    broken: ArchiveError | None = None

    def of_instance(
        self, subject: Subject, datastore: str, study: str, series: str, sop: str, frames: Sequence[int], recipe: Recipe, *,
        what: str = "rendered",
    ) -> list[_Picture]:
        self.asked.append((subject.name, datastore, study, series, sop, tuple(frames), recipe, what))
        if self.fault is not None:
            raise self.fault
        return [_Picture(_Row(study, series, sop), frame, f'"{what}"', f"image/{recipe.form}", self.broken) for frame in frames]


@pytest.fixture
def filled(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    for data in (instance(1), instance(2, syntax=RLELossless), instance(3), instance(5, syntax=ImplicitVRLittleEndian)):
        node.add(data)
    node.hidden.add(f"{STUDY}.1.1.3")
    node.pictures = _Pictures()  # type: ignore[attr-defined]
    monkeypatch.setattr(node.retrieve, "transcoded", lambda _subject, _found, syntax: iter([syntax.encode()]))  # pydicom's draws UIDs
    return node


Seen = tuple[str, list[tuple[str, str]], bytes, list[Any]]


def ask(app: Flask, node: FakeNode, path: str, *, short: bool, method: str = "GET", body: bytes = b"", **named: str | None) -> Seen:
    """Return status, headers and body without what is drawn by lot, and what the services were asked."""
    names = {name.replace("_", "-").title(): value for name, value in named.items() if value is not None}
    environ = EnvironBuilder(path=path.partition("?")[0], query_string=path.partition("?")[2], method=method, headers=names, data=body)
    node.signin.asked.clear()
    node.retrieve.opened.clear()
    pictures: _Pictures = node.pictures  # type: ignore[attr-defined]
    pictures.asked.clear()
    made, status, fields = run_wsgi_app(app if short else app.wsgi_app, environ.get_environ(), buffered=True)
    held = [(name, RANDOM.sub(b"", value.encode()).decode()) for name, value in fields if name != "X-Request-Id"]
    calls = [*node.signin.asked, *node.retrieve.opened, *pictures.asked]
    return status, sorted(held), RANDOM.sub(b"", b"".join(made)), calls


ACCEPTS = (
    None, "", "*/*", DICOM, ANY, f"{DICOM}; transfer-syntax=*", f'multipart/related; type="{DICOM}"', "image/jpeg", "image/png", "image/*",
    'multipart/related; type="image/jpeg"', "application/json", "toto", f"{ANY};q=0.5, {DICOM}", f"{DICOM};q=0, */*", "x" * 600,
    f'multipart/related; type="{DICOM}"; transfer-syntax={RLELossless}', f"{DICOM}; transfer-syntax=1.2.840.10008.1.2.1",
    OCTETS, f'multipart/related; type="{OCTETS}"', f'multipart/related; type="{OCTETS}"; transfer-syntax=*', "image/dicom-rle",
    f'multipart/related; type="{OCTETS}"; transfer-syntax={RLELossless}, */*;q=0.1', "image/jls, application/octet-stream;q=0.5",
    JSON, f"{JSON};q=0, */*", 'multipart/related; type="application/dicom+xml"',
)
AUTHORIZATIONS = (MIA, "bearer  mia-token ", "Bearer ole-token", "Bearer wrong", "Bearer", "Basic bWlhOm1pYS10b2tlbg==", None)
OTHERS: tuple[dict[str, str], ...] = (
    {}, {"range": "bytes=0-9"}, {"if_none_match": "*"}, {"if_range": '"x"'}, {"origin": "https://viewer.example"}, {"cookie": "session=x"},
    {"sec_fetch_site": "cross-site"}, {"accept_encoding": "gzip"}, {"accept_encoding": "br, gzip;q=0"},
    {"accept_encoding": "gzip, " + "x" * 600},
)
METADATA = f"{SERIES}/metadata"
MAIN = (ONE, CODED, HIDDEN, f"{ONE}/thumbnail", f"{ONE}/rendered", f"{ONE}/frames/1", METADATA)
PATHS = (
    *MAIN, GONE, IMPLICIT, f"{HIDDEN}/thumbnail", f"{ONE}/rendered?quality=50", f"{ONE}?accept=toto", f"{ONE}/",
    f"{SERIES}/instances/{'1.' * 40}1", f"{SERIES}/instances/1..2", f"{SERIES}/instances/1.2%20", f"{CODED}/frames/1",
    f"{HIDDEN}/frames/1", f"{ONE}/frames/2", f"{ONE}/frames/0", f"{ONE}/frames/01", f"{ONE}/frames/1,1", f"{ONE}/frames/1234567890",
    f"{ONE}/frames", f"{ONE}/metadata", f"{METADATA}/", f"/dicomweb/studies/{STUDY}.1/metadata",
    f"/dicomweb/studies/{STUDY}.1/series/1.2/metadata",
)


@pytest.mark.parametrize("path", PATHS)
def test_the_same_answer(app: Flask, filled: FakeNode, path: str) -> None:
    main = path in MAIN
    asked = [{"accept": accept, "authorization": MIA} for accept in (ACCEPTS if main else ACCEPTS[2:6])]
    asked += [{"accept": accept, "authorization": who} for who in AUTHORIZATIONS for accept in (ANY, "image/jpeg") if main]
    asked += [{"accept": accept, "authorization": MIA, **more} for more in OTHERS for accept in (ANY, "image/jpeg") if main]
    if path == METADATA:
        asked += [{**one, "accept_encoding": "gzip", "accept": "*/*" if one["accept"] == ANY else one["accept"]} for one in asked]
    for one in asked:
        assert ask(app, filled, path, short=True, **one) == ask(app, filled, path, short=False, **one), one


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "POST", "DELETE"])
def test_other_methods_and_bodies(app: Flask, filled: FakeNode, method: str) -> None:
    for body in (b"", b"x"):
        both = (ask(app, filled, ONE, short=short, method=method, body=body, accept=ANY, authorization=MIA) for short in (True, False))
        assert next(both) == next(both)
    both = (ask(app, filled, ONE, short=short, body=b"a=b", accept=ANY, authorization=MIA) for short in (True, False))
    assert next(both) == next(both)


@pytest.mark.parametrize("fault", [
    NotFound("x"), KeyShredded("x"), SealBroken("x", verdict="V07"), Unavailable("x", remedy="y"), NotAcceptable("x"),
    ZeroDivisionError("x"),
])
def test_the_same_faults(app: Flask, filled: FakeNode, fault: Exception) -> None:
    pictures: _Pictures = filled.pictures  # type: ignore[attr-defined]
    filled.retrieve.fail_open[f"{STUDY}.1.1.1"] = fault  # type: ignore[assignment]
    for path, accept in ((ONE, ANY), (ONE, DICOM)):
        both = [ask(app, filled, path, short=short, accept=accept, authorization=MIA) for short in (True, False)]
        assert both[0] == both[1]
        assert not both[0][0].startswith("200")
    for pictures.fault, pictures.broken in ((fault, None), (None, fault)):  # type: ignore[assignment]
        for tail in ("thumbnail", "rendered"):
            both = [ask(app, filled, f"{ONE}/{tail}", short=short, accept="image/jpeg", authorization=MIA) for short in (True, False)]
            assert both[0] == both[1]
            assert not both[0][0].startswith("200")


@pytest.mark.parametrize("fault", [NotFound("x"), SealBroken("x", verdict="V07"), Unavailable("x", remedy="y"), ZeroDivisionError("x")])
def test_the_same_faults_of_frames_and_metadata(
    app: Flask, filled: FakeNode, fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: Any) -> Any:
        raise fault

    def broken(*_arguments: Any) -> Iterator[bytes]:
        yield b"x"
        raise fault

    def both(path: str, accept: str) -> None:
        asked = {"accept": accept, "accept_encoding": "gzip", "authorization": MIA}
        seen = [ask(app, filled, path, short=short, **asked) for short in (True, False)]
        assert seen[0] == seen[1]
        assert not seen[0][0].startswith("200")

    found = filled.retrieve.instances(filled.signin.bearer("mia-token", address=""), "clinical", f"{STUDY}.1")[0]
    for answer in (refuse, lambda *_: FramesAnswer(found, found.transfer_syntax_uid, refuse, refuse, refuse)):
        monkeypatch.setattr(filled.retrieve, "frames", answer)
        for accept in (OCTETS, f'multipart/related; type="{OCTETS}"; transfer-syntax=*'):
            both(f"{ONE}/frames/1", accept)
    for told in (refuse, lambda *_: MetadataAnswer('"x"', broken)):
        monkeypatch.setattr(filled.retrieve, "metadata", told)
        both(METADATA, JSON)


def test_a_frame_that_is_decoded_where_it_is_not_taken_as_stored(app: Flask, filled: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first choice cannot be made: the application goes on with what was found."""
    found = filled.retrieve.instances(filled.signin.bearer("mia-token", address=""), "clinical", f"{STUDY}.1")[1]
    times = []

    def refuse(*_arguments: Any) -> bytes:
        raise NotAcceptable("x")

    def answer(*_arguments: Any) -> FramesAnswer:
        times.append(1)
        return FramesAnswer(found, found.transfer_syntax_uid, lambda _: b"coded", refuse, refuse)

    monkeypatch.setattr(filled.retrieve, "frames", answer)
    accept = f"{OCTETS}, image/dicom-rle;q=0.5"
    both = [ask(app, filled, f"{CODED}/frames/1", short=short, accept=accept, authorization=MIA) for short in (True, False)]
    assert both[0] == both[1]
    assert (both[0][0], both[0][2], len(times)) == ("200 OK", b"coded", 2)


def test_long_metadata_goes_out_in_pieces(app: Flask, filled: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    piece = random.Random(1).randbytes(200_000)
    asked = {"accept": JSON, "accept_encoding": "gzip", "authorization": MIA}
    for count, stated in ((5, True), (6, False)):
        assert (count * len(piece) <= streaming.AT_ONCE_BYTES) == stated
        monkeypatch.setattr(filled.retrieve, "metadata", lambda *_, count=count: MetadataAnswer('"x"', lambda: iter([piece] * count)))
        both = [ask(app, filled, METADATA, short=short, **asked) for short in (True, False)]
        assert both[0] == both[1]
        assert both[0][2] == piece * count
        assert (("Content-Length", str(len(piece) * count)) in both[0][1]) == stated


def test_damage_on_the_way(app: Flask, filled: FakeNode) -> None:
    filled.retrieve.chunk_bytes, filled.retrieve.fail_after, filled.damage = 256, 2, SealBroken("x", verdict="V07")
    both = [ask(app, filled, ONE, short=short, accept=ANY, authorization=MIA) for short in (True, False)]
    assert both[0] == both[1]
    assert both[0][0].startswith("500")


def test_plain_requests_go_the_short_way(app: Flask, filled: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this the tests above would compare the application with itself."""
    monkeypatch.setattr(app, "wsgi_app", None)
    monkeypatch.setattr(app, "request_context", None)
    for path, accept in itertools.chain(
        itertools.product([ONE], ["", "*/*", DICOM, ANY]), [(CODED, ANY)],
        itertools.product([f"{ONE}/thumbnail", f"{ONE}/rendered"], ["", "image/jpeg", "image/png"]),
        itertools.product([f"{ONE}/frames/1"], ["", OCTETS, f'multipart/related; type="{OCTETS}"; transfer-syntax=*']),
        itertools.product([METADATA], ["", JSON, "application/json"]),
    ):
        assert ask(app, filled, path, short=True, accept=accept, accept_encoding="gzip", authorization=MIA)[0] == "200 OK"


def test_they_are_counted_and_logged_alike(app: Flask, filled: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
    told = []
    for short in (True, False):
        before = probes._requests["dicomweb.instance_thumbnail", 200]
        caplog.clear()
        with caplog.at_level(logging.INFO, "archive.web.access"):
            ask(app, filled, f"{ONE}/thumbnail", short=short, accept="image/png", authorization=MIA)
        assert probes._requests["dicomweb.instance_thumbnail", 200] == before + 1
        (record,) = caplog.records
        told.append((record.msg, record.levelno, {name: vars(record)[name] for name in ("method", "route", "status")}))
        assert re.fullmatch("[0-9a-f]{16}", vars(record)["request_id"])
        assert vars(record)["ms"] >= 0
    assert told[0] == told[1]


@pytest.mark.parametrize("rule", [None, Rule(share=True), Rule(public=True)])
def test_the_table_of_rules_decides_there_too(
    app: Flask, filled: FakeNode, rule: Rule | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {**permissions.ENDPOINTS, "dicomweb.retrieve_instance": rule}
    monkeypatch.setattr(permissions, "ENDPOINTS", {name: row for name, row in rows.items() if row is not None})
    both = [ask(app, filled, ONE, short=short, accept=ANY, authorization=MIA) for short in (True, False)]
    assert both[0] == both[1]
    assert not both[0][0].startswith("200")
    assert permissions.rule_of("dicomweb.instance_thumbnail") == Rule(Permission.PIXELS)


def test_it_counts_in_the_same_bucket(filled: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "network", lambda _address: "everybody")
    app = create_app(filled)  # type: ignore[arg-type]
    buckets: rate.Buckets = app.extensions[rate.KEY]
    buckets._rate, buckets._size = 0.001, 3.0
    answers = [ask(app, filled, ONE, short=True, accept=ANY, authorization=MIA)[0] for _ in range(5)]
    assert [answer[:3] for answer in answers] == ["200", "200", "200", "429", "429"]


@pytest.mark.parametrize("origin", [None, "https://viewer.example", "https://other.example"])
def test_with_other_origins_allowed(tmp_path: Any, filled: FakeNode, origin: str | None) -> None:
    filled.config = config_of(tmp_path, http={"cors_origins": ["https://viewer.example"]})
    app = create_app(filled)  # type: ignore[arg-type]
    for path, accept in ((ONE, ANY), (f"{ONE}/thumbnail", "image/jpeg"), (f"{ONE}/frames/1", OCTETS), (METADATA, JSON)):
        asked = {"accept": accept, "accept_encoding": "gzip", "authorization": MIA, "origin": origin}
        both = [ask(app, filled, path, short=short, **asked) for short in (True, False)]
        assert both[0] == both[1]
