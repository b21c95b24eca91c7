"""Who could see what, then: what the replay of the ledger says is what was seen when it was looked at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
import sqlalchemy as sa

from archive.access import principals
from archive.access.grants import Target
from archive.access.permissions import Permission
from archive.access.policy import scope_of
from archive.access.subject import Subject
from archive.db.tables import audit_event, grants, study
from archive.errors import ArchiveError, Forbidden, InvalidRequest, NotFound
from archive.node import Node
from archive.services.arrival_admin import NewRule
from archive.services.arrival_terms import Conditions
from archive.services.clock import utc_now
from tests.services import archives

STEPS = int(os.environ.get("ARCHIVE_TEST_REPLAY", "30"))
"""How long the random history is; a long run sets more."""

PEOPLE = ("ann", "bob", "cem")
STUDIES = ("1.2.1", "1.2.2", "1.2.3", "1.2.4")


class Clock:
    def __init__(self) -> None:
        self.now = utc_now() - timedelta(days=400)

    def __call__(self) -> datetime:
        self.now += timedelta(milliseconds=7)
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def node(tmp_path: Path, clock: Clock, usually: dict[str, Any]) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path, **usually), clock=clock) as opened:
        clock.now = max(clock.now, utc_now())  # the archive itself was made now
        yield opened


def seen(node: Node, at: datetime) -> dict[str, set[str]]:
    """The truth of the moment, from the tables as they are."""
    found: dict[str, set[str]] = {}
    with node.core.database.read() as tx:
        for row in principals.listed(tx, ("user", "service", "device")):
            scope = scope_of(Subject(row["id"], row["name"], "user", "internal"), Permission.SEARCH, at)
            found[row["name"]] = set(scope.run(tx, sa.select(study.c.study_instance_uid).where(scope.study(study))).scalars())
    return found


def told(node: Node, at: datetime, who: str) -> set[str]:
    answer = node.ledger_replay.at(archives.the_console(node), when=at, who=who)
    return {row["study_instance_uid"] for row in answer["studies"]}


def counts(node: Node, **moment: Any) -> dict[str, int]:
    return {one["name"]: one["studies"] for one in node.ledger_replay.at(archives.the_console(node), **moment)["people"]}


class World:
    """A random history done to an archive; what was refused changed nothing."""

    def __init__(self, node: Node, clock: Clock, random: Random) -> None:
        self.node, self.clock, self.random = node, clock, random
        self.console = archives.the_console(node)
        self.number = 0
        for name in PEOPLE:
            node.accounts.add_user(self.console, name)
        for name in ("ward", "lab"):
            node.accounts.add_group(self.console, name)
        node.accounts.add_role(self.console, "viewer", ["search", "pixels"])

    def step(self) -> None:
        self.clock.now += timedelta(minutes=self.random.choice([1, 1, 5, 30, 60 * 24]))
        todo = self.random.choice([
            self.store, self.store, self.store, self.grant, self.grant, self.grant, self.revoke, self.join, self.leave, self.switch,
            self.remove, self.restore, self.role, self.rule,
        ])
        with suppress(ArchiveError):
            todo()

    def some(self, *more: str) -> str:
        return self.random.choice([*PEOPLE, *more])

    def window(self) -> dict[str, Any]:
        pick = self.random.choice
        return {"since": pick([None, None, "2h", "3d"]), "until": pick([None, "4h", "2d", "30d"])}

    def store(self) -> None:
        self.number += 1
        uid = self.random.choice(STUDIES)
        patient = None if uid == "1.2.4" and self.random.random() < 0.7 else f"P{STUDIES.index(uid) % 2}"
        modality = self.random.choice(["CT", "MR"])
        archives.store(self.node, archives.instance(
            self.number, study=uid, series=f"{uid}.{1 if modality == 'CT' else 2}", Modality=modality, PatientID=patient,
        ))

    def grant(self) -> None:
        pick = self.random.choice
        uid = pick(STUDIES)
        target = pick([
            Target("everything"), Target("patient", f"P{pick([0, 1])}"), Target("study", uid), Target("series", f"{uid}.1"),
            Target("study", uid), Target("patient", "P7", expected=True),
        ])
        self.node.accounts.add_grant(
            self.console, to=self.some("ward", "lab"), role=pick(["radiologist", "viewer", "referrer"]), target=target,
            deny=self.random.random() < 0.2, modality=pick(["", "", "CT", "MR"]), **self.window(),
        )

    def revoke(self) -> None:
        live = [row["id"] for row in self.node.accounts.list_grants(self.console) if row["id"] > 1]
        if live:
            self.node.accounts.revoke_grant(self.console, self.random.choice(live))

    def join(self) -> None:
        self.node.accounts.join_group(self.console, self.random.choice(["ward", "lab"]), self.some(), **self.window())

    def leave(self) -> None:
        self.node.accounts.leave_group(self.console, self.random.choice(["ward", "lab"]), self.some())

    def switch(self) -> None:
        (self.node.accounts.disable_user if self.random.random() < 0.5 else self.node.accounts.enable_user)(self.console, self.some())

    def remove(self) -> None:
        self.node.remove.reject(self.console, "clinical", "study", self.random.choice(STUDIES), reason="r")

    def restore(self) -> None:
        self.node.remove.restore(self.console, "clinical", "study", self.random.choice(STUDIES), reason="r")

    def role(self) -> None:
        bit = self.random.choice(["search", "pixels", "metadata"])
        self.node.accounts.change_role(self.console, "viewer", **{self.random.choice(["add", "remove"]): [bit]})

    def rule(self) -> None:
        terms = Conditions(modality=(self.random.choice(["CT", "MR"]),))
        self.node.arrival_rules.add(self.console, NewRule(f"r{self.number}", self.some("ward"), "referrer", terms, lifetime_s=86400 * 3))


@pytest.mark.parametrize("seed", [int(os.environ.get("ARCHIVE_TEST_SEED", "3"))])
def test_what_is_replayed_is_what_was_seen(node: Node, clock: Clock, seed: int) -> None:
    world = World(node, clock, Random(seed))
    moments: list[tuple[datetime, int, dict[str, set[str]]]] = []
    for number in range(STEPS):
        world.step()
        if number % 10 == 9:
            clock.now += timedelta(seconds=1)
            with node.core.database.read() as tx:
                size = node.core.ledger.size(tx)
            moments.append((clock.now, size, seen(node, clock.now)))
            clock.now += timedelta(seconds=1)
    assert any(any(one.values()) for _, _, one in moments), "a world in which nobody saw anything shows nothing"
    for at, _size, then in moments:
        assert counts(node, when=at) == {name: len(uids) for name, uids in then.items()}, at
        for name in [name for name in then if STEPS > 30 or name in world.random.sample(PEOPLE, 2)]:
            assert told(node, at, name) == then[name], (at, name)
    at, size, _ = moments[-1]
    with node.core.database.read() as tx:
        last = tx.execute(sa.select(sa.func.max(audit_event.c.at)).where(audit_event.c.n < size)).scalar_one()
    assert counts(node, size=size) == counts(node, when=last)


def put(node: Node, uid: str, number: int = 1, **attributes: Any) -> None:
    archives.store(node, archives.instance(number, study=uid, **attributes))


@pytest.mark.parametrize("usually", ["sqlite", "postgresql"], indirect=True)
def test_who_could_see_a_study_and_because_of_what(node: Node, clock: Clock) -> None:
    console = archives.the_console(node)
    for name in PEOPLE:
        node.accounts.add_user(console, name)
    put(node, "1.2.1")
    before = clock()
    given = node.accounts.add_grant(console, to="ann", role="radiologist", target=Target("study", "1.2.1"), reason="opinion", until="2d")
    token = node.accounts.create_token(console, owner="ann", studies=["1.2.1"], permissions=["search"])
    then = clock()
    clock.now += timedelta(days=3)
    after = clock()
    asked = [node.ledger_replay.at(console, when=at, study_instance_uid="1.2.1") for at in (before, then, after)]
    assert [[one["name"] for one in answer["people"]] for answer in asked] == [["admin"], ["admin", "ann"], ["admin"]]
    ann = asked[1]["people"][1]
    assert ann["because"] == [{"grant": given["id"], "role": "radiologist", "level": "study", "reason": "opinion"}]
    assert "pixels" in ann["permissions"]
    assert (asked[1]["existed"], asked[1]["instances"], asked[1]["notes"]) == (True, 1, [])
    of_ann = node.ledger_replay.at(console, when=then, who="ann")
    assert [(one["id"], one["bounded_to"]) for one in of_ann["tokens"]] == [(token["id"], ["1.2.1"])]
    assert not node.ledger_replay.at(console, when=then, study_instance_uid="9.9")["existed"]


def test_what_was_rejected_restored_and_purged(node: Node, clock: Clock) -> None:
    console = archives.the_console(node)
    put(node, "1.2.1")
    put(node, "1.2.2", PatientID="P2")
    stored = clock()
    node.remove.reject(console, "clinical", "study", "1.2.1", reason="r")
    rejected = clock()
    node.remove.restore(console, "clinical", "study", "1.2.1", reason="r")
    restored = clock()
    assert [told(node, at, "admin") for at in (stored, rejected, restored)] == [{"1.2.1", "1.2.2"}, {"1.2.2"}, {"1.2.1", "1.2.2"}]
    node.accounts.add_user(console, "ann")
    node.accounts.add_grant(console, to="ann", role="radiologist", target=Target("study", "1.2.1"))
    node.accounts.add_grant(console, to="ann", role="radiologist", target=Target("everything"), modality="MR")
    granted = clock()
    node.remove.reject(console, "clinical", "study", "1.2.1", reason="r")
    clock.now += timedelta(days=400)
    node.purge.run(console, study="1.2.1", reason="gone")
    assert told(node, clock(), "admin") == {"1.2.2"}
    assert told(node, granted, "ann") == {"1.2.1"}
    answer = node.ledger_replay.at(console, when=granted, study_instance_uid="1.2.1")
    assert answer["existed"]
    assert any("purged" in note for note in answer["notes"])


def test_a_patient_nobody_named_yet(node: Node, clock: Clock) -> None:
    console = archives.the_console(node)
    node.accounts.add_user(console, "ann")
    put(node, "1.2.9", PatientID="P1")
    node.accounts.add_grant(console, to="ann", role="radiologist", target=Target("patient", "P1"))
    put(node, "1.2.1", PatientID=None)
    nameless = clock()
    put(node, "1.2.1", 2, PatientID="P1")
    assert (told(node, nameless, "ann"), told(node, clock(), "ann")) == ({"1.2.9"}, {"1.2.9", "1.2.1"})


def test_who_is_gone_by_now(node: Node, clock: Clock) -> None:
    console = archives.the_console(node)
    node.accounts.add_user(console, "ann")
    node.accounts.add_group(console, "ward")
    node.accounts.join_group(console, "ward", "ann")
    node.accounts.add_grant(console, to="ward", role="radiologist", target=Target("everything"))
    put(node, "1.2.1")
    then = clock()
    node.accounts.remove_user(console, "ann")
    node.accounts.remove_group(console, "ward")
    node.accounts.add_user(console, "ann")  # another of that name
    assert [row["study_instance_uid"] for row in node.ledger_replay.at(console, when=then, who="ann")["studies"]] == ["1.2.1"]
    assert node.ledger_replay.at(console, when=clock(), who="ann")["studies"] == []


def test_what_events_do_not_carry_is_said(node: Node, clock: Clock) -> None:
    console = archives.the_console(node)
    node.accounts.add_user(console, "ann")
    put(node, "1.2.1")
    given = node.accounts.add_grant(console, to="ann", role="radiologist", target=Target("everything"))
    n = node.oversight.search(console, kinds=["granted"])[0]["id"]
    then = clock()
    with node.core.database.begin() as tx:
        tx.execute(sa.delete(grants).where(grants.c.id == given["id"]))
    answer = node.ledger_replay.at(console, when=then, who="ann")
    assert (answer["studies"], len(answer["notes"])) == ([], 1)
    assert f"grant {given['id']}" in answer["notes"][0]
    with node.core.database.begin() as tx:
        tx.execute(sa.update(audit_event).where(audit_event.c.n == n).values(body=None))
    assert "erased" in node.ledger_replay.at(console, when=then, who="ann")["notes"][0]


def test_who_may_ask_and_what(node: Node, clock: Clock) -> None:
    console = archives.the_console(node)
    node.accounts.add_user(console, "ann")
    node.accounts.add_user(console, "dora", roles=["auditor"])
    dora = archives.user(node, "dora")
    at = clock()
    with pytest.raises(Forbidden):
        node.ledger_replay.at(archives.user(node, "ann"), when=at)
    node.ledger_replay.at(dora, when=at, study_instance_uid="1.2.1")
    [row] = node.oversight.search(console, user="dora", kinds=["audit-read"])
    assert (row["body"]["detail"]["what"], row["body"]["objects"]) == ("replay", [["study", "1.2.1"]])
    for bad in ({}, {"when": at, "size": 3}, {"size": 0}, {"size": 10**6}, {"when": clock.now + timedelta(days=1)},
                {"when": at, "who": "ann", "study_instance_uid": "1.2"}):
        with pytest.raises(InvalidRequest):
            node.ledger_replay.at(dora, **bad)  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        node.ledger_replay.at(dora, when=at, who="nobody")


def test_what_had_given_its_place_was_not_in_sight_though_it_is_purged_since(node: Node, clock: Clock) -> None:
    console, uid = archives.the_console(node), "1.2.1"
    archives.store(node, archives.instance(1, study=uid))
    first = clock()
    archives.store(node, archives.instance(1, study=uid, StudyDescription="else"))
    (waiting,) = node.reconcile.list(console)
    node.reconcile.accept(console, waiting["id"], reason="better")
    accepted = clock()
    node.remove.reject(console, "clinical", "study", uid, reason="test")
    rejected = clock()
    assert node.purge.run(console, study=uid, reason="test").instances == 2
    counted = [node.ledger_replay.at(console, when=at, study_instance_uid=uid)["instances"] for at in (first, accepted, rejected)]
    assert counted == [1, 1, 0]
