"""Access reviews: decided by somebody else, carried out and signed in one transaction."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from archive.access.grants import Target
from archive.errors import Forbidden, InvalidRequest, NotFound, StateConflict
from archive.ledger import proofs
from archive.node import Node
from archive.services.clock import utc_now
from archive.services.review_rows import Chosen
from archive.services.reviews import Reviews
from tests.services import archives


class Clock:
    def __init__(self) -> None:
        self.now = utc_now()

    def __call__(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def node(tmp_path: Path, clock: Clock, usually: dict[str, Any]) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path, **usually), clock=clock) as opened:
        console = archives.the_console(opened)
        archives.store(opened, archives.instance(1, study="1.2.1"))
        for name in ("ann", "bob"):
            opened.accounts.add_user(console, name)
        opened.accounts.add_user(console, "boss", roles=["security-officer"])
        opened.accounts.add_user(console, "dora", roles=["auditor"])
        opened.accounts.add_group(console, "ward")
        opened.accounts.join_group(console, "ward", "bob")
        opened.accounts.add_grant(console, to="ann", role="radiologist", target=Target("study", "1.2.1"))
        opened.accounts.add_grant(console, to="ward", role="referrer", target=Target("everything"), until="30d")
        opened.accounts.add_grant(console, to="ann", role="referrer", target=Target("patient", "P1"), deny=True)
        yield opened


def start(node: Node, clock: Clock, **chosen: Any) -> dict[str, Any]:
    return node.reviews.start(archives.the_console(node), "quarterly", due=clock.now + timedelta(days=14), chosen=Chosen(**chosen))


def items(node: Node, number: int) -> list[dict[str, Any]]:
    return list(node.reviews.show(archives.the_console(node), number)["items"])


def named(node: Node, clock: Clock, **chosen: Any) -> list[tuple[str, str, str]]:
    return [(row["subject"], row["role"], row["level"]) for row in items(node, start(node, clock, **chosen)["id"])]


ALLOWS = [("admin", "owner", "everything"), ("ann", "radiologist", "study"), ("ward", "referrer", "everything")]
ROLES = [("admin", "owner", "functions"), ("boss", "security-officer", "functions"), ("dora", "auditor", "functions")]


def test_which_rows(node: Node, clock: Clock) -> None:
    assert named(node, clock) == ALLOWS + ROLES  # a denial shows nothing
    assert named(node, clock, endless=True) == [*ALLOWS[:2], *ROLES]
    assert named(node, clock, group="ward") == [ALLOWS[2]]
    assert named(node, clock, role="auditor") == [ROLES[2]]
    assert named(node, clock, roles=False) == ALLOWS
    assert named(node, clock, grants=False) == ROLES
    clock.now += timedelta(days=20)
    node.accounts.add_grant(archives.the_console(node), to="bob", role="referrer", target=Target("study", "1.2.1"))
    assert named(node, clock, older_days=10) == ALLOWS + ROLES
    assert ("bob", "referrer", "study") in named(node, clock)
    with pytest.raises(InvalidRequest):
        start(node, clock, role="researcher")
    with pytest.raises(NotFound):
        start(node, clock, group="nobody")
    with pytest.raises(InvalidRequest):
        node.reviews.start(archives.the_console(node), "t", due=clock.now, chosen=Chosen())


def test_last_use(node: Node, clock: Clock) -> None:
    ann, bob = archives.user(node, "ann"), archives.user(node, "bob")
    console = archives.the_console(node)
    node.accounts.revoke_grant(console, 4)  # the denial
    for subject in (ann, bob):
        if subject is bob:
            node.accounts.add_grant(console, to="bob", role="radiologist", target=Target("study", "1.2.1"))
        for found in node.retrieve.instances(subject, "clinical", "1.2.1"):
            for view in node.retrieve.open(subject, found):
                bytes(view)
    used = {(row["subject"], row["level"]): row["last_used_at"] for row in items(node, start(node, clock, roles=False)["id"])}
    assert used["admin", "everything"] == ""
    assert used["ann", "study"] < used["bob", "study"]
    assert used["ward", "everything"] == used["bob", "study"]  # by its member


@pytest.mark.parametrize("usually", ["sqlite", "postgresql"], indirect=True)
def test_decided_closed_and_signed(node: Node, clock: Clock) -> None:
    console, boss = archives.the_console(node), archives.user(node, "boss")
    number = start(node, clock)["id"]
    rows = {(row["subject"], row["level"]): row["id"] for row in items(node, number)}
    node.reviews.decide(boss, number, [rows["ann", "study"], rows["dora", "functions"]], "revoke", note="left the house")
    node.reviews.decide(boss, number, [rows["ward", "everything"]], "keep")
    with pytest.raises(StateConflict):
        node.reviews.close(console, number)
    assert [row["state"] for row in node.accounts.list_grants(console, to="ann")] == ["active", "active"]  # nothing yet
    with pytest.raises(Forbidden):
        node.reviews.close(boss, number, undecided="keep")  # one of those rows is boss's own
    done = node.reviews.close(console, number, undecided="keep")
    assert (done["state"], done["revoked"], done["kept"]) == ("closed", 2, 4)
    assert [row["effect"] for row in node.accounts.list_grants(console, to="ann")] == ["deny"]
    assert "auditor" not in node.accounts.show_user(console, "dora")["roles"]
    record = {(row["subject"], row["level"]): row for row in items(node, number)}
    assert {key: (row["decision"], row["by"], row["note"]) for key, row in record.items()} == {
        ("admin", "everything"): ("keep", "console", ""), ("ann", "study"): ("revoke", "boss", "left the house"),
        ("ward", "everything"): ("keep", "boss", ""), ("admin", "functions"): ("keep", "console", ""),
        ("boss", "functions"): ("keep", "console", ""), ("dora", "functions"): ("revoke", "boss", "left the house"),
    }
    node.upkeep.checkpoint()
    assert proofs.check(node.oversight.prove(console, str(done["leaf"]))).leaf["k"] == "access-reviewed"
    with pytest.raises(StateConflict):
        node.reviews.decide(boss, number, [1], "keep")
    with pytest.raises(StateConflict):
        node.reviews.close(console, number)
    assert node.verify.run(console, "quick").findings == []


def test_what_ended_meanwhile_is_told_as_that(node: Node, clock: Clock) -> None:
    console = archives.the_console(node)
    number = start(node, clock, group="ward")["id"]
    [row] = items(node, number)
    node.reviews.decide(console, number, [row["id"]], "revoke")
    node.accounts.revoke_grant(console, row["number"])
    assert node.reviews.close(console, number)["revoked"] == 0
    assert [one["done"] for one in items(node, number)] == ["ended before"]


def test_all_of_it_or_nothing(node: Node, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    console = archives.the_console(node)
    number = start(node, clock)["id"]
    real, done = Reviews._carry_out, []

    def fails_at_the_third(self: Reviews, *args: Any) -> str:
        done.append(1)
        if len(done) == 3:
            raise OSError(5, "no")
        return real(self, *args)

    monkeypatch.setattr(Reviews, "_carry_out", fails_at_the_third)
    with pytest.raises(Exception):  # noqa: B017, PT011 # whatever it is told as
        node.reviews.close(console, number, undecided="revoke")
    monkeypatch.undo()
    assert len(node.accounts.list_grants(console)) == 4
    assert node.reviews.list(console)[0]["state"] == "open"


def test_nobody_reviews_their_own(node: Node, clock: Clock) -> None:
    console, boss = archives.the_console(node), archives.user(node, "boss")
    node.accounts.join_group(console, "ward", "boss")
    number = start(node, clock)["id"]
    rows = {(row["subject"], row["level"]): row["id"] for row in items(node, number)}
    for own in (rows["boss", "functions"], rows["ward", "everything"]):
        with pytest.raises(Forbidden):
            node.reviews.decide(boss, number, [rows["ann", "study"], own], "keep")
    assert node.reviews.list(console)[0]["undecided"] == len(rows)
    with pytest.raises(NotFound):
        node.reviews.decide(boss, number, [rows["ann", "study"], 10**9], "keep")
    for who in ("ann", "dora"):
        with pytest.raises(Forbidden):
            node.reviews.decide(archives.user(node, who), number, [rows["ann", "study"]], "keep")
    with pytest.raises(Forbidden):
        node.reviews.list(archives.user(node, "ann"))
    assert node.reviews.show(archives.user(node, "dora"), number)["items"]  # an auditor looks, and that is recorded
    [row] = node.oversight.search(console, user="dora", kinds=["audit-read"])
    assert row["body"]["detail"] == {"review": number, "what": "access review"}


def test_doctor_tells_of_a_late_one(node: Node, clock: Clock) -> None:
    console = archives.the_console(node)
    number = start(node, clock)["id"]
    assert not [one for one in node.health.checks() if one.name == "access reviews"]
    clock.now += timedelta(days=15)
    [check] = [one for one in node.health.checks() if one.name == "access reviews"]
    assert (check.state, "quarterly" in check.detail) == ("warning", True)
    node.reviews.close(console, number, undecided="keep")
    assert not [one for one in node.health.checks() if one.name == "access reviews"]
