"""The ledger as a table: record an event in the transaction of its effect, find events again.

Source: docs/format.md 6.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.db.batches import batches
from archive.db.prepared import Prepared
from archive.db.tables import audit_event, ledger_leaf
from archive.errors import LedgerBroken, NotFound
from archive.keys.keyring import Keyring
from archive.ledger import nodes, objects
from archive.ledger.audit import Event, Kind, ObjectRef, body_of, leaf_of
from archive.ledger.bodies import SALT_BYTES, Bodies, commitment, parse

SIZE_LOCK = 0x5374726F6E67  # "Strong": PostgreSQL's advisory lock that gives out leaf numbers
_TURN = Prepared(sa.select(sa.func.pg_advisory_xact_lock(SIZE_LOCK)))
_LEAF = Prepared(sa.insert(ledger_leaf), keys=("n", "data", "hash"))
_EVENT = Prepared(
    sa.insert(audit_event), keys=("n", "at", "kind", "action", "outcome", "principal_id", "peer_id", "instances", "body")
)


@dataclass(frozen=True, slots=True)
class AuditRow:
    """A recorded event; `body` is None when it was erased or its key destroyed."""

    n: int
    at: datetime
    kind: str
    action: str
    outcome: int
    principal_id: int | None
    peer_id: int | None
    instances: int
    body: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which events: every condition that is set must hold; `until` is exclusive, `before` continues an earlier answer."""

    principal_id: int | None = None
    kinds: tuple[Kind, ...] = ()
    obj: ObjectRef | None = None
    since: datetime | None = None
    until: datetime | None = None
    outcome: int | None = None
    actions: tuple[str, ...] = ()
    failed: bool = False
    before: int | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True)
class Draft:
    """What of an event does not depend on its number."""

    event: Event
    at: datetime
    refs: list[bytes]
    body: bytes
    salt: bytes


class Ledger:
    """Records and finds events; stateless but for prepared keys, safe to share between threads."""

    def __init__(self, keyring: Keyring) -> None:
        """Use the pseudonyms and audit keys of an opened keyring."""
        self.keyring = keyring
        self._bodies = Bodies(keyring)

    def draft(self, event: Event, *, at: datetime) -> Draft:
        """Prepare an event of that time, so that recording it takes less of its transaction; to be recorded once."""
        return Draft(event, at, [ref.pseudonym(self.keyring) for ref in event.objects], body_of(event, at), os.urandom(SALT_BYTES))

    def record(self, tx: sa.Connection, event: Event | Draft, *, at: datetime) -> int:
        """Insert the leaf and the audit rows of an event, and return the leaf's number.

        Nothing is recorded unless the caller's transaction commits. On PostgreSQL numbers are given out one transaction at a time,
        from here until the commit, so call this as late as the work allows.
        """
        draft = event if isinstance(event, Draft) else self.draft(event, at=at)
        event, at, refs, body, salt = draft.event, draft.at, draft.refs, draft.body, draft.salt
        self.alone(tx)
        n = nodes.size(tx)
        leaf = leaf_of(event, n, at, refs=refs, commitment=commitment(salt, body), keyring=self.keyring)
        _LEAF.run(tx, {"n": n, "data": leaf, "hash": hashlib.sha256(b"\0" + leaf).digest()})
        subject = event.subject
        _EVENT.run(tx, {
            "n": n, "at": at, "kind": event.kind.label, "action": event.kind.action, "outcome": event.outcome,
            "principal_id": None if subject is None else subject.person.principal_id,
            "peer_id": None if subject is None else subject.peer_id,
            "instances": event.instances, "body": self._bodies.seal(n, salt, body),
        })
        objects.record(tx, n, refs)
        return n

    @staticmethod
    def alone(tx: sa.Connection) -> None:
        """Let nobody else record anything until the transaction ends, as on SQLite, where whoever writes is alone.

        To be called first where what another records meanwhile must be seen before anything is decided.
        """
        if tx.dialect.name == "postgresql":
            _TURN.first(tx, {})

    def search(self, tx: sa.Connection, wanted: AuditFilter) -> list[AuditRow]:
        """Return the events that match, newest first, bodies opened.

        Raises:
            LedgerBroken: a body was changed (V12).
        """
        query = sa.select(audit_event).order_by(audit_event.c.n.desc()).limit(wanted.limit)
        if wanted.principal_id is not None:
            query = query.where(audit_event.c.principal_id == wanted.principal_id)
        if wanted.kinds:
            query = query.where(audit_event.c.kind.in_([kind.label for kind in wanted.kinds]))
        if wanted.obj is not None:
            ref = wanted.obj.pseudonym(self.keyring)
            query = query.where(audit_event.c.n.in_(objects.about(ref)))
        if wanted.since is not None:
            query = query.where(audit_event.c.at >= wanted.since)
        if wanted.until is not None:
            query = query.where(audit_event.c.at < wanted.until)
        if wanted.outcome is not None:
            query = query.where(audit_event.c.outcome == wanted.outcome)
        if wanted.actions:
            query = query.where(audit_event.c.action.in_(wanted.actions))
        if wanted.failed:
            query = query.where(audit_event.c.outcome != 0)
        if wanted.before is not None:
            query = query.where(audit_event.c.n < wanted.before)
        return [
            AuditRow(
                row.n, row.at, row.kind, row.action, row.outcome, row.principal_id, row.peer_id, row.instances,
                self._open(row.n, row.body),
            )
            for row in tx.execute(query)
        ]

    def _open(self, n: int, sealed: bytes | None) -> dict[str, Any] | None:
        if sealed is None:
            return None
        opened = self._bodies.open(n, bytes(sealed))
        return None if opened is None else parse(opened[1])

    def bodies(self, tx: sa.Connection, numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Return what these events say, without those whose body was erased or does not open: verification names those."""
        found: dict[int, dict[str, Any]] = {}
        for some in batches(numbers):
            rows = tx.execute(sa.select(audit_event.c.n, audit_event.c.body).where(audit_event.c.n.in_(some)))
            for n, sealed in rows:
                with suppress(LedgerBroken):
                    if (body := self._open(n, sealed)) is not None:
                        found[n] = body
        return found

    def opening(self, tx: sa.Connection, n: int) -> tuple[bytes, bytes]:
        """Return salt and body of an event: what opens the commitment in its leaf.

        Raises:
            NotFound: no such event, or its body was erased. LedgerBroken.
        """
        sealed = tx.execute(sa.select(audit_event.c.body).where(audit_event.c.n == n)).scalar()
        opened = None if sealed is None else self._bodies.open(n, bytes(sealed))
        if opened is None:
            message = "there is no such event, or its body was erased"
            raise NotFound(message)
        return opened

    def size(self, tx: sa.Connection) -> int:
        """Return the number of leaves."""
        return nodes.size(tx)
