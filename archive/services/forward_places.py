"""How far rules of forwarding have looked, said so that it outlasts a rebuild: ids are numbered anew by it, events are not."""

from __future__ import annotations

import sqlalchemy as sa

from archive.access import policy
from archive.db import guard
from archive.db.tables import instance

_LAST = 100  # one that was let in late has an early event
_I = instance.c


def first_unseen(tx: sa.Connection, token: guard.Token, seen: int) -> int:
    """Return the event from which on a rule that has looked at ids up to `seen` has not looked at every arrival."""
    unseen = policy.run_as(tx, token, sa.select(sa.func.min(_I.leaf)).where(_I.id > seen)).scalar()
    if unseen is not None:
        return int(unseen)
    last = sa.select(_I.leaf).where(_I.id <= seen).order_by(_I.id.desc()).limit(_LAST).subquery()
    newest_seen = policy.run_as(tx, token, sa.select(sa.func.max(last.c.leaf))).scalar()
    return 0 if newest_seen is None else int(newest_seen) + 1


def seen(tx: sa.Connection, token: guard.Token, first_unseen: int) -> int:
    """Return the id a rule has looked up to: below the first instance that arrived by an event it had not looked at."""
    first = policy.run_as(tx, token, sa.select(sa.func.min(_I.id)).where(_I.leaf >= first_unseen)).scalar()
    if first is not None:
        return int(first) - 1
    return int(policy.run_as(tx, token, sa.select(sa.func.max(_I.id))).scalar() or 0)
