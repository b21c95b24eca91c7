"""Instances by SOP Instance UID alone, as Storage Commitment refers to them, each with whether it lies inside the caller's scope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import bindparam

from archive.access import policy, predicate
from archive.access.policy import Scope
from archive.access.shape import Shape
from archive.db import guard
from archive.db.location import RecordRef
from archive.db.prepared import Prepared
from archive.db.tables import datastore, held, instance, series, statement, study
from archive.index.catalog import ref_of

_ST, _SE, _IM = study.alias("st"), series.alias("se"), instance.alias("im")


@dataclass(frozen=True, slots=True)
class Kept:
    """An instance that is kept: live, or held for a data manager to decide; `visible` says whether the scope holds it."""

    visible: bool
    live: bool
    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sha256: bytes
    envelope: bytes | None
    ref: RecordRef
    leaf: int
    """The event by which it came."""


_TOGETHER = 200
_LOCATION = ("segment_id", "record_offset", "record_bytes", "key_id", "object_id", "plaintext_bytes", "part10_bytes", "record_kind")


@lru_cache(maxsize=64)
def _live(shape: Shape) -> Prepared:
    joined = (
        _IM.join(_SE, _SE.c.id == _IM.c.series_pk).join(_ST, _ST.c.id == _SE.c.study_pk)
        .join(datastore, datastore.c.id == _IM.c.datastore_id).outerjoin(statement, statement.c.object_id == _IM.c.object_id)
    )
    return Prepared(
        sa.select(
            sa.case((predicate.series_condition(_SE, shape), 1), else_=0).label("visible"), _ST.c.study_instance_uid,
            _SE.c.series_instance_uid, _IM.c.sop_class_uid, _IM.c.sha256, _IM.c.leaf, statement.c.envelope,
            *(_IM.c[name] for name in _LOCATION), datastore.c.uid.label("datastore_uid"),
        ).select_from(joined).where(
            _IM.c.datastore_id == bindparam("datastore"), _IM.c.sop_instance_uid == bindparam("uid"), _IM.c.rejected_at.is_(None)
        )
    )


_HELD = Prepared(
    sa.select(
        held.c.kind, held.c.state, held.c.study_instance_uid, held.c.series_instance_uid, held.c.sop_class_uid, held.c.sha256, held.c.leaf,
        statement.c.envelope, *(held.c[name] for name in _LOCATION), datastore.c.uid.label("datastore_uid"),
    ).select_from(
        held.join(datastore, datastore.c.id == held.c.datastore_id).outerjoin(statement, statement.c.object_id == held.c.object_id)
    ).where(held.c.datastore_id == bindparam("datastore"), held.c.sop_instance_uid == bindparam("uid"))
)


def live(tx: sa.Connection, scope: Scope, datastore_id: int, sop_instance_uid: str) -> Kept | None:
    """Return the live instance of that UID, whoever may see it: the caller decides by `visible` and its statement."""
    row = scope.first(tx, _live(scope.shape), {"datastore": datastore_id, "uid": sop_instance_uid})
    return None if row is None else _kept(row, visible=bool(row.visible), live=True)


@dataclass(frozen=True, slots=True)
class Held:
    """What is held under a UID: not decided yet, or not let in."""

    waiting: list[tuple[str, Kept]]
    """Each with its kind."""
    decided: list[Kept]


def held_under(tx: sa.Connection, token: guard.Token, datastore_id: int, sop_instance_uid: str) -> Held:
    """Return what is held under that UID."""
    found = Held([], [])
    for row in _HELD.all(tx, {"datastore": datastore_id, "uid": sop_instance_uid}, token):
        kept = _kept(row, visible=False, live=False)
        if row.state == "open":
            found.waiting.append((row.kind, kept))
        else:
            found.decided.append(kept)
    return found


def still(tx: sa.Connection, token: guard.Token, datastore_id: int, sop_instance_uids: Sequence[str]) -> set[tuple[str, bytes]]:
    """Return which of these UIDs are live or held for a decision, each with the SHA-256 of what is kept."""
    there: set[tuple[str, bytes]] = set()
    for at in range(0, len(sop_instance_uids), _TOGETHER):
        some = sop_instance_uids[at : at + _TOGETHER]
        for table, kept in ((instance, instance.c.rejected_at.is_(None)), (held, held.c.state == "open")):
            query = sa.select(table.c.sop_instance_uid, table.c.sha256).where(
                table.c.datastore_id == datastore_id, table.c.sop_instance_uid.in_(some), kept
            )
            there |= {(row.sop_instance_uid, bytes(row.sha256)) for row in policy.run_as(tx, token, query)}
    return there


def _kept(row: Any, *, visible: bool, live: bool) -> Kept:
    return Kept(
        visible, live, row.study_instance_uid, row.series_instance_uid, row.sop_class_uid, bytes(row.sha256),
        bytes(row.envelope) if row.envelope is not None else None, ref_of(row), row.leaf,
    )
