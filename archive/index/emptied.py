"""Rows of what was purged: instances taken out, and studies and series that hold nothing any more emptied of what they said.

A study's row stays, empty, on a patient of nobody's: grants and denies on it count again when its images come back, and its key id says
whether what arrives is sealed under a key that is still there. Ids that nothing refers to any more may be given again, so a series
or patient goes only where no grant and no bound names it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access import policy
from archive.db.batches import batches
from archive.db.tables import (
    album_item,
    boundary_item,
    delivery,
    forward_rule,
    grants,
    held,
    instance,
    patient,
    purged_key,
    series,
    series_pack,
    statement,
    study,
    study_name_fts,
)
from archive.index import access_study, columns
from archive.index.identity import insert_row

NO_KEY = bytes(16)
"""The key id of a study whose key was destroyed: what comes next brings another."""

_TOKEN = policy.system("shred")


def take_out(tx: sa.Connection, objects: Sequence[bytes]) -> tuple[list[int], list[int]]:
    """Remove the rows of these objects, and return the series and studies whose instances they were."""
    pks: list[int] = []
    in_series: set[int] = set()
    for some in batches(sorted(objects)):
        rows = policy.run_as(tx, _TOKEN, sa.select(instance.c.id, instance.c.series_pk).where(instance.c.object_id.in_(some))).all()
        pks += [row.id for row in rows]
        in_series.update(row.series_pk for row in rows)
        for table in (instance, held):
            policy.run_as(tx, _TOKEN, sa.delete(table).where(table.c.object_id.in_(some)))
        tx.execute(sa.delete(statement).where(statement.c.object_id.in_(some)))
    for gone in batches(pks):
        tx.execute(sa.delete(delivery).where(delivery.c.instance_pk.in_(gone)))
    if pks and tx.dialect.name == "sqlite":
        # It gives the id of the last row again, and a rule would take what has it for one it has looked at.
        last = policy.run_as(tx, _TOKEN, sa.select(sa.func.coalesce(sa.func.max(instance.c.id), 0))).scalar_one()
        tx.execute(sa.update(forward_rule).where(forward_rule.c.seen > last).values(seen=last))
    studies: set[int] = set()
    for changed in batches(sorted(in_series)):
        policy.run_as(tx, _TOKEN, sa.delete(series_pack).where(series_pack.c.series_pk.in_(changed)))
        grown = sa.update(series).where(series.c.id.in_(changed)).values(generation=series.c.generation + 1).returning(series.c.study_pk)
        studies.update(policy.run_as(tx, _TOKEN, grown).scalars())
    return sorted(in_series), sorted(studies)


def empty(tx: sa.Connection, study_pk: int, *, key_gone: bool, at: datetime) -> None:
    """Take what they said from the study and its series where no instance is left in them, live or rejected."""
    alone = sa.not_(sa.exists(sa.select(1).select_from(instance).where(instance.c.series_pk == series.c.id)))
    hollow = list(policy.run_as(tx, _TOKEN, sa.select(series.c.id).where(series.c.study_pk == study_pk, alone)).scalars())
    named = _named(tx, hollow, 3)
    for pk in hollow:
        if pk in named:
            blank = {**columns.series_row({}), "updated_at": at}
            policy.run_as(tx, _TOKEN, sa.update(series).where(series.c.id == pk).values(**blank))
        else:
            policy.run_as(tx, _TOKEN, sa.delete(series).where(series.c.id == pk))
    left = sa.select(1).select_from(instance.join(series, series.c.id == instance.c.series_pk)).where(series.c.study_pk == study_pk)
    if policy.run_as(tx, _TOKEN, left.limit(1)).first() is None:
        _empty_study(tx, study_pk, key_gone=key_gone, at=at)


def _empty_study(tx: sa.Connection, study_pk: int, *, key_gone: bool, at: datetime) -> None:
    row = policy.run_as(tx, _TOKEN, sa.select(study.c.patient_pk, study.c.datastore_id).where(study.c.id == study_pk)).one()
    nobody = insert_row(tx, patient, {
        "datastore_id": row.datastore_id, "issuer": "", "patient_id": secrets.token_hex(16), "synthetic": True, "created_at": at,
    })
    said = {**columns.study_row({}), "patient_pk": nobody, "n_series": 0, "n_instances": 0, "updated_at": at}
    policy.run_as(tx, _TOKEN, sa.update(study).where(study.c.id == study_pk).values(**said, **({"key_id": NO_KEY} if key_gone else {})))
    policy.run_as(tx, _TOKEN, sa.update(series).where(series.c.study_pk == study_pk).values(patient_pk=nobody, study_date=""))
    if tx.dialect.name == "sqlite":
        policy.run_as(tx, _TOKEN, sa.update(study_name_fts).where(study_name_fts.c.rowid == study_pk).values(folded=""))
    access_study.complete(tx, at, [study_pk])
    leave(tx, row.patient_pk)


def leave(tx: sa.Connection, patient_pk: int) -> None:
    """Empty a patient of whom there is no study any more, or remove it."""
    of_patient = sa.select(1).select_from(study).where(study.c.patient_pk == patient_pk)
    if policy.run_as(tx, _TOKEN, of_patient.limit(1)).first() is not None:
        return
    which = patient.c.id == patient_pk
    if _named(tx, [patient_pk], 1):
        blank = {"patient_name": "", "patient_birth_date": "", "patient_sex": ""}
        policy.run_as(tx, _TOKEN, sa.update(patient).where(which).values(**blank))
    else:
        policy.run_as(tx, _TOKEN, sa.delete(patient).where(which))


def _named(tx: sa.Connection, pks: Iterable[int], level: int) -> set[int]:
    """Return those that a grant or a bound is about, also one that counts no more."""
    found: set[int] = set()
    for some in batches(sorted(pks)):
        for table in (grants, boundary_item, album_item):
            query = sa.select(table.c.scope_key).where(table.c.scope_key.in_([pk * 4 + level for pk in some]))
            found.update(key // 4 for key in tx.execute(query).scalars())
    return found


def say_again(tx: sa.Connection, study_pk: int, row: dict[str, Any], *, series_pk: int | None = None, at: datetime) -> None:
    """Let a study, or a series of it, say what these columns of one of its instances say."""
    row = {name: value for name, value in row.items() if name not in ("study_instance_uid", "series_instance_uid")}
    if series_pk is not None:
        policy.run_as(tx, _TOKEN, sa.update(series).where(series.c.id == series_pk).values(**row, updated_at=at))
        return
    policy.run_as(tx, _TOKEN, sa.update(study).where(study.c.id == study_pk).values(**row, updated_at=at))
    policy.run_as(tx, _TOKEN, sa.update(series).where(series.c.study_pk == study_pk).values(study_date=row["study_date"]))
    if tx.dialect.name == "sqlite":
        renamed = sa.update(study_name_fts).where(study_name_fts.c.rowid == study_pk).values(folded=row["patient_name_folded"])
        policy.run_as(tx, _TOKEN, renamed)


def filled(tx: sa.Connection, found: Any, key_id: bytes, said: columns.Rows, at: datetime) -> bool:
    """Let an emptied study or series (`found`) say what arrives says; whether it did.

    The study gets the key of what arrives unless its own is there still, or that one is to go too.
    """
    study_gone = found.id is not None and not found.attributes
    if study_gone:
        if found.key_id == NO_KEY or is_gone(tx, found.key_id):
            if is_gone(tx, key_id):
                return False
            policy.run_as(tx, _TOKEN, sa.update(study).where(study.c.id == found.id).values(key_id=key_id, created_at=at))
        say_again(tx, found.id, said.study, at=at)
    series_gone = found.series_pk is not None and not found.series_attributes and found.series_study_pk == found.id
    if series_gone:
        say_again(tx, found.id, said.series, series_pk=found.series_pk, at=at)
    return study_gone or series_gone


def key_is_gone(tx: sa.Connection, datastore_id: int, study_instance_uid: str, key_id: bytes) -> bool:
    """Whether the key that a record was sealed under is to be destroyed; asked with the study's row locked, as a purge has it."""
    here = sa.select(study.c.id).where(study.c.datastore_id == datastore_id, study.c.study_instance_uid == study_instance_uid)
    if tx.dialect.name == "postgresql":
        policy.run_as(tx, _TOKEN, here.with_for_update()).first()
    return is_gone(tx, key_id)


def is_gone(tx: sa.Connection, key_id: bytes) -> bool:
    """Whether a data key was destroyed, or is about to be."""
    return tx.execute(sa.select(purged_key.c.leaf).where(purged_key.c.key_id == key_id)).first() is not None
