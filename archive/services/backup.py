"""Backup: a copy that can be restored, taken while the archive serves (docs/format.md 11).

The order is the guarantee: the index before the segments, so that a row's record is there; the segments before the keystore, so that a
record's key is there; the keystore before the keyring, which holds what wraps it. What is younger gets its rows at the restore.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from archive import locks
from archive.access import policy
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db import migrate
from archive.db.copies import copy_file, copy_rows
from archive.db.engine import Database
from archive.db.tables import archive_state, purged
from archive.errors import IntegrityError, InvalidRequest, NotFound, SealBroken, Unavailable
from archive.keys import keyring_file, private_files, sealing
from archive.ledger import files, nodes, notes, recover, witnessed
from archive.ledger.audit import Event, Kind
from archive.services import denials, drill_folder, key_record, last_backup, manifest, setup, snapshot
from archive.services.backup_folder import alone, refuse_foreign, segment_of, shared_name
from archive.services.core import Core
from archive.services.manifest import CURRENT, SEGMENTS, SETS, Copied, File, Manifest
from archive.services.segment_rows import Noted, noted
from archive.vault.disk import translated

LAST_AT, LAST_PLACE = "last_backup_at", "last_backup_place"
PASSES = 20
Progress = Callable[[str, int, int | None], None]


@dataclass(slots=True)
class BackedUp:
    """What a backup holds, how much of it was copied now, and which segments could not be."""

    folder: str
    made_at: datetime
    keys: bool
    files: int = 0
    bytes: int = 0
    copied_bytes: int = 0
    segments: int = 0
    manifest: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is missing from it."""
        return not self.problems


class Backup:
    """Reads the archive, writes a folder elsewhere; needs the permission configure, or the console."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive, served or not."""
        self._core = core

    def run(self, subject: Subject, folder: Path, *, keys: bool = False, progress: Progress = lambda *_args: None) -> BackedUp:
        """Copy what is new into `folder`; the backup that was there counts until this one is whole.

        Raises:
            Forbidden; Unavailable: another backup runs there; VaultUnavailable, OutOfSpace, DatabaseUnavailable, KeysUnavailable.
        """
        core = self._core
        with denials.recorded(core, subject), core.database.read() as tx:
            policy.require(tx, subject, Permission.CONFIGURE, core.clock())
        if keys and not core.config.key_file.exists():
            message = "there is no key file that a backup could hold: something else opens the keyring"
            raise InvalidRequest(message, remedy="leave --with-keys out, and keep the passphrase or a recovery kit elsewhere")
        core.require_writable()  # one that was rolled back must not take the place of a newer copy
        try:
            refuse_foreign(core, folder.resolve())
            private_files.make_directory(folder)
            with alone(folder):
                drill_folder.sweep(folder)
                report = _Run(core, folder, keys=keys, progress=progress).run()
        except OSError as error:
            raise translated(error, "writing the backup") from error
        self._record(subject, report)
        return report

    def _record(self, subject: Subject, report: BackedUp) -> None:
        core = self._core
        detail: dict[str, Any] = {
            "files": report.files, "manifest": report.manifest, "keys": report.keys, "folder": report.folder,
            "problems": report.problems[:20],
        }
        values = {LAST_AT: report.made_at.isoformat(), LAST_PLACE: report.folder} if report.ok else {}
        with core.database.begin() as tx:
            note_state(tx, values)
            event = Event(Kind.BACKED_UP, outcome=0 if report.ok else 8, subject=subject, bytes=report.bytes, detail=detail)
            core.ledger.record(tx, event, at=core.clock())
        if report.ok:
            private_files.write(core.config.run_dir / last_backup.STAMP, f"{report.made_at.isoformat()}\n".encode())


def note_state(tx: sa.Connection, values: dict[str, str]) -> None:
    """Keep words of the archive's state."""
    for name, value in values.items():
        tx.execute(sa.delete(archive_state).where(archive_state.c.name == name))
        tx.execute(sa.insert(archive_state).values(name=name, value=value))


def without_password(text: str, url: str) -> str:
    """Return a configuration with the word PASSWORD where the address of its database has one, and nothing else changed."""
    address = sa.make_url(url or "postgresql://")
    hidden = address if address.password is None else address.set(password="PASSWORD")  # noqa: S106 # the word
    if "password" in address.query:
        hidden = hidden.update_query_dict({"password": "PASSWORD"})
    if hidden == address:
        return text
    if url in text:
        return text.replace(url, hidden.render_as_string(hide_password=False))
    return re.sub(r"(?m)^([ \t]*url[ \t]*=).*$", r'\1 "PASSWORD"', text)  # written with escapes: whoever restores writes it again


class _Run:
    def __init__(self, core: Core, folder: Path, *, keys: bool, progress: Progress) -> None:
        self._core, self._folder, self._keys, self._progress = core, folder, keys, progress
        self._at = core.clock()
        self._set = folder / SETS / f"{self._at:%Y%m%dT%H%M%S%f}"
        self._files: list[File] = []
        self._before: dict[str, File] = {}
        self._whole: set[str] = set()  # segments that were closed when they were copied
        self._old: Path | None = None
        self._doubted = _doubted(core)
        self._report = BackedUp(str(folder.resolve()), self._at, keys)

    def run(self) -> BackedUp:
        core = self._core
        with suppress(NotFound, IntegrityError, InvalidRequest):  # what does not verify is not built on
            old = manifest.current(self._folder)
            self._before = manifest.verified(old, core.keyring)[0].by_path()
            self._old = old
        self._sweep(self._old)
        private_files.make_directory(self._set)
        leaves = self._pieces()
        self._hints()
        made = Manifest(
            archive=core.keyring.archive_uuid, made_at=sealing.format_instant(self._at), leaves=leaves,
            engine="sqlite" if core.database.sqlite else "postgresql", keys=self._keys,
            files=sorted(self._files, key=lambda file: file.path),
        )
        report = self._report
        report.manifest = manifest.write(self._set, made, core.keyring, self._at)
        for folder in (self._folder / SEGMENTS, *(path for path in self._set.rglob("*") if path.is_dir()), self._set, self._folder / SETS):
            private_files.sync_directory(folder)
        private_files.write(self._folder / CURRENT, f"{self._set.name}\n".encode())
        self._sweep(self._set)
        report.files, report.bytes = len(made.files), sum(file.size for file in made.files)
        return report

    def _pieces(self) -> int:
        """Copy ledger, index, segments and keys; again where keys were replaced or destroyed meanwhile.

        The ledger says which key follows which; a key that was destroyed since the segments were copied opens nothing in those copies,
        and what was sealed anew is not among them.
        """
        core = self._core
        ring = core.config.keys_dir / "keyring.json"
        before: int | None = None
        for _ in range(PASSES):
            generation = keyring_file.load(ring).generation
            self._files = [one for one in self._files if segment_of(one)]
            self._ledger()
            leaves = self._index()
            if (purges := self._purges()) != before:  # an index that knows of it does not go with segments copied before
                before, self._whole = purges, set()
                self._files = [one for one in self._files if not segment_of(one)]
            purges = self._segments()
            with locks.alone(core.config.run_dir / key_record.LOCK):
                if keyring_file.load(ring).generation != generation:
                    continue
                self._keystore()
                if self._purges() != purges:  # told before a key is destroyed: what was copied has every key it needs
                    continue
                self._copy(ring, "keyring.json")
                if self._keys:
                    self._copy(core.config.key_file, "root.key")
                core.keyring.stay_current()  # whoever signs the list is in the keyring that checks it
                return leaves
        message = "keys were replaced or destroyed again and again while the backup ran"
        raise Unavailable(message, remedy="give the command again when that is over")

    # --- pieces --------------------------------------------------------------------------------------------------------------------

    def _add(self, path: str, copied: Copied) -> None:
        self._files.append(File(path, copied.size, copied.sha256))

    def _copy(self, source: Path, path: str, *, length: int | None = None) -> None:
        copied = manifest.copy(source, self._set / path, length=length, step=self._step)
        self._add(path, copied)

    def _step(self, count: int) -> None:
        self._report.copied_bytes += count

    def _ledger(self) -> None:
        """Copy the files of the newest checkpoint; only those that are not full change, and they go first, while none is made."""
        core = self._core
        source = core.config.ledger_dir
        with locks.alone(core.config.run_dir / "checkpoint.lock"):
            note = files.read_checkpoint(source)
            size = 0 if note is None else notes.claims(note)[0]
            wanted = list(recover.paths(size))
            if note is not None:
                self._copy(source / "checkpoint", "ledger/checkpoint")
            for path in [path for path in wanted if ".p/" in path]:
                self._copy(source / path, f"ledger/{path}")
        for done, path in enumerate(path for path in wanted if ".p/" not in path):
            self._again(source / path, f"ledger/{path}")
            self._progress("files of the ledger", done, len(wanted))
        for name in witnessed.agreeing(source):
            with suppress(FileNotFoundError):  # a witness that was taken away meanwhile
                self._copy(source / witnessed.FOLDER / name, f"ledger/{witnessed.FOLDER}/{name}")
        for _ in range(PASSES):
            with suppress(FileNotFoundError):  # newer ones took its place meanwhile
                for path_ in snapshot.files(source)[:1]:
                    self._copy(path_, f"ledger/{snapshot.FOLDER}/{path_.name}")
                break

    def _again(self, source: Path, path: str) -> None:
        """Link a file that the backup before this one has, if it did not change since; else copy it."""
        before, stat = self._before.get(path), source.stat()
        if before is not None and self._old is not None and before.size == stat.st_size and not self._doubted:
            old, target = self._old / path, self._set / path
            with suppress(OSError):
                if old.stat().st_mtime_ns == stat.st_mtime_ns:
                    private_files.make_directory(target.parent)
                    os.link(old, target)
                    self._files.append(before)
                    return
        self._copy(source, path)
        os.utime(self._set / path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    def _index(self) -> int:
        core, target = self._core, self._set / "index.db"
        self._progress("index", 0, None)
        target.unlink(missing_ok=True)
        if core.database.sqlite:
            copy_file(core.database, target)
        copy = Database.embedded(target, core.keyring.index_key, self._set / ".index.lock")
        try:
            if not core.database.sqlite:
                migrate.upgrade(copy)
                with core.database.read() as source, copy.begin() as tx:
                    copy_rows(source, tx, policy.system("backup"), progress=lambda table, done: self._progress(table, done, None))
            with copy.read() as tx:
                leaves = nodes.size(tx)
            copy.checkpoint()
        finally:
            copy.close()
        self._close(target)
        return leaves

    def _keystore(self) -> None:
        core = self._core
        keystore = setup.open_keystore(core.config, core.keyring)
        try:
            copy_file(keystore, self._set / "keystore.db")
        finally:
            keystore.close()
        self._close(self._set / "keystore.db")

    def _close(self, target: Path) -> None:
        """Take a database that nobody has open into the list."""
        for suffix in ("-wal", "-shm"):
            target.with_name(target.name + suffix).unlink(missing_ok=True)
        (self._set / ".index.lock").unlink(missing_ok=True)
        copied = manifest.hashed(target)
        self._report.copied_bytes += copied.size
        self._add(target.name, copied)

    def _segments(self) -> int | None:
        """Copy every segment; those that were written meanwhile once more where something was purged, for the event that says so.

        Return by which event something had been purged last when the last pass began.
        """
        core = self._core
        rows = noted(core.database)
        for _ in range(PASSES):
            known, purges = noted(core.database), self._purges()
            found = [file for file in core.vault.segments.files() if file.name not in self._whole]
            again = {Path(file.name).stem for file in found}
            self._files = [one for one in self._files if segment_of(one) not in again]
            self._report.segments = len(found) + len(self._whole)
            for done, file in enumerate(found):
                self._progress("segments", done, len(found))
                with suppress(FileNotFoundError, SealBroken):  # gone meanwhile; looked at again below
                    self._segment(file.segment_id, file.name, known.get(file.name, Noted()))
            self._whole |= {name for name, one in known.items() if one.closed_bytes}
            if self._purges() == purges:
                break
        there = {segment_of(file) for file in self._files}
        for name, one in noted(core.database).items():
            if name in rows and Path(name).stem not in there:
                self._missing(name, one.sha256)
        return purges

    def _purges(self) -> int | None:
        """Return by which event something was purged last."""
        with self._core.database.read() as tx:
            return tx.execute(sa.select(sa.func.max(purged.c.leaf))).scalar()

    def _segment(self, segment_id: bytes, name: str, known: Noted) -> None:
        core, sha256 = self._core, known.sha256
        source = core.config.segments_dir / name
        if sha256 is not None:
            shared, path = shared_name(name, sha256)
            target = self._folder / SEGMENTS / shared
            if self._kept(path, target, sha256):
                return
            copied = manifest.copy(source, target, step=self._step)
            if copied.sha256 == sha256:
                self._add(path, copied)
                return
            target.unlink()
            if (now := noted(core.database).get(name, Noted())).sha256 != sha256:  # something was purged from it meanwhile
                self._segment(segment_id, name, now)
                return
            self._report.problems.append(f"segment {name} is not what was closed (V03); it was copied as it is")
        length = None if sha256 is not None else known.closed_bytes or core.vault.used_bytes(segment_id)
        self._copy(source, f"{SEGMENTS}/{name}", length=length)

    def _kept(self, path: str, target: Path, sha256: str) -> bool:
        """Take a closed segment that the backup has; the list that names it was signed."""
        before = self._before.get(path)
        if before is None or before.sha256 != sha256 or not target.exists() or target.stat().st_size != before.size:
            return False
        if self._doubted and manifest.hashed(target).sha256 != sha256:
            return False
        self._files.append(before)
        return True

    def _missing(self, name: str, sha256: str | None) -> None:
        """Go on with the copy of a lost segment that the backup before this one has."""
        said = f"segment {name} is missing (V01)"
        if sha256 is not None:
            shared, path = shared_name(name, sha256)
            if self._kept(path, self._folder / SEGMENTS / shared, sha256):
                self._report.problems.append(f"{said}; the backup has it")
                return
        path = f"{SEGMENTS}/{name}"
        if self._old is not None and path in self._before and (self._old / path).exists():
            self._copy(self._old / path, path)
            said += "; the backup has it as it was then"
        self._report.problems.append(said)

    def _hints(self) -> None:
        config = self._core.config
        ca = config.tls_dir / "ca.pem"
        if ca.exists():
            self._copy(ca, "tls/ca.pem")
        path = Path(config.path)
        if path.is_file():
            text = without_password(path.read_text(encoding="utf-8"), config.database.url)
            private_files.write(self._set / "config.toml", text.encode())
            self._add("config.toml", manifest.hashed(self._set / "config.toml"))

    def _sweep(self, keep: Path | None) -> None:
        """Remove sets and segments that the set to keep does not need, with what interrupted runs left."""
        if keep is None and (self._folder / CURRENT).exists():
            return  # what is there does not verify: nothing of it is touched
        sets, shared = self._folder / SETS, self._folder / SEGMENTS
        named = manifest.glance(keep).files if keep is not None else []
        needed = {Path(file.path).name for file in named if file.path.startswith("../")}
        for path in sets.iterdir() if sets.is_dir() else ():
            if path != keep:
                shutil.rmtree(path, ignore_errors=True)
        for path in shared.iterdir() if shared.is_dir() else ():
            if path.name not in needed:
                path.unlink(missing_ok=True)
        private_files.make_directory(shared)


def _doubted(core: Core) -> bool:
    """Whether the last drill failed: then what a backup has is read again before it is taken for a copy."""
    with core.database.read() as tx:
        return tx.execute(sa.select(archive_state.c.value).where(archive_state.c.name == "last_drill_ok")).scalar() == "no"
