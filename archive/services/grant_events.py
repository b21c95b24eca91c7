"""What the ledger says of a grant: the same whoever gives or ends it (docs/format.md 6.4)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access import grants, lineage
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.errors import InvalidRequest
from archive.ledger.audit import Detail, Event, Kind, ObjectRef
from archive.ledger.log import Ledger

Row = dict[str, Any]


def record(
    ledger: Ledger, tx: sa.Connection, kind: Kind, subject: Subject | None, at: datetime, grant: Row, *, because: str = ""
) -> None:
    """Record that a grant, as `grants.shown` shows it, was given or ended."""
    level, value = grant["level"], grant["object"]
    objects = () if level == "everything" else (ObjectRef(level, value),)
    detail: Detail = {
        "id": grant["id"], "to": grant["subject"], "subject": grant["subject_id"], "effect": grant["effect"], "role": grant["role"] or "",
        "level": level, "datastore": grant["datastore"], "from": grant["from"].isoformat(), "until": grant["until"].isoformat(),
        "modality": grant["conditions"].get("modality", ""), "reason": grant["reason"], "because": because,
    }
    if grant["role"] is None:
        detail["permissions"] = grant["permissions"]
    others = {name: value for name, value in grant["conditions"].items() if name != "modality"}
    more = {
        "kind": "" if grant["kind"] == "standing" else grant["kind"], "depth": grant["delegable"], "conditions": others,
        "need_context": grant["need_context"],
    }
    detail |= {name: value for name, value in more.items() if value}
    if grant["parent"] is not None:
        detail["parent"] = grant["parent"]
    if grant["parent"] is not None or grant["kind"] == "shared":
        detail["giver"] = grant["granted_by"]
    ledger.record(tx, Event(kind, subject=subject, objects=objects, detail=detail), at=at)


def end(
    ledger: Ledger, tx: sa.Connection, subject: Subject, at: datetime, grant_id: int, *, because: str = ""
) -> Row:
    """End a grant and everything that was passed on from it, each with its event, and return it as it is shown."""
    ended = lineage.revoke_tree(tx, grant_id, by=subject.principal_id, at=at)
    shown = {row["id"]: row for row in grants.some(tx, [*ended, grant_id], at=at)}
    for number in ended:
        why = because if number == grant_id else f"grant {grant_id} was ended" + (f": {because}" if because else "")
        record(ledger, tx, Kind.REVOKED, subject, at, shown[number], because=why)
    return shown[grant_id]


def check_depth(depth: int, permissions: int, *, deny: bool = False) -> None:
    """Refuse a number of times a grant may be passed on that it cannot be.

    Raises:
        InvalidRequest.
    """
    if not 0 <= depth <= lineage.DEEPEST:
        message = f"a grant can be passed on 0 to {lineage.DEEPEST} times"
        raise InvalidRequest(message, remedy="name a smaller number with --delegable")
    if depth and (deny or not permissions & Permission.DELEGATE):
        message = "what denies, or lacks the permission delegate, cannot be passed on"
        raise InvalidRequest(message, remedy="grant a role that holds delegate, such as radiologist")
