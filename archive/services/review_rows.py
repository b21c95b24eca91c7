"""What an access review asks about: allows and role assignments as they stand, chosen, each with when it was last used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from archive.access import grants as access_grants
from archive.access import principals
from archive.db.batches import batches
from archive.db.tables import audit_event, grants, membership, principal, role, role_assignment
from archive.db.types import FOREVER
from archive.errors import InvalidRequest
from archive.keys.keyring import Keyring
from archive.ledger import objects
from archive.ledger.audit import Kind, ObjectRef

MOST = 2000
SEEING = tuple(kind.label for kind in (Kind.READ, Kind.SENT, Kind.EXPORTED, Kind.SHARED, Kind.SEARCHED))
Row = dict[str, Any]
_G, _A, _E = grants.c, role_assignment.c, audit_event.c


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which rows: all allows and role assignments that count now or later, narrowed by each of these that is set."""

    endless: bool = False
    group: str = ""  # given to the group, or to one of its members
    role: str = ""
    older_days: int = 0
    grants: bool = True
    roles: bool = True

    def kept(self) -> Row:
        """Return what is set."""
        return {name: value for name, value in asdict(self).items() if value != getattr(Chosen(), name)}


def rows(tx: sa.Connection, keyring: Keyring, chosen: Chosen, at: datetime) -> list[Row]:
    """Return the rows of a review, ready to be inserted.

    Raises:
        InvalidRequest: more than can be decided, or none. NotFound: no such group.
    """
    who = None
    if chosen.group:
        group = principals.find(tx, chosen.group, ("group",))["id"]
        who = [group, *tx.execute(sa.select(membership.c.principal_id).where(membership.c.group_id == group)).scalars()]
    found = [*(_grants(tx, keyring, chosen, who, at) if chosen.grants else ()), *(_roles(tx, chosen, who, at) if chosen.roles else ())]
    if not found:
        message = "nothing that counts is chosen by this"
        raise InvalidRequest(message, remedy="choose less narrowly")
    if len(found) > MOST:
        message = f"a review has at most {MOST} rows"
        raise InvalidRequest(message, remedy="choose by --group, --role, --endless or --older-than, and start several")
    return found


def _window(column: Any, chosen: Chosen, who: list[int] | None, at: datetime) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = [column.revoked_at.is_(None), column.not_after > at]
    if chosen.endless:
        conditions.append(column.not_after >= FOREVER)
    if chosen.older_days:
        conditions.append(column.created_at < at - timedelta(days=chosen.older_days))
    if chosen.role:
        conditions.append(role.c.name == chosen.role)
    if who is not None:
        conditions.append((column.subject_id if hasattr(column, "subject_id") else column.principal_id).in_(who))
    return conditions


def _grants(tx: sa.Connection, keyring: Keyring, chosen: Chosen, who: list[int] | None, at: datetime) -> Iterator[Row]:
    query = sa.select(_G.id, _G.subject_id).outerjoin(role, role.c.id == _G.role_id).where(
        _G.effect == 1, *_window(_G, chosen, who, at)
    ).order_by(_G.id).limit(MOST + 1)
    subjects = {row.id: row.subject_id for row in tx.execute(query)}
    for row in access_grants.some(tx, list(subjects), at=at):
        last = _last_used(tx, keyring, subjects[row["id"]], row["level"], row["object"])
        shown = {
            "subject": row["subject"], "role": row["role"] or "", "level": row["level"], "object": row["object"],
            "datastore": row["datastore"], "from": row["from"].isoformat(), "until": row["until"].isoformat(), "endless": row["endless"],
            "reason": row["reason"], "given": row["created_at"].isoformat(), "conditions": row["conditions"],
        }
        yield {"kind": "grant", "number": row["id"], "subject_id": subjects[row["id"]], "shown": shown, "last_used_at": last}


def _roles(tx: sa.Connection, chosen: Chosen, who: list[int] | None, at: datetime) -> Iterator[Row]:
    """Yield each role of each principal once: what is withdrawn is the role, however often it was assigned."""
    query = (
        sa.select(role_assignment, principal.c.name.label("subject"), role.c.name.label("role"))
        .join(principal, principal.c.id == _A.principal_id).join(role, role.c.id == _A.role_id)
        .where(*_window(_A, chosen, who, at), principal.c.removed_at.is_(None)).order_by(_A.id).limit(MOST + 1)
    )
    seen: set[tuple[int, int]] = set()
    for row in tx.execute(query):
        if (row.principal_id, row.role_id) in seen:
            continue
        seen.add((row.principal_id, row.role_id))
        shown = {
            "subject": row.subject, "role": row.role, "level": "functions", "object": "", "from": row.not_before.isoformat(),
            "until": row.not_after.isoformat(), "endless": row.not_after >= FOREVER, "given": row.created_at.isoformat(),
        }
        last = _last_event(tx, [row.principal_id, *_members(tx, row.principal_id)])
        yield {"kind": "role", "number": row.id, "subject_id": row.principal_id, "shown": shown, "last_used_at": last}


def _members(tx: sa.Connection, principal_id: int) -> list[int]:
    return list(tx.execute(sa.select(membership.c.principal_id).where(membership.c.group_id == principal_id)).scalars())


def _last_used(tx: sa.Connection, keyring: Keyring, subject_id: int, level: str, value: str) -> datetime | None:
    """Return when somebody it was given to last saw something it covers, as far as events name it."""
    people = [subject_id, *_members(tx, subject_id)]
    if level == "everything":
        return _last_event(tx, people, _E.kind.in_(SEEING), _E.outcome == 0)
    ref = ObjectRef(level, value).pseudonym(keyring)  # type: ignore[arg-type] # one of the three words
    return _last_event(tx, people, _E.kind.in_(SEEING), _E.outcome == 0, _E.n.in_(objects.about(ref)))


def _last_event(tx: sa.Connection, people: list[int], *which: sa.ColumnElement[bool]) -> datetime | None:
    last = [
        found for some in batches(people)
        if (found := tx.execute(sa.select(sa.func.max(_E.at)).where(_E.principal_id.in_(some), *which)).scalar()) is not None
    ]
    return max(last, default=None)
