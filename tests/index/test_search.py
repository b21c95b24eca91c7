"""What a search answers: levels, parents, order, pages, totals, and never more than the caller may see."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from random import Random
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archive.access.permissions import Permission
from archive.access.policy import Scope, scope_of
from archive.access.subject import Subject
from archive.db import guard
from archive.db.engine import Database
from archive.db.prepared import Prepared
from archive.dicom.attributes import BY_KEYWORD, Level
from archive.dicom.matching import parse
from archive.errors import InvalidQuery
from archive.index import catalog, conditions, search
from archive.index.search import SearchPage, SearchQuery, find, locate
from tests.index.samples import add_datastore, add_user, grant, scanned, store

SELECTED = 21  # SQLite's number for a SELECT that is prepared
STUDY, SERIES, IMAGE, PATIENT = Level.STUDY, Level.SERIES, Level.IMAGE, Level.PATIENT


class World:
    """A datastore, someone who sees all of it and someone who sees nothing yet."""

    def __init__(self, database: Database, now: datetime) -> None:
        self.database, self.now = database, now
        self.place = add_datastore(database, now, os.urandom(6).hex())
        self.everyone = add_user(database, now, os.urandom(6).hex())
        self.someone = add_user(database, now, os.urandom(6).hex())
        grant(database, self.place, self.everyone, now)

    def store(self, *instances: Any) -> list[catalog.Inserted]:
        return store(self.database, self.place, self.now, *instances)

    def find(self, level: Level, keys: dict[str, str] | None = None, subject: Subject | None = None, **options: Any) -> SearchPage:
        terms = tuple((BY_KEYWORD[name], parse(BY_KEYWORD[name], text)) for name, text in (keys or {}).items())
        include = options.pop("include", ())
        if include != "all":
            include = tuple(BY_KEYWORD[name] for name in include)
        with self.database.read() as tx:
            return find(tx, self.scope(subject), SearchQuery(level, self.place, terms, include=include, **options))

    def scope(self, subject: Subject | None = None) -> Scope:
        return scope_of(subject or self.everyone, Permission.SEARCH, self.now)

    def locate(self, *uids: str, subject: Subject | None = None) -> list[search.InstanceRow]:
        with self.database.read() as tx:
            return locate(tx, self.scope(subject), self.place, *uids)


@pytest.fixture
def world(database: Database, now: datetime) -> Iterator[World]:
    return World(database, now)  # type: ignore[return-value]


def uids(page: SearchPage, tag: str) -> list[str]:
    return [row[tag]["Value"][0] for row in page.rows]


def test_study_answer_has_the_usual_attributes(world: World) -> None:
    world.store(
        scanned(PatientName="A^B=山", PatientID="1", StudyDate="20260102", AccessionNumber="", Modality="CT"),
        scanned(series="2", sop="2", PatientID="1", Modality="MR"), scanned(series="2", sop="3", PatientID="1", Modality="MR"),
    )
    [row] = world.find(STUDY).rows
    assert row == {
        "00080020": {"vr": "DA", "Value": ["20260102"]},
        "00080030": {"vr": "TM"},
        "00080050": {"vr": "SH"},
        "00080056": {"vr": "CS", "Value": ["ONLINE"]},
        "00080061": {"vr": "CS", "Value": ["CT", "MR"]},
        "00080090": {"vr": "PN"},
        "00080201": {"vr": "SH"},
        "00081030": {"vr": "LO"},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "A^B", "Ideographic": "山"}]},
        "00100020": {"vr": "LO", "Value": ["1"]},
        "00100030": {"vr": "DA"},
        "00100040": {"vr": "CS"},
        "0020000D": {"vr": "UI", "Value": ["1.1"]},
        "00200010": {"vr": "SH"},
        "00201206": {"vr": "IS", "Value": [2]},
        "00201208": {"vr": "IS", "Value": [3]},
    }


def test_series_and_instance_answers_carry_the_levels_the_address_leaves_open(world: World) -> None:
    world.store(scanned(PatientID="1", StudyDescription="s", Modality="CT", SeriesNumber=4, InstanceNumber=9, Rows=512))
    [free], [inside] = world.find(SERIES).rows, world.find(SERIES, study_instance_uid="1.1").rows
    assert free["00100020"]["Value"] == ["1"]
    assert free["00080061"]["Value"] == ["CT"]
    assert free["00201209"] == {"vr": "IS", "Value": [1]}
    assert {"00100020", "00081030", "00080061"}.isdisjoint(inside)
    assert (inside["0020000D"]["Value"], inside["00200011"]["Value"]) == (["1.1"], [4])
    [free] = world.find(IMAGE).rows
    assert (free["00100020"]["Value"], free["00080060"]["Value"], free["00280010"]["Value"]) == (["1"], ["CT"], [512])
    [inside] = world.find(IMAGE, study_instance_uid="1.1").rows
    assert ("00100020" in inside, "00080060" in inside) == (False, True)
    [inside] = world.find(IMAGE, study_instance_uid="1.1", series_instance_uid="1.1.1").rows
    assert {"00100020", "00080060"}.isdisjoint(inside)
    assert (inside["00080018"]["Value"], inside["0020000E"]["Value"]) == (["1.1.1.1"], ["1.1.1"])


def test_asked_attributes_are_answered_at_their_level_and_below(world: World) -> None:
    world.store(scanned(PatientID="1", PatientWeight=72.5, Modality="CT", Manufacturer="M", ImageType=["A", "B"]))
    [row] = world.find(STUDY, include=["PatientWeight", "SOPClassesInStudy", "Modality", "PatientComments"]).rows
    assert row["00101030"] == {"vr": "DS", "Value": [72.5]}
    assert row["00080062"]["Value"] == ["1.2.840.10008.5.1.4.1.1.2"]
    assert row["00104000"] == {"vr": "LT"}
    assert "00080060" not in row
    [row] = world.find(IMAGE, {"PatientWeight": ""}, study_instance_uid="1.1", include=["ImageType", "AvailableTransferSyntaxUID"]).rows
    assert (row["00101030"]["Value"], row["00080008"]["Value"]) == ([72.5], ["A", "B"])
    assert row["00083002"]["Value"] == ["1.2.840.10008.1.2.1"]
    [row] = world.find(SERIES, study_instance_uid="1.1", include="all").rows
    assert row["00080070"]["Value"] == ["M"]


def test_patients_speak_by_their_latest_visible_study(world: World) -> None:
    done = world.store(
        scanned(PatientID="1", PatientName="Old"), scanned("2", "2.1", "2.1.1", PatientID="1", PatientName="New"),
        scanned("3", "3.1", "3.1.1", PatientID="2", PatientName="Other"),
    )
    page = world.find(PATIENT, include=["NumberOfPatientRelatedStudies", "NumberOfPatientRelatedInstances"])
    assert [row["00100010"]["Value"][0]["Alphabetic"] for row in page.rows] == ["Other", "New"]
    assert [row["00201200"]["Value"] for row in page.rows] == [[1], [2]]
    assert page.total == 2
    grant(world.database, world.place, world.someone, world.now, done[0].study_pk * 4 + 2)
    page = world.find(PATIENT, subject=world.someone, include=["NumberOfPatientRelatedStudies"])
    assert [(row["00100010"]["Value"][0]["Alphabetic"], row["00201200"]["Value"]) for row in page.rows] == [("Old", [1])]
    assert world.find(PATIENT, {"PatientName": "New"}, subject=world.someone).total == 0


def plan_without(world: World, index: str, statement: sa.Select[Any]) -> list[str]:
    """PostgreSQL's plan where the right index is gone, so that any other it may use is better than none."""
    if world.database.sqlite:
        pytest.skip("of PostgreSQL's plans")
    scope = world.scope()
    with world.database.begin() as tx:
        tx.exec_driver_sql("SAVEPOINT as_it_was")
        tx.exec_driver_sql("SET LOCAL enable_seqscan = off")
        tx.exec_driver_sql(f"DROP INDEX {index}")
        compiled = Prepared(statement)._for(tx)
        values = compiled._values({**scope.parameters, "datastore": world.place})
        plan = tx.exec_driver_sql(f"EXPLAIN {compiled.text}", values, execution_options={guard.OPTION: scope.token})
        lines = [str(line[0]) for line in plan]
        tx.exec_driver_sql("ROLLBACK TO as_it_was")
    return lines


def test_postgresql_reads_no_order_of_all_studies_for_each_patient(world: World) -> None:
    # Of 100,000 studies it read half of their index for each of 1,500 patients: 20 s.
    one = conditions.speaks(SearchQuery(PATIENT, world.place), world.scope().shape, None, sqlite=False)
    plan = plan_without(world, "ix_study_patient_pk", sa.select(conditions.ST.c.id).where(one))
    assert [line for line in plan if "study other_st" in line]
    assert not [line for line in plan if "Index Cond" in line and "st.study_date" in line]


def test_postgresql_reads_no_modality_for_each_study(world: World) -> None:
    # Of 250,000 series it read a modality's for each of 64 studies: 150 ms.
    modality = BY_KEYWORD["Modality"]
    query = SearchQuery(SERIES, world.place, ((modality, parse(modality, "CT")),))
    wanted = conditions.conditions(query, world.scope().shape, sqlite=False)
    plan = plan_without(world, "ix_series_study_pk", sa.select(conditions.SE.c.id).select_from(conditions.FROM[SERIES]).where(*wanted))
    assert [line for line in plan if "series se" in line]
    assert not [line for line in plan if "Index Cond" in line and "datastore_id" in line]


def test_order_is_stable_and_pages_are_disjoint_and_complete(world: World) -> None:
    dates = ["20260101", "", "20260103", "20260103", "20251231", "20260103"]
    world.store(*(scanned(f"1.{n}", f"1.{n}.1", f"1.{n}.1.1", StudyDate=date, StudyTime=f"{n:02}") for n, date in enumerate(dates)))
    assert uids(world.find(STUDY), "0020000D") == ["1.5", "1.3", "1.2", "1.0", "1.4", "1.1"]
    pages = [world.find(STUDY, limit=2, offset=start) for start in (0, 2, 4, 6)]
    assert [uid for page in pages for uid in uids(page, "0020000D")] == ["1.5", "1.3", "1.2", "1.0", "1.4", "1.1"]
    assert [page.total for page in pages] == [6] * 4
    assert uids(world.find(STUDY, offset=4), "0020000D") == ["1.4", "1.1"]
    assert world.find(STUDY, limit=2, total=False).total is None


@pytest.mark.parametrize("level", [PATIENT, STUDY, SERIES, IMAGE])
def test_pages_without_a_study_go_through_every_row_once(world: World, level: Level) -> None:
    """From page to page, by offset, and by a limit that ends in the midst of a study."""
    r = Random(level.value)
    world.store(*(
        scanned(f"1.{a}", f"1.{a}.{b}", f"1.{a}.{b}.{c}", PatientID=f"P{a % 3}", StudyDate=r.choice(["20260101", "20260102", ""]),
                **({"SeriesNumber": r.randrange(2)} if b else {}), **({"InstanceNumber": r.randrange(2)} if c else {}))
        for a in range(5) for b in range(3) for c in range(3)
    ))  # fmt: skip
    whole = world.find(level)
    own = {PATIENT: "00100020", STUDY: "0020000D", SERIES: "0020000E", IMAGE: "00080018"}[level]
    count = {PATIENT: 3, STUDY: 5, SERIES: 15, IMAGE: 45}[level]
    assert (len({*uids(whole, own)}), len(whole.rows), whole.total) == (count, count, count)
    studies = list(dict.fromkeys(uids(whole, "0020000D"))) if level is not PATIENT else []
    assert not studies or studies == uids(world.find(STUDY), "0020000D")
    for size in (1, 2, 7):
        walked, after = [], None
        for start in range(0, count, size):
            assert world.find(level, limit=size, offset=start).rows == whole.rows[start : start + size]
            page = world.find(level, limit=size, offset=start, after=after)
            assert page.total == count
            walked += page.rows
            after = page.last
        assert walked == whole.rows
    beyond = world.find(level, limit=1, offset=count)
    assert (beyond.rows, beyond.total) == ([], count)


@pytest.mark.parametrize("level", [PATIENT, STUDY, SERIES, IMAGE])
def test_a_uid_of_any_level_finds_its_rows_and_no_others(world: World, level: Level) -> None:
    done = world.store(*(
        scanned(f"1.{a}", f"1.{a}.{b}", f"1.{a}.{b}.{c}", PatientID=f"P{a}") for a in range(2) for b in range(2) for c in range(2)
    ))  # fmt: skip
    grant(world.database, world.place, world.someone, world.now, done[0].series_pk * 4 + 3)
    keys = {"StudyInstanceUID": "1.0", "SeriesInstanceUID": "1.0.0", "SOPInstanceUID": "1.0.0.1"}
    rows = {
        "StudyInstanceUID": {PATIENT: 1, STUDY: 1, SERIES: 2, IMAGE: 4}, "SeriesInstanceUID": {PATIENT: 1, STUDY: 1, SERIES: 1, IMAGE: 2},
        "SOPInstanceUID": {PATIENT: 1, STUDY: 1, SERIES: 1, IMAGE: 1},
    }  # fmt: skip
    for keyword, uid in keys.items():
        page = world.find(level, {keyword: uid})
        assert (len(page.rows), page.total) == (rows[keyword][level],) * 2
        assert world.find(level, {keyword: f"9.9\\{uid}"}).rows == page.rows
        assert world.find(level, {keyword: "9.9"}).total == 0
        assert len(world.find(level, {keyword: uid}, world.someone).rows) == min(rows[keyword][level], {SERIES: 1, IMAGE: 2}.get(level, 1))
    for keyword, uid in {"SeriesInstanceUID": "1.0.1", "SOPInstanceUID": "1.0.1.1", "StudyInstanceUID": "1.1"}.items():
        assert world.find(level, {keyword: uid}, world.someone).total == 0
    other = add_datastore(world.database, world.now, os.urandom(6).hex())
    grant(world.database, other, world.someone, world.now)
    store(world.database, other, world.now, scanned("1.0", "1.0.0", "1.0.0.1", PatientID="elsewhere"))
    assert world.find(level, {"SOPInstanceUID": "1.0.0.1"}, world.everyone).total == 1


def test_series_and_instances_are_ordered_by_number(world: World) -> None:
    world.store(*(
        scanned(series=f"1.{number}", sop=f"1.{number}.{image}", **({"SeriesNumber": number} if number else {}), InstanceNumber=image)
        for number in (0, 10, 9) for image in (2, 11, 1)
    ))  # fmt: skip
    order = [f"1.{number}.{image}" for number in (9, 10, 0) for image in (1, 2, 11)]
    assert uids(world.find(SERIES), "0020000E") == ["1.9", "1.10", "1.0"]
    assert [row.sop_instance_uid for row in world.locate("1.1")] == order
    assert uids(world.find(IMAGE, series_instance_uid="1.9"), "00080018") == order[:3]


def test_totals_beyond_the_limit_are_left_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "COUNTED", 3)
    world.store(*(scanned(f"1.{n}", f"1.{n}.1", f"1.{n}.1.1") for n in range(4)))
    assert world.find(STUDY, limit=1).total is None
    assert world.find(STUDY, {"StudyInstanceUID": "1.1,1.2,1.0"}, limit=1).total == 3


def test_keys_of_lower_levels_are_met_by_one_series(world: World) -> None:
    world.store(
        scanned("1", "1.1", "1.1.1", Modality="CT", SeriesDescription="Thorax", Rows=1),
        scanned("1", "1.2", "1.2.1", Modality="MR", Rows=2),
        scanned("2", "2.1", "2.1.1", Modality="MR", SeriesDescription="Thorax", Rows=3),
    )
    assert uids(world.find(STUDY, {"Modality": "MR", "SeriesDescription": "thor*"}), "0020000D") == ["2"]
    assert set(uids(world.find(STUDY, {"ModalitiesInStudy": "MR"}), "0020000D")) == {"1", "2"}
    assert uids(world.find(STUDY, {"ModalitiesInStudy": "MR", "SeriesDescription": "thorax", "Modality": "CT"}), "0020000D") == ["1"]
    assert uids(world.find(SERIES, {"ModalitiesInStudy": "CT", "Modality": "MR"}), "0020000E") == ["1.2"]
    assert uids(world.find(STUDY, {"Rows": "2"}), "0020000D") == ["1"]
    assert world.find(STUDY, {"Rows": "2", "Modality": "CT"}).total == 0
    assert world.find(STUDY, {"SOPClassesInStudy": "1.2.840.10008.5.1.4.1.1.2"}).total == 2
    assert world.find(STUDY, {"SOPClassesInStudy": "1.2.3"}).total == 0
    assert world.find(STUDY, {"InstanceAvailability": "ONLINE"}).total == 2
    assert world.find(STUDY, {"InstanceAvailability": "OFFLINE"}).total == 0
    assert world.find(STUDY, {"ModalitiesInStudy": '""'}).total == 0


@pytest.mark.parametrize("keyword", ["NumberOfStudyRelatedInstances", "NumberOfPatientRelatedStudies"])
def test_counts_cannot_be_matched(world: World, keyword: str) -> None:
    with pytest.raises(InvalidQuery, match=keyword):
        world.find(STUDY, {keyword: "1"})


def test_hidden_series_are_not_there(world: World) -> None:
    done = world.store(
        scanned("1", "1.1", "1.1.1", PatientID="p", Modality="CT", SeriesDescription="open"),
        scanned("1", "1.2", "1.2.1", PatientID="p", Modality="MR", SeriesDescription="secret", Rows=7),
        scanned("1", "1.2", "1.2.2", PatientID="p", Modality="MR"), scanned("2", "2.1", "2.1.1", PatientID="p"),
    )
    assert world.find(STUDY, subject=world.someone) == SearchPage([], 0)
    grant(world.database, world.place, world.someone, world.now, done[0].series_pk * 4 + 3)

    def seen(level: Level, keys: dict[str, str] | None = None) -> SearchPage:
        return world.find(level, keys, subject=world.someone, include=["NumberOfStudyRelatedSeries", "SOPClassesInStudy"])

    [row] = seen(STUDY).rows
    assert (row["00080061"]["Value"], row["00201206"]["Value"], row["00201208"]["Value"]) == (["CT"], [1], [1])
    assert [len(seen(level).rows) for level in (PATIENT, STUDY, SERIES, IMAGE)] == [1, 1, 1, 1]
    for key in ({"SeriesDescription": "secret"}, {"ModalitiesInStudy": "MR"}, {"Rows": "7"}, {"SeriesInstanceUID": "1.2"}):
        for level in (PATIENT, STUDY):
            assert world.find(level, key).total == 1
            assert seen(level, key).total == 0
    assert [row.series_instance_uid for row in world.locate("1", subject=world.someone)] == ["1.1"]
    assert world.locate("1", "1.2", subject=world.someone) == world.locate("9", subject=world.someone) == []
    grant(world.database, world.place, world.someone, world.now, effect=0)
    assert seen(STUDY).total == 0


def test_rejected_instances_are_not_there(world: World) -> None:
    done = world.store(scanned(Rows=1), scanned(sop="2", Rows=2), scanned(series="9", sop="3", Rows=3))
    with world.database.begin() as tx:
        catalog.reject(tx, [done[1].instance_pk, done[2].instance_pk], None, "x", world.now)
    [row] = world.find(STUDY, include=["SOPClassesInStudy"]).rows
    assert (row["00201206"]["Value"], row["00201208"]["Value"]) == ([1], [1])
    assert [world.find(level).total for level in (STUDY, SERIES, IMAGE)] == [1, 1, 1]
    assert world.find(STUDY, {"Rows": "2"}).total == 0
    assert [one.sop_instance_uid for one in world.locate("1.1")] == ["1.1.1.1"]
    with world.database.begin() as tx:
        catalog.reject(tx, [done[0].instance_pk], None, "x", world.now)
    assert world.find(STUDY) == SearchPage([], 0)


def test_another_datastore_is_another_archive(world: World) -> None:
    world.store(scanned())
    other = add_datastore(world.database, world.now, "research")
    store(world.database, other, world.now, scanned(PatientID="x"))
    assert world.find(STUDY).total == 1
    grant(world.database, other, world.someone, world.now)
    assert world.find(STUDY, subject=world.someone).total == 0
    assert world.locate("1.1", subject=world.someone) == []


def test_locate_needs_every_uid_to_fit(world: World) -> None:
    [done, *_] = world.store(scanned(NumberOfFrames=3), scanned("5", "5.1", "5.1.1"))
    [one] = world.locate("1.1", "1.1.1", "1.1.1.1")
    assert (one.instance_pk, one.series_generation, one.number_of_frames) == (done.instance_pk, 1, 3)
    assert one.ref.location.offset == 4096
    assert one.ref.datastore != bytes(16)
    for wrong in (("5", "1.1.1"), ("1.1", "5.1", "1.1.1.1"), ("1.1", "1.1.1", "5.1.1"), ("x",)):
        assert world.locate(*wrong) == []


def test_a_series_is_not_addressed_at_study_level(world: World) -> None:
    with pytest.raises(InvalidQuery):
        world.find(STUDY, series_instance_uid="1")


@settings(max_examples=16, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_answers_equal_those_of_an_archive_of_visible_series_only(database: Database, now: datetime, data: st.DataObject) -> None:
    """What one sees of an archive is what everyone sees of an archive that holds nothing else."""
    modality, description = st.sampled_from(["CT", "MR", ""]), st.sampled_from(["a", "b", ""])
    instances = [
        scanned(f"1.{a}", f"1.{a}.{b}", f"1.{a}.{b}.{c}", PatientID=f"P{a % 2}", StudyDate=f"2026010{a + 1}", SeriesNumber=b,
                Modality=mode, SeriesDescription=text, Rows=c)
        for a in range(data.draw(st.integers(1, 3))) for b in range(data.draw(st.integers(1, 3)))
        for mode, text in [(data.draw(modality), data.draw(description))] for c in range(data.draw(st.integers(1, 2)))
    ]  # fmt: skip
    whole, part = World(database, now), World(database, now + timedelta(1))
    done = whole.store(*instances)
    shown = {one.series_pk for one in done if data.draw(st.booleans())}
    for pk in shown:
        grant(database, whole.place, whole.someone, now, pk * 4 + 3)
    part.store(*(instance for instance, one in zip(instances, done, strict=True) if one.series_pk in shown))
    for _ in range(4):
        level = data.draw(st.sampled_from(list(Level)))
        of_series = st.sampled_from(["ModalitiesInStudy", "Modality", "SeriesDescription"])
        keys = data.draw(st.dictionaries(of_series, st.sampled_from(["CT", "a", '""'])))
        keys |= data.draw(st.dictionaries(st.sampled_from(["Rows"]), st.sampled_from(["0", "1"])))
        options = {"include": ["SOPClassesInStudy", "NumberOfPatientRelatedSeries"], "limit": data.draw(st.sampled_from([1, 100]))}
        assert whole.find(level, keys, whole.someone, **options) == part.find(level, keys, **options)


@pytest.mark.parametrize("level", [PATIENT, STUDY, SERIES, IMAGE])
def test_sqlite_prepares_a_search_once(world: World, level: Level) -> None:
    """A parameter alone after LIMIT or GLOB has the statement prepared again with each value: ten times what it takes to run."""
    if not world.database.sqlite:
        pytest.skip("SQLite's own")
    world.store(scanned("1.1", PatientName="Müller^Anna"), scanned("1.2", "1.2.1", "1.2.1.1", PatientName="Smith^John"))
    prepared: list[object] = []
    with world.database.read() as tx:
        connection: Any = tx.connection.driver_connection
    connection.set_authorizer(lambda action, *asked: (prepared.append(asked) if action == SELECTED else None) or 0)
    asked = [
        ({}, {}), ({"PatientName": "Mülle*"}, {"PatientName": "Smith*"}), ({"PatientName": "*ll*"}, {"PatientName": "*mi*"}),
        ({"PatientID": "P?"}, {"PatientID": "Q?"}), ({"StudyDate": "20260101-20260131"}, {"StudyDate": "20260201-20260228"}),
        ({"StudyDescription": "*knee*"}, {"StudyDescription": "*hand*"}), ({"AccessionNumber": "A1"}, {"AccessionNumber": "B2"}),
    ]
    for options in ({"total": True}, {"offset": 1, "total": False, "usual": False}):
        for first, second in asked:
            world.find(level, first, limit=1, **options)
            world.find(level, first, limit=1, **options)
            prepared.clear()
            world.find(level, second, limit=1, **options)
            assert prepared == [], (first, options)


@pytest.mark.parametrize("level", [PATIENT, STUDY, SERIES, IMAGE])
def test_no_more_than_is_asked_for(world: World, level: Level) -> None:
    world.store(scanned("1.1", PatientName="Müller^Anna"), scanned("1.2", "1.2.1", "1.2.1.1", PatientName="Smith^John"))
    include = ("PatientName", "StudyDate", "PatientBirthDate", "StudyInstanceUID", "ModalitiesInStudy", "SeriesDescription", "Rows")
    whole = world.find(level, {"PatientName": "*"}, include=include).rows
    told = world.find(level, {"PatientName": "*"}, include=include, usual=False).rows
    named = {BY_KEYWORD[name].tag_hex for name in (*include, "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")}
    assert len(whole) == 2
    assert told == [{tag: element for tag, element in row.items() if tag in named} for row in whole]
    assert all(len(row) < len(every) for row, every in zip(told, whole, strict=True))
