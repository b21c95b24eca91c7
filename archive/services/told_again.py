"""What only the ledger says after an index was lost: alerts nobody has acknowledged, and reviews closed since the last snapshot.

Alerts are in no snapshot; of a review a snapshot may know that it was open. Their events say what is needed to put them back.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.db.copies import number_on
from archive.db.tables import access_review, access_review_item, alert, archive_state, audit_event
from archive.ledger.audit import Kind
from archive.ledger.log import AuditFilter, AuditRow
from archive.services import retrace
from archive.services.alert_rules import RULES
from archive.services.alerts import SEEN
from archive.services.core import Core

OF_NOBODY = frozenset({"spraying", "certificate-mismatch", "integrity", "audit-gap", "witness-silent", "witness-against"})
_SAID = frozenset({"what", "alert", "rule", "event", "objects"})
_A, _R = alert.c, access_review.c


def put_back(core: Core, tx: sa.Connection) -> tuple[int, int]:
    """Put back what the ledger knows and return how many alerts and how many closed reviews; principals are there already.

    Raises:
        DatabaseUnavailable.
    """
    done = _alerts(core, tx), _reviews(core, tx)
    number_on(tx, (alert, access_review))
    return done


def _of(core: Core, tx: sa.Connection, kind: Kind) -> list[AuditRow]:
    """Return the events of a kind, oldest first; of alerts and reviews there are few."""
    return list(retrace.bodies(core, tx, AuditFilter(kinds=(kind,))))[::-1]


def _alerts(core: Core, tx: sa.Connection) -> int:
    """Put back those that tell of an event; what tells of a state that lasts is found again within the hour."""
    waiting: dict[int, AuditRow] = {}
    last = -1
    for row in _of(core, tx, Kind.ALERT):
        said: dict[str, Any] = (row.body or {}).get("detail", {})
        if said.get("what") == "raised":
            waiting[said["alert"]] = row
            last = max(last, said["event"]) if said["rule"] in RULES else last
        elif said.get("what") == "acknowledged":
            waiting.pop(said["alert"], None)
    there = set(tx.execute(sa.select(_A.id)).scalars())
    count = 0
    for number, row in waiting.items():
        assert row.body is not None  # it was opened above
        said = row.body["detail"]
        if number in there or said["rule"] not in RULES:
            continue
        who = None if said["rule"] in OF_NOBODY else _who(tx, said["event"])
        tx.execute(sa.insert(alert).values(
            id=number, rule=said["rule"], about="" if who is None else str(who), severity=RULES[said["rule"]][0], principal_id=who,
            detail={name: value for name, value in said.items() if name not in _SAID}, first_event=said["event"],
            last_event=said["event"], raised_at=row.at, updated_at=row.at,
        ))
        count += 1
    seen = sa.select(archive_state.c.name).where(archive_state.c.name == SEEN)
    if last >= 0 and tx.execute(seen).first() is None:  # what was told before is not told again, and what came later is
        tx.execute(sa.insert(archive_state).values(name=SEEN, value=str(last + 1)))
    return count


def _who(tx: sa.Connection, event: int) -> int | None:
    return tx.execute(sa.select(audit_event.c.principal_id).where(audit_event.c.n == event)).scalar()


def _reviews(core: Core, tx: sa.Connection) -> int:
    count = 0
    for row in _of(core, tx, Kind.ACCESS_REVIEWED):
        said: dict[str, Any] = (row.body or {}).get("detail", {})
        if said.get("what") != "closed":
            continue
        number, started_at = said["review"], datetime.fromisoformat(said["started_at"])
        values = {"closed_by": row.principal_id, "closed_at": row.at, "leaf": row.n}
        there = tx.execute(sa.select(_R.started_at, _R.closed_at).where(_R.id == number)).first()
        if there is None:
            tx.execute(sa.insert(access_review).values(
                id=number, title=said["title"], chosen=said["chosen"], started_by=row.principal_id, started_at=started_at,
                due_at=datetime.fromisoformat(said["due"]), **values,
            ))
        elif there.closed_at is None and there.started_at == started_at:
            tx.execute(sa.update(access_review).where(_R.id == number).values(**values))
            tx.execute(sa.delete(access_review_item).where(access_review_item.c.review_id == number))
        else:
            continue
        count += 1
    return count
