"""A PostgreSQL server that is stopped, its disk or its machine with it, while its system still answers for it: who waits is told.

No time limit says so. The server's own (statement_timeout) stop with it, TCP's see that the packets arrive, and one here could not tell
it from a statement that takes long. So when one has taken long, the server is asked for another connection: only if that does not come
either are the connections broken that have been waited for as long.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from typing import Any

PATIENCE_S = 10.0
"""How long a statement takes before the server is asked whether it is there."""

ANSWER_S = 5
"""How long that answer may take."""

_REST_S = 60.0
"""How long nobody waits before nobody watches either."""

_Server = tuple[tuple[str, str], ...]
"""Parameters that lead to one server alone."""


class Watch:
    """The connections of one engine that somebody waits for; a thread looks after them while there are any."""

    def __init__(self) -> None:
        """Nobody waits yet."""
        self._waiting: dict[int, tuple[float, Any]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._rest = threading.Event()
        self._asked = 0.0
        self._address: tuple[Sequence[Any], dict[str, Any]] = (), {}

    def connect(self, *args: Any, **named: Any) -> Any:
        """Return a new connection that is watched."""
        self._address = args, named
        connection = _connection_class().connect(*args, **named)
        connection.watch = self
        return connection

    def begin(self, connection: Any) -> None:
        """Say that a thread waits for this connection."""
        self._waiting[id(connection)] = time.monotonic(), connection
        if self._thread is None:
            self._start()

    def end(self, connection: Any) -> None:
        """Say that it waits no longer."""
        self._waiting.pop(id(connection), None)

    def rest(self) -> None:
        """End the thread, unless somebody waits still; whoever waits next starts another."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._rest.set()
        if thread is not None:
            thread.join(ANSWER_S)
        if self._waiting:
            self._start()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._rest = threading.Event()
                self._thread = threading.Thread(target=self._look_on, args=(self._rest,), name="database-watch", daemon=True)
                self._thread.start()

    def _look_on(self, rest: threading.Event) -> None:
        last_s = time.monotonic()
        while not rest.wait(PATIENCE_S / 4):
            if self._waiting:
                last_s = time.monotonic()
            elif time.monotonic() - last_s > _REST_S:
                self._thread = None
                if self._waiting:  # somebody came who saw this thread still there
                    self._start()
                return
            self._look()

    def _look(self) -> None:
        """Break the connections that were waited for too long, if their server does not answer."""
        now = time.monotonic()
        late = [entry for entry in list(self._waiting.values()) if now - entry[0] > PATIENCE_S]
        if not late or now - self._asked < PATIENCE_S:
            return
        by_server: dict[_Server, list[tuple[float, Any]]] = {}
        for entry in late:
            if (server := _server(entry[1])) is not None:
                by_server.setdefault(server, []).append(entry)
        silent = [entries for server, entries in by_server.items() if not self._answers(server)]
        if not silent:
            self._asked = time.monotonic()
        for entry in chain.from_iterable(silent):
            if self._waiting.get(id(entry[1])) is entry:
                _break(entry[1])

    def _answers(self, server: _Server) -> bool:
        """Whether this server answers; that it refuses is an answer."""
        import psycopg

        args, named = self._address
        try:
            psycopg.connect(*args, **{**named, **dict(server), "connect_timeout": ANSWER_S}).close()
        except psycopg.errors.ConnectionTimeout:
            return False
        except psycopg.Error:
            pass
        return True


def _server(connection: Any) -> _Server | None:
    """Return where a connection leads, of all the addresses that a name or a list of hosts has; None of one that has ended."""
    import psycopg

    try:
        found = connection.pgconn
        told = (("host", found.host), ("hostaddr", found.hostaddr), ("port", found.port))
    except psycopg.Error:
        return None
    return tuple((name, value.decode()) for name, value in told if value)


def _break(connection: Any) -> None:
    """Let whoever waits for the connection read its end."""
    import psycopg

    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.pgconn.socket)) as its:
        its.shutdown(socket.SHUT_RDWR)


@lru_cache(maxsize=1)
def _connection_class() -> Any:
    import psycopg

    class Watched(psycopg.Connection[Any]):
        """One that says when it is waited for."""

        watch: Watch | None = None

        def wait(self, *args: Any, **named: Any) -> Any:
            """Wait as any does."""
            watch = self.watch
            if watch is None:
                return super().wait(*args, **named)
            watch.begin(self)
            try:
                return super().wait(*args, **named)
            finally:
                watch.end(self)

    return Watched
