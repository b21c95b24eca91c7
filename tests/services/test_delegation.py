"""Passing access on: a part of what one has, no longer than one has it, and gone with it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.access.grants import Target
from archive.access.permissions import Permission
from archive.db.tables import grant_lineage, grants
from archive.errors import Forbidden, InvalidRequest, NotFound
from archive.ledger.audit import Kind
from tests.services import ward
from tests.services.ward import ABSENT, FIRST, SECOND, Ward

STUDY, SERIES = Target("study", FIRST), Target("series", f"{FIRST}.1")
BOTH = {f"{FIRST}.1", f"{FIRST}.2"}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def place(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Ward]:
    folder: Path = tmp_path_factory.mktemp("delegation")
    with ward.opened(folder, **ward.sections(request)) as made:
        yield made


def test_a_part_is_passed_on_and_on_and_ends_with_the_first(place: Ward) -> None:
    delegation, mia, ole, kim = place.node.delegation, place.by_session("mia"), place.by_session("ole"), place.by_session("kim")
    given = delegation.delegate(mia, to="ole", target=STUDY, depth=1, until="8h", reason="holiday")
    assert (given["kind"], given["state"], given["delegable"], given["role"]) == ("delegated", "active", 1, None)
    assert given["permissions"] == ["search", "metadata", "pixels", "delegate"]
    assert place.seen(ole) == BOTH
    assert place.seen(ole, Permission.ORIGINAL) == set()
    further = delegation.delegate(ole, to="kim", target=SERIES, permissions=["search"])
    assert place.seen(kim) == {f"{FIRST}.1"}
    assert further["until"] == given["until"], "seven days, but no longer than the one it comes from"
    assert [row["id"] for row in delegation.given(mia)] == [given["id"]]
    told = place.events(Kind.GRANTED)[0]
    assert (told["id"], told["parent"], told["giver"], told["who"]) == (further["id"], given["id"], ole.principal_id, ole.principal_id)
    at = given["until"]
    assert place.seen(kim, at=at - timedelta(microseconds=1)) == {f"{FIRST}.1"}
    assert place.seen(kim, at=at) == place.seen(ole, at=at) == set()
    assert place.findings() == []
    with pytest.raises(Forbidden):
        place.node.accounts.revoke_grant(kim, given["id"])
    ended = place.node.accounts.revoke_grant(mia, given["id"], reason="back")
    assert ended["state"] == "revoked"
    assert place.seen(ole) == place.seen(kim) == set()
    assert {one["id"] for one in place.events(Kind.REVOKED)} >= {given["id"], further["id"]}
    assert place.findings() == []


def test_what_is_refused(place: Ward) -> None:
    delegation, mia, ole = place.node.delegation, place.by_session("mia"), place.by_session("ole")
    token = place.node.signin.bearer(place.node.accounts.create_token(place.console, owner="mia")["token"], address="192.0.2.7")
    with pytest.raises(Forbidden, match="with a token"):
        delegation.delegate(token, to="ole", target=STUDY)
    with pytest.raises(Forbidden, match="own rights"):
        delegation.delegate(mia, to="mia", target=STUDY)
    place.node.accounts.add_group(place.console, "both")
    place.node.accounts.join_group(place.console, "both", "mia")
    with pytest.raises(Forbidden, match="own rights"):
        delegation.delegate(mia, to="both", target=STUDY)
    absent = []
    for target in (Target("study", SECOND), Target("study", ABSENT), Target("patient", f"P{SECOND}"), Target("patient", f"P{ABSENT}")):
        with pytest.raises(NotFound) as error:
            delegation.delegate(mia, to="ole", target=target)
        absent.append(error.value.message.replace(target.level, "study"))
    assert len(set(absent)) == 1
    for more in ({"permissions": ["purge"]}, {"depth": 2}, {"parent": 1}, {"target": Target("everything")}):
        with pytest.raises((Forbidden, NotFound)):
            delegation.delegate(mia, **({"to": "ole", "target": STUDY} | more))
    with pytest.raises(InvalidRequest, match="longer than your own"):
        delegation.delegate(mia, to="ole", target=STUDY, since="2020-01-01")
    given = delegation.delegate(mia, to="ole", target=STUDY)
    assert "delegate" not in given["permissions"]
    with pytest.raises((Forbidden, NotFound)):
        delegation.delegate(ole, to="kim", target=STUDY)
    place.node.accounts.revoke_grant(mia, given["id"])
    with pytest.raises(InvalidRequest, match="passed on"):
        place.node.accounts.add_grant(place.console, to="kim", role="referrer", target=STUDY, delegable=1)
    with pytest.raises(InvalidRequest, match="passed on"):
        place.node.accounts.add_grant(place.console, to="kim", role="radiologist", target=STUDY, deny=True, delegable=1)


def test_nobody_gets_it_back_from_whom_they_gave_it(place: Ward) -> None:
    delegation, mia, ole = place.node.delegation, place.by_session("mia"), place.by_session("ole")
    given = delegation.delegate(mia, to="ole", target=STUDY, depth=1)
    with pytest.raises(Forbidden, match="came from there"):
        delegation.delegate(ole, to="mia", target=SERIES)
    place.node.accounts.revoke_grant(mia, given["id"])


def test_it_rests_while_the_giver_has_it_no_longer(place: Ward) -> None:
    accounts, mia, kim = place.node.accounts, place.by_session("mia"), place.by_session("kim")
    given = place.node.delegation.delegate(mia, to="kim", target=STUDY)

    def state() -> str:
        return str(next(row["state"] for row in accounts.list_grants(place.console, to="kim", ended=True) if row["id"] == given["id"]))

    deny = accounts.add_grant(place.console, to="mia", role="referrer", target=SERIES, deny=True)
    assert place.seen(kim) == {f"{FIRST}.2"}, "what is denied to the giver is not escaped by passing it on"
    accounts.revoke_grant(place.console, deny["id"])
    assert (place.seen(kim), state()) == (BOTH, "active")
    accounts.disable_user(place.console, "mia")
    assert (place.seen(kim), state()) == (set(), "suspended")
    accounts.enable_user(place.console, "mia")
    assert (place.seen(kim), state()) == (BOTH, "active")
    accounts.revoke_grant(place.console, given["id"])


def test_tampering_with_what_it_stands_on_is_found(place: Ward) -> None:
    mia, kim = place.by_session("mia"), place.by_session("kim")
    given = place.node.delegation.delegate(mia, to="kim", target=STUDY)
    root = given["parent"]
    for change in (
        sa.update(grant_lineage).where(grant_lineage.c.grant_id == given["id"]).values(giver_id=kim.principal_id),
        sa.delete(grant_lineage).where(grant_lineage.c.grant_id == given["id"]),
        sa.update(grants).where(grants.c.id == given["id"]).values(parent_id=None),
        sa.update(grants).where(grants.c.id == given["id"]).values(permissions=int(Permission.SEARCH | Permission.PURGE)),
        sa.update(grants).where(grants.c.id == root).values(depth_left=5),
        sa.insert(grant_lineage).values(grant_id=root, ancestor_id=given["id"], giver_id=kim.principal_id),
    ):
        with place.node.core.database.begin() as tx:
            before = [tx.execute(sa.select(table)).mappings().all() for table in (grants, grant_lineage)]
            tx.execute(change)
        assert any(one.startswith("V12") for one in place.findings()), change
        with place.node.core.database.begin() as tx:
            tx.execute(sa.delete(grant_lineage))
            for row in before[0]:
                tx.execute(sa.update(grants).where(grants.c.id == row["id"]).values(dict(row)))
            tx.execute(sa.insert(grant_lineage), [dict(row) for row in before[1]])
        assert place.findings() == []
    place.node.accounts.revoke_grant(mia, given["id"])
