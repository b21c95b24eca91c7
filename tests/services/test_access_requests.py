"""Asking for access: the same answer whatever is there, decided by whoever may, given in the transaction of the decision."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from archive.access.grants import Target
from archive.access.permissions import Permission
from archive.errors import Forbidden, InvalidRequest, NotFound, StateConflict
from archive.ledger.audit import Kind
from archive.services import access_requests
from archive.services.access_requests import OPEN_AT_MOST
from tests.services import ward
from tests.services.together import at_once, slowly
from tests.services.ward import ABSENT, FIRST, SECOND, Ward

WHY = "second opinion for the board"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def place(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Ward]:
    folder: Path = tmp_path_factory.mktemp("requests")
    with ward.opened(folder, **ward.sections(request)) as made:
        yield made


def same(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in {"id", "object"}}


def test_the_answer_does_not_say_what_is_there(place: Ward) -> None:
    kim = place.by_session("kim")
    there = place.node.access_requests.ask(kim, level="study", value=SECOND, reason=WHY)
    absent = place.node.access_requests.ask(kim, level="study", value=ABSENT, reason=WHY)
    assert same(there) == same(absent)
    assert [row["state"] for row in place.node.access_requests.mine(kim)] == ["open", "open"]
    assert place.seen(kim) == set()
    for row in (there, absent):
        assert place.node.access_requests.withdraw(kim, row["id"])["state"] == "withdrawn"
    with pytest.raises(NotFound):
        place.node.access_requests.withdraw(kim, there["id"])


def test_who_manages_roles_decides(place: Ward) -> None:
    requests, kim, olga = place.node.access_requests, place.by_session("kim"), place.by_session("olga")
    asked = requests.ask(kim, level="study", value=FIRST, reason=WHY, until="30d", permissions=["search", "pixels", "send"])
    with pytest.raises(NotFound):
        requests.withdraw(olga, asked["id"])
    assert [row["id"] for row in requests.waiting(olga)] == [asked["id"]]
    with pytest.raises(InvalidRequest, match="more than"):
        requests.decide(olga, asked["id"], approve=True, permissions=["search", "original"])
    done = requests.decide(olga, asked["id"], approve=True, permissions=["search", "pixels"], until="2d", note="two days")
    assert (done["state"], done["decided_by"], done["note"]) == ("granted", "olga", "two days")
    assert place.seen(kim) == {f"{FIRST}.1", f"{FIRST}.2"}
    assert place.seen(kim, Permission.SEND) == set()
    grant = next(row for row in place.node.accounts.list_grants(place.console, to="kim") if row["id"] == done["grant"])
    assert (grant["kind"], grant["parent"], grant["until"]) == ("requested", None, place.clock.at + timedelta(days=2))
    assert place.seen(kim, at=grant["until"]) == set()
    assert [event["what"] for event in place.events(Kind.ACCESS_REQUESTED)][:2] == ["granted", "asked"]
    with pytest.raises(StateConflict):
        requests.decide(olga, asked["id"], approve=False)
    place.node.accounts.revoke_grant(place.console, done["grant"])
    assert place.findings() == []


def test_whoever_may_pass_it_on_decides_and_it_hangs_on_theirs(place: Ward) -> None:
    requests, kim, mia, ole = place.node.access_requests, place.by_session("kim"), place.by_session("mia"), place.by_session("ole")
    first = requests.ask(kim, level="patient", value=f"P{FIRST}", reason=WHY)
    second = requests.ask(kim, level="study", value=SECOND, reason=WHY)
    absent = requests.ask(kim, level="study", value=ABSENT, reason=WHY)
    assert [row["id"] for row in requests.waiting(mia)] == [first["id"]]
    assert requests.waiting(ole) == []
    for number in (second["id"], absent["id"], 10**9):
        with pytest.raises(NotFound, match="no such open request"):
            requests.decide(mia, number, approve=True)
    token = place.node.signin.bearer(place.node.accounts.create_token(place.console, owner="mia")["token"], address="192.0.2.7")
    assert requests.waiting(token) == []
    with pytest.raises(NotFound):
        requests.decide(token, first["id"], approve=True)
    done = requests.decide(mia, first["id"], approve=True)
    assert place.seen(kim) == {f"{FIRST}.1", f"{FIRST}.2"}
    place.node.accounts.disable_user(place.console, "mia")
    assert place.seen(kim) == set()
    place.node.accounts.enable_user(place.console, "mia")
    place.node.accounts.revoke_grant(place.console, done["grant"])
    for row in (second, absent):
        assert requests.decide(place.console, row["id"], approve=False, note="ask the ward")["state"] == "refused"
    assert place.findings() == []


def test_nobody_decides_their_own(place: Ward) -> None:
    requests, olga, mia = place.node.access_requests, place.by_session("olga"), place.by_session("mia")
    asked = requests.ask(olga, level="study", value=FIRST, reason=WHY)
    with pytest.raises(Forbidden, match="themselves"):
        requests.decide(olga, asked["id"], approve=True)
    assert asked["id"] not in [row["id"] for row in requests.waiting(olga)]
    mine = requests.ask(mia, level="study", value=FIRST, reason=WHY)
    with pytest.raises(Forbidden, match="themselves"):
        requests.decide(mia, mine["id"], approve=True)
    for who, row in ((olga, asked), (mia, mine)):
        requests.withdraw(who, row["id"])


def test_it_expires_to_the_moment(place: Ward) -> None:
    requests, kim = place.node.access_requests, place.by_session("kim")
    asked = requests.ask(kim, level="patient", value="still to come", reason=WHY, until="30d")
    short = requests.ask(kim, level="study", value=FIRST, reason=WHY, until="8h")
    assert short["expires_at"] == place.clock.at + timedelta(hours=8)
    place.clock.at = asked["expires_at"] - timedelta(microseconds=1)
    assert asked["id"] in [row["id"] for row in requests.waiting(place.console)]
    place.clock.at = asked["expires_at"]
    with pytest.raises(StateConflict, match="expired"):
        requests.decide(place.console, asked["id"], approve=True)
    assert requests.waiting(place.console) == []
    assert {row["state"] for row in requests.waiting(place.console, every=True)} >= {"expired", "withdrawn", "granted", "refused"}


def test_a_patient_still_to_come(place: Ward) -> None:
    requests, kim = place.node.access_requests, place.by_session("kim")
    asked = requests.ask(kim, level="patient", value="P77", issuer="", reason=WHY)
    done = requests.decide(place.console, asked["id"], approve=True)
    assert done["grant"] is not None
    absent = requests.ask(kim, level="study", value=ABSENT, reason=WHY)
    with pytest.raises(NotFound):
        requests.decide(place.console, absent["id"], approve=True)
    requests.decide(place.console, absent["id"], approve=False)
    place.node.accounts.revoke_grant(place.console, done["grant"])


def test_what_cannot_be_asked(place: Ward) -> None:
    requests, kim = place.node.access_requests, place.by_session("kim")
    given: dict[str, Any] = {"level": "study", "value": FIRST, "reason": WHY}
    for wrong in ({"value": "1.2.x"}, {"value": ""}, {"value": "1" * 65}, {"reason": "because"}, {"permissions": ["purge"]},
                  {"permissions": ["audit"]}, {"until": "2020-01-01"}, {"until": "60w"}):
        with pytest.raises(InvalidRequest):
            requests.ask(kim, **(given | wrong))
    with pytest.raises(Forbidden):
        requests.ask(place.console, **given)
    made = [requests.ask(kim, **given)["id"] for _ in range(OPEN_AT_MOST)]
    with pytest.raises(InvalidRequest, match="wait already"):
        requests.ask(kim, **given)
    for number in made:
        requests.withdraw(kim, number)


def test_a_deny_stands_against_what_was_given_by_request(place: Ward) -> None:
    kim = place.by_session("kim")
    deny = place.node.accounts.add_grant(place.console, to="kim", role="referrer", target=Target("series", f"{FIRST}.1"), deny=True)
    asked = place.node.access_requests.ask(kim, level="study", value=FIRST, reason=WHY)
    done = place.node.access_requests.decide(place.console, asked["id"], approve=True)
    assert place.seen(kim) == {f"{FIRST}.2"}
    for number in (deny["id"], done["grant"]):
        place.node.accounts.revoke_grant(place.console, number)


def test_of_several_at_once_no_more_wait_than_may(place: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    kim, requests = place.by_session("kim"), place.node.access_requests
    waiting = sum(row["state"] == "open" for row in requests.mine(kim))
    for _ in range(OPEN_AT_MOST - 1 - waiting):
        requests.ask(kim, level="study", value=ABSENT, reason=WHY)
    slowly(monkeypatch, access_requests, "worded")
    came = at_once(*[lambda: requests.ask(kim, level="study", value=ABSENT, reason=WHY)] * 3)
    assert sorted(isinstance(one, InvalidRequest) for one in came) == [False, True, True]
    opened = [row["id"] for row in requests.mine(kim) if row["state"] == "open"]
    assert len(opened) == OPEN_AT_MOST
    for number in opened:
        requests.withdraw(kim, number)
