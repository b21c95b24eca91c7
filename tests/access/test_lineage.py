"""T17: what was passed on is never more than its givers see, at any moment; and each clause of that is missed when it is gone."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from random import Random
from types import ModuleType

import pytest
import sqlalchemy as sa

import archive.access
from archive.access import grants, lineage, policy, predicate
from archive.access.grants import Terms
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db import tables
from archive.db.engine import Database
from archive.db.types import FOREVER
from tests.access import rows, worlds
from tests.access.test_predicate import inhabited

TREES = int(os.environ.get("ARCHIVE_TEST_WORLDS", "12"))
SE = tables.series.alias("se")
BITS = Permission.SEARCH | Permission.METADATA | Permission.PIXELS | Permission.DELEGATE
Tree = dict[int, int]


def seen(tx: sa.Connection, who: int, need: Permission, hour: int) -> set[int]:
    scope = policy.scope_of(Subject(who, "", "user", "internal", context=3), need, worlds.hour(hour))
    return set(scope.run(tx, sa.select(SE.c.id).where(scope.series(SE))).scalars())


def grow(tx: sa.Connection, r: Random, world: worlds.World) -> Tree:
    """Pass one grant on and on among users 21 to 26, who have nothing else; return who had it from whom."""
    token, from_whom, given = policy.system("access"), {}, {}
    people = list(range(21, 27))
    for who in people:
        policy.run_as(tx, token, sa.insert(tables.principal), {
            "id": who, "kind": "user", "name": f"u{who}", "enabled": r.random() < 0.95, "created_at": worlds.BASE,
        })
    for who in people:
        if r.random() < 0.4:
            tx.execute(sa.insert(tables.membership), {"principal_id": who, "group_id": r.choice([11, 12]), **worlds.window(r)})
    tx.execute(sa.delete(tables.grants).where(tables.grants.c.effect == 1))
    for number, who in enumerate(people):
        above = r.choice(people[:number]) if number else None
        scope = 0 if above is None else r.choice([given[above]["scope_key"], worlds.scope_key(r, world)])
        to = who if above is None or r.random() < 0.8 else r.choice([11, 12])
        bits = BITS if above is None else r.choice([BITS, BITS & ~Permission.PIXELS])
        terms = Terms(**worlds.window(r)) if number else Terms(not_before=worlds.hour(0), not_after=worlds.hour(8))
        if terms.not_after <= terms.not_before:
            terms = Terms(not_before=worlds.hour(0), not_after=worlds.hour(6))
        key = grants.give(
            tx, to=to, role_row=None, datastore_id=1, scope_key=scope, terms=terms, by=above or 0, at=worlds.BASE, permissions=bits,
            depth=5, parent_id=None if above is None else given[above]["id"],
        )
        given[who] = {"id": key, "scope_key": scope}
        if above is not None and to == who:
            from_whom[who] = above
        if to != who:  # a group's: its members may have it from several, so nobody is compared with a single giver
            tx.execute(sa.update(tables.grants).where(tables.grants.c.id == key).values(revoked_at=worlds.BASE))
    return from_whom


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_t17_nobody_sees_more_than_who_gave_it(database: Database) -> None:
    compared = less = 0
    for seed in range(TREES):
        world, r = worlds.draw(seed), Random(seed)
        world.grants = [row for row in world.grants if row["parent_id"] is None]
        world.grant_lineage = []
        with inhabited(database, world) as tx:
            from_whom = grow(tx, r, world)
            denies = sa.update(tables.grants).where(tables.grants.c.effect == 0, tables.grants.c.subject_id == 1)
            tx.execute(denies.values(subject_id=r.choice(list(range(21, 27)))))
            for step in range(3):
                for hour in (3, 4, 5, 6, 8):
                    for need in (Permission.SEARCH, Permission.SEARCH | Permission.PIXELS):
                        sets = {who: seen(tx, who, need, hour) for who in range(21, 27)}
                        for who, giver in from_whom.items():
                            assert sets[who] <= sets[giver], f"seed {seed} step {step} hour {hour}: {who} beyond {giver}"
                            compared += bool(sets[who])
                            less += bool(sets[giver] - sets[who])
                _shake(tx, r, world)
    assert compared > TREES
    assert less > TREES


def _shake(tx: sa.Connection, r: Random, world: worlds.World) -> None:
    """Something happens: a study moves to another patient, an account is switched off, a group is left, a deny comes, a grant ends."""
    token = policy.system("access")
    study, patient = r.choice(world.study), r.choice([p for p in world.patient if p["datastore_id"] == 1] or world.patient)
    policy.run_as(tx, token, sa.update(tables.series).where(tables.series.c.study_pk == study["id"]).values(patient_pk=patient["id"]))
    policy.run_as(tx, token, sa.update(tables.study).where(tables.study.c.id == study["id"]).values(patient_pk=patient["id"]))
    tx.execute(sa.update(tables.principal).where(tables.principal.c.id == r.choice([21, 22, 23, 24])).values(enabled=r.random() < 0.7))
    tx.execute(sa.delete(tables.membership).where(tables.membership.c.principal_id == r.choice([21, 22, 23])))
    series = r.choice(world.series)
    terms = Terms(not_before=worlds.hour(0), not_after=worlds.hour(9), deny=True)
    grants.give(
        tx, to=r.choice([21, 22, 23]), role_row=None, datastore_id=1, scope_key=series["id"] * 4 + 3, terms=terms, by=0, at=worlds.BASE,
        permissions=BITS,
    )


def test_a_subtree_ends_in_one_statement(place: rows.Place) -> None:
    with place.database.begin() as tx:
        terms = Terms(not_before=place.at)
        keys = [grants.give(tx, to=place.first.owner_id, role_row=None, datastore_id=place.first.datastore_id, scope_key=0, terms=terms,
                            by=0, at=place.at, permissions=BITS, depth=3)]
        for parent in (0, 1, 0, 3):
            keys.append(grants.give(
                tx, to=place.first.owner_id, role_row=None, datastore_id=place.first.datastore_id, scope_key=0, terms=terms,
                by=place.first.owner_id, at=place.at, permissions=BITS, parent_id=keys[parent],
            ))
        assert lineage.revoke_tree(tx, keys[1], by=1, at=place.at) == [keys[1], keys[2]]
        assert lineage.revoke_tree(tx, keys[0], by=1, at=place.at) == [keys[0], keys[3], keys[4]]
        assert lineage.revoke_tree(tx, keys[0], by=1, at=place.at) == []
        owners = tx.execute(sa.select(tables.grants.c.id).where(tables.grants.c.revoked_at.is_(None))).scalars().all()
        assert owners == [place.first.grant_id]


def test_a_datastore_is_there_only_while_what_was_passed_on_counts(place: rows.Place) -> None:
    with place.database.begin() as tx:
        other = rows.insert(tx, tables.datastore, uid=b"o" * 16, name="other", created_at=place.at)
        mia = rows.insert(tx, tables.principal, kind="user", name="mia", enabled=True, created_at=place.at)
        root = grants.give(tx, to=place.first.owner_id, role_row=None, datastore_id=other, scope_key=0, by=0, at=place.at,
                           terms=Terms(not_before=place.at), permissions=BITS, depth=1)
        grants.give(tx, to=mia, role_row=None, datastore_id=other, scope_key=0, by=place.first.owner_id, at=place.at,
                    terms=Terms(not_before=place.at), permissions=BITS, parent_id=root)
        asked = place.subject(mia), other, place.at + timedelta(hours=1)
        assert policy.reaches(tx, *asked)
        off = sa.update(tables.principal).where(tables.principal.c.id == place.first.owner_id)
        tx.execute(off.values(enabled=False))
        assert not policy.reaches(tx, *asked)
        tx.execute(off.values(enabled=True))
        assert policy.reaches(tx, *asked)
        tx.execute(sa.delete(tables.grant_lineage))
        assert not policy.reaches(tx, *asked)


# --- each clause ---


def _clauses() -> list[tuple[str, int, int]]:
    """Every argument of every conjunction, and every clause of a tuple of them, of lineage.py: (function, node, argument)."""
    found = []
    for function in ast.parse(inspect.getsource(lineage)).body:
        if not isinstance(function, ast.FunctionDef) or function.name not in CONDITIONS:
            continue
        for number, node in enumerate(ast.walk(function)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("where", "and_"):
                found += [(function.name, number, n) for n, one in enumerate(node.args) if _counts(one)]
            if isinstance(node, ast.Tuple) and len(node.elts) > 3:
                found += [(function.name, number, n) for n in range(len(node.elts))]
    return found


def _counts(argument: ast.expr) -> bool:
    # What stands on a deny is denied to who passed it on as well.
    return not isinstance(argument, ast.Starred) and ast.unparse(argument) != "a.c.effect == _ALLOW"


CONDITIONS = ("unbroken", "_every_link", "_standing", "_covering", "_is_passer")


def _without(name: str, number: int, argument: int) -> ModuleType:
    tree = ast.parse(inspect.getsource(lineage))
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    node = list(ast.walk(function))[number]
    parts = node.args if isinstance(node, ast.Call) else node.elts  # type: ignore[attr-defined]
    parts[argument] = ast.copy_location(ast.parse("sa.true()", mode="eval").body, node)
    spec = importlib.util.spec_from_loader("archive.access.mutated_lineage", loader=None)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    exec(compile(ast.fix_missing_locations(tree), "mutated", "exec"), module.__dict__)
    return module


class Handed:
    """Team has a grant on patient P1; mia, who is in it, passed study 1.1 on to ole, and ole series 1.1.1 to kim and to zoe."""

    def __init__(self, tx: sa.Connection, place: rows.Place) -> None:
        self.tx, self.at, self.store = tx, place.at + timedelta(hours=1), place.first.datastore_id
        kinds = {"mia": "user", "ole": "user", "kim": "user", "zoe": "user", "bob": "user", "team": "group", "others": "group"}
        self.who = {
            name: rows.insert(tx, tables.principal, kind=kind, name=name, enabled=True, created_at=place.at) for name, kind in kinds.items()
        }
        self.join("mia", "team")
        self.other = rows.insert(tx, tables.datastore, uid=b"o" * 16, name="other", created_at=place.at)
        keys = {
            name: self.scalar(sa.select(column).where(uid == text)) * 4 + tail for name, column, uid, text, tail in (
                ("patient", tables.patient.c.id, tables.patient.c.patient_id, "P1", 1),
                ("elsewhere", tables.patient.c.id, tables.patient.c.patient_id, "P2", 1),
                ("study", tables.study.c.id, tables.study.c.study_instance_uid, "1.1", 2),
                ("series", tables.series.c.id, tables.series.c.series_instance_uid, "1.1.1", 3),
            )
        }
        self.elsewhere, self.patient = keys["elsewhere"], keys["patient"]
        self.root = self.give("team", keys["patient"], need_context=0)
        self.second = self.give("ole", keys["study"], by="mia", parent=self.root)
        self.third = self.give("kim", keys["series"], by="ole", parent=self.second)
        self.give("zoe", keys["series"], by="ole", parent=self.second)
        lost = self.give("bob", keys["patient"])
        self.give("bob", keys["series"], by="zoe", parent=lost)  # whose chain is broken, and concerns nobody else

    def scalar(self, query: sa.Select[tuple[int]]) -> int:
        return int(policy.run_as(self.tx, policy.system("access"), query).scalar_one())

    def join(self, who: str, group: str) -> None:
        self.tx.execute(sa.insert(tables.membership), {
            "principal_id": self.who[who], "group_id": self.who[group], "not_before": rows_start(self), "not_after": FOREVER,
        })

    def give(self, to: str, scope_key: int, *, by: str = "bob", parent: int | None = None, **terms: object) -> int:
        return grants.give(
            self.tx, to=self.who[to], role_row=None, datastore_id=self.store, scope_key=scope_key, by=self.who[by], at=rows_start(self),
            terms=Terms(not_before=rows_start(self), **terms), permissions=BITS, parent_id=parent,  # type: ignore[arg-type]
        )

    def deny(self, to: str, **changes: object) -> None:
        denied = self.give(to, self.patient, deny=True)
        self.change(denied, **({"reason": "a test"} | changes))

    def change(self, grant: int, **values: object) -> None:
        self.tx.execute(sa.update(tables.grants).where(tables.grants.c.id == grant).values(**values))

    def principal(self, name: str, **values: object) -> None:
        self.tx.execute(sa.update(tables.principal).where(tables.principal.c.id == self.who[name]).values(**values))

    def member(self, **values: object) -> None:
        self.tx.execute(sa.update(tables.membership).values(**values))

    def unlink(self, *ancestors: int) -> None:
        link = tables.grant_lineage.c
        self.tx.execute(sa.delete(tables.grant_lineage).where(link.grant_id == self.third, link.ancestor_id.in_(ancestors)))

    def twice(self) -> None:
        self.give("team", self.patient)
        self.change(self.root, revoked_at=self.at)


def rows_start(handed: Handed) -> datetime:
    return handed.at - timedelta(hours=1)


LATER = timedelta(minutes=1)
HAPPENS: dict[str, tuple[bool, Callable[[Handed], object]]] = {
    "nothing": (True, lambda h: None),
    "the first is revoked": (False, lambda h: h.change(h.root, revoked_at=h.at)),
    "the first is revoked, and given again": (False, lambda h: h.twice()),
    "the first has not begun": (False, lambda h: h.change(h.root, not_before=h.at + LATER)),
    "the first begins now": (True, lambda h: h.change(h.root, not_before=h.at)),
    "the first is over": (False, lambda h: h.change(h.root, not_after=h.at)),
    "the first ends in a moment": (True, lambda h: h.change(h.root, not_after=h.at + LATER)),
    "the first is of another modality": (False, lambda h: h.change(h.root, modality="US")),
    "the first is of another department": (False, lambda h: h.change(h.root, department_id=9)),
    "the first is of later studies": (False, lambda h: h.change(h.root, study_date_from="20300101")),
    "the first is of earlier studies": (False, lambda h: h.change(h.root, study_date_to="20200101")),
    "the first is on another patient": (False, lambda h: h.change(h.root, scope_key=h.elsewhere)),
    "the first is in another datastore": (False, lambda h: h.change(h.root, datastore_id=h.other)),
    "the first permits less": (False, lambda h: h.change(h.root, permissions=int(Permission.METADATA))),
    "the first asks for a context": (False, lambda h: h.change(h.root, need_context=8)),
    "the second is revoked": (False, lambda h: h.change(h.second, revoked_at=h.at)),
    "who passed it on first is switched off": (False, lambda h: h.principal("mia", enabled=False)),
    "who passed it on first is gone": (False, lambda h: h.principal("mia", removed_at=h.at)),
    "who passed it on last is switched off": (False, lambda h: h.principal("ole", enabled=False)),
    "somebody else is switched off": (True, lambda h: h.principal("zoe", enabled=False)),
    "the membership is over": (False, lambda h: h.member(not_after=h.at)),
    "the membership has not begun": (False, lambda h: h.member(not_before=h.at + LATER)),
    "the group is switched off": (False, lambda h: h.principal("team", enabled=False)),
    "the membership is of another group": (False, lambda h: h.member(group_id=h.who["others"])),
    "the membership is another's": (False, lambda h: h.member(principal_id=h.who["bob"])),
    "the link to the second is gone": (False, lambda h: h.unlink(h.second)),
    "every link is gone": (False, lambda h: h.unlink(h.root, h.second)),
    "who passed it on first is denied it": (False, lambda h: h.deny("mia")),
    "their group is denied it": (False, lambda h: h.deny("team")),
    "who passed it on last is denied it": (False, lambda h: h.deny("ole")),
    "somebody else is denied it": (True, lambda h: h.deny("bob")),
    "a group they are not in is denied it": (True, lambda h: h.deny("others")),
    "the deny is lifted": (True, lambda h: h.deny("mia", revoked_at=h.at)),
    "the deny is over": (True, lambda h: h.deny("mia", not_after=h.at)),
    "the deny has not begun": (True, lambda h: h.deny("mia", not_before=h.at + LATER)),
    "the deny is of another modality": (True, lambda h: h.deny("mia", modality="US")),
    "the deny is in another datastore": (True, lambda h: h.deny("mia", datastore_id=h.other)),
    "the deny is on another patient": (True, lambda h: h.deny("mia", scope_key=h.elsewhere)),
    "the deny is of something else": (True, lambda h: h.deny("mia", permissions=int(Permission.SEND))),
}
"""What happens -> whether kim still sees the series."""


def told(place: rows.Place, happens: Callable[[Handed], object], queries: Iterable[sa.Select[tuple[str]]]) -> list[bool]:
    found: list[bool] = []
    try:
        with place.database.begin() as tx:
            handed = Handed(tx, place)
            happens(handed)
            scope = policy.scope_of(place.subject(handed.who["kim"]), Permission.SEARCH, handed.at)
            found = ["1.1.1" in scope.run(tx, query).scalars() for query in queries]
            raise Undone
    except Undone:
        return found


class Undone(Exception):  # not an error
    pass


def sees_with(rule: ModuleType, monkeypatch: pytest.MonkeyPatch) -> sa.Select[tuple[str]]:
    with monkeypatch.context() as patched:
        patched.setattr(archive.access, "lineage", rule)
        return sa.select(SE.c.series_instance_uid).where(predicate._series_condition.__wrapped__(SE, predicate.Shape()))


def test_what_ends_it(place: rows.Place, monkeypatch: pytest.MonkeyPatch) -> None:
    query = sees_with(lineage, monkeypatch)
    seen_then = {name: told(place, change, [query])[0] for name, (_expected, change) in HAPPENS.items()}
    assert seen_then == {name: expected for name, (expected, _change) in HAPPENS.items()}


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_every_clause_is_missed_when_it_is_gone(place: rows.Place, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = {clause: sees_with(_without(*clause), monkeypatch) for clause in _clauses()}
    assert len(waiting) > 18
    for expected, change in HAPPENS.values():
        answers = told(place, change, waiting.values())
        waiting = {clause: query for (clause, query), answer in zip(waiting.items(), answers, strict=True) if answer == expected}
    assert not sorted(waiting)
