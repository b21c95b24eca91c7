"""Grants that were passed on: one counts only where every grant it stands on does, for whoever passed it on.

So what somebody sees through a delegated grant is never more than each of its givers sees through the grant they passed on, at any
moment: a window that ends, a group that is left, an account switched off, a study that moves to another patient or a deny of a giver ends
it in the next statement, and nothing has to be swept. Clause by clause: docs/access.md.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement, FromClause

from archive.access import predicate
from archive.access.shape import Shape
from archive.db import tables
from archive.db.tables import grants

DEEPEST = 5
"""How many times a grant may be passed on."""

_LINK, _FIRST = tables.grant_lineage.alias("passed_on"), tables.grant_lineage.alias("passed_on_last")
_ABOVE, _PASSER = tables.grants.alias("passed_on_from"), tables.principal.alias("passer")
_AGAINST = tables.grants.alias("passer_deny")
_MEMBERSHIP, _GROUP = tables.membership.alias("passer_membership"), tables.principal.alias("passer_group")
_ALLOW, _DENY, _NOTHING = (sa.literal_column(number, sa.BigInteger()) for number in ("1", "0", "0"))


def unbroken(g: FromClause, se: FromClause, need: ColumnElement[int], shape: Shape) -> ColumnElement[bool]:
    """A grant nobody passed on; else each it stands on covers the series with every bit wanted, and its giver is denied none of them."""
    a, d, link = _ABOVE, _AGAINST, _LINK
    holds = _standing(link, shape).where(
        *_covering(a, se),
        a.c.permissions.bitwise_and(need) == need,
        predicate.context_suffices(a, shape),
        sa.not_(sa.exists(
            sa.select(1).select_from(d).where(
                _is_passer(d.c.subject_id, link, shape),
                d.c.effect == _DENY,
                predicate.not_revoked(d),
                predicate.in_window(d, shape),
                *_covering(d, se),
                d.c.permissions.bitwise_and(need) != _NOTHING,
            ).correlate(link, se)
        )),
    ).correlate(link, se)
    return _every_link(g, holds)


def standing(g: FromClause, shape: Shape) -> ColumnElement[bool]:
    """A grant nobody passed on; else each it stands on still counts for its giver, whatever it covers."""
    return _every_link(g, _standing(_LINK, shape).correlate(_LINK))


def _every_link(g: FromClause, holds: sa.Select[tuple[int]]) -> ColumnElement[bool]:
    # The one it was passed on from must be named: a link that is gone must not open what it closed.
    link, first = _LINK, _FIRST
    linked = sa.select(1).select_from(first).where(first.c.grant_id == g.c.id, first.c.ancestor_id == g.c.parent_id).correlate(g)
    broken = sa.select(1).select_from(link).where(link.c.grant_id == g.c.id, sa.not_(sa.exists(holds))).correlate(g)
    return sa.or_(g.c.parent_id.is_(None), sa.and_(sa.exists(linked), sa.not_(sa.exists(broken))))


def _standing(link: FromClause, shape: Shape) -> sa.Select[tuple[int]]:
    """The grant of a link, when it allows, counts now and is its giver's, whose account counts."""
    a, p = _ABOVE, _PASSER
    return sa.select(1).select_from(a.join(p, p.c.id == link.c.giver_id)).where(
        a.c.id == link.c.ancestor_id,
        a.c.effect == _ALLOW,
        predicate.not_revoked(a),
        predicate.in_window(a, shape),
        _is_passer(a.c.subject_id, link, shape),
        p.c.enabled == sa.true(),
        p.c.removed_at.is_(None),
    )


def _covering(g: FromClause, se: FromClause) -> tuple[ColumnElement[bool], ...]:
    return (
        predicate.in_datastore(g, se), predicate.modality_fits(g, se), predicate.department_fits(g, se), predicate.date_fits(g, se),
        predicate.scope_covers(g, se),
    )


def _is_passer(principal_id: ColumnElement[int], link: FromClause, shape: Shape) -> ColumnElement[bool]:
    """Whoever passed it on, or a group they are a member of now."""
    m, p = _MEMBERSHIP, _GROUP
    group = sa.select(1).select_from(m.join(p, p.c.id == m.c.group_id)).where(
        m.c.group_id == principal_id,
        m.c.principal_id == link.c.giver_id,
        predicate.membership_is_live(m, shape),
        predicate.group_is_enabled(p),
    ).correlate(link, principal_id.table)
    return sa.or_(principal_id == link.c.giver_id, sa.exists(group))


# --- the rows -----------------------------------------------------------------------------------------------------------------------------


def link(tx: sa.Connection, grant_id: int, parent_id: int, giver_id: int) -> None:
    """Note what a grant stands on: the one it was passed on from, and all that one stands on."""
    above = tables.grant_lineage
    inherited = tx.execute(sa.select(above.c.ancestor_id, above.c.giver_id).where(above.c.grant_id == parent_id)).all()
    stands_on = [(parent_id, giver_id), *((row.ancestor_id, row.giver_id) for row in inherited)]
    tx.execute(sa.insert(above), [{"grant_id": grant_id, "ancestor_id": one, "giver_id": who} for one, who in stands_on])


def givers(tx: sa.Connection, grant_id: int) -> set[int]:
    """Return everybody who passed on what a grant stands on."""
    found = tx.execute(sa.select(tables.grant_lineage.c.giver_id).where(tables.grant_lineage.c.grant_id == grant_id)).scalars()
    return set(found)


def resting(tx: sa.Connection, ids: set[int], *, at: datetime) -> set[int]:
    """Return those of some grants that do not count at `at` because one they stand on does not."""
    shape = Shape()
    passed = sa.select(grants.c.id).where(grants.c.parent_id.is_not(None), sa.not_(standing(grants, shape)))
    found: set[int] = set()
    for start in range(0, len(ids), 500):
        chosen = passed.where(grants.c.id.in_(sorted(ids)[start:start + 500]))
        found |= set(tx.execute(chosen, shape.at(at)).scalars())
    return found


def revoke_tree(tx: sa.Connection, grant_id: int, *, by: int, at: datetime) -> list[int]:
    """End a grant and all that was passed on from it, at once and for good; return those that were not revoked before, oldest first."""
    tree = sa.select(grants.c.id).where(grants.c.id == grant_id).cte("tree", recursive=True)
    below = grants.alias("below")
    tree = tree.union_all(sa.select(below.c.id).join(tree, below.c.parent_id == tree.c.id))
    ended: Any = (
        sa.update(grants).where(grants.c.id.in_(sa.select(tree.c.id)), grants.c.revoked_at.is_(None))
        .values(revoked_at=at, revoked_by=by).returning(grants.c.id)
    )
    return sorted(tx.execute(ended).scalars())
