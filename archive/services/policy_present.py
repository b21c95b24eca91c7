"""The policy as it stands: what of roles, groups, assignments and grants counts now or later, in the words of a document.

Grants that were passed on, asked for, opened in an emergency, given by a rule or come with an album live on their own and are in no text.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access import grants, policy, principals, roles
from archive.access.permissions import Permission
from archive.db.batches import batches
from archive.db.tables import datastore, membership, patient, principal, role, role_assignment, study
from archive.db.tables import grants as grants_table
from archive.db.types import FOREVER
from archive.services.policy_document import AssignmentText, Document, GrantText, GroupText, MemberText, RoleText

Row = dict[str, Any]
_TOKEN = policy.system("access")


@dataclass(frozen=True, slots=True)
class Present:
    """The archive as it stands, in the words of a document, with the rows behind them."""

    roles: dict[str, Row]
    people: dict[str, Row]
    members: dict[tuple[str, str], tuple[datetime, datetime]]
    assignments: dict[tuple[str, str], Counter[tuple[datetime, datetime]]]
    grants: list[Row]
    left_out: int
    places: dict[str, int]
    issuers: dict[int, str]
    expected: frozenset[int]


def plain(name: str) -> str:
    """Return a name as the tables hold it."""
    return unicodedata.normalize("NFC", name.strip()[: principals.LONGEST_TYPED])


def read(tx: sa.Connection, at: datetime) -> Present:
    """Read what counts now or later."""
    p, m, a = principal.c, membership.c, role_assignment.c
    people = {row["name"]: dict(row) for row in tx.execute(
        sa.select(principal).where(p.removed_at.is_(None), p.kind != principals.CONSOLE).order_by(p.name)
    ).mappings()}
    names = {row["id"]: name for name, row in people.items()}
    members = {
        (names[row.group_id], names[row.principal_id]): (row.not_before, row.not_after)
        for row in tx.execute(sa.select(membership).where(m.not_after > at).order_by(m.id))
        if row.group_id in names and row.principal_id in names
    }
    there = sa.select(role).where(role.c.removed_at.is_(None)).order_by(role.c.id)
    known = {row["name"]: dict(row) for row in tx.execute(there).mappings()}
    assignments: dict[tuple[str, str], Counter[tuple[datetime, datetime]]] = {}
    query = sa.select(role_assignment, role.c.name).join(role, role.c.id == a.role_id).where(a.revoked_at.is_(None), a.not_after > at)
    for row in tx.execute(query.order_by(a.id)):
        if row.principal_id in names:
            assignments.setdefault((names[row.principal_id], row.name), Counter())[row.not_before, row.not_after] += 1
    places = {row.name: row.id for row in tx.execute(sa.select(datastore.c.id, datastore.c.name))}
    live, left_out = _grants(tx, at)
    issuers: dict[int, str] = {}
    met: set[int] = set()
    for batch in batches(sorted({row["scope_key"] // 4 for row in live if row["scope_key"] % 4 == 1})):
        named = sa.select(patient.c.id, patient.c.issuer).where(patient.c.id.in_(batch))
        issuers |= {row.id: row.issuer for row in policy.run_as(tx, _TOKEN, named)}
        met |= set(policy.run_as(tx, _TOKEN, sa.select(study.c.patient_pk).where(study.c.patient_pk.in_(batch))).scalars())
    return Present(known, people, members, assignments, live, left_out, places, issuers, frozenset(issuers.keys() - met))


def _grants(tx: sa.Connection, at: datetime) -> tuple[list[Row], int]:
    """Return the standing grants that count now or later, each with its scope key, and how many others there are."""
    g = grants_table.c
    keys = {row.id: row.scope_key for row in tx.execute(sa.select(g.id, g.scope_key).where(g.revoked_at.is_(None), g.not_after > at))}
    nameless: set[int] = set()
    for batch in batches(sorted({key // 4 for key in keys.values() if key % 4 == 1})):
        query = sa.select(patient.c.id).where(patient.c.id.in_(batch), patient.c.synthetic == sa.true())
        nameless |= {number * 4 + 1 for number in policy.run_as(tx, _TOKEN, query).scalars()}
    live = [row | {"scope_key": keys[row["id"]]} for row in grants.some(tx, list(keys), at=at)]
    ours = [
        row for row in live
        if row["kind"] == "standing" and row["parent"] is None and row["role"] and not row["need_context"]
        and row["conditions"].keys() <= {"modality"} and row["scope_key"] not in nameless
    ]
    return ours, len(live) - len(ours)


def document(there: Present) -> Document:
    """Return the archive's policy."""
    told = [RoleText(
        name=name, permissions=None if row["builtin"] else tuple(roles.names(Permission(row["permissions"]))),
        second_factor=bool(row["mfa_level"]), idle_minutes=row["idle_s"] // 60, absolute_hours=row["max_session_s"] // 3600,
    ) for name, row in there.roles.items()]
    return Document(
        format=1,
        role=tuple(one for one in told if one.permissions is not None or one != RoleText(name=one.name)),
        group=tuple(
            GroupText(name=name, full_name=row["full_name"], member=_members(there, name))
            for name, row in there.people.items() if row["kind"] == "group"
        ),
        assignment=tuple(
            AssignmentText(to=to, role=name, since=start, until=_until(end))
            for (to, name), windows in sorted(there.assignments.items()) for start, end in sorted(windows.elements())
        ),
        grant=tuple(_told(there, row) for row in sorted(there.grants, key=lambda row: (row["subject"], row["id"]))),
    )


def _members(there: Present, name: str) -> tuple[MemberText, ...]:
    found = sorted(there.members.items())
    return tuple(MemberText(name=who, since=start, until=_until(end)) for (group, who), (start, end) in found if group == name)


def _told(there: Present, row: Row) -> GrantText:
    level, key = row["level"], row["scope_key"] // 4
    more: Row = {"everything": True} if level == "everything" else {level: row["object"]}
    if level == "patient":
        more |= {"issuer": there.issuers[key], "expected": key in there.expected}
    return GrantText(
        to=row["subject"], role=row["role"], effect=row["effect"], datastore=row["datastore"], since=row["from"],
        until=_until(row["until"]), modality=row["conditions"].get("modality", ""), delegable=row["delegable"],
        reason=row["reason"], **more,
    )


def _until(end: datetime) -> datetime | None:
    return None if end >= FOREVER else end
