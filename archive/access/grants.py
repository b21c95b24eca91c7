"""Grants: what a role's object permissions cover, for whom, and from when until when.

A grant is never changed: it is revoked and given anew, so that the ledger and the table tell the same story.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from archive.access import lineage, policy, predicate, principals, roles
from archive.access.permissions import OBJECT, Permission
from archive.access.shape import Shape
from archive.access.subject import Subject
from archive.db.batches import batches
from archive.db.tables import datastore, grants, membership, patient, principal, role, series, study
from archive.db.types import FOREVER
from archive.errors import Forbidden, InvalidRequest, NotFound

Level = Literal["everything", "patient", "study", "series"]
LEVELS: tuple[Level, ...] = ("everything", "patient", "study", "series")
_TOKEN = policy.system("access")
_MODALITY = re.compile(r"[A-Z0-9_ ]{1,16}")  # PS3.5 6.2, CS
_DATE = re.compile(r"\d{8}|")


@dataclass(frozen=True, slots=True)
class Target:
    """What a grant covers: the archive, or a patient by PatientID, a study or series by UID.

    `issuer` tells patients of the same PatientID apart; `expected` takes a patient nothing has been stored of yet.
    """

    level: Level
    value: str = ""
    issuer: str | None = None
    expected: bool = False


@dataclass(frozen=True, slots=True)
class Terms:
    """How a grant works: allow or deny, its window and its conditions; empty means any."""

    not_before: datetime
    not_after: datetime = FOREVER
    deny: bool = False
    modality: str = ""
    department_id: int | None = None
    study_date_from: str = ""
    study_date_to: str = ""
    need_context: int = 0
    reason: str = ""

    def check(self) -> None:
        """Refuse what could never count or would not mean what it says.

        Raises:
            InvalidRequest.
        """
        if self.not_after <= self.not_before:
            message = "the grant would end before it begins"
            raise InvalidRequest(message, remedy="name an --until after --from")
        if self.modality and not _MODALITY.fullmatch(self.modality):
            message = "that is no modality"
            raise InvalidRequest(message, remedy="write it as DICOM does: CT, MR, US")
        if not _DATE.fullmatch(self.study_date_from) or not _DATE.fullmatch(self.study_date_to):
            message = "that is no study date"
            raise InvalidRequest(message, remedy="write it as YYYYMMDD")


def scope_key(tx: sa.Connection, datastore_id: int, target: Target, *, at: datetime, default_issuer: str = "") -> int:
    """Return the typed integer that stands for a target in its datastore.

    Raises:
        NotFound: no such patient, study or series.
        InvalidRequest: several patients have that PatientID.
    """
    if target.level == "everything":
        return 0
    value = target.value.strip().strip("\0")
    if target.level == "patient":
        return _patient(tx, datastore_id, value, target, at, default_issuer) * 4 + 1
    table, uid, tail = (study, study.c.study_instance_uid, 2) if target.level == "study" else (series, series.c.series_instance_uid, 3)
    found = policy.run_as(tx, _TOKEN, sa.select(table.c.id).where(table.c.datastore_id == datastore_id, uid == value)).scalar()
    if found is None:
        message = f"there is no such {target.level}"
        raise NotFound(message, remedy="check the UID and the datastore")
    return int(found) * 4 + tail


def visible_key(tx: sa.Connection, scope: policy.Scope, datastore_id: int, level: Literal["study", "series"], uid: str) -> int:
    """Return the typed integer of a study or series inside a scope.

    Raises:
        NotFound: absent, or outside the scope.
    """
    if level == "study":
        query = sa.select(study.c.id * 4 + 2).where(study.c.study_instance_uid == uid.strip(), scope.study(study))
        query = query.where(study.c.datastore_id == datastore_id)
    else:
        query = sa.select(series.c.id * 4 + 3).where(series.c.series_instance_uid == uid.strip(), scope.series(series))
        query = query.where(series.c.datastore_id == datastore_id)
    found = scope.run(tx, query).scalar()
    if found is None:
        message = f"there is no such {level}"
        raise NotFound(message, remedy="check the UID and the datastore")
    return int(found)


def _patient(  # one row's columns
    tx: sa.Connection, datastore_id: int, value: str, target: Target, at: datetime, default_issuer: str
) -> int:
    p = patient.c
    query = sa.select(p.id).where(p.datastore_id == datastore_id, p.patient_id == value, p.synthetic == sa.false())
    if target.issuer is not None:
        query = query.where(p.issuer == target.issuer)
    found = policy.run_as(tx, _TOKEN, query.limit(2)).scalars().all()
    if len(found) == 1:
        return int(found[0])
    if found:
        message = "several patients have that PatientID"
        raise InvalidRequest(message, remedy="name the issuer too")
    if not target.expected or not value:
        message = "there is no such patient"
        raise NotFound(message, remedy="check the PatientID and the datastore, or add --expected for a patient still to come")
    issuer = default_issuer if target.issuer is None else target.issuer
    key = policy.run_as(
        tx, _TOKEN, sa.insert(patient),
        {"datastore_id": datastore_id, "issuer": issuer, "patient_id": value, "synthetic": False, "created_at": at},
    ).inserted_primary_key
    assert key is not None
    return int(key[0])


def refuse_self(tx: sa.Connection, giver: Subject, target_id: int) -> None:
    """Nobody gives rights to themselves or to a group they are in; the console, which no grant reaches, may give to anyone.

    Raises:
        Forbidden.
    """
    for one in (giver, giver.second):  # who approves gives as much as who asked
        if one is not None and one.kind != "console" and principals.is_or_contains(tx, target_id, one.principal_id):
            message = "nobody changes their own rights"
            raise Forbidden(message, remedy="ask someone else who may, or use the command line")


def give(
    tx: sa.Connection, *, to: int, role_row: dict[str, Any] | None, datastore_id: int, scope_key: int, terms: Terms, by: int, at: datetime,
    kind: str = "standing", permissions: Permission = Permission.NONE, depth: int = 0, parent_id: int | None = None,
) -> int:
    """Give (or deny) what a role's object permissions cover to a principal or group, and return the grant's id.

    Without a role `permissions` say what is given. `depth` is how many times it may be passed on, `parent_id` what it was passed on from.

    Raises:
        InvalidRequest: terms that could never count, or a role that holds nothing about images.
    """
    terms.check()
    if role_row is not None:
        permissions = Permission(role_row["permissions"])
    if not permissions & OBJECT:
        what = "what is named" if role_row is None else f"the role {role_row['name']}"
        message = f"{what} holds no permission on images, so a grant of it would do nothing"
        raise InvalidRequest(message, remedy="assign it with 'archive user add --role', or grant another ('archive role list')")
    made = tx.execute(sa.insert(grants).values(
        datastore_id=datastore_id, subject_id=to, effect=0 if terms.deny else 1, role_id=None if role_row is None else role_row["id"],
        permissions=int(permissions), scope_key=scope_key, modality=terms.modality, department_id=terms.department_id,
        study_date_from=terms.study_date_from, study_date_to=terms.study_date_to, not_before=terms.not_before,
        not_after=terms.not_after, need_context=terms.need_context, kind=kind, granted_by=by, reason=terms.reason, created_at=at,
        depth_left=depth, parent_id=parent_id,
    ))
    assert made.inserted_primary_key is not None
    key = int(made.inserted_primary_key[0])
    if parent_id is not None:
        lineage.link(tx, key, parent_id, by)
    return key


def find(tx: sa.Connection, grant_id: int) -> dict[str, Any]:
    """Return a grant's row.

    Raises:
        NotFound.
    """
    row = tx.execute(sa.select(grants).where(grants.c.id == grant_id)).mappings().first()
    if row is None:
        message = "there is no such grant"
        raise NotFound(message, remedy="'archive grant list' names them")
    return dict(row)


def gave(tx: sa.Connection, grant_id: int, subject: Subject) -> bool:
    """Whether the subject, signed in, passed this grant on, or one it stands on."""
    if subject.session_id is None and subject.via != "console":
        return False
    return subject.principal_id in lineage.givers(tx, grant_id)


def revoke(tx: sa.Connection, grant_id: int, *, by: int, at: datetime) -> bool:
    """End a grant at once and for good; return whether it was not revoked before."""
    live = sa.and_(grants.c.id == grant_id, grants.c.revoked_at.is_(None))
    return bool(tx.execute(sa.update(grants).where(live).values(revoked_at=at, revoked_by=by)).rowcount)


def coming(tx: sa.Connection, principal_id: int, *, at: datetime) -> bool:
    """Whether an allow is a principal's or one of its groups', now or later; one that is suspended may count again any moment."""
    g, m = grants.c, membership.c
    them = sa.select(sa.literal(principal_id)).union_all(sa.select(m.group_id).where(m.principal_id == principal_id, m.not_after > at))
    live = sa.and_(g.effect == predicate.ALLOW, g.revoked_at.is_(None), g.not_after > at)
    return tx.execute(sa.select(g.id).where(g.subject_id.in_(them), live).limit(1)).first() is not None


def listed(tx: sa.Connection, *, at: datetime, to: int | None = None, datastore_id: int | None = None) -> list[dict[str, Any]]:
    """Return grants, newest first, as `shown`."""
    query = _query().order_by(grants.c.id.desc())
    if to is not None:
        query = query.where(grants.c.subject_id == to)
    if datastore_id is not None:
        query = query.where(grants.c.datastore_id == datastore_id)
    return shown(tx, query, at=at)


def some(tx: sa.Connection, ids: Sequence[int], *, at: datetime) -> list[dict[str, Any]]:
    """Return the grants of these ids, oldest first, as `shown`."""
    return [row for batch in batches(sorted(ids)) for row in shown(tx, _query().where(grants.c.id.in_(batch)).order_by(grants.c.id), at=at)]


def reaching(
    tx: sa.Connection, principal_id: int, datastore_id: int, scope_keys: list[int], *, at: datetime
) -> list[dict[str, Any]]:
    """Return every grant and deny on those scopes to a principal and its groups, whatever its state."""
    shape = Shape()
    values = {f"{shape.prefix}_me": principal_id, **shape.at(at)}
    query = _query().where(
        predicate.is_caller(grants.c.subject_id, shape), grants.c.datastore_id == datastore_id,
        grants.c.scope_key.in_(scope_keys),
    ).order_by(grants.c.id)
    return shown(tx, query, at=at, values=values)


def _query() -> sa.Select[Any]:
    return (
        sa.select(grants, principal.c.name.label("subject"), role.c.name.label("role"), datastore.c.name.label("datastore"))
        .join(principal, principal.c.id == grants.c.subject_id)
        .join(datastore, datastore.c.id == grants.c.datastore_id)
        .outerjoin(role, role.c.id == grants.c.role_id)
    )


def shown(
    tx: sa.Connection, query: sa.Select[Any], *, at: datetime, values: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Return grants as people read them: who, which role, what, from, until, and their state at `at`."""
    rows = [dict(row) for row in tx.execute(query, values or {}).mappings()]
    objects = named(tx, {row["scope_key"] for row in rows})
    resting = lineage.resting(tx, {row["id"] for row in rows if row["parent_id"] is not None and state(row, at) == "active"}, at=at)
    found = []
    for row in rows:
        level, value = objects[row["scope_key"]]
        conditions = {
            name: row[name] for name in ("modality", "department_id", "study_date_from", "study_date_to") if row[name] not in ("", None)
        }
        found.append({
            "id": row["id"], "effect": "allow" if row["effect"] else "deny", "subject": row["subject"], "role": row["role"],
            "level": level, "object": value, "datastore": row["datastore"], "from": row["not_before"], "until": row["not_after"],
            "state": "suspended" if row["id"] in resting else state(row, at),
            "permissions": roles.names(Permission(row["permissions"]) & OBJECT), "conditions": conditions,
            "need_context": row["need_context"], "reason": row["reason"], "granted_by": row["granted_by"],
            "revoked_at": row["revoked_at"], "created_at": row["created_at"], "endless": row["not_after"] >= FOREVER,
            "kind": row["kind"], "parent": row["parent_id"], "delegable": row["depth_left"], "subject_id": row["subject_id"],
        })
    return found


def state(row: dict[str, Any], at: datetime) -> str:
    """Return revoked, not yet, expired or active."""
    if row["revoked_at"] is not None:
        return "revoked"
    if at < row["not_before"]:
        return "not yet"
    return "active" if at < row["not_after"] else "expired"


def named(tx: sa.Connection, keys: set[int]) -> dict[int, tuple[Level, str]]:
    """Return level and identifier of each scope key."""
    found: dict[int, tuple[Level, str]] = {0: ("everything", "")}
    columns = {1: (patient, patient.c.patient_id), 2: (study, study.c.study_instance_uid), 3: (series, series.c.series_instance_uid)}
    for tail, (table, column) in columns.items():
        ids = [key // 4 for key in keys if key % 4 == tail]
        for start in range(0, len(ids), 500):
            query = sa.select(table.c.id, column).where(table.c.id.in_(ids[start:start + 500]))
            for row in policy.run_as(tx, _TOKEN, query).mappings():
                found[row["id"] * 4 + tail] = (LEVELS[tail], row[column])
        for number in ids:
            found.setdefault(number * 4 + tail, (LEVELS[tail], ""))
    return found
