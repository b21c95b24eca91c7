"""How each engine is connected to: settings, and how its transactions begin."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import event

from archive.db import driver, failures, pages, wal, watched
from archive.db.prepared import Prepared

MEMORY_BYTES = 48 << 20
"""What SQLite holds in a process before its page caches, 16 MB a connection at most, stop growing."""

KEPT = 8
"""Idle connections a process keeps for reading: each is two descriptors, 0.3 MB and what it has prepared."""

LONG_S = 0.01
"""Who has a connection longer may have read much, and gives its pages back: they are of no use after the next commit elsewhere."""


def _encode(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def sqlite(url: sa.URL, key: bytes | None) -> sa.Engine:
    """Return an engine of SQLCipher under a raw key; a transaction with the option `writes` is one that may write, `durable` or not."""
    import sqlcipher3.dbapi2 as dbapi

    arguments = {
        "check_same_thread": False, "timeout": wal.BUSY_MS / 1000, "factory": driver.connection_class(),
        "cached_statements": driver.STATEMENTS + driver.ONE_MORE,
    }
    engine = sa.create_engine(
        url, module=dbapi, poolclass=sa.QueuePool, pool_size=KEPT, max_overflow=80 - KEPT,
        pool_use_lifo=True,  # the connection used last still has its pages: each is deciphered and authenticated when read
        json_serializer=_encode, json_deserializer=msgspec.json.decode, hide_parameters=True,
        connect_args=arguments,
    )

    way: list[pages.Pages] = []  # found once: finding it opens the file another time

    def on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the begin event below says BEGIN itself
        cursor = connection.cursor()
        if key is not None:
            way[:] = way or [pages.of(Path(str(url.database)), key)]
            way[0].unlock(connection, key)
        for pragma in ("journal_mode = WAL", "foreign_keys = ON", "secure_delete = ON", "temp_store = MEMORY",
                       "cache_size = -16000", f"soft_heap_limit = {MEMORY_BYTES}",
                       f"wal_autocheckpoint = {wal.AUTOMATIC_PAGES}"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def on_checkout(_connection: Any, record: Any, _proxy: Any) -> None:
        record.info["lent_s"] = time.monotonic()

    def on_checkin(connection: Any, record: Any) -> None:
        if connection is None:
            return
        if connection.full and url.database:  # one in memory is the database
            record.invalidate(soft=True)  # whoever takes it next gets a new one
        elif time.monotonic() - record.info.get("lent_s", 0.0) > LONG_S:
            with suppress(dbapi.Error):  # what breaks here shows again with the next statement
                connection.execute("PRAGMA shrink_memory").close()

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "checkout", on_checkout)
    event.listen(engine, "checkin", on_checkin)
    event.listen(engine, "begin", _begin)
    event.listen(engine, "handle_error", _distrust)
    return engine


def sqlite_dialect() -> sa.Dialect:
    """Return how statements are written for SQLite, as in an engine of `sqlite`; nothing is opened."""
    import sqlcipher3.dbapi2 as dbapi

    return sa.create_engine("sqlite://", module=dbapi, json_serializer=_encode, json_deserializer=msgspec.json.decode).dialect


def _begin(connection: sa.Connection) -> None:
    options = connection.get_execution_options()
    if not options.get("writes"):
        _BEGIN.run(connection, {})
        return
    level = "FULL" if options["durable"] else "NORMAL"
    if connection.info.get("synchronous") != level:
        connection.info.pop("synchronous", None)
        _SYNCHRONOUS[level].run(connection, {})
        connection.info["synchronous"] = level
    _BEGIN_IMMEDIATE.run(connection, {})


_SYNCHRONOUS = {level: Prepared(sa.text(f"PRAGMA synchronous = {level}")) for level in ("FULL", "NORMAL")}
_BEGIN, _BEGIN_IMMEDIATE = Prepared(sa.text("BEGIN")), Prepared(sa.text("BEGIN IMMEDIATE"))


def _distrust(context: sa.engine.ExceptionContext) -> None:
    """Give up SQLite connections after an I/O error."""
    if failures.breaks_connection(context.original_exception):
        context.is_disconnect = True


_OURS = (
    "-c jit=off"  # compiling a scope's condition takes longer than running it (50 ms against 400)
    # A server, database or role may say otherwise: a commit that is answered lies on the disk, and each statement sees what was committed
    # while it waited for a lock.
    " -c synchronous_commit=on -c default_transaction_isolation=read\\ committed"
)


_GONE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
"""A server's machine that is gone ends no connection: after a minute without a sign of it who waits is told."""


def postgresql(url: sa.URL) -> sa.Engine:
    """Return an engine of a PostgreSQL server; how long a connection is waited for the address may say otherwise."""
    patience = {name: value for name, value in {"connect_timeout": 10, **_GONE}.items() if name not in url.query}
    engine = sa.create_engine(
        url, pool_size=16, max_overflow=64, pool_pre_ping=True, hide_parameters=True,
        connect_args={"options": _OURS, "client_encoding": "UTF8", **patience},
        json_serializer=_encode, json_deserializer=msgspec.json.decode,
    )
    watch = watched.Watch()
    event.listen(engine, "do_connect", lambda _dialect, _record, arguments, named: watch.connect(*arguments, **named))
    event.listen(engine, "engine_disposed", lambda _engine: watch.rest())
    return engine
