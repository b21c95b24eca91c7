"""Tokens over HTTP: one hands less on with a token of its own, and what it may is what comes out of every door."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.services import archives
from tests.web import real
from tests.web.real import HIDDEN, SEEN, Place

SERIES = f"/dicomweb/studies/{SEEN}/series/{SEEN}.1"
JSON = "application/dicom+json"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """An archive, and mia, who sees one study of two."""
    with archives.opened(real.config(tmp_path_factory.mktemp("tokens"))) as node:
        yield real.place(node)


class With:
    """Asks with a token."""

    def __init__(self, place: Place, token: str) -> None:
        self.place, self.token = place, token

    def ask(self, method: str, path: str, status: int, *, key: str = "", **more: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.token}", **({"Idempotency-Key": key} if key else {})}
        answer = self.place.ask(method, path, headers={**headers, **more.pop("headers", {})}, **more)
        assert answer.status_code == status, answer.text
        return answer

    def made(self, status: int = 201, **named: Any) -> Any:
        return self.ask("POST", "/api/tokens", status, json=named).json

    def below(self, **named: Any) -> With:
        return With(self.place, self.made(**named)["token"])

    def found(self) -> set[str]:
        answer = self.ask("GET", "/dicomweb/studies", 200, headers={"Accept": JSON})
        return {row["0020000D"]["Value"][0] for row in answer.json or []}


def test_a_token_hands_less_on(place: Place) -> None:
    mine = With(place, place.token)
    viewer = mine.below(studies=[SEEN], permissions=["search", "metadata"], until="1h", label="viewer")
    assert viewer.found() == mine.found() == {SEEN}
    viewer.ask("GET", f"{SERIES}/metadata", 200, headers={"Accept": JSON})
    viewer.ask("GET", SERIES, 404)  # without the right to the original it is not there
    nothing = viewer.below(permissions=["search"])
    nothing.ask("GET", f"{SERIES}/metadata", 404, headers={"Accept": JSON})
    unseen = viewer.made(404, studies=[HIDDEN])
    absent = viewer.made(404, studies=["1.2.999"])
    assert {name: value for name, value in unseen.items() if name != "instance"} == (
        {name: value for name, value in absent.items() if name != "instance"}
    )
    viewer.made(403, permissions=["original"])
    viewer.made(403, permissions=["user-manage"])
    viewer.made(400, until="2h")
    viewer.made(400, networks=["here"])
    viewer.made(400, parent=1)
    listed = viewer.ask("GET", "/api/tokens", 200).json
    assert [(row["label"], row["parent"] is None) for row in listed] == [("", False), ("viewer", False)]
    assert [row["last_address"] for row in listed] == ["127.0.0.1", "127.0.0.1"]
    ended = mine.ask("DELETE", f"/api/tokens/{listed[1]['id']}", 200).json
    assert (ended["state"], ended["ended"]) == ("revoked", 2)
    for gone in (viewer, nothing):
        gone.ask("GET", "/dicomweb/studies", 401)
    assert mine.found() == {SEEN}


def test_a_token_is_taken_from_its_networks_only(place: Place) -> None:
    mine = With(place, place.token)
    assert mine.below(networks=["127.0.0.0/8"]).found() == {SEEN}
    mine.below(networks=["192.0.2.0/24"]).ask("GET", "/dicomweb/studies", 401)


def test_a_repeated_call_tells_the_secret_to_the_same_token_only(place: Place) -> None:
    mine = With(place, place.token)
    narrow = mine.below(permissions=["search"])
    named = {"label": "the same words"}
    first, again, other = (
        client.ask("POST", "/api/tokens", 201, key="one", json=named) for client in (mine, mine, narrow)
    )
    assert first.json["token"] == again.json["token"] != other.json["token"]
    assert "Idempotent-Replayed" not in other.headers
    assert With(place, other.json["token"]).ask("GET", f"{SERIES}/metadata", 404, headers={"Accept": JSON})
    assert With(place, first.json["token"]).ask("GET", f"{SERIES}/metadata", 200, headers={"Accept": JSON})
