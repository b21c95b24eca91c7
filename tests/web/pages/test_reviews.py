"""Access reviews by their pages, asked by a plain client without script."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta

import pytest
from werkzeug.test import TestResponse

from archive.access.grants import Target
from archive.services.review_rows import Chosen
from archive.web.wsgi import application
from tests.services import archives
from tests.web import real
from tests.web.real import SEEN, Place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with archives.opened(real.config(tmp_path_factory.mktemp("reviews"))) as node:
        console = archives.the_console(node)
        archives.store(node, archives.instance(1, study=SEEN))
        node.accounts.add_user(console, "mia", full_name="<b>Mia</b>")
        node.accounts.add_user(console, "boss", roles=["security-officer"], password=archives.PASSWORD)
        node.accounts.add_grant(console, to="mia", role="radiologist", target=Target("study", SEEN))
        begun = node.signin.password("boss", archives.PASSWORD, address="192.0.2.7", user_agent="test")
        yield Place(node, application(node), "", begun.token)  # type: ignore[union-attr] # no second factor


def get(place: Place, path: str) -> TestResponse:
    return place.ask("GET", path, browser=True)


def post(place: Place, path: str, **form: object) -> TestResponse:
    return place.ask("POST", path, browser=True, data=form)


def test_from_start_to_the_signed_record(place: Place) -> None:
    assert "No review was started yet" in get(place, "/admin/reviews").text
    refused = post(place, "/admin/reviews/start", title="x", due="2020-01-01")
    assert (refused.status_code, "due date to come" in refused.text) == (400, True)
    assert post(place, "/admin/reviews/start", title="x", due="2w", older_days="many").status_code == 400
    begun = post(place, "/admin/reviews/start", title="<i>Q3</i>", due="2w")
    assert begun.status_code == 303
    page = get(place, begun.location).text
    assert "&lt;i&gt;Q3&lt;/i&gt;" in page
    assert SEEN in page
    rows = {name: number for number, name in re.findall(r'<label class="hidden" for="row-(\d+)">(\w+) ', page)}
    assert post(place, f"{begun.location}/decide", decision="revoke").status_code == 400  # nothing ticked
    assert post(place, f"{begun.location}/decide", decision="revoke", row=rows["boss"]).status_code == 403  # one's own
    done = post(place, f"{begun.location}/decide", decision="revoke", row=[rows["mia"]], note="left")
    assert (done.status_code, done.location) == (303, begun.location)
    assert "rows are undecided" in post(place, f"{begun.location}/close").text
    console = archives.the_console(place.node)
    place.node.reviews.close(console, int(begun.location.rpartition("/")[2]), undecided="keep")  # boss's own row is among those left
    page = get(place, begun.location).text
    assert "The signed record is event" in page
    assert "left" in page
    assert '<form method="post" action="/admin/reviews/1/close"' not in page
    assert place.node.accounts.list_grants(console, to="mia") == []
    assert get(place, "/admin/reviews/99").status_code == 404


def test_deciding_asks_again_who_it_is_and_comes_back(place: Place) -> None:
    number = place.node.reviews.start(
        archives.the_console(place.node), "later", due=place.node.core.clock() + timedelta(days=1), chosen=Chosen(role="owner"))["id"]
    place.node.signin._clock = lambda: place.node.core.clock() + timedelta(minutes=10)  # type: ignore[method-assign]
    try:
        answer = post(place, f"/admin/reviews/{number}/close", undecided="keep")
    finally:
        place.node.signin._clock = place.node.core.clock  # type: ignore[method-assign]
    assert answer.status_code == 303
    assert answer.location == f"/me/confirm?next=%2Fadmin%2Freviews%2F{number}"
    assert place.node.reviews.list(archives.the_console(place.node))[0]["state"] == "open"
