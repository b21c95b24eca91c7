"""A PostgreSQL server that is stopped: nobody waits for it without end, and a statement that only takes long is waited for."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.db import watched
from archive.db.engine import Database
from archive.errors import ArchiveError, CommitUncertain, DatabaseUnavailable
from tests.conftest import own_postgresql
from tests.ports import free_port


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """One of these tests' own: it is stopped."""
    with own_postgresql() as url:
        yield url + "postgres"


@pytest.fixture
def database(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    monkeypatch.setattr(watched, "PATIENCE_S", 1.0)
    monkeypatch.setattr(watched, "ANSWER_S", 2)
    with closing(Database(f"{server}?connect_timeout=2")) as opened:
        yield opened


@contextmanager
def stopped(database: Database) -> Iterator[None]:
    """The server's processes, as a debugger or a machine without memory stops them."""
    with database.read() as tx:
        folder = Path(tx.execute(sa.text("SHOW data_directory")).scalar_one())
        main = int((folder / "postmaster.pid").read_text().split("\n", 1)[0])
        everyone = [main, *map(int, Path(f"/proc/{main}/task/{main}/children").read_text().split())]
    for one in everyone:
        os.kill(one, signal.SIGSTOP)
    try:
        yield
    finally:
        for one in reversed(everyone):
            os.kill(one, signal.SIGCONT)


def number(tx: sa.Connection) -> int:
    return int(tx.execute(sa.text("SELECT 1")).scalar_one())


def test_nobody_waits_for_a_stopped_server_without_end(database: Database) -> None:
    answers: list[ArchiveError] = []

    def ask(durable: bool) -> None:
        try:
            if durable:
                database.group(number, durable=True)
            else:
                with database.read() as tx:
                    number(tx)
        except ArchiveError as error:
            answers.append(error)

    threads = [threading.Thread(target=ask, args=(n % 2 == 0,), daemon=True) for n in range(6)]
    with stopped(database):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        told = len(answers)
    assert told == 6
    assert {type(error) for error in answers} == {DatabaseUnavailable}
    assert database.group(number, durable=True) == 1


@pytest.mark.parametrize("other", ["nobody", "another server"])
def test_nor_where_another_address_answers_in_its_place(
    server: str, postgresql_server: str, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """Of a name's addresses, or a URL's hosts, the one that is waited for counts."""
    monkeypatch.setattr(watched, "PATIENCE_S", 1.0)
    monkeypatch.setattr(watched, "ANSWER_S", 2)
    port, second = sa.make_url(server).port, sa.make_url(postgresql_server).port if other == "another server" else free_port()
    hosts = f"host=127.0.0.1:{port}&host=127.0.0.1:{second}"
    ended = threading.Event()

    def ask() -> None:
        with suppress(ArchiveError, sa.exc.SQLAlchemyError), opened.read() as tx:
            number(tx)
            asked.set()
            begin.wait()
            number(tx)
            return
        ended.set()

    asked, begin = threading.Event(), threading.Event()
    with closing(Database(f"postgresql+psycopg://postgres@/postgres?{hosts}&connect_timeout=2")) as opened:
        threading.Thread(target=ask, daemon=True).start()
        assert asked.wait(20)
        with stopped(opened):
            begin.set()
            assert ended.wait(20)


def test_a_commit_that_a_stopped_server_does_not_answer_is_uncertain(database: Database) -> None:
    held = stopped(database)
    database.before_commit = lambda _tx: held.__enter__()
    try:
        with pytest.raises(CommitUncertain):
            database.group(number, durable=True)
    finally:
        held.__exit__(None, None, None)
    database.before_commit = lambda _tx: None
    assert database.group(number, durable=True) == 1


def test_a_statement_that_takes_long_is_waited_for(database: Database) -> None:
    before = time.monotonic()
    with database.read() as tx:
        tx.execute(sa.text("SELECT pg_sleep(5)"))
        assert number(tx) == 1
    assert time.monotonic() - before > 4.9


def test_nobody_watches_a_closed_database(server: str) -> None:
    def watching() -> int:
        return sum(thread.name == "database-watch" for thread in threading.enumerate())

    before = watching()
    with closing(Database(server)) as opened, opened.read() as tx:
        assert number(tx) == 1
        assert watching() == before + 1
    assert watching() == before
    with closing(opened), opened.read() as tx:  # used again all the same
        assert number(tx) == 1
        assert watching() == before + 1
    assert watching() == before
