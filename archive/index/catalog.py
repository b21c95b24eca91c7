"""Rows of patients, studies, series and instances: added, rejected and restored with their counts, in the caller's transaction.

Counts hold live instances only; a study or series without one keeps its row, unseen. On PostgreSQL whoever counts locks the study first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy import bindparam

from archive.access import policy
from archive.db.batches import batches
from archive.db.location import Location, RecordRef
from archive.db.prepared import Prepared
from archive.db.tables import datastore, held, instance, patient, series, study, study_name_fts
from archive.dicom.attributes import Level
from archive.dicom.part10 import Scanned
from archive.errors import InstanceConflict
from archive.index import columns, emptied, identity
from archive.index.identity import TOKEN, identity_conflict, insert_row, key_of

__all__ = [
    "Entry", "HeldKind", "Inserted", "StoredInstance", "decide_held", "exists_object", "find_held", "find_instance", "held_row",
    "identity_conflict", "insert", "insert_held", "list_held", "ref_of", "reject", "replace", "restore",
]

HeldKind = Literal["held", "conflict", "quarantine"]
_SERIES_LEVELS = frozenset({Level.SERIES})
_SHOWN = (
    "id", "series_pk", "study_pk", "transfer_syntax_uid", "dataset_offset", "sha256", "leaf", "rejected_at", "segment_id",
    "record_offset", "record_bytes", "key_id", "object_id", "plaintext_bytes", "part10_bytes", "record_kind",
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One sealed instance on its way into the catalog; `issuer` counts where the instance names none.

    `made` is what was made of it before the transaction: whoever writes keeps all others waiting.
    """

    datastore_id: int
    scanned: Scanned
    ref: RecordRef
    sha256: bytes
    leaf: int
    stored_at: datetime
    issuer: str
    made: columns.Rows | None = None

    def location(self) -> dict[str, Any]:
        """Return the columns that say where the record lies."""
        return {
            "object_id": self.ref.object_id,
            "key_id": self.ref.key_id,
            "segment_id": self.ref.location.segment_id,
            "record_offset": self.ref.location.offset,
            "record_bytes": self.ref.location.record_bytes,
            "record_kind": self.ref.kind,
            "plaintext_bytes": self.ref.plaintext_bytes,
            "part10_bytes": self.ref.part10_bytes,
            "dataset_offset": self.scanned.dataset_offset,
            "sha256": self.sha256,
            "leaf": self.leaf,
        }


@dataclass(frozen=True, slots=True)
class Inserted:
    """What an insert did.

    `differing` names attributes whose first value stands against the one that arrived; `key_id` is the study's data key, which must
    be the one the record is sealed under.
    """

    instance_pk: int
    series_pk: int
    study_pk: int
    key_id: bytes
    differing: tuple[str, ...]
    patient_moved: bool = False
    series_new: bool = False  # also one that had been emptied


@dataclass(frozen=True, slots=True)
class StoredInstance:
    """An instance that has its row, live or rejected."""

    instance_pk: int
    series_pk: int
    study_pk: int
    study_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    dataset_offset: int
    sha256: bytes
    leaf: int
    rejected: bool
    ref: RecordRef


_FIND_INSTANCE = Prepared(
    sa.select(
        *(instance.c[name] for name in _SHOWN), study.c.study_instance_uid, series.c.series_instance_uid,
        datastore.c.uid.label("datastore_uid"),
    )
    .join(series, series.c.id == instance.c.series_pk)
    .join(study, study.c.id == instance.c.study_pk)
    .join(datastore, datastore.c.id == instance.c.datastore_id)
    .where(instance.c.datastore_id == bindparam("datastore"), instance.c.sop_instance_uid == bindparam("uid"))
)
_FIND_HELD = Prepared(
    sa.select(held).where(
        held.c.datastore_id == bindparam("datastore"), held.c.sop_instance_uid == bindparam("uid"), held.c.sha256 == bindparam("digest")
    )
)
_HELD = sa.select(held).where(held.c.id == bindparam("pk"))
_EXISTS_OBJECT = sa.select(
    sa.exists().where(instance.c.object_id == bindparam("object")) | sa.exists().where(held.c.object_id == bindparam("object"))
)
_LOCK_STUDY = Prepared(
    sa.select(study.c.id)
    .where(study.c.datastore_id == bindparam("datastore"), study.c.study_instance_uid == bindparam("study"))
    .with_for_update()
)
_FIND_PLACE = Prepared(
    sa.select(
        study.c.id, study.c.key_id, study.c.patient_pk, study.c.study_date, study.c.attributes, patient.c.synthetic,
        series.c.id.label("series_pk"), series.c.study_pk.label("series_study_pk"), series.c.n_instances,
        series.c.attributes.label("series_attributes"),
    )
    .select_from(datastore)
    .outerjoin(study, (study.c.datastore_id == datastore.c.id) & (study.c.study_instance_uid == bindparam("study")))
    .outerjoin(patient, patient.c.id == study.c.patient_pk)
    .outerjoin(series, (series.c.datastore_id == datastore.c.id) & (series.c.series_instance_uid == bindparam("series")))
    .where(datastore.c.id == bindparam("datastore"))
)
_INSERT_NAME = Prepared(sa.insert(study_name_fts), keys=("rowid", "folded"))
_GROW_SERIES = Prepared(
    sa.update(series)
    .where(series.c.id == bindparam("pk"))
    .values(n_instances=series.c.n_instances + 1, generation=series.c.generation + 1, updated_at=bindparam("at"))
)
_GROW_STUDY = Prepared(
    sa.update(study)
    .where(study.c.id == bindparam("pk"))
    .values(
        n_instances=study.c.n_instances + 1,
        n_series=study.c.n_series + bindparam("more", type_=sa.Integer),
        updated_at=bindparam("at"),
    )
)
_PKS: sa.BindParameter[list[int]] = bindparam("pks", expanding=True)
_STUDIES_OF = sa.select(instance.c.study_pk).where(instance.c.id.in_(_PKS)).distinct()
_LOCK_STUDIES = sa.select(study.c.id).where(study.c.id.in_(_PKS)).order_by(study.c.id).with_for_update()
_REJECT = (
    sa.update(instance)
    .where(instance.c.id.in_(_PKS), instance.c.rejected_at.is_(None))
    .values(rejected_at=bindparam("at"), rejected_by=bindparam("by"), rejected_reason=bindparam("why"))
    .returning(instance.c.series_pk)
)
_RESTORE = (
    sa.update(instance)
    .where(instance.c.id.in_(_PKS), instance.c.rejected_at.is_not(None))
    .values(rejected_at=None, rejected_by=None, rejected_reason="")
    .returning(instance.c.series_pk)
)
_RECOUNT_SERIES = (
    sa.update(series)
    .where(series.c.id.in_(_PKS))
    .values(
        n_instances=sa.select(sa.func.count())
        .where(instance.c.series_pk == series.c.id, instance.c.rejected_at.is_(None))
        .correlate(series)
        .scalar_subquery(),
        generation=series.c.generation + 1,
        updated_at=bindparam("at"),
    )
)
_of_study = series.alias("of_study")
_RECOUNT_STUDY = (
    sa.update(study)
    .where(study.c.id.in_(_PKS))
    .values(
        n_series=sa.select(sa.func.count())
        .where(_of_study.c.study_pk == study.c.id, _of_study.c.n_instances > 0)
        .scalar_subquery(),
        n_instances=sa.select(sa.func.coalesce(sa.func.sum(_of_study.c.n_instances), 0))
        .where(_of_study.c.study_pk == study.c.id)
        .scalar_subquery(),
        updated_at=bindparam("at"),
    )
)
_DECIDE = (
    sa.update(held)
    .where(held.c.id == bindparam("pk"), held.c.state == "open")
    .values(state=bindparam("to"), decided_by=bindparam("by"), decided_at=bindparam("at"))
)


def find_instance(tx: sa.Connection, datastore_id: int, sop_instance_uid: str) -> StoredInstance | None:
    """Return the instance with that UID, live or rejected; None when there is none."""
    row = _FIND_INSTANCE.first(tx, {"datastore": datastore_id, "uid": sop_instance_uid}, TOKEN)
    if row is None:
        return None
    return StoredInstance(
        instance_pk=row.id, series_pk=row.series_pk, study_pk=row.study_pk, study_instance_uid=row.study_instance_uid,
        series_instance_uid=row.series_instance_uid, transfer_syntax_uid=row.transfer_syntax_uid, dataset_offset=row.dataset_offset,
        sha256=row.sha256, leaf=row.leaf, rejected=row.rejected_at is not None, ref=ref_of(row),
    )


def ref_of(row: sa.Row[Any], datastore_uid: bytes | None = None) -> RecordRef:
    """Return the record a row with the location columns names; its datastore is given, or the row's `datastore_uid`."""
    return RecordRef(
        Location(row.segment_id, row.record_offset, row.record_bytes), row.key_id, row.object_id, datastore_uid or row.datastore_uid,
        row.plaintext_bytes, row.part10_bytes, row.record_kind,
    )


def find_held(tx: sa.Connection, datastore_id: int, sop_instance_uid: str, sha256: bytes) -> Any | None:
    """Return the held row of exactly these bytes, decided or not."""
    return _FIND_HELD.first(tx, {"datastore": datastore_id, "uid": sop_instance_uid, "digest": sha256}, TOKEN)


def exists_object(tx: sa.Connection, object_id: bytes) -> bool:
    """Return whether a record already has its row, so that replay leaves it alone."""
    return bool(policy.run_as(tx, TOKEN, _EXISTS_OBJECT, {"object": object_id}).scalar_one())


def insert(tx: sa.Connection, entry: Entry) -> Inserted:
    """Add an instance, and its series, study and patient where they are new.

    The caller has asked `identity_conflict`; an instance it lets in against that joins its study as it is.

    Raises:
        InstanceConflict: its series lies in another study.
        sqlalchemy.exc.IntegrityError: another transaction was first; look again.
    """
    scanned, said, at = entry.scanned, entry.made or columns.Rows(entry.scanned), entry.stored_at
    where = {"datastore": entry.datastore_id, "study": scanned.study_instance_uid, "series": scanned.series_instance_uid}
    if tx.dialect.name == "postgresql":
        _LOCK_STUDY.first(tx, where, TOKEN)
    found = _FIND_PLACE.first(tx, where, TOKEN)
    assert found is not None  # the datastore's own row
    refilled = emptied.filled(tx, found, entry.ref.key_id, said, at)
    series_new = refilled or found.series_pk is None
    if refilled:
        found = _FIND_PLACE.first(tx, where, TOKEN)
        assert found is not None
    place = _study_of(tx, entry, said, found)
    different = list(place.differing)
    if found.series_pk is None:
        keys = {"datastore_id": entry.datastore_id, "patient_pk": place.patient_pk, "study_pk": place.pk}
        stamps = {"study_date": place.study_date, "created_at": at, "updated_at": at}
        series_pk = insert_row(tx, series, {**said.series, **keys, **stamps})
    elif found.series_study_pk != place.pk:
        message = "the series lies in another study"
        raise InstanceConflict(message)
    else:
        series_pk = found.series_pk
        different += _differing(found.series_attributes, scanned, _SERIES_LEVELS, lambda: said.series)
    stored = {
        **said.instance,
        **entry.location(),
        "datastore_id": entry.datastore_id,
        "study_pk": place.pk,
        "series_pk": series_pk,
        "stored_at": at,
    }
    instance_pk = insert_row(tx, instance, stored)
    _GROW_SERIES.run(tx, {"pk": series_pk, "at": at}, TOKEN)
    _GROW_STUDY.run(tx, {"pk": place.pk, "more": int(not found.n_instances), "at": at}, TOKEN)
    return Inserted(instance_pk, series_pk, place.pk, place.key_id, tuple(sorted(different)), place.moved, series_new)


def _differing(
    kept: columns.Elements, scanned: Scanned, levels: frozenset[Level], row: Callable[[], dict[str, Any]]
) -> list[str]:
    arriving = columns.of_levels(scanned.attributes, levels)
    # Equal to what was kept once what no database keeps was taken out: nearly never needed, so asked last.
    return columns.differing(kept, arriving) and columns.differing(kept, row()["attributes"])


@dataclass(frozen=True, slots=True)
class _Study:
    pk: int
    patient_pk: int
    key_id: bytes
    study_date: str
    moved: bool = False
    differing: Sequence[str] = ()


def _study_of(tx: sa.Connection, entry: Entry, said: columns.Rows, found: Any) -> _Study:
    """Return or make the instance's study; one on a synthetic patient moves when the instance names a real one."""
    scanned, at = entry.scanned, entry.stored_at
    known = found.id is not None
    if known and (not found.synthetic or not key_of(scanned, entry.issuer).patient_id):
        different = _differing(found.attributes, scanned, columns.STUDY_LEVELS, lambda: said.study)
        return _Study(found.id, found.patient_pk, found.key_id, found.study_date, differing=different)
    patient_pk = identity.patient_for(tx, entry.datastore_id, scanned, entry.issuer, said.study, at)
    row = said.study
    if known:
        kept = identity.move(tx, found, patient_pk, columns.of_levels(scanned.attributes, frozenset({Level.PATIENT})))
        different = columns.differing(kept, row["attributes"])
        return _Study(found.id, patient_pk, found.key_id, found.study_date, moved=True, differing=different)
    keys = {"datastore_id": entry.datastore_id, "patient_pk": patient_pk, "key_id": entry.ref.key_id}
    stamps = {"created_at": at, "updated_at": at}
    study_pk = insert_row(tx, study, {**row, **keys, **stamps})
    if tx.dialect.name == "sqlite":
        _INSERT_NAME.run(tx, {"rowid": study_pk, "folded": row["patient_name_folded"]}, TOKEN)
    return _Study(study_pk, patient_pk, entry.ref.key_id, row["study_date"])


def replace(tx: sa.Connection, twin: StoredInstance, entry: Entry) -> None:
    """Let a sealed instance take the place of the stored one with its SOP Instance UID; the caller keeps the old one's row.

    Raises:
        InstanceConflict: it belongs to another series or study.
    """
    scanned = entry.scanned
    if (scanned.study_instance_uid, scanned.series_instance_uid) != (twin.study_instance_uid, twin.series_instance_uid):
        message = "the instance belongs to another series"
        raise InstanceConflict(message)
    values = {**columns.of_instance(scanned), **entry.location(), "stored_at": entry.stored_at}
    policy.run_as(tx, TOKEN, sa.update(instance).where(instance.c.id == twin.instance_pk).values(values))
    grown = sa.update(series).where(series.c.id == twin.series_pk)
    policy.run_as(tx, TOKEN, grown.values(generation=series.c.generation + 1, updated_at=entry.stored_at))


def insert_held(tx: sa.Connection, kind: HeldKind, reason: str, entry: Entry) -> int:
    """Add an instance that waits for a data manager, and return its id."""
    scanned, key = entry.scanned, key_of(entry.scanned, entry.issuer)
    row = {
        "datastore_id": entry.datastore_id,
        "kind": kind,
        "reason": reason,
        "study_instance_uid": scanned.study_instance_uid,
        "series_instance_uid": scanned.series_instance_uid,
        "sop_instance_uid": scanned.sop_instance_uid,
        "sop_class_uid": scanned.sop_class_uid,
        "transfer_syntax_uid": scanned.transfer_syntax_uid,
        "patient_id": key.patient_id,
        "issuer_of_patient_id": key.issuer,
        "patient_name": scanned.text("PatientName").replace("\0", ""),
        "created_at": entry.stored_at,
        **entry.location(),
    }
    return insert_row(tx, held, row)


def held_row(tx: sa.Connection, pk: int) -> sa.Row[Any] | None:
    """Return one held row."""
    return policy.run_as(tx, TOKEN, _HELD, {"pk": pk}).one_or_none()


def list_held(
    tx: sa.Connection, *, datastore_id: int | None = None, state: str | None = "open", limit: int = 1000
) -> Sequence[sa.Row[Any]]:
    """Return held rows, oldest first."""
    query = sa.select(held).order_by(held.c.id).limit(limit)
    if datastore_id is not None:
        query = query.where(held.c.datastore_id == datastore_id)
    if state is not None:
        query = query.where(held.c.state == state)
    return policy.run_as(tx, TOKEN, query).all()


def decide_held(tx: sa.Connection, pk: int, state: Literal["accepted", "rejected"], *, by: int | None, at: datetime) -> bool:
    """Close an open held row; False when it was decided before."""
    return bool(policy.run_as(tx, TOKEN, _DECIDE, {"pk": pk, "to": state, "by": by, "at": at}).rowcount)


def reject(tx: sa.Connection, pks: Iterable[int], by: int | None, reason: str, at: datetime) -> int:
    """Hide these instances from everyone, restorably, and return how many were live before."""
    return _change(tx, pks, _REJECT, {"at": at, "by": by, "why": reason}, at)


def restore(tx: sa.Connection, pks: Iterable[int], at: datetime) -> int:
    """Make rejected instances live again, and return how many were rejected before."""
    return _change(tx, pks, _RESTORE, {}, at)


def _change(tx: sa.Connection, pks: Iterable[int], statement: sa.Executable, values: dict[str, Any], at: datetime) -> int:
    wanted = list(batches(sorted(set(pks))))
    studies = sorted({pk for batch in wanted for pk in policy.run_as(tx, TOKEN, _STUDIES_OF, {"pks": batch}).scalars()})
    for batch in batches(studies):
        policy.run_as(tx, TOKEN, _LOCK_STUDIES, {"pks": batch}).all()
    changed = [pk for batch in wanted for pk in policy.run_as(tx, TOKEN, statement, {"pks": batch, **values}).scalars()]
    for batch in batches(sorted(set(changed))):
        policy.run_as(tx, TOKEN, _RECOUNT_SERIES, {"pks": batch, "at": at})
    for batch in batches(studies if changed else []):
        policy.run_as(tx, TOKEN, _RECOUNT_STUDY, {"pks": batch, "at": at})
    return len(changed)
