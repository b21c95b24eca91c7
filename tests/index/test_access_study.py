"""A search finds what the rule of docs/access.md shows, whatever leads it there; and what leads it never lacks a study."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import takewhile
from random import Random

import pytest
import sqlalchemy as sa

from archive.access import policy
from archive.db import tables
from archive.db.engine import Database
from archive.dicom.attributes import BY_KEYWORD, Level
from archive.dicom.matching import Range, parse
from archive.index import access_study, asking
from archive.index.search import SearchPage, SearchQuery, find
from tests.access import oracle, worlds

SEEDS = int(os.environ.get("ARCHIVE_TEST_WORLDS", "8"))
"""Random archives for each case; the long proof takes more."""

TOKEN = policy.system("verify")
DATE, MODALITIES = BY_KEYWORD["StudyDate"], BY_KEYWORD["ModalitiesInStudy"]


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


def uids(page: SearchPage) -> list[str]:
    return [row["0020000D"]["Value"][0] for row in page.rows]


def run(tx: sa.Connection, statement: sa.Executable) -> None:
    policy.run_as(tx, TOKEN, statement)


def change(r: Random, tx: sa.Connection, world: worlds.World) -> None:
    """Do what happens to an archive: grants come and are revoked, dates are put right, studies move to another patient and are removed."""
    st, se, g = tables.study, tables.series, tables.grants
    for _ in range(r.choice([0, 1, 2, 4])):
        match r.choice(["date", "move", "revoke", "widen", "grant", "study", "remove", "group"]):
            case "date":
                one, date = r.choice(world.study), r.choice(["", "20200101", "20230505"])
                one["study_date"] = date
                run(tx, sa.update(st).where(st.c.id == one["id"]).values(study_date=date))
                run(tx, sa.update(se).where(se.c.study_pk == one["id"]).values(study_date=date))
                for row in world.series:
                    row["study_date"] = date if row["study_pk"] == one["id"] else row["study_date"]
            case "move":
                one = r.choice(world.study)
                to = r.choice([row for row in world.patient if row["datastore_id"] == one["datastore_id"]])["id"]
                one["patient_pk"] = to
                run(tx, sa.update(st).where(st.c.id == one["id"]).values(patient_pk=to))
                run(tx, sa.update(se).where(se.c.study_pk == one["id"]).values(patient_pk=to))
                for row in world.series:
                    row["patient_pk"] = to if row["study_pk"] == one["id"] else row["patient_pk"]
            case "revoke":
                row = r.choice(world.grants)
                row["revoked_at"] = worlds.hour(1)
                run(tx, sa.update(g).where(g.c.id == row["id"]).values(revoked_at=worlds.hour(1)))
            case "widen":  # as when a synthetic patient's study finds its patient
                row, key = r.choice(world.grants), worlds.scope_key(r, world)
                if key:  # never to everything: what the grant led to would be explained by nothing
                    row["scope_key"] = key
                    run(tx, sa.update(g).where(g.c.id == row["id"]).values(scope_key=key))
            case "grant":
                row = {**r.choice(world.grants), "id": len(world.grants) + 1, "scope_key": worlds.scope_key(r, world), "revoked_at": None}
                world.grants.append(row)
                run(tx, sa.insert(g).values(row))
            case "study":
                like = r.choice(world.study)
                number = max(row["id"] for row in world.study) + 1
                one = {**like, "id": number, "study_instance_uid": f"1.{number}"}
                line = {**next(row for row in world.series if row["study_pk"] == like["id"]), "study_pk": number, "n_instances": 3}
                line["id"] = max(row["id"] for row in world.series) + 1
                line["series_instance_uid"] = f"2.{line['id']}"
                # A grant may be there first when an index is built anew.
                world.grants.append({**world.grants[0], "id": len(world.grants) + 1, "scope_key": line["id"] * 4 + 3, "effect": 1})
                run(tx, sa.insert(g).values(world.grants[-1]))
                world.study.append(one)
                world.series.append(line)
                run(tx, sa.insert(st).values(one))
                run(tx, sa.insert(se).values(line))
            case "remove":
                if len(world.study) > 1:
                    one = world.study.pop()
                    world.series = [row for row in world.series if row["study_pk"] != one["id"]]
                    run(tx, sa.delete(se).where(se.c.study_pk == one["id"]))
                    run(tx, sa.delete(st).where(st.c.id == one["id"]))
            case "group":
                if world.membership:
                    row = r.choice(world.membership)
                    row["not_after"] = worlds.hour(r.choice([4, 9]))
                    table = tables.membership
                    run(tx, sa.update(table).where(table.c.id == row["id"]).values(not_after=row["not_after"]))


@pytest.mark.parametrize("lengths", [(64, 4096), (2, 3)])
def test_a_search_finds_what_the_rule_shows(database: Database, lengths: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in windows so short that the list of each group ends at another study: only what lies before the first end is complete."""
    monkeypatch.setattr(access_study, "FIRST", lengths[0])
    monkeypatch.setattr(access_study, "LARGEST", lengths[1])
    compared = seen = 0
    for seed in range(lengths[0], lengths[0] + SEEDS):
        world, r = worlds.draw(seed), Random(seed)
        with inhabited(database, world) as tx:
            for _ in range(2):
                change(r, tx, world)
                if r.random() < 0.2:
                    access_study.refill(tx, worlds.hour(0))
                for subject, need, at in worlds.callers(r.randrange(1 << 30), world, 5):
                    assert (access_study.missing(tx, at), access_study.superfluous(tx)) == (0, 0)
                    rows = [se for se in world.series if oracle.sees(world, subject, need, at, se)]
                    for place in (1, 2):
                        compared += 1
                        seen += bool(_compare(tx, r, world, policy.scope_of(subject, need, at), place, rows))
    assert compared == SEEDS * 2 * 5 * 2
    assert seen > compared / 40


def _compare(tx: sa.Connection, r: Random, world: worlds.World, scope: policy.Scope, place: int, rows: list[worlds.Row]) -> int:
    """Ask for all, for dates, for a modality, by pages and from page to page."""
    keys, low, high, modality = [], "", "~", None
    if r.random() < 0.3:
        low, high = r.choice([("20200101", "20210101"), ("20210101", "~"), ("1", "20210101")])
        keys.append((DATE, parse(DATE, f"{low if low != '1' else ''}-{high if high != '~' else ''}")))
    if r.random() < 0.3:
        modality = r.choice(["CT", "MR"])
        keys.append((MODALITIES, parse(MODALITIES, modality)))
    inside = {se["study_pk"] for se in rows if modality in (None, se["modality"])}
    found = sorted(
        ((st["study_date"], "", st["id"]) for st in world.study if st["id"] in inside and st["datastore_id"] == place
         and (low <= st["study_date"] <= high)),
        reverse=True,
    )  # fmt: skip
    expected = [f"1.{number}" for *_, number in found]
    whole = find(tx, scope, SearchQuery(Level.STUDY, place, tuple(keys)))
    assert (uids(whole), whole.total) == (expected, len(expected))
    for row in whole.rows:
        mine = [se for se in rows if f"1.{se['study_pk']}" == row["0020000D"]["Value"][0]]
        assert row["00201206"]["Value"] == [len(mine)]
        assert row["00201208"]["Value"] == [sum(se["n_instances"] for se in mine)]
        assert row["00080061"]["Value"] == sorted({se["modality"] for se in mine})
    size = r.choice([1, 2, 3])
    paged, walked, after = [], [], None
    for start in range(0, len(expected) + 1, size):
        page = find(tx, scope, SearchQuery(Level.STUDY, place, tuple(keys), limit=size, offset=start))
        assert page.total == len(expected)
        paged += uids(page)
        page = find(tx, scope, SearchQuery(Level.STUDY, place, tuple(keys), limit=size, offset=start, after=after, total=False))
        after = page.last
        walked += uids(page)
    assert paged == walked == expected
    if r.random() < 0.15:
        shown = {number for *_, number in found}
        query = SearchQuery(Level.STUDY, place, tuple(keys))
        _compare_others(tx, world, scope, query, [row for row in rows if row["study_pk"] in shown], modality)
    return len(expected)


def _compare_others(
    tx: sa.Connection, world: worlds.World, scope: policy.Scope, query: SearchQuery, rows: list[worlds.Row], modality: str | None
) -> None:
    """Ask the same of patients and series: one row a patient, and every series of a study with such a modality."""
    place = {st["id"]: (st["study_date"], st["id"]) for st in world.study}
    series = [se["id"] for se in sorted(rows, key=lambda se: (*(-int(part or 0) for part in place[se["study_pk"]]), se["id"]))]
    speaking: dict[int, tuple[str, int]] = {}
    for se in rows:
        if modality in (None, se["modality"]):
            speaking[se["patient_pk"]] = max(speaking.get(se["patient_pk"], ("", 0)), place[se["study_pk"]])
    patients = [number for _, number in sorted(speaking.values(), reverse=True)]
    for level, expected in ((Level.SERIES, series), (Level.PATIENT, patients)):
        asked = replace(query, level=level)
        whole = find(tx, scope, asked)
        assert (len(whole.rows), whole.total) == (len(expected), len(expected))
        skipped, walked, after = [], [], None
        for start in range(len(expected) + 1):
            page = find(tx, scope, replace(asked, limit=1, offset=start))
            assert (page.rows, page.total) == (whole.rows[start : start + 1], len(expected))
            skipped += [page.last]
            page = find(tx, scope, replace(asked, limit=1, offset=start, after=after, total=False))
            walked += [page.last]
            after = page.last
        at = "row_pk" if level is Level.SERIES else "study_pk"
        assert [getattr(one, at, None) for one in skipped] == [getattr(one, at, None) for one in walked] == [*expected, None]


def test_a_missing_row_is_noticed_and_refilled(database: Database) -> None:
    drawn = map(worlds.draw, range(50))

    def speaks(world: worlds.World, g: worlds.Row) -> bool:
        """Whether an allow that counts is about a study of its own datastore."""
        about = g["scope_key"] % 4 == 2 and world.of("study", g["scope_key"] // 4)["datastore_id"] == g["datastore_id"]
        return about and g["effect"] == 1 and g["revoked_at"] is None

    world = next(one for one in drawn if any(speaks(one, g) for g in one.grants))
    with inhabited(database, world) as tx:
        at = worlds.hour(0)
        derived = access_study.refill(tx, at)
        assert derived > 0
        run(tx, sa.delete(tables.access_study))
        assert access_study.missing(tx, at) == derived
        few = access_study.lacking(tx, at, 1)
        assert len(few) == 1
        added = access_study.complete(tx, at, few)
        assert access_study.missing(tx, at) == derived - added < derived
        rest = access_study.lacking(tx, at, 1000)
        assert not set(few) & set(rest)
        assert added + (access_study.complete(tx, at, rest) if rest else 0) == derived
        assert (access_study.missing(tx, at), access_study.lacking(tx, at, 1), access_study.superfluous(tx)) == (0, [], 0)
        run(tx, sa.update(tables.access_study).values(study_date="18000101"))
        assert (access_study.missing(tx, at), access_study.superfluous(tx)) == (derived, derived)
        assert access_study.refill(tx, at) == derived
        assert access_study.missing(tx, at) == 0
        assert access_study.refill(tx, worlds.hour(99)) == 0


REMOVED = {
    "the rule, of studies": ("archive.index.conditions.predicate.study_condition", lambda *_: sa.true()),
    "the rule, of series": ("archive.index.conditions.predicate.series_condition", lambda *_: sa.true()),
    "the datastore": ("archive.index.conditions._in_datastore", lambda *_, **__: []),
    "one row a patient": ("archive.index.asking.speaks", lambda *_, **__: sa.true()),
}
HELD = [
    *(("the rule, of studies", level, what) for level in (Level.STUDY, Level.PATIENT) for what in ("page", "count", "before")),
    *(("the rule, of series", Level.SERIES, what) for what in ("page", "count", "before")), ("the rule, of series", Level.IMAGE, "count"),
    *(("the datastore", level, what) for level in (Level.STUDY, Level.SERIES) for what in ("count", "before")),
    *(("one row a patient", Level.PATIENT, what) for what in ("page", "before")),
]  # fmt: skip


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_every_clause_of_a_search_is_missed_when_it_is_gone(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the page, the total and the place a page begins, whatever gives the candidates."""
    waiting = set(HELD)
    for seed in (1, 9, 7, *range(60)):  # these miss most
        if not waiting:
            break
        world = worlds.draw(seed)
        with inhabited(database, world) as tx:
            for subject, need, at in worlds.callers(seed, world, 3):
                scope = policy.scope_of(subject, need, at)
                told = _told(tx, scope, {level for _, level, _ in HELD})
                for name in sorted({name for name, _, _ in waiting}):
                    with monkeypatch.context() as patched:
                        patched.setattr(*REMOVED[name])
                        asking._kept.cache_clear()
                        other = _told(tx, scope, {level for one, level, _ in waiting if one == name})
                    asking._kept.cache_clear()
                    waiting -= {(name, level, what) for (level, what), said in other.items() if said != told[level, what]}
    assert not sorted(waiting, key=str)


def _told(tx: sa.Connection, scope: policy.Scope, levels: set[Level]) -> dict[tuple[Level, str], object]:
    """What the statements say, the page of every study there is."""
    said: dict[tuple[Level, str], object] = {}
    lead = access_study.lead(tx, scope, 1)
    every = list(policy.run_as(tx, TOKEN, sa.select(tables.study.c.id)).scalars())
    for level in levels:
        # A key that every study meets: without one, their number is told by another statement.
        query = SearchQuery(level, 1, ((DATE, Range("", "")),))
        one = asking.Asking(tx, scope, query, lead)
        said[level, "count"] = one.count(1000)
        said[level, "page"] = [position for _, position in one.rows(every)]
        said[level, "before"] = list(takewhile(bool, (one.before(n) for n in range(1, 30))))
    return said
