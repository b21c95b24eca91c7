"""Index databases with every table, made once in a run and given out again: as empty as a new one, for a tenth of what a new one costs.

What SQLAlchemy has compiled for one of a run's thousand engines is kept for the others too.
"""

from __future__ import annotations

import atexit
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.util import LRUCache

from archive.db import connect
from archive.db.engine import Database
from archive.db.migrate import create_all

KEY = secrets.token_bytes(32)
_DEFINED = """
    SELECT sum(hashtextextended(line, 0)) FROM (
        SELECT concat(relname, relkind) AS line FROM pg_class WHERE relnamespace = 'public'::regnamespace
        UNION ALL SELECT a::text FROM pg_attribute a WHERE attrelid >= 16384
        UNION ALL SELECT t::text FROM pg_trigger t
        UNION ALL SELECT c::text FROM pg_constraint c WHERE oid >= 16384
        UNION ALL SELECT p::text FROM pg_proc p WHERE oid >= 16384
        UNION ALL SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_'
        UNION ALL SELECT rolname FROM pg_roles
        UNION ALL SELECT s::text FROM pg_db_role_setting s
    ) AS lines"""
_LEFT = "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
_RESTARTED = """
    SELECT setval(format('%I.%I', schemaname, sequencename)::regclass, start_value, false)
    FROM pg_sequences WHERE last_value IS NOT NULL"""


class _Compiled:
    """Compiled statements, by the name of the dialect in place of the dialect, which each engine has its own of."""

    def __init__(self) -> None:
        self._kept: LRUCache[Any, Any] = LRUCache(2000)

    def get(self, key: tuple[Any, ...]) -> Any:
        return self._kept.get((key[0].name, *key[1:]))

    def __setitem__(self, key: tuple[Any, ...], compiled: Any) -> None:
        self._kept[key[0].name, *key[1:]] = compiled


def compile_once() -> None:
    """Let the engines made from now on share what they compile."""
    kept = _Compiled()

    def sharing(make: Callable[..., sa.Engine]) -> Callable[..., sa.Engine]:
        def made(*arguments: Any) -> sa.Engine:
            engine = make(*arguments)
            engine.update_execution_options(compiled_cache=kept)
            return engine

        return made

    for name in ("sqlite", "postgresql"):
        setattr(connect, name, sharing(getattr(connect, name)))


class Emptied:
    """PostgreSQL databases with the tables of the index; what a test has changed in more than rows is not given out again."""

    def __init__(self, server: str) -> None:
        """`server` is a URL whose last part is the database to use."""
        self._server = server
        self._plain = server.replace("+psycopg", "")
        self._waiting: list[str] = []
        self._defined: dict[str, object] = {}
        self._tables: list[str] = []

    @contextmanager
    def one(self) -> Iterator[str]:
        """The URL of a database whose tables are there and empty."""
        name = self._waiting.pop() if self._waiting else self._make()
        try:
            yield self._server + name
        finally:
            try:
                self._empty(name)
            except (psycopg.Error, _Changed):
                self._execute("postgres", f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            else:
                self._waiting.append(name)

    def _make(self) -> str:
        name = "e" + secrets.token_hex(6)
        self._execute("postgres", f'CREATE DATABASE "{name}"')
        with closing(Database(self._server + name)) as database:
            create_all(database)
        with psycopg.connect(self._plain + name) as connection:
            self._defined[name] = connection.execute(_DEFINED).fetchone()
            tables = "SELECT quote_ident(relname) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
            self._tables = [row[0] for row in connection.execute(tables)]
        return name

    def _empty(self, name: str) -> None:
        with psycopg.connect(self._plain + name, autocommit=True) as connection:
            connection.execute("SET lock_timeout = '1s'")
            connection.execute(_LEFT)
            if connection.execute(_DEFINED).fetchone() != self._defined[name]:
                raise _Changed
            connection.execute("SET session_replication_role = replica")  # neither triggers nor the order of references
            filled = connection.execute(f"SELECT {', '.join(f'EXISTS (SELECT FROM {table})' for table in self._tables)}").fetchone()  # type: ignore[arg-type]
            assert filled is not None
            tables = [table for table, rows in zip(self._tables, filled, strict=True) if rows]
            with connection.transaction():
                for table in tables:
                    connection.execute(f"DELETE FROM {table}")  # type: ignore[arg-type]
                connection.execute(_RESTARTED)
            if tables:
                connection.execute(f"VACUUM {', '.join(tables)}")  # type: ignore[arg-type] # rows lie in the order they come in again

    def _execute(self, database: str, statement: str) -> None:
        with psycopg.connect(self._plain + database, autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[arg-type]


class _Changed(Exception):  # not an error
    pass


@cache
def _first() -> Path:  # of this process
    folder = Path(tempfile.mkdtemp(prefix="srd"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with closing(Database.embedded(folder / "first.db", KEY, folder / "writer.lock")) as database:
        create_all(database)
    return folder / "first.db"


def embedded(folder: Path) -> Database:
    """Return `index.db` in a folder, a SQLite database with every table; it is the caller's to close."""
    shutil.copyfile(_first(), folder / "index.db")
    return Database.embedded(folder / "index.db", KEY, folder / "writer.lock")
