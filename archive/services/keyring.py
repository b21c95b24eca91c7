"""Keys: what the keyring holds, new key-encryption keys, slots that open it. No secret is ever shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from archive.access import passwords, policy
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.tables import datastore
from archive.errors import NotFound, ReadOnly
from archive.keys.held import Held, Tell
from archive.services import datastores, denials, key_changes, key_record
from archive.services.acknowledged import acknowledged
from archive.services.core import Core
from archive.services.datastores import Datastore
from archive.services.two_person import Wish, demand

Reload = Callable[[], None]


class KeyringAdmin:
    """Needs the permission key-manage, or the console."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core

    def list(self, subject: Subject) -> dict[str, Any]:
        """Return keys (id, purpose, state, dates) and slots.

        Raises:
            Forbidden.
        """
        self._require(subject)
        keyring = self._core.keyring
        return {"keys": keyring.describe(), "slots": keyring.slots()}

    def rotate(
        self, subject: Subject, name: str = datastores.DEFAULT, *, reload: Reload = lambda: None,
        progress: Callable[[int], None] = lambda _done: None,
    ) -> dict[str, Any]:
        """Make a new key-encryption key, wrap every data key of the datastore under it, destroy the old ones.

        No image is touched. `reload` is called once the new key is in the keyring, so that running workers know it before anything
        is wrapped under it. An interrupted rotation is finished by the next start, or by giving this again. `findings` names the data keys
        that do not open: they stay as they are, and while there are any so do the old key-encryption keys.

        Raises:
            Forbidden, NotFound, KeysUnavailable, DatabaseUnavailable.
        """
        core = self._core
        core.require_writable()
        self._require(subject)
        with core.database.read() as tx:
            place = datastores.find(tx, name)
        asked = {"which": "kek", "datastore": place.name}
        subject = demand(core, subject, Wish("key-rotate", f"rotate the key-encryption key of {place.name}", Permission.KEY_MANAGE, asked))
        # Two rotations at once could each destroy what the other goes on with.
        with key_record.changing(core):
            return self._rotate(subject, place, reload, progress)

    def replace(self, subject: Subject, which: key_changes.Which, *, reload: Reload = lambda: None) -> dict[str, Any]:
        """Put a new key in the place of the one that signs statements, of those that sign checkpoints, or of the pepper.

        `reload` is called when every process must take the keyring as it is now. An interrupted one is finished by the next start, or
        by giving this again.

        Raises:
            Forbidden, KeysUnavailable, DatabaseUnavailable, VaultUnavailable, LedgerBroken.
        """
        core = self._core
        core.require_writable()
        self._require(subject)
        subject = demand(core, subject, Wish("key-rotate", f"rotate the {which} key", Permission.KEY_MANAGE, {"which": which}))
        with key_record.changing(core):
            done = key_changes.rotate(core, subject, which, reload=reload)
        return {"keys": [{"purpose": one[0], "old": one[1], "new": one[2]} for one in done.keys], "event": done.event}

    def announce_index(self, subject: Subject) -> str:
        """Let the key that is to be the index's next be known, and return its id; `index_key.replace` then puts it in its place.

        Raises:
            Forbidden, KeysUnavailable, DatabaseUnavailable, VaultUnavailable.
        """
        core = self._core
        core.require_writable()
        self._require(subject)
        subject = demand(core, subject, Wish("key-rotate", "rotate the index key", Permission.KEY_MANAGE, {"which": "index"}))
        with key_record.changing(core):
            core.keyring.prepare(["index"], at=core.clock())
            coming = core.keyring.coming("index")
            assert coming is not None
            tell = self._telling(subject, "index-rotated", "key", old=core.keyring.in_use("index").id.hex())
            tell(coming.id.hex(), core.keyring.held(activated=["index"]))
        return coming.id.hex()

    def compare(self) -> None:
        """Let the ledger know what the keyring holds, where a change was made elsewhere or was cut short.

        Raises:
            KeysUnavailable, DatabaseUnavailable, VaultUnavailable.
        """
        with key_record.changing(self._core):
            pass

    def _rotate(self, subject: Subject, place: Datastore, reload: Reload, progress: Callable[[int], None]) -> dict[str, Any]:
        core = self._core
        # Until every worker holds the new key, all go on with the old one; afterwards none can.
        core.keystore.wrap_under(place.uid, self._in_use(place.uid))
        fresh = core.keyring.add_kek(place.uid, at=core.clock(), tell=self._telling(subject, "kek-added", "key", datastore=place.name))
        reload()
        made = key_changes.wrap_anew(core, subject, place, progress)
        findings = [{"code": "V05", "detail": f"data key {one} does not open"} for one in made.behind]
        return {"key": fresh.id.hex(), "rewrapped": made.rewrapped, "destroyed": made.destroyed, "findings": findings}

    def _in_use(self, datastore: bytes) -> bytes:
        """Return the key that wraps now: the active one, unless an interrupted rotation had not come to use it."""
        core = self._core
        return core.keystore.wrapping(datastore) or core.keyring.kek(datastore).id

    def slot_add(
        self, subject: Subject, *, key_file: Path | None = None, recovery_kit: Path | None = None, passphrase: str | None = None,
        label: str = "", instead: str = "",
    ) -> str:
        """Add what opens the keyring from now on, `instead` of another slot when one is named, and return the slot's id.

        Raises:
            Forbidden, InvalidRequest, NotFound, KeysUnavailable. ReadOnly: keyring.json is an older copy.
        """
        self._require(subject)
        core = self._core
        self._require_newest()
        if passphrase is not None:
            passwords.check_new(passphrase)
        core.keyring.refresh()
        if instead and not any(one["id"] == instead for one in core.keyring.slots()):
            message = "there is no such slot"
            raise NotFound(message, remedy="see 'archive key slot list'")
        asked = {
            "key_file": "" if key_file is None else str(key_file), "recovery_kit": "" if recovery_kit is None else str(recovery_kit),
            "passphrase": passphrase is not None, "label": label, "instead": instead,
        }
        subject = demand(core, subject, Wish("slot-add", "add what opens the keyring", Permission.KEY_MANAGE, asked))
        kind = "key-file" if key_file is not None else "recovery" if recovery_kit is not None else "passphrase"

        def tell(slot: str, held: Held) -> None:
            with core.database.begin() as tx:
                key_record.record(core, tx, subject, held, {"what": "slot-added", "slot": slot, "kind": kind})
                if instead:
                    key_record.record(core, tx, subject, held, {"what": "slot-removed", "slot": instead})

        with key_record.changing(core):
            return core.keyring.slot_add(
                at=core.clock(), key_file=key_file, recovery_kit=recovery_kit, passphrase=passphrase, label=label, instead=instead,
                tell=tell,
            )

    def slot_remove(self, subject: Subject, slot_id: str) -> None:
        """Remove a slot; never the last one.

        Raises:
            Forbidden, NotFound, InvalidRequest, KeysUnavailable. ReadOnly: keyring.json is an older copy.
        """
        self._require(subject)
        core = self._core
        self._require_newest()
        subject = demand(core, subject, Wish("slot-remove", f"remove slot {slot_id}", Permission.KEY_MANAGE, {"slot": slot_id}))
        with key_record.changing(core):
            core.keyring.slot_remove(slot_id, tell=self._telling(subject, "slot-removed", "slot"))

    def datastores(self) -> Sequence[str]:
        """Return the names of the datastores, each with keys of its own."""
        with self._core.database.read() as tx:
            return tx.execute(sa.select(datastore.c.name).order_by(datastore.c.id)).scalars().all()

    def _require(self, subject: Subject) -> None:
        core = self._core
        with denials.recorded(core, subject), core.database.read() as tx:
            policy.require(tx, subject, Permission.KEY_MANAGE, core.clock())

    def _require_newest(self) -> None:
        """Refuse to change an older copy: with each change it would look newer. A ledger that was rolled back keeps nobody from a slot."""
        core = self._core
        if not core.read_only:
            return
        with core.database.read() as tx:
            older = key_record.contradiction(core, tx, acknowledged(core, tx))
        if older:
            raise ReadOnly(
                f"the archive is read-only: {older} (V14)",
                remedy="put the newest back; if it is lost: 'archive ledger acknowledge --reason TEXT', with --with-kit FILE where no key "
                "file opens the older one",
            )

    def _telling(self, subject: Subject, what: str, name: str, **more: Any) -> Tell:
        return key_record.telling(self._core, subject, what, name, **more)
