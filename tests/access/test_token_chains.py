"""Tokens made with tokens: what each may be, that none ever carries more than those it stands on, and that every guard is needed."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from random import Random
from types import ModuleType
from typing import Any

import pytest
import sqlalchemy as sa

from archive.access import policy, principals, tokens
from archive.access.permissions import ADMINISTRATIVE, FUNCTION, OBJECT, Permission
from archive.access.predicate import MOST_TOKENS
from archive.access.subject import Subject
from archive.db import tables
from archive.db.engine import Database
from archive.errors import ArchiveError, Forbidden, InvalidRequest, Unauthenticated
from archive.keys.keyring import Keyring
from tests.access import oracle, worlds
from tests.access.rows import SE, Place
from tests.access.test_predicate import inhabited

P = Permission
WORLDS = int(os.environ.get("ARCHIVE_TEST_WORLDS", "8"))
MICRO = timedelta(microseconds=1)
Made = tuple[int, str]


@pytest.fixture
def make(place: Place, keyring: Keyring) -> Callable[..., Any]:
    """Make a token of the owner and return it as it comes in."""

    def made(parent: tokens.Live | None = None, **options: Any) -> tokens.Live:
        at = options.pop("at", place.at)
        with place.database.begin() as tx:
            _, text = tokens.create(tx, keyring, place.first.owner_id, by=1, at=at, parent=parent, **options)
            return tokens.find(tx, keyring, text, at=at, address="192.0.2.7")

    return made


def key_of(place: Place, uid: str) -> int:
    with place.database.read() as tx:
        found = sa.select(tables.series.c.id).where(tables.series.c.series_instance_uid == uid)
        return int(policy.run_as(tx, policy.system("access"), found).scalar_one()) * 4 + 3


def test_each_is_bounded_by_all_it_stands_on(place: Place, make: Callable[..., Any]) -> None:
    one, two, three = (key_of(place, uid) for uid in ("1.1.1", "1.1.2", "1.2.1"))
    first = make(scope_keys=[one, two], permissions=P.SEARCH | P.METADATA | P.PIXELS)
    second = make(first, scope_keys=[two, three])
    third = make(second, permissions=P.SEARCH)
    assert [place.seen(live.subject()) for live in (first, second, third)] == [{"1.1.1", "1.1.2"}, {"1.1.2"}, {"1.1.2"}]
    assert [place.seen(live.subject(), P.PIXELS) for live in (first, second, third)] == [{"1.1.1", "1.1.2"}, {"1.1.2"}, set()]
    assert (third.depth, third.boundary_ids) == (3, second.boundary_ids)
    assert second.boundary_ids[1:] == first.boundary_ids
    # a subject that leaves out a bound, or one it stands on, counts for nothing; one that adds a bound is bound by it
    for wrong in ({"boundary_ids": ()}, {"boundary_ids": second.boundary_ids[:1]}, {"boundary_ids": second.boundary_ids[1:]},
                  {"token_depth": 1}, {"token_depth": 3}, {"principal_id": place.first.console_id}):
        assert place.seen(replace(second.subject(), **wrong)) == set(), wrong
    assert place.seen(replace(first.subject(), boundary_ids=second.boundary_ids)) == {"1.1.2"}


def test_permissions_are_those_of_all(place: Place, make: Callable[..., Any]) -> None:
    boss = make(permissions=FUNCTION | OBJECT)
    child = make(boss)
    assert boss.permissions & ADMINISTRATIVE
    assert child.permissions == (FUNCTION | OBJECT) & ~ADMINISTRATIVE
    with place.database.read() as tx:
        policy.require(tx, boss.subject(), P.USER_MANAGE | P.STORE, place.at)
        policy.require(tx, child.subject(), P.STORE, place.at)
        with pytest.raises(Forbidden):
            policy.require(tx, child.subject(), P.USER_MANAGE, place.at)
    for named in (P.USER_MANAGE, P.SEARCH | P.STATS):
        with pytest.raises(Forbidden, match="administrative"):
            make(boss, permissions=named)
    narrow = make(boss, permissions=P.SEARCH | P.STORE)
    assert make(narrow).permissions == P.SEARCH | P.STORE
    assert make(narrow, scope_keys=[0]).permissions == P.SEARCH
    with pytest.raises(Forbidden):
        make(narrow, permissions=P.SEARCH | P.METADATA)
    with pytest.raises(InvalidRequest, match="no permission"):
        make(make(permissions=P.USER_MANAGE))


def test_ends_and_depth(place: Place, make: Callable[..., Any]) -> None:
    end = place.at + timedelta(hours=8)
    first = make(not_after=end)
    chain = [first]
    for _ in range(MOST_TOKENS - 1):
        chain.append(make(chain[-1]))
    assert {live.not_after for live in chain} == {end}
    assert chain[-1].depth == MOST_TOKENS
    with pytest.raises(Forbidden, match="stand on each other"):
        make(chain[-1])
    with pytest.raises(InvalidRequest, match="no later"):
        make(first, not_after=end + MICRO)
    early = make(first, not_after=end - timedelta(hours=1))
    for live in (*chain, early):
        assert place.seen(live.subject(), at=live.not_after - MICRO)
        assert place.seen(live.subject(), at=live.not_after) == set()


def test_an_end_in_the_chain_counts_at_its_instant(place: Place, keyring: Keyring, make: Callable[..., Any]) -> None:
    """Also were the end of one above another earlier than its own, as no token is made."""
    first = make()
    with place.database.begin() as tx:
        key, text = tokens.create(tx, keyring, place.first.owner_id, by=1, at=place.at, parent=first)
        end = place.at + timedelta(hours=1)
        tx.execute(sa.update(tables.api_token).where(tables.api_token.c.id == first.id).values(not_after=end))
        live = tokens.find(tx, keyring, text, at=end - MICRO)
        assert (live.id, live.not_after) == (key, end)
        with pytest.raises(Unauthenticated):
            tokens.find(tx, keyring, text, at=end)
        with pytest.raises(Unauthenticated):
            tokens.standing(tx, key, at=end)
    assert place.seen(live.subject(), at=end - MICRO)
    assert place.seen(live.subject(), at=end) == set()


def test_revoking_ends_what_was_made_with_it_and_nothing_else(place: Place, keyring: Keyring, make: Callable[..., Any]) -> None:
    root, other = make(), make()
    left, right = make(root), make(root)
    below = make(left)
    with place.database.begin() as tx:
        assert tokens.revoke(tx, left.id, at=place.at) == [left.id, below.id]
        assert tokens.revoke(tx, left.id, at=place.at) == []
    seeing = {live.id for live in (root, other, left, right, below) if place.seen(live.subject())}
    assert seeing == {root.id, other.id, right.id}
    with place.database.begin() as tx:
        assert [row["id"] for row in tokens.listed(tx, of=root.id)] == [below.id, right.id, left.id, root.id]
        # what counts is the chain, not what was written over it
        tx.execute(sa.update(tables.api_token).where(tables.api_token.c.id == below.id).values(revoked_at=None))
    assert place.seen(below.subject()) == set()
    with place.database.begin() as tx:
        principals.set_enabled(tx, place.first.owner_id, enabled=False, at=place.at)
        with pytest.raises(Unauthenticated):
            tokens.standing(tx, right.id, at=place.at)
    assert place.seen(right.subject()) == set()


NEAR, FAR = "10.1.2.3", "192.0.2.7"


def test_networks_are_those_of_all(place: Place, keyring: Keyring) -> None:
    with place.database.begin() as tx:
        nets = tokens.networks_of([" 10.0.0.0/8", "2001:db8::1", "10.0.0.5/8"])
        assert nets == ["10.0.0.0/8", "2001:db8::1/128"]

        def made(parent: tokens.Live | None, networks: list[str], used_from: str) -> tuple[str, tokens.Live]:
            _, text = tokens.create(tx, keyring, place.first.owner_id, by=1, at=place.at, parent=parent, networks=networks)
            return text, tokens.find(tx, keyring, text, at=place.at, address=used_from)

        text, first = made(None, nets, NEAR)
        for address in (NEAR, "::ffff:10.1.2.3", "2001:db8::1", "2001:db8::1%eth0"):
            assert tokens.find(tx, keyring, text, at=place.at, address=address) == first
        for address in (FAR, "2001:db8::2", "", "elsewhere", "::ffff:192.0.2.7"):
            with pytest.raises(Unauthenticated):
                tokens.find(tx, keyring, text, at=place.at, address=address)
        below, _ = made(first, [], NEAR)
        with pytest.raises(Unauthenticated):
            tokens.find(tx, keyring, below, at=place.at, address=FAR)
        with pytest.raises(Unauthenticated):
            made(first, ["192.0.2.0/24"], FAR)
        narrower, _ = made(first, [NEAR], NEAR)
        with pytest.raises(Unauthenticated):
            tokens.find(tx, keyring, narrower, at=place.at, address="10.1.2.4")
    for wrong in (["10.0.0.0/33"], ["host"], [""], ["10.0.0.1"] * 65):
        with pytest.raises(InvalidRequest):
            tokens.networks_of(wrong)


# --- random trees under random clocks ---


class Grove:
    """A random world in which a user's tokens make tokens, at any hour, of anything."""

    def __init__(self, tx: sa.Connection, keyring: Keyring, seed: int, world: worlds.World) -> None:
        self.tx, self.keyring, self.r, self.world = tx, keyring, Random(seed), world
        self.made: list[tuple[str, tokens.Live, int | None]] = []
        role = {"id": 1, "name": "some", "permissions": int(FUNCTION), "builtin": False, "created_at": worlds.BASE}
        tx.execute(sa.insert(tables.role), role)
        window = worlds.window(self.r)
        tx.execute(sa.insert(tables.role_assignment), {"principal_id": 1, "role_id": 1, "created_at": worlds.BASE, **window})

    def grow(self, at: datetime) -> None:
        """Make a token, in a session or with one there is."""
        r = self.r
        above = r.choice(self.made) if self.made and r.random() < 0.8 else None
        keys = [worlds.scope_key(r, self.world) for _ in range(r.choice([0, 0, 1, 3]))] + worlds.maybe(r, [4], 0.1, [])
        with suppress(Forbidden, InvalidRequest, Unauthenticated):
            parent = None if above is None else tokens.standing(self.tx, above[1].id, at=at)
            _, text = tokens.create(
                self.tx, self.keyring, 1, by=1, at=at, parent=parent, scope_keys=keys,
                not_after=worlds.maybe(r, worlds.hour(r.choice([5, 6, 8, 9])), 0.5), permissions=P(worlds.maybe(r, worlds.bits(r), 0.5, 0)),
            )
            self.made.append((text, tokens.find(self.tx, self.keyring, text, at=at), None if parent is None else parent.id))

    def seen(self, subject: Subject, need: Permission, at: datetime) -> set[int]:
        """The series a subject reaches."""
        scope = policy.scope_of(subject, need, at)
        return set(scope.run(self.tx, sa.select(SE.c.id).where(scope.series(SE))).scalars())

    def let_in(self, text: str, at: datetime) -> Subject | None:
        """Who comes in with a token's text."""
        try:
            return tokens.find(self.tx, self.keyring, text, at=at).subject()
        except Unauthenticated:
            return None

    def as_rows(self) -> worlds.World:
        """The world, and what became of its tokens and bounds."""
        kept = {name: [dict(row) for row in self.tx.execute(sa.select(tables.metadata.tables[name])).mappings()]
                for name in ("api_token", "boundary", "boundary_item")}
        return replace(self.world, **kept)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_no_token_ever_carries_more_than_those_it_stands_on(database: Database, keyring: Keyring) -> None:
    narrower = shown = refused = 0
    for seed in range(2 * WORLDS):
        world = worlds.draw(seed)
        for name in ("boundary_item", "boundary", "api_token"):
            getattr(world, name).clear()
        world.of("principal", 1).update(enabled=True, removed_at=None, kind="user")
        with inhabited(database, world) as tx:
            grove = Grove(tx, keyring, seed, world)
            me = Subject(1, "someone", "user", "internal")
            for number in (3, 4, 5, 6, 8):
                for _ in range(4):
                    grove.grow(worlds.hour(number))
                if grove.made and grove.r.random() < 0.4:
                    tokens.revoke(tx, grove.r.choice(grove.made)[1].id, at=worlds.hour(number))
                at = worlds.hour(number) - MICRO * grove.r.choice([0, 1])
                need, rows = grove.r.choice(worlds.NEEDS), grove.as_rows()
                seen = {live.id: grove.seen(live.subject(), need, at) for _, live, _ in grove.made}
                may = {live.id: policy.functions_of(tx, live.subject(), at) for _, live, _ in grove.made}
                whole, all_of_mine = grove.seen(me, need, at), policy.functions_of(tx, me, at)
                for text, live, above in grove.made:
                    assert seen[live.id] == oracle.visible(rows, live.subject(), need, at)[0]
                    assert seen[live.id] <= (whole if above is None else seen[above]), (seed, number, live.id)
                    assert not may[live.id] & ~(all_of_mine if above is None else may[above]), (seed, number, live.id)
                    entered = grove.let_in(text, at)
                    assert entered == (live.subject() if entered else None)
                    if entered is None:
                        assert (seen[live.id], may[live.id]) == (set(), P.NONE)
                        refused += 1
                    shown += bool(seen[live.id])
                    narrower += above is not None and set() < seen[live.id] < seen[above]
    assert shown > 5 * WORLDS
    assert refused > 2 * WORLDS
    assert narrower > WORLDS / 2


# --- every guard taken out in turn ---


def guards() -> list[tuple[str, int]]:
    """The refusals and the conditions of tokens.py: (function or "_LIVE", number among its nodes)."""
    found = []
    for part in ast.parse(inspect.getsource(tokens)).body:
        name = part.name if isinstance(part, ast.FunctionDef) else "_LIVE" if "_LIVE = " in ast.unparse(part)[:8] else ""
        for number, node in enumerate(ast.walk(part) if name else ()):
            if isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise):
                found.append((name, number))
            if isinstance(node, ast.AugAssign) or (isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".where")):
                found += [(name, number)] if isinstance(node, ast.AugAssign) else [(name, number * 100 + n) for n in range(len(node.args))]
    return found


def without(name: str, number: int) -> ModuleType:
    """Return tokens.py with one guard taken out."""
    tree = ast.parse(inspect.getsource(tokens))
    part: ast.AST = next(
        one for one in tree.body
        if (isinstance(one, ast.FunctionDef) and one.name == name) or (name == "_LIVE" and ast.unparse(one).startswith("_LIVE = "))
    )
    nodes = list(ast.walk(part))
    node = nodes[number] if number < len(nodes) and isinstance(nodes[number], ast.If | ast.AugAssign) else nodes[number // 100]
    if isinstance(node, ast.If):
        node.test = ast.copy_location(ast.Constant(False), node.test)
    elif isinstance(node, ast.AugAssign):
        node.value = ast.copy_location(ast.parse("Permission(-1)", mode="eval").body, node.value)
    else:
        assert isinstance(node, ast.Call)
        node.args[number % 100] = ast.copy_location(ast.parse("sa.true()", mode="eval").body, node)
    spec = importlib.util.spec_from_loader("archive.access.tokens_mutated", loader=None)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    exec(compile(ast.fix_missing_locations(tree), "mutated", "exec"), module.__dict__)
    return module


def refuses(call: Callable[[], Any], kind: type[Exception] = ArchiveError) -> None:
    """Expect exactly a refusal of this kind."""
    try:
        call()
    except kind:
        return
    message = "it was let through"
    raise AssertionError(message)


def lived_through(rule: ModuleType, tx: sa.Connection, keyring: Keyring, place: Place) -> None:  # everything the guards are for
    """Make, use and end tokens by the module, and look at each refusal."""
    at, me = place.at, place.first.owner_id
    other = principals.add(tx, "user", "other", at=at)
    later = at + timedelta(hours=8)

    def made(parent: Any = None, who: int = me, **options: Any) -> Made:
        return rule.create(tx, keyring, who, by=1, at=at, parent=parent, **options)

    def live(text: str, **options: Any) -> Any:
        return rule.find(tx, keyring, text, at=options.pop("at", at), **options)

    refuses(lambda: made(not_after=at), InvalidRequest)
    refuses(lambda: made(not_after=at + timedelta(days=366)), InvalidRequest)
    (root, text), (gone, ended), (kept, _) = made(not_after=later), made(), made()
    first = live(text)
    assert first.id == root
    refuses(lambda: live(text[:-1] + ("0" if text[-1] != "0" else "1")), Unauthenticated)
    forged = rule.token_text.written(text.split("_")[1], "0" * 43)
    refuses(lambda: live(forged), Unauthenticated)
    refuses(lambda: live(text, at=later), Unauthenticated)
    assert rule.revoke(tx, gone, at=at) == [gone]
    assert rule.revoke(tx, gone, at=at) == []
    refuses(lambda: live(ended), Unauthenticated)
    refuses(lambda: rule.standing(tx, gone, at=at), Unauthenticated)
    assert tx.execute(sa.select(tables.api_token.c.revoked_at).where(tables.api_token.c.id == kept)).scalar() is None
    refuses(lambda: made(first, not_after=later + MICRO), InvalidRequest)
    refuses(lambda: made(first, permissions=P.USER_MANAGE), Forbidden)
    boss = live(made(permissions=P.USER_MANAGE | P.STORE)[1])
    assert live(made(boss)[1]).permissions == P.STORE
    refuses(lambda: made(live(made(permissions=P.USER_MANAGE)[1])), InvalidRequest)
    deepest = first
    for _ in range(MOST_TOKENS - 1):
        deepest = live(made(deepest)[1])
    refuses(lambda: made(deepest), Forbidden)
    # rows that no maker writes: one too deep, one under another's, one whose parent is bounded otherwise
    fifth, deep = made(replace(deepest, depth=1))
    refuses(lambda: live(deep), Unauthenticated)
    foreign = made(first, who=other)
    refuses(lambda: live(foreign[1]), Unauthenticated)
    child, below = made(first, permissions=P.SEARCH | P.METADATA)
    tx.execute(sa.update(tables.api_token).where(tables.api_token.c.id == root).values(permissions=int(P.SEARCH)))
    assert live(below).permissions == P.SEARCH
    assert [row["id"] for row in rule.listed(tx, of=child)] == [child]
    assert {row["id"] for row in rule.listed(tx, principal_id=other)} == {foreign[0]}
    rule.touch(tx, child, at=at, address=NEAR)
    used = tables.api_token.c.last_address
    assert tx.execute(sa.select(tables.api_token.c.id).where(used == NEAR)).scalars().all() == [child]
    refuses(lambda: rule.networks_of(["10.0.0.1"] * 65), InvalidRequest)
    near = made(networks=["10.0.0.0/8"])[1]
    refuses(lambda: live(near, address=FAR), Unauthenticated)
    assert live(near, address=NEAR)
    bounded = [made(scope_keys=keys)[0] for keys in ([3], [3, 7])]
    assert [row["bounded_to"] for one in bounded for row in rule.listed(tx, of=one)] == [1, 2]
    assert set(rule.revoke(tx, root, at=at)) >= {root, child, fifth}
    with tx.begin_nested() as point:
        principals.set_enabled(tx, me, enabled=False, at=at)
        refuses(lambda: live(near, address=NEAR), Unauthenticated)
        point.rollback()
    tx.execute(sa.update(tables.principal).where(tables.principal.c.id == me).values(removed_at=at))
    refuses(lambda: live(near, address=NEAR), Unauthenticated)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_every_guard_is_missed_when_it_is_gone(place: Place, keyring: Keyring) -> None:
    class Undo(Exception):  # not an error
        pass

    def holds(rule: ModuleType) -> bool:
        found = []
        with suppress(Undo), place.database.begin() as tx:
            with suppress(AssertionError, ArchiveError, AttributeError, TypeError):
                lived_through(rule, tx, keyring, place)
                found.append(rule)
            raise Undo
        return bool(found)

    assert holds(tokens)
    missed = guards()
    assert len(missed) > 20
    assert [guard for guard in missed if holds(without(*guard))] == []
