"""Passing access on: whoever may delegate gives a part of what they have, never more, and it ends with what they have.

What is given stays tied to the grant it came from (access/lineage.py): nothing here has to be undone when that one ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from archive.access import grants, lineage, policy, predicate, principals, roles
from archive.access.grants import Target, Terms
from archive.access.permissions import OBJECT, Permission
from archive.access.shape import Shape
from archive.access.subject import Subject
from archive.db.tables import grants as grant_table
from archive.db.tables import patient, series, study
from archive.errors import Forbidden, InvalidRequest, NotFound
from archive.ledger.audit import Kind
from archive.services import datastores, grant_events
from archive.services.changes import Changes
from archive.services.core import Core
from archive.services.rights import DEFAULT_DATASTORE, Row, When, instant

P = Permission
READING = P.SEARCH | P.METADATA | P.PIXELS
USUAL = timedelta(days=7)
"""How long what is passed on counts, unless said."""

_G = grant_table.c


class Delegation(Changes):
    """What `grant delegate` of the command line and the web do."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        super().__init__(core.database, core.ledger, core.clock, read_only=core.read_only)

    def delegate(
        self, subject: Subject, *, to: str | int, target: Target, permissions: Sequence[str] = (), datastore: str = DEFAULT_DATASTORE,
        since: When = None, until: When = None, depth: int = 0, parent: int | None = None, reason: str = "",
    ) -> Row:
        """Pass on a part of a grant of one's own, or of a group's one is in; seven days unless said, and never longer than that one.

        Raises:
            Forbidden: by a token, to oneself or a group one is in, or no grant that may be passed on covers it.
            NotFound: nobody of that name, or nothing there that one sees. InvalidRequest.
        """
        named = roles.parse(tuple(permissions)) or READING

        def work(tx: sa.Connection, at: datetime) -> Row:
            in_person(subject, "passes access on")
            where = datastores.asked_for(tx, subject, datastore, at)
            keys = covering(tx, subject, where.id, target, named, at)
            above = choose(tx, subject, where.id, keys, named, at, depth=depth, only=parent)
            who = principals.find(tx, to, ("user", "service", "group"))
            end = instant(until, at) or min(at + USUAL, above["not_after"])
            terms = Terms(not_before=instant(since, at) or at, not_after=end, reason=reason)
            key = pass_on(tx, subject, to=who["id"], above=above, scope_key=keys[0], permissions=named, terms=terms, depth=depth, at=at)
            made = grants.some(tx, [key], at=at)[0]
            grant_events.record(self._ledger, tx, Kind.GRANTED, subject, at, made)
            return made

        return self._change(subject, None, work, alone=True)

    def given(self, subject: Subject, *, ended: bool = False) -> list[Row]:
        """Return what the caller passed on and counts now or later, the newest first; with `ended` the rest too."""

        def work(tx: sa.Connection, at: datetime) -> list[Row]:
            in_person(subject, "sees what they passed on")
            mine = sa.select(_G.id).where(_G.granted_by == subject.principal_id, _G.parent_id.is_not(None))
            found = grants.some(tx, list(tx.execute(mine).scalars()), at=at)[::-1]
            return [row for row in found if ended or row["state"] in ("active", "not yet", "suspended")]

        return self._read(subject, None, work)


def in_person(subject: Subject, what: str) -> None:
    """Refuse a token: what it may do ends with it, and so must not give what outlives it.

    Raises:
        Forbidden.
    """
    if subject.session_id is None and subject.via != "console":
        message = f"nobody {what} with a token"
        raise Forbidden(message, remedy="sign in with the browser")


def covering(tx: sa.Connection, subject: Subject, datastore_id: int, target: Target, named: Permission, at: datetime) -> list[int]:
    """Return the scope key of something the subject sees and may pass on, then of what that is part of.

    Raises:
        NotFound: absent, or outside what they see. InvalidRequest: several patients have that PatientID.
    """
    if target.level == "everything":
        return [0]
    scope = policy.scope_of(subject, named & OBJECT | P.DELEGATE, at)
    value = target.value.strip().strip("\0")
    p, st, se = patient.c, study.c, series.c
    if target.level == "patient":
        query = sa.select(p.id, sa.null(), sa.null()).where(p.patient_id == value, p.synthetic == sa.false(), scope.patient(patient))
        query = query.where(p.datastore_id == datastore_id)
        if target.issuer is not None:
            query = query.where(p.issuer == target.issuer)
    elif target.level == "study":
        query = sa.select(st.patient_pk, st.id, sa.null()).where(st.study_instance_uid == value, scope.study(study))
        query = query.where(st.datastore_id == datastore_id)
    else:
        query = sa.select(se.patient_pk, se.study_pk, se.id).where(se.series_instance_uid == value, scope.series(series))
        query = query.where(se.datastore_id == datastore_id)
    found = scope.run(tx, query.limit(2)).all()
    if not found:
        message = f"there is no such {target.level}"
        raise NotFound(message, remedy="check the identifier and the datastore")
    if len(found) > 1:
        message = "several patients have that PatientID"
        raise InvalidRequest(message, remedy="name the issuer too")
    keys = [key * 4 + tail for tail, key in enumerate(found[0], 1) if key is not None]
    return [*reversed(keys), 0]


def choose(
    tx: sa.Connection, subject: Subject, datastore_id: int, keys: Sequence[int], named: Permission, at: datetime, *, depth: int = 0,
    only: int | None = None,
) -> Row:
    """Return the grant to pass on from: one that counts now, covers one of `keys` with all that is named, and lasts longest.

    Raises:
        Forbidden: there is none.
    """
    shape = Shape(prefix="giver")
    need = int(named & OBJECT | P.DELEGATE)
    query = sa.select(grant_table).where(
        predicate.is_caller(_G.subject_id, shape), _G.effect == predicate.ALLOW, predicate.not_revoked(grant_table),
        predicate.in_window(grant_table, shape), _G.datastore_id == datastore_id, _G.scope_key.in_(keys), _G.depth_left > depth,
        _G.permissions.bitwise_and(need) == need, _G.need_context.bitwise_and(~subject.context & 0x7FFFFFFF) == 0,
        lineage.standing(grant_table, shape),
    )
    if only is not None:
        query = query.where(_G.id == only)
    values = {"giver_me": subject.principal_id, **shape.at(at)}
    row = tx.execute(query.order_by(_G.not_after.desc(), _G.depth_left.desc(), _G.id).limit(1), values).mappings().first()
    if row is None:
        message = "no grant of yours that may be passed on covers this"
        raise Forbidden(message, remedy="ask whoever manages roles for one that may ('archive grant add --delegable N')")
    return dict(row)


def pass_on(
    tx: sa.Connection, subject: Subject, *, to: int, above: Row, scope_key: int, permissions: Permission, terms: Terms, depth: int,
    at: datetime, kind: str = "delegated",
) -> int:
    """Give a part of the grant `above`, with its conditions, and return the new grant's id.

    Raises:
        Forbidden: to oneself, a group one is in, or to whom it came from. InvalidRequest: longer or more often than that one.
    """
    grant_events.check_depth(depth, above["permissions"])
    grants.refuse_self(tx, subject, to)
    if to in lineage.givers(tx, above["id"]):
        message = "it came from there"
        raise Forbidden(message, remedy="name somebody else")
    if terms.not_after > above["not_after"] or terms.not_before < above["not_before"]:
        message = "that is longer than your own grant counts"
        raise InvalidRequest(message, remedy=f"it counts until {above['not_after']:%Y-%m-%d %H:%M} UTC; name an --until before that")
    bits = (permissions & OBJECT & ~P.DELEGATE) | (P.DELEGATE if depth else P.NONE)
    narrowed = replace(
        terms, modality=above["modality"], department_id=above["department_id"], study_date_from=above["study_date_from"],
        study_date_to=above["study_date_to"], need_context=above["need_context"],
    )
    return grants.give(
        tx, to=to, role_row=None, datastore_id=above["datastore_id"], scope_key=scope_key, terms=narrowed, by=subject.principal_id, at=at,
        kind=kind, permissions=bits, depth=depth, parent_id=above["id"],
    )


def can_delegate(tx: sa.Connection, subject: Subject, at: datetime) -> bool:
    """Whether the subject has any grant that may be passed on now."""
    shape = Shape(prefix="giver")
    query: Any = sa.select(_G.id).where(
        predicate.is_caller(_G.subject_id, shape), _G.effect == predicate.ALLOW, predicate.not_revoked(grant_table),
        predicate.in_window(grant_table, shape), _G.depth_left > 0, lineage.standing(grant_table, shape),
    )
    return tx.execute(query.limit(1), {"giver_me": subject.principal_id, **shape.at(at)}).first() is not None
