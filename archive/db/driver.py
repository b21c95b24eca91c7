"""SQLite's driver: a connection that knows how much it keeps prepared.

The driver keeps as many statements prepared as it is told. Once it has that many it makes room by throwing out the one used least
often, which is the newest: two new statements in turn throw each other out and are prepared again at every call, ten times what running
them takes. So a connection that was asked for that many different ones is closed where it is given back, and a new one takes its place.
"""

from __future__ import annotations

from functools import cache
from typing import Any

STATEMENTS = 256
"""How many different statements a connection runs before another takes its place."""
TEXT_CHARS = 2 << 20
"""And how long they may be together: one of a search has 18,000 characters and takes 45 KB, and whoever asks chooses its form."""
ONE_MORE = 64
"""How many a last request may bring besides."""


@cache
def connection_class() -> Any:
    """Return the class of connections; the driver is imported where one is wanted."""
    import sqlcipher3.dbapi2 as dbapi

    run, run_many, cursor_of = dbapi.Cursor.execute, dbapi.Cursor.executemany, dbapi.Connection.cursor

    class Cursor(dbapi.Cursor):  # type: ignore[misc] # the driver has no types
        def execute(self, text: str, parameters: Any = ()) -> Any:
            connection = self.connection
            if text not in connection.texts:  # here too: a call for each statement costs more than the look
                connection.note(text)
            return run(self, text, parameters)

        def executemany(self, text: str, rows: Any) -> Any:
            self.connection.note(text)
            return run_many(self, text, rows)

    class Connection(dbapi.Connection):  # type: ignore[misc] # as above
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.texts: set[str] = set()
            self.chars = 0

        def cursor(self) -> Any:
            return cursor_of(self, Cursor)

        def note(self, text: str) -> None:
            if text not in self.texts:
                self.texts.add(text)
                self.chars += len(text)

        @property
        def full(self) -> bool:
            """Whether it should run nothing more."""
            return len(self.texts) > STATEMENTS or self.chars > TEXT_CHARS

    return Connection
