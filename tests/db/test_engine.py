"""Transactions: what commits, what is undone alone, what is on the disk, and who waits for whom."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from archive.db import queued
from archive.db.engine import Database
from archive.db.migrate import create_all
from archive.db.tables import archive_state, datastore
from archive.db.types import FOREVER, from_micros, to_micros
from archive.errors import DatabaseUnavailable, OutOfSpace


def put(name: str) -> Callable[[sa.Connection], str]:
    def work(tx: sa.Connection) -> str:
        tx.execute(sa.insert(archive_state), {"name": name, "value": "x"})
        return name

    return work


def names(database: Database) -> list[str]:
    with database.read() as tx:
        return list(tx.execute(sa.select(archive_state.c.name).order_by(archive_state.c.name)).scalars())


@pytest.mark.parametrize("durable", [True, False])
def test_a_block_commits_or_is_undone(database: Database, durable: bool) -> None:
    with database.begin(durable=durable) as tx:
        put("kept")(tx)
    with pytest.raises(ZeroDivisionError), database.begin(durable=durable) as tx:
        put(str(1 // len(put("gone")(tx)[4:])))
    assert names(database) == ["kept"]


def test_a_reader_sees_one_state_and_changes_nothing(database: Database) -> None:
    with database.read() as tx:
        assert tx.execute(sa.select(sa.func.count()).select_from(archive_state)).scalar_one() == 0
        thread = threading.Thread(target=database.group, args=(put("later"),))
        thread.start()
        thread.join()
        assert tx.execute(sa.select(sa.func.count()).select_from(archive_state)).scalar_one() == 0
    assert names(database) == ["later"]


def test_group_returns_each_ones_result_and_undoes_one_alone(database: Database) -> None:
    def fails(tx: sa.Connection) -> None:
        put("half")(tx)
        message = "mine"
        raise ValueError(message)

    with ThreadPoolExecutor(8) as pool:
        good = [pool.submit(database.group, put(f"n{n:02}")) for n in range(20)]
        bad = [pool.submit(database.group, fails) for _ in range(5)]
        assert [one.result() for one in good] == [f"n{n:02}" for n in range(20)]
        for one in bad:
            with pytest.raises(ValueError, match="mine"):
                one.result()
    assert names(database) == [f"n{n:02}" for n in range(20)]


def test_several_works_of_one_thread_are_one_commit_and_each_stands_for_itself(database: Database) -> None:
    commits: list[int] = []
    database.before_commit = lambda _tx: commits.append(1)
    runs: list[str] = []

    def fails(tx: sa.Connection) -> str:
        put("half")(tx)
        message = "mine"
        raise ValueError(message)

    def noted(name: str) -> Callable[[sa.Connection], str]:
        def work(tx: sa.Connection) -> str:
            runs.append(name)
            return put(name)(tx)

        return work

    assert [one.get() for one in database.group_all([noted("b"), noted("a")])] == ["b", "a"]
    assert (len(commits), runs) == (1, ["b", "a"])
    settled = database.group_all([noted("c"), fails, noted("d")])
    assert [settled[0].get(), settled[2].get()] == ["c", "d"]
    with pytest.raises(ValueError, match="mine"):
        settled[1].get()
    assert len(commits) == 2
    assert runs == ["b", "a", "c", "d"]
    assert names(database) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("turns_back", [False, True])
def test_a_commit_waits_for_whoever_approaches(database: Database, monkeypatch: pytest.MonkeyPatch, turns_back: bool) -> None:
    monkeypatch.setattr(queued, "WAIT_AT_MOST_S", 30)
    commits: list[int] = []
    database.before_commit = lambda _tx: commits.append(1)
    coming, go = threading.Event(), threading.Event()

    def other() -> None:
        with suppress(ZeroDivisionError), database.approaching():
            coming.set()
            go.wait(30)
            database.group(put(str(1 // (not turns_back))))

    with ThreadPoolExecutor(2) as pool:
        second = pool.submit(other)
        coming.wait(30)
        first = pool.submit(database.group, put("first"))
        while not database._queue:
            time.sleep(0.001)
        time.sleep(0.05)
        assert not first.done()
        go.set()
        first.result(20)
        second.result(20)
    assert names(database) == (["first"] if turns_back else ["1", "first"])
    assert len(commits) == 1


def test_nobody_waits_long_or_for_himself(database: Database) -> None:
    with database.approaching():
        assert database.group(put("own")) == "own"
    with ThreadPoolExecutor(1) as pool, database.approaching():
        assert pool.submit(database.group, put("other")).result(20) == "other"
    assert database._coming._number == 0


def test_group_shares_a_commit(database: Database) -> None:
    commits = 0
    gate = threading.Event()

    def count(_tx: sa.Connection) -> None:
        nonlocal commits
        commits += 1

    def slow(tx: sa.Connection) -> None:
        gate.wait(60)

    database.before_commit = count
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(database.group, slow)
        while not database._leading or database._queue:  # until it has taken its own
            time.sleep(0.001)
        rest = [pool.submit(database.group, put(str(n))) for n in range(8)]
        while len(database._queue) < 8:
            time.sleep(0.001)
        gate.set()
        first.result()
        for one in rest:
            one.result()
    assert commits == 2


def test_a_failed_shared_commit_fails_everyone_in_it(database: Database) -> None:
    def full(_tx: sa.Connection) -> None:
        message = "the disk is full"
        raise OutOfSpace(message)

    database.before_commit = full
    with ThreadPoolExecutor(4) as pool:
        for one in [pool.submit(database.group, put(str(n))) for n in range(4)]:
            with pytest.raises(OutOfSpace):
                one.result()
    database.before_commit = lambda _tx: None
    assert names(database) == []


def test_durable_is_full_and_the_rest_normal(database: Database) -> None:
    if not database.sqlite:  # the server may lose what it did not sync and go on beside us
        for durable in (True, False):
            with database.begin(durable=durable) as tx:
                assert tx.execute(sa.text("SHOW synchronous_commit")).scalar_one() == "on"
        return
    for durable, expected in ((True, 2), (False, 1), (True, 2)):
        with database.begin(durable=durable) as tx:
            assert tx.execute(sa.text("PRAGMA synchronous")).scalar_one() == expected


def test_what_a_servers_own_settings_would_take_away_is_kept(postgresql_url: str) -> None:
    """A commit that is answered lies on the disk, and who waited for a lock sees what was committed meanwhile."""
    database = Database(postgresql_url)
    with database.begin() as tx:
        for setting in ("synchronous_commit = off", "default_transaction_isolation = 'repeatable read'", "client_encoding = 'LATIN1'"):
            tx.execute(sa.text(f'ALTER DATABASE "{database.url.database}" SET {setting}'))
    database.close()

    def said(tx: sa.Connection) -> list[str]:
        return [tx.execute(sa.text(f"SHOW {name}")).scalar_one() for name in ("synchronous_commit", "transaction_isolation")]

    with database.read() as tx:
        assert said(tx) == ["on", "repeatable read"]
        assert tx.execute(sa.text("SELECT convert_from('\\xe5b1b1', 'UTF8')")).scalar_one() == "\u5c71"
    with database.begin() as tx:
        assert said(tx) == ["on", "read committed"]
    database.close()


@pytest.mark.parametrize("said", ["", "?keepalives_idle=7"])
def test_a_server_whose_machine_is_gone_is_waited_for_a_minute(postgresql_url: str, said: str) -> None:
    """Its packets just end: unasked, the system waits for an answer for two hours, and all who want to write behind who does."""
    database = Database(f"{postgresql_url}{said}")
    with database.read() as tx:
        driven: Any = tx.connection.driver_connection
        with socket.socket(fileno=os.dup(driven.fileno())) as made:
            names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
            idle, every, times, unanswered_ms = (made.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names)
    database.close()
    assert idle == (7 if said else 30)
    assert idle + every * times <= 60
    assert 0 < unanswered_ms <= 60_000


def test_a_group_is_durable_when_one_of_it_is(database: Database) -> None:
    if not database.sqlite:
        pytest.skip("asked of SQLite's pragma")
    seen: list[int] = []
    gate = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(database.group, lambda _tx: gate.wait(60))
        while not database._leading or database._queue:  # until it has taken its own
            time.sleep(0.001)
        rest = [
            pool.submit(database.group, lambda tx: seen.append(tx.execute(sa.text("PRAGMA synchronous")).scalar_one()), durable=durable)
            for durable in (False, True)
        ]
        while len(database._queue) < 2:
            time.sleep(0.001)
        gate.set()
        for one in [first, *rest]:
            one.result()
    assert seen == [2, 2]


def test_the_file_is_encrypted_and_opens_with_its_key_alone(tmp_path: Path) -> None:
    key = os.urandom(32)
    opened = Database.embedded(tmp_path / "i.db", key, tmp_path / "lock")
    create_all(opened)
    with opened.begin() as tx:
        tx.execute(sa.insert(archive_state), {"name": "CANARY", "value": "CANARY"})
    opened.close()
    for path in tmp_path.iterdir():
        assert b"CANARY" not in path.read_bytes()
        assert b"SQLite format" not in path.read_bytes()
    assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o600
    wrong = Database.embedded(tmp_path / "i.db", os.urandom(32), tmp_path / "lock")
    with pytest.raises(DatabaseUnavailable, match="key"):
        names(wrong)
    wrong.close()
    again = Database.embedded(tmp_path / "i.db", key, tmp_path / "lock")
    assert names(again) == ["CANARY"]
    again.close()


def test_writers_of_two_databases_on_one_file_take_turns(tmp_path: Path) -> None:
    key = os.urandom(32)
    both = [Database.embedded(tmp_path / "i.db", key, tmp_path / "lock") for _ in range(2)]
    create_all(both[0])
    inside = 0
    most = 0

    def write(number: int) -> None:
        nonlocal inside, most
        for step in range(20):
            with both[number].begin(durable=False) as tx:
                inside += 1
                most = max(most, inside)
                put(f"{number}.{step}")(tx)
                inside -= 1

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, range(2)))
    assert most == 1
    assert len(names(both[0])) == 40
    for one in both:
        one.close()


def test_messages_hold_no_value(database: Database) -> None:
    with pytest.raises(DatabaseUnavailable) as refused, database.begin() as tx:
        tx.execute(sa.text("SELECT CANARY FROM archive_state"))
    assert "CANARY" not in str(refused.value)
    assert refused.value.remedy


def test_a_lost_race_is_told_apart(database: Database, now: datetime) -> None:
    row = {"uid": bytes(16), "name": "a", "created_at": now}
    with database.begin() as tx:
        tx.execute(sa.insert(datastore), row)
    with pytest.raises(sa.exc.IntegrityError), database.begin() as tx:
        tx.execute(sa.insert(datastore), row)


def test_instants_are_aware_and_exact(database: Database) -> None:
    elsewhere = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=5)))
    with database.begin() as tx:
        tx.execute(sa.insert(datastore), [{"uid": os.urandom(16), "name": str(at), "created_at": at} for at in (elsewhere, FOREVER)])
        found = list(tx.execute(sa.select(datastore.c.created_at).order_by(datastore.c.id)).scalars())
    assert found == [elsewhere, FOREVER]
    assert {one.tzinfo for one in found} == {UTC}
    with pytest.raises((TypeError, sa.exc.StatementError), match="naive"), database.begin() as tx:
        tx.execute(sa.insert(datastore), {"uid": b"", "name": "n", "created_at": datetime(2026, 1, 1)})  # noqa: DTZ001


@given(st.datetimes(timezones=st.just(UTC)))
def test_micros_go_there_and_back(at: datetime) -> None:
    assert from_micros(to_micros(at)) == at
