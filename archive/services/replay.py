"""Replay: at start, records that were sealed and synced but whose rows were not committed get them, or are swept.

Scans each segment from its replay position. A sound record whose object no row names is verified in full (every chunk, SHA-256,
signature) and adopted by the same transaction as a store; conflict rules run again, so an instance never has two live rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

import sqlalchemy as sa

from archive.db.tables import datastore, segment, statement
from archive.errors import ArchiveError, DigestMismatch, SealBroken
from archive.ledger import statements
from archive.ledger.audit import Event
from archive.ledger.audit import Kind as EventKind
from archive.services.adoption import Arrival, adopt
from archive.services.core import Core
from archive.services.datastores import Datastore
from archive.services.records import decode
from archive.vault.disk import padded
from archive.vault.vault import Damage, Kind, RecordRef


@dataclass(slots=True)
class Replayed:
    """What a replay did; `damaged` counts records that did not verify and were left where they are."""

    adopted: int = 0
    swept: int = 0
    damaged: list[str] = field(default_factory=list)


_KNOWN = sa.select(statement.c.leaf).where(statement.c.object_id == sa.bindparam("object"))


class Replay:
    """Runs once at start, before any door opens."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core

    def run(self) -> Replayed:
        """Adopt or sweep everything past the replay positions; a second run changes nothing.

        Raises:
            DatabaseUnavailable, VaultUnavailable.
        """
        core = self._core
        done = Replayed()
        with core.database.read() as tx:
            rows = tx.execute(sa.select(segment).order_by(segment.c.created_at, segment.c.id)).all()
            places = {bytes(row.uid): Datastore(row.id, bytes(row.uid), row.name) for row in tx.execute(sa.select(datastore))}
        for row in rows:
            if row.state == "closed" and row.replay_from >= row.used:
                continue
            if core.vault.segments.in_use(row.id):
                continue  # an import beside us is writing it, and settles what it writes
            try:
                used = self._segment(row.id, row.replay_from, places, done)
            except SealBroken as error:
                done.damaged.append(error.verdict)  # the file is gone; verify names what was in it, the rest goes on
                continue
            if used is not None and core.vault.segments.finish_segment(row.id, used):
                with core.database.begin() as tx:
                    tx.execute(
                        sa.update(segment).where(segment.c.id == row.id)
                        .values(state="closed", used=used, replay_from=used, closed_at=core.clock())
                    )
        if done.adopted or done.swept or done.damaged:
            detail = {"adopted": done.adopted, "swept": done.swept, "damaged": len(done.damaged)}
            with core.database.begin() as tx:
                core.ledger.record(tx, Event(EventKind.REPLAYED, detail=detail), at=core.clock())
        return done

    def _segment(self, segment_id: bytes, start: int, places: dict[bytes, Datastore], done: Replayed) -> int | None:
        """Return the length the file can be cut to; None where damage asks for it to stay as it is."""
        core = self._core
        used, whole = start, True
        for found in core.vault.scan(segment_id, start):
            if isinstance(found, Damage):
                done.damaged.append(found.verdict)
                whole = False
                continue
            ref = found.ref
            used = max(used, padded(ref.location.offset + ref.location.record_bytes))
            with core.database.read() as tx:
                known = tx.execute(_KNOWN, {"object": ref.object_id}).first() is not None
            if known:
                continue
            try:
                # A change is committed with FULL before it is acknowledged, so one without rows was never promised.
                if ref.kind != Kind.EVENT and self._adopt(ref, found.sha256, places):
                    done.adopted += 1
                else:
                    core.vault.forget([ref])
                    done.swept += 1
            except ArchiveError as error:
                if not error.verdict:
                    raise
                done.damaged.append(error.verdict)
                whole = False
        return used if whole else None

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
