"""Rules on arrival are what the ledger's events say: one slipped in would give grants that look as if they were given rightly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.db.tables import auto_rule, datastore, role, rule_grant
from archive.ledger.audit import Kind
from archive.services.core import Core
from archive.services.retrace import Found, details

_SAID = ("name", "datastore", "priority", "conditions", "subject_id", "role", "level", "lifetime_s", "renew")


def ruled(core: Core, tx: sa.Connection) -> Iterator[Found]:
    """Yield rules that no event added, that say otherwise than theirs or are gone, and grants said to be of another rule."""
    told = _told(core, tx)
    query = (
        sa.select(auto_rule, datastore.c.name.label("datastore"), role.c.name.label("role"))
        .outerjoin(datastore, datastore.c.id == auto_rule.c.datastore_id).outerjoin(role, role.c.id == auto_rule.c.role_id)
    )
    rows = {row["id"]: row for row in tx.execute(query).mappings()}
    for number, one in told.items():
        row = rows.get(number)
        if row is None:
            if not one["removed"]:
                yield "V12", f"the rule {number} is gone", ""
            continue
        stands = {name: row[name] for name in (*_SAID, "enabled")}
        if stands | {"removed": row["removed_at"] is not None} != one:
            yield "V12", f"the rule {number} is not the one that was added", ""
    for number in rows.keys() - told.keys():
        yield "V12", f"the rule {number} was added by no event", ""
    given = {event["id"]: event["rule"] for event in details(core, tx, Kind.GRANTED) if "rule" in event}
    there = {row.grant_id: row.rule_id for row in tx.execute(sa.select(rule_grant))}
    for number in given.keys() | there.keys():
        if given.get(number) != there.get(number):
            yield "V12", f"grant {number} is of another rule than gave it", ""


def _told(core: Core, tx: sa.Connection) -> dict[int, dict[str, Any]]:
    """Return the rules after the last event about each."""
    told: dict[int, dict[str, Any]] = {}
    for event in reversed(list(details(core, tx, Kind.RULE_CHANGED))):
        what, number = event.get("what"), event.get("rule")
        if what == "added":
            told[event["rule"]] = {name: event[name] for name in _SAID} | {"enabled": True, "removed": False}
        elif number in told and what in ("enabled", "disabled"):
            told[number]["enabled"] = what == "enabled"
        elif number in told and what == "removed":
            told[number] |= {"enabled": False, "removed": True, "name": f"{event['name']}/{number}"}
    return told


def later(tx: sa.Connection, said: dict[str, Any], at: datetime, tell: Callable[[Kind, dict[str, Any]], None]) -> None:
    """Do what an event since the snapshot a rebuild took says: what was taken away is, what was given is told to be ended."""
    what, number = said.get("what"), said.get("rule")
    row = tx.execute(sa.select(auto_rule).where(auto_rule.c.id == number, auto_rule.c.removed_at.is_(None))).first()
    if what == "added" and row is None:
        tell(Kind.RULE_CHANGED, {"what": "removed", "rule": number, "name": said["name"], "because": "lost with the index"})
    elif row is None:
        return
    elif what == "removed":
        values = {"removed_at": at, "enabled": False, "name": f"{row.name}/{row.id}"}
        tx.execute(sa.update(auto_rule).where(auto_rule.c.id == number).values(**values))
    elif what == "disabled":
        tx.execute(sa.update(auto_rule).where(auto_rule.c.id == number).values(enabled=False))
    elif what == "enabled" and not row.enabled:
        tell(Kind.RULE_CHANGED, {"what": "disabled", "rule": number, "name": said["name"], "because": "lost with the index"})
