"""Whose study it is: patient keys, synthetic patients, and what must be held back (docs/format.md, Identity).

A patient is (datastore, issuer, PatientID stripped). An instance without PatientID gives its study a synthetic patient of its own,
never shared, until an instance of that study brings a real identity.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy import bindparam

from archive.access import policy
from archive.db.prepared import Prepared
from archive.db.tables import boundary_item, datastore, grants, instance, patient, series, study, study_name_fts
from archive.dicom.part10 import Scanned
from archive.index import columns

TOKEN = policy.system("store")

_FIND_PATIENT = Prepared(
    sa.select(patient.c.id).where(
        patient.c.datastore_id == bindparam("datastore"),
        patient.c.issuer == bindparam("issuer_"),
        patient.c.patient_id == bindparam("word"),
        patient.c.synthetic.is_(sa.false()),
    )
)
_STANDING = Prepared(
    sa.select(
        sa.exists()
        .where(instance.c.datastore_id == bindparam("datastore"), instance.c.sop_instance_uid == bindparam("instance"))
        .label("taken"),
        sa.select(study.c.study_instance_uid)
        .join(series, series.c.study_pk == study.c.id)
        .where(series.c.datastore_id == bindparam("datastore"), series.c.series_instance_uid == bindparam("series"))
        .correlate(None)
        .scalar_subquery()
        .label("study_of_series"),
        study.c.key_id,
        patient.c.synthetic,
        patient.c.issuer,
        patient.c.patient_id,
    )
    .select_from(datastore)
    .outerjoin(study, (study.c.datastore_id == datastore.c.id) & (study.c.study_instance_uid == bindparam("study")))
    .outerjoin(patient, patient.c.id == study.c.patient_pk)
    .where(datastore.c.id == bindparam("datastore"))
)
_MOVE_STUDY = sa.update(study).where(study.c.id == bindparam("pk"))
_MOVE_SERIES = sa.update(series).where(series.c.study_pk == bindparam("pk")).values(patient_pk=bindparam("to"))
_RESCOPE = [
    sa.update(table).where(table.c.scope_key == bindparam("old")).values(scope_key=bindparam("new"))
    for table in (grants, boundary_item)
]
_DROP_PATIENT = sa.delete(patient).where(patient.c.id == bindparam("pk"), patient.c.synthetic.is_(sa.true()))
_RENAME = sa.update(study_name_fts).where(study_name_fts.c.rowid == bindparam("pk")).values(folded=bindparam("name"))


@dataclass(frozen=True, slots=True)
class PatientKey:
    """Who an instance says its patient is; `patient_id` is empty when it does not say."""

    issuer: str
    patient_id: str


def key_of(scanned: Scanned, issuer: str) -> PatientKey:
    """Return the patient's key: (0010,0021) of the instance counts before `issuer`, which is the sender's or the archive's."""
    return PatientKey(_said(scanned, "IssuerOfPatientID") or issuer, _said(scanned, "PatientID"))


def _said(scanned: Scanned, keyword: str) -> str:
    # Of several values none is dropped: two patients must not become one.
    return "\\".join(text for value in scanned.values(keyword) if (text := value.replace("\0", "").strip()))


@dataclass(frozen=True, slots=True)
class Standing:
    """How an instance stands to what is stored: whether its SOP Instance UID is taken, and why it must be held, if it must.

    `patient`: its study is another patient's; `study`: its series is another study's.
    """

    taken: bool
    conflict: Literal["", "patient", "study"]
    key_id: bytes | None = None


def standing(tx: sa.Connection, datastore_id: int, scanned: Scanned, issuer: str) -> Standing:
    """Return how an instance stands to what `tx` sees."""
    row = _STANDING.first(tx, {
        "datastore": datastore_id, "instance": scanned.sop_instance_uid, "series": scanned.series_instance_uid,
        "study": scanned.study_instance_uid,
    }, TOKEN)
    if row is None:  # no such datastore
        return Standing(False, "")
    taken = bool(row.taken)
    if row.study_of_series is not None and row.study_of_series != scanned.study_instance_uid:
        return Standing(taken, "study")
    if row.synthetic is None or row.synthetic:
        return Standing(taken, "", row.key_id)
    key = key_of(scanned, issuer)
    same = not key.patient_id or (row.issuer, row.patient_id) == (key.issuer, key.patient_id)
    return Standing(taken, "" if same else "patient")


def identity_conflict(tx: sa.Connection, datastore_id: int, scanned: Scanned, issuer: str) -> str | None:
    """Return why the instance must be held (Standing.conflict), or None."""
    return standing(tx, datastore_id, scanned, issuer).conflict or None


def patient_for(tx: sa.Connection, datastore_id: int, scanned: Scanned, issuer: str, described: Mapping[str, Any], at: datetime) -> int:
    """Return the patient's id; made when new of the study's columns, and always made when the instance does not say who it is."""
    key = key_of(scanned, issuer)
    if key.patient_id:
        where = {"datastore": datastore_id, "issuer_": key.issuer, "word": key.patient_id}
        found = _FIND_PATIENT.scalar(tx, where, TOKEN)
        if found is not None:
            return int(found)
    row = {
        "datastore_id": datastore_id,
        "issuer": key.issuer,
        "patient_id": key.patient_id or secrets.token_hex(16),
        "synthetic": not key.patient_id,
        "patient_name": described["patient_name"],
        "patient_birth_date": described["patient_birth_date"],
        "patient_sex": described["patient_sex"],
        "created_at": at,
    }
    return insert_row(tx, patient, row)


def insert_row(tx: sa.Connection, table: sa.Table, row: dict[str, Any]) -> int:
    """Insert one row and return its id."""
    return _insert(table, tuple(row)).insert(tx, row, TOKEN)


@lru_cache(maxsize=64)
def _insert(table: sa.Table, keys: tuple[str, ...]) -> Prepared:
    return Prepared(sa.insert(table), keys=keys)


def naming(key: PatientKey) -> dict[str, columns.Element]:
    """Return what a study says of a patient that its instances do not name."""
    said = {"00100020": {"vr": "LO", "Value": key.patient_id.split("\\")}}
    return said | ({"00100021": {"vr": "LO", "Value": [key.issuer]}} if key.issuer else {})


def belongs(tx: sa.Connection, found: Any, key: PatientKey, at: datetime) -> None:
    """Let a study (`id`, `datastore_id`, `patient_pk`, `attributes`, `synthetic`) be of a patient none of its instances need name."""
    to = _FIND_PATIENT.scalar(tx, {"datastore": found.datastore_id, "issuer_": key.issuer, "word": key.patient_id}, TOKEN)
    if to is None:
        row = {"datastore_id": found.datastore_id, "issuer": key.issuer, "patient_id": key.patient_id, "synthetic": False, "created_at": at}
        to = insert_row(tx, patient, row)
    if found.synthetic:
        move(tx, found, int(to), naming(key))
        return
    policy.run_as(tx, TOKEN, _MOVE_STUDY, {"pk": found.id, "patient_pk": to})
    policy.run_as(tx, TOKEN, _MOVE_SERIES, {"pk": found.id, "to": to})


def move(tx: sa.Connection, found: Any, to: int, of_patient: columns.Elements) -> dict[str, Any]:
    """Move a study (`id`, `patient_pk`, `attributes`) from its synthetic patient to a real one, and return its new attributes.

    What is said of the patient replaces what the study said. Grants and bounds on the synthetic patient covered just this
    study, so they become grants on the study: nobody gains or loses anything by the move.
    """
    attributes = {**found.attributes, **{tag: element for tag, element in of_patient.items() if element.get("Value")}}
    row = columns.study_row(attributes)
    policy.run_as(tx, TOKEN, _MOVE_STUDY, {"pk": found.id, "patient_pk": to, **row})
    policy.run_as(tx, TOKEN, _MOVE_SERIES, {"pk": found.id, "to": to})
    for rescope in _RESCOPE:
        tx.execute(rescope, {"old": found.patient_pk * 4 + 1, "new": found.id * 4 + 2})
    policy.run_as(tx, TOKEN, _DROP_PATIENT, {"pk": found.patient_pk})
    if tx.dialect.name == "sqlite":
        policy.run_as(tx, TOKEN, _RENAME, {"pk": found.id, "name": row["patient_name_folded"]})
    return attributes
