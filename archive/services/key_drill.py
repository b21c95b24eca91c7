"""Key drill: that what should open the archive does, tried before it is needed, and recorded.

Slots, a sample of studies' keys with a record of each, and the keyring of the last backup. Nothing is changed, and no secret leaves.
"""

from __future__ import annotations

import random
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

import sqlalchemy as sa

from archive.access import policy
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.tables import archive_state, datastore, instance
from archive.errors import ArchiveError
from archive.index import catalog
from archive.keys import keyring_file, private_files
from archive.keys import passphrase as by_passphrase
from archive.keys import slots as by_file
from archive.keys.keyring import Keyring
from archive.ledger.audit import Event, Kind
from archive.services import denials, manifest
from archive.services.backup import LAST_PLACE, note_state
from archive.services.core import Core

DRILLED_AT, DRILLED_OK = "last_key_drill_at", "last_key_drill_ok"
SAMPLE = 20
_TOKEN = policy.system("verify")
State = Literal["opens", "fails", "not tried"]


@dataclass(frozen=True, slots=True)
class Ways:
    """What there is to open the keyring with; a passphrase is asked for only where a slot takes one."""

    key_files: tuple[Path, ...] = ()
    recovery_kits: tuple[Path, ...] = ()
    passphrase: Callable[[], str | None] = lambda: None


@dataclass(frozen=True, slots=True)
class Tried:
    """One thing that was tried."""

    what: str
    state: State
    detail: str = ""


@dataclass(slots=True)
class Drilled:
    """What was tried and what came of it; something that failed is a problem, something that was not tried is not."""

    at: datetime
    tried: list[Tried] = field(default_factory=list)
    studies: int = 0

    @property
    def ok(self) -> bool:
        """Whether something opened, and nothing that was tried failed."""
        return any(one.state == "opens" for one in self.tried) and not any(one.state == "fails" for one in self.tried)


class KeyDrill:
    """Needs the permission key-manage, or the console."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core

    def run(self, subject: Subject, ways: Ways, *, sample: int = SAMPLE) -> Drilled:
        """Try everything, and record the result.

        Raises:
            Forbidden, KeysUnavailable, DatabaseUnavailable.
        """
        core = self._core
        with denials.recorded(core, subject), core.database.read() as tx:
            policy.require(tx, subject, Permission.KEY_MANAGE, core.clock())
            last = tx.execute(sa.select(archive_state.c.value).where(archive_state.c.name == LAST_PLACE)).scalar()
        core.require_writable()
        done = Drilled(core.clock())
        opened = self._slots(done, ways, core.config.keys_dir / "keyring.json")
        self._studies(done, sample)
        if last is None:
            done.tried.append(Tried("backup", "not tried", "no backup has been made"))
        else:
            self._backup(done, ways, Path(str(last)), opened)
        self._record(subject, done)
        return done

    # --- slots ---------------------------------------------------------------------------------------------------------------------

    def _slots(self, done: Drilled, ways: Ways, path: Path) -> list[str]:
        """Try every slot of a keyring by all that was given, and return those that opened."""
        slots = keyring_file.load(path).slots
        passphrase = ways.passphrase() if any(slot.kind == "passphrase" for slot in slots) else None
        opened = []
        for slot in slots:
            tried = self._slot(path, slot.id, slot.kind, ways, passphrase)
            done.tried.append(Tried(f"slot {slot.id} ({slot.kind}{f', {slot.label}' if slot.label else ''})", *tried))
            if tried[0] == "opens":
                opened.append(slot.id)
        return opened

    def _slot(self, path: Path, slot_id: str, kind: str, ways: Ways, passphrase: str | None) -> tuple[State, str]:
        alone = self._with_one_slot(path, slot_id)
        given: list[Callable[[], Keyring]] = []
        if kind == "passphrase" and passphrase is not None:
            given = [lambda: alone(None, None, passphrase)]
        elif kind == "key-file":
            given = [lambda file=file: alone(file, None, None) for file in ways.key_files if file.exists()]  # type: ignore[misc]
        elif kind == "recovery":
            given = [lambda kit=kit: alone(None, kit, None) for kit in ways.recovery_kits]  # type: ignore[misc]
        why = ""
        for way in given:
            try:
                if way().keystore_key != self._core.keyring.keystore_key:  # the one that no rotation replaces
                    return "fails", "it opens another archive's keys"
                return "opens", ""
            except ArchiveError as error:
                why = error.message
        if given and (len(given) == 1 or kind == "passphrase"):
            return "fails", why
        return "not tried", why or _GIVE[kind]

    def _with_one_slot(self, path: Path, slot_id: str) -> Callable[[Path | None, Path | None, str | None], Keyring]:
        """Return what opens the keyring by that slot alone."""
        file = keyring_file.load(path)
        mine = [slot for slot in file.slots if slot.id == slot_id]
        archive = uuid.UUID(file.archive).bytes

        def opened(key_file: Path | None, kit: Path | None, passphrase: str | None) -> Keyring:
            if kit is not None:
                root = by_file.open_with_kit(mine, archive, kit)
            elif passphrase is not None:
                root = by_passphrase.unwrap(mine, archive, passphrase)
            else:
                assert key_file is not None
                root = by_file.open_with_key_file(mine, archive, key_file)
            return Keyring.unsealed(file, root, path)

        return opened

    # --- studies -------------------------------------------------------------------------------------------------------------------

    def _studies(self, done: Drilled, sample: int) -> None:
        """Open the keys of some studies, and read a record of each whole."""
        core = self._core
        with core.database.read() as tx:
            studies = list(policy.run_as(tx, _TOKEN, sa.select(instance.c.study_pk).distinct()).scalars())
            places = {row.id: bytes(row.uid) for row in tx.execute(sa.select(datastore))}
        chosen = random.sample(studies, min(sample, len(studies)))
        for pk in chosen:
            with core.database.read() as tx:
                row = policy.run_as(tx, _TOKEN, sa.select(instance).where(instance.c.study_pk == pk).limit(1)).first()
            if row is None:
                continue  # purged meanwhile
            try:
                core.keystore.forget(bytes(row.key_id))
                core.vault.check(catalog.ref_of(row, places[row.datastore_id]))
                done.studies += 1
            except ArchiveError as error:
                done.tried.append(Tried("study key", "fails", f"{error.verdict or error.code}: {error.message}"))
        done.tried.append(Tried(f"keys of {done.studies} studies, and a record of each", "opens" if done.studies else "not tried"))

    # --- backup --------------------------------------------------------------------------------------------------------------------

    def _backup(self, done: Drilled, ways: Ways, place: Path, opened: list[str]) -> None:
        """Open the backup's keyring by the slots that opened here: it is as old as the backup, and may have others."""
        try:
            data = (manifest.current(place) / "keyring.json").read_bytes()
        except (ArchiveError, OSError) as error:
            detail = error.message if isinstance(error, ArchiveError) else "its disk is not there"
            done.tried.append(Tried("backup", "not tried", detail))
            return
        with tempfile.TemporaryDirectory(prefix=".key-drill-", dir=self._core.config.run_dir) as folder:
            path = Path(folder) / "keyring.json"  # sealed, as it is
            private_files.write(path, data)
            inside = Drilled(done.at)
            found = self._slots(inside, ways, path)
        if found:
            done.tried.append(Tried("keyring of the last backup", "opens"))
        else:
            state: State = "fails" if opened else "not tried"
            done.tried.append(Tried("keyring of the last backup", state, "nothing that was given opens it"))

    def _record(self, subject: Subject, done: Drilled) -> None:
        core = self._core
        detail = {
            "mode": "key drill", "studies": done.studies, "tried": [f"{one.what}: {one.state}" for one in done.tried][:40],
        }
        with core.database.begin() as tx:
            note_state(tx, {DRILLED_AT: done.at.isoformat(), DRILLED_OK: "yes" if done.ok else "no"})
            event = Event(Kind.VERIFIED, outcome=0 if done.ok else 8, subject=subject, detail=detail)
            core.ledger.record(tx, event, at=core.clock())


_GIVE = {
    "key-file": "give its file with --key-file", "recovery": "give its kit with --recovery-kit",
    "passphrase": "give it with --passphrase-file, or at a terminal",
}
