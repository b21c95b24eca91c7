"""What a policy comes to: who may do what before and after, asked of the condition every read uses, and whether it is as expected."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from archive.access import policy, principals, roles
from archive.access.permissions import OBJECT, Permission
from archive.access.subject import Subject
from archive.db.batches import batches
from archive.db.tables import membership, patient, principal, series, study
from archive.services.policy_document import ExpectText

Row = dict[str, Any]
MOST = 20_000
"""Series that are compared one by one; beyond that their number alone is."""
SEES: tuple[principals.Kind, ...] = ("user", "service", "device")

_TOKEN = policy.system("access")
_SE, _ST, _PT = series.alias("effect_series"), study.alias("effect_study"), patient.alias("effect_patient")


@dataclass(frozen=True, slots=True)
class May:
    """What one may do at a moment: functions, and of each object permission on which series (those of `MOST`), of how many."""

    functions: Permission
    series: dict[Permission, frozenset[int]]
    many: dict[Permission, int]


def whose(tx: sa.Connection, reached: Iterable[int], *, at: datetime) -> set[int]:
    """Return who acts with what principals hold: they themselves, and the members of those that are groups, now or later."""
    found = set(reached)
    for batch in batches(sorted(found)):
        m = membership.c
        found |= set(tx.execute(sa.select(m.principal_id).where(m.group_id.in_(batch), m.not_after > at)).scalars())
    return found


def measure(tx: sa.Connection, who: Iterable[int], *, at: datetime) -> dict[int, tuple[str, May]]:
    """Return name and rights of each of these principals that can act."""
    found: dict[int, tuple[str, May]] = {}
    known: dict[frozenset[int], frozenset[int]] = {}  # most permissions of most people are on the same series
    p = principal.c
    for batch in batches(sorted(who)):
        query = sa.select(p.id, p.name, p.kind).where(p.id.in_(batch), p.kind.in_(SEES), p.removed_at.is_(None))
        for row in tx.execute(query).all():
            subject = Subject(row.id, row.name, "device" if row.kind == "device" else "user", "internal")
            sets: dict[Permission, frozenset[int]] = {}
            many: dict[Permission, int] = {}
            for bit in OBJECT:
                scope = policy.scope_of(subject, bit, at)
                seen = frozenset(scope.run(tx, sa.select(_SE.c.id).where(scope.series(_SE)).limit(MOST + 1)).scalars())
                if len(seen) > MOST:
                    many[bit] = scope.run(tx, sa.select(sa.func.count()).select_from(_SE).where(scope.series(_SE))).scalar_one()
                else:
                    sets[bit] = known.setdefault(seen, seen)
            found[row.id] = (row.name, May(policy.functions_of(tx, subject, at), sets, many))
    return found


def compare(before: dict[int, tuple[str, May]], after: dict[int, tuple[str, May]]) -> list[Row]:
    """Return who gains and loses what, a row for each of them and each set of permissions on the same series."""
    nothing = May(Permission.NONE, dict.fromkeys(OBJECT, frozenset()), {})
    found: list[Row] = []
    for key in sorted(before.keys() | after.keys()):
        name = (after.get(key) or before[key])[0]
        was, will = (side[key][1] if key in side else nothing for side in (before, after))
        for word, more, less in (("gains", will, was), ("loses", was, will)):
            functions = more.functions & ~less.functions
            if functions:
                found.append({"subject": name, "change": word, "permissions": roles.names(functions), "series": 0})
            by_extent: dict[Any, Permission] = {}
            for bit in OBJECT:
                if bit in more.series and bit in less.series:
                    extent: Any = more.series[bit] - less.series[bit]
                else:
                    extent = max(0, _count(more, bit) - _count(less, bit))
                if extent:
                    by_extent[extent] = by_extent.get(extent, Permission.NONE) | bit
            for extent, bits in by_extent.items():
                count = extent if isinstance(extent, int) else len(extent)
                found.append({"subject": name, "change": word, "permissions": roles.names(bits), "series": count})
    return found


def _count(may: May, bit: Permission) -> int:
    return may.many[bit] if bit in may.many else len(may.series.get(bit, ()))


def unmet(tx: sa.Connection, expected: Sequence[ExpectText], *, at: datetime) -> list[Row]:
    """Return the expectations that do not hold, by their number in the text; one about what is not here does not hold either."""
    failed = []
    for number, one in enumerate(expected, 1):
        row = principals.find(tx, one.subject, SEES)
        subject = Subject(row["id"], row["name"], "device" if row["kind"] == "device" else "user", "internal")
        decided = _decision(tx, subject, one, at if one.at is None else one.at.astimezone(UTC))
        if decided != one.decision:
            level, value = one.aims()[0] if one.aims() else ("", "")
            failed.append({
                "number": number, "subject": row["name"], "permissions": roles.names(one.permissions()), "level": level, "object": value,
                "expected": one.decision, "found": decided,
            })
    return failed


def _decision(tx: sa.Connection, subject: Subject, one: ExpectText, at: datetime) -> str:
    need = one.permissions()
    if not need & OBJECT:
        return "allow" if policy.functions_of(tx, subject, at) & need == need else "deny"
    level, value = one.aims()[0]
    table, column = {
        "patient": (_PT, _PT.c.patient_id), "study": (_ST, _ST.c.study_instance_uid), "series": (_SE, _SE.c.series_instance_uid),
    }[level]
    named = sa.select(table.c.id).where(table.c.datastore_id == policy.datastore_id(tx, one.datastore), column == value)
    if one.issuer is not None and level == "patient":
        named = named.where(_PT.c.issuer == one.issuer)
    if policy.run_as(tx, _TOKEN, named.limit(1)).first() is None:
        return "absent"
    scope = policy.scope_of(subject, need, at)
    condition = {"patient": scope.patient, "study": scope.study, "series": scope.series}[level](table)
    return "allow" if scope.run(tx, named.where(condition).limit(1)).first() is not None else "deny"
