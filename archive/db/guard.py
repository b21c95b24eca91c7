"""No naked query: statements on protected tables carry a token, or do not run.

Three walls: `before_execute` looks at Core statements, `before_cursor_execute` at the SQL text that is really sent, and a lint test
(tests/db/test_no_raw_connections.py) forbids raw connections and cursors outside db/. Tokens are made by access.policy alone.
"""

from __future__ import annotations

import re
import weakref
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.sql import visitors

from archive.db.tables import PROTECTED
from archive.errors import ArchiveError

OPTION = "authorised"
_asked: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_NAMES = re.compile(r"(?<!\w)(?:" + "|".join(sorted(PROTECTED)) + r"|study_name_fts_\w+)(?!\w)", re.IGNORECASE)
_SCHEMA = re.compile(r"\s*(?:PRAGMA|CREATE|ALTER|DROP|REINDEX|ANALYZE|COMMENT|VACUUM)\b(?!.*\bSELECT\b)", re.IGNORECASE | re.DOTALL)
_QUOTED = re.compile(r"'(?:[^']|'')*'|(\"[^\"]*\")")
_DEVIOUS = re.compile(r"\\|\$\w*\$|/\*|--")
"""Escapes, dollar quotes and comments, in which a quote may be something else: nothing counts as a literal then."""


class NakedQuery(ArchiveError):
    """A statement on a protected table without a token: a fault of the program, never of the caller."""

    code = "naked-query"


@dataclass(frozen=True, slots=True)
class Token:
    """Proof that a statement was authorised; `reason` says by what (a scope, or which internal work)."""

    reason: str


def install(engine: sa.Engine) -> None:
    """Make every connection of `engine` refuse naked queries."""
    event.listen(engine, "before_execute", _before_execute)
    event.listen(engine, "before_cursor_execute", _before_cursor_execute)


def _before_execute(
    connection: sa.Connection, clause: Any, multiparams: Any, params: Any, options: Any  # noqa: ARG001 # SQLAlchemy's signature
) -> None:
    if isinstance(options.get(OPTION), Token):
        return
    if isinstance(clause, sa.DDL | sa.schema.ExecutableDDLElement):
        return
    table = _protected_table(clause)
    if table:
        message = f"a statement on {table} has no token"
        raise NakedQuery(message)


def _protected_table(clause: Any) -> str:
    """Return a protected table the statement names, or nothing; asked once for a statement that is built once."""
    try:
        return _asked[clause]
    except (KeyError, TypeError):
        pass
    elements = visitors.iterate(clause) if hasattr(clause, "get_children") else ()
    found = next((one.name for one in elements if isinstance(one, sa.TableClause) and one.name in PROTECTED), "")
    with suppress(TypeError):  # what cannot be kept is looked at again
        _asked[clause] = found
    return found


def _before_cursor_execute(
    connection: sa.Connection, cursor: Any, sql: str, parameters: Any, context: Any, many: bool  # noqa: ARG001 # as above
) -> None:
    options = context.execution_options if context is not None else connection.get_execution_options()
    if isinstance(options.get(OPTION), Token):
        return
    if touches_protected(sql):
        message = "SQL on a protected table has no token"
        raise NakedQuery(message)


@lru_cache(maxsize=4096)
def touches_protected(sql: str) -> bool:
    """Whether a statement other than of the schema names a protected table; string literals do not count."""
    if not _NAMES.search(sql) or _SCHEMA.match(sql):
        return False
    return bool(_DEVIOUS.search(sql) or _NAMES.search(_QUOTED.sub(lambda found: found[1] or "", sql)))
