"""What waits to be delivered, as far as the ledger's events say: a report goes to whom it was promised, until an event says it was taken.

What is queued to be forwarded is in no event; whatever its row says it goes where its rule does, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import sqlalchemy as sa

from archive.db.tables import commitment, delivery, forward_rule
from archive.ledger.audit import Kind
from archive.ledger.log import AuditFilter
from archive.services.commitment_rows import REPORTED, REQUESTED, replaced
from archive.services.core import Core
from archive.services.deliveries import DONE, FAILED, FORWARD, REJECTED, REPORT, WAITING
from archive.services.retrace import Found, bodies
from archive.services.webhook_check import LOST

_C, _D, _R = commitment.c, delivery.c, forward_rule.c
_RECEIPT = "storage-commitment"
_COUNT = sa.select(sa.func.count())
_STRAY = _COUNT.select_from(delivery.outerjoin(forward_rule, _R.id == _D.rule_id)).where(_D.kind == FORWARD, sa.or_(
    _R.id.is_(None), _D.instance_pk.is_(None), _D.commitment_id.is_not(None), _D.state.not_in([WAITING, DONE, FAILED, REJECTED]),
))
_ODD = _COUNT.select_from(delivery).where(sa.or_(_D.kind.not_in([REPORT, FORWARD]), sa.and_(_D.kind == REPORT, sa.or_(
    _D.commitment_id.is_(None), _D.state.not_in([WAITING, DONE, FAILED]),
))))
_REPORTS = (
    sa.select(_C.id, _C.leaf, _C.peer_id, _C.calling_ae_title, _C.reported_at, replaced().label("replaced"), _D.id.label("delivery"),
              _D.peer_id.label("to"), _D.ae_title, _D.state)
    .outerjoin(delivery, sa.and_(_D.commitment_id == _C.id, _D.kind == REPORT)).where(_C.state == "checked").order_by(_C.id, _D.id)
)


@dataclass(slots=True)
class _Promised:
    """Which receipts there are, by event: to which peer; which were taken; and which nobody waits for any more."""

    to: dict[int, int | None] = field(default_factory=dict)
    taken: set[int] = field(default_factory=set)
    over: set[int] = field(default_factory=set)


def queued(core: Core, tx: sa.Connection) -> Iterator[Found]:
    """Yield deliveries by no rule, reports that no event promised, that go elsewhere than was asked or are gone, and such as wait again."""
    for query, what in ((_STRAY, "are to be forwarded by no rule, or nothing"), (_ODD, "report nothing that was promised")):
        if count := tx.execute(query).scalar_one():
            yield "V12", f"{count} deliveries {what}", ""
    rows = tx.execute(_REPORTS).all()
    told = _promised(core, tx)
    for row in rows:
        what = f"the report of the promise {row.leaf}"
        if row.leaf not in told.to:
            yield "V12", f"{what} was promised by no event", ""
        elif row.delivery is not None and (
            (row.to, row.ae_title) != (row.peer_id, row.calling_ae_title) or told.to[row.leaf] not in (None, row.to)
        ):
            yield "V12", f"{what} goes to another than asked for it", ""
        elif row.leaf in told.taken and row.delivery is not None and row.state != DONE:
            yield "V12", f"{what} waits again, although it was taken", ""
        elif row.leaf not in told.taken and not row.replaced and (row.state not in (WAITING, FAILED) or row.reported_at is not None):
            yield "V12", f"{what} is gone, or was taken by no event", ""
    for leaf in told.to.keys() - {row.leaf for row in rows} - told.taken - told.over:
        yield "V12", f"the report of the promise {leaf} is gone, or was taken by no event", ""


def _promised(core: Core, tx: sa.Connection) -> _Promised:
    said = _Promised()
    last: dict[tuple[int | None, str], int] = {}
    for event in reversed(list(bodies(core, tx, AuditFilter(kinds=(Kind.COMMITTED, Kind.REBUILT))))):
        detail = {} if event.body is None else event.body["detail"]
        what, asked = detail.get("what"), (event.principal_id, str(detail.get("transaction_uid")))
        if event.kind == Kind.REBUILT.label:
            said.over |= said.to.keys() if what == LOST else set()
        elif event.body is None:
            said.to[event.n] = event.peer_id  # erased: a receipt, as far as anybody knows, that nobody misses
            said.over.add(event.n)
        elif what == _RECEIPT:
            said.to[event.n] = event.peer_id
            last[asked] = event.n
        elif what == REQUESTED and asked in last:
            said.over.add(last[asked])
        elif what == REPORTED:
            said.taken.add(detail["checked"])
    return said
