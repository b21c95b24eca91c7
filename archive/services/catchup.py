"""Records younger than the index: after a rebuild or a restore what they hold is done again, in the order of their times.

A start sweeps a change of state that no row knows, for it was never acknowledged; here it may well have been, and the index is what is
late. So the marker is set in the transaction that makes the index late, and a start does this before it sweeps. What cannot be done is
noted in the transaction that takes the marker away: that stays where it lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime

import sqlalchemy as sa

from archive.access import policy
from archive.db.batches import batches
from archive.db.failures import TooLong
from archive.db.tables import archive_state, datastore, instance, segment
from archive.errors import ArchiveError, DigestMismatch, InstanceConflict, InvalidInstance, SealBroken, StateConflict, Unavailable
from archive.index import catalog
from archive.index.emptied import is_gone
from archive.keys.sealing import parse_instant
from archive.ledger import statements
from archive.ledger.audit import Event, ObjectRef, StoredRef
from archive.ledger.audit import Kind as EventKind
from archive.services import hold_rows, holds, retrace, untaken, working
from archive.services.adoption import Arrival, adopt
from archive.services.arrival_order import never_backwards
from archive.services.core import Core
from archive.services.datastores import Datastore
from archive.services.history import apply_change
from archive.services.late_order import Late, in_order, of_arrival, of_change
from archive.services.records import decode
from archive.services.rekey import Unknown
from archive.services.segment_rows import FIRST_RECORD
from archive.services.state_events import decode_change, is_known, keep_statement
from archive.vault.vault import FoundRecord, Kind

DUE = "catch_up"
_TOKEN = policy.system("replay")
_KINDS = {
    "rejected": EventKind.REJECTED, "restored": EventKind.RESTORED, "accepted": EventKind.RECONCILED, "held-rejected": EventKind.RECONCILED,
    "purged": EventKind.PURGED,
}


@dataclass(slots=True)
class CaughtUp:
    """What was done again; `damaged` counts records that did not verify and were left where they are."""

    instances: int = 0
    changes: int = 0
    damaged: list[str] = field(default_factory=list)


def set_due(tx: sa.Connection) -> None:
    """Let the next start do this first."""
    tx.execute(sa.delete(archive_state).where(archive_state.c.name == DUE))
    tx.execute(sa.insert(archive_state).values(name=DUE, value="1"))


def note_segments(core: Core, tx: sa.Connection) -> int:
    """Give files that have no row one, as if they had been left open, and return how many."""
    noted = {bytes(one) for one in tx.execute(sa.select(segment.c.id)).scalars()}
    fresh = [file for file in core.vault.segments.files() if file.segment_id not in noted]
    for file in fresh:
        tx.execute(sa.insert(segment), {
            "id": file.segment_id, "name": file.name, "state": "open", "replay_from": FIRST_RECORD, "created_at": core.clock(),
        })
    return len(fresh)


class CatchUp:
    """Runs at a start, before replay."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core
        self._going: set[bytes] = set()  # objects that a purge of those that are done again destroys
        self._again: set[tuple[bytes, str]] = set()  # what was done again, by datastore and UID: what comes next of it is newer

    def run(self) -> CaughtUp:
        """Do what is due, once; again after an interruption does the rest.

        Raises:
            DatabaseUnavailable, VaultUnavailable.
        """
        core, done = self._core, CaughtUp()
        with core.database.read() as tx:
            if tx.execute(sa.select(archive_state.c.name).where(archive_state.c.name == DUE)).first() is None:
                return done
        with core.database.begin() as tx:
            note_segments(core, tx)
        with core.database.read() as tx:
            rows = tx.execute(sa.select(segment.c.id, segment.c.replay_from, segment.c.used, segment.c.state)).all()
            places = {bytes(row.uid): Datastore(row.id, bytes(row.uid), row.name) for row in tx.execute(sa.select(datastore))}
        late = [
            one for row in rows if not (row.state == "closed" and row.replay_from >= row.used) and not core.vault.in_use(bytes(row.id))
            for one in self._segment(bytes(row.id), row.replay_from, done)
        ]
        late.sort(key=lambda one: one.at)
        rekeyed = Unknown((places[one.record.ref.datastore], one.rekeyed, one.at) for one in late if one.rekeyed)
        late = [one for one in late if not self._dropped(one, rekeyed)]
        with core.database.begin() as tx:
            rekeyed.keys(tx)
        left: dict[bytes, str] = {}
        self._going = {object_id for one in late for object_id in one.destroys}
        for one in in_order(late, lambda one: rekeyed.after(one.rekeyed) or one.at, self._out_of_sight(late)):
            object_id = one.record.ref.object_id
            try:
                if one.record.ref.kind != Kind.EVENT:
                    self._arrival(one, places, rekeyed)
                    done.instances += 1
                else:
                    self._change(one, places[one.record.ref.datastore])
                    done.changes += 1
            except InstanceConflict:
                left[object_id] = "V10"
            except (InvalidInstance, TooLong):
                left[object_id] = ""  # by this index nobody was told that it is kept; another may take it
            except ArchiveError as error:
                if not error.verdict and type(error) is not Unavailable:
                    raise
                left[object_id] = error.verdict or "V05"  # its study goes on under another key: it stays where it is
        with core.database.begin() as tx:
            for one in late:  # whatever was committed under a key that is to be destroyed went with it: a start sweeps the rest
                if one.record.ref.object_id in left and is_gone(tx, one.record.ref.key_id):
                    del left[one.record.ref.object_id]
            tx.execute(sa.delete(archive_state).where(archive_state.c.name == DUE))
            untaken.forget(tx, [one.record.ref.object_id for one in late])
            untaken.note(tx, left)
            done.damaged += filter(None, left.values())
            detail = {"what": "caught up", "adopted": done.instances, "changes": done.changes, "damaged": len(done.damaged)}
            core.ledger.record(tx, Event(EventKind.REPLAYED, detail=detail), at=core.clock())
        return done

    def _segment(self, segment_id: bytes, start: int, done: CaughtUp) -> list[Late]:
        core, late = self._core, []
        try:
            for found in core.vault.scan(segment_id, start):
                if not isinstance(found, FoundRecord):
                    continue  # replay decides whether that is damage or a write cut short
                with core.database.read() as tx:
                    known = is_known(tx, found.ref.object_id)
                if not known:
                    late.append(self._late(found))
        except SealBroken as error:
            done.damaged.append(error.verdict)
        return [replace(one, at=at) for one, at in zip(late, never_backwards([one.at for one in late]), strict=True)]

    def _dropped(self, one: Late, rekeyed: Unknown) -> bool:
        """Sweep what a re-keying that never ended left under its key."""
        ref = one.record.ref
        if ref.kind == Kind.EVENT or rekeyed.meant(ref.key_id) or self._core.keystore.state(ref.key_id) != "coming":
            return False
        self._core.vault.forget([ref])
        return True

    def _late(self, found: FoundRecord) -> Late:
        core = self._core
        if found.ref.kind == Kind.EVENT:
            change = decode_change(core.vault.read_range(found.ref, 0, found.ref.part10_bytes))
            return of_change(datetime.fromisoformat(change["at"]), found, change)
        sections = core.vault.sections(found.ref)
        meta = decode(sections.meta)
        at = datetime.fromisoformat(meta.received["at"])
        with suppress(ArchiveError):  # told when its turn comes
            signed = statements.verify(sections.statement, core.keyring.public_keys())
            at = parse_instant(signed["recv"]) if signed["prev"] else at  # sealed again: its place is after what changed before
        return of_arrival(at, found, meta.scanned.study_instance_uid)

    def _arrival(self, one: Late, places: dict[bytes, Datastore], rekeyed: Unknown) -> None:
        core, ref = self._core, one.record.ref
        sections = core.vault.sections(ref)
        meta = decode(sections.meta)
        if statements.verify(sections.statement, core.keyring.public_keys())["sha256"] != one.record.sha256.hex():
            message = "a record's bytes are not the ones its statement signs"
            raise DigestMismatch(message, verdict="V08")
        arrival = Arrival(
            place=places[ref.datastore], scanned=meta.scanned, ref=ref, sha256=one.record.sha256, issuer=meta.issuer,
            envelope=sections.statement, at=datetime.fromisoformat(meta.received["at"]), replayed=True,
        )
        if rekeyed.taken(core, arrival):
            return
        if not adopt(core, arrival, None, door=meta.received["via"]).kept:
            self._require_other_stays(arrival)
            core.vault.forget([ref])

    def _require_other_stays(self, arrival: Arrival) -> None:
        """Refuse to free the same bytes as those of a record that a purge to come is about: they may have been sent again after it."""
        uid = arrival.scanned.sop_instance_uid
        with self._core.database.read() as tx:
            twin = catalog.find_instance(tx, arrival.place.id, uid)
            waits = catalog.find_held(tx, arrival.place.id, uid, arrival.sha256)
        there = {bytes(one) for one in (twin and twin.ref.object_id, waits and waits.object_id) if one}
        if there & self._going:
            message = "the same bytes are purged later, and nobody can tell whether these came before"
            raise DigestMismatch(message, verdict="V15")

    def _out_of_sight(self, late: Sequence[Late]) -> set[bytes]:
        """Return those of the objects that are hidden or shown which are out of sight: by the index or, gone from it, by the ledger."""
        wanted = {object_id for one in late for object_id in (*one.hides, *one.shows)} - {one.record.ref.object_id for one in late}
        hidden: dict[bytes, bool] = {}
        with self._core.database.read() as tx:
            for some in batches(sorted(wanted)):
                query = sa.select(instance.c.object_id, instance.c.rejected_at).where(instance.c.object_id.in_(some))
                hidden |= {bytes(row.object_id): row.rejected_at is not None for row in policy.run_as(tx, _TOKEN, query)}
            if wanted - hidden.keys():
                hidden = retrace.said(tx).hidden | hidden
        return {one for one in wanted if hidden.get(one)}

    def _change(self, one: Late, place: Datastore) -> None:
        core, ref = self._core, one.record.ref
        envelope = core.vault.read_range(ref, 0, ref.part10_bytes)
        change = decode_change(envelope)
        kind = _KINDS.get(change["change"]) or working.KINDS.get(change["change"])
        if kind is None:
            message = "a change of state of a kind this release does not know"
            raise DigestMismatch(message, verdict="V11")
        purge = {} if kind is not EventKind.PURGED else {
            "payload": statements.digest(envelope).hex(), "keys": len(change["keys"]),
            "segments": sorted({f"{place[0]}.seg" for place in change["places"]}),
        }
        stored = StoredRef(statements.digest(envelope), ref.object_id, ref.location.record_bytes)
        event = Event(
            kind, objects=(ObjectRef("study", change["study"]),) if change["study"] else (), instances=len(change["objects"]),
            detail={"reason": change["reason"], "replayed": 1, **purge, **working.detail(change)}, stored=stored,
        )
        named = (ref.datastore, change.get("uid", ""))
        # Earlier releases did not say what a workitem was made of.
        newer = named in self._again and "after" not in change
        with core.database.begin() as tx:
            if kind in (EventKind.PURGED, EventKind.REJECTED) and "fresh" not in change:
                self._require_no_hold(tx, place, change["study"], one.at)
            leaf = core.ledger.record(tx, event, at=core.clock())
            keep_statement(core, tx, ref, leaf, envelope)
            apply_change(core, tx, change, by=None, leaf=leaf, late=None if newer else one.at)
        self._again |= {named} if named[1] else set()

    def _require_no_hold(self, tx: sa.Connection, place: Datastore, study_instance_uid: str, at: datetime) -> None:
        """Refuse what a hold forbids: its record is written before the transaction that may refuse it, and a copy may have just that."""
        try:
            holds.require_none(tx, place.id, study_instance_uid, at)
            hold_rows.require_none(self._core, tx, place.name, study_instance_uid, at)
        except StateConflict:
            message = "a change of state of a study on hold"
            raise DigestMismatch(message, verdict="V12") from None


__all__ = ["DUE", "CatchUp", "CaughtUp", "note_segments", "set_due"]
