"""Prepared: a Core statement compiled to text once, then run on the driver's cursor.

SQLAlchemy's own execution costs some 40 us a statement, several times what an indexed SQLite statement takes itself; paths that run for
each instance or each request go this way. Types, tokens, transactions and errors are the same as with `Connection.execute`.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakSet

import sqlalchemy as sa

from archive.db import failures, guard

_AT_A_TIME = 500
_MADE: WeakSet[Prepared] = WeakSet()


def compile_all(dialect: sa.Dialect) -> None:
    """Compile every statement that has been made so far: processes that fork from this one then share what that takes."""
    for one in list(_MADE):
        one.compile(dialect)


class Prepared:
    """One statement; make it once, at module level or behind a bounded cache, and share it between threads.

    No expanding parameters (`IN` of a list), no values computed in Python: `run` gets every value by name.
    """

    def __init__(self, statement: sa.Executable, *, keys: Sequence[str] | None = None) -> None:
        """Keep the statement; it is compiled for a dialect at its first run there.

        `keys` are the columns an INSERT or UPDATE gets values for, where the statement does not say so itself.
        """
        self._statement: Any = statement
        self._keys = None if keys is None else list(keys)
        self._compiled: dict[str, _Compiled] = {}
        _MADE.add(self)

    def all(self, tx: sa.Connection, params: Mapping[str, Any], token: guard.Token | None = None) -> list[Any]:
        """Return every row, as tuples with the columns' names.

        Raises:
            sqlalchemy.exc.DBAPIError: as from Connection.execute. NakedQuery: a protected table and no token.
        """
        compiled = self._for(tx)
        cursor = compiled.execute(tx, params, token)
        rows = cursor.fetchall()
        cursor.close()
        return compiled.rows(rows)

    def each(self, tx: sa.Connection, params: Mapping[str, Any], token: guard.Token | None = None) -> Iterator[Any]:
        """Yield every row as `all` returns them, some hundred in memory at a time."""
        compiled = self._for(tx)
        cursor = compiled.execute(tx, params, token)
        try:
            while rows := cursor.fetchmany(_AT_A_TIME):
                yield from compiled.rows(rows)
        finally:
            cursor.close()

    def first(self, tx: sa.Connection, params: Mapping[str, Any], token: guard.Token | None = None) -> Any | None:
        """Return the first row, or None; raises as `all`."""
        compiled = self._for(tx)
        cursor = compiled.execute(tx, params, token)
        row = cursor.fetchone()
        cursor.close()
        return None if row is None else compiled.rows([row])[0]

    def scalar(self, tx: sa.Connection, params: Mapping[str, Any], token: guard.Token | None = None) -> Any:
        """Return the first column of the first row, or None; raises as `all`."""
        row = self.first(tx, params, token)
        return None if row is None else row[0]

    def run(self, tx: sa.Connection, params: Mapping[str, Any], token: guard.Token | None = None) -> int:
        """Execute a statement that changes rows, and return how many; raises as `all`."""
        cursor = self._for(tx).execute(tx, params, token)
        changed = int(cursor.rowcount)
        cursor.close()
        return changed

    def insert(self, tx: sa.Connection, params: Mapping[str, Any], token: guard.Token | None = None) -> int:
        """Insert one row into a table whose only key is an integer the database gives, and return that key; raises as `all`."""
        compiled = self._for(tx)
        cursor = compiled.execute(tx, params, token)
        key = int(cursor.fetchone()[0]) if compiled.returns_key else int(cursor.lastrowid)
        cursor.close()
        return key

    def many(self, tx: sa.Connection, rows: Iterable[Mapping[str, Any]], token: guard.Token | None = None) -> None:
        """Execute once for each of `rows` in one call of the driver; raises as `all`."""
        self._for(tx).execute_many(tx, rows, token)

    def compile(self, dialect: sa.Dialect) -> _Compiled:
        """Return the statement as it is run with that dialect."""
        found = self._compiled.get(dialect.name)
        if found is None:  # two threads may both compile: the same thing comes out
            found = self._compiled[dialect.name] = _Compiled(self._statement, dialect, self._keys)
        return found

    def _for(self, tx: sa.Connection) -> _Compiled:
        return self.compile(tx.dialect)


class _Compiled:
    """The text of a statement on one dialect, with what turns values into the driver's and back."""

    def __init__(self, statement: Any, dialect: sa.Dialect, keys: list[str] | None) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=keys)
        if getattr(compiled, "insert_prefetch", ()) or getattr(compiled, "update_prefetch", ()):
            message = "a prepared statement has no values computed in Python"
            raise TypeError(message)
        if any(bind.expanding for bind in compiled.binds.values()) or compiled.escaped_bind_names:
            message = "a prepared statement has no expanding parameters, and plain names"
            raise TypeError(message)
        self.text = str(compiled)
        self.returns_key = bool(getattr(compiled, "implicit_returning", None))
        self._protected = guard.touches_protected(self.text)
        self._positional = compiled.positiontup is not None
        self._names: tuple[str, ...] = tuple(compiled.positiontup or compiled.binds)
        processors = {name: bind.type.dialect_impl(dialect).bind_processor(dialect) for name, bind in compiled.binds.items()}
        self._binds = [(i, process) for i, name in enumerate(self._names) if (process := processors[name]) is not None]
        self._fixed = {name: bind.effective_value for name, bind in compiled.binds.items() if not bind.required}
        columns = list(getattr(statement, "exported_columns", ()))
        names = [str(column.key) if str(column.key).isidentifier() else f"c{i}" for i, column in enumerate(columns)]
        tuple_of: Any = namedtuple  # noqa: PYI024 # the columns are known at run time
        self._make: Any = tuple_of("Row", names, rename=True)._make
        results = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns]
        self._results = [(i, process) for i, process in enumerate(results) if process is not None]

    def execute(self, tx: sa.Connection, params: Mapping[str, Any], token: guard.Token | None) -> Any:
        self._require(token)
        connection: Any = tx.connection
        cursor = connection.driver_connection.cursor()
        try:
            cursor.execute(self.text, self._values(params))
        except tx.dialect.loaded_dbapi.Error as error:
            _raise(tx, cursor, error)
        return cursor

    def execute_many(self, tx: sa.Connection, rows: Iterable[Mapping[str, Any]], token: guard.Token | None) -> None:
        self._require(token)
        connection: Any = tx.connection
        cursor = connection.driver_connection.cursor()
        try:
            cursor.executemany(self.text, [self._values(row) for row in rows])
        except tx.dialect.loaded_dbapi.Error as error:
            _raise(tx, cursor, error)
        cursor.close()

    def rows(self, rows: list[Any]) -> list[Any]:
        make = self._make
        if not self._results:
            return [make(row) for row in rows]
        made = []
        for row in rows:
            values = list(row)
            for i, process in self._results:
                values[i] = process(values[i])
            made.append(make(values))
        return made

    def _require(self, token: guard.Token | None) -> None:
        if self._protected and not isinstance(token, guard.Token):
            message = "a prepared statement on a protected table has no token"
            raise guard.NakedQuery(message)

    def _values(self, params: Mapping[str, Any]) -> Any:
        if self._fixed:
            params = {**self._fixed, **params}
        try:
            values = [params[name] for name in self._names]
        except KeyError as missing:
            message = f"a value is required for the parameter {missing}"
            raise sa.exc.InvalidRequestError(message) from None
        for i, process in self._binds:
            values[i] = process(values[i])
        return values if self._positional else dict(zip(self._names, values, strict=True))


def _raise(tx: sa.Connection, cursor: Any, error: Exception) -> None:
    """Raise what Connection.execute would: the connection is given up where it would be."""
    dialect: Any = tx.dialect
    lost = failures.breaks_connection(error) if dialect.name == "sqlite" else dialect.is_disconnect(error, tx.connection, cursor)
    if lost:
        tx.invalidate(error)
    raise sa.exc.DBAPIError.instance(
        None, None, error, dialect.loaded_dbapi.Error, hide_parameters=True, connection_invalidated=lost, dialect=dialect
    ) from error
