"""Grants that were passed on: drawn into a world, and what the rule says of them, row by row."""

from __future__ import annotations

from datetime import datetime
from random import Random
from typing import TYPE_CHECKING

from archive.access.subject import Subject

if TYPE_CHECKING:
    from tests.access.worlds import Row, World

FIRST = 100
"""The id of the first that was passed on."""


def add(seed: int, w: World) -> None:
    """Pass some grants of a world on, mostly as it is done, sometimes with parts that do not fit."""
    from tests.access import worlds

    r = Random(seed + 2_000_000)
    keys = {name: None for row in w.grants for name in row} | {"parent_id": None, "granted_by": None}
    for row in w.grants:
        for name, value in keys.items():
            row.setdefault(name, value)
    for number in range(r.choice([0, 4, 8])):
        above = r.choice(w.grants)
        giver = r.choice([above["subject_id"], above["subject_id"], *(m["principal_id"] for m in w.membership)])
        made = dict(above) | {
            "id": FIRST + number, "subject_id": r.choice([1, 1, 1, 2, 11, 12]), "effect": 1, "parent_id": above["id"], "granted_by": giver,
            "permissions": worlds.bits(r), "scope_key": r.choice([above["scope_key"], worlds.scope_key(r, w)]), **worlds.window(r),
            "revoked_at": worlds.maybe(r, worlds.hour(1), 0.05), "need_context": above["need_context"] if r.random() < 0.7 else 0,
        }
        if r.random() < 0.4:
            made |= {"modality": "", "department_id": None, "study_date_from": "", "study_date_to": ""}
        w.grants.append(made)
        inherited = [row for row in w.grant_lineage if row["grant_id"] == above["id"]]
        stands_on = [(above["id"], giver), *((row["ancestor_id"], row["giver_id"]) for row in inherited)]
        for ancestor, who in stands_on:
            if r.random() < 0.93:
                w.grant_lineage.append({
                    "id": len(w.grant_lineage) + 1, "grant_id": made["id"], "ancestor_id": ancestor, "giver_id": who,
                })


def unbroken(w: World, grant: Row, subject: Subject, se: Row, wanted: int, at: datetime) -> bool:
    """Whether each grant it stands on covers the series for who passed it on, whom nothing denies it."""
    from tests.access import oracle

    if grant.get("parent_id") is None:
        return True
    links = [row for row in w.grant_lineage if row["grant_id"] == grant["id"]]
    if not any(row["ancestor_id"] == grant["parent_id"] for row in links):
        return False
    for row in links:
        above, giver = w.of("grants", row["ancestor_id"]), w.of("principal", row["giver_id"])
        them = Subject(giver["id"], "", "user", "internal")
        if not giver["enabled"] or giver["removed_at"] is not None or above["effect"] != 1:
            return False
        if not oracle.applies(w, above, them, se, at) or wanted & ~above["permissions"] or above["need_context"] & ~subject.context:
            return False
        denies = (one for one in w.grants if one["effect"] == 0 and one["permissions"] & wanted)
        if any(oracle.applies(w, one, them, se, at) for one in denies):
            return False
    return True

