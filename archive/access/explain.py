"""Why a principal can or cannot see a study or series: the answer of the rule itself, and every grant that had a say."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access import grants, policy, roles
from archive.access.permissions import OBJECT, Permission
from archive.access.subject import Subject
from archive.db.tables import series, study

_TOKEN = policy.system("access")
_STUDY, _SERIES = study.alias("asked_study"), series.alias("asked_series")


def explain(tx: sa.Connection, who: dict[str, Any], datastore_id: int, uid: str, *, at: datetime) -> dict[str, Any]:
    """Return whether `who` (a row of table principal) finds the study or series of that UID, what it may do, and because of what.

    `allowed` and `permissions` come from the condition every read uses, not from reading the grants again. A UID that is unknown
    gives `known` False and nothing else: nobody is told more than about one they may not see.
    """
    key, level, scope_keys = _find(tx, datastore_id, uid.strip())
    if key is None:
        return {"allowed": False, "known": False, "because": []}
    subject = Subject(who["id"], who["name"], "device" if who["kind"] == "device" else "user", "internal")
    table = _STUDY if level == "study" else _SERIES
    may = Permission.NONE
    for bit in OBJECT:
        scope = policy.scope_of(subject, bit, at)
        condition = scope.study(_STUDY) if level == "study" else scope.series(_SERIES)
        if scope.run(tx, sa.select(table.c.id).where(table.c.id == key, condition)).first() is not None:
            may |= bit
    because = grants.reaching(tx, who["id"], datastore_id, scope_keys, at=at)
    return {
        "allowed": bool(may & Permission.SEARCH), "known": True, "level": level, "enabled": bool(who["enabled"]),
        "permissions": roles.names(may), "because": [{"grant": row["id"], **row} for row in because],
    }


def _find(tx: sa.Connection, datastore_id: int, uid: str) -> tuple[int | None, str, list[int]]:
    """Return the row of a study or series and every scope that covers it or, for a study, a series of it."""
    st, se = _STUDY.c, _SERIES.c
    query = sa.select(st.id, st.patient_pk).where(st.datastore_id == datastore_id, st.study_instance_uid == uid)
    row = policy.run_as(tx, _TOKEN, query).first()
    if row is not None:
        parts = policy.run_as(tx, _TOKEN, sa.select(se.id).where(se.study_pk == row.id)).scalars()
        return row.id, "study", [0, row.patient_pk * 4 + 1, row.id * 4 + 2, *(part * 4 + 3 for part in parts)]
    query = sa.select(se.id, se.patient_pk, se.study_pk).where(se.datastore_id == datastore_id, se.series_instance_uid == uid)
    found = policy.run_as(tx, _TOKEN, query).first()
    if found is None:
        return None, "", []
    return found.id, "series", [0, found.patient_pk * 4 + 1, found.study_pk * 4 + 2, found.id * 4 + 3]
