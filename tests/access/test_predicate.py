"""The SQL condition against a per-row evaluator, and what happens when a clause of it is missing."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType

import pytest
import sqlalchemy as sa

from archive.access import policy, predicate
from archive.db import tables
from archive.db.engine import Database
from tests.access import oracle, worlds

WORLDS = 5 * int(os.environ.get("ARCHIVE_TEST_WORLDS", "4"))
SE, ST, PT = tables.series.alias("se"), tables.study.alias("st"), tables.patient.alias("pt")


class _Undo(Exception):  # not an error
    pass


@contextmanager
def inhabited(database: Database, world: worlds.World) -> Iterator[sa.Connection]:
    """A transaction that holds the world and is undone."""
    try:
        with database.begin() as tx:
            world.insert(tx)
            yield tx
            raise _Undo
    except _Undo:
        pass


@lru_cache(maxsize=4096)
def statement(rule: ModuleType, shape: predicate.Shape, name: str) -> sa.Select[tuple[int]]:
    """One of the four questions of one shape of caller, made once."""
    of, condition = {
        "series": (SE, rule.series_condition), "study": (ST, rule.study_condition), "patient": (PT, rule.patient_condition),
        "entire": (ST, rule.entire_study_condition),
    }[name]
    return sa.select(of.c.id).where(condition(of, shape))


def questions(seed: int, world: worlds.World, count: int) -> list[tuple[policy.Scope, dict[str, set[int]], str]]:
    """Who asks, what the rule answers, and how to say it."""
    asked = []
    for subject, need, at in worlds.callers(seed, world, count):
        series, studies, patients = oracle.visible(world, subject, need, at)
        entire = oracle.entire(world, subject, need, at)
        assert not entire & {se["study_pk"] for se in world.series if se["n_instances"] and se["id"] not in series}
        answer = {"series": series, "study": studies, "patient": patients, "entire": entire}
        asked.append((policy.scope_of(subject, need, at), answer, f"seed {seed}: {subject} {need!r} at {at}"))
    return asked


def differs(
    tx: sa.Connection, rule: ModuleType, scope: policy.Scope, answer: dict[str, set[int]], *names: str
) -> list[str]:
    """Return the questions, of all or of these, which the SQL answers otherwise."""
    return [
        name for name in names or answer if set(scope.run(tx, statement(rule, scope.shape, name)).scalars()) != answer[name]
    ]


def test_the_condition_is_the_rule(database: Database) -> None:
    compared = seen = 0
    for seed in range(WORLDS):
        world = worlds.draw(seed)
        with inhabited(database, world) as tx:
            for scope, answer, who in questions(seed, world, 12):
                assert not differs(tx, predicate, scope, answer), who
                compared += len(answer)
                seen += sum(map(bool, answer.values()))
    assert compared == WORLDS * 12 * 4
    assert seen > compared / 10


# Said twice on purpose: a deny that reaches the caller makes the answer False anyway.
SAID_TWICE = {
    ("entire_study_condition", "g.c.effect == _ONE"),
    ("giver_may_share", "x.c.effect == _ONE"),
    ("_series_condition", "any_deny(shape)"),  # only spares asking
    ("any_deny", "is_caller(d.c.subject_id, shape)"),
    ("any_deny", "d.c.effect == _ZERO"),
}


ASKED_OF = {"entire_study_condition": ("entire",), "_parent_condition": ("study", "patient")}
"""Which questions show that a clause of a function is gone; the one about series, where nothing is said."""


OF_SHARING = {"share_is_live", "giver_may_share", "is_giver"}


def of_sharing(function: str, argument: ast.expr) -> bool:
    """Whether a clause is about share links and albums: tests/access/test_sharing.py looks at those."""
    return function in OF_SHARING or "_BY_ALBUM" in ast.unparse(argument)


def bears_on(function: str, shape: predicate.Shape) -> bool:
    """Whether a clause of a function stands in the SQL of a shape; what stands in all of them is looked for in the plainest."""
    if function == "session_is_live":
        return shape.session
    if function.startswith("token_"):
        return 0 < shape.tokens <= 2 and shape.boundaries <= 2
    if function in ("within_boundary", "within_boundaries", "bound_covers"):
        return 0 < shape.boundaries <= 2 and shape.tokens <= 1
    if function in ("_series_condition", "entire_study_condition"):
        return shape.tokens <= 1 and shape.boundaries <= 1 and not shape.session
    return shape == predicate.Shape()


def clauses_of(*, sharing: bool) -> list[tuple[str, int, int]]:
    """Every argument of every conjunction, and every element of a list of scope keys, of predicate.py: (function, node, argument)."""
    found = []
    tree = ast.parse(inspect.getsource(predicate))
    for function in tree.body:
        if not isinstance(function, ast.FunctionDef):
            continue
        for number, node in enumerate(ast.walk(function)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("where", "and_"):
                found += [
                    (function.name, number, n) for n in range(len(node.args))
                    if _counts(function.name, node.args[n]) and of_sharing(function.name, node.args[n]) == sharing
                ]
            if isinstance(node, ast.List) and len(node.elts) > 2 and not sharing:
                found += [(function.name, number, n) for n in range(len(node.elts))]
    return found


def _counts(function: str, argument: ast.expr) -> bool:
    return not isinstance(argument, ast.Starred) and (function, ast.unparse(argument)) not in SAID_TWICE


def without(name: str, number: int, argument: int) -> ModuleType:
    """Return predicate.py with one clause taken out."""
    tree = ast.parse(inspect.getsource(predicate))
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    node = list(ast.walk(function))[number]
    if isinstance(node, ast.Call):
        node.args[argument] = ast.copy_location(ast.parse("sa.true()", mode="eval").body, node)
    elif isinstance(node, ast.List):
        node.elts[argument] = ast.copy_location(ast.parse("sa.literal_column('-1', sa.BigInteger())", mode="eval").body, node)
    spec = importlib.util.spec_from_loader("archive.access.mutated", loader=None)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    exec(compile(ast.fix_missing_locations(tree), "mutated", "exec"), module.__dict__)
    return module


KILLING = (274, 265, 144, 133, 126, 76, 65, 14, 83, 77, 60, 25, 22, 18, 15, 21, 19, 13, 11, 1)
"""The worlds that miss most, asked first: they are enough today, and the others are there for what changes."""


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_every_clause_is_missed_when_it_is_gone(database: Database) -> None:
    clauses = clauses_of(sharing=False)
    assert len(clauses) > 50
    waiting = {clause: without(*clause) for clause in clauses}
    compiled: dict[object, object] = {}
    for seed in dict.fromkeys([*KILLING, *range(600)]):
        if not waiting:
            break
        world = worlds.draw(seed)
        asked = questions(seed, world, 12)
        with inhabited(database, world) as plain:
            tx = plain.execution_options(compiled_cache=compiled)
            for clause, rule in list(waiting.items()):
                names = ASKED_OF.get(clause[0], ("series",))
                if any(differs(tx, rule, scope, answer, *names) for scope, answer, _ in asked if bears_on(clause[0], scope.shape)):
                    del waiting[clause]
    assert not sorted(waiting)
