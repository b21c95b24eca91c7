"""How an index stands before a rebuild: it opens, it is gone, or it is damaged; a place for a new one is made without losing the old."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa

from archive.config import Config
from archive.db import migrate
from archive.db.copies import is_sound
from archive.db.engine import Database
from archive.db.tables import principal
from archive.errors import ArchiveError, DatabaseUnavailable
from archive.keys import private_files
from archive.keys.keyring import Keyring
from archive.ledger import nodes
from archive.services import setup


@dataclass(frozen=True, slots=True)
class Standing:
    """`damaged` is the old index, opened, when there is something to read in it; `aside` is where it lies now."""

    lost: bool
    damaged: Database | None = None
    aside: Path | None = None


def prepare(config: Config, keyring: Keyring, *, at: datetime) -> Standing:
    """Look at both databases and make an empty index where none opens; a damaged file is moved aside, never removed.

    Raises:
        DatabaseUnavailable: the keystore is lost, the index is of another revision, or a server does not answer.
    """
    _require_keystore(config, keyring)
    setup.make_folders(config)
    index = setup.open_index(config, keyring)
    try:
        if index.sqlite and not config.index_path.exists():
            _follow(config)
            return _anew(config, keyring)
        if not is_sound(index):
            index.close()
            _aside(config, at)
            return _anew(config, keyring)
        if migrate.revision(index) is None:
            return _anew(config, keyring)
        migrate.check(index)
        with index.read() as tx:
            empty = tx.execute(sa.select(principal.c.id).limit(1)).first() is None
        return _with_the_old(config, keyring) if empty else Standing(lost=False)  # empty: an earlier rebuild was cut short
    finally:
        index.close()


def _require_keystore(config: Config, keyring: Keyring) -> None:
    remedy = "put keystore.db back from a backup; nothing else holds the keys of the studies, so without it no image can be opened"
    if not config.keystore_path.exists():
        message = f"the keystore is missing: {config.keystore_path}"
        raise DatabaseUnavailable(message, remedy=remedy)
    keystore = setup.open_keystore(config, keyring)
    try:
        migrate.check(keystore, keystore=True)
        if not is_sound(keystore):
            message = f"the keystore is damaged: {config.keystore_path}"
            raise DatabaseUnavailable(message, remedy=remedy)
    finally:
        keystore.close()


def _anew(config: Config, keyring: Keyring) -> Standing:
    index = setup.open_index(config, keyring)
    try:
        migrate.upgrade(index)
    finally:
        index.close()
    return _with_the_old(config, keyring)


def _aside(config: Config, at: datetime) -> None:
    """Give the damaged index another name, what it is part of first: without it the rest is never opened."""
    aside = config.index_path.with_name(f"index-damaged-{at:%Y%m%dT%H%M%S%f}.db")
    _move(config.index_path, aside)
    _follow(config)


def _follow(config: Config) -> None:
    """Move what belongs to an index that was moved aside after it, also when that was cut short."""
    for aside in _moved(config)[:1]:
        for suffix in ("-wal", "-shm"):
            left = config.index_path.with_name(config.index_path.name + suffix)
            if left.exists() and not aside.with_name(aside.name + suffix).exists():
                _move(left, aside.with_name(aside.name + suffix))


def _move(old: Path, new: Path) -> None:
    old.replace(new)
    private_files.sync_directory(new.parent)


def _moved(config: Config) -> list[Path]:
    """Return damaged indexes that were moved aside, newest first."""
    return sorted(config.storage_dir.glob("index-damaged-*.db"), reverse=True)


def _with_the_old(config: Config, keyring: Keyring) -> Standing:
    """Open the damaged index that knows most: an earlier attempt may have moved it aside, and have been cut short."""
    best: tuple[int, Database, Path] | None = None
    for path in _moved(config) if not config.database.url else ():
        old = Database.embedded(path, keyring.index_key, config.run_dir / "damaged.lock")
        try:
            with old.read() as tx:
                size = nodes.size(tx)
        except (ArchiveError, sa.exc.SQLAlchemyError):
            size = -1
        if best is not None and best[0] >= size:
            old.close()
            continue
        if best is not None:
            best[1].close()
        best = size, old, path
    return Standing(lost=True) if best is None else Standing(lost=True, damaged=best[1], aside=best[2])
