"""Break-glass: one patient for a short time, an alert at once, a review by somebody else; a deny hides as ever."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.access.grants import Target
from archive.access.permissions import Permission
from archive.db.tables import alert, break_glass
from archive.errors import Forbidden, InvalidRequest, NotFound, StateConflict
from archive.ledger.audit import Kind
from archive.services.break_glass import AT_ONCE
from tests.services import archives, ward
from tests.services.ward import ABSENT, FIRST, SECOND, Ward

WHY = {"reason_code": "emergency", "reason": "unconscious in the emergency room"}
BOTH = {f"{FIRST}.1", f"{FIRST}.2"}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def place(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Ward]:
    folder: Path = tmp_path_factory.mktemp("glass")
    with ward.opened(folder, **ward.sections(request)) as made:
        made.node.alerts.tick()
        yield made


def same(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in {"id", "object"}}


def alerts(place: Ward, rule: str = "break-glass") -> list[dict[str, Any]]:
    return [row for row in place.node.alerts.list(place.console, every=True) if row["rule"] == rule]


def test_it_opens_for_an_hour_and_no_longer(place: Ward) -> None:
    glass, kim = place.node.break_glass, place.by_session("kim")
    before = len(alerts(place))
    opened = glass.open(kim, level="patient", value=f"P{FIRST}", **WHY)
    assert opened["until"] == place.clock.at + timedelta(minutes=60)
    raised = alerts(place)
    assert (len(raised), raised[0]["severity"], raised[0]["who"]) == (before + 1, "urgent", "kim"), "at once, before any look"
    place.node.alerts.tick()
    assert [row["times"] for row in alerts(place)] == [row["times"] for row in raised], "and once"
    assert place.seen(kim) == place.seen(kim, Permission.SEARCH | Permission.METADATA | Permission.PIXELS | Permission.RESTRICTED) == BOTH
    for more in (Permission.ORIGINAL, Permission.SEND, Permission.SHARE, Permission.DELEGATE, Permission.DELETE):
        assert place.seen(kim, more) == set()
    assert [row["id"] for row in glass.mine(kim, active=True)] == [opened["id"]]
    end = opened["until"]
    assert place.seen(kim, at=end - timedelta(microseconds=1)) == BOTH
    assert place.seen(kim, at=end) == set()
    started = place.events(Kind.BREAK_GLASS_STARTED)[0]
    assert (started["objects"], started["reason"], started["who"]) == ([["patient", f"P{FIRST}"]], WHY["reason"], kim.principal_id)
    assert glass.tick(end - timedelta(microseconds=1)) == 0
    place.clock.at = end
    assert glass.tick(end) == 1
    assert glass.tick(end) == 0
    assert place.events(Kind.BREAK_GLASS_STOPPED)[0]["id"] == opened["id"]
    assert glass.mine(place.by_session("kim"))[0]["state"] == "ended"
    assert place.findings() == []


def test_the_answer_does_not_say_what_is_there(place: Ward) -> None:
    glass, ole = place.node.break_glass, place.by_session("ole")
    for level, there, absent in (("patient", f"P{SECOND}", f"P{ABSENT}"), ("study", SECOND, ABSENT)):
        first = glass.open(ole, level=level, value=there, **WHY)  # type: ignore[arg-type]
        second = glass.open(ole, level=level, value=absent, **WHY)  # type: ignore[arg-type]
        assert same(first) == same(second)
        assert place.seen(ole) == {f"{SECOND}.1"}
        first, second = (glass.end(ole, row["id"]) for row in (first, second))
        assert same(first) == same(second)
        assert place.seen(ole) == set()
    assert place.findings() == []


def test_a_patient_who_comes_within_the_hour_is_seen(place: Ward) -> None:
    ole = place.by_session("ole")
    opened = place.node.break_glass.open(ole, level="patient", value="P-new", **WHY)
    archives.store(place.node, archives.instance(1, study="1.2.9", PatientID="P-new"))
    assert place.seen(ole) == {"1.2.9.1"}
    place.node.break_glass.end(ole, opened["id"])


def test_a_deny_is_never_reached(place: Ward) -> None:
    kim = place.by_session("kim")
    hidden = (Target("series", f"{FIRST}.1"), {f"{FIRST}.2"}), (Target("patient", f"P{FIRST}"), set()), (Target("everything"), set())
    for target, left in hidden:
        deny = place.node.accounts.add_grant(place.console, to="kim", role="referrer", target=target, deny=True)
        opened = place.node.break_glass.open(kim, level="study", value=FIRST, **WHY)
        assert place.seen(kim) == left
        place.node.accounts.revoke_grant(place.console, deny["id"])
        assert place.seen(kim) == BOTH
        place.node.break_glass.end(kim, opened["id"])


def test_who_may_not(place: Ward) -> None:
    glass = place.node.break_glass
    token = place.node.signin.bearer(place.node.accounts.create_token(place.console, owner="kim")["token"], address="192.0.2.7")
    for who in (token, place.console, place.by_session("rita"), place.by_session("olga")):
        messages = set()
        for value in (f"P{FIRST}", "P-absent"):
            with pytest.raises(Forbidden) as error:
                glass.open(who, level="patient", value=value, **WHY)
            messages.add(error.value.message)
        assert len(messages) == 1
    kim = place.by_session("kim")
    for wrong in ({"reason_code": "curiosity"}, {"reason": "too short"}, {"value": " "}, {"value": "x" * 65}):
        with pytest.raises(InvalidRequest):
            glass.open(kim, **({"level": "patient", "value": f"P{FIRST}"} | WHY | wrong))  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        glass.open(kim, level="patient", value=f"P{FIRST}", datastore="research", **WHY)
    many = [glass.open(kim, level="patient", value=f"P{FIRST}", **WHY)["id"] for _ in range(AT_ONCE)]
    with pytest.raises(InvalidRequest, match="open already"):
        glass.open(kim, level="patient", value=f"P{FIRST}", **WHY)
    with pytest.raises(NotFound):
        glass.end(place.by_session("ole"), many[0])
    for number in many:
        glass.end(kim, number)
    with pytest.raises(NotFound):
        glass.end(kim, many[0])


def test_it_is_reviewed_by_somebody_else_once(place: Ward) -> None:
    glass, kim, rita = place.node.break_glass, place.by_session("kim"), place.by_session("rita")
    opened = glass.open(kim, level="patient", value=f"P{FIRST}", **WHY)
    mine = glass.open(place.by_session("ole"), level="patient", value="P-absent", **WHY)
    assert {opened["id"], mine["id"]} <= {row["id"] for row in glass.to_review(rita)}
    with pytest.raises(Forbidden):
        glass.to_review(kim)
    with pytest.raises(Forbidden):
        glass.review(kim, opened["id"], verdict="justified", note="I say it was right")
    place.node.accounts.assign_role(place.console, "kim", "auditor")
    with pytest.raises(Forbidden, match="themselves"):
        glass.review(kim, opened["id"], verdict="justified", note="I say it was right")
    place.node.accounts.withdraw_role(place.console, "kim", "auditor")
    for wrong in ({"verdict": "fine"}, {"note": "ok"}):
        with pytest.raises(InvalidRequest):
            glass.review(rita, opened["id"], **({"verdict": "justified", "note": "spoke with the ward"} | wrong))
    done = glass.review(rita, opened["id"], verdict="unjustified", note="no such emergency that day")
    assert (done["verdict"], done["reviewed_by"]) == ("unjustified", "rita")
    with pytest.raises(StateConflict):
        glass.review(rita, opened["id"], verdict="justified", note="on second thoughts")
    assert opened["id"] not in {row["id"] for row in glass.to_review(rita)}
    assert place.events(Kind.BREAK_GLASS_REVIEWED)[0]["verdict"] == "unjustified"
    assert place.findings() == []


def test_an_edited_row_is_found(place: Ward) -> None:
    kim = place.by_session("kim")
    opened = place.node.break_glass.open(kim, level="patient", value=f"P{FIRST}", **WHY)
    mine = break_glass.c.id == opened["id"]
    for values in ({"verdict": "justified", "reviewed_at": place.clock.at}, {"object": "P-other"}, {"principal_id": kim.principal_id + 1},
                   {"reason": "something else altogether"}, {"ends_at": place.clock.at}, {"grant_ids": []}):
        with place.node.core.database.begin() as tx:
            before = dict(tx.execute(sa.select(break_glass).where(mine)).mappings().one())
            tx.execute(sa.update(break_glass).where(mine).values(**values))
        assert [one for one in place.findings() if "break-glass" in one], values
        with place.node.core.database.begin() as tx:
            tx.execute(sa.update(break_glass).where(mine).values(before))
    with place.node.core.database.begin() as tx:
        tx.execute(sa.delete(break_glass).where(mine))
    assert [one for one in place.findings() if one.endswith("is gone")]
    with place.node.core.database.begin() as tx:
        tx.execute(sa.insert(break_glass), before)
    assert place.findings() == []
    place.node.break_glass.end(kim, opened["id"])


def test_what_nobody_reviews_is_an_alert_and_a_line_of_doctor(place: Ward) -> None:
    glass, then = place.node.break_glass, place.clock.at
    for row in glass.to_review(place.console):
        glass.review(place.console, row["id"], verdict="justified", note="all of these tests")
    opened = glass.open(place.by_session("kim"), level="patient", value=f"P{FIRST}", **WHY)

    def line() -> tuple[str, int]:
        place.node.alerts.tick()
        check = next(one for one in place.node.health.checks() if one.name == "break-glass")
        return check.state, len(alerts(place, "break-glass-unreviewed"))

    place.clock.at = then + timedelta(hours=72, microseconds=-1)
    assert line() == ("ok", 0)
    place.clock.at = then + timedelta(hours=72, minutes=2)
    assert line() == ("problem", 1)
    glass.review(place.console, opened["id"], verdict="justified", note="late, but looked at")
    assert line() == ("ok", 1)


def test_the_alert_obeys_its_switch(tmp_path: Path) -> None:
    with ward.opened(tmp_path, alerts={"without": ["break-glass"]}) as quiet:
        quiet.node.break_glass.open(quiet.by_session("kim"), level="patient", value=f"P{FIRST}", **WHY)
        with quiet.node.core.database.read() as tx:
            assert tx.execute(sa.select(alert.c.id)).first() is None
