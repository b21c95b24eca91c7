"""Signing the ledger's head: a checkpoint of everything recorded, and its files."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import sqlalchemy as sa

from archive import locks
from archive.ledger import checkpoints, files, nodes
from archive.services.acknowledged import acknowledged
from archive.services.core import Core


def sign(core: Core, *, beats: bool = True) -> bool:
    """Sign the ledger's head when it grew or the heartbeat is due, and write its files; False when nothing was due.

    A command does not beat: nothing would tell any more that the archive has not run for long (services/clock_doubt.py).

    Raises:
        LedgerBroken: the log does not continue what was signed.
        DatabaseUnavailable, VaultUnavailable.
    """
    at = core.clock()
    signed = False
    with locks.alone(core.config.run_dir / "checkpoint.lock"):
        core.keyring.stay_current()
        with core.database.read() as tx:
            latest = checkpoints.latest(tx)
            size = nodes.size(tx)  # what is recorded meanwhile is the next one's: under load there would be no end
        covered = 0 if latest is None else latest.size
        beat = timedelta(minutes=core.config.ledger.heartbeat_minutes)
        quiet = beats and latest is not None and abs(at - latest.at) >= beat  # the clock may have been set back
        while covered < size or (quiet and not signed):
            with core.database.begin() as tx:
                made = checkpoints.make(tx, core.keyring, at, heartbeat=quiet and covered >= size)
            if made is None:
                break
            _write(core, made)
            signed, covered = True, made.size
    return signed


def publish(core: Core) -> None:
    """Make good what a crash between a checkpoint's commit and its files left out.

    Raises:
        DatabaseUnavailable, VaultUnavailable.
    """
    with locks.alone(core.config.run_dir / "checkpoint.lock"):
        with core.database.read() as tx:
            latest = checkpoints.latest(tx)
        if latest is not None:
            _write(core, latest)


def _write(core: Core, made: checkpoints.Checkpoint) -> None:
    with core.database.read() as tx:
        files.publish(tx, made, core.config.ledger_dir, [partial(_remember, core, tx)])


def _remember(core: Core, tx: sa.Connection, size: int, note: bytes) -> None:
    """Let the keystore keep a checkpoint; a larger one whose rollback was acknowledged gives way, else the next one went unnoticed.

    Only by an event that this checkpoint covers: it is durable, and whoever takes it back is noticed himself.
    """
    kept = core.keystore.anchor("checkpoint")
    given_up = kept is not None and kept.size > size and checkpoints.digest(kept.note) in acknowledged(core, tx, before=size)
    core.keystore.set_anchor("checkpoint", size, note, instead=kept.note if kept is not None and given_up else None)
