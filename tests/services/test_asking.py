"""Asking again for some instances at once answers what asking for each of them would."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from archive.access.grants import Target
from archive.access.permissions import Permission
from archive.access.policy import Scope, scope_of
from archive.access.subject import Subject
from archive.config import Config
from archive.db import commits
from archive.db.engine import Database
from archive.index import locate
from archive.ledger.audit import Event, Kind
from archive.node import Node
from archive.services.asking import Asking
from tests.services import archives
from tests.services.ward import Clock

STUDY, COUNT = "1.2.70", 40


@dataclass(frozen=True)
class Place:
    """A series of forty, and kim, who may see it for an hour."""

    node: Node
    clock: Clock
    kim: Subject
    grant: dict[str, Any]

    def scope(self, at: datetime) -> Scope:
        return scope_of(self.kim, Permission.ORIGINAL, at)

    def asking(self) -> Asking[bytes]:
        rows, database = {row.instance_pk: row for row in self.rows()}, self.node.core.database
        return Asking(
            self.node.core, list(rows),
            lambda key, at: rows[key].ref.object_id if locate.still(database, self.scope(at), rows[key]) else None,
            lambda first, last, at: locate.still_between(database, self.scope(at), first, last),
        )

    def rows(self) -> list[locate.InstanceRow]:
        core = self.node.core
        with core.database.read() as tx:
            return locate.locate(tx, self.scope(self.clock()), 1, STUDY)

    def fresh(self, row: locate.InstanceRow) -> bool:
        return locate.still(self.node.core.database, self.scope(self.clock()), row)


@contextmanager
def made(config: Config) -> Iterator[Place]:
    clock = Clock()
    with archives.opened(config, clock=clock) as node:
        for number in range(1, COUNT + 1):
            archives.store(node, archives.instance(number, study=STUDY, rows=1))
        console = archives.the_console(node)
        node.accounts.add_user(console, "kim")
        grant = node.accounts.add_grant(console, to="kim", role="radiologist", target=Target("study", STUDY), until="1h")
        yield Place(node, clock, archives.user(node, "kim"), grant)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with made(archives.made(tmp_path)) as found:
        yield found


@pytest.fixture
def anywhere(tmp_path: Path, engine: dict[str, Any]) -> Iterator[Place]:
    """The same on each engine."""
    with made(archives.made(tmp_path, **engine)) as found:
        yield found


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements that asked the rule."""
    found: list[str] = []
    for name in ("still", "still_between"):
        real: Callable[..., Any] = getattr(locate, name)

        def noted(*arguments: Any, name: str = name, real: Callable[..., Any] = real) -> Any:
            found.append(name)
            return real(*arguments)

        monkeypatch.setattr(locate, name, noted)
    return found


def test_it_answers_what_asking_for_each_would(anywhere: Place) -> None:
    """Whatever happens between two instances, by whom and however often, the next one is answered as a statement of its own is."""
    place = anywhere
    node, console, rows = place.node, archives.the_console(place.node), place.rows()
    number, chosen = itertools.count(1), random.Random(7)
    denied: list[int] = []

    def deny() -> None:
        denied.append(node.accounts.add_grant(console, to="kim", role="researcher", target=Target("study", STUDY), deny=True)["id"])

    def allow() -> None:
        if denied:
            node.accounts.revoke_grant(console, denied.pop())

    def other_process() -> None:
        with archives.opened(node.core.config, role="cli") as other:
            if denied:
                other.accounts.revoke_grant(archives.the_console(other), denied.pop())

    def reject() -> None:
        row = chosen.choice(rows)
        if place.fresh(row):
            node.remove.reject(console, "clinical", "instance", row.sop_instance_uid, reason="test")

    def wait() -> None:
        place.clock.at += timedelta(minutes=chosen.choice([0, 0, 9]))

    acts: list[Callable[[], None]] = [deny, allow, allow, other_process, reject, wait]
    answers = set()
    asked = [place.asking() for _ in range(3)]
    for again in asked:
        for one, row in enumerate(rows):
            if chosen.random() < 0.3:
                acts[next(number) % len(acts)]()
            answers.add(expected := place.fresh(row))
            assert (again.now(one) == row.ref.object_id) is expected, (one, expected)
    assert answers == {True, False}


def test_few_statements_when_nothing_happens_and_one_for_each_when_all_do(place: Place, counted: list[str]) -> None:
    again = place.asking()
    assert all(again.now(number) for number in range(COUNT))
    assert counted == ["still", *["still_between"] * 10], "1, 2, 4, 8, 16 and the rest, each now and at the end of the moment"
    counted.clear()
    for number in range(COUNT):
        place.node.accounts.add_user(archives.the_console(place.node), f"user{number}")
        assert again.now(number)
    assert counted == ["still"] * COUNT


def ends_at(place: Place, again: Asking[bytes], moment: datetime) -> None:
    """It answers yes to the last microsecond before and no at the moment itself, though an answer may hold for longer than is left."""
    assert all(again.now(number) for number in range(8))
    for number, left_us in enumerate((60_000, 20_000, 10_000, 1), start=8):
        place.clock.at = moment - timedelta(microseconds=left_us)
        assert again.now(number), left_us
    place.clock.at = moment
    assert not again.now(12)


def test_a_right_that_ends_by_the_clock_ends_then(place: Place) -> None:
    again, until = place.asking(), place.grant["until"]
    ends_at(place, again, until)
    place.clock.at = until - timedelta(seconds=1)
    assert again.now(13), "the clock was set back"


def test_a_denial_that_begins_by_the_clock_begins_then(place: Place) -> None:
    begins = place.clock.at + timedelta(minutes=10)
    place.node.accounts.add_grant(
        archives.the_console(place.node), to="kim", role="researcher", target=Target("study", STUDY), deny=True, since=begins
    )
    again = place.asking()
    ends_at(place, again, begins)


def test_a_clock_that_is_set_back_a_moment_is_asked_again(place: Place) -> None:
    """What was asked holds from then on, not before."""
    rows, begins = place.rows(), place.clock.at + timedelta(minutes=90)
    place.node.accounts.add_grant(
        archives.the_console(place.node), to="kim", role="radiologist", target=Target("study", STUDY), since=begins
    )
    place.clock.at = begins
    again = place.asking()
    assert all(again.now(number) for number in range(8))
    place.clock.at = begins - timedelta(milliseconds=20)
    assert not place.fresh(rows[8])
    assert not again.now(8)


def test_the_state_is_equal_only_while_nobody_commits(place: Place) -> None:
    database: Database = place.node.core.database
    before = commits.state(database)
    assert commits.state(database) == before
    with database.read():
        assert commits.state(database) == before, "reading is no change"
    place.node.accounts.add_user(archives.the_console(place.node), "ida")
    own = commits.state(database)
    assert own != before, "a commit of this process"
    with database.glance():
        assert commits.state(database) != own, "another connection says nothing about the first"
    core, own = place.node.core, commits.state(database)
    core.database.group(lambda tx: core.ledger.record(tx, Event(Kind.READ, subject=place.kim), at=core.clock()))
    found = commits.state(database)
    assert own is not None
    assert found is not None
    assert found[0] is own[0], "a group commits on the connection that is lent next"
    assert found != own, "its own commit"
    own = commits.state(database)
    with archives.opened(place.node.core.config, role="cli") as other:
        other.accounts.add_user(archives.the_console(other), "ole")
    assert commits.state(database) != own, "a commit of another process"
