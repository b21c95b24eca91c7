"""Replay: at start, records that were sealed and synced but whose rows were not committed get them, or are swept.

Scans each segment from its replay position. A sound record whose object no row names is verified in full (every chunk, SHA-256,
signature) and adopted by the same transaction as a store; conflict rules run again, so an instance never has two live rows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from archive.access import policy
from archive.db.tables import audit_event, datastore, held, instance, purged, segment
from archive.errors import ArchiveError, DigestMismatch, InvalidInstance, SealBroken, Unavailable
from archive.index.emptied import is_gone
from archive.ledger import statements
from archive.ledger.audit import Event
from archive.ledger.audit import Kind as EventKind
from archive.services import untaken
from archive.services.adoption import Arrival, adopt
from archive.services.arrival_order import never_backwards
from archive.services.core import Core
from archive.services.datastores import Datastore
from archive.services.records import decode
from archive.services.rekey import nobody_rekeys
from archive.services.segment_rows import FIRST_RECORD
from archive.services.state_events import is_known
from archive.vault.disk import padded
from archive.vault.vault import Damage, FoundRecord, Kind, Location, RecordRef


@dataclass(slots=True)
class Replayed:
    """What a replay did; `damaged` counts records that did not verify and were left where they are."""

    adopted: int = 0
    swept: int = 0
    damaged: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Looked:
    """A segment that was looked through: up to where it holds something, and what of it no row names."""

    segment_id: bytes
    used: int
    whole: bool = True
    unnamed: list[_Unnamed] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Unnamed:
    at: datetime
    found: FoundRecord
    looked: _Looked


UNSETTLED_AT_MOST = timedelta(minutes=10)
"""How long after it was sealed a record may still get its rows."""

_TORN = frozenset({"V02", "V04", "V06", "V07", "V08"})
"""What a write that was cut short can look like; a key that is missing (V05) never does."""


class Replay:
    """Runs once at start, before any door opens."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core
        self._purge: sa.Row[Any, Any] | None = None
        self._set_back: bool | None = None
        self._untaken: dict[bytes, str] = {}
        self._suspect: Collection[bytes] | None = ()

    def run(self) -> Replayed:
        """Adopt or sweep everything past the replay positions; a second run changes nothing.

        Raises:
            DatabaseUnavailable, VaultUnavailable.
        """
        with nobody_rekeys(self._core) as alone:
            return self._run(alone)

    def left(self, segment_ids: Collection[bytes]) -> Replayed:
        """Do the same with segments that a process left when it died, while others serve.

        Only with those whose lock nobody holds: whoever has a record to settle holds the lock of its segment.

        Raises:
            DatabaseUnavailable, VaultUnavailable.
        """
        with nobody_rekeys(self._core) as alone:
            return self._run(alone, segment_ids)

    def _run(self, alone: bool, only: Collection[bytes] | None = None) -> Replayed:
        core = self._core
        done = Replayed()
        with core.database.read() as tx:
            rows = tx.execute(sa.select(segment).order_by(segment.c.created_at, segment.c.id)).all()
        files = {file.segment_id: file.file_bytes for file in core.vault.segments.files()}
        with core.database.read() as tx:
            noted = {bytes(one) for one in tx.execute(sa.select(segment.c.id)).scalars()}
            self._purge, self._set_back = tx.execute(_PURGE).first(), None
            self._untaken, self._suspect = untaken.noted(tx), untaken.suspect(tx)
            places = {bytes(row.uid): Datastore(row.id, bytes(row.uid), row.name) for row in tx.execute(sa.select(datastore))}
        if only is not None:
            rows = [row for row in rows if bytes(row.id) in only]
            noted |= files.keys() - set(only)
        looked = self._looked(rows, files, done, alone=alone)
        # Whoever was first is first again, whichever process took it in: what came second may be in conflict with it.
        timed = [
            (at, one) for segment_ in looked
            for at, one in zip(never_backwards([one.at for one in segment_.unnamed]), segment_.unnamed, strict=True)
        ]
        for _, unnamed in sorted(timed, key=lambda pair: pair[0]):
            self._settle(unnamed, places, done)
        for one in looked:
            self._finish(one, files.get(one.segment_id, 0))
        for segment_id in files.keys() - noted:
            self._drop_file(segment_id)
        if done.adopted or done.swept or done.damaged:
            detail = {"adopted": done.adopted, "swept": done.swept, "damaged": len(done.damaged)}
            with core.database.begin() as tx:
                core.ledger.record(tx, Event(EventKind.REPLAYED, detail=detail), at=core.clock())
        return done

    def _looked(self, rows: Sequence[sa.Row[Any]], files: Collection[bytes], done: Replayed, *, alone: bool) -> list[_Looked]:
        """Look through the segments that are not done with."""
        core, looked = self._core, []
        for row in rows:
            if row.state == "closed" and row.replay_from >= row.used:
                continue
            if row.id not in files and self._drop_row(row):
                continue
            if core.vault.segments.in_use(row.id):
                continue  # an import beside us is writing it, and settles what it writes
            try:
                # A closed one was cut where it ends and may be hashed: what it held last and was not kept is a hole, and stays one.
                least = max(row.replay_from, row.used) if row.state == "closed" else row.replay_from
                looked.append(self._look(_Looked(row.id, least), row.replay_from, done, alone=alone))
            except SealBroken as error:
                done.damaged.append(error.verdict)  # the file is gone; verify names what was in it, the rest goes on
        return looked

    def _look(self, looked: _Looked, start: int, done: Replayed, *, alone: bool) -> _Looked:
        """Find what no row names, and sweep what was cut short or never promised."""
        core, segment_id = self._core, looked.segment_id
        for found in list(core.vault.scan(segment_id, start)):  # to the end before the file may go
            if isinstance(found, Damage):
                named = self._named(segment_id, found.offset, found.length)
                if found.verdict in _TORN and not named and not self._may_be_known(segment_id, found):
                    core.vault.segments.remove(Location(segment_id, found.offset, found.length))
                    done.swept += 1
                    continue
                if found.shredded and not named:
                    looked.used = max(looked.used, padded(found.offset + found.length))
                    continue  # of a study that was purged
                done.damaged.append(found.verdict)
                looked.whole = False
                continue
            ref = found.ref
            looked.used = max(looked.used, padded(ref.location.offset + ref.location.record_bytes))
            coming = core.keystore.state(ref.key_id) == "coming"
            with core.database.read() as tx:  # after the key was looked at: what was committed meanwhile is known now
                known, going = is_known(tx, ref.object_id), is_gone(tx, ref.key_id)
            if known:
                continue
            if (verdict := self._untaken.get(ref.object_id)) is not None:  # it may have been promised
                done.damaged += [verdict] * bool(verdict)
                looked.whole = False
            elif coming and not alone:
                looked.whole = False  # a re-keying beside us is about to name it
            elif ref.kind == Kind.EVENT or going or coming:
                # A change is committed with FULL before it is acknowledged, so one without rows was never promised; nor was what
                # lies under a key that is to be destroyed: whatever had been committed went with it, or was sealed anew; nor what a
                # re-keying that was killed sealed under a key that never came to be the study's.
                core.vault.forget([ref])
                done.swept += 1
            else:
                self._noted(found, looked, done)
        return looked

    def _noted(self, found: FoundRecord, looked: _Looked, done: Replayed) -> None:
        try:
            meta = decode(self._core.vault.sections(found.ref).meta)
        except ArchiveError as error:
            _damaged(error, looked, done)
            return
        at = datetime.fromisoformat(meta.received["at"])
        if self._before_purge(at):
            # A purge is committed with FULL, and every commit before it with it: this one was never acknowledged. Its sender was told
            # that nobody knows, may have sent it again, and that may be what was purged.
            self._core.vault.forget([found.ref])
            done.swept += 1
        else:
            looked.unnamed.append(_Unnamed(at, found, looked))

    def _before_purge(self, at: datetime) -> bool:
        """Whether what was sealed then was there before the last purge, and not dated so by a clock that was ahead then or behind since."""
        purge = self._purge
        if purge is None or at + UNSETTLED_AT_MOST >= purge.at:
            return False
        if self._set_back is None:
            earlier = sa.select(audit_event.c.n).where(audit_event.c.n > purge.n, audit_event.c.at < purge.at - UNSETTLED_AT_MOST)
            with self._core.database.read() as tx:
                self._set_back = self._core.clock() < purge.at or tx.execute(earlier.limit(1)).first() is not None
        return not self._set_back

    def _settle(self, one: _Unnamed, places: dict[bytes, Datastore], done: Replayed) -> None:
        try:
            if self._adopt(one.found.ref, one.found.sha256, places):
                done.adopted += 1
            else:
                self._core.vault.forget([one.found.ref])
                done.swept += 1
        except InvalidInstance:  # nobody was told that it is kept; another index may take it
            one.looked.whole = False
        except ArchiveError as error:
            _damaged(error, one.looked, done)

    def _finish(self, looked: _Looked, file_bytes: int) -> None:
        """Cut and close a segment that is settled; one with damage, or with a re-keying beside us, stays as it is."""
        core, segment_id = self._core, looked.segment_id
        if not looked.whole:
            return
        if looked.used == FIRST_RECORD and not self._named(segment_id):
            core.vault.segments.remove(Location(segment_id, FIRST_RECORD, max(0, file_bytes - FIRST_RECORD)))
        elif core.vault.segments.finish_segment(segment_id, looked.used):
            with core.database.begin() as tx:
                tx.execute(
                    sa.update(segment).where(segment.c.id == segment_id)
                    .values(state="closed", used=looked.used, replay_from=looked.used, closed_at=core.clock())
                )

    def _named(self, segment_id: bytes, offset: int = 0, length: int = 1 << 62) -> bool:
        """Whether a row says that a record lies there: then bytes that do not verify are damage, else a write cut short."""
        where = {"segment": segment_id, "start": offset, "stop": offset + length}
        with self._core.database.read() as tx:
            return any(policy.run_as(tx, policy.system("replay"), named, where).first() is not None for named in _NAMED)

    def _may_be_known(self, segment_id: bytes, found: Damage) -> bool:
        """Whether the record had its rows, or may have had them: one of a change of state has no place in them, only its statement."""
        if found.object_id in self._untaken or self._suspect is None or segment_id in self._suspect:
            return True
        if found.object_id is None:
            return False
        with self._core.database.read() as tx:
            return is_known(tx, found.object_id)

    def _drop_row(self, row: sa.Row[Any]) -> bool:
        """Forget a segment whose file was removed, empty, just before the end."""
        if row.used or row.replay_from > FIRST_RECORD or self._named(row.id):
            return False
        with self._core.database.begin() as tx:
            tx.execute(sa.delete(segment).where(segment.c.id == row.id))
        return True

    def _drop_file(self, segment_id: bytes) -> None:
        """Remove a file that no row was made for any more; one with records in it stays, and verify names it."""
        core = self._core
        try:
            if core.vault.finish_segment(segment_id) == FIRST_RECORD:
                core.vault.segments.remove(Location(segment_id, FIRST_RECORD, 0))
        except SealBroken:
            return  # removed meanwhile by the process that made it

    def _adopt(self, ref: RecordRef, sha256: bytes, places: dict[bytes, Datastore]) -> bool:
        core = self._core
        sections = core.vault.sections(ref)
        signed = statements.verify(sections.statement, core.keyring.public_keys())
        if sha256.hex() != signed["sha256"]:
            message = "a record's bytes are not the ones its statement signs"
            raise DigestMismatch(message, verdict="V08")
        meta = decode(sections.meta)
        arrival = Arrival(
            place=places[ref.datastore], scanned=meta.scanned, ref=ref, sha256=sha256, issuer=meta.issuer,
            envelope=sections.statement, at=datetime.fromisoformat(meta.received["at"]), replayed=True,
        )
        return adopt(core, arrival, None, door=meta.received["via"]).kept


def settled(core: Core, segment_id: bytes, start: int) -> bool:
    """Whether nothing lies at or after `start` of a closed segment that the next start would take in or sweep.

    Raises:
        SealBroken, VaultUnavailable, DatabaseUnavailable.
    """
    for found in core.vault.scan(segment_id, start, verify=False):
        if isinstance(found, Damage):
            if not found.shredded:
                return False
            continue
        with core.database.read() as tx:
            if not is_known(tx, found.ref.object_id):
                return False
    return True


def _damaged(error: ArchiveError, looked: _Looked, done: Replayed) -> None:
    if not error.verdict and type(error) is not Unavailable:
        raise error
    done.damaged.append(error.verdict or "V05")  # its study goes on under another key
    looked.whole = False


_PURGE = sa.select(audit_event.c.n, audit_event.c.at).where(audit_event.c.n == sa.select(sa.func.max(purged.c.leaf)).scalar_subquery())
_NAMED = [
    sa.select(table.c.id).where(
        table.c.segment_id == sa.bindparam("segment"), table.c.record_offset < sa.bindparam("stop"),
        table.c.record_offset + table.c.record_bytes > sa.bindparam("start"),
    ).limit(1)
    for table in (instance, held)
]
