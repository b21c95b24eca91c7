"""The engine: read and write transactions, group commit, the one place that commits.

SQLite is SQLCipher under a raw key, WAL. Writers of all processes take `flock` on one file before BEGIN IMMEDIATE and let go after
COMMIT (docs/decisions.md: worst wait 72 ms against 3.7 s under busy_timeout alone). `durable=True` commits with synchronous=FULL;
`durable=False` with NORMAL, for work that replay from records covers. A FULL commit makes every earlier NORMAL one durable.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy import event

from archive.db import guard
from archive.errors import ArchiveError, DatabaseUnavailable, OutOfSpace

T = TypeVar("T")
Work = Callable[[sa.Connection], T]


def _encode(value: Any) -> str:
    return msgspec.json.encode(value).decode()


class Database:
    """One database; safe to share between threads, never across fork.

    `before_commit` is the seam for fault injection: it is called with the connection before every COMMIT.
    """

    def __init__(self, url: str, *, key: bytes | None = None, lock: Path | None = None, guarded: bool = True) -> None:
        """Open lazily; `key` is the raw 32-byte SQLCipher key, `lock` the writers' lock file (SQLite only)."""
        self.url = sa.make_url(url)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        self.before_commit: Callable[[sa.Connection], None] = lambda _tx: None
        self._lock_path = lock
        self._lock_file: int | None = None
        self._thread_lock = threading.Lock()
        self._leader = threading.Lock()
        self._queue_lock = threading.Lock()
        self._queue: list[_Queued] = []
        self.engine = self._sqlite_engine(key) if self.sqlite else self._postgresql_engine()
        if guarded:
            guard.install(self.engine)

    @classmethod
    def embedded(cls, path: Path, key: bytes, lock: Path, *, guarded: bool = True) -> Database:
        """Open the encrypted SQLite file at `path`."""
        return cls(f"sqlite:///{path}", key=key, lock=lock, guarded=guarded)

    def _sqlite_engine(self, key: bytes | None) -> sa.Engine:
        import sqlcipher3.dbapi2 as dbapi

        engine = sa.create_engine(
            self.url, module=dbapi, poolclass=sa.QueuePool, pool_size=16, max_overflow=64,
            json_serializer=_encode, json_deserializer=msgspec.json.decode,
            connect_args={"check_same_thread": False, "timeout": 30.0},
        )

        def on_connect(connection: Any, _record: Any) -> None:
            connection.isolation_level = None  # the begin event below says BEGIN itself
            cursor = connection.cursor()
            if key is not None:
                cursor.execute(f"PRAGMA key = \"x'{key.hex()}'\"")
                cursor.execute("PRAGMA cipher_memory_security = OFF")
            for pragma in ("journal_mode = WAL", "foreign_keys = ON", "secure_delete = ON", "temp_store = MEMORY",
                           "cache_size = -16000", "wal_autocheckpoint = 4000"):
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

        def on_begin(connection: sa.Connection) -> None:
            options = connection.get_execution_options()
            if options.get("writes"):
                connection.exec_driver_sql(f"PRAGMA synchronous = {'FULL' if options['durable'] else 'NORMAL'}")
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.exec_driver_sql("BEGIN")

        event.listen(engine, "connect", on_connect)
        event.listen(engine, "begin", on_begin)
        return engine

    def _postgresql_engine(self) -> sa.Engine:
        return sa.create_engine(
            self.url, pool_size=16, max_overflow=64, pool_pre_ping=True,
            connect_args={"options": "-c jit=off"},  # compiling a scope's condition takes longer than running it (50 ms against 400)
            json_serializer=_encode, json_deserializer=msgspec.json.decode,
        )

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that sees one state of the database and changes nothing.

        Raises:
            DatabaseUnavailable.
        """
        with _translated(), self.engine.connect() as connection:
            options: dict[str, Any] = {} if self.sqlite else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
            tx = connection.execution_options(**options)
            with tx.begin():
                yield tx

    @contextmanager
    def begin(self, *, durable: bool = True) -> Iterator[sa.Connection]:
        """A write transaction; committed when the block ends, rolled back when it raises.

        Raises:
            DatabaseUnavailable, OutOfSpace.
        """
        with _translated(), self._writers_turn(), self.engine.connect() as connection:
            tx = connection.execution_options(writes=True, durable=durable)
            with tx.begin() as transaction:
                if not self.sqlite and not durable:
                    tx.exec_driver_sql("SET LOCAL synchronous_commit = off")
                yield tx
                if transaction.is_active:
                    self.before_commit(tx)

    def group(self, work: Work[T], *, durable: bool = False) -> T:
        """Run `work(tx)` in a transaction shared with whatever else waits, and return its result once that is committed.

        Each work runs in a SAVEPOINT: one that raises is undone alone and raises here; the others commit.

        Raises:
            DatabaseUnavailable, OutOfSpace: the shared commit failed; nothing of it happened.
        """
        item = _Queued(work, durable)
        with self._queue_lock:
            self._queue.append(item)
        with self._leader:
            if not item.done:
                with self._queue_lock:
                    batch, self._queue = self._queue, []
                self._commit_batch(batch)
        if item.error is not None:
            raise item.error
        return item.result  # type: ignore[no-any-return]

    def _commit_batch(self, batch: list[_Queued]) -> None:
        try:
            with self.begin(durable=any(item.durable for item in batch)) as tx:
                for item in batch:
                    try:
                        with tx.begin_nested():
                            item.result = item.work(tx)
                    except Exception as error:  # noqa: BLE001 # handed to the thread that queued it
                        item.error = error
        except Exception as error:  # noqa: BLE001 # as above
            for item in batch:
                item.error = item.error or error
        finally:
            for item in batch:
                item.done = True

    @contextmanager
    def _writers_turn(self) -> Iterator[None]:
        if self._lock_path is None:
            yield
            return
        with self._thread_lock:
            if self._lock_file is None:
                self._lock_file = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock_file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    def checkpoint(self) -> bool:
        """Move the write-ahead log into the database file and cut it; False when readers held some of it back.

        Nothing to do on PostgreSQL.

        Raises:
            DatabaseUnavailable.
        """
        if not self.sqlite:
            return True
        with _translated(), self._writers_turn():
            connection = self.engine.raw_connection()  # a checkpoint cannot run inside the transaction that the begin event opens
            try:
                cursor = connection.cursor()
                cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                row = cursor.fetchone()
                cursor.close()
            finally:
                connection.close()
        return row is not None and not row[0]

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None


class _Queued:
    __slots__ = ("done", "durable", "error", "result", "work")

    def __init__(self, work: Work[Any], durable: bool) -> None:  # private record
        self.work = work
        self.durable = durable
        self.done = False
        self.error: Exception | None = None
        self.result: Any = None


@contextmanager
def _translated() -> Iterator[None]:
    """Turn driver errors into ours; the driver's text may quote values, so it does not travel."""
    try:
        yield
    except ArchiveError:
        raise
    except OSError as error:
        message = f"the database cannot be used: {error.strerror}"
        raise DatabaseUnavailable(message, remedy="run 'archive doctor'") from error
    except sa.exc.IntegrityError:
        raise  # a lost race; the caller looks again
    except sa.exc.DBAPIError as error:
        text = str(error.orig)
        if "full" in text or "No space left" in text:
            message = "the database's disk is full"
            raise OutOfSpace(message, remedy="free space on the storage disk") from None
        message = f"the database cannot be used: {type(error.orig).__name__}"
        if "not a database" in text:
            message = "the database does not open with this key"
        elif "locked" in text or "busy" in text:
            message = "the database is busy"
        elif "readonly" in text or "read-only" in text:
            message = "the database's disk is read-only"
        raise DatabaseUnavailable(message, remedy="run 'archive doctor'") from error
