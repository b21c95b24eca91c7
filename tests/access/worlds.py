"""Small random archives: principals, groups, grants, sessions, tokens and series, as plain rows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import reduce
from operator import and_
from random import Random
from typing import Any

import sqlalchemy as sa

from archive.access import policy
from archive.access.permissions import Permission
from archive.access.predicate import MOST_TOKENS
from archive.access.subject import Subject
from archive.db import tables
from tests.access import passed_on

BASE = datetime(2026, 1, 1, tzinfo=UTC)
BITS = [Permission.SEARCH, Permission.METADATA, Permission.PIXELS, Permission.SEND]
NEEDS = [*BITS, *BITS, Permission.SEARCH | Permission.METADATA, Permission.METADATA | Permission.PIXELS | Permission.SEND]
Row = dict[str, Any]


def hour(n: int) -> datetime:
    """Return an instant of the small clock every window is drawn from, so that ends are hit exactly."""
    return BASE + timedelta(hours=n)


@dataclass
class World:
    """One archive, as rows by table name."""

    datastore: list[Row] = field(default_factory=list)
    principal: list[Row] = field(default_factory=list)
    membership: list[Row] = field(default_factory=list)
    patient: list[Row] = field(default_factory=list)
    study: list[Row] = field(default_factory=list)
    series: list[Row] = field(default_factory=list)
    grants: list[Row] = field(default_factory=list)
    grant_lineage: list[Row] = field(default_factory=list)
    boundary: list[Row] = field(default_factory=list)
    boundary_item: list[Row] = field(default_factory=list)
    session: list[Row] = field(default_factory=list)
    api_token: list[Row] = field(default_factory=list)

    def insert(self, tx: sa.Connection) -> None:
        """Write every row, parents first."""
        token = policy.system("access")
        for name in self.__dataclass_fields__:
            rows = getattr(self, name)
            if rows:
                policy.run_as(tx, token, sa.insert(tables.metadata.tables[name]), rows)

    def of(self, table: str, key: int) -> Row:
        """Return the row with that id."""
        return next(row for row in getattr(self, table) if row["id"] == key)


def bits(r: Random) -> int:
    """Return a permission mask, sometimes everything, sometimes with RESTRICTED."""
    mask = Permission.NONE
    for bit in BITS:
        mask |= bit if r.random() < 0.85 else Permission.NONE
    return int(mask | (Permission.RESTRICTED if r.random() < 0.5 else Permission.NONE))


def window(r: Random) -> Row:
    """Return a window of the small clock that mostly holds the hours asked about."""
    return {"not_before": hour(r.choice([0, 0, 0, 0, 0, 4, 5, 6])), "not_after": hour(r.choice([9, 9, 9, 9, 9, 4, 5, 6]))}


def maybe(r: Random, value: Any, chance: float, otherwise: Any = None) -> Any:
    """Return `value` with that chance."""
    return value if r.random() < chance else otherwise


def draw(seed: int) -> World:  # one table after the other
    """Return the world of a seed."""
    r = Random(seed)
    w = World()
    w.datastore = [{"id": n, "uid": bytes([n]) * 16, "name": f"d{n}", "created_at": BASE} for n in (1, 2)]
    people = [(1, "user"), (2, r.choice(["service", "device", "console"])), (3, r.choice(["user", "group"]))]
    for key, kind in [*people, (11, "group"), (12, "group"), (13, r.choice(["group", "user"]))]:
        w.principal.append({
            "id": key, "kind": kind, "name": f"p{key}", "enabled": r.random() < 0.9, "created_at": BASE,
            "removed_at": maybe(r, BASE, 0.05), "security_epoch": r.choice([0, 1]),
        })
    number = 0
    for member in (1, 2, 3):
        for group in (11, 12, 13):
            if r.random() < 0.6:
                number += 1
                w.membership.append({"id": number, "principal_id": member, "group_id": group, **window(r)})
    for patient in range(1, 5):
        store = r.choice([1, 1, 2])
        w.patient.append({"id": patient, "datastore_id": store, "patient_id": f"P{patient}", "created_at": BASE})
        for _ in range(r.choice([1, 2])):
            study = len(w.study) + 1
            date = r.choice(["", "20200101", "20210101", "20220101"])
            w.study.append({
                "id": study, "datastore_id": store, "patient_pk": patient, "study_instance_uid": f"1.{study}", "key_id": bytes(16),
                "study_date": date, "attributes": {}, "created_at": BASE, "updated_at": BASE,
            })
            for _ in range(r.choice([1, 2, 3])):
                series = len(w.series) + 1
                w.series.append({
                    "id": series, "datastore_id": store, "patient_pk": patient, "study_pk": study, "study_date": date,
                    "department_id": r.choice([None, 7, 8]), "restricted": r.random() < 0.25, "series_instance_uid": f"2.{series}",
                    "modality": r.choice(["CT", "MR", "US"]), "attributes": {}, "n_instances": r.choice([0, 1, 5, 9, 9]),
                    "created_at": BASE, "updated_at": BASE,
                })
    for key in range(1, r.choice([5, 10, 20])):
        w.grants.append({
            "id": key, "datastore_id": r.choice([1, 1, 2]), "subject_id": r.choice([1, 1, 1, 2, 11, 12, 13]),
            "effect": r.choice([1, 1, 1, 1, 1, 0]), "permissions": bits(r), "scope_key": scope_key(r, w) if key > 1 else 0,
            "modality": maybe(r, r.choice(["CT", "MR"]), 0.15, ""), "department_id": maybe(r, r.choice([7, 8]), 0.1),
            "study_date_from": maybe(r, r.choice(["20200101", "20210101"]), 0.1, ""),
            "study_date_to": maybe(r, r.choice(["20210101", "20220101"]), 0.1, ""),
            **window(r), "revoked_at": maybe(r, hour(1), 0.15), "need_context": r.choice([0, 0, 0, 0, 1, 2]), "created_at": BASE,
        })
    for key in (1, 2, 3):
        w.boundary.append({"id": key, "owner_id": r.choice([1, 1, 1, 2, 3]), "not_after": hour(r.choice([9, 9, 5]))})
        for _ in range(r.choice([0, 2, 4])):
            item = len(w.boundary_item) + 1
            named = scope_key(r, w) if r.random() < 0.8 else r.choice(w.datastore)["id"] * 4
            w.boundary_item.append({"id": item, "boundary_id": key, "permissions": bits(r), "scope_key": named})
    for key in range(1, 5):
        w.session.append({
            "id": key, "token_sha256": bytes([key]) * 32, "principal_id": r.choice([1, 1, 1, 2]),
            "epoch": maybe(r, w.of("principal", 1)["security_epoch"], 0.8, r.choice([0, 1])),
            "created_at": BASE, "last_seen_at": BASE, "idle_until": hour(r.choice([9, 9, 5])),
            "absolute_until": hour(r.choice([9, 9, 5])), "revoked_at": maybe(r, BASE, 0.2),
        })
        w.api_token.append({
            "id": key, "prefix": f"t{key}", "secret_hmac": bytes(32), "principal_id": r.choice([1, 1, 1, 2]),
            "boundary_id": r.choice([None, 1, 2]), "permissions": bits(r), "created_at": BASE,
            "not_after": hour(r.choice([9, 9, 5])), "revoked_at": maybe(r, BASE, 0.2), "parent_id": None,
        })
    for key in range(5, 10):  # made with another, which one of any owner and state
        above = r.choice(w.api_token)
        w.api_token.append({
            "id": key, "prefix": f"t{key}", "secret_hmac": bytes(32),
            "principal_id": r.choice([above["principal_id"], above["principal_id"], 1]),
            "boundary_id": r.choice([None, 1, 2, 3]), "permissions": bits(r), "created_at": BASE,
            "not_after": hour(r.choice([9, 9, 9, 5])), "revoked_at": maybe(r, BASE, 0.1), "parent_id": above["id"],
        })
    passed_on.add(seed, w)
    return w


def scope_key(r: Random, w: World) -> int:
    """Return the archive, a patient, a study or a series of the world."""
    level = r.choice([0, 0, 1, 2, 3])
    rows = [None, w.patient, w.study, w.series][level]
    return 0 if rows is None else r.choice(rows)["id"] * 4 + level


def lineage(w: World, token: Row) -> list[Row]:
    """Return a token and those it stands on, its own first."""
    found = [token]
    while found[-1]["parent_id"] is not None:
        found.append(w.of("api_token", found[-1]["parent_id"]))
    return found


def callers(seed: int, w: World, count: int) -> list[tuple[Subject, Permission, datetime]]:
    """Return who asks for what, and when: mostly as they would really come in, sometimes with parts that do not fit."""
    r = Random(seed + 1_000_000)
    asked = []
    for _ in range(count):
        me = r.choice([1, 1, 1, 1, 1, 2, 3, 11])
        session = token = limit = None
        depth, boundaries = 1, ()
        way = r.random()
        if way < 0.25:
            session = r.choice(w.session)["id"]
        elif way < 0.55:
            chain = lineage(w, r.choice(w.api_token))
            token, depth = chain[0]["id"], len(chain)
            boundaries = tuple(row["boundary_id"] for row in chain if row["boundary_id"] is not None)
            limit = Permission(reduce(and_, (row["permissions"] for row in chain)))
            if r.random() < 0.15:
                boundaries = r.choice([(), (1,), (2,), (1, 3)])
            if r.random() < 0.2:
                depth = r.choice([1, 2, 3, 4])
        elif way < 0.65:
            boundaries = tuple(r.sample([1, 2, 3], r.choice([1, 1, 2])))
        subject = Subject(
            me, "someone", "user", "web", session_id=session, token_id=token, token_depth=min(depth, MOST_TOKENS),
            boundary_ids=boundaries, limit=limit, context=r.choice([0, 1, 3, 3]),
        )
        if asked and Random(f"{seed} {len(asked)}").random() < 0.15:  # a draw of its own: what the others are stays as it was
            subject = replace(subject, narrowed_by=replace(asked[-1][0], narrowed_by=None))
        asked.append((subject, r.choice(NEEDS), hour(r.choice([4, 5, 6, 8]))))
    return asked
