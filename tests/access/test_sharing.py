"""Share links and albums in the SQL condition: the rule, each clause of it, and that nobody is shown more than whoever shared may see."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import sqlalchemy as sa

from archive.access import policy, predicate
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.engine import Database
from tests.access import oracle, sharing_worlds
from tests.access.sharing_worlds import SharingWorld
from tests.access.test_predicate import SE, clauses_of, differs, inhabited, without

WORLDS = int(os.environ.get("ARCHIVE_TEST_WORLDS", "8"))
KILLING = (
    3, 4, 5, 6, 9, 15, 20, 21, 24, 25, 30, 31, 35, 37, 57, 59, 65, 66, 100, 101, 108, 110, 112, 142, 172, 219, 228, 247,
)
"""Worlds that show most clauses, first; any other order shows them too, in longer."""
Question = tuple[policy.Scope, dict[str, set[int]], str]


def questions(seed: int, world: SharingWorld, count: int) -> list[Question]:
    """Who asks, what the rule answers, and how to say it."""
    asked = []
    for subject, need, at in sharing_worlds.visitors(seed, world, count):
        series, studies, patients = oracle.visible(world, subject, need, at)
        answer = {"series": series, "study": studies, "patient": patients, "entire": oracle.entire(world, subject, need, at)}
        asked.append((policy.scope_of(subject, need, at), answer, f"seed {seed}: {subject} {need!r} at {at}"))
    return asked


def test_the_condition_is_the_rule(database: Database) -> None:
    shown = 0
    for seed in range(WORLDS):
        world = sharing_worlds.near(seed) if seed % 2 else sharing_worlds.draw(seed)
        with inhabited(database, world) as tx:
            for scope, answer, who in questions(seed, world, 10):
                assert not differs(tx, predicate, scope, answer), who
                shown += bool(answer["series"])
    assert shown >= WORLDS / 2


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_nobody_is_shown_more_than_who_shared_sees_and_may_share(database: Database) -> None:
    links = albums = 0
    for seed in range(2 * WORLDS):
        world = sharing_worlds.near(seed) if seed % 4 else sharing_worlds.draw(seed)
        with inhabited(database, world) as tx:

            def seen(subject: Subject, need: Permission, at: object, tx: sa.Connection = tx) -> set[int]:
                scope = policy.scope_of(subject, need, at)  # type: ignore[arg-type]
                return set(scope.run(tx, sa.select(SE.c.id).where(scope.series(SE))).scalars())

            for subject, need, at in sharing_worlds.visitors(seed, world, 12):
                mine = seen(subject, need, at)
                if subject.share_id is not None:
                    owner = Subject(subject.principal_id, "", "user", "internal", context=subject.context)
                    items = [one["scope_key"] for one in world.boundary_item if one["boundary_id"] in subject.boundary_ids[:1]]
                    bound = {se["id"] for se in world.series if any(oracle.names(key, se) for key in items)}
                    assert mine <= seen(owner, need | Permission.SHARE, at) & bound
                    links += bool(mine)
                    continue
                by_album = [one for one in world.grants if one["kind"] == "shared"]
                givers = {one["granted_by"] for one in by_album if one["subject_id"] in oracle.identities(world, subject.principal_id, at)}
                alone = replace(world, grants=[{**one, "permissions": 0} if one["kind"] == "shared" else one for one in world.grants])
                own = oracle.visible(alone, subject, need, at)[0]
                given = [oracle.visible(alone, Subject(one, "", "user", "internal"), need | Permission.SHARE, at)[0] for one in givers]
                assert mine <= own.union(*given)
                albums += bool(mine - own)
    assert min(links, albums) > WORLDS / 4


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_every_clause_is_missed_when_it_is_gone(database: Database) -> None:
    clauses = clauses_of(sharing=True)
    assert len(clauses) > 30
    waiting = {clause: without(*clause) for clause in clauses}
    compiled: dict[object, object] = {}
    for seed in (*KILLING, *range(1000)):
        if not waiting:
            break
        world = sharing_worlds.near(seed)
        asked = questions(seed, world, 10)
        with inhabited(database, world) as plain:
            tx = plain.execution_options(compiled_cache=compiled)
            for clause, rule in list(waiting.items()):
                wanted = "entire" if clause[0] == "entire_study_condition" else "series"
                of = [one for one in asked if one[0].shape.share == (clause[0] == "share_is_live")]
                if any(differs(tx, rule, scope, answer, wanted) for scope, answer, _ in of):
                    del waiting[clause]
    assert not sorted(waiting)
