"""The engine: read and write transactions, group commit, the one place that commits.

SQLite is SQLCipher under a raw key, WAL. Writers of all processes take `flock` on one file before BEGIN IMMEDIATE and let go after
COMMIT (docs/decisions.md: worst wait 72 ms against 3.7 s under busy_timeout alone). `durable=True` commits with synchronous=FULL;
`durable=False` with NORMAL, for work that replay from records covers. A FULL commit makes every earlier NORMAL one durable. On PostgreSQL
every commit is durable: a server may lose what it had not synced and go on beside an archive that replays only when it starts.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from archive.db import connect, failures, guard, wal
from archive.db.doubt import Doubt
from archive.db.failures import translated
from archive.db.prepared import Prepared
from archive.db.queued import Coming, Queued, Work
from archive.db.turns import Turns
from archive.errors import ArchiveError, CommitUncertain, DatabaseUnavailable

T = TypeVar("T")
GROUP_LOCK = 0x47726F7570  # "Group": PostgreSQL's advisory lock of group commits
ATTEMPTS = 5
KEPT = 4
_FAILED = "failed"
"""Marks a connection on which a work failed that was undone alone: its frames may hold a result half read, and with it an old state."""


class Database:
    """One database; safe to share between threads, never across fork.

    `before_commit` is the seam for fault injection: it is called with the connection before every COMMIT.
    """

    def __init__(self, url: str, *, key: bytes | None = None, lock: Path | None = None, guarded: bool = True) -> None:
        """Open lazily; `key` is the raw 32-byte SQLCipher key, `lock` the writers' lock file (SQLite only)."""
        self.url, self.key = sa.make_url(url), key
        self.sqlite = self.url.get_backend_name() == "sqlite"
        self.before_commit: Callable[[sa.Connection], None] = lambda _tx: None
        self._turns = Turns(lock)
        self._queue_lock = threading.Lock()
        self._queue: list[Queued[Any]] = []
        self._leading = False
        self._doubt = Doubt()
        self._coming = Coming()
        self._kept: list[tuple[sa.Connection, Any]] = []
        self._pid = os.getpid()
        self.engine = connect.sqlite(self.url, key) if self.sqlite else connect.postgresql(self.url)
        if guarded:
            guard.install(self.engine)

    @classmethod
    def embedded(cls, path: Path, key: bytes, lock: Path, *, guarded: bool = True) -> Database:
        """Open the encrypted SQLite file at `path`."""
        return cls(f"sqlite:///{path}", key=key, lock=lock, guarded=guarded)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that sees one state of the database and changes nothing.

        Raises:
            DatabaseUnavailable.
        """
        self._require_own()
        with translated(), self.engine.connect() as connection:
            options: dict[str, Any] = {} if self.sqlite else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
            tx = connection.execution_options(**options)
            with tx.begin():
                yield tx

    def first(self, statement: Prepared, params: Mapping[str, Any], token: guard.Token | None = None) -> Any | None:
        """Return the first row of a SELECT, or None, in a transaction of its own: it sees all that is committed by now.

        Raises:
            DatabaseUnavailable; NakedQuery: a protected table and no token.
        """
        with self.glance() as tx:
            return statement.first(tx, params, token)

    @contextmanager
    def glance(self) -> Iterator[sa.Connection]:
        """A connection for prepared SELECTs, each of which sees all that is committed by then; `read` is for one state of several.

        Raises:
            DatabaseUnavailable.
        """
        if not self.sqlite:
            with self.read() as tx:
                yield tx
            return
        self._require_own()
        # Without BEGIN a statement of SQLite's is its own transaction, for a third of the cost.
        with translated(), self._lent() as connection:
            if connection.get_execution_options().get("writes"):  # looking costs a tenth of saying it again
                connection.execution_options(writes=False)
            yield connection

    @contextmanager
    def _lent(self) -> Iterator[sa.Connection]:
        """Lend one of SQLite's connections that is kept out of the pool, the last that was used.

        Taking one from the pool costs several statements, and one that wrote last has in memory what any other decrypts again.
        """
        try:
            connection, driven = self._kept.pop()
        except IndexError:
            connection = self.engine.connect()
            driven = connection.connection.driver_connection
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        if not connection.invalidated and connection.info.pop(_FAILED, False):
            connection.invalidate()
        spoilt = connection.invalidated or connection.in_transaction() or guard.OPTION in connection.get_execution_options()
        if spoilt or driven.full or len(self._kept) >= KEPT:
            connection.close()
        else:
            self._kept.append((connection, driven))

    @contextmanager
    def begin(self, *, durable: bool = True) -> Iterator[sa.Connection]:
        """A write transaction; committed when the block ends, rolled back when it raises. Never inside another of this thread.

        Raises:
            DatabaseUnavailable, OutOfSpace: nothing happened.
            CommitUncertain: it may have happened.
        """
        with self._turn(), self._transaction(durable=durable) as tx:
            yield tx

    @contextmanager
    def _transaction(self, *, durable: bool, grouped: bool = False) -> Iterator[sa.Connection]:
        self._trust_log()
        with translated(), self._lent() if grouped and self.sqlite else self.engine.connect() as connection:
            tx = connection.execution_options(writes=True, durable=durable)
            transaction = tx.begin()
            try:
                yield tx
                self._require_open(tx)
                self.before_commit(tx)
            except BaseException:
                with suppress(sa.exc.SQLAlchemyError):
                    transaction.rollback()
                raise
            try:
                transaction.commit()
            except sa.exc.DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                with suppress(ArchiveError, OSError):  # a full disk too: what happened to the commit is all that is told
                    self._mistrust_log()
                    self._trust_log(wait=False)  # before another process has its turn
                raise _uncertain() from None
            except Exception:  # noqa: BLE001 # no memory left, say: the driver does not know how far it came
                raise _uncertain() from None

    def _trust_log(self, *, wait: bool = True) -> None:
        """After a disk's error in the log, write it into the database and cut it, or go no further; in one's turn."""
        with translated():
            if not self.sqlite or not self._doubt.stands(self._turns.file):
                return
            if wal.cut(self.engine, wait=wait):
                self._doubt.end(self._turns.file)
            else:
                message = "the database's disk failed, and readers keep its log from being cut"
                raise DatabaseUnavailable(message, remedy=failures.REMEDY)

    def _mistrust_log(self) -> None:
        if self.sqlite:
            self._doubt.begin(self._turns.file)

    def _is_open(self, tx: sa.Connection) -> bool:
        """Whether the transaction still holds all that was done in it.

        A full disk or an I/O error makes SQLite undo a transaction on its own; its COMMIT would then succeed and mean nothing, and
        so would PostgreSQL's after an error that somebody swallowed.
        """
        if tx.closed or tx.invalidated:
            return False
        driver: Any = tx.connection.driver_connection
        if self.sqlite:
            return bool(driver.in_transaction)
        return driver.info.transaction_status.name in {"INTRANS", "IDLE", "ACTIVE"}

    def _require_open(self, tx: sa.Connection) -> None:
        if not self._is_open(tx):
            message = "the database undid the transaction"
            raise DatabaseUnavailable(message, remedy=failures.REMEDY)

    def group(self, work: Work[T], *, durable: bool = False) -> T:
        """Run `work(tx)` in a transaction shared with whatever else waits, and return its result once that is committed.

        Of several works each runs in a SAVEPOINT: one that raises is undone alone and raises here; the others commit. One that
        another transaction stood in the way of is run again, so a work does nothing but with `tx`.

        Raises:
            DatabaseUnavailable, OutOfSpace: the shared commit failed; nothing of it happened.
            CommitUncertain: it may have happened.
        """
        return self.group_all([work], durable=durable)[0].get()

    def group_all(self, works: Sequence[Work[T]], *, durable: bool = False) -> list[Queued[T]]:
        """Do with several works of one thread what `group` does with one, in order; `get` of each answer returns or raises."""
        items = [Queued(work, durable) for work in works]
        left = items
        for attempt in range(1, ATTEMPTS + 1):
            self._once(left)
            left = [item for item in left if isinstance(item.error, failures.Conflict)]
            if not left or attempt == ATTEMPTS:
                break
            time.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311 # only so that two do not meet again
            for item in left:
                item.again()
        return items

    @contextmanager
    def approaching(self) -> Iterator[None]:
        """Say that this thread will soon call `group`: whoever is to commit meanwhile waits a moment, so that both do it together."""
        self._coming.begin()
        try:
            yield
        finally:
            self._coming.arrive()

    def _once(self, items: Sequence[Queued[T]]) -> None:
        """Queue the works together and return once all are settled: whoever leads takes the whole queue."""
        self._require_own()
        self._turns.require_outside()
        first = items[0]
        self._coming.arrive()
        with self._queue_lock:
            self._queue += items
            first.leads, self._leading = not self._leading, True
        try:
            if not first.leads:
                first.wait()
            if first.leads:
                self._lead()
        except BaseException:
            self._withdraw(items)
            raise

    def _lead(self) -> None:
        """Commit everything that waits by the time it is our turn, then let the next one lead."""
        batch: list[Queued[Any]] = []
        try:
            try:
                self._coming.wait()
                with self._turn():
                    batch = self._take_queue()
                    self._commit_batch(batch)
            except Exception as error:  # noqa: BLE001 # handed to the threads that queued
                batch = batch or self._take_queue()
                for item in batch:
                    item.error = item.error or failures.own(error)
        except BaseException:
            for item in batch:
                message = "the process was interrupted during a commit"
                item.error = item.error or CommitUncertain(message, remedy="try again")
            raise
        finally:
            self._pass_on()
            for item in reversed(batch):  # a thread waits for the first of its own, and may queue others of them anew
                item.tell()

    def _take_queue(self) -> list[Queued[Any]]:
        with self._queue_lock:
            batch, self._queue = self._queue, []
        return batch

    def _pass_on(self) -> None:
        with self._queue_lock:
            self._leading = bool(self._queue)
            if self._queue:
                self._queue[0].leads = True
                self._queue[0].tell()

    def _withdraw(self, items: Sequence[Queued[Any]]) -> None:
        """Forget what its thread no longer waits for, and the lead it may have been given meanwhile."""
        with self._queue_lock:
            waiting = items[0] in self._queue
            self._queue = [item for item in self._queue if item not in items]
        if waiting and items[0].leads:
            self._pass_on()

    def _commit_batch(self, batch: list[Queued[Any]]) -> None:
        with self._transaction(durable=any(item.durable for item in batch), grouped=True) as tx:
            if not self.sqlite:
                # Works lock rows in any order: two groups of two processes would block each other for ever.
                _GROUP_TURN.first(tx, {})
            if len(batch) == 1:
                self._run_alone(batch[0], tx)
            else:
                for item in batch:
                    self._run(item, tx)

    def _run_alone(self, item: Queued[Any], tx: sa.Connection) -> None:
        """Run the only work of a transaction, which is undone with it."""
        try:
            item.result = item.work(tx)
        except Exception as error:
            item.error = failures.translate(error)
            raise

    def _run(self, item: Queued[Any], tx: sa.Connection) -> None:
        _SAVEPOINT.run(tx, {})
        try:
            item.result = item.work(tx)
        except Exception as error:
            if self.sqlite and not self._is_open(tx):
                raise  # the whole transaction is gone, with what the others did
            try:
                _UNDO.run(tx, {})
                _RELEASE.run(tx, {})
            except sa.exc.SQLAlchemyError:
                raise error from None
            item.error = failures.translate(error)
            tx.info[_FAILED] = True
        else:
            _RELEASE.run(tx, {})

    def _require_own(self) -> None:
        if os.getpid() != self._pid:
            message = "a database is not used across fork: open it in each process"
            raise RuntimeError(message)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        self._require_own()
        with self._turns.take():
            yield

    def checkpoint(self, *, patient: bool = True, cut: bool = True) -> bool:
        """Move the write-ahead log into the database file and cut it; False when readers held some of it back.

        Not `patient`, it waits for no reader: who waits does so with every writer behind it. Not `cut` either, the log keeps its
        length and is written again from its beginning. Nothing to do on PostgreSQL.

        Raises:
            DatabaseUnavailable.
        """
        if not self.sqlite:
            return True
        if not patient:
            self._require_own()
            self._turns.require_outside()
            try:
                wal.copy(self.engine)
            except sa.exc.DBAPIError as error:
                with self._turn():
                    self._failed(error)
                raise failures.translate(error) from None
        with self._turn(), translated():
            try:
                return wal.cut(self.engine, wait=patient) if patient or cut else wal.restart(self.engine)
            except sa.exc.DBAPIError as error:
                self._failed(error)
                raise

    def _failed(self, error: sa.exc.DBAPIError) -> None:
        """Doubt the log when a checkpoint, which syncs it first, was ended by the disk; in one's turn."""
        if failures.breaks_connection(error.orig):
            self._mistrust_log()

    def log_bytes(self) -> int:
        """Return the length of SQLite's write-ahead log; 0 on PostgreSQL."""
        return wal.bytes_of(self.url) if self.sqlite else 0

    def log_waiting_bytes(self) -> int:
        """Return how much of that log the database file does not have yet."""
        with translated():
            return wal.waiting_bytes(self.engine) if self.sqlite else 0

    def close(self) -> None:
        """Close every connection that nobody uses."""
        while self._kept:
            self._kept.pop()[0].close()
        self.engine.dispose()
        self._turns.close()


def _uncertain() -> CommitUncertain:
    return CommitUncertain("the database did not answer a commit", remedy=failures.REMEDY)


_GROUP_TURN = Prepared(sa.select(sa.func.pg_advisory_xact_lock(GROUP_LOCK)))
_SAVEPOINT, _RELEASE = Prepared(sa.text("SAVEPOINT work")), Prepared(sa.text("RELEASE SAVEPOINT work"))
_UNDO = Prepared(sa.text("ROLLBACK TO SAVEPOINT work"))
