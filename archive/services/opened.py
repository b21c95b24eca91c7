"""Whether every break-glass stands as its events say: none is gone, none counts as reviewed that was not (V12, docs/format.md 6.4)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.db.copies import number_on
from archive.db.tables import break_glass
from archive.ledger.audit import Kind
from archive.services.core import Core
from archive.services.retrace import Found, details

KINDS = (Kind.BREAK_GLASS_STARTED, Kind.BREAK_GLASS_STOPPED, Kind.BREAK_GLASS_REVIEWED)


def later(tx: sa.Connection, kind: Kind, said: dict[str, Any], at: datetime) -> None:
    """Take in an event that came after a snapshot of access: what was opened still waits for its review."""
    b = break_glass.c
    if kind is Kind.BREAK_GLASS_REVIEWED:
        values = {"reviewed_at": at, "verdict": said["verdict"], "note": said["note"]}
        tx.execute(sa.update(break_glass).where(b.id == said["id"]).values(values))
    elif kind is Kind.BREAK_GLASS_STOPPED:
        tx.execute(sa.update(break_glass).where(b.id == said["id"], b.ended_at.is_(None)).values(ended_at=at))
    elif tx.execute(sa.select(b.id).where(b.id == said["id"])).first() is None:
        level, value = said["objects"][0]
        kept = {name: said[name] for name in ("id", "datastore", "issuer", "reason_code", "reason")}
        tx.execute(sa.insert(break_glass), {
            **kept, "principal_id": said["principal"], "level": level, "object": value, "grant_ids": said["grants"], "started_at": at,
            "ends_at": datetime.fromisoformat(said["until"]),
        })
        number_on(tx, (break_glass,))


def opened(core: Core, tx: sa.Connection) -> Iterator[Found]:
    """Yield rows that no event made, that say otherwise than theirs, or that are gone."""
    started = {row["id"]: row for row in details(core, tx, Kind.BREAK_GLASS_STARTED) if "id" in row}
    verdicts = {row["id"]: row["verdict"] for row in details(core, tx, Kind.BREAK_GLASS_REVIEWED)}
    there = {row.id: row for row in tx.execute(sa.select(break_glass))}
    for number in sorted(started.keys() - there.keys()):
        yield "V12", f"break-glass {number} is gone", ""
    for number, row in sorted(there.items()):
        said = started.get(number)
        if said is None:
            yield "V12", f"break-glass {number} was opened by no event", ""
            continue
        now = (row.principal_id, row.level, row.issuer, row.datastore, row.reason_code, row.reason, row.ends_at.isoformat(), row.grant_ids)
        told = tuple(said.get(name) for name in ("principal", "level", "issuer", "datastore", "reason_code", "reason", "until", "grants"))
        if now != told or [row.level, row.object] not in said["objects"]:
            yield "V12", f"break-glass {number} is not the one that was opened", ""
        if row.verdict != verdicts.get(number, "") or (row.reviewed_at is not None) != (number in verdicts):
            yield "V12", f"break-glass {number} was reviewed otherwise than its event says", ""
