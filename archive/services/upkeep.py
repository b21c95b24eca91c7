"""Upkeep: what one background worker does in small steps while the archive serves.

Signed checkpoints, SHA-256 of closed segments, series packs and thumbnails, WAL checkpoints, sweeping of what has run out. Everything
here may be late without harm; `tick` does what is due and returns.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

import sqlalchemy as sa

from archive.access import shares
from archive.db.tables import login_attempt, pending_peer, purged, segment, session
from archive.errors import ArchiveError
from archive.ledger.audit import Event, Kind
from archive.services import association_log, candidates, heads, hold_rows, idempotency, lifecycle, worklist
from archive.services.album_watch import AlbumWatch
from archive.services.alerts import Alerts
from archive.services.break_glass import BreakGlass
from archive.services.clock import machine_now
from archive.services.clock_doubt import ClockDoubt
from archive.services.core import Core
from archive.services.deliveries import forget_delivered
from archive.services.left_open import LeftOpen
from archive.services.preparing import PATIENCE, Preparing
from archive.services.purge import Purge
from archive.services.purge_finish import finish
from archive.services.rekey import nobody_rekeys
from archive.services.replay import UNSETTLED_AT_MOST, settled
from archive.services.snapshot import Snapshots
from archive.services.work_snapshot import WorkSnapshots
from archive.services.workitem_watch import WorkitemWatch

log = logging.getLogger("archive.services")
CHECKPOINT_EVERY = timedelta(seconds=1)
SWEEP_EVERY = timedelta(minutes=5)
ENDED_EVERY = timedelta(minutes=1)
HEAL_EVERY = timedelta(hours=1)
WAL_EVERY = timedelta(seconds=30)
WAL_BYTES = 1 << 24
WAL_KEPT = 1 << 26
"""How long the write-ahead log may stay: a commit that overwrites it is synced in two thirds of the time of one that makes it longer."""
PURGE_EVERY = timedelta(hours=6)
PURGES_PER_TICK = 32
KEEP_ATTEMPTS = timedelta(days=1)
KEEP_PENDING = timedelta(days=30)
KEEP_SESSIONS = timedelta(days=30)


class Upkeep:
    """Owned by one process; CLI commands call `checkpoint` at their end when no worker runs."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive; `busy` says whether others want the processors, and may be replaced by what knows better."""
        self._core = core
        self._preparing = Preparing(core)
        self.busy: Callable[[], bool] = lambda: False
        self._snapshots = Snapshots(core)
        self._work = WorkSnapshots(core)
        self._published = False
        self._passed_over: set[bytes] = set()
        self._break_glass = BreakGlass(core, Alerts(core))
        self._albums = AlbumWatch(core)
        self._left_open = LeftOpen(core)
        self.doubt = ClockDoubt(core)
        self._all_due(machine_now(core.clock))

    def _all_due(self, at: datetime) -> None:
        self._ticked_at = at
        self._swept_at = self._healed_at = self._purged_at = datetime.fromtimestamp(0, at.tzinfo)
        self._wal_at = self._checkpoint_at = self._ended_at = self._finished_at = self._swept_at

    def _now(self) -> datetime:
        """Return the machine's time, which what is due goes by; when it was set back, nothing waits until it is where it was."""
        now = machine_now(self._core.clock)
        if now < self._ticked_at:
            if self._ticked_at - now > lifecycle.SET_BACK:
                lifecycle.set_back(self._core, self._ticked_at - now)
            self._all_due(now)
        self._ticked_at = now
        return now

    def tick(self) -> None:
        """Do what is due now.

        Raises:
            ArchiveError: a step failed; it is tried again at the next tick.
        """
        core = self._core
        if core.read_only:
            return
        now, at = self._now(), core.clock()
        if not self._published:
            heads.publish(core)  # once, for what a crash left
            self._published = True
        if now - self._checkpoint_at >= CHECKPOINT_EVERY:
            self.checkpoint()
            self._checkpoint_at = now
            self._snapshots.tick()
            self._work.tick()
        if now - self._ended_at >= ENDED_EVERY:
            self._break_glass.tick(at)
            self._albums.tick(at)
            self._left_open.tick()
            self._ended_at = now
        busy = self.busy()
        self._hash_segments(sa.not_(segment.c.closed_at.between(at - PATIENCE, at)) if busy else None)
        self._preparing.tick(at, busy=busy)
        if now - self._wal_at >= WAL_EVERY:
            core.database.checkpoint(patient=False, cut=core.database.log_bytes() > WAL_KEPT)
            self._wal_at = now
        elif core.database.log_waiting_bytes() >= WAL_BYTES:
            core.database.checkpoint(patient=False, cut=False)
        waits = self.doubt.waits()
        if now - self._swept_at >= SWEEP_EVERY and not waits:
            self._sweep(at)
            self._swept_at = now
        if now - self._healed_at >= HEAL_EVERY and not candidates.heal(core, at):
            hold_rows.mend(core, at)
            self._passed_over.clear()
            self._healed_at = now
        self._take_away(now, at, waits=waits)

    def _take_away(self, now: datetime, at: datetime, *, waits: bool) -> None:
        """End what purges and re-keyings left, and purge what is past its time."""
        core = self._core
        if now - self._finished_at >= ENDED_EVERY:
            with nobody_rekeys(core) as nobody:  # who does brings it to its end, and tells of it
                if nobody:
                    finish(core)  # until then nothing is stored into a study whose key is to go
            self._finished_at = now
        if now - self._purged_at >= PURGE_EVERY and not waits and not self._purge(at):
            self._purged_at = now

    def _purge(self, at: datetime) -> bool:
        """Purge what is past its time, a little at once; return whether there is more."""
        core = self._core
        days = core.config.storage.purge_after
        if not days:
            return False
        reason = f"rejected more than {days} days ago"
        done = Purge(core).run(None, before=at - timedelta(days=days), reason=reason, limit=PURGES_PER_TICK)
        return bool(done.left and done.instances)

    def finish(self) -> None:
        """Record the stop and sign the ledger's head: what the archive says last covers everything.

        Raises:
            DatabaseUnavailable, VaultUnavailable, LedgerBroken.
        """
        if not self._core.read_only:
            lifecycle.stopped(self._core)
            self.leave()

    def leave(self) -> None:
        """Sign the ledger's head and write down what a rebuild needs: this worker ends, and another may follow.

        Raises:
            DatabaseUnavailable, VaultUnavailable, LedgerBroken.
        """
        if not self._core.read_only:
            self.checkpoint()
            self._snapshots.tick()
            self._work.tick(now=True)

    def checkpoint(self) -> bool:
        """Sign the ledger's head when it grew or the heartbeat is due, and write its files; False when nothing was due.

        Raises:
            LedgerBroken: the log does not continue what was signed.
            DatabaseUnavailable, VaultUnavailable.
        """
        return heads.sign(self._core)

    def snapshot(self) -> bool:
        """Write an access snapshot when one is due and nobody has just written one; False when none was.

        Raises:
            DatabaseUnavailable, VaultUnavailable.
        """
        self._work.tick(now=True)
        return self._snapshots.tick(patient=True)

    def _hash_segments(self, wanted: sa.ColumnElement[bool] | None = None) -> None:
        """Hash a closed segment: a quarter of a gigabyte is read, and a processor taken for as long."""
        core = self._core
        with core.database.read() as tx:
            rows = tx.execute(
                sa.select(segment.c.id, segment.c.name, segment.c.replay_from).where(
                    segment.c.state == "closed", segment.c.sha256.is_(None), segment.c.id.not_in(self._passed_over),
                    sa.true() if wanted is None else wanted,
                    # A record whose rows are not committed yet may still become a hole.
                    sa.or_(segment.c.replay_from >= segment.c.used, segment.c.closed_at < core.clock() - UNSETTLED_AT_MOST),
                    segment.c.id.not_in(sa.select(purged.c.segment_id).where(purged.c.freed_at.is_(None))),
                ).limit(1)
            ).all()
            taken_out = [_taken_out(tx, row.id) for row in rows]
        for row, before in zip(rows, taken_out, strict=True):
            try:
                digest = core.vault.segments.digest(bytes(row.id)) if settled(core, bytes(row.id), row.replay_from) else None
            except ArchiveError as error:
                log.error("a closed segment cannot be read (%s); run 'archive verify'", error.verdict or error.code)
                digest = None
            if digest is None:
                self._passed_over.add(bytes(row.id))  # for an hour: it holds up no other, nor what else is due
                continue
            with core.database.begin() as tx:
                if _taken_out(tx, row.id) != before:
                    continue  # something was purged meanwhile
                tx.execute(sa.update(segment).where(segment.c.id == row.id).values(sha256=digest))
                core.ledger.record(
                    tx, Event(Kind.SEGMENT_CLOSED, detail={"segment": row.name, "sha256": digest.hex()}), at=core.clock()
                )

    def _sweep(self, at: datetime) -> None:
        WorkitemWatch(self._core).sweep(at)
        with self._core.database.begin(durable=False) as tx:
            tx.execute(sa.delete(login_attempt).where(login_attempt.c.at < machine_now(self._core.clock) - KEEP_ATTEMPTS))
            tx.execute(sa.delete(pending_peer).where(pending_peer.c.last_seen_at < at - KEEP_PENDING))
            tx.execute(sa.delete(session).where(session.c.absolute_until < at - KEEP_SESSIONS))
            forget_delivered(tx, at)
            association_log.sweep(tx, at)
            worklist.sweep(tx, at)
            idempotency.sweep(tx, at)
            shares.sweep(tx, at)


def _taken_out(tx: sa.Connection, segment_id: bytes) -> int:
    return int(tx.execute(sa.select(sa.func.count()).select_from(purged).where(purged.c.segment_id == segment_id)).scalar_one())
