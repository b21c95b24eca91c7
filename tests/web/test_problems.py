"""Errors as answers: a line for each class, RFC 9457 bodies, and nothing told that may not be."""

from __future__ import annotations

import inspect
import json
import logging

import pytest
from flask import Flask

from archive import errors
from archive.web import problems
from archive.web.permissions import ENDPOINTS, PUBLIC
from tests.web.fakes import FakeNode

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.ArchiveError)]
SECRET = "CANARY 1.2.3.4.5"


def test_every_class_of_error_has_a_line() -> None:
    assert set(problems.TABLE) == set(CLASSES)


def test_the_branches_say_whose_fault_it_is() -> None:
    for kind, line in problems.TABLE.items():
        if kind is errors.AwaitsApproval:
            assert line.status == 202, "taken, and not done yet"
        elif issubclass(kind, (errors.Rejected, errors.Denied, errors.NotFound)):
            assert 400 <= line.status < 500
        elif issubclass(kind, errors.Unavailable):
            assert line.status in {503, 507}
            assert kind is errors.OutOfSpace or line.retry_after_s > 0


def raising(app: Flask, monkeypatch: pytest.MonkeyPatch, error: BaseException):
    """Return the answer of a route that raises `error`."""
    def view() -> None:
        raise error

    monkeypatch.setitem(ENDPOINTS, "raises", PUBLIC)
    app.add_url_rule("/raises", "raises", view)
    return app.test_client().get("/raises")


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_each_class_is_answered_by_its_line(app: Flask, monkeypatch: pytest.MonkeyPatch, kind: type[errors.ArchiveError]) -> None:
    answer = raising(app, monkeypatch, kind("a message", remedy="do this"))
    line = problems.TABLE[kind]
    assert answer.status_code == line.status
    assert answer.content_type == "application/problem+json"
    assert answer.json["status"] == line.status
    assert answer.json["title"] == line.status.phrase
    if line.detail:
        assert answer.json["detail"] == line.detail
    assert answer.headers.get("Retry-After") == (str(line.retry_after_s) if line.retry_after_s else None)
    assert ("request_id" in answer.json) == (line.status >= 500)


def test_a_class_without_a_line_takes_its_parents(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    class Torn(errors.SealBroken):
        code = "torn"

    assert raising(app, monkeypatch, Torn(SECRET)).status_code == 500


def test_absent_unseen_and_shredded_are_one_answer(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = []
    for error in (errors.NotFound("one message"), errors.NotFound("another", remedy="x"), errors.KeyShredded(SECRET, verdict="V09")):
        with monkeypatch.context() as patched:
            fresh = Flask("x")
            problems.register(fresh)
            patched.setitem(ENDPOINTS, "raises", PUBLIC)
            answers.append(raising(fresh, patched, error))
    assert len({(answer.status, str(answer.headers), answer.data) for answer in answers}) == 1


def test_integrity_faults_tell_the_caller_nothing(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = raising(app, monkeypatch, errors.SealBroken(SECRET, remedy=SECRET, verdict="V05"))
    assert SECRET not in answer.text
    assert answer.status_code == 500


def test_a_fault_of_the_program_gives_an_identifier_and_no_text(
    app: Flask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "archive.web"):
        answer = raising(app, monkeypatch, ValueError(SECRET))
    assert answer.status_code == 500
    assert set(answer.json) == {"type", "title", "status", "detail", "code", "request_id"}
    assert "CANARY" not in answer.text
    record = caplog.records[-1]
    assert record.request_id == answer.json["request_id"] == answer.headers["X-Request-Id"]
    assert "CANARY" not in record.getMessage()


def test_404_and_405_are_problems_too(app: Flask) -> None:
    client = app.test_client()
    missing = client.get("/no/such/CANARY")
    assert (missing.status_code, missing.content_type) == (404, "application/problem+json")
    assert "CANARY" not in missing.text
    wrong = client.post("/healthz")
    assert wrong.status_code == 405
    assert {"GET", "HEAD", "OPTIONS"} == {one.strip() for one in wrong.headers["Allow"].split(",")}
    assert json.loads(wrong.data)["status"] == 405


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_f06_other_methods_on_studies(app: Flask, method: str) -> None:
    answer = app.test_client().open("/dicomweb/studies", method=method)
    assert answer.status_code == 405
    assert {"GET", "POST"} <= {one.strip() for one in answer.headers["Allow"].split(",")}


def test_options_tells_the_methods_to_anyone(app: Flask) -> None:
    answer = app.test_client().options("/dicomweb/studies")
    assert answer.status_code == 200
    assert {"GET", "POST"} <= {one.strip() for one in answer.headers["Allow"].split(",")}


def test_every_endpoint_refuses_in_the_same_form(app: Flask, node: FakeNode) -> None:
    answer = app.test_client().get("/dicomweb/studies")
    assert answer.json["code"] == "unauthenticated"
    assert node.query.asked == []
