"""Prepared statements: the same rows, refusals and errors as Connection.execute, on both engines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.access import policy
from archive.db import failures, guard
from archive.db.engine import Database
from archive.db.migrate import create_all
from archive.db.prepared import Prepared
from archive.db.tables import archive_state, datastore, series_pack, study
from archive.db.types import BigId, CodePointText, Instant
from archive.errors import DatabaseUnavailable, OutOfSpace

_metadata = sa.MetaData()
every = sa.Table(
    "every_type", _metadata,
    sa.Column("id", BigId, primary_key=True, autoincrement=True),
    sa.Column("at", Instant, nullable=True),
    sa.Column("elements", sa.JSON, nullable=True),
    sa.Column("none_as_null", sa.JSON(none_as_null=True), nullable=True),
    sa.Column("data", sa.LargeBinary, nullable=True),
    sa.Column("flag", sa.Boolean, nullable=True),
    sa.Column("number", sa.BigInteger, nullable=True),
    sa.Column("small", sa.SmallInteger, nullable=True),
    sa.Column("word", CodePointText, nullable=False, server_default="said by the server"),
)
KEYS = ["at", "elements", "none_as_null", "data", "flag", "number", "small", "word"]
AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
ROWS: list[dict[str, Any]] = [
    {
        "at": AT, "elements": {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Ünal^Ayşe"}]}}, "none_as_null": [1, "two", None],
        "data": bytes(range(256)), "flag": True, "number": 2**62, "small": -3, "word": "%s ? :word 100 %%",
    },
    {"at": None, "elements": None, "none_as_null": None, "data": None, "flag": None, "number": None, "small": None, "word": ""},
    {"at": AT, "elements": {}, "none_as_null": [], "data": b"", "flag": False, "number": 0, "small": 0, "word": "山田"},
]
INSERT = Prepared(sa.insert(every), keys=KEYS)
SELECT = sa.select(every).order_by(every.c.id)
ALL = Prepared(SELECT)


@pytest.fixture
def typed(database: Database) -> Iterator[Database]:
    """A database with one table of every column type in use."""
    with database.begin() as tx:
        _metadata.create_all(tx)
    return database


def test_rows_are_those_of_connection_execute(typed: Database) -> None:
    with typed.begin() as tx:
        for row in ROWS:
            INSERT.run(tx, row)
            tx.execute(sa.insert(every), row)
        found, plain = ALL.all(tx, {}), tx.execute(SELECT).all()
    assert [tuple(row) for row in found] == [tuple(row) for row in plain]
    assert [[type(value) for value in row] for row in found] == [[type(value) for value in row] for row in plain]
    assert [{key: getattr(row, key) for key in KEYS} for row in found[::2]] == ROWS
    assert found[0]._fields == tuple(plain[0]._fields)


def test_conditions_compare_as_connection_execute_does(typed: Database) -> None:
    where = {"at": AT, "data": b"", "flag": False, "number": 0, "word": "山田"}
    statement = sa.select(every.c.id).where(*(every.c[name] == sa.bindparam(name) for name in where))
    with typed.begin() as tx:
        Prepared(sa.insert(every), keys=KEYS).many(tx, ROWS)
        assert Prepared(statement).scalar(tx, where) == tx.execute(statement, where).scalar() == 3
        assert Prepared(statement).first(tx, {**where, "flag": True}) is None
        assert Prepared(statement).scalar(tx, {**where, "flag": True}) is None
        assert Prepared(statement).all(tx, {**where, "flag": True}) == []


def test_a_value_fixed_in_the_statement_is_bound_as_its_type(typed: Database) -> None:
    fixed = sa.select(every.c.word, sa.literal(AT, Instant).label("then"), sa.literal("x").label("2 not a name")).where(every.c.at == AT)
    with typed.begin() as tx:
        INSERT.many(tx, ROWS)
        found = Prepared(fixed).all(tx, {})
        assert [tuple(row) for row in found] == [tuple(row) for row in tx.execute(fixed)]
        assert found[0].then == AT


def test_an_optional_value_keeps_its_default(typed: Database) -> None:
    given, needed = sa.bindparam("given", 7, sa.Integer), sa.bindparam("needed", type_=sa.Integer)
    statement = Prepared(sa.select(given.label("given"), needed.label("needed")))
    with typed.read() as tx:
        assert tuple(statement.first(tx, {"needed": 1})) == (7, 1)
        assert tuple(statement.first(tx, {"needed": 1, "given": 2})) == (2, 1)
        with pytest.raises(sa.exc.InvalidRequestError, match="needed"):
            statement.first(tx, {"given": 2})


def test_run_says_how_many_rows_changed(typed: Database) -> None:
    grow = Prepared(sa.update(every).where(every.c.word == sa.bindparam("which")).values(number=every.c.number + sa.bindparam("by")))
    with typed.begin() as tx:
        INSERT.many(tx, ROWS)
        assert grow.run(tx, {"which": "山田", "by": 5}) == 1
        assert grow.run(tx, {"which": "nobody", "by": 5}) == 0
        assert Prepared(sa.select(every.c.number).where(every.c.word == sa.bindparam("which"))).scalar(tx, {"which": "山田"}) == 5


def test_insert_returns_the_new_key(typed: Database) -> None:
    with typed.begin() as tx:
        assert [INSERT.insert(tx, row) for row in ROWS] == [1, 2, 3]
        assert [row.id for row in ALL.all(tx, {})] == [1, 2, 3]
    short = Prepared(sa.insert(every), keys=["flag"])
    with typed.begin() as tx:
        assert short.insert(tx, {"flag": True}) == 4
        assert ALL.all(tx, {})[3].word == "said by the server"


def test_returning_gives_rows(typed: Database) -> None:
    changed = Prepared(sa.update(every).where(every.c.flag.is_(sa.true())).values(small=9).returning(every.c.id, every.c.at))
    with typed.begin() as tx:
        INSERT.many(tx, ROWS)
        assert [tuple(row) for row in changed.all(tx, {})] == [(1, AT)]


def test_many_inserts_every_row_or_says_so(typed: Database) -> None:
    with typed.begin() as tx:
        INSERT.many(tx, iter(ROWS))
        INSERT.many(tx, [])
        assert len(ALL.all(tx, {})) == 3
        with pytest.raises(sa.exc.InvalidRequestError, match="word"):
            INSERT.many(tx, [{key: value for key, value in ROWS[0].items() if key != "word"}])


def test_no_expanding_parameters_and_no_values_of_python(typed: Database) -> None:
    defaulted = sa.Table("defaulted", sa.MetaData(), sa.Column("id", sa.Integer), sa.Column("x", sa.Integer, default=lambda: 1))
    with typed.read() as tx:
        with pytest.raises(TypeError, match="expanding"):
            Prepared(sa.select(every).where(every.c.id.in_([1, 2]))).all(tx, {})
        with pytest.raises(TypeError, match="expanding"):
            Prepared(sa.select(every).where(every.c.id.in_(sa.bindparam("ids", expanding=True)))).all(tx, {"ids": [1]})
        with pytest.raises(TypeError, match="computed"):
            Prepared(sa.insert(defaulted), keys=["id"]).run(tx, {"id": 1})


def test_protected_tables_need_a_token(database: Database) -> None:
    token = policy.system("store")
    values = {"series_pk": 1, "generation": 1, "object_id": b"", "key_id": b"", "length": 1, "etag": ""}
    of_study, pack = Prepared(sa.select(study.c.id)), Prepared(sa.insert(series_pack), keys=list(values))
    hidden = Prepared(sa.select(datastore.c.id).where(datastore.c.id.in_(sa.select(study.c.datastore_id))))
    with database.begin() as tx:
        for statement in (of_study, hidden):
            for ask in (statement.all, statement.first, statement.scalar, statement.run):
                with pytest.raises(guard.NakedQuery):
                    ask(tx, {})
                with pytest.raises(guard.NakedQuery):
                    ask(tx, {}, "system:store")  # type: ignore[arg-type]
            assert statement.all(tx, {}, token) == []
        for write in (lambda: pack.run(tx, values), lambda: pack.many(tx, [values]), lambda: pack.insert(tx, values)):
            with pytest.raises(guard.NakedQuery):
                write()


def test_a_row_that_stands_against_another_is_an_integrity_error(database: Database) -> None:
    insert = Prepared(sa.insert(archive_state), keys=["name", "value"])
    row = {"name": "secret name", "value": "secret value"}
    for again in (lambda tx: insert.run(tx, row), lambda tx: insert.many(tx, [row, row]), lambda tx: insert.insert(tx, row)):
        with pytest.raises(sa.exc.IntegrityError) as caught, database.begin() as tx:  # noqa: PT012 # the second is refused
            insert.run(tx, row)
            again(tx)
        assert "secret" not in str(caught.value)
        with pytest.raises(sa.exc.IntegrityError):
            database.group(lambda tx, again=again: (insert.run(tx, row), again(tx)))  # type: ignore[misc]
    with database.read() as tx:
        assert tx.execute(sa.select(archive_state)).all() == []


def test_a_savepoint_undoes_what_a_prepared_statement_did(database: Database) -> None:
    insert = Prepared(sa.insert(archive_state), keys=["name", "value"])
    with database.begin() as tx:
        insert.run(tx, {"name": "kept", "value": ""})
        savepoint = tx.begin_nested()
        insert.run(tx, {"name": "gone", "value": ""})
        savepoint.rollback()
    with database.read() as tx:
        assert Prepared(sa.select(archive_state.c.name)).all(tx, {}) == [("kept",)]


def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    database = Database.embedded(tmp_path / "index.db", os.urandom(32), tmp_path / "writer.lock")
    create_all(database)
    insert = Prepared(sa.insert(archive_state), keys=["name", "value"])
    with pytest.raises(OutOfSpace), database.begin() as tx:  # noqa: PT012 # the disk fills on the way
        tx.exec_driver_sql("PRAGMA max_page_count = 1")
        for number in range(1000):
            insert.run(tx, {"name": str(number), "value": "x" * 4000})
    database.close()


def test_a_lost_connection_is_given_up(postgresql_url: str) -> None:
    database = Database(postgresql_url)
    pid = Prepared(sa.select(sa.func.pg_backend_pid()))
    end = sa.select(sa.func.pg_terminate_backend(sa.bindparam("pid")))
    with pytest.raises(DatabaseUnavailable, match="lost"), database.read() as tx:  # noqa: PT012 # it is told a moment later
        first = pid.scalar(tx, {})
        with database.read() as other:
            other.execute(end, {"pid": first})
        for _ in range(100):
            pid.scalar(tx, {})
    with database.read() as tx:
        assert pid.scalar(tx, {}) != first
    database.close()


def test_an_error_of_the_file_gives_the_connection_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database.embedded(tmp_path / "index.db", os.urandom(32), tmp_path / "writer.lock")
    create_all(database)
    monkeypatch.setattr(failures, "breaks_connection", lambda _error: True)
    statement = Prepared(sa.text("SELECT missing FROM archive_state").columns(sa.column("missing")))
    with pytest.raises(DatabaseUnavailable), database.read() as tx:  # noqa: PT012 # looked at before it is closed
        try:
            statement.all(tx, {})
        finally:
            assert tx.invalidated
    database.close()


def test_values_of_failed_statements_are_not_shown(typed: Database) -> None:
    statement = Prepared(sa.text("SELECT * FROM nowhere WHERE x = :secret").bindparams(sa.bindparam("secret", type_=sa.Text)))
    with pytest.raises(sa.exc.DBAPIError) as caught, typed.engine.connect() as tx:
        statement.all(tx, {"secret": "Canary^Name"})
    assert "Canary" not in str(caught.value)
