"""Re-keying: a study sealed anew under a new key, record by record; then the old records and the old key go as those of a purge do.

The new records are new objects, each with a statement that names the one it replaces (docs/format.md 4, 8). They are sealed and synced
before one transaction puts them in the place of the old; without it the next start frees them.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive import locks
from archive.access import policy
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.batches import batches
from archive.db.tables import data_key, datastore, held, instance, series, series_pack, study
from archive.errors import CommitUncertain, NotFound, SealBroken, StateConflict
from archive.index import catalog
from archive.keys.sealing import format_instant
from archive.ledger import statements
from archive.ledger.audit import Event, Kind, ObjectRef, StoredRef
from archive.services import datastores, denials
from archive.services.adoption import Arrival
from archive.services.core import Core
from archive.services.datastores import Datastore
from archive.services.purge_finish import finish
from archive.services.purged import carry_out, staying
from archive.services.state_events import commit_change, free, keep_statement
from archive.services.statement import SOFTWARE
from archive.vault.keystore import StudyKey
from archive.vault.vault import RecordRef

_TOKEN = policy.system("shred")
ATTEMPTS = 3
LOCK = "rekey.lock"


def rekeying(core: Core) -> AbstractContextManager[None]:
    """Let one process at a time re-key or shred: a key that is to come is destroyed by nobody who does not know it is used."""
    return locks.alone(core.config.run_dir / LOCK)


def nobody_rekeys(core: Core) -> AbstractContextManager[bool]:
    """Whether nobody re-keys now; then nobody begins to while this lasts.

    Raises:
        VaultUnavailable: the lock file cannot be written.
    """
    return locks.alone_if_free(core.config.run_dir / LOCK)


@dataclass(frozen=True, slots=True)
class Rekeyed:
    """What was sealed anew; `left` are studies that cannot be now: something of them is deleted or waits, and comes first."""

    studies: int
    instances: int
    keys: int
    left: int = 0


@dataclass(frozen=True, slots=True)
class _Again:
    row: Any
    ref: RecordRef
    envelope: bytes


class Rekey:
    """Needs the permission key-manage, or the console; it shows nothing of an image."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core

    def study(
        self, subject: Subject, study_instance_uid: str, *, reason: str = "re-keyed", datastore: str = datastores.DEFAULT
    ) -> Rekeyed:
        """Seal a study anew under a new key and destroy the old one.

        Raises:
            Forbidden; NotFound: no such study, or it holds nothing.
            StateConflict: something of it is deleted or waits for a decision, or it changes all the time.
            SealBroken: a record of it is damaged. ReadOnly, OutOfSpace, VaultUnavailable, DatabaseUnavailable.
        """
        core = self._core
        self._require(subject)
        with core.database.read() as tx:
            place = datastores.find(tx, datastore)
        with rekeying(core):
            done = self._one(subject, place, study_instance_uid, reason)
        return Rekeyed(1, done, finish(core).keys)

    def older_than(self, subject: Subject, before: datetime, *, reason: str = "re-keyed") -> Rekeyed:
        """Seal anew every study whose key is older; those that cannot be now are counted.

        Raises:
            SealBroken: a record of some study is damaged; the others are done.
            Forbidden, ReadOnly, OutOfSpace, VaultUnavailable, DatabaseUnavailable.
        """
        core = self._core
        self._require(subject)
        studies = instances = keys = left = 0
        damaged: SealBroken | None = None
        for place, uid in self._due(before):
            try:
                with rekeying(core):
                    instances += self._one(subject, place, uid, reason)
            except (StateConflict, NotFound):
                left += 1
                continue
            except SealBroken as error:
                damaged = damaged or error
                continue
            studies, keys = studies + 1, keys + finish(core).keys
        if damaged is not None:
            raise damaged
        return Rekeyed(studies, instances, keys, left)

    # -------------------------------------------------------------------------------------------------------------------------------

    def _require(self, subject: Subject) -> None:
        core = self._core
        core.require_writable()
        with denials.recorded(core, subject), core.database.read() as tx:
            policy.require(tx, subject, Permission.KEY_MANAGE, core.clock())

    def _due(self, before: datetime) -> list[tuple[Datastore, str]]:
        core = self._core
        with core.keystore.reading() as tx:
            old = set(tx.execute(
                sa.select(data_key.c.key_id).where(data_key.c.created_at < before, data_key.c.state.in_(("active", "retiring")))
            ).scalars())
        with core.database.read() as tx:
            places = {row.id: Datastore(row.id, bytes(row.uid), row.name) for row in tx.execute(sa.select(datastore))}
            query = sa.select(study.c.datastore_id, study.c.study_instance_uid, study.c.key_id).order_by(study.c.id)
            rows = policy.run_as(tx, _TOKEN, query).all()
        return [(places[row.datastore_id], row.study_instance_uid) for row in rows if bytes(row.key_id) in old]

    def _one(self, subject: Subject, place: Datastore, uid: str, reason: str) -> int:
        core = self._core
        finish(core)  # what an earlier one gave the study may still be to come: else it would be given again, and destroyed as the old key
        for last in (False,) * (ATTEMPTS - 1) + (True,):
            with core.database.read() as tx:
                rows = _rows(tx, place, uid)
            fresh = core.keystore.renew(place.uid, uid, at=core.clock())
            if any(bytes(row.key_id) == fresh.key_id for row in rows):
                message = "an earlier re-keying of the study does not come to its end"
                raise StateConflict(message, remedy="run 'archive verify'")
            again: list[_Again] = []
            try:
                for row in rows:
                    again.append(self._sealed(row, place, fresh))  # noqa: PERF401 # what is there is freed when one fails
                self._commit(subject, place, uid, again, fresh, reason)
            except Exception as error:  # an interruption, or a commit without an answer, may have come after it: a start decides
                for one in again if not isinstance(error, CommitUncertain) else ():
                    free(core, one.ref)
                if isinstance(error, StateConflict) and not last:
                    continue
                raise
            return len(again)
        raise AssertionError

    def _sealed(self, row: Any, place: Datastore, fresh: StudyKey) -> _Again:
        """Seal one record again as a new object, with a statement that names the old one's."""
        core = self._core
        at = core.clock()
        ref = catalog.ref_of(row, place.uid)
        sections = core.vault.sections(ref)
        said = dict(statements.verify(sections.statement, core.keyring.public_keys()))
        writer = core.vault.writer(fresh, place.uid, kind=row.record_kind, at=at)
        try:
            for view in core.vault.read(ref):
                writer.write(view)
            if writer.sha256 != sections.trailer.sha256 or said["sha256"] != writer.sha256.hex():
                message = "a record's bytes are not the ones its statement signs"
                raise SealBroken(message, verdict="V08", remedy="run 'archive verify --full', and put the segment back from a backup")
            del said["kid"]
            core.keyring.stay_current()
            said |= {
                "obj": writer.object_id.hex(), "ver": said["ver"] + 1, "prev": statements.digest(sections.statement).hex(),
                "recv": format_instant(max(at, core.keyring.instance_signer_since)), "sw": SOFTWARE,
            }
            envelope = statements.sign(core.keyring.instance_signer, said)
            return _Again(row, writer.finish(sections.meta, envelope), envelope)
        finally:
            writer.abort()

    def _commit(self, subject: Subject, place: Datastore, uid: str, again: list[_Again], fresh: StudyKey, reason: str) -> None:
        core = self._core
        at = core.clock()
        old = sorted(again, key=lambda one: bytes(one.row.object_id))
        objects = [bytes(one.row.object_id) for one in old]
        keys = sorted({bytes(one.row.key_id).hex() for one in old})
        with core.database.read() as tx:
            stays = staying(tx, place.id, uid, ())
        more = {
            "places": [[bytes(one.row.segment_id).hex(), one.row.record_offset, one.row.record_bytes] for one in old], "keys": keys,
            "replaced": [one.hex() for one in objects], "fresh": fresh.key_id.hex(), **stays,
        }
        in_series = sorted({one.row.series_pk for one in old})
        self._drop_packs(in_series)

        def work(tx: sa.Connection, stored: StoredRef) -> int:
            mine = (study.c.datastore_id == place.id, study.c.study_instance_uid == uid)
            policy.run_as(tx, _TOKEN, sa.select(study.c.id).where(*mine).with_for_update()).all()
            there = {(bytes(row.object_id), bytes(row.segment_id), row.record_offset) for row in _rows(tx, place, uid)}
            if there != {(bytes(one.row.object_id), bytes(one.row.segment_id), one.row.record_offset) for one in old}:
                message = "the study changed meanwhile"
                raise StateConflict(message, remedy="give the command again")
            for one in again:
                event = Event(
                    Kind.STORED, subject=subject, objects=(ObjectRef("study", uid),), instances=1, bytes=one.ref.part10_bytes,
                    detail={"via": "rekey", "replaces": bytes(one.row.object_id).hex()},
                    stored=StoredRef(statements.digest(one.envelope), one.ref.object_id, one.ref.location.record_bytes),
                )
                _name(core, tx, one.row.id, one.ref, core.ledger.record(tx, event, at=at), one.envelope)
            _grown(tx, in_series)
            named = [f"{one.hex()}.seg" for one in sorted({bytes(one.row.segment_id) for one in old})]
            event = Event(
                Kind.PURGED, subject=subject, objects=(ObjectRef("study", uid),), instances=len(old), stored=stored,
                bytes=sum(one.row.record_bytes for one in old),
                detail={"reason": reason, "payload": stored.statement_sha256.hex(), "segments": named, "keys": len(keys), "rekeyed": 1},
            )
            leaf = core.ledger.record(tx, event, at=at)
            change = {"study": uid, "objects": [one.hex() for one in objects], **more}
            carry_out(core, tx, change, leaf=leaf, at=at)
            policy.run_as(tx, _TOKEN, sa.update(study).where(*mine).values(key_id=fresh.key_id))
            return leaf

        commit_change(
            core, "purged", datastore=place.uid, study_instance_uid=uid, objects=objects, reason=reason, at=at, work=work, more=more,
        )
        for one in again:
            core.vault.settle(one.ref.location)

    def _drop_packs(self, in_series: list[int]) -> None:
        """Remove the kept metadata: a cache under the old key, made again when it is asked for."""
        core = self._core
        for some in batches(in_series):
            with core.database.read() as tx:
                kept = policy.run_as(tx, _TOKEN, sa.select(series_pack.c.object_id).where(series_pack.c.series_pk.in_(some)))
                packs = [bytes(one) for one in kept.scalars()]
            for one in packs:
                core.vault.drop_blob(one)


def _name(core: Core, tx: sa.Connection, instance_pk: int, ref: RecordRef, leaf: int, envelope: bytes) -> None:
    """Let an instance's row name another record."""
    policy.run_as(tx, _TOKEN, sa.update(instance).where(instance.c.id == instance_pk).values(
        object_id=ref.object_id, key_id=ref.key_id, segment_id=ref.location.segment_id, record_offset=ref.location.offset,
        record_bytes=ref.location.record_bytes, plaintext_bytes=ref.plaintext_bytes, leaf=leaf,
    ))
    keep_statement(core, tx, ref, leaf, envelope)


def _grown(tx: sa.Connection, in_series: list[int]) -> None:
    for some in batches(in_series):
        policy.run_as(tx, _TOKEN, sa.delete(series_pack).where(series_pack.c.series_pk.in_(some)))
        policy.run_as(tx, _TOKEN, sa.update(series).where(series.c.id.in_(some)).values(generation=series.c.generation + 1))


class Unknown:
    """Re-keyings that an index is too old to know of: a catch-up does them again, record by record, then each one's purge."""

    def __init__(self, changes: Iterable[tuple[Datastore, dict[str, Any], datetime]]) -> None:
        """Take the changes of state there are and when they were made, oldest first."""
        self._changes: list[tuple[Datastore, dict[str, Any]]] = []
        self._last: dict[str, datetime] = {}
        for place, change, at in changes:
            if "fresh" in change:
                self._changes.append((place, change))
                self._last[change["study"]] = at
        self._replaced = {bytes.fromhex(one) for _, change in self._changes for one in change["replaced"]}

    def meant(self, key_id: bytes) -> bool:
        """Whether one of them sealed anew under that key; what lies under another that is only coming was never promised."""
        return any(change["fresh"] == key_id.hex() for _place, change in self._changes)

    def after(self, change: dict[str, Any]) -> datetime | None:
        """Return when a change is to be done that is one of them: with the study's last, for what an earlier one sealed is gone."""
        return self._last.get(change["study"]) if "fresh" in change else None

    def keys(self, tx: sa.Connection) -> None:
        """Let studies name the keys that what comes next is sealed under."""
        for place, change in self._changes:
            old = [bytes.fromhex(one) for one in change["keys"]]
            policy.run_as(tx, _TOKEN, sa.update(study).where(
                study.c.datastore_id == place.id, study.c.study_instance_uid == change["study"], study.c.key_id.in_(old),
            ).values(key_id=bytes.fromhex(change["fresh"])))

    def taken(self, core: Core, arrival: Arrival) -> bool:
        """Let the row of what one of them replaced name the record that came in its place; False where there is none."""
        if not self._replaced:
            return False
        scanned, ref = arrival.scanned, arrival.ref
        with core.database.begin() as tx:
            twin = catalog.find_instance(tx, arrival.place.id, scanned.sop_instance_uid)
            if twin is None or twin.ref.object_id not in self._replaced or twin.sha256 != arrival.sha256:
                return False
            event = Event(
                Kind.STORED, objects=(ObjectRef("study", scanned.study_instance_uid),), instances=1, bytes=ref.part10_bytes,
                detail={"via": "rekey", "replaces": twin.ref.object_id.hex(), "replayed": 1},
                stored=StoredRef(statements.digest(arrival.envelope), ref.object_id, ref.location.record_bytes),
            )
            _name(core, tx, twin.instance_pk, ref, core.ledger.record(tx, event, at=core.clock()), arrival.envelope)
            _grown(tx, [twin.series_pk])
        return True


def _rows(tx: sa.Connection, place: Datastore, uid: str) -> list[Any]:
    """Return every instance of a study.

    Raises:
        NotFound: none. StateConflict: something of it is out of sight, waits, or waited.
    """
    query = (
        sa.select(instance).join(series, series.c.id == instance.c.series_pk).join(study, study.c.id == series.c.study_pk)
        .where(study.c.datastore_id == place.id, study.c.study_instance_uid == uid).order_by(instance.c.id)
    )
    rows = list(policy.run_as(tx, _TOKEN, query).all())
    if not rows:
        message = "there is no study under that UID that holds anything"
        raise NotFound(message, remedy="check the UID and the datastore")
    waits = sa.select(held.c.id).where(held.c.datastore_id == place.id, held.c.study_instance_uid == uid).limit(1)
    if any(row.rejected_at is not None for row in rows) or policy.run_as(tx, _TOKEN, waits).first() is not None:
        message = "something of the study is deleted, waits for a decision, or was let in by one"
        raise StateConflict(message, remedy="purge what is deleted ('archive purge --study'), decide what waits; what was let in cannot be "
                            "re-keyed yet")
    return rows
