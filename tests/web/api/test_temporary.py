"""/api/grants without a role, /api/access-requests, /api/break-glass: in a browser's session, as the document says, and telling nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from flask import Flask
from werkzeug.test import TestResponse

from archive.web.api import OPERATIONS
from archive.web.wsgi import application
from tests.services import archives, ward
from tests.services.ward import ABSENT, FIRST, SECOND, Ward

WHY = "unconscious in the emergency room"
BY_RULE = {(one.method, re.sub(r"<[^>]+>", "0", one.path)): one for one in OPERATIONS}


@dataclass
class Api:
    """Asks in the session of whoever is named, and checks each answer against the document."""

    ward: Ward
    app: Flask
    sessions: dict[str, str] = field(default_factory=dict)

    def sign_in(self, name: str) -> None:
        begun: Any = self.ward.node.signin.password(name, archives.PASSWORD, address="192.0.2.7", user_agent="test")
        self.sessions[name] = begun.token

    def ask(self, name: str, method: str, path: str, body: Any = None, *, token: str = "") -> TestResponse:
        if name not in self.sessions:
            self.sign_in(name)
        headers = {"Cookie": f"__Host-session={self.sessions[name]}", "Sec-Fetch-Site": "same-origin"}
        if token:
            headers = {"Authorization": f"Bearer {token}"}
        sent = {} if body is None else {"json": body}
        return self.app.test_client(use_cookies=False).open(
            f"/api{path}", method=method, headers=headers, base_url="https://127.0.0.1:8443", **sent
        )

    def __call__(self, name: str, method: str, path: str, body: Any = None, *, status: int = 0) -> Any:
        answer = self.ask(name, method, path, body)
        one = BY_RULE[method, re.sub(r"/\d+", "/0", path.partition("?")[0])]
        assert answer.status_code == (status or one.status), answer.text
        if not status:
            msgspec.json.decode(answer.data, type=one.answer)
        return answer.json


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with ward.opened(tmp_path_factory.mktemp("temporary"), archive={"public_url": "https://127.0.0.1:8443"}) as made:
        yield Api(made, application(made.node))


def told(answer: TestResponse, value: str) -> tuple[object, ...]:
    """Everything an answer says, with what was named and the number it was given taken out."""
    headers = sorted((name, text) for name, text in answer.headers.items() if name not in {"Date", "X-Request-Id", "Content-Length"})
    text = re.sub(r'"(id|instance)":("[^"]*"|\d+)', "", answer.text.replace(value, ""))
    return answer.status_code, headers, text, len(re.sub(r"\d+", "", answer.text))


def test_passing_on(api: Api) -> None:
    given = api("mia", "POST", "/grants", {"to": "ole", "study": FIRST, "delegable": 1, "until": "8h"})
    assert (given["kind"], given["role"], given["delegable"]) == ("delegated", None, 1)
    further = api("ole", "POST", "/grants", {"to": "kim", "series": f"{FIRST}.1", "permissions": ["search"]})
    assert (further["parent"], further["permissions"]) == (given["id"], ["search"])
    assert [row["id"] for row in api("mia", "GET", "/me/grants")] == [given["id"]]
    api("kim", "DELETE", f"/grants/{given['id']}", status=403)
    api("kim", "DELETE", "/grants/99999", status=403)
    assert api("mia", "DELETE", f"/grants/{given['id']}")["state"] == "revoked"
    assert [row["state"] for row in api("ole", "GET", "/me/grants?ended=true")] == ["revoked"]
    for wrong in ({"modality": "CT"}, {"deny": True}, {"role": "referrer", "permissions": ["search"]}, {"role": "referrer", "parent": 1}):
        api("mia", "POST", "/grants", {"to": "ole", "study": FIRST} | wrong, status=400)
    api("mia", "POST", "/grants", {"to": "ole", "study": FIRST, "role": "referrer"}, status=403)
    answers = [told(api.ask("mia", "POST", "/grants", {"to": "ole", "study": uid}), uid) for uid in (SECOND, ABSENT)]
    assert answers[0] == answers[1]
    token = api.ward.node.accounts.create_token(api.ward.console, owner="mia")["token"]
    for method, path in (("POST", "/grants"), ("GET", "/me/grants")):
        body = {"to": "ole", "study": FIRST} if method == "POST" else None
        assert api.ask("mia", method, path, body, token=token).status_code == 403


def test_requests(api: Api) -> None:
    answers = [
        told(api.ask("kim", "POST", "/access-requests", {"study": uid, "reason": WHY, "until": "7d"}), uid) for uid in (SECOND, ABSENT)
    ]
    assert answers[0] == answers[1]
    assert answers[0][0] == 201
    mine = api("kim", "GET", "/access-requests")
    assert {row["state"] for row in mine} == {"open"}
    for row in mine:
        assert api("kim", "DELETE", f"/access-requests/{row['id']}")["state"] == "withdrawn"
        api("kim", "DELETE", f"/access-requests/{row['id']}", status=404)
    asked = api("kim", "POST", "/access-requests", {"patient": f"P{FIRST}", "reason": WHY})
    assert api("ole", "GET", "/access-requests?others=true") == []
    assert [row["id"] for row in api("mia", "GET", "/access-requests?others=true")] == [asked["id"]]
    decision = {"approve": True, "note": "until Friday", "permissions": ["search"]}
    unknown = [api.ask("ole", "POST", f"/access-requests/{number}/decision", decision) for number in (asked["id"], 99999)]
    assert told(unknown[0], str(asked["id"])) == told(unknown[1], "99999")
    done = api("mia", "POST", f"/access-requests/{asked['id']}/decision", decision)
    assert (done["state"], done["decided_by"]) == ("granted", "mia")
    api("mia", "POST", f"/access-requests/{asked['id']}/decision", decision, status=409)
    api("mia", "DELETE", f"/grants/{done['grant']}")
    for wrong in ({}, {"study": FIRST, "patient": "P"}, {"study": "x"}, {"study": FIRST, "permissions": ["purge"]}):
        api("kim", "POST", "/access-requests", {"reason": WHY} | wrong, status=400)


def test_break_glass(api: Api) -> None:
    opened = api("kim", "POST", "/break-glass", {"patient": f"P{FIRST}", "reason_code": "emergency", "reason": WHY})
    assert [row["id"] for row in api("kim", "GET", "/me/break-glass")] == [opened["id"]]
    api("ole", "POST", f"/break-glass/{opened['id']}/end", status=404)
    assert api("kim", "POST", f"/break-glass/{opened['id']}/end")["state"] == "ended"
    waiting = api("rita", "GET", "/break-glass")
    assert [(row["id"], len(row["grants"])) for row in waiting] == [(opened["id"], 1)]
    api("kim", "GET", "/break-glass", status=403)
    review = {"verdict": "justified", "note": "the ward confirms it"}
    api("kim", "POST", f"/break-glass/{opened['id']}/review", review, status=403)
    assert api("rita", "POST", f"/break-glass/{opened['id']}/review", review)["verdict"] == "justified"
    api("rita", "POST", f"/break-glass/{opened['id']}/review", review, status=409)
    api("rita", "POST", "/break-glass/99999/review", review, status=404)


@pytest.mark.parametrize("what", ["patient", "study"])
def test_t15_break_glass_tells_nothing(api: Api, what: str) -> None:
    values = (SECOND, ABSENT) if what == "study" else (f"P{SECOND}", f"P{ABSENT}")
    answers = []
    for value in values:
        answer = api.ask("ole", "POST", "/break-glass", {what: value, "reason_code": "covering", "reason": WHY})
        listed = api.ask("ole", "GET", "/me/break-glass")
        ended = api.ask("ole", "POST", f"/break-glass/{answer.json['id']}/end")
        answers.append((told(answer, value), listed.status_code, told(ended, value)))
    assert answers[0] == answers[1]
    assert answers[0][0][0] == 201
    why = {"reason_code": "covering", "reason": WHY}
    refused = [told(api.ask("rita", "POST", "/break-glass", {what: value} | why), value) for value in values]
    assert refused[0] == refused[1]
    assert refused[0][0] == 403


def test_t34_a_token_cannot_and_a_session_is_asked_again(api: Api) -> None:
    token = api.ward.node.accounts.create_token(api.ward.console, owner="kim")["token"]
    body = {"patient": f"P{FIRST}", "reason_code": "emergency", "reason": WHY}
    assert api.ask("kim", "POST", "/break-glass", body, token=token).status_code == 403
    api.sign_in("kim")
    api.sign_in("mia")
    api.ward.clock.at += timedelta(minutes=6)
    for name, path, sent in (
        ("kim", "/break-glass", body), ("mia", "/grants", {"to": "ole", "study": FIRST}),
        ("mia", "/access-requests/1/decision", {"approve": False}),
    ):
        answer = api.ask(name, "POST", path, sent)
        assert (answer.status_code, answer.json["code"]) == (403, "step-up"), path
    assert api.ward.seen(api.ward.by_session("kim")) == set()


def test_who_may_not_is_told_that_before_anything_else(api: Api) -> None:
    for method, path, body in (
        ("POST", "/break-glass", {"reason_code": "x", "reason": "x"}), ("GET", "/break-glass", None),
        ("POST", "/break-glass/1/review", {"verdict": "justified", "note": ""}),
    ):
        assert api.ask("olga", method, path, body).status_code == 403, path
