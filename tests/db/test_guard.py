"""No statement reaches a protected table without a token, whichever way it is written."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa

from archive.access import policy
from archive.db import guard
from archive.db.engine import Database
from archive.db.tables import (
    PROTECTED,
    access_study,
    datastore,
    held,
    instance,
    job_item,
    patient,
    series,
    series_pack,
    study,
    study_name_fts,
)
from tests.index.samples import add_datastore, scanned, store

TABLES = {table.name: table for table in (patient, study, series, instance, held, series_pack, access_study)}
TABLES["study_name_fts"] = study_name_fts
st, se = study.alias("harmless"), series.alias("other")
cte = sa.select(study.c.id).cte("harmless_cte")

CORE: dict[str, sa.Executable] = {
    "select": sa.select(study),
    "column": sa.select(study.c.id),
    "alias": sa.select(st.c.id),
    "count": sa.select(sa.func.count()).select_from(instance),
    "join": sa.select(datastore.c.id).join(study, study.c.datastore_id == datastore.c.id),
    "subquery": sa.select(sa.select(patient.c.id).subquery().c.id),
    "scalar": sa.select(sa.select(sa.func.count()).select_from(held).scalar_subquery()),
    "exists": sa.select(datastore.c.id).where(sa.exists().where(series.c.datastore_id == datastore.c.id)),
    "in": sa.select(datastore.c.id).where(datastore.c.id.in_(sa.select(st.c.datastore_id))),
    "cte": sa.select(cte.c.id),
    "union": sa.union_all(sa.select(datastore.c.id), sa.select(se.c.id)),
    "lateral": sa.select(sa.select(study.c.id).lateral("l").c.id),
    "insert": sa.insert(series_pack).values(series_pk=1, generation=1, object_id=b"", key_id=b"", length=1, etag=""),
    "insert-select": sa.insert(job_item).from_select(["job_id", "name"], sa.select(study.c.id, study.c.patient_name)),
    "update": sa.update(study).values(patient_name=""),
    "update-from": sa.update(datastore).values(name=study.c.patient_name).where(study.c.datastore_id == datastore.c.id),
    "update-scalar": sa.update(datastore).values(name=sa.select(sa.func.max(study.c.patient_name)).scalar_subquery()),
    "delete": sa.delete(held),
    "delete-where": sa.delete(datastore).where(datastore.c.id.in_(sa.select(patient.c.datastore_id))),
    "returning": sa.insert(datastore).values(uid=b"", name="x", created_at=datetime.fromisoformat("2026-01-01T00:00:00Z"))
    .returning(sa.select(sa.func.max(study.c.id)).scalar_subquery()),
    "table-clause": sa.select(sa.column("id")).select_from(sa.table("study")),
    "literal": sa.select(sa.literal_column("patient_name FROM study")),
    "text-from": sa.select(sa.text("*")).select_from(sa.text("study")),
    "text-columns": sa.text("SELECT id FROM study").columns(sa.column("id")),
}
TEXT = [
    "SELECT * FROM study",
    'SELECT * FROM "study"',
    "SELECT * FROM main.study",
    "SELECT * FROM public.study",
    "TABLE study",
    "CREATE TABLE copied AS SELECT * FROM study",
    "SELECT $$'$$ FROM study WHERE '' = ''",
    "SELECT 1 AS \"'\" FROM study WHERE '' = ''",
    "/* ' */ SELECT * FROM study WHERE '' = ''",
    "select*from STUDY",
    "SELECT * FROM Instance LIMIT 1",
    "SELECT * FROM (SELECT * FROM series) AS x",
    "WITH x AS (SELECT id FROM patient) SELECT * FROM x",
    "INSERT INTO held SELECT * FROM held",
    "UPDATE study SET patient_name = ''",
    "DELETE FROM instance",
    "SELECT 1 /* study */ FROM datastore, study",
    "/* hello */ SELECT * FROM study",
    "-- hello\nSELECT * FROM study",
    " ( SELECT id FROM study )",
    "SELECT datastore.id FROM datastore,study",
    "EXPLAIN SELECT * FROM study",
    "SELECT 'it''s' FROM study",
    "SELECT * FROM [study]",
    "SELECT * FROM `study`",
]
SQLITE_ONLY = {"SELECT * FROM main.study", "SELECT * FROM [study]", "SELECT * FROM `study`"}
POSTGRESQL_ONLY = {"SELECT * FROM public.study", " ( SELECT id FROM study )", "TABLE study", "SELECT $$'$$ FROM study WHERE '' = ''"}


@pytest.fixture
def filled(database: Database, now: datetime) -> Database:
    store(database, add_datastore(database, now), now, scanned(PatientName="CANARY"))
    return database


def test_every_protected_table_is_tried() -> None:
    assert set(TABLES) == set(PROTECTED)


@pytest.mark.parametrize("name", CORE)
def test_core_statements_need_a_token(filled: Database, name: str) -> None:
    if name == "lateral" and filled.sqlite:
        pytest.skip("SQLite has no LATERAL")
    with pytest.raises(guard.NakedQuery), filled.begin() as tx:
        tx.execute(CORE[name])


@pytest.mark.parametrize("table", sorted(PROTECTED - {"study_name_fts"}))
def test_every_protected_table_is_guarded(filled: Database, table: str) -> None:
    with filled.read() as tx:
        with pytest.raises(guard.NakedQuery):
            tx.execute(sa.select(sa.func.count()).select_from(TABLES[table]))
        with pytest.raises(guard.NakedQuery):
            tx.exec_driver_sql(f"SELECT count(*) FROM {table}")
        assert policy.run_as(tx, policy.system("verify"), sa.select(sa.func.count()).select_from(TABLES[table])).scalar_one() >= 0


@pytest.mark.parametrize("sql", TEXT)
def test_text_needs_a_token(filled: Database, sql: str) -> None:
    if sql in (POSTGRESQL_ONLY if filled.sqlite else SQLITE_ONLY):
        pytest.skip("the other engine's syntax")
    with pytest.raises(guard.NakedQuery), filled.begin() as tx:
        tx.execute(sa.text(sql))
    with pytest.raises(guard.NakedQuery), filled.begin() as tx:
        tx.exec_driver_sql(sql)


def test_the_name_index_is_guarded(filled: Database) -> None:
    if not filled.sqlite:
        pytest.skip("an index of the table on PostgreSQL")
    with filled.read() as tx:
        for statement in (sa.select(study_name_fts.c.folded), sa.text("SELECT * FROM study_name_fts WHERE folded MATCH 'canary'")):
            with pytest.raises(guard.NakedQuery):
                tx.execute(statement)
        with pytest.raises(guard.NakedQuery):
            tx.exec_driver_sql("SELECT c0 FROM study_name_fts_content")


@pytest.mark.parametrize("token", [None, "scope:1", True, object(), {"reason": "x"}])
def test_only_a_token_opens(filled: Database, token: Any) -> None:
    with filled.read() as tx, pytest.raises(guard.NakedQuery):
        tx.execute(sa.select(study), execution_options={guard.OPTION: token})


def test_a_token_counts_for_its_statement_alone(filled: Database) -> None:
    with filled.read() as tx:
        assert policy.run_as(tx, policy.system("verify"), sa.select(study.c.patient_name)).scalars().all() == ["CANARY"]
        with pytest.raises(guard.NakedQuery):
            tx.execute(sa.select(study))


def test_other_tables_and_words_in_values_are_free(filled: Database) -> None:
    with filled.begin() as tx:
        tx.execute(sa.select(datastore)).all()
        tx.execute(sa.text("SELECT 'from study' AS a, name FROM datastore WHERE name <> 'series'")).all()
        tx.execute(sa.update(datastore).values(name="study"))
