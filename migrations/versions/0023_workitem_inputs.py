"""Workitems name the studies they take in, and no longer those of their requests and outputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"

INPUTS, STUDY_INSTANCE_UID = "00404021", "0020000D"
AT_A_TIME = 500

WORKITEM = sa.table("workitem", sa.column("id", sa.BigInteger), sa.column("dataset", sa.JSON))
NAMED = sa.table("workitem_study", sa.column("workitem_pk", sa.BigInteger), sa.column("study_instance_uid", sa.Text))


def named(items: list[dict[str, Any] | None]) -> Iterator[str]:
    """Yield every Study Instance UID in items of a sequence, at any depth."""
    for tag, element in ((tag, element) for item in items for tag, element in (item or {}).items()):
        if tag == STUDY_INSTANCE_UID:
            yield from element.get("Value") or []
        elif element.get("vr") == "SQ":
            yield from named(element.get("Value") or [])


def upgrade() -> None:
    """Take away the rows of other studies: who may not see those would no longer see a workitem that is theirs."""
    connection, last = op.get_bind(), 0
    some = sa.select(WORKITEM).where(WORKITEM.c.id.in_(sa.select(NAMED.c.workitem_pk))).order_by(WORKITEM.c.id).limit(AT_A_TIME)
    while rows := connection.execute(some.where(WORKITEM.c.id > last)).all():
        for row in rows:
            taken_in = set(named((row.dataset.get(INPUTS) or {}).get("Value") or []))
            mine = connection.execute(sa.select(NAMED.c.study_instance_uid).where(NAMED.c.workitem_pk == row.id)).scalars().all()
            for uid in set(mine) - taken_in:
                connection.execute(sa.delete(NAMED).where(NAMED.c.workitem_pk == row.id, NAMED.c.study_instance_uid == uid))
        last = rows[-1].id
