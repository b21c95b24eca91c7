"""Whether requests for the approval of a second person stand as their events say (V12, docs/format.md 6.4)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.db.tables import approval
from archive.ledger.audit import Kind
from archive.ledger.log import AuditFilter
from archive.services.core import Core
from archive.services.retrace import Found, bodies

Row = dict[str, Any]
_DECIDED, _ENDED = frozenset({"approved", "refused"}), frozenset({"done", "failed"})


def approved(core: Core, tx: sa.Connection) -> Iterator[Found]:
    """Yield requests that nobody asked for, that say otherwise than their events, or that are gone while they wait."""
    told = _told(core, tx)
    at = core.clock()
    for row in tx.execute(sa.select(approval)).mappings():
        said = told.pop(row["id"], None)
        if said is None:
            yield "V12", f"request {row['id']} for approval was made by no event", ""
            continue
        now: Row = {
            "operation": row["operation"], "sha256": bytes(row["arguments_sha256"]).hex(), "until": row["expires_at"].isoformat(),
            "asked_by": row["asked_by"], "decision": row["decision"], "decided_by": row["decided_by"],
            "outcome": row["outcome"], "reason": row["reason"],
        }
        # What was cut short between being taken up and its end is neither done nor failed.
        taken_up = row["done_at"] is None or said["decision"] == "approved"
        if now != said or (row["done_at"] is None and bool(said["outcome"])) or not taken_up:
            yield "V12", f"request {row['id']} for approval is not as it was asked and decided", ""
    for number, said in told.items():
        if not said["decision"] and datetime.fromisoformat(said["until"]) > at:
            yield "V12", f"request {number} for approval is gone", ""


def _told(core: Core, tx: sa.Connection) -> dict[int, Row]:
    """Return what events say of each request: of those since the index was made anew, for what waited then was lost and is asked again."""
    told: dict[int, Row] = {}
    later: dict[int, Row] = {}
    for event in bodies(core, tx, AuditFilter(kinds=(Kind.APPROVAL, Kind.REBUILT))):
        if event.body is None:
            continue
        detail = event.body["detail"]
        if event.kind == Kind.REBUILT.label:
            if detail.get("what") == "index, ledger and access":
                break
            continue
        number, what, who = detail["approval"], detail["what"], event.body.get("subject", {}).get("principal")
        if number in told:
            continue  # an earlier one of that number
        said = later.setdefault(number, {"decision": "", "decided_by": None, "outcome": ""})
        if what in _ENDED:
            said["outcome"] = said["outcome"] or what
        elif what in _DECIDED:
            said |= {"decision": what, "decided_by": who}
        elif what == "asked":
            told[number] = later.pop(number) | {
                "operation": detail["operation"], "sha256": detail["sha256"], "until": detail["until"], "asked_by": who,
                "reason": detail["reason"][:2000],
            }
    return told
