"""Alerts wait as the ledger's events say: one that was taken away or closed in the database would be seen by nobody.

How far their rules have looked is in no event; that they have, and no further than the log goes, is known.
"""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa

from archive.db.tables import alert, archive_state
from archive.ledger import nodes
from archive.ledger.audit import Kind
from archive.ledger.log import AuditFilter
from archive.services.alert_rules import RULES
from archive.services.alerts import SEEN
from archive.services.core import Core
from archive.services.retrace import Found, bodies
from archive.services.webhook_check import LOST

AT_ONCE = "break-glass"
"""It is raised in the transaction of its event, before anybody looks."""


def waiting(core: Core, tx: sa.Connection) -> Iterator[Found]:
    """Yield alerts that no event acknowledged, and that are gone, closed, or of another rule than was raised; and a look that was moved."""
    told: dict[int, str] = {}
    looked = False
    for event in reversed(list(bodies(core, tx, AuditFilter(kinds=(Kind.ALERT, Kind.REBUILT))))):
        detail = {} if event.body is None else event.body["detail"]
        if event.kind == Kind.REBUILT.label and detail.get("what") == LOST:
            told = {number: rule for number, rule in told.items() if rule in RULES}  # what lasts is found again, as another
            looked = False
        elif detail.get("what") == "raised":
            told[detail["alert"]] = detail["rule"]
            looked |= detail["rule"] in RULES and detail["rule"] != AT_ONCE
        elif detail.get("what") == "acknowledged":
            told.pop(detail["alert"], None)
    rows = {row.id: row for row in tx.execute(sa.select(alert.c.id, alert.c.rule, alert.c.acknowledged_at))}
    for number, rule in told.items():
        row = rows.get(number)
        if row is None:
            yield "V12", f"the alert {number} is gone", ""
        elif row.acknowledged_at is not None or row.rule != rule:
            yield "V12", f"the alert {number} was closed by no event, or is not the one that was raised", ""
    upto = tx.execute(sa.select(archive_state.c.value).where(archive_state.c.name == SEEN)).scalar()
    if upto is None and looked:
        yield "V12", "up to where alerts were looked for is gone: what came before the next look would be seen by nobody", ""
    elif upto is not None and not (upto.isdigit() and int(upto) <= nodes.size(tx)):
        yield "V12", "alerts were looked for further than the log goes: what comes would be seen by nobody", ""
