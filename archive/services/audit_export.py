"""The audit log as JSON Lines: every event with its place in the ledger and what opens its leaf, so that each line can be checked alone.

Source: docs/format.md 6.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from archive.access import policy
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.tables import audit_event, ledger_leaf
from archive.keys.sealing import format_instant
from archive.ledger import nodes
from archive.ledger.audit import Event, Kind
from archive.ledger.bodies import Bodies
from archive.services import denials
from archive.services.core import Core

PAGE = 500
_ENCODE = msgspec.json.Encoder().encode
_ROWS = (
    sa.select(ledger_leaf.c.n, ledger_leaf.c.data, ledger_leaf.c.hash, audit_event.c.body, audit_event.c.at)
    .outerjoin(audit_event, audit_event.c.n == ledger_leaf.c.n)
    .where(ledger_leaf.c.n > sa.bindparam("after"), ledger_leaf.c.n < sa.bindparam("size"))
    .order_by(ledger_leaf.c.n).limit(PAGE)
)


@dataclass(frozen=True, slots=True)
class Span:
    """Which events: after a number, of a time (`until` is exclusive), at most so many."""

    after: int = -1
    since: datetime | None = None
    until: datetime | None = None
    limit: int | None = None


class AuditExport:
    """Streams events, oldest first; needs the permission audit, or the console."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core

    def lines(self, subject: Subject, span: Span) -> Iterator[bytes]:
        """Yield lines; the export is an event, committed before the first of them. The last line says where to go on.

        Raises:
            Forbidden: also on the way, when the permission ends.
            LedgerBroken: a body was changed; no line is made of it.
        """
        core = self._core
        with denials.recorded(core, subject), core.database.read() as tx:
            policy.require(tx, subject, Permission.AUDIT, core.clock())
            size = nodes.size(tx)
        detail = {"what": "export", "after": span.after, "size": size}
        event = Event(Kind.AUDIT_READ, subject=subject, detail=detail)
        with core.database.begin() as tx:
            core.ledger.record(tx, event, at=core.clock())
        return self._lines(subject, span, size)

    def _lines(self, subject: Subject, span: Span, size: int) -> Iterator[bytes]:
        core, bodies = self._core, Bodies(self._core.keyring)
        last, count = span.after, 0
        full = False
        while not full:
            with core.database.read() as tx:
                policy.require(tx, subject, Permission.AUDIT, core.clock())
                rows = tx.execute(_ROWS, {"after": last, "size": size}).all()
            if not rows:
                break
            for row in rows:
                full = span.limit is not None and count >= span.limit
                if full:
                    break
                last = row.n
                if _inside(row.at, span):
                    count += 1
                    yield _line(row, bodies)
        yield _ENCODE({"end": {"next_after": last, "lines": count, "size": size, "complete": not full}}) + b"\n"


def _inside(at: datetime | None, span: Span) -> bool:
    if at is None:
        return span.since is None and span.until is None
    return (span.since is None or at >= span.since) and (span.until is None or at < span.until)


def _line(row: Any, bodies: Bodies) -> bytes:
    """Return one event: leaf and body stand in the line as the bytes that were hashed."""
    opened = None if row.body is None else bodies.open(row.n, bytes(row.body))
    line: dict[str, object] = {
        "n": row.n, "at": None if row.at is None else format_instant(row.at), "hash": bytes(row.hash).hex(),
        "leaf": msgspec.Raw(bytes(row.data)),
        "salt": None if opened is None else opened[0].hex(), "body": None if opened is None else msgspec.Raw(opened[1]),
    }
    return _ENCODE(line) + b"\n"


