"""Alerts wait as the ledger's events say: one that was taken away or closed in the database would be seen by nobody."""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa

from archive.db.tables import alert
from archive.ledger.audit import Kind
from archive.ledger.log import AuditFilter
from archive.services.alert_rules import RULES
from archive.services.core import Core
from archive.services.retrace import Found, bodies
from archive.services.webhook_check import LOST


def waiting(core: Core, tx: sa.Connection) -> Iterator[Found]:
    """Yield alerts that nobody has acknowledged by an event, and that are gone, closed, or of another rule than was raised."""
    told: dict[int, str] = {}
    for event in reversed(list(bodies(core, tx, AuditFilter(kinds=(Kind.ALERT, Kind.REBUILT))))):
        detail = {} if event.body is None else event.body["detail"]
        if event.kind == Kind.REBUILT.label and detail.get("what") == LOST:
            told = {number: rule for number, rule in told.items() if rule in RULES}  # what lasts is found again, as another
        elif detail.get("what") == "raised":
            told[detail["alert"]] = detail["rule"]
        elif detail.get("what") == "acknowledged":
            told.pop(detail["alert"], None)
    rows = {row.id: row for row in tx.execute(sa.select(alert.c.id, alert.c.rule, alert.c.acknowledged_at))}
    for number, rule in told.items():
        row = rows.get(number)
        if row is None:
            yield "V12", f"the alert {number} is gone", ""
        elif row.acknowledged_at is not None or row.rule != rule:
            yield "V12", f"the alert {number} was closed by no event, or is not the one that was raised", ""
