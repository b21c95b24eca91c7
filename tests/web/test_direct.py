"""The short way answers every request as the application does: byte for byte, and asking the same of the services, once."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Sequence
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
from archive.web import permissions, probes, rate
from archive.web.app import create_app
from archive.web.permissions import Rule
from tests.web.fakes import FakeNode, config_of
from tests.web.samples import STUDY, instance

SERIES = f"/dicomweb/studies/{STUDY}.1/series/{STUDY}.1.1"
ONE, CODED, HIDDEN, GONE, IMPLICIT = (f"{SERIES}/instances/{STUDY}.1.1.{n}" for n in (1, 2, 3, 4, 5))
DICOM = "application/dicom"
ANY = f'multipart/related; type="{DICOM}"; transfer-syntax=*'
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
)
AUTHORIZATIONS = (MIA, "bearer  mia-token ", "Bearer ole-token", "Bearer wrong", "Bearer", "Basic bWlhOm1pYS10b2tlbg==", None)
OTHERS: tuple[dict[str, str], ...] = (
    {}, {"range": "bytes=0-9"}, {"if_none_match": "*"}, {"if_range": '"x"'}, {"origin": "https://viewer.example"}, {"cookie": "session=x"},
    {"sec_fetch_site": "cross-site"}, {"accept_encoding": "gzip"},
)
MAIN = (ONE, CODED, HIDDEN, f"{ONE}/thumbnail", f"{ONE}/rendered")
PATHS = (
    *MAIN, GONE, IMPLICIT, f"{HIDDEN}/thumbnail", f"{ONE}/rendered?quality=50", f"{ONE}?accept=toto", f"{ONE}/",
    f"{SERIES}/instances/{'1.' * 40}1", f"{SERIES}/instances/1..2", f"{SERIES}/instances/1.2%20", f"{ONE}/frames/1",
)


@pytest.mark.parametrize("path", PATHS)
def test_the_same_answer(app: Flask, filled: FakeNode, path: str) -> None:
    main = path in MAIN
    asked = [{"accept": accept, "authorization": MIA} for accept in (ACCEPTS if main else ACCEPTS[2:6])]
    asked += [{"accept": accept, "authorization": who} for who in AUTHORIZATIONS for accept in (ANY, "image/jpeg") if main]
    asked += [{"accept": accept, "authorization": MIA, **more} for more in OTHERS for accept in (ANY, "image/jpeg") if main]
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
    ):
        assert ask(app, filled, path, short=True, accept=accept, authorization=MIA)[0] == "200 OK"


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
    monkeypatch.setattr(rate, "_network", lambda _address: "everybody")
    app = create_app(filled)  # type: ignore[arg-type]
    buckets: rate.Buckets = app.extensions[rate.KEY]
    buckets._rate, buckets._size = 0.001, 3.0
    answers = [ask(app, filled, ONE, short=True, accept=ANY, authorization=MIA)[0] for _ in range(5)]
    assert [answer[:3] for answer in answers] == ["200", "200", "200", "429", "429"]


@pytest.mark.parametrize("origin", [None, "https://viewer.example", "https://other.example"])
def test_with_other_origins_allowed(tmp_path: Any, filled: FakeNode, origin: str | None) -> None:
    filled.config = config_of(tmp_path, http={"cors_origins": ["https://viewer.example"]})
    app = create_app(filled)  # type: ignore[arg-type]
    for path, accept in ((ONE, ANY), (f"{ONE}/thumbnail", "image/jpeg")):
        both = [ask(app, filled, path, short=short, accept=accept, authorization=MIA, origin=origin) for short in (True, False)]
        assert both[0] == both[1]
