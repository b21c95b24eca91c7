"""What a driver says went wrong, in the archive's own errors.

A driver's text may quote values of rows, so none of it travels: neither as message nor as cause.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from archive.errors import DatabaseUnavailable, InvalidRequest, OutOfSpace

REMEDY = "run 'archive doctor'"
SERVER = "see that the database's server runs and can be reached as database.url says; its own log says more"
AGAIN = f"try again; if it stays so, {REMEDY}"
_CONFLICTS = frozenset({"40001", "40P01"})  # serialization failure, deadlock (PostgreSQL, appendix A)
_FULL = ("53100", "is full", "no space left")
_LOST = "the connection to the database was lost"
_TOO_LONG = "54000"  # program limit exceeded: of PostgreSQL's limits an index entry of 2704 bytes is the one that a value can meet
_MESSAGES = (
    (("08", "57P"), _LOST, SERVER),  # connection exceptions; shut down, crashed, starting
    (("53300", "55P03", "57014", "locked", "busy"), "the database is busy", AGAIN),  # too many connections, no lock in time, cancelled
    (("25006", "readonly", "read-only"), "the database's disk is read-only", REMEDY),
    (("not a database",), "the database does not open with this key", REMEDY),
    (("disk i/o error",), "the database's disk reports an error", REMEDY),
    (("malformed",), "the database's file is damaged", REMEDY),
    (("unable to open",), "the database's file cannot be opened", REMEDY),
)
_BROKEN_FILE = ("disk i/o error", "malformed", "not a database", "unable to open")


class Conflict(DatabaseUnavailable):
    """Two transactions stood in each other's way and this one was undone: run it again."""


class TooLong(InvalidRequest):
    """A value is longer than this database's index takes; it will be so every time."""


class _Hidden(Exception):  # stands for a driver's error
    """The place of a driver's exception whose text is not shown."""


def breaks_connection(error: BaseException | None) -> bool:
    """Whether SQLite's connections are not to be trusted after this."""
    text = str(error).lower()
    return any(word in text for word in _BROKEN_FILE)


def translate(error: Exception) -> Exception:
    """Return the archive's error for one of SQLAlchemy or the system; any other is returned as it is."""
    if isinstance(error, sa.exc.IntegrityError):
        return sa.exc.IntegrityError("a row stands against another one", None, _Hidden(type(error.orig).__name__))
    if isinstance(error, sa.exc.DBAPIError):
        return _driver(error)
    if isinstance(error, sa.exc.TimeoutError):
        return DatabaseUnavailable("the database is busy", remedy=AGAIN)
    if isinstance(error, sa.exc.PendingRollbackError | sa.exc.ResourceClosedError):
        return DatabaseUnavailable(_LOST, remedy=REMEDY)
    if isinstance(error, OSError):
        return DatabaseUnavailable(f"the database cannot be used: {error.strerror}", remedy=REMEDY)
    return error


def _driver(error: sa.exc.DBAPIError) -> Exception:
    state: str | None = getattr(error.orig, "sqlstate", None)
    unanswered = isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError)
    if unanswered and state is None and hasattr(error.orig, "sqlstate"):  # PostgreSQL's driver alone has states
        return DatabaseUnavailable(_LOST if error.connection_invalidated else "the database's server does not answer", remedy=SERVER)
    # SQLite has no states, and its texts quote no row.
    said = str(error.orig).lower() if state is None else state
    if _says(said, state, _FULL):
        return OutOfSpace("the database's disk is full", remedy="free space on the disk the database is on")
    if state == _TOO_LONG:
        return TooLong("a value is longer than the database's index takes", remedy="identifiers have at most 64 characters")
    if state in _CONFLICTS:
        return Conflict("the database is busy", remedy="try again")
    what = type(error.orig).__name__ + (f" ({state})" if state else "")
    known = (_LOST, REMEDY) if error.connection_invalidated else (f"the database cannot be used: {what}", REMEDY)
    message, remedy = next(((message, remedy) for words, message, remedy in _MESSAGES if _says(said, state, words)), known)
    return DatabaseUnavailable(message, remedy=remedy)


def _says(said: str, state: str | None, words: tuple[str, ...]) -> bool:
    return said.startswith(words) if state is not None else any(word in said for word in words if not word[0].isdigit())


@contextmanager
def translated() -> Iterator[None]:
    """Raise the archive's error in place of a driver's."""
    try:
        yield
    except Exception as error:
        known = translate(error)
        if known is error:
            raise
        raise known from None


def own(error: Exception) -> Exception:
    """Return what one of several threads is told: an exception keeps the traceback of each raise, so they do not share one."""
    try:
        return copy.copy(error)
    except TypeError:
        return error
