"""Rows and counts of the catalog on both engines."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archive.access import policy
from archive.db.engine import Database
from archive.db.tables import boundary_item, grants, held, instance, patient, principal, series, study, study_name_fts
from archive.errors import InstanceConflict
from archive.index import catalog
from tests.index.samples import add_datastore, entry, scanned, store

TOKEN = policy.system("verify")


def rows(database: Database, table: sa.FromClause) -> list[Any]:
    with database.read() as tx:
        return list(policy.run_as(tx, TOKEN, sa.select(table).order_by(*list(table.c)[:1])).all())


@pytest.fixture
def place(database: Database, now: datetime) -> int:
    return add_datastore(database, now)


def test_first_instance_makes_patient_study_and_series(database: Database, place: int, now: datetime) -> None:
    one = scanned(
        PatientName="Müller^Jörg=山田^太郎", PatientID=" P1 ", PatientBirthDate="19700203", StudyDate="20260102", StudyTime="1015",
        AccessionNumber="A1", StudyDescription="Schädel", Modality="CT", SeriesNumber=3, SeriesDescription="Ax Ü", InstanceNumber=7,
        Rows=512, Columns=256, BitsAllocated=16, NumberOfFrames=2,
    )
    [done] = store(database, place, now, one, issuer="HOSP")
    [pt], [st_], [se], [im] = (rows(database, table) for table in (patient, study, series, instance))
    assert (pt.issuer, pt.patient_id, pt.synthetic, pt.patient_name) == ("HOSP", "P1", False, "Müller^Jörg=山田^太郎")
    assert (done.study_pk, done.series_pk, done.instance_pk) == (st_.id, se.id, im.id)
    assert st_.patient_name_folded == " muller jorg=山田 太郎= "
    assert (st_.patient_id, st_.study_date, st_.study_time, st_.study_description_folded) == ("P1", "20260102", "101500", "schadel")
    assert (st_.n_series, st_.n_instances, se.n_instances, se.generation) == (1, 1, 1, 1)
    assert (se.patient_pk, se.study_pk, se.study_date, se.modality, se.series_number) == (pt.id, st_.id, "20260102", "CT", 3)
    assert (im.instance_number, im.rows, im.columns, im.bits_allocated, im.number_of_frames) == (7, 512, 256, 16, 2)
    assert st_.attributes["00081030"] == {"vr": "LO", "Value": ["Schädel"]}
    assert ("00080060" in se.attributes, "00080060" in st_.attributes) == (True, False)


def test_counts_and_generation_grow_with_each_instance(database: Database, place: int, now: datetime) -> None:
    store(database, place, now, scanned(), scanned(sop="2"), scanned(series="9", sop="3"))
    store(database, place, now + timedelta(1), scanned(sop="4"))
    [st_] = rows(database, study)
    assert (st_.n_series, st_.n_instances, st_.updated_at, st_.created_at) == (2, 4, now + timedelta(1), now)
    assert [(se.n_instances, se.generation) for se in rows(database, series)] == [(3, 3), (1, 1)]


def test_first_values_stand_and_differences_are_named(database: Database, place: int, now: datetime) -> None:
    first = scanned(PatientName="A", PatientID="1", StudyDescription="x", Modality="CT", Rows=1)
    other = scanned(sop="2", PatientName="B", PatientID="1", StudyDescription="", Modality="MR", Rows=2)
    assert store(database, place, now, first, other)[1].differing == ("Modality", "PatientName")
    [st_], [se] = rows(database, study), rows(database, series)
    assert (st_.patient_name, st_.study_description, se.modality) == ("A", "x", "CT")


def test_two_patients_with_one_id_of_two_issuers(database: Database, place: int, now: datetime) -> None:
    store(database, place, now, scanned(PatientID="1", IssuerOfPatientID="A"), scanned("2", "2.1", "2.1.1", PatientID="1"), issuer="B")
    assert [(pt.issuer, pt.patient_id) for pt in rows(database, patient)] == [("A", "1"), ("B", "1")]


@pytest.mark.parametrize("value", ["", "   ", None])
def test_each_study_without_patient_id_has_a_patient_of_its_own(database: Database, place: int, now: datetime, value: str | None) -> None:
    said = {} if value is None else {"PatientID": value}
    store(database, place, now, scanned(**said), scanned("2", "2.1", "2.1.1", **said), scanned(sop="5", **said))
    patients = rows(database, patient)
    assert [pt.synthetic for pt in patients] == [True, True]
    assert len({pt.patient_id for pt in patients}) == 2
    assert [st_.patient_id for st_ in rows(database, study)] == ["", ""]


def test_study_moves_from_synthetic_to_first_real_patient(database: Database, place: int, now: datetime) -> None:
    store(database, place, now, scanned(), scanned(series="1.9", sop="8"))
    store(database, place, now, scanned("7", "7.1", "7.1.1", PatientID="P", PatientName="Elsewhere"))
    synthetic, real = rows(database, patient)
    with database.begin() as tx:
        who = tx.execute(sa.insert(principal), {"kind": "user", "name": "u", "created_at": now}).inserted_primary_key[0]
        grant = {"datastore_id": place, "subject_id": who, "effect": 0, "permissions": 1, "created_at": now}
        window = {"not_before": now, "not_after": now}
        tx.execute(sa.insert(grants), [{**grant, **window, "scope_key": pt.id * 4 + 1} for pt in (synthetic, real)])
    [done] = store(database, place, now, scanned(sop="9", PatientID="P", PatientName="Doe^Jo"))
    assert done.patient_moved
    moved = rows(database, study)[0]
    assert (moved.patient_pk, moved.patient_id, moved.patient_name_folded) == (real.id, "P", " doe jo== ")
    assert moved.attributes["00100010"]["Value"] == [{"Alphabetic": "Doe^Jo"}]
    assert {se.patient_pk for se in rows(database, series)} == {real.id}
    assert [pt.id for pt in rows(database, patient)] == [real.id]
    # Nobody gains or loses by the move: what covered the synthetic patient covers its study.
    assert sorted(row.scope_key for row in rows(database, grants)) == sorted([moved.id * 4 + 2, real.id * 4 + 1])
    assert rows(database, boundary_item) == []
    if database.sqlite:
        assert rows(database, study_name_fts)[0].folded == " doe jo== "
    # The identity stands from now on.
    with database.read() as tx:
        assert catalog.identity_conflict(tx, place, scanned(sop="10", PatientID="Q"), "") == "patient"
        assert catalog.identity_conflict(tx, place, scanned(sop="10"), "") is None


def test_contradictions_are_found_before_insert(database: Database, place: int, now: datetime) -> None:
    store(database, place, now, scanned(PatientID="1"), issuer="A")
    with database.read() as tx:
        def ask(candidate: Any, issuer: str = "A") -> str | None:
            return catalog.identity_conflict(tx, place, candidate, issuer)

        assert ask(scanned(sop="2", PatientID="1 ")) is None
        assert ask(scanned(sop="2", PatientID="2")) == "patient"
        assert ask(scanned(sop="2", PatientID="1"), "B") == "patient"
        assert ask(scanned(study="5", sop="2", PatientID="1")) == "study"
        assert ask(scanned("5", "5.1", "5.1.1", PatientID="2")) is None
    other = add_datastore(database, now, "research")
    with database.read() as tx:
        assert catalog.identity_conflict(tx, other, scanned(sop="2", PatientID="2"), "A") is None
    with pytest.raises(InstanceConflict):
        store(database, place, now, scanned(study="5", sop="2", PatientID="1"))


def test_same_uids_in_two_datastores_are_two_studies(database: Database, place: int, now: datetime) -> None:
    other = add_datastore(database, now, "research")
    store(database, place, now, scanned(PatientID="1"))
    store(database, other, now, scanned(PatientID="1"))
    assert len(rows(database, study)) == len(rows(database, patient)) == 2


def test_find_instance_says_where_it_lies(database: Database, place: int, now: datetime) -> None:
    added = entry(place, scanned(PatientID="1"), now)
    with database.begin() as tx:
        pk = catalog.insert(tx, added).instance_pk
        assert catalog.find_instance(tx, place, "1.1.1.2") is None
        assert catalog.find_instance(tx, place + 1, "1.1.1.1") is None
        found = catalog.find_instance(tx, place, "1.1.1.1")
        assert found is not None
        assert (found.instance_pk, found.study_instance_uid, found.series_instance_uid, found.rejected) == (pk, "1.1", "1.1.1", False)
        assert (found.ref.location, found.ref.object_id, found.sha256) == (added.ref.location, added.ref.object_id, added.sha256)
        assert found.ref.datastore != bytes(16)
        assert catalog.exists_object(tx, added.ref.object_id)
        assert not catalog.exists_object(tx, os.urandom(16))


def test_reject_and_restore_keep_counts(database: Database, place: int, now: datetime) -> None:
    done = store(database, place, now, scanned(), scanned(sop="2"), scanned(series="9", sop="3"))
    pks = [one.instance_pk for one in done]
    later = now + timedelta(hours=1)

    def counts() -> tuple[Any, ...]:
        [st_] = rows(database, study)
        return (st_.n_series, st_.n_instances, *((se.n_instances, se.generation) for se in rows(database, series)))

    with database.begin() as tx:
        assert catalog.reject(tx, [pks[2], pks[0]], 5, "wrong patient", later) == 2
    assert counts() == (1, 1, (1, 3), (0, 2))
    with database.begin() as tx:
        assert catalog.reject(tx, [pks[2]], 5, "again", later) == 0
    assert counts() == (1, 1, (1, 3), (0, 2))
    with database.begin() as tx:
        assert catalog.reject(tx, [pks[1]], None, "all", later) == 1
    assert counts()[:2] == (0, 0)
    row = rows(database, instance)[0]
    assert (row.rejected_at, row.rejected_by, row.rejected_reason) == (later, 5, "wrong patient")
    with database.begin() as tx:
        found = catalog.find_instance(tx, place, "1.1.1.1")
        assert found is not None
        assert found.rejected
        assert catalog.restore(tx, pks, later) == 3
        assert catalog.restore(tx, pks, later) == 0
    assert counts()[:2] == (2, 3)
    assert rows(database, instance)[0].rejected_at is None


def test_an_instance_beside_rejected_ones_makes_the_series_live_again(database: Database, place: int, now: datetime) -> None:
    [done] = store(database, place, now, scanned())
    with database.begin() as tx:
        catalog.reject(tx, [done.instance_pk], None, "x", now)
    store(database, place, now, scanned(sop="2"))
    [st_], [se] = rows(database, study), rows(database, series)
    assert (st_.n_series, st_.n_instances, se.n_instances) == (1, 1, 1)


def test_held_rows(database: Database, place: int, now: datetime) -> None:
    waiting = entry(place, scanned(PatientID="2", PatientName="X\0Y"), now, issuer="A")
    with database.begin() as tx:
        pk = catalog.insert_held(tx, "held", "patient", waiting)
        assert catalog.find_held(tx, place, "1.1.1.1", waiting.sha256) is not None
        assert catalog.find_held(tx, place, "1.1.1.1", bytes(32)) is None
        assert catalog.exists_object(tx, waiting.ref.object_id)
        [row] = catalog.list_held(tx, datastore_id=place)
        assert (row.id, row.kind, row.reason, row.patient_id, row.issuer_of_patient_id, row.patient_name) == (
            pk, "held", "patient", "2", "A", "XY"
        )
        assert catalog.decide_held(tx, pk, "rejected", by=3, at=now)
        assert not catalog.decide_held(tx, pk, "accepted", by=3, at=now)
        assert catalog.list_held(tx) == []
        decided = catalog.held_row(tx, pk)
        assert decided is not None
        assert (decided.state, decided.decided_by, decided.decided_at) == ("rejected", 3, now)
    with pytest.raises(sa.exc.IntegrityError), database.begin() as tx:
        catalog.insert_held(tx, "held", "patient", waiting)
    assert len(rows(database, held)) == 1


def test_values_no_column_can_hold_are_kept_in_json_alone(database: Database, place: int, now: datetime) -> None:
    odd = scanned(
        PatientID="1", SeriesNumber=1 << 70, InstanceNumber="x", Rows=1 << 40, StudyDate="2026.01.02", StudyTime="none",
        AccessionNumber=["A", "B"], PatientName="\0bad\0name", StudyDescription="a\0b",
    )
    store(database, place, now, odd)
    [st_], [se], [im] = rows(database, study), rows(database, series), rows(database, instance)
    assert (se.series_number, im.instance_number, im.rows) == (None, None, None)
    assert (st_.study_date, st_.study_time, st_.accession_number) == ("20260102", "", "\\A\\B")
    assert st_.attributes["00081030"]["Value"] == ["ab"]
    assert im.attributes["00280010"]["Value"] == [1 << 40]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_counts_equal_the_live_rows_after_any_history(database: Database, now: datetime, data: st.DataObject) -> None:
    place = add_datastore(database, now, os.urandom(6).hex())
    pks: list[int] = []
    for step in range(data.draw(st.integers(1, 12))):
        match data.draw(st.sampled_from(["insert", "insert", "reject", "restore"])):
            case "insert":
                study_no, series_no = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
                patient_id = data.draw(st.sampled_from(["", f"P{study_no}"]))
                one = scanned(f"1.{study_no}", f"1.{study_no}.{series_no}", f"9.{step}", PatientID=patient_id)
                pks.append(store(database, place, now, one)[0].instance_pk)
            case change:
                some = [pk for pk in pks if data.draw(st.booleans())]
                with database.begin() as tx:
                    catalog.reject(tx, some, None, "", now) if change == "reject" else catalog.restore(tx, some, now)
    with database.read() as tx:
        live = policy.run_as(
            tx, TOKEN, sa.select(instance.c.study_pk, instance.c.series_pk)
            .where(instance.c.datastore_id == place, instance.c.rejected_at.is_(None))
        ).all()
        for st_ in policy.run_as(tx, TOKEN, sa.select(study).where(study.c.datastore_id == place)):
            mine = [row.series_pk for row in live if row.study_pk == st_.id]
            assert (st_.n_series, st_.n_instances) == (len(set(mine)), len(mine))
        with_study = sa.select(series, study.c.patient_pk.label("of_study")).join(study)
        for se in policy.run_as(tx, TOKEN, with_study.where(series.c.datastore_id == place)):
            assert se.n_instances == sum(row.series_pk == se.id for row in live)
            assert se.patient_pk == se.of_study
