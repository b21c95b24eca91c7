"""Webhooks are what the ledger's events say: one slipped in, or made another, tells somebody else what its owner sees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from archive.db.tables import datastore, principal, webhook
from archive.ledger.audit import Kind
from archive.ledger.log import AuditFilter
from archive.services.core import Core
from archive.services.retrace import Found, bodies

_W = webhook.c
_HOOKS = (
    sa.select(_W.id, _W.url, _W.principal_id, _W.removed_at, principal.c.name.label("owner"), datastore.c.name.label("datastore"))
    .outerjoin(principal, principal.c.id == _W.principal_id).outerjoin(datastore, datastore.c.id == _W.datastore_id)
)
LOST = "index, ledger and access"
"""What an event `rebuilt` says of an index that was lost."""


def hooked(core: Core, tx: sa.Connection) -> Iterator[Found]:
    """Yield webhooks that no event added, that say otherwise than theirs, that came back, ended by none or are gone."""
    told, ended, lost = _told(core, tx)
    for row in tx.execute(_HOOKS).mappings():
        number, said = row["id"], told.pop(row["id"], None)
        if said is None:
            yield "V12", f"the webhook {number} was added by no event", ""
            continue
        owners = {said["owner"], f"{said['owner']}/{row['principal_id']}"}  # as a user is called once removed
        if (row["url"], row["datastore"]) != (said["url"], said["datastore"]) or row["owner"] not in owners:
            yield "V12", f"the webhook {number} is not the one that was added", ""
        if (number in ended) != (row["removed_at"] is not None):
            yield "V12", f"the webhook {number} counts, or ended, and no event says so", ""
    for number in told.keys() - lost:
        yield "V12", f"the webhook {number} is gone", ""


def _told(core: Core, tx: sa.Connection) -> tuple[dict[int, dict[str, Any]], set[int], set[int]]:
    """Return what was added, which of it was removed, and which a lost index may have lost."""
    told: dict[int, dict[str, Any]] = {}
    ended: set[int] = set()
    lost: set[int] = set()  # a work snapshot may be older than they are
    for event in reversed(list(bodies(core, tx, AuditFilter(kinds=(Kind.WEBHOOK_CHANGED, Kind.REBUILT))))):
        if event.body is None:
            continue
        detail = event.body["detail"]
        what, number = detail.get("what"), detail.get("webhook")
        if event.kind == Kind.REBUILT.label:
            lost |= told.keys() if what == LOST else set()
        elif what == "added":
            told[number] = detail
            ended.discard(number)
            lost.discard(number)
        elif what == "removed":
            ended.add(number)
    return told, ended, lost
