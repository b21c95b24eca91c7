"""What every answer carries, what is logged, and the probes."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from archive.errors import DatabaseUnavailable
from archive.web.app import create_app
from archive.web.body import FORM_BYTES
from archive.web.headers import ALWAYS
from archive.web.wsgi import application
from tests.web.fakes import FakeNode, config_of
from tests.web.samples import instance

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; font-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


@pytest.mark.parametrize("path", ["/healthz", "/dicomweb/studies", "/nowhere", "/dicomweb/studies/x", "/dicomweb/studies?limit=x"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE"])
def test_every_answer_has_the_security_headers(client: FlaskClient, path: str, method: str) -> None:
    answer = client.open(path, method=method)
    assert answer.headers["Content-Security-Policy"] == POLICY
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert set(ALWAYS) <= set(answer.headers.keys())
    assert answer.headers["Cache-Control"] == "private, no-store"


def test_no_redirect_is_made_from_the_host_header(client: FlaskClient) -> None:
    answer = client.get("//dicomweb//studies", headers={"Host": "evil.example"})
    assert answer.status_code in {200, 404}
    assert "evil" not in str(answer.headers)


def test_a_trailing_slash_is_tolerated(client: FlaskClient) -> None:
    assert client.get("/dicomweb/studies/").status_code == 200


def test_the_access_log_names_no_object(client: FlaskClient, node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
    kept = node.add(instance())
    study, series, sop = kept.uids
    with caplog.at_level(logging.INFO):
        client.get(f"/dicomweb/studies/{study}/series/{series}/instances/{sop}?accept=application/dicom").close()
        client.get("/dicomweb/studies?PatientName=CANARY*&PatientID=C1")
        client.get(f"/dicomweb/studies/{study}.9")
        client.open("/dicomweb/studies", method="BREW")
    lines = [record for record in caplog.records if record.name == "archive.web.access"]
    assert [(line.method, line.route, line.status) for line in lines] == [
        ("GET", "/dicomweb/studies/<study>/series/<series>/instances/<sop>", 200), ("GET", "/dicomweb/studies", 200),
        ("GET", "/dicomweb/studies/<study>", 404), ("OTHER", "", 405),
    ]
    for line in caplog.records:
        told = str(vars(line))
        assert study not in told
        assert "CANARY" not in told
        assert "mia-token" not in told
    assert all(line.ms >= 0 and len(line.request_id) == 16 for line in lines)


def test_a_form_is_bounded(client: FlaskClient) -> None:
    assert client.get("/dicomweb/studies", data=b"x" * 10).status_code == 200
    assert client.get("/dicomweb/studies", data=b"x" * (FORM_BYTES + 1)).status_code == 413


def test_wsgi_makes_the_same_application(node: FakeNode) -> None:
    assert application(node).test_client().get("/healthz").text == "ok\n"


def test_g07_healthz_tells_nothing(app: Flask) -> None:
    answer = app.test_client().get("/healthz")
    assert (answer.status_code, answer.text) == (200, "ok\n")


def test_readyz(app: Flask, node: FakeNode) -> None:
    client = app.test_client()
    assert client.get("/readyz").status_code == 200
    for answer in (False, DatabaseUnavailable("secret detail")):
        node.health.answer = answer
        told = client.get("/readyz")
        assert (told.status_code, told.text) == (503, "not ready\n")
        assert told.headers["Retry-After"]


def test_metrics_are_for_loopback(app: Flask) -> None:
    client = app.test_client()
    client.get("/healthz")
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert 'endpoint="probes.healthz",status="200"' in answer.text
    assert client.get("/metrics", environ_base={"REMOTE_ADDR": "10.0.0.9"}).status_code == 403
    assert client.get("/metrics", environ_base={"REMOTE_ADDR": ""}).status_code == 403


@pytest.mark.parametrize(("public_url", "headers", "status"), [
    ("https://pacs.clinic.example", {}, 403), ("http://127.0.0.1:8443", {}, 200), ("http://localhost:8443", {}, 200),
    ("http://127.0.0.1:8443", {"X-Forwarded-For": "192.0.2.7"}, 403), ("http://127.0.0.1:8443", {"Via": "1.1 proxy"}, 403),
])
def test_metrics_are_for_nobody_who_comes_by_a_proxy(tmp_path: Path, public_url: str, headers: dict[str, str], status: int) -> None:
    """To the archive all of its visitors are on this machine."""
    config = config_of(tmp_path, http={"tls": "off", "host": "127.0.0.1"}, archive={"public_url": public_url})
    assert create_app(FakeNode(config)).test_client().get("/metrics", headers=headers).status_code == status


def test_metrics_with_a_token_are_for_who_holds_it(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    config = config_of(tmp_path, http={"metrics_token_file": "token"})
    client = create_app(FakeNode(config)).test_client()
    assert client.get("/metrics").status_code == 403
    assert client.get("/metrics", headers={"Authorization": "Bearer abd"}).status_code == 403
    headers = {"Authorization": "Bearer abc"}
    assert client.get("/metrics", headers=headers, environ_base={"REMOTE_ADDR": "10.0.0.9"}).status_code == 200
    (tmp_path / "token").unlink()
    assert client.get("/metrics", headers=headers).status_code == 503


def test_metrics_name_no_object(client: FlaskClient, node: FakeNode) -> None:
    study = node.add(instance()).uids[0]
    client.get(f"/dicomweb/studies/{study}")
    text = client.get("/metrics").text
    assert study not in text
    assert 'endpoint="dicomweb.retrieve_study"' in text
