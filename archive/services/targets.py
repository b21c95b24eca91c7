"""What grants and bounded tokens are about, told by identifiers: the ids in `scope_key` number rows that a rebuild makes anew.

The forms stand in docs/format.md 10. A patient, study or series that no record names any more gets an empty row, which nobody sees, so
that a grant or a deny on it counts again when its images come back.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access import policy
from archive.db.tables import album_item, boundary_item, datastore, grants, patient, series, study, study_name_fts
from archive.services.core import Core

Target = tuple[str, ...]
GONE: Target = ("gone",)
EVERYTHING: Target = ("everything",)
DATASTORE: Target = ("datastore",)
NOWHERE = -1
"""A scope key no row has."""

_TOKEN = policy.system("rebuild")
SCOPED = (grants, boundary_item, album_item)


Placed = tuple[int, Target]
"""The id of a datastore, and something in it."""


def captured(tx: sa.Connection) -> dict[sa.Table, dict[int, Placed]]:
    """Return what each row of the tables with a scope is about."""
    return {table: _targets(tx, table) for table in SCOPED}


def _targets(tx: sa.Connection, table: sa.Table) -> dict[int, Placed]:
    key = table.c.scope_key
    found: dict[int, Placed] = {
        row.id: (0, EVERYTHING if row.scope_key == 0 else GONE) for row in tx.execute(sa.select(table.c.id, key))
    }
    whole = sa.select(table.c.id, datastore.c.id.label("place")).join_from(table, datastore, datastore.c.id == key // 4)
    found |= {row.id: (row.place, DATASTORE) for row in tx.execute(whole.where(key % 4 == 0, key > 0))}
    pt, st, se = patient.alias(), study.alias(), series.alias()
    of_patient = (
        sa.select(table.c.id, pt.c.datastore_id, pt.c.issuer, pt.c.patient_id, pt.c.synthetic, st.c.study_instance_uid)
        .join_from(table, pt, pt.c.id == key // 4).outerjoin(st, st.c.patient_pk == pt.c.id).where(key % 4 == 1)
    )
    for row in policy.run_as(tx, _TOKEN, of_patient):
        if not row.synthetic:
            found[row.id] = (row.datastore_id, ("patient", row.issuer, row.patient_id))
        elif row.study_instance_uid is not None:
            found[row.id] = (row.datastore_id, ("nameless", row.study_instance_uid))
    of_study = (
        sa.select(table.c.id, st.c.datastore_id, st.c.study_instance_uid).join_from(table, st, st.c.id == key // 4).where(key % 4 == 2)
    )
    found |= {row.id: (row.datastore_id, ("study", row.study_instance_uid)) for row in policy.run_as(tx, _TOKEN, of_study)}
    of_series = (
        sa.select(table.c.id, st.c.datastore_id, st.c.study_instance_uid, se.c.series_instance_uid)
        .join_from(table, se, se.c.id == key // 4).join(st, st.c.id == se.c.study_pk).where(key % 4 == 3)
    )
    for row in policy.run_as(tx, _TOKEN, of_series):
        found[row.id] = (row.datastore_id, ("series", row.study_instance_uid, row.series_instance_uid))
    return found


def _insert(tx: sa.Connection, table: sa.Table, row: dict[str, Any]) -> int:
    from archive.index.identity import insert_row  # only where an index is put back; what a snapshot holds needs it not

    return insert_row(tx, table, row)


class Resolver:
    """Gives targets the scope keys they have among the rows that are there now."""

    def __init__(self, core: Core, tx: sa.Connection, at: datetime) -> None:
        """Work in one transaction."""
        self._core, self._tx, self._at = core, tx, at
        self._known: dict[tuple[int, Target], int] = {}
        self._places = {row.id: bytes(row.uid) for row in tx.execute(sa.select(datastore.c.id, datastore.c.uid))}
        self.empty = 0

    def key(self, datastore_id: int, target: Target) -> int:
        """Return the scope key of a target in a datastore; of what is gone, one that nothing has."""
        if target == EVERYTHING:
            return 0
        if target == DATASTORE:
            return datastore_id * 4
        if target == GONE:
            return NOWHERE
        found = self._known.get((datastore_id, target))
        if found is None:
            level, *names = target
            finders: dict[str, Callable[..., int]] = {
                "patient": self._patient, "nameless": self._nameless, "study": self._study, "series": self._series,
                "patient-id": self._patient_of_any_issuer, "series-uid": self._known_series,
            }
            found = self._known[datastore_id, target] = finders[level](datastore_id, *names)
        return found

    def _scalar(self, query: sa.Select[Any]) -> Any:
        return policy.run_as(self._tx, _TOKEN, query).scalar()

    def _patient(self, place: int, issuer: str, patient_id: str) -> int:
        p = patient.c
        wanted = sa.select(p.id).where(
            p.datastore_id == place, p.issuer == issuer, p.patient_id == patient_id, p.synthetic.is_(sa.false())
        )
        return int(self._scalar(wanted) or self._empty_patient(place, issuer, patient_id, synthetic=False)) * 4 + 1

    def _patient_of_any_issuer(self, place: int, patient_id: str) -> int:
        """Where several have that PatientID, everything: only denies are told like this, and they hide rather too much."""
        p = patient.c
        wanted = sa.select(p.id).where(p.datastore_id == place, p.patient_id == patient_id, p.synthetic.is_(sa.false()))
        found = policy.run_as(self._tx, _TOKEN, wanted.limit(2)).scalars().all()
        if len(found) > 1:
            return 0
        issuer = self._core.config.identity.issuer
        return int(found[0] if found else self._empty_patient(place, issuer, patient_id, synthetic=False)) * 4 + 1

    def _known_series(self, place: int, uid: str) -> int:
        found = self._scalar(sa.select(series.c.id).where(series.c.datastore_id == place, series.c.series_instance_uid == uid))
        return NOWHERE if found is None else int(found) * 4 + 3

    def _empty_patient(self, place: int, issuer: str, patient_id: str, *, synthetic: bool) -> int:
        row = {"datastore_id": place, "issuer": issuer, "patient_id": patient_id, "synthetic": synthetic, "created_at": self._at}
        self.empty += 1
        return _insert(self._tx, patient, row)

    def _nameless(self, place: int, study_uid: str) -> int:
        """A study that has found its patient since takes the grant on the nameless one along, as a grant on itself."""
        study_pk = self._study(place, study_uid) // 4
        whose = sa.select(patient.c.id, patient.c.synthetic).join(study, study.c.patient_pk == patient.c.id).where(study.c.id == study_pk)
        row = policy.run_as(self._tx, _TOKEN, whose).one()
        return row.id * 4 + 1 if row.synthetic else study_pk * 4 + 2

    def _study(self, place: int, uid: str) -> int:
        found = self._scalar(sa.select(study.c.id).where(study.c.datastore_id == place, study.c.study_instance_uid == uid))
        return int(found or self._empty_study(place, uid)) * 4 + 2

    def _empty_study(self, place: int, uid: str) -> int:
        nobody = self._empty_patient(place, "", secrets.token_hex(16), synthetic=True)
        key = self._core.keystore.for_study(self._places[place], uid, at=self._at)
        row = {
            "datastore_id": place, "patient_pk": nobody, "study_instance_uid": uid, "key_id": key.key_id, "attributes": {},
            "created_at": self._at, "updated_at": self._at,
        }
        made = _insert(self._tx, study, row)
        if self._tx.dialect.name == "sqlite":
            policy.run_as(self._tx, _TOKEN, sa.insert(study_name_fts), {"rowid": made, "folded": ""})
        return made

    def _series(self, place: int, study_uid: str, uid: str) -> int:
        found = self._scalar(sa.select(series.c.id).where(series.c.datastore_id == place, series.c.series_instance_uid == uid))
        if found is None:
            study_pk = self._study(place, study_uid) // 4
            patient_pk = self._scalar(sa.select(study.c.patient_pk).where(study.c.id == study_pk))
            found = _insert(self._tx, series, {
                "datastore_id": place, "patient_pk": patient_pk, "study_pk": study_pk, "series_instance_uid": uid, "attributes": {},
                "created_at": self._at, "updated_at": self._at,
            })
        return int(found) * 4 + 3


def put_back(tx: sa.Connection, resolver: Resolver, kept: Mapping[sa.Table, Mapping[int, Placed]]) -> list[int]:
    """Point grants and boundaries at the rows that are there now, and return the grants that are about nothing any more."""
    lost: list[int] = []
    for table, rows in kept.items():
        changes = [{"row": number, "new": resolver.key(place, target)} for number, (place, target) in rows.items()]
        if changes:
            change = sa.update(table).where(table.c.id == sa.bindparam("row")).values(scope_key=sa.bindparam("new"))
            tx.execute(change, changes)
        if table is grants:
            lost = [change["row"] for change in changes if change["new"] == NOWHERE]
    return lost
