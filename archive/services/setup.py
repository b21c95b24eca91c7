"""First start: keys, certificates, databases, roles and the first user, each made once.

What was cut short, or failed for a database that did not answer, is made to its end by the same call: nothing is removed for that.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa

from archive.access import bootstrap
from archive.config import Config
from archive.db import failures, migrate
from archive.db.engine import Database
from archive.db.tables import datastore, principal
from archive.db.types import FOREVER
from archive.errors import ConfigurationError, DatabaseUnavailable
from archive.keys import private_files
from archive.keys.keyring import Keyring
from archive.ledger.audit import Event, Kind, secret_digest
from archive.ledger.log import Ledger
from archive.services.clock import Clock, utc_now

FIRST_WORD = "first-password"
WORDS = "abcdefghjkmnpqrstuvwxyz23456789"
UNFINISHED = "initialising"
"""The file in the folder of the running archive that is there from before the first key until the first user is."""
FOLDERS = ("storage_dir", "keys_dir", "run_dir", "tls_dir", "segments_dir", "cache_dir", "ledger_dir")


@dataclass(frozen=True, slots=True)
class Initialised:
    """What was made; `first_password` is where the first password lies, unless one was given."""

    admin: str
    first_password: Path | None
    recovery_kit: Path | None


def is_initialised(config: Config) -> bool:
    """Whether there is an archive, made to its end."""
    return (config.keys_dir / "keyring.json").exists() and not (config.run_dir / UNFINISHED).exists()


def initialise(
    config: Config, *, admin: str = "admin", password: str | None = None, recovery_kit: Path | None = None, clock: Clock = utc_now
) -> Initialised:
    """Make everything an archive needs; nothing that exists is overwritten.

    Raises:
        ConfigurationError: it is initialised already, data is there without keys, or half of a restore.
        InvalidRequest: the password is too weak.
        KeysUnavailable, DatabaseUnavailable.
    """
    if is_initialised(config):
        message = f"there is an archive at {config.storage_dir} already"
        raise ConfigurationError(message, remedy="start it with 'archive serve' or 'archive up'")
    if fresh := not (config.keys_dir / "keyring.json").exists():
        from archive.services import restoring

        if (stage := config.storage_dir / restoring.STAGE).exists():  # an empty archive here would pass for the one that was to be restored
            message = f"a restore into {config.storage_dir} was cut short"
            raise ConfigurationError(message, remedy="give 'archive restore' again, or name another storage folder; if nothing is to be "
                                     f"restored, remove {stage} and what the restore put beside it")
        for path in (config.index_path, config.keystore_path, config.storage_dir / FIRST_WORD):
            if path.exists():
                message = f"{path} is there but its keys are not at {config.keys_dir}"
                raise ConfigurationError(message, remedy="bring the keys back (or the recovery kit), or name another storage folder")
    from archive.keys import ca

    bootstrap.check_password(password)
    at = clock()
    make_folders(config)
    private_files.write(config.run_dir / UNFINISHED, b"")
    keyring = Keyring.create(config, at=at, recovery_kit=recovery_kit) if fresh else _opened(config, recovery_kit, at)
    if config.database.url:
        _require_ours(config, keyring)
    make_databases(config, keyring, fresh=True)
    ca.create(config, keyring, at=at)
    ca.ensure_server_certificate(config, keyring, at=at)
    first_password = config.storage_dir / FIRST_WORD
    database = open_index(config, keyring)
    try:
        owner = _owner(database, keyring)
        if owner is None:
            chosen = password or _drawn(first_password)
            if password is not None:
                first_password.unlink(missing_ok=True)  # of an attempt that was given none
            owner = _first_user(database, keyring, admin, chosen, must_change=password is None, at=at)
    finally:
        database.close()
    (config.run_dir / UNFINISHED).unlink()
    private_files.sync_directory(config.run_dir)
    return Initialised(owner, first_password if first_password.exists() else None, recovery_kit)


def _opened(config: Config, recovery_kit: Path | None, at: datetime) -> Keyring:
    """Open the keyring of an attempt that was cut short, and make the kit where that did not come to it."""
    keyring = Keyring.open(config)
    kitted = any(slot["kind"] == "recovery" for slot in keyring.slots())
    if recovery_kit is not None and not (kitted and recovery_kit.exists()):
        keyring.slot_add(at=at, recovery_kit=recovery_kit, label="first recovery kit")
    return keyring


def _require_ours(config: Config, keyring: Keyring) -> None:
    """Refuse a server's database that another archive is in, before its schema is touched.

    Raises:
        ConfigurationError, DatabaseUnavailable.
    """
    database = open_index(config, keyring)
    try:
        if migrate.revision(database) is not None:
            _owner(database, keyring)
    finally:
        database.close()


def _drawn(path: Path) -> str:
    """Return the first password, kept before there is a user whom nobody would know it of."""
    if not path.exists():
        private_files.write(path, f"{_password()}\n".encode())
    return path.read_text(encoding="ascii").strip()


def _owner(database: Database, keyring: Keyring) -> str | None:
    """Return the first user of this archive's index, None where there is none yet.

    Raises:
        ConfigurationError: the index is another archive's.
    """
    ours = {kek.datastore for kek in keyring.keks()}
    with database.read() as tx:
        places = {bytes(one) for one in tx.execute(sa.select(datastore.c.uid)).scalars()}
        if places - ours:
            message = "the database that is configured holds an archive already"
            raise ConfigurationError(message, remedy="name an empty database in database.url, then give 'archive init' again")
        return tx.execute(sa.select(principal.c.name).where(principal.c.kind == "user").order_by(principal.c.id).limit(1)).scalar()


def _first_user(database: Database, keyring: Keyring, admin: str, password: str, *, must_change: bool, at: datetime) -> str:
    ledger = Ledger(keyring)
    kept = next((kek.datastore for kek in keyring.keks()), None)  # of an attempt whose transaction came to nothing
    with database.begin() as tx:
        first = bootstrap.bootstrap(tx, at=at, admin=admin, password=password, must_change=must_change, datastore_uid=kept)
        if kept is None:
            keyring.add_kek(first.datastore_uid, at=at)
        ledger.record(tx, Event(Kind.CONFIGURED, detail={"what": "initialised", "archive": keyring.archive_uuid}), at=at)
        ledger.record(tx, Event(Kind.USER_CHANGED, detail={
            "what": "added", "name": admin, "id": first.owner_id, "principal_kind": "user", "roles": ["owner"],
            "password": secret_digest(first.phc),
        }), at=at)
        ledger.record(tx, Event(Kind.GRANTED, detail={
            "id": first.grant_id, "to": admin, "subject": first.owner_id, "effect": "allow", "role": "owner", "level": "everything",
            "datastore": bootstrap.DEFAULT_DATASTORE, "from": at.isoformat(), "until": FOREVER.isoformat(), "modality": "",
        }), at=at)
    return admin


def make_folders(config: Config) -> None:
    """Make the folders of an archive that are not there."""
    for name in FOLDERS:
        private_files.make_directory(getattr(config, name))


def make_databases(config: Config, keyring: Keyring, *, fresh: bool = False) -> None:
    """Bring both databases to this release's schema; only a fresh archive gets them made.

    Raises:
        DatabaseUnavailable: with which of the two, and what to do.
    """
    if not fresh:
        _require_files(config)
    _with_each(config, keyring, migrate.upgrade)


def check_databases(config: Config, keyring: Keyring) -> None:
    """Refuse databases of another revision.

    Raises:
        DatabaseUnavailable: with which of the two, and the command that mends it.
    """
    _require_files(config)
    _with_each(config, keyring, migrate.check)


_PUT_BACK = {
    "index": "run 'archive rebuild-index', or put it back from its backup, with the keyring it belongs to",
    "keystore": "put it back from its backup, with the keyring it belongs to",
}


def _require_files(config: Config) -> None:
    """Refuse an archive one of whose databases is gone: an empty one in its place would hide the loss.

    Raises:
        DatabaseUnavailable. ConfigurationError: the archive was not made to its end.
    """
    if (config.run_dir / UNFINISHED).exists():
        message = f"the archive at {config.storage_dir} was not made to its end"
        raise ConfigurationError(message, remedy="give 'archive init' again, as it was given first: it goes on where it stopped")
    embedded = [("keystore", config.keystore_path)] + ([] if config.database.url else [("index", config.index_path)])
    for name, path in embedded:
        if not path.exists():
            message = f"the {name} is missing: {path}"
            remedy = "put it back from its backup" + ("" if name == "keystore" else ", or run 'archive rebuild-index'")
            raise DatabaseUnavailable(message, remedy=f"{remedy}; an empty one is never made in its place")


def _with_each(config: Config, keyring: Keyring, work: Callable[..., None]) -> None:
    """Call `work(database, keystore=…)` on the index and on the keystore; what goes wrong says which it was.

    Raises:
        DatabaseUnavailable.
    """
    place = f" ({config.index_path})" if not config.database.url else ""
    for name, where, opening in (("index", place, open_index), ("keystore", f" ({config.keystore_path})", open_keystore)):
        database = opening(config, keyring)
        try:
            work(database, keystore=name == "keystore")
        except DatabaseUnavailable as error:
            remedy = error.remedy if error.remedy != failures.REMEDY else _PUT_BACK[name]
            if where and os.statvfs(config.storage_dir).f_flag & os.ST_RDONLY:  # nothing is wrong with the file
                remedy = "its disk is read-only: mount it writable; look at the system log for disk errors"
            raise DatabaseUnavailable(f"{name}{where}: {error.message}", remedy=remedy) from None
        finally:
            database.close()


def open_index(config: Config, keyring: Keyring) -> Database:
    """Return the index database, embedded or as configured."""
    if config.database.url:
        return Database(config.database.url)
    return Database.embedded(config.index_path, keyring.index_key, config.run_dir / "writer.lock")


def open_keystore(config: Config, keyring: Keyring) -> Database:
    """Return the keystore: always embedded, so that a backup of the index never holds a data key."""
    return Database.embedded(config.keystore_path, keyring.keystore_key, config.run_dir / "keystore.lock", guarded=False)


def _password() -> str:
    return "-".join("".join(secrets.choice(WORDS) for _ in range(5)) for _ in range(4))
