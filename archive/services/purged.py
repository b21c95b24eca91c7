"""What a purge says and does to the rows (docs/format.md 2.5): the same when it is given, done again by a rebuild, or caught up with."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from archive.access import policy
from archive.db.batches import batches
from archive.db.tables import datastore, held, instance, ledger_leaf, patient, purged, purged_key, segment, series, statement, study
from archive.dicom.attributes import Level
from archive.errors import ArchiveError, DigestMismatch, IntegrityError, LedgerBroken
from archive.index import catalog, columns, emptied
from archive.index.identity import PatientKey, belongs, key_of, naming
from archive.ledger import statements
from archive.ledger.audit import Kind
from archive.ledger.bodies import commitment, parse
from archive.services.core import Core
from archive.services.records import decode
from archive.services.state_events import decode_change

_TOKEN = policy.system("shred")
Place = tuple[str, int, int]


def places_of(change: dict[str, Any]) -> Iterator[tuple[bytes, Place]]:
    """Yield each object of a purge and where its record lay."""
    for one, (where, offset, length) in zip(change["objects"], change["places"], strict=True):
        yield bytes.fromhex(one), (where, offset, length)


def keys_of(change: dict[str, Any]) -> list[bytes]:
    """Return the keys that go with a purge: never the one that a re-keying gave the study, whatever it says."""
    return [bytes.fromhex(one) for one in change["keys"] if one != change.get("fresh")]


def staying(tx: sa.Connection, datastore_id: int, study_instance_uid: str, gone: Collection[bytes]) -> dict[str, Any]:
    """Return what a purge says of whom the rest of a study is: what named the patient may be among what goes."""
    query = (
        sa.select(instance.c.object_id, datastore.c.uid, patient.c.issuer, patient.c.patient_id)
        .join(study, study.c.id == instance.c.study_pk).join(patient, patient.c.id == study.c.patient_pk)
        .join(datastore, datastore.c.id == study.c.datastore_id)
        .where(study.c.datastore_id == datastore_id, study.c.study_instance_uid == study_instance_uid, patient.c.synthetic.is_(sa.false()))
    )
    rest = (row for row in policy.run_as(tx, _TOKEN, query) if bytes(row.object_id) not in gone)
    row = next(rest, None)
    return {} if row is None else {"patient": [bytes(row.uid).hex(), row.issuer, row.patient_id]}


def announced(core: Core, tx: sa.Connection, leaf: int) -> dict[str, Any]:
    """Return what a purge said, proved by the sealed body of its event: nothing else in the index is believed here.

    Raises:
        LedgerBroken: V12.
    """
    try:
        salt, body = core.ledger.opening(tx, leaf)
        row = tx.execute(
            sa.select(statement.c.envelope, ledger_leaf.c.data).join(ledger_leaf, ledger_leaf.c.n == statement.c.leaf)
            .where(statement.c.leaf == leaf)
        ).one()
        said, payload = msgspec.json.decode(bytes(row.data), type=dict[str, Any]), bytes(row.envelope)
        told = parse(body)
        if (told["kind"], said["k"], said["c"], told["detail"]["payload"], said["stmt"]) == (
            Kind.PURGED.label, Kind.PURGED.label, commitment(salt, body).hex(), *[statements.digest(payload).hex()] * 2
        ):
            return decode_change(payload)
    except (ArchiveError, sa.exc.NoResultFound, msgspec.DecodeError, KeyError, ValueError, TypeError):
        pass
    message = f"event {leaf} does not prove a purge"
    raise LedgerBroken(message, remedy="run 'archive verify'", verdict="V12")


def carry_out(core: Core, tx: sa.Connection, change: dict[str, Any], *, leaf: int, at: datetime, anew: bool = True) -> None:
    """Take the rows out and note what is still to be destroyed; `anew`: hashes of the segments count no more.

    Raises:
        DigestMismatch: V12, something of it is not out of sight.
    """
    objects = [bytes.fromhex(one) for one in change["objects"]]
    if "fresh" in change:
        _hide_followed(core, tx, objects, at)
    _require_out_of_sight(tx, objects)
    in_series, in_studies = emptied.take_out(tx, objects)
    rows = [
        {"object_id": one, "leaf": leaf, "segment_id": bytes.fromhex(where), "record_offset": offset, "record_bytes": length}
        for one, (where, offset, length) in places_of(change)
    ]
    for some in batches(rows):
        tx.execute(sa.delete(purged).where(purged.c.object_id.in_([row["object_id"] for row in some])))
        tx.execute(sa.insert(purged), some)
    keys = keys_of(change)
    if keys:
        tx.execute(sa.delete(purged_key).where(purged_key.c.key_id.in_(keys)))
        tx.execute(sa.insert(purged_key), [{"key_id": key, "leaf": leaf} for key in keys])
    for pk in in_studies:
        emptied.empty(tx, pk, key_gone=bool(keys), at=at)
        say_again(core, tx, pk, in_series, change.get("patient"), at)
    if keys:
        mine = (study.c.study_instance_uid == change["study"], study.c.datastore_id.in_(sa.select(datastore.c.id)))
        policy.run_as(tx, _TOKEN, sa.update(study).where(*mine, study.c.key_id.in_(keys)).values(key_id=emptied.NO_KEY))
    if "patient" in change:
        _belongs(tx, change["study"], *change["patient"], at=at)
    if anew:
        touched = sorted({where for _, (where, _, _) in places_of(change)})
        for names in batches(touched):
            tx.execute(sa.update(segment).where(segment.c.id.in_(map(bytes.fromhex, names))).values(sha256=None))


def _belongs(tx: sa.Connection, study_instance_uid: str, where: str, issuer: str, patient_id: str, *, at: datetime) -> None:
    """Let a study stay the patient's whose it was: a rebuild makes it of what is left of it, which may name nobody, or another."""
    query = (
        sa.select(study.c.id, study.c.datastore_id, study.c.patient_pk, study.c.attributes, patient.c.synthetic, patient.c.issuer,
                  patient.c.patient_id)
        .join(patient, patient.c.id == study.c.patient_pk).join(datastore, datastore.c.id == study.c.datastore_id)
        .where(study.c.study_instance_uid == study_instance_uid, datastore.c.uid == bytes.fromhex(where))
    )
    found = policy.run_as(tx, _TOKEN, query).first()
    if found is None or not found.attributes or (not found.synthetic and (found.issuer, found.patient_id) == (issuer, patient_id)):
        return
    belongs(tx, found, PatientKey(issuer, patient_id), at)
    emptied.leave(tx, found.patient_pk)


def _hide_followed(core: Core, tx: sa.Connection, objects: Sequence[bytes], at: datetime) -> None:
    """Take out of sight what a re-keying replaced and whose key is destroyed: an older index names it still where its successor is gone."""
    for some in batches(objects):
        query = sa.select(instance.c.id, instance.c.key_id).where(instance.c.object_id.in_(some), instance.c.rejected_at.is_(None))
        left = policy.run_as(tx, _TOKEN, query).all()
        gone = {key for key in {bytes(row.key_id) for row in left} if core.keystore.state(key) == "shredded"}
        catalog.reject(tx, [row.id for row in left if bytes(row.key_id) in gone], by=None, reason="re-keyed, and then purged", at=at)


def _require_out_of_sight(tx: sa.Connection, objects: Sequence[bytes]) -> None:
    for some in batches(objects):
        queries = (
            sa.select(instance.c.id).where(instance.c.object_id.in_(some), instance.c.rejected_at.is_(None)),
            sa.select(held.c.id).where(held.c.object_id.in_(some), held.c.state == "open"),
        )
        if any(policy.run_as(tx, _TOKEN, query.limit(1)).first() is not None for query in queries):
            message = "a purge is about an instance that was not rejected"
            raise DigestMismatch(message, verdict="V12")


def say_again(
    core: Core, tx: sa.Connection, study_pk: int, in_series: Sequence[int], whose: Sequence[str] | None, at: datetime
) -> None:
    """Let the study, and the series that lost something, say what their first remaining instance says, as a rebuild would."""
    here = sa.select(series.c.id).where(series.c.study_pk == study_pk)
    first = _first(core, tx, instance.c.series_pk.in_(here))
    if first is None:
        return
    scanned, issuer = first
    row = policy.run_as(tx, _TOKEN, sa.select(study.c.attributes).where(study.c.id == study_pk)).one()
    said = columns.of_levels(scanned.attributes, columns.STUDY_LEVELS)
    if not key_of(scanned, issuer).patient_id:
        said |= columns.of_levels(row.attributes, frozenset({Level.PATIENT})) if whose is None else naming(PatientKey(*whose[1:]))
    said = columns.study_row(said)
    if said["attributes"] != row.attributes:
        emptied.say_again(tx, study_pk, said, at=at)
    for some in batches(in_series):
        query = sa.select(series.c.id, series.c.attributes).where(series.c.id.in_(some), series.c.study_pk == study_pk)
        for one in policy.run_as(tx, _TOKEN, query).all():
            found = _first(core, tx, instance.c.series_pk == one.id)
            said = {} if found is None else columns.of_series(found[0])
            if said and said["attributes"] != one.attributes:
                emptied.say_again(tx, study_pk, said, series_pk=one.id, at=at)


def _first(core: Core, tx: sa.Connection, where: sa.ColumnElement[bool]) -> tuple[Any, str] | None:
    query = (
        sa.select(instance, datastore.c.uid.label("datastore_uid")).join(datastore, datastore.c.id == instance.c.datastore_id)
        .where(where).order_by(instance.c.leaf).limit(1)
    )
    row = policy.run_as(tx, _TOKEN, query).first()
    if row is None:
        return None
    try:
        meta = decode(core.vault.sections(catalog.ref_of(row)).meta)
    except IntegrityError:
        return None  # verify tells of it, and a rebuild makes these rows from what it has
    return meta.scanned, meta.issuer
