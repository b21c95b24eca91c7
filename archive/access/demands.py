"""What roles ask of how their holders sign in: a second factor, and sessions shorter than the archive's."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy import bindparam

from archive.access.sessions import Lifetime
from archive.db.prepared import Prepared
from archive.db.tables import credential, factor, grants, membership, principal, role, role_assignment, session
from archive.db.types import Instant
from archive.errors import InvalidRequest

LONGEST_S = 366 * 86400
_AT = bindparam("at", type_=Instant)


def _held(who: sa.ColumnElement[int]) -> sa.ColumnElement[bool]:
    """Whether a principal has the role of the row, by assignment or by a grant that allows, itself or through a group."""
    m, a, g = membership.c, role_assignment.c, grants.c
    group = principal.alias("demanding_group")
    groups = (
        sa.select(m.group_id).join(group, group.c.id == m.group_id)
        .where(m.principal_id == who, m.not_before <= _AT, m.not_after > _AT, group.c.enabled == sa.true())
    )
    assigned = sa.select(a.id).where(
        a.role_id == role.c.id, sa.or_(a.principal_id == who, a.principal_id.in_(groups)), a.revoked_at.is_(None),
        a.not_before <= _AT, a.not_after > _AT,
    ).correlate(role)
    granted = sa.select(g.id).where(
        g.role_id == role.c.id, sa.or_(g.subject_id == who, g.subject_id.in_(groups)), g.effect == 1, g.revoked_at.is_(None),
        g.not_before <= _AT, g.not_after > _AT,
    ).correlate(role)
    return sa.or_(assigned.exists(), granted.exists())


_WHO = bindparam("who", type_=sa.BigInteger)
_OF = Prepared(
    sa.select(role.c.mfa_level, role.c.idle_s, role.c.max_session_s)
    .where(sa.or_(role.c.mfa_level > 0, role.c.idle_s > 0, role.c.max_session_s > 0), _held(_WHO))
)
_STANDING = Prepared(
    sa.select(
        session.c.auth_level, session.c.authn_at,
        sa.select(credential.c.id).where(
            credential.c.principal_id == session.c.principal_id, credential.c.kind == "password", credential.c.must_change == sa.true(),
        ).correlate(session).exists().label("must_change"),
        sa.select(factor.c.id).where(factor.c.principal_id == session.c.principal_id, factor.c.confirmed_at.is_not(None))
        .correlate(session).exists().label("has_factor"),
        sa.select(role.c.id).where(role.c.mfa_level > 0, _held(_WHO)).exists().label("demanded"),
    ).where(session.c.id == bindparam("session"), session.c.principal_id == _WHO)
)


@dataclass(frozen=True, slots=True)
class Demands:
    """What the roles of a principal come to together."""

    second_factor: bool
    lifetime: Lifetime


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a session has come: what its user owes first, and when they last proved who they are."""

    level: int
    authn_at: datetime
    must_change: bool
    has_factor: bool
    demanded: bool

    @property
    def must_enrol(self) -> bool:
        """Whether a role asks for a second factor that this session did not begin with."""
        return self.demanded and self.level < 2


def of(tx: sa.Connection, principal_id: int, lifetime: Lifetime, *, at: datetime) -> Demands:
    """Return the strictest of what the roles of a principal ask, never laxer than `lifetime`."""
    rows = _OF.all(tx, {"who": principal_id, "at": at})
    idle = min([lifetime.idle, *(timedelta(seconds=row.idle_s) for row in rows if row.idle_s)])
    absolute = min([lifetime.absolute, *(timedelta(seconds=row.max_session_s) for row in rows if row.max_session_s)])
    return Demands(any(row.mfa_level for row in rows), Lifetime(min(idle, absolute), absolute))


def standing(tx: sa.Connection, principal_id: int, session_id: int, *, at: datetime) -> Standing | None:
    """Return how far a session has come, None when there is no such session."""
    row = _STANDING.first(tx, {"who": principal_id, "session": session_id, "at": at})
    return None if row is None else Standing(
        row.auth_level, row.authn_at, bool(row.must_change), bool(row.has_factor), bool(row.demanded)
    )


def put(tx: sa.Connection, role_id: int, *, second_factor: bool, idle_s: int, max_session_s: int) -> None:
    """Set what a role asks; 0 seconds: as the archive's configuration says.

    Raises:
        InvalidRequest: a time that is none.
    """
    if not 0 <= idle_s <= LONGEST_S or not 0 <= max_session_s <= LONGEST_S:
        message = "a session lasts between a second and a year"
        raise InvalidRequest(message, remedy="give minutes and hours, 0 for the archive's own limit")
    tx.execute(sa.update(role).where(role.c.id == role_id).values(
        mfa_level=int(second_factor), idle_s=idle_s, max_session_s=max_session_s
    ))
