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
from archive.errors import DatabaseUnavailable
from archive.keys.keyring import Keyring
from archive.services import setup

_SUFFIXES = ("", "-wal", "-shm")


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
            return _anew(config, keyring)
        if not is_sound(index):
            index.close()
            return _aside(config, keyring, at)
        if migrate.revision(index) is None:
            return _anew(config, keyring)
        migrate.check(index)
        with index.read() as tx:
            empty = tx.execute(sa.select(principal.c.id).limit(1)).first() is None
        return Standing(lost=empty)  # empty: an earlier rebuild was cut short
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
    return Standing(lost=True)


def _aside(config: Config, keyring: Keyring, at: datetime) -> Standing:
    aside = config.index_path.with_name(f"index-damaged-{at:%Y%m%dT%H%M%S}.db")
    for suffix in reversed(_SUFFIXES):
        old = config.index_path.with_name(config.index_path.name + suffix)
        if old.exists():
            old.replace(aside.with_name(aside.name + suffix))
    _anew(config, keyring)
    old_index = Database.embedded(aside, keyring.index_key, config.run_dir / "damaged.lock")
    return Standing(lost=True, damaged=old_index, aside=aside)
