"""The SQL condition against a per-row evaluator, and what happens when a clause of it is missing."""

from __future__ import annotations

import ast
import importlib.util
import inspect
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
def statements(rule: ModuleType, shape: predicate.Shape) -> dict[str, sa.Select[tuple[int]]]:
    """The four questions of one shape of caller, made once."""
    return {
        "series": sa.select(SE.c.id).where(rule.series_condition(SE, shape)),
        "study": sa.select(ST.c.id).where(rule.study_condition(ST, shape)),
        "patient": sa.select(PT.c.id).where(rule.patient_condition(PT, shape)),
        "entire": sa.select(ST.c.id).where(rule.entire_study_condition(ST, shape)),
    }


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


def differs(tx: sa.Connection, rule: ModuleType, scope: policy.Scope, answer: dict[str, set[int]]) -> list[str]:
    """Return the questions which the SQL answers otherwise."""
    asked = statements(rule, scope.shape)
    return [name for name, expected in answer.items() if set(scope.run(tx, asked[name]).scalars()) != expected]


def test_the_condition_is_the_rule(database: Database) -> None:
    compared = seen = 0
    for seed in range(120):
        world = worlds.draw(seed)
        with inhabited(database, world) as tx:
            for scope, answer, who in questions(seed, world, 12):
                assert not differs(tx, predicate, scope, answer), who
                compared += len(answer)
                seen += sum(map(bool, answer.values()))
    assert compared == 120 * 12 * 4
    assert seen > compared / 10


# Said twice on purpose: a deny that reaches the caller makes the answer False anyway.
SAID_TWICE = {
    ("entire_study_condition", "g.c.effect == _ONE"),
    ("_series_condition", "any_deny(shape)"),  # only spares asking
    ("any_deny", "is_caller(d.c.subject_id, shape)"),
    ("any_deny", "d.c.effect == _ZERO"),
}


def _clauses() -> list[tuple[str, int, int]]:
    """Every argument of every conjunction, and every element of a list of scope keys, of predicate.py: (function, node, argument)."""
    found = []
    tree = ast.parse(inspect.getsource(predicate))
    for function in tree.body:
        if not isinstance(function, ast.FunctionDef):
            continue
        for number, node in enumerate(ast.walk(function)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("where", "and_"):
                found += [(function.name, number, n) for n in range(len(node.args)) if _counts(function.name, node.args[n])]
            if isinstance(node, ast.List) and len(node.elts) > 2:
                found += [(function.name, number, n) for n in range(len(node.elts))]
    return found


def _counts(function: str, argument: ast.expr) -> bool:
    return not isinstance(argument, ast.Starred) and (function, ast.unparse(argument)) not in SAID_TWICE


def _without(name: str, number: int, argument: int) -> ModuleType:
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


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_every_clause_is_missed_when_it_is_gone(database: Database) -> None:
    clauses = _clauses()
    assert len(clauses) > 50
    waiting = {clause: _without(*clause) for clause in clauses}
    compiled: dict[object, object] = {}
    for seed in range(300):
        if not waiting:
            break
        world = worlds.draw(seed)
        asked = questions(seed, world, 8)
        with inhabited(database, world) as plain:
            tx = plain.execution_options(compiled_cache=compiled)
            for clause, rule in list(waiting.items()):
                if any(differs(tx, rule, scope, answer) for scope, answer, _ in asked):
                    del waiting[clause]
    assert not sorted(waiting)
