"""The migrations make the schema of the tables, on both engines, from a checkout and from an installed wheel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from archive.access import policy
from archive.db import guard, migrate
from archive.db.engine import Database
from archive.db.tables import access_study as access_study_table
from archive.db.tables import (
    audit_event,
    audit_object,
    datastore,
    delivery,
    keystore_metadata,
    ledger_leaf,
    metadata,
    statement,
    workitem,
    workitem_study,
)
from archive.errors import DatabaseUnavailable
from archive.index import access_study
from tests.access import worlds

upgrade_to = command.upgrade
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database without a table, on each engine in turn."""
    if request.param == "sqlite":
        opened = Database.embedded(tmp_path / "empty.db", os.urandom(32), tmp_path / "writer.lock")
    else:
        opened = Database(request.getfixturevalue("postgresql_url"))
    yield opened
    opened.close()


def schema(database: Database) -> list[tuple[str, str, str]]:
    """Everything the engine says of its tables, columns, indexes and constraints, except alembic's own table."""
    with database.read() as tx:
        tx.execution_options(**{guard.OPTION: guard.Token("test")})
        if database.sqlite:
            # Constraints may stand in another order inside a table's text, so its words are compared.
            rows = tx.execute(sa.text("SELECT type, name, sql FROM sqlite_master"))
            found = [(row.type, row.name, " ".join(sorted(re.findall(r"[\w']+", row.sql or "")))) for row in rows]
        else:
            columns = tx.execute(sa.text(
                "SELECT table_name, column_name, concat_ws(' ', data_type, is_nullable, column_default, collation_name, is_identity)"
                " FROM information_schema.columns WHERE table_schema = 'public'"
            ))  # fmt: skip
            indexes = tx.execute(sa.text("SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"))
            constraints = tx.execute(sa.text(
                "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
                " WHERE connamespace = 'public'::regnamespace"
            ))  # fmt: skip
            found = [tuple(row) for rows in (columns, indexes, constraints) for row in rows]  # type: ignore[misc]
    return sorted(row for row in found if "alembic_version" not in f"{row[0]} {row[1]}")


@pytest.mark.parametrize("keystore", [False, True])
def test_upgrade_makes_what_the_tables_say(empty: Database, keystore: bool, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    migrate.upgrade(empty, keystore=keystore)
    assert migrate.revision(empty) == ("0001" if keystore else "0024")
    migrate.check(empty, keystore=keystore)

    def ours(thing: Any, name: str | None, kind: str, reflected: bool, compared: Any) -> bool:
        return not (name or "").startswith(("study_name_fts", "ix_study_name_trgm", "ix_series_condition"))

    with empty.read() as tx:
        compare = {"compare_type": True, "compare_server_default": not empty.sqlite}
        context = MigrationContext.configure(tx, opts={"include_object": ours, **compare})
        assert compare_metadata(context, keystore_metadata if keystore else metadata) == []


def test_upgrade_and_create_all_are_the_same_to_the_engine(empty: Database, tmp_path: Path) -> None:
    """What compare_metadata does not look at: text search, collations, defaults."""
    migrate.upgrade(empty)
    made = schema(empty)
    assert len(made) > 50
    if empty.sqlite:
        other = Database.embedded(tmp_path / "other.db", os.urandom(32), tmp_path / "other.lock")
        migrate.create_all(other)
        assert schema(other) == made
        other.close()
        return
    with empty.begin() as tx:
        tx.execute(sa.text("DROP SCHEMA public CASCADE"))
        tx.execute(sa.text("CREATE SCHEMA public"))
    migrate.create_all(empty)
    assert schema(empty) == made


def _move(database: Database, to: str) -> None:
    with database.begin() as tx:
        config = migrate._config(keystore=False)
        config.attributes["connection"] = tx.execution_options(**{guard.OPTION: guard.Token("schema")})
        present = MigrationContext.configure(tx).get_current_revision() or ""
        (command.downgrade if to < present else command.upgrade)(config, to)


def test_0002_leads_searches_by_the_grants_there_are(empty: Database) -> None:
    """An archive of 0001 with content is upgraded, downgraded and upgraded again, and looks as if made anew."""
    made_at_once = None
    for way in ("0001", "0002", "0001", "0002"):
        _move(empty, way)
        if made_at_once is None:
            world = worlds.draw(3)  # with grants that speak about studies
            world.grant_lineage.clear()
            for row in world.api_token:
                del row["parent_id"]
            made_at_once = schema(empty)
            with empty.begin() as tx:
                world.insert(tx)
        with empty.begin() as tx:
            if way == "0002":
                assert access_study.missing(tx, worlds.hour(0)) == 0
                rows = policy.run_as(tx, policy.system("verify"), sa.select(sa.func.count()).select_from(access_study_table)).scalar()
                assert rows == access_study.refill(tx, worlds.BASE) > 0
    _move(empty, "0001")
    assert schema(empty) == made_at_once


def test_second_upgrade_changes_nothing(empty: Database) -> None:
    migrate.upgrade(empty)
    before = schema(empty)
    migrate.upgrade(empty)
    assert schema(empty) == before


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_does_not_hold_every_name_is_refused(postgresql_server: str, encoding: str) -> None:
    admin = Database(f"{postgresql_server}postgres")
    raw = admin.engine.execution_options(isolation_level="AUTOCOMMIT")
    with raw.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {encoding} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"))
    other = Database(f"{postgresql_server}{encoding.lower()}")
    try:
        with pytest.raises(DatabaseUnavailable, match=encoding) as refused:
            migrate.upgrade(other)
        assert "UTF8" in refused.value.remedy
        assert migrate.revision(other) is None
    finally:
        other.close()
        with raw.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE {encoding}"))
        admin.close()


def test_upgrade_is_all_or_nothing(empty: Database) -> None:
    def cut(_tx: sa.Connection) -> None:
        raise DatabaseUnavailable("cut")

    empty.before_commit = cut
    with pytest.raises(DatabaseUnavailable):
        migrate.upgrade(empty)
    assert migrate.revision(empty) is None
    assert schema(empty) == []


def test_an_empty_database_is_refused_with_the_command(empty: Database) -> None:
    with pytest.raises(DatabaseUnavailable) as refused:
        migrate.check(empty)
    assert refused.value.remedy == "run 'archive db upgrade'"


def test_a_database_of_a_newer_release_is_refused(empty: Database) -> None:
    migrate.upgrade(empty)
    with empty.begin() as tx:
        tx.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    for work in (migrate.check, migrate.upgrade):
        with pytest.raises(DatabaseUnavailable, match="9999") as refused:
            work(empty)
        assert "release" in refused.value.remedy


def test_events_of_an_older_release_are_the_same_after_the_upgrade(empty: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """0003 makes the ledger's tables anew."""
    with monkeypatch.context() as older:
        older.setattr(command, "upgrade", lambda config, _revision: upgrade_to(config, "0002"))
        migrate.upgrade(empty)
    assert migrate.revision(empty) == "0002"
    events = "INSERT INTO audit_event (n, at, kind, action, outcome, principal_id, body) VALUES (:n, :n, 'stored', 'C', 0, 7, :body)"
    objects = [(0, b"p"), (0, b"s"), (2, b"s"), (1, b"p"), (2, b"p"), (2, b"p")]
    with empty.begin() as tx:
        for n in range(3):
            tx.execute(sa.text("INSERT INTO ledger_leaf VALUES (:n, :data, :hash)"), {"n": n, "data": b"%d" % n, "hash": bytes([n])})
            tx.execute(sa.text(events), {"n": n, "body": None if n == 1 else b"body"})
            one = {"object": b"object %d" % n, "leaf": 2 - n, "envelope": b"e"}
            tx.execute(sa.text("INSERT INTO statement (object_id, leaf, envelope) VALUES (:object, :leaf, :envelope)"), one)
        for n, ref in objects:
            tx.execute(sa.text("INSERT INTO audit_object (n, ref) VALUES (:n, :ref)"), {"n": n, "ref": ref})
    migrate.upgrade(empty)
    with empty.read() as tx:
        leaves = [tuple(row) for row in tx.execute(sa.select(ledger_leaf).order_by(ledger_leaf.c.n))]
        assert leaves == [(n, b"%d" % n, bytes([n])) for n in range(3)]
        assert [row.body for row in tx.execute(sa.select(audit_event).order_by(audit_event.c.n))] == [b"body", None, b"body"]
        found = tx.execute(sa.select(audit_object).order_by(audit_object.c.n, audit_object.c.position))
        assert [tuple(row) for row in found] == [(0, 0, b"p"), (0, 1, b"s"), (1, 0, b"p"), (2, 0, b"s"), (2, 1, b"p"), (2, 2, b"p")]
        assert [(row.leaf, row.object_id) for row in tx.execute(sa.select(statement).order_by(statement.c.leaf))] == [
            (0, b"object 2"), (1, b"object 1"), (2, b"object 0")]
    with pytest.raises(sa.exc.IntegrityError), empty.begin() as tx:  # references hold
        tx.execute(sa.insert(audit_object), {"n": 9, "position": 0, "ref": b"p"})


def test_workitems_of_an_older_release_name_what_they_take_in_alone(empty: Database) -> None:
    """0023: rows of studies that a workitem requests or makes would hide it from who may not see those."""
    _move(empty, "0022")

    def items(*studies: str) -> dict[str, Any]:
        return {"vr": "SQ", "Value": [{"0020000D": {"vr": "UI", "Value": [uid]}} for uid in studies]}

    requested, made = items("1.2.1"), items("1.2.9")
    datasets = {
        1: {"0040A370": requested, "00404021": {"vr": "SQ"}},
        2: {"0040A370": requested, "00404021": items("1.2.1", "1.2.2"), "00741216": {"vr": "SQ", "Value": [{"00404033": made}]}},
        3: {"0040A370": requested},
        4: {"00404021": {"vr": "SQ", "Value": [None, {"00081199": items("1.2.3")}]}},
        5: {},
    }
    rows = [(1, "1.2.1"), (2, "1.2.1"), (2, "1.2.2"), (2, "1.2.9"), (3, "1.2.1"), (4, "1.2.3")]
    with empty.begin() as tx:
        tx.execute(sa.insert(datastore), {"id": 1, "uid": b"d" * 16, "name": "clinical", "created_at": worlds.BASE})
        for pk, dataset in datasets.items():
            one = {"id": pk, "datastore_id": 1, "sop_instance_uid": f"1.2.77.{pk}", "state": "SCHEDULED", "dataset": dataset}
            tx.execute(sa.insert(workitem), one | {"created_at": worlds.BASE, "updated_at": worlds.BASE})
        tx.execute(sa.insert(workitem_study), [{"workitem_pk": pk, "study_instance_uid": uid} for pk, uid in rows])
    migrate.upgrade(empty)
    with empty.read() as tx:
        kept = tx.execute(sa.select(workitem_study).order_by(workitem_study.c.workitem_pk, workitem_study.c.study_instance_uid))
        assert [tuple(row) for row in kept] == [(2, "1.2.1"), (2, "1.2.2"), (4, "1.2.3")]


def test_deliveries_of_an_older_release_wait_on(empty: Database) -> None:
    """0024 adds an index."""
    _move(empty, "0023")
    row = {"kind": "forward", "peer_id": 1, "state": "waiting", "run_at": worlds.BASE, "created_at": worlds.BASE}
    with empty.begin() as tx:
        tx.execute(sa.insert(delivery), [row | {"instance_pk": n} for n in range(3)])
    migrate.upgrade(empty)
    with empty.read() as tx:
        assert [one.instance_pk for one in tx.execute(sa.select(delivery).order_by(delivery.c.id))] == [0, 1, 2]
    assert "ix_delivery_next" in {one["name"] for one in sa.inspect(empty.engine).get_indexes("delivery")}


def test_the_tables_work_under_the_guard(empty: Database) -> None:
    migrate.upgrade(empty)
    with empty.read() as tx, pytest.raises(guard.NakedQuery):
        tx.execute(sa.text("SELECT * FROM study"))


def test_scripts_never_import_the_package() -> None:
    scripts = list((ROOT / "migrations").rglob("*.py"))
    assert len(scripts) >= 3
    for script in scripts:
        imports = [line.split()[1] for line in script.read_text().splitlines() if line.startswith(("import ", "from "))]
        assert not [name for name in imports if name.split(".")[0] == "archive"]


def test_it_works_from_an_installed_wheel(tmp_path: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder

    wheel = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path / "dist"), versions=["standard"]))
    target = tmp_path / "a place" / "site %d"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), wheel]
    subprocess.run(install, check=True, timeout=120)
    work = (
        "import os, pathlib, sys; import archive; from archive.db import migrate; from archive.db.engine import Database\n"
        "base = pathlib.Path(sys.argv[1]); assert str(base) in archive.__file__, archive.__file__\n"
        "assert 'site %d' in str(migrate._scripts()) and migrate._scripts().name == '_migrations'\n"
        "for keystore in (False, True):\n"
        "    database = Database.embedded(base / f'{keystore}.db', os.urandom(32), base / 'lock')\n"
        "    migrate.upgrade(database, keystore=keystore); migrate.check(database, keystore=keystore); database.close()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(target), "PYTHONSAFEPATH": "1"}
    subprocess.run([sys.executable, "-W", "error", "-c", work, str(tmp_path)], check=True, timeout=120, env=environment, cwd=tmp_path)
