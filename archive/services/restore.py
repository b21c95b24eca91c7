"""Restore: a backup put onto a machine that holds nothing yet, every file checked on the way, and opened before it counts.

Everything is made beside the storage folder's own names and moved there at the end, the keys last: what was cut short is no archive, and
is made anew. A server's database gets its rows then too, so that one restore that failed leaves no filled one behind for the next.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

import msgspec
import sqlalchemy as sa

from archive.access import policy
from archive.config import Config, DatabaseSection, Keys
from archive.db import migrate
from archive.db.copies import copy_rows
from archive.db.failures import TooLong
from archive.db.tables import (
    association_slot,
    login_attempt,
    metadata,
    principal,
    purged,
    purged_key,
    segment,
    session,
    share_code,
    share_session,
)
from archive.errors import ArchiveError, ConfigurationError, InvalidRequest, KeysUnavailable
from archive.index import access_study
from archive.keys import private_files
from archive.keys.keyring import Keyring
from archive.ledger.audit import Event, Kind
from archive.services import catchup, deliveries, index_key, key_record, manifest, restoring, setup, targets
from archive.services.catchup import CatchUp
from archive.services.clock import Clock
from archive.services.console import console
from archive.services.core import Core
from archive.services.manifest import File
from archive.services.oversight import Oversight
from archive.services.purge_finish import forget_segments
from archive.services.rebuild import CATALOG, Rebuild
from archive.services.replay import Replay
from archive.services.verify import Mode, Verify
from archive.vault.disk import translated

Progress = Callable[[str, int, int | None], None]
Keeping = Literal["copy", "link"]


class Opened(Protocol):
    """What is needed of an opened archive."""

    @property
    def core(self) -> Core:
        """The rooms below."""

    def close(self) -> None:
        """Close it."""


Open = Callable[[Config, Keyring], Opened]


@dataclass(slots=True)
class Restored:
    """What was put back, and what checking it found."""

    storage: str
    made_at: datetime
    files: int
    bytes: int
    adopted: int = 0
    changes: int = 0
    checked: int = 0
    findings: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything verified."""
        return not self.findings


@dataclass(frozen=True, slots=True)
class Way:
    """How to restore: what opens the keyring, how deep to look, who asks."""

    opening: Open
    clock: Clock
    mode: Mode = "quick"
    key_file: Path | None = None
    recovery_kit: Path | None = None
    passphrase: Callable[[], str | None] = lambda: None
    operator: str = ""
    progress: Progress = lambda *_args: None


def restore(folder: Path, config: Config, way: Way) -> Restored:
    """Put the backup at `folder` into the storage folder of `config`.

    Raises:
        ConfigurationError: there is an archive already.
        KeysUnavailable: nothing given opens the backup's keyring, or the key of another lies where its key file would.
        DigestMismatch: a file of the backup is missing or was changed; nothing is left of the attempt.
        VaultUnavailable, DatabaseUnavailable, OutOfSpace. Unavailable: another restore is at work there.
    """
    restoring.sweep(config)
    restoring.refuse_occupied(config)
    try:
        private_files.make_directory(config.storage_dir)
        restoring.unmake(config)
        made: list[bytes] = []
        try:
            with restoring.stage(config) as stage:
                report, inside, keyring = _staged(folder, config, stage, way, keeping="copy", made=made)
                report.findings += [{"code": "V12", "detail": one} for one in _move(stage, config, inside, keyring, way, made)]
        except BaseException:
            _forget(config, made)
            raise
    except OSError as error:
        raise translated(error, "restoring the backup") from error
    report.storage = str(config.storage_dir)
    report.notes.append(
        f"who may what is as of {report.made_at:%Y-%m-%d %H:%M} UTC: grants, tokens, links, memberships and users that were ended later "
        "count again until they are ended again; so do rules of forwarding and webhooks, and what waited then is sent from here"
    )
    return report


def rehearse(folder: Path, config: Config, stage: Path, way: Way) -> Restored:
    """Put the backup into an empty folder as `restore` does, for a look; closed segments are linked where that is possible.

    Raises:
        As restore.
    """
    try:
        stage.mkdir(mode=0o700)
        return _staged(folder, msgspec.structs.replace(config, database=DatabaseSection()), stage, way, keeping="link")[0]
    except OSError as error:
        raise translated(error, "restoring the backup") from error


def _forget(config: Config, made: list[bytes]) -> None:
    """Leave nothing of an attempt that failed, nor a key file that it made; what cannot go now goes with the next restore."""
    with suppress(ArchiveError):
        restoring.unmake(config)
        if made and not (config.keys_dir / "keyring.json").exists():
            with suppress(FileNotFoundError):
                if config.key_file.read_bytes() in made:  # else somebody has put theirs there meanwhile
                    config.key_file.unlink()


def _staged(
    folder: Path, config: Config, stage: Path, way: Way, *, keeping: Keeping, made: list[bytes] | None = None
) -> tuple[Restored, Config, Keyring]:
    """Make everything in the stage; with `made`, which takes the key files made outside, it is to come to its place."""
    chosen = manifest.current(folder)
    manifest.glance(chosen)
    inside = msgspec.structs.replace(config, archive=msgspec.structs.replace(config.archive, storage=str(stage)), keys=Keys())
    setup.make_folders(inside)
    inside, keyring = _keys(chosen, inside, config, way, made)
    said, digest = manifest.verified(chosen, keyring)
    report = Restored(str(stage), said.at, len(said.files), sum(file.size for file in said.files))
    files = {file.path: file for file in said.files}
    segments = {path: file for path, file in files.items() if path.endswith(".seg")}
    for number, (path, file) in enumerate(files.items()):
        if path not in segments:
            _put(chosen, stage, path, file)
            way.progress("files checked and copied", number, len(files))
    if config.database.url:
        _prepare_server(config, keyring)
    hashed = _index(inside, keyring)
    for number, (path, file) in enumerate(segments.items()):
        _segment(chosen, inside, path, file, link=keeping == "link" and _name(path) in hashed)
        way.progress("segments checked and copied", number + 1, len(segments))
    inside = msgspec.structs.replace(inside, database=DatabaseSection())
    with closing(way.opening(inside, keyring)) as node:
        _settle(node.core, report, digest, way)
    return report, inside, keyring


# --- keys --------------------------------------------------------------------------------------------------------------------------


def _keys(chosen: Path, inside: Config, config: Config, way: Way, made: list[bytes] | None) -> tuple[Config, Keyring]:
    """Open the backup's keyring with a key file (given, in its place, in the backup), a recovery kit or a passphrase; no file is copied."""
    try:
        private_files.write(inside.keys_dir / "keyring.json", (chosen / "keyring.json").read_bytes())
    except FileNotFoundError:
        message = "the backup holds no keyring"
        raise KeysUnavailable(message, remedy="take another copy of the backup") from None
    if way.recovery_kit is not None:
        keyring = Keyring.open(inside, recovery_kit=way.recovery_kit)
        private_files.make_directory(config.key_file.parent)
        there = config.key_file.exists()
        try:  # a new one is made at its place, never in what may be left
            with suppress(InvalidRequest):  # one that lies there opens it already
                keyring.slot_add(at=way.clock(), key_file=config.key_file, label="made at a restore")
        finally:
            if made is not None and not there and config.key_file.exists():
                made.append(config.key_file.read_bytes())
        return msgspec.structs.replace(inside, keys=Keys(key_file=str(config.key_file.resolve()))), keyring
    given = way.key_file or next((path for path in (config.key_file, chosen / "root.key") if path.exists()), None)
    if given is None and (passphrase := way.passphrase()) is not None:
        return inside, Keyring.open(inside, passphrase=passphrase)
    if given is None:
        message = "the backup was made without keys, and nothing was given that opens its keyring"
        raise KeysUnavailable(message, remedy="give --key-file FILE (the archive's root.key), --recovery-kit FILE or "
                              "--passphrase-file FILE")
    inside = msgspec.structs.replace(inside, keys=Keys(key_file=str(given.resolve())))
    keyring = Keyring.open(inside)
    if made is not None and config.key_file.exists():
        _refuse_another_key(inside, config)
    return inside, keyring


def _refuse_another_key(inside: Config, config: Config) -> None:
    """Refuse a key file at its place that does not open what is restored: it stays there, and no start would open the archive by it."""
    try:
        Keyring.open(msgspec.structs.replace(inside, keys=Keys(key_file=str(config.key_file.resolve()))))
    except KeysUnavailable as error:
        message = f"there is a key file at {config.key_file} already, and it is not the backup's: {error.message}"
        raise KeysUnavailable(message, remedy="move it away, or name another place in keys.key_file; nothing was changed") from error


# --- files -------------------------------------------------------------------------------------------------------------------------


def _name(path: str) -> str:
    """Return the name a segment has in an archive."""
    return f"{Path(path).name.split('.')[0]}.seg"


def _put(chosen: Path, stage: Path, path: str, file: File) -> None:
    """Copy a file and refuse one that is not the one in the list; keys and the configuration have been taken, or are not."""
    if path in ("keyring.json", "root.key", "config.toml"):
        manifest.require(file, _hashed(chosen / path))
        return
    try:
        manifest.require(file, manifest.copy(chosen / path, stage / path))
    except FileNotFoundError:
        manifest.require(file, None)


def _hashed(path: Path) -> manifest.Copied | None:
    try:
        return manifest.hashed(path)
    except FileNotFoundError:
        return None


def _segment(chosen: Path, inside: Config, path: str, file: File, *, link: bool) -> None:
    source, target = chosen / path, inside.segments_dir / _name(path)
    if link:
        with suppress(OSError):
            os.link(source, target)
            manifest.require(file, manifest.hashed(target))
            return
    try:
        manifest.require(file, manifest.copy(source, target))
    except FileNotFoundError:
        manifest.require(file, None)


def _index(inside: Config, keyring: Keyring) -> frozenset[str]:
    """Bring the index to this release; return the segments whose hash it has: nobody writes them."""
    local = msgspec.structs.replace(inside, database=DatabaseSection())
    index_key.lean(keyring, local)
    setup.make_databases(local, keyring)
    with closing(setup.open_index(local, keyring)) as index, index.begin() as tx:
        settled = sa.select(segment.c.name).where(segment.c.sha256.is_not(None), segment.c.replay_from >= segment.c.used)
        return frozenset(tx.execute(settled).scalars())


def _prepare_server(config: Config, keyring: Keyring) -> None:
    """Make the tables in the server's database that is configured, and refuse one that holds an archive before anything is copied."""
    with closing(setup.open_index(config, keyring)) as server:
        migrate.upgrade(server)
        with server.read() as tx:
            _refuse_filled(tx)


def _refuse_filled(tx: sa.Connection) -> None:
    if tx.execute(sa.select(principal.c.id).limit(1)).first() is not None:
        message = "the database that is configured holds an archive already"
        raise ConfigurationError(message, remedy="name an empty database in database.url")


def _onto_server(inside: Config, config: Config, keyring: Keyring, way: Way) -> list[str]:
    """Copy the index into the server's database; nothing is put there before everything was checked. Return what it does not take."""
    try:
        _copy(inside, config, keyring, way.clock())
    except TooLong:
        return _without(inside, config, keyring, way)
    return []


def _without(inside: Config, config: Config, keyring: Keyring, way: Way) -> list[str]:
    """Copy what is no catalog, and make that of the records: so a value that the server's index does not take costs its instance alone."""
    others = [table for table in metadata.sorted_tables if table not in (*CATALOG, purged, purged_key)]
    token = policy.system("rebuild")
    with (
        closing(setup.open_index(inside, keyring)) as index, closing(way.opening(config, keyring)) as node, index.begin() as source,
    ):
        def fill(tx: sa.Connection) -> dict[sa.Table, dict[int, targets.Placed]]:
            _refuse_filled(tx)
            kept = targets.captured(source)
            deliveries.set_aside(source, token)
            copy_rows(source, tx, token, others)
            return kept

        made = Rebuild(node.core).onto(fill, lambda tx: restoring.say_filling(config, tx), operator=way.operator)
    return made.problems


def _copy(inside: Config, config: Config, keyring: Keyring, at: datetime) -> None:
    with (
        closing(setup.open_index(inside, keyring)) as index, closing(setup.open_index(config, keyring)) as server,
        index.read() as source, server.begin() as tx,
    ):
        _refuse_filled(tx)
        restoring.say_filling(config, source)
        copy_rows(source, tx, policy.system("backup"))
        access_study.refill(tx, at)


def _move(stage: Path, config: Config, inside: Config, keyring: Keyring, way: Way, made: list[bytes]) -> list[str]:
    """Give everything its name, what makes it an archive last; return what could not be taken along."""
    left: list[str] = []
    keys, given = stage / "keys", inside.key_file
    for folder in (path for path in stage.rglob("*") if path.is_dir()):
        private_files.sync_directory(folder)
    staying = (path for path in stage.glob("index.db*") if config.database.url)
    moving = sorted({path.name for path in stage.iterdir()} - {keys.name, "run", restoring.LOCK, *(path.name for path in staying)})
    restoring.say_moving(config, moving)
    for name in moving:
        (stage / name).replace(config.storage_dir / name)
    private_files.sync_directory(config.storage_dir)
    config.run_dir.mkdir(mode=0o700, exist_ok=True)
    private_files.make_directory(config.keys_dir)
    private_files.make_directory(config.key_file.parent)
    if not config.key_file.exists() and given.exists():  # none where a passphrase opened the keyring
        private_files.write(config.key_file, given.read_bytes(), replace=False)
        made.append(config.key_file.read_bytes())
    if config.database.url:
        left = _onto_server(inside, config, keyring, way)
    private_files.write(config.keys_dir / "keyring.json", (keys / "keyring.json").read_bytes())
    restoring.sweep(config)
    return left


# --- opened ------------------------------------------------------------------------------------------------------------------------


def _settle(core: Core, report: Restored, digest: str, way: Way) -> None:
    """Say that the log goes on from here, give what is younger than the index its rows, and look at everything."""
    subject = console(core, way.operator)
    reason = f"restored from the backup of {report.made_at:%Y-%m-%d %H:%M:%S} UTC"
    if Oversight(core).rolled_back():
        Oversight(core).acknowledge(subject, reason=reason)
    with core.database.begin() as tx:
        for table in (session, login_attempt, association_slot, share_session, share_code):  # everybody signs in again
            tx.execute(sa.delete(table))
        access_study.refill(tx, core.clock())
        catchup.set_due(tx)
        for table in (session, share_session, share_code):  # who signed out since is not signed in again, no used code counts again
            tx.execute(sa.delete(table))
        detail = {"what": "restored from a backup", "made_at": report.made_at.isoformat(), "manifest": digest}
        core.ledger.record(tx, Event(Kind.REBUILT, subject=subject, detail=detail), at=core.clock())
    key_record.noticed(core, subject, reason=reason)  # a key file that was made for the kit
    done, replayed = CatchUp(core).run(), Replay(core).run()
    forget_segments(core)
    report.adopted, report.changes = done.instances + replayed.adopted, done.changes
    checked = Verify(core).run(subject, way.mode, progress=lambda one, total: way.progress("records checked", one, total))
    report.checked = checked.checked
    report.findings = [{"code": one.code, "detail": one.detail} for one in checked.findings]


