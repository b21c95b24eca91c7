"""Transactions that go wrong: nobody is told of a commit that did not happen, nobody waits for ever, no value is shown."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.db import commits, failures, pages, wal
from archive.db.engine import Database
from archive.db.migrate import create_all
from archive.db.queued import Queued
from archive.db.tables import archive_state, datastore
from archive.errors import ArchiveError, CommitUncertain, DatabaseUnavailable, OutOfSpace
from tests import databases
from tests.db.test_engine import names, put


class Killed(BaseException):
    """Stands for the end of the thread's work from outside."""


def together(database: Database, works: list[Callable[[sa.Connection], Any]]) -> list[Any]:
    """Run `works` as one group, in order, and return each one's result or error."""
    gate = threading.Event()

    def call(work: Callable[[sa.Connection], Any]) -> Any:
        try:
            return database.group(work)
        except BaseException as error:  # noqa: BLE001 # it is the answer
            return error

    with ThreadPoolExecutor(len(works) + 1) as pool:
        first = pool.submit(database.group, lambda _tx: gate.wait(30))
        while not database._leading or database._queue:
            time.sleep(0.001)
        waiting = []
        for number, work in enumerate(works, 1):
            waiting.append(pool.submit(call, work))
            while len(database._queue) < number:
                time.sleep(0.001)
        gate.set()
        first.result()
        return [one.result(60) for one in waiting]


@pytest.fixture
def sqlite(tmp_path: Path) -> Any:
    with contextlib.closing(databases.embedded(tmp_path)) as opened:
        yield opened


def too_much(tx: sa.Connection) -> None:
    tx.exec_driver_sql("PRAGMA max_page_count = 1")
    tx.execute(sa.insert(archive_state), {"name": "large", "value": "x" * 3_000_000})


def test_a_full_disk_undoes_the_whole_group_and_nobody_is_told_otherwise(sqlite: Database) -> None:
    answers = together(sqlite, [put("before"), too_much, put("after")])
    assert [type(one) for one in answers] == [OutOfSpace, OutOfSpace, OutOfSpace]
    assert len({id(one) for one in answers}) == 3
    assert names(sqlite) == []
    sqlite.engine.dispose()  # the limit was the connection's
    assert together(sqlite, [put("again")]) == ["again"]


def test_an_undone_transaction_is_never_called_committed(sqlite: Database) -> None:
    with pytest.raises(DatabaseUnavailable), sqlite.begin() as tx:  # noqa: PT012 # a careless block
        put("kept")(tx)
        with contextlib.suppress(sa.exc.OperationalError):
            too_much(tx)
    assert names(sqlite) == []


def test_a_swallowed_error_is_not_a_commit_on_postgresql(postgresql_index: str) -> None:
    database = Database(postgresql_index)
    with pytest.raises(DatabaseUnavailable), database.begin() as tx:  # noqa: PT012 # a careless block
        put("kept")(tx)
        with contextlib.suppress(sa.exc.IntegrityError):
            put("kept")(tx)
    assert names(database) == []
    database.close()


def test_a_look_at_the_commits_that_fails_is_the_archives_own_error(sqlite: Database) -> None:
    """It is asked before each instance that leaves: what is no error of the archive's would end the association."""
    with sqlite.glance() as tx:
        driver: Any = tx.connection.driver_connection
        driver.set_authorizer(lambda *_: 1)  # SQLITE_DENY
    with pytest.raises(DatabaseUnavailable):
        commits.state(sqlite)
    driver.set_authorizer(None)


@pytest.mark.parametrize("kind", [Killed, KeyboardInterrupt])
def test_an_interrupted_leader_leaves_nobody_waiting_or_deceived(database: Database, kind: type[BaseException]) -> None:
    def interrupted(tx: sa.Connection) -> None:
        put("half")(tx)
        raise kind

    answers = together(database, [put("a"), interrupted, put("b")])
    assert isinstance(answers[0], kind)  # it led the others
    assert {type(one) for one in answers[1:]} == {CommitUncertain}
    assert names(database) == []
    assert together(database, [put("a"), put("b")]) == ["a", "b"]


def test_one_that_is_interrupted_while_it_waits_is_not_run(sqlite: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    script_ran: list[str] = []

    def interrupted(_item: Queued) -> None:
        raise Killed

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(sqlite.group, lambda _tx: gate.wait(30))
        while not sqlite._leading or sqlite._queue:
            time.sleep(0.001)
        with monkeypatch.context() as patched:
            patched.setattr(Queued, "wait", interrupted)
            with pytest.raises(Killed):
                sqlite.group(lambda _tx: script_ran.append("ran"))
        gate.set()
        first.result()
    assert script_ran == []
    assert together(sqlite, [put("a")]) == ["a"]


def test_a_commit_without_an_answer_is_told_as_uncertain(postgresql_index: str) -> None:
    database = Database(postgresql_index)

    def cut(tx: sa.Connection) -> None:
        pid = tx.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
        with other.begin() as also:
            also.execute(sa.text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})

    other = Database(postgresql_index)

    def arm(_tx: sa.Connection) -> None:
        database.before_commit = cut

    answers = together(database, [put("a"), arm, put("b")])
    assert {type(one) for one in answers} == {CommitUncertain}
    database.before_commit = lambda _tx: None
    assert together(database, [put("a")]) == ["a"]
    database.close()
    other.close()


def test_a_connection_lost_in_one_work_fails_the_group(postgresql_index: str) -> None:
    database, other = Database(postgresql_index), Database(postgresql_index)

    def cut(tx: sa.Connection) -> None:
        pid = tx.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
        with other.begin() as also:
            also.execute(sa.text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
        put("c")(tx)

    answers = together(database, [put("a"), cut, put("b")])
    assert {type(one) for one in answers} == {DatabaseUnavailable}
    assert {str(one) for one in answers} == {"the connection to the database was lost"}
    assert names(database) == []
    database.close()
    other.close()


def test_an_io_error_of_the_disk_is_told_and_the_connection_given_up(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import os, resource, signal, sys
        from pathlib import Path
        from archive.db.engine import Database
        from archive.db.migrate import create_all
        from archive.errors import ArchiveError
        from tests.db.test_engine import names, put
        import sqlalchemy as sa
        from archive.db.tables import archive_state
        folder = Path(sys.argv[1])
        database = Database.embedded(folder / "i.db", os.urandom(32), folder / "lock")
        create_all(database)
        database.checkpoint()
        with database.begin() as tx:
            put("kept")(tx)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        size = (folder / "i.db-wal").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50_000, resource.RLIM_INFINITY))
        used = []

        def work(tx):
            used.append(tx.connection.driver_connection)
            tx.execute(sa.insert(archive_state), {"name": "CANARY", "value": "y" * 40_000_000})

        for _ in range(2):
            try:
                database.group(work)
            except ArchiveError as error:
                print(type(error).__name__, error, "|", error.__cause__)
        assert used[0] is not used[1], "a connection was kept"
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        database.group(put("later"))
        print(names(database))
    """)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert lines == ["DatabaseUnavailable the database's disk reports an error | None"] * 2 + ["['kept', 'later']"]


def test_after_a_sync_that_failed_the_log_is_cut_before_anything_else_is_committed(
    sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next sync succeeds and is worth nothing: what lies in the log behind the gap would be lost with the power."""
    with sqlite.begin(durable=False) as tx:
        put("before")(tx)
    open_still = sqlite.engine.raw_connection()  # the last one to be closed would empty the log
    open_still.cursor().execute("SELECT count(*) FROM archive_state").fetchall()
    commit, dialect = sqlite.engine.dialect.do_commit, sqlite.engine.dialect

    def unsynced(connection: Any) -> None:
        dialect.do_commit = commit  # type: ignore[method-assign]
        raise dialect.loaded_dbapi.OperationalError("disk I/O error")

    dialect.do_commit = unsynced  # type: ignore[method-assign]
    cut, done = wal.cut, [False, False, True]

    def readers_first(engine: sa.Engine, *, wait: bool) -> bool:
        return done.pop(0) and cut(engine, wait=wait)

    monkeypatch.setattr(wal, "cut", readers_first)
    with pytest.raises(CommitUncertain), sqlite.begin() as tx:
        put("lost")(tx)
    with pytest.raises(DatabaseUnavailable), sqlite.begin() as tx:
        put("too early")(tx)
    assert sqlite.log_bytes() > 0
    with sqlite.begin() as tx:
        assert sqlite.log_bytes() == 0
        put("after")(tx)
    assert together(sqlite, [put("later")]) == ["later"]
    assert names(sqlite) == ["after", "before", "later"]
    open_still.close()


def test_two_groups_that_lock_rows_the_other_way_round_both_commit(postgresql_index: str) -> None:
    both = [Database(postgresql_index) for _ in range(2)]
    with both[0].begin() as tx:
        put("a")(tx)
        put("b")(tx)

    def touch(*order: str) -> Callable[[sa.Connection], None]:
        def work(tx: sa.Connection) -> None:
            for name in order:
                tx.execute(sa.update(archive_state).where(archive_state.c.name == name).values(value="y"))
                time.sleep(0.05)
        return work

    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(both[n % 2].group, touch("a", "b") if n % 2 else touch("b", "a")) for n in range(8)]
        for one in calls:
            one.result(60)
    for database in both:
        database.close()


def test_a_group_that_loses_a_deadlock_is_run_again(postgresql_index: str) -> None:
    both = [Database(postgresql_index) for _ in range(2)]
    with both[0].begin() as tx:
        put("a")(tx)
        put("b")(tx)
    runs: list[int] = []
    inside, locked = threading.Event(), threading.Event()

    def update(tx: sa.Connection, name: str) -> None:
        tx.execute(sa.update(archive_state).where(archive_state.c.name == name).values(value="y"))

    def work(tx: sa.Connection) -> str:
        runs.append(1)
        tx.exec_driver_sql("SET LOCAL deadlock_timeout = '50ms'")
        update(tx, "a")
        inside.set()
        locked.wait(30)
        update(tx, "b")
        return "done"

    def beside() -> None:
        inside.wait(30)
        with both[1].begin() as tx:
            tx.exec_driver_sql("SET LOCAL deadlock_timeout = '20s'")
            update(tx, "b")
            locked.set()
            update(tx, "a")

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(both[0].group, work), pool.submit(beside)
        assert first.result(60) == "done"
        second.result(60)
    assert len(runs) == 2
    for database in both:
        database.close()


def test_what_is_run_again_while_its_leader_still_tells_is_waited_for(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread wakes with the first of its works, queues the second anew, and must not take what is said of the first run for it."""
    tell, gate, again = Queued.tell, threading.Event(), threading.Event()
    runs: list[int] = []
    theirs: list[Queued[Any]] = []
    others: list[Future[Any]] = []

    def slowly(item: Queued[Any]) -> None:
        if item in theirs and not others:  # somebody else writes when they come again
            others.append(pool.submit(database.group, lambda _tx: again.wait(30)))
            while not database._leading or database._queue:
                time.sleep(0.001)
        tell(item)
        if item in theirs:
            time.sleep(0.2)

    def twice(tx: sa.Connection) -> str:
        runs.append(1)
        if len(runs) == 1:
            raise failures.Conflict("busy")
        return put("second")(tx)

    monkeypatch.setattr(Queued, "tell", slowly)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(database.group, lambda _tx: gate.wait(30))
        while not database._leading or database._queue:
            time.sleep(0.001)
        leads = pool.submit(database.group, put("led"))
        while not database._queue:
            time.sleep(0.001)
        both = pool.submit(database.group_all, [put("first"), twice])
        while len(database._queue) < 3:
            time.sleep(0.001)
        theirs += database._queue[1:]
        gate.set()
        assert (first.result(60), leads.result(60)) == (True, "led")
        again.set()
        assert [one.get() for one in both.result(60)] == ["first", "second"]
    assert names(database) == ["first", "led", "second"]


def test_a_conflict_that_does_not_end_is_unavailable(database: Database) -> None:
    runs: list[int] = []

    def work(_tx: sa.Connection) -> None:
        runs.append(1)
        raise failures.Conflict("busy")

    with pytest.raises(DatabaseUnavailable):
        database.group(work)
    assert len(runs) == 5


@pytest.mark.parametrize("inner", ["begin", "group", "checkpoint"])
@pytest.mark.parametrize("outer", ["begin", "group"])
def test_a_write_inside_a_write_is_refused_instead_of_waiting_for_itself(database: Database, outer: str, inner: str) -> None:
    if inner == "checkpoint" and not database.sqlite:
        pytest.skip("nothing to do on PostgreSQL")

    def write(_tx: sa.Connection) -> None:
        if inner == "begin":
            with database.begin():
                pass
        elif inner == "group":
            database.group(put("inner"))
        else:
            database.checkpoint()

    def write_around() -> None:
        if outer == "group":
            database.group(write)
        else:
            _begin(database, write)

    with pytest.raises(RuntimeError, match="already"):
        write_around()
    assert database.group(put("after")) == "after"
    with database.begin() as tx, database.read() as also:
        put("and")(tx)
        assert list(also.execute(sa.select(archive_state.c.name)).scalars()) == ["after"]


def test_a_forked_child_does_not_use_the_parents_database(sqlite: Database) -> None:
    def child() -> None:
        tried = 0
        for use in (sqlite.read, sqlite.begin):
            try:
                with use():
                    pass
            except RuntimeError:
                tried += 1
        try:
            sqlite.group(put("child"))
        except RuntimeError:
            tried += 1
        os._exit(0 if tried == 3 else 1)

    sqlite.group(put("parent"))
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert names(sqlite) == ["parent"]


def test_a_begin_that_fails_leaves_the_lock_and_the_pool_free(tmp_path: Path) -> None:
    import sqlcipher3.dbapi2 as dbapi

    key = os.urandom(32)
    database = Database.embedded(tmp_path / "i.db", key, tmp_path / "lock")
    create_all(database)
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 50")
    other = dbapi.connect(str(tmp_path / "i.db"), isolation_level=None)
    pages.PRESENT.unlock(other, key)
    other.execute("BEGIN IMMEDIATE")
    for _ in range(3):
        with pytest.raises(DatabaseUnavailable, match="busy"), database.begin():
            pass
        with pytest.raises(DatabaseUnavailable, match="busy"):
            database.group(put("no"))
    other.execute("ROLLBACK")
    other.close()
    assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert database.group(put("yes")) == "yes"
    database.close()


def test_a_read_only_file_is_said_so(tmp_path: Path) -> None:
    key = os.urandom(32)
    database = Database.embedded(tmp_path / "i.db", key, tmp_path / "lock")
    create_all(database)
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only = ON")
    with pytest.raises(DatabaseUnavailable, match="read-only"):
        database.group(put("no"))
    database.close()


def test_a_server_that_ends_and_comes_back_is_lost_and_found(postgresql_index: str) -> None:
    database, other = Database(postgresql_index), Database(postgresql_index)
    with pytest.raises(DatabaseUnavailable, match="connection") as lost, database.begin() as tx:  # noqa: PT012
        pid = tx.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
        with other.begin() as also:
            also.execute(sa.text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
        tx.execute(sa.insert(archive_state), {"name": "CANARY", "value": "CANARY"})
    assert lost.value.__cause__ is None
    assert "server runs" in lost.value.remedy
    assert database.group(put("back")) == "back"
    database.close()
    other.close()
    nobody = Database(str(sa.make_url(postgresql_index).set(port=1).render_as_string(hide_password=False)))
    with pytest.raises(DatabaseUnavailable), nobody.begin():
        pass
    nobody.close()


def test_no_value_travels_with_an_error(database: Database, now: Any) -> None:
    row = {"uid": b"CANARY-16-bytes.", "name": "CANARY", "created_at": now}
    with database.begin() as tx:
        tx.execute(sa.insert(datastore), row)

    def again(tx: sa.Connection) -> None:
        tx.execute(sa.insert(datastore), row)

    import traceback

    for use in (lambda: database.group(again), lambda: _begin(database, again)):
        with pytest.raises(sa.exc.IntegrityError) as lost:
            use()
        shown = "".join(traceback.format_exception(lost.value, chain=True))
        assert "CANARY" not in shown.replace('b"CANARY', "").replace('"name": "CANARY"', "")


def _begin(database: Database, work: Callable[[sa.Connection], Any]) -> None:
    with database.begin() as tx:
        work(tx)


def test_many_threads_of_many_databases_all_get_their_turn(tmp_path: Path) -> None:
    key = os.urandom(32)
    both = [Database.embedded(tmp_path / "i.db", key, tmp_path / "lock") for _ in range(2)]
    create_all(both[0])
    longest = [0.0] * 12

    def write(number: int) -> None:
        for step in range(15):
            started = time.monotonic()
            if number % 3:
                both[number % 2].group(put(f"{number}.{step}"))
            else:
                with both[number % 2].begin(durable=False) as tx:
                    put(f"{number}.{step}")(tx)
            longest[number] = max(longest[number], time.monotonic() - started)

    began = time.monotonic()
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(write, range(12)))
    took = time.monotonic() - began
    assert len(names(both[0])) == 12 * 15
    assert max(longest) < max(10, took / 2)
    for one in both:
        one.close()


def table(path: Path) -> Database:
    database = Database.embedded(path / "i.db", KEY, path / "lock", guarded=False)
    with database.begin() as tx:
        tx.execute(sa.text("CREATE TABLE IF NOT EXISTS t (x INTEGER PRIMARY KEY, y TEXT)"))
    return database


KEY = os.urandom(32)
INSERT = sa.text("INSERT INTO t (y) VALUES ('a')")


def rows(database: Database) -> int:
    with database.glance() as tx:
        return int(tx.execute(sa.text("SELECT count(*) FROM t")).scalar_one())


def test_a_commit_that_is_uncertain_is_told_so_on_a_full_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = table(tmp_path)
    dialect = database.engine.dialect

    def unanswered(_connection: Any) -> None:
        raise dialect.loaded_dbapi.OperationalError("disk I/O error")  # type: ignore[attr-defined]

    def full(_engine: sa.Engine, *, wait: bool) -> bool:
        raise sa.exc.DBAPIError(None, None, dialect.loaded_dbapi.OperationalError("database or disk is full"))  # type: ignore[attr-defined]

    with monkeypatch.context() as then:
        then.setattr(dialect, "do_commit", unanswered)
        then.setattr(wal, "cut", full)
        with pytest.raises(CommitUncertain):
            database.group(lambda tx: tx.execute(INSERT), durable=True)
    database.close()


def test_closing_waits_for_a_commit_that_is_under_way(tmp_path: Path) -> None:
    database, other = table(tmp_path), Database.embedded(tmp_path / "i.db", KEY, tmp_path / "lock", guarded=False)
    closing = threading.Thread(target=database.close)
    inside: list[bool] = []

    def close(_tx: sa.Connection) -> None:
        database.before_commit = lambda _tx: None
        closing.start()
        time.sleep(0.2)
        with (tmp_path / "lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                inside.append(True)

    database.before_commit = close
    assert database.group(lambda tx: tx.execute(INSERT).rowcount) == 1
    closing.join(10)
    assert not closing.is_alive()
    assert inside == [True], "another process may write beside it"
    assert rows(other) == 1
    other.close()


def test_what_a_failed_work_left_half_read_shows_nobody_an_old_state(tmp_path: Path) -> None:
    database, other = table(tmp_path), Database.embedded(tmp_path / "i.db", KEY, tmp_path / "lock", guarded=False)
    for _ in range(3):
        database.group(lambda tx: tx.execute(INSERT).rowcount)

    def half(tx: sa.Connection) -> None:
        found = tx.execute(sa.text("SELECT x FROM t"))
        found.fetchone()
        raise ValueError

    left = database.group_all([half, lambda tx: tx.execute(INSERT).rowcount])
    assert isinstance(left[0].error, ValueError)
    before = commits.state(database)
    with other.begin() as tx:
        tx.execute(INSERT)
    assert commits.state(database) != before
    assert rows(database) == 5
    database.close()
    other.close()


@pytest.mark.parametrize("where", ["commit", "copy", "cut"])
def test_after_a_disk_error_in_the_log_every_process_cuts_it_before_it_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The kernel tells of it once: whoever begins afterwards sees syncs that succeed, and would commit behind a gap."""
    database, other = table(tmp_path), Database.embedded(tmp_path / "i.db", KEY, tmp_path / "lock", guarded=False)
    dialect, reader = database.engine.dialect, other.read()
    database.group(lambda tx: tx.execute(INSERT).rowcount)

    def failed(*_arguments: Any, **_named: Any) -> bool:
        error = dialect.loaded_dbapi.OperationalError("disk I/O error")  # type: ignore[attr-defined]
        if where == "commit":
            raise error
        raise sa.exc.DBAPIError(None, None, error)

    def attempt() -> object:
        if where == "commit":
            return database.group(lambda tx: tx.execute(INSERT).rowcount, durable=True)
        return database.checkpoint(patient=False)

    reader.__enter__().execute(sa.text("SELECT 1 FROM t")).all()  # keeps the log from being cut
    with monkeypatch.context() as then:
        then.setattr(*((dialect, "do_commit") if where == "commit" else (wal, where)), failed)
        with pytest.raises(ArchiveError):
            attempt()
    monkeypatch.setattr(wal, "BUSY_MS", 50)
    third = Database.embedded(tmp_path / "i.db", KEY, tmp_path / "lock", guarded=False)  # as another process
    for one in (database, third):
        with pytest.raises(DatabaseUnavailable, match="log from being cut"):
            one.group(lambda tx: tx.execute(INSERT).rowcount, durable=True)
    reader.__exit__(None, None, None)
    assert third.group(lambda tx: tx.execute(INSERT).rowcount, durable=True) == 1
    assert (tmp_path / "lock").read_bytes() == b""
    assert database.group(lambda tx: tx.execute(INSERT).rowcount) == 1
    assert rows(other) == 3
    for one in (database, other, third):
        one.close()


def test_a_commit_that_ended_in_no_memory_is_uncertain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = table(tmp_path)

    def exhausted(_connection: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as then:
        then.setattr(database.engine.dialect, "do_commit", exhausted)
        with pytest.raises(CommitUncertain):
            database.group(lambda tx: tx.execute(INSERT))
    database.close()
