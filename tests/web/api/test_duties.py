"""Two people in the browser: what one asks for another approves, in the API and on the page; and the page of the roles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from werkzeug.test import TestResponse

from archive.access.grants import Target
from tests.services import archives
from tests.web import real
from tests.web.real import Place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """An archive in which two people decide, with ann and ben who manage roles, and cleo who does not."""
    config = archives.made(tmp_path_factory.mktemp("duties"), archive={"public_url": real.ORIGIN}, policy={"two_person": True})
    with archives.opened(config) as node:
        console = archives.the_console(node)
        node.accounts._two_person = False
        for name, roles in (("ann", ["security-officer", "administrator"]), ("ben", ["security-officer", "administrator"]), ("cleo", [])):
            node.accounts.add_user(console, name, roles=roles, password=archives.PASSWORD)
        node.accounts._two_person = True
        yield real.place(node)


class Browser:
    """Signed in as somebody."""

    def __init__(self, place: Place, name: str) -> None:
        begun = place.node.signin.password(name, archives.PASSWORD, address="192.0.2.7", user_agent="test")
        self.app, self.name, self.cookie = place.app, name, begun.token  # type: ignore[union-attr]

    def __call__(self, method: str, path: str, **more: Any) -> TestResponse:
        headers = {"Cookie": f"__Host-session={self.cookie}", "Sec-Fetch-Site": "same-origin"}
        return self.app.test_client(use_cookies=False).open(path, method=method, headers=headers, base_url=real.ORIGIN, **more)


@pytest.fixture(scope="module")
def ann(place: Place) -> Browser:
    return Browser(place, "ann")


@pytest.fixture(scope="module")
def ben(place: Place) -> Browser:
    return Browser(place, "ben")


@pytest.fixture(scope="module")
def cleo(place: Place) -> Browser:
    return Browser(place, "cleo")


def asked(answer: TestResponse) -> str:
    """Where the request lies that an answer tells of."""
    assert (answer.status_code, answer.content_type) == (202, "application/problem+json"), answer.text
    assert answer.json["code"] == "awaits-approval"
    return answer.headers["Location"]


def test_the_api_says_what_waits_and_who_decides(ann: Browser, ben: Browser, cleo: Browser) -> None:
    where = asked(ann("POST", "/api/roles", json={"name": "keeper", "permissions": ["key-manage"]}))
    assert ann("GET", "/api/roles/keeper").status_code == 404
    shown = ben("GET", where).json
    assert (shown["state"], shown["operation"], shown["asked_by"]) == ("waiting", "role-add", "ann")
    absent = cleo("GET", where.replace(where.rpartition("/")[2], "99999"))
    unseen = cleo("GET", where)
    assert (unseen.status_code, unseen.data) == (absent.status_code, absent.data)
    assert cleo("POST", where + "/approve").status_code == cleo("POST", where + "/refuse", json={}).status_code == 404
    assert cleo("GET", "/api/approvals?every=true").json == []
    assert ann("POST", where + "/approve").status_code == 403
    assert ben("POST", where + "/approve").json["state"] == "done"
    assert ann("GET", "/api/roles/keeper").json["permissions"] == ["key-manage"]
    assert ben("POST", where + "/approve").status_code == 409
    other = asked(ann("PATCH", "/api/roles/keeper", json={"add": ["stats"]}))
    assert ben("POST", other + "/refuse", json={"note": "not now"}).json["state"] == "refused"
    assert ann("GET", "/api/roles/keeper").json["permissions"] == ["key-manage"]


def test_every_gated_operation_answers_202(place: Place, ann: Browser, ben: Browser) -> None:
    a, console = place.node.accounts, archives.the_console(place.node)
    a.add_group(console, "shy")
    a.join_group(console, "shy", "cleo")
    deny = a.add_grant(console, to="shy", role="referrer", target=Target("everything"), deny=True)
    asked(ann("POST", "/api/users/cleo/roles", json={"role": "owner"}))
    asked(ann("DELETE", f"/api/grants/{deny['id']}"))
    asked(ann("DELETE", "/api/groups/shy/members/cleo"))
    asked(ann("DELETE", "/api/groups/shy"))
    text = ann("GET", "/api/policy").text
    asked(ann("POST", "/api/policy", json={"text": text.replace('effect = "deny"\n', "")}))
    assert len(ben("GET", "/api/approvals").json) == 5
    assert ann("POST", "/api/users", json={"name": "zed", "roles": ["owner"]}).status_code == 409


def test_a_session_that_lies_back_is_asked_again(place: Place, ann: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    where = asked(ann("POST", "/api/roles", json={"name": "later", "permissions": ["key-manage"]}))
    late = Browser(place, "ben")
    monkeypatch.setattr(place.node.signin, "fresh", lambda _standing: False)
    for method, path, sent in (
        ("POST", where + "/approve", {}), ("POST", where + "/refuse", {"json": {}}), ("POST", "/api/policy", {"json": {"text": ""}}),
        ("PATCH", "/api/roles/keeper", {"json": {"add": ["stats"]}}), ("DELETE", "/api/roles/keeper", {}), ("DELETE", "/api/groups/x", {}),
    ):
        answer = late(method, path, **sent)
        assert (answer.status_code, answer.json["code"]) == (403, "step-up"), path
    answer = late("POST", where.removeprefix("/api") + "/approve")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/me/confirm?next=%2Fapprovals")


def test_the_page_of_approvals(ann: Browser, ben: Browser, cleo: Browser) -> None:
    where = asked(ann("POST", "/api/roles", json={"name": "page & co", "permissions": ["audit"]}))
    path = where.removeprefix("/api")
    page = ben("GET", "/approvals").text
    assert "page &amp; co" in page
    assert f'action="{path}/approve"' in page
    assert f'action="{path}/approve"' not in ann("GET", "/approvals").text
    assert "page &amp; co" not in cleo("GET", "/approvals").text
    assert cleo("POST", f"{path}/approve").status_code == 404
    refused = ann("POST", f"{path}/approve")
    assert (refused.status_code, "does not approve" in refused.text) == (403, True)
    assert "approved and done" in ben("POST", f"{path}/approve").text
    assert ben("POST", f"{path}/refuse").status_code == 409


def test_the_page_of_roles_is_made_of_the_roles_there_are(ann: Browser, cleo: Browser) -> None:
    page = ann("GET", "/admin/roles").text
    for row in ann("GET", "/api/roles/matrix").json:
        assert f'<th scope="row">{row["permission"]}</th>' in page
        for name in row["roles"]:
            assert f'title="{name}: {row["permission"]}"'.replace("&", "&amp;") in page
    assert page.count(">yes</span>") == sum(len(row["roles"]) for row in ann("GET", "/api/roles/matrix").json)
    assert cleo("GET", "/admin/roles").status_code == 403
