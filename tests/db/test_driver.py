"""What a connection keeps prepared: new statements find room, however many came before."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.db import driver
from archive.db.engine import Database
from archive.db.prepared import Prepared

SELECTED = 21  # SQLITE_SELECT: asked of an authorizer whenever a SELECT is prepared

Opening = Callable[[Database], AbstractContextManager[sa.Connection]]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database.embedded(tmp_path / "i.db", os.urandom(32), tmp_path / "lock", guarded=False)
    yield database
    database.close()


@pytest.fixture
def prepared(database: Database) -> list[int]:
    """Grows by one with each SELECT that is prepared."""
    counted: list[int] = []

    def connected(connection: Any, _record: Any) -> None:
        connection.set_authorizer(lambda action, *_: (counted.append(action) if action == SELECTED else None) or 0)

    sa.event.listen(database.engine, "connect", connected)
    return counted


def statement(number: int, length: int = 0) -> Prepared:
    return Prepared(sa.select(sa.literal_column(f"{number}{' ' * length}").label("n"), sa.bindparam("x", type_=sa.Integer)))


def run(database: Database, opening: Opening, one: Prepared) -> None:
    with opening(database) as tx:
        assert one.all(tx, {"x": 1}) != []


@pytest.mark.parametrize("opening", [Database.read, Database.glance, Database.begin])
@pytest.mark.parametrize("core", [False, True])
def test_new_statements_in_turn_are_prepared_once(database: Database, prepared: list[int], opening: Opening, core: bool) -> None:
    for number in range(driver.STATEMENTS + 20):
        one = statement(number)
        for _ in range(3):
            if core:
                with opening(database) as tx:
                    tx.execute(sa.text(f"SELECT {number}")).all()
            else:
                run(database, opening, one)
    assert len(prepared) <= driver.STATEMENTS + 20 + 2
    new = [statement(-1), statement(-2)]
    prepared.clear()
    for _ in range(10):
        for one in new:
            run(database, opening, one)
    assert len(prepared) == 2


def test_a_connection_is_replaced_when_it_ran_that_many(database: Database) -> None:
    def current() -> Any:
        with database.glance() as tx:
            return tx.connection.driver_connection

    first = current()
    for number in range(driver.STATEMENTS - len(first.texts)):
        run(database, Database.glance, statement(number))
        run(database, Database.glance, statement(number))
    assert current() is first
    run(database, Database.glance, statement(-1))
    assert current() is not first


@pytest.mark.parametrize("opening", [Database.read, Database.glance])
def test_long_statements_fill_one_sooner(database: Database, prepared: list[int], opening: Opening) -> None:
    used: list[Any] = []
    for number in range(6):
        with opening(database) as tx:
            used.append(tx.connection.driver_connection)
            statement(number, driver.TEXT_CHARS // 2).all(tx, {"x": 1})
    assert len({id(one) for one in used}) > 1
    assert len(prepared) == 6


def test_what_a_transaction_runs_is_not_cut_in_two(database: Database) -> None:
    with database.begin() as tx:
        tx.exec_driver_sql("CREATE TABLE t (a INTEGER)")
    insert = Prepared(sa.text("INSERT INTO t VALUES (:a)"))
    with database.begin() as tx:
        for number in range(driver.STATEMENTS + 2 * driver.ONE_MORE):
            statement(number).all(tx, {"x": 1})
            insert.run(tx, {"a": number})
        insert.many(tx, [{"a": -1}, {"a": -2}])
    with database.read() as tx:
        assert tx.execute(sa.text("SELECT count(*) FROM t")).scalar_one() == driver.STATEMENTS + 2 * driver.ONE_MORE + 2


def test_a_database_in_memory_outlives_its_statements() -> None:
    """Its one connection is the database: were it closed, every table would be gone."""
    database = Database("sqlite://", guarded=False)
    try:
        with database.begin() as tx:
            tx.exec_driver_sql("CREATE TABLE kept (n INTEGER)")
            for n in range(driver.STATEMENTS + 1):
                tx.exec_driver_sql(f"INSERT INTO kept VALUES ({n})")
        with database.begin() as tx:
            assert tx.exec_driver_sql("SELECT count(*) FROM kept").scalar_one() == driver.STATEMENTS + 1
    finally:
        database.close()
