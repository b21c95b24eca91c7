"""What devices and people were told is kept although it is no part of an instance, done again from what was sealed of it.

Each such answer is preceded by an event record (docs/format.md 2.6), so a lost index does not lose it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.db.tables import datastore
from archive.errors import DigestMismatch
from archive.ledger.audit import Kind
from archive.ledger.log import AuditFilter
from archive.services import commitment_rows, mpps, retrace, state_events, workitems, worklist_rows
from archive.services.core import Core

KINDS = {
    state_events.STEP: Kind.PROCEDURE_STEP, state_events.ENTRY: Kind.WORKLIST_CHANGED, state_events.WORKITEM: Kind.WORKITEM_CHANGED,
    state_events.COMMITMENT: Kind.COMMITTED,
}
"""The word in a record, and the kind of its event."""
LABELS = frozenset(kind.label for kind in KINDS.values())

_REDO = {state_events.ENTRY: worklist_rows.redo, state_events.WORKITEM: workitems.redo}


def detail(change: dict[str, Any]) -> dict[str, Any]:
    """Return what the event of a record says besides, when it is recorded again.

    Raises:
        DigestMismatch: it is in a form that is not known here.
    """
    if change["change"] not in KINDS:
        return {}
    said = {"what": change.get("what", "changed"), "uid": change.get("uid", "")}
    try:
        return said | (commitment_rows.receipt(change) if change["change"] == state_events.COMMITMENT else {})
    except (KeyError, ValueError, TypeError):
        raise _unknown() from None


def reported(core: Core, tx: sa.Connection) -> None:
    """Note the reports that were taken, as the ledger says, so that they are not sent again."""
    rows = retrace.bodies(core, tx, AuditFilter(kinds=(Kind.COMMITTED,)))
    said = [(row.at, row.body["detail"]) for row in rows if row.body is not None]
    commitment_rows.reported(tx, [(one["checked"], at) for at, one in said if one.get("what") == commitment_rows.REPORTED])


def redo(tx: sa.Connection, change: dict[str, Any], leaf: int, *, late: datetime | None = None) -> None:
    """Do again what a record says; `late` is when it was sealed, where the ledger does not say what came before it and what after.

    Raises:
        DigestMismatch: it is of a datastore or in a form that is not known here.
    """
    try:
        place = tx.execute(sa.select(datastore.c.id).where(datastore.c.uid == bytes.fromhex(change["datastore"]))).scalar_one()
        if change["change"] == state_events.COMMITMENT:
            commitment_rows.redo(tx, place, change, leaf)
        elif change["change"] == state_events.STEP:
            mpps.redo(tx, place, change)
        else:
            _REDO[change["change"]](tx, place, change, late=late)
    except (KeyError, ValueError, TypeError, sa.exc.NoResultFound):
        raise _unknown() from None


def _unknown() -> DigestMismatch:
    message = "a sealed record of the worklist is not one this release knows"
    return DigestMismatch(message, verdict="V11", remedy="install the release that wrote it")
