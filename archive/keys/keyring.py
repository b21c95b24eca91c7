"""The keyring: every long-lived key of an archive, opened once by the process that starts the others.

Source: docs/format.md 5.
"""

from __future__ import annotations

import os
import secrets
import uuid
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from archive.config import Config
from archive.errors import InvalidRequest, KeysUnavailable, NotFound
from archive.keys import entries, keyring_file, private_files, slots
from archive.keys.entries import SIGNING, AuditKey, Entry, Kek, Purpose, Signer, SigningPurpose
from archive.keys.held import Held, Tell, held, nobody
from archive.keys.keyring_file import KeyringFile
from archive.keys.opened import OpenedKeys, handed_over
from archive.keys.passphrase import unwrap, wrap
from archive.keys.sealing import KEY_BYTES
from archive.keys.slots import Slot

_UNSEEN = (-1, -1)
_FIRST: tuple[Purpose, ...] = ("index", "keystore", "audit", "pepper", "instance", "log", "log-pq")


class Keyring(OpenedKeys):
    """An opened keyring; share it between threads.

    Changes are written to keyring.json before they count. A keyring from `from_bytes` has no root and changes nothing.
    """

    def __init__(
        self, archive_uuid: str, entries: list[Entry], *, generation: int, root: bytes = b"", slots: list[Slot] | None = None,
        path: Path | None = None,
    ) -> None:
        """Hold opened entries; use `create`, `open` or `from_bytes`."""
        super().__init__(archive_uuid, entries, generation=generation)
        self._archive = uuid.UUID(archive_uuid).bytes
        self._root = root
        self._slots = slots or []
        self._path = path
        self._seen = _stamp(path)
        self.mac = ""
        """What authenticates the file as it was read or written last; of a keyring that was handed over there is none."""

    def __repr__(self) -> str:
        """Name the archive without showing a key."""
        return f"Keyring({self.archive_uuid}, generation {self.generation})"

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Refuse pickling: keys travel by `to_bytes` over a checked socket only."""
        message = "a keyring is handed over by to_bytes, never pickled"
        raise TypeError(message)

    @property
    def whole(self) -> bool:
        """Whether it has its root and its slots, and may be changed."""
        return bool(self._root) and self._path is not None

    # --- make and open -----------------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, config: Config, *, at: datetime, recovery_kit: Path | None = None) -> Keyring:
        """Write a new keyring, its key file (one that is there is taken) and, when asked, a recovery kit; keyring.json comes last.

        Raises:
            KeysUnavailable: there is a keyring already, or a file cannot be written.
        """
        path = config.keys_dir / "keyring.json"
        if path.exists():
            message = f"there is a keyring at {path} already"
            raise KeysUnavailable(message, remedy="use it, or move it away if its archive is gone for good")
        private_files.make_directory(config.keys_dir)
        private_files.check_directory(config.keys_dir)
        if config.key_file.parent != config.keys_dir:
            private_files.make_directory(config.key_file.parent)
        key = slots.read_key_file(config.key_file) if config.key_file.exists() else slots.write_key_file(config.key_file)
        made = [entries.make(purpose, at=at) for purpose in _FIRST]
        ring = cls(str(uuid.uuid4()), made, generation=0, root=os.urandom(KEY_BYTES), path=path)
        ring._slots = [slots.wrap_for_key_file(ring._root, ring._archive, key, label="first key file", at=at)]
        if recovery_kit is not None:
            ring._slots.append(ring._new_kit(recovery_kit, label="first recovery kit", at=at))
        ring._write(first=True)
        return ring

    @classmethod
    def open(cls, config: Config, *, recovery_kit: Path | None = None, passphrase: str | None = None) -> Keyring:
        """Open with the configured key file, or with a recovery kit or passphrase.

        Raises:
            KeysUnavailable: absent, open to others, not ours, damaged, or what is given opens no slot.
        """
        path = config.keys_dir / "keyring.json"
        if not path.exists():
            message = f"there is no keyring at {path}"
            raise KeysUnavailable(message, remedy="run 'archive init' for a new archive; of an old one, put it back from its backup, "
                                  "or name its folder in keys.directory; give a restore that was cut short again")
        private_files.check_directory(config.keys_dir)
        file = keyring_file.load(path)
        archive = uuid.UUID(file.archive).bytes
        if recovery_kit is not None:
            root = slots.open_with_kit(file.slots, archive, recovery_kit)
        elif passphrase is not None:
            root = unwrap(file.slots, archive, passphrase)
        else:
            root = slots.open_with_key_file(file.slots, archive, config.key_file)
        return cls.unsealed(file, root, path)

    @classmethod
    def unsealed(cls, file: KeyringFile, root: bytes, path: Path) -> Keyring:
        """Return the keyring of a file that its root opens.

        Raises:
            KeysUnavailable: changed, or damaged.
        """
        keyring_file.authenticate(file, root, path)
        opened = [entries.from_json(fields, root, uuid.UUID(file.archive).bytes) for fields in file.entries]
        ring = cls(file.archive, opened, root=root, slots=list(file.slots), path=path, generation=file.generation)
        ring.mac = file.mac
        return ring

    @classmethod
    def from_bytes(cls, data: bytes) -> Keyring:
        """Return the keyring that `to_bytes` packed.

        Raises:
            KeysUnavailable: other bytes.
        """
        archive, opened, generation = handed_over(data)
        return cls(archive, opened, generation=generation)

    def stay_current(self) -> None:
        """Take in what another process changed, if the file is another one by now: what is made from here on is made with its keys.

        Raises:
            KeysUnavailable: it cannot be read.
        """
        if self._root and self._seen != _stamp(self._path):
            self.refresh()

    def refresh(self) -> bool:
        """Take in what another process changed (KeysUnavailable: not readable); False when nothing is new or there is no root."""
        if not self._root or self._path is None:
            return False
        seen = _stamp(self._path)
        file = keyring_file.load(self._path)
        self._seen = seen
        if file.generation <= self.generation:
            return False
        keyring_file.authenticate(file, self._root, self._path)
        self._entries = [entries.from_json(fields, self._root, self._archive) for fields in file.entries]
        self._slots, self.generation, self.mac = list(file.slots), file.generation, file.mac
        self._forget_derived()
        return True

    # --- changes -----------------------------------------------------------------------------------------------------------------

    def add_kek(self, datastore: bytes, *, at: datetime, tell: Tell = nobody) -> Kek:
        """Make a key-encryption key the active one of a datastore; an earlier one stays to open until `destroy_kek`.

        Raises:
            KeysUnavailable.
        """
        made = entries.make("kek", at=at, datastore=datastore)
        changed = [
            msgspec.structs.replace(entry, state="retiring")
            if entry.purpose == "kek" and entry.datastore == datastore and entry.state == "active"
            else entry
            for entry in self._entries
        ]
        tell(made.id.hex(), held([*changed, made], self._slots))
        self._replace([*changed, made])
        return Kek(made.id, made.secret, datastore, active=True)

    def destroy_kek(self, kek_id: bytes, *, at: datetime, tell: Tell = nobody) -> None:
        """Destroy a retiring key-encryption key, once nothing is wrapped under it and no process holds an older keyring.

        Raises:
            InvalidRequest: it is the active one. NotFound. KeysUnavailable.
        """
        entry = next((entry for entry in self._entries if entry.purpose == "kek" and entry.id == kek_id), None)
        if entry is None:
            message = "there is no such key-encryption key"
            raise NotFound(message)
        if entry.state == "active":
            message = "the active key-encryption key cannot be destroyed"
            raise InvalidRequest(message, remedy="rotate first: archive key rotate")
        gone = msgspec.structs.replace(entry, state="retired", not_after=at, secret=b"")
        changed = [gone if other is entry else other for other in self._entries]
        tell(kek_id.hex(), held(changed, self._slots))
        self._replace(changed)

    def rotate_audit_key(self, *, at: datetime) -> AuditKey:
        """Seal new audit bodies under a new key; older ones still open."""
        made = entries.make("audit", at=at)
        self._replace([*self._entries, made])
        return AuditKey(made.id, made.secret)

    def destroy_audit_key(self, key_id: bytes, *, at: datetime) -> None:
        """Destroy an audit key that is not the current one: the bodies it sealed are gone, their leaves stay provable.

        Raises:
            InvalidRequest: it is the current one. NotFound. KeysUnavailable.
        """
        if key_id == self.current_audit_key.id:
            message = "the audit key in use cannot be destroyed"
            raise InvalidRequest(message, remedy="rotate the audit key first")
        if self.audit_key(key_id) is None:
            message = "there is no such audit key"
            raise NotFound(message)
        self._replace([
            msgspec.structs.replace(entry, state="retired", not_after=at, secret=b"")
            if entry.purpose == "audit" and entry.id == key_id else entry
            for entry in self._entries
        ])

    # --- one key after another (docs/format.md 5) ----------------------------------------------------------------------------------

    def waiting(self) -> frozenset[Purpose]:
        """Return the purposes whose rotation was begun and not brought to its end."""
        return frozenset(
            entry.purpose for entry in self._entries
            if entry.state == "coming" or (entry.purpose in (*SIGNING, "index") and entry.state == "retiring")
        )

    def coming(self, purpose: Purpose) -> Entry | None:
        """Return the key that is to be the next of a purpose."""
        return next((entry for entry in self._entries if entry.purpose == purpose and entry.state == "coming"), None)

    def in_use(self, purpose: Purpose) -> Entry:
        """Return the key that counts now; KeysUnavailable where there is none."""
        return self._only(purpose)

    def prepare(self, purposes: Sequence[Purpose], *, at: datetime) -> None:
        """Let a next key of each be known; one that is there already stays."""
        missing = [purpose for purpose in purposes if self.coming(purpose) is None]
        if missing:
            self._replace([*self._entries, *(entries.make(purpose, at=at, state="coming") for purpose in missing)])

    def handover_signers(self, purpose: SigningPurpose) -> tuple[Signer, Signer]:
        """Return the key that signs and the one that is to sign, which announce the change together.

        Raises:
            KeysUnavailable: none is to come.
        """
        fresh = self.coming(purpose)
        if fresh is None:
            message = f"no {purpose} key is to come"
            raise KeysUnavailable(message, remedy="begin the rotation: archive key rotate")
        return Signer(self._only(purpose)), Signer(fresh)

    def activate(self, purposes: Sequence[Purpose]) -> None:
        """Make the coming key of each the one that counts; the earlier one waits for its end."""
        self._replace(self._activated(purposes))

    def assume(self, purposes: Sequence[Purpose]) -> None:
        """Make the coming key of each count in this process, as `activate` would for all; nothing is written."""
        self._entries = self._activated(purposes)
        self._forget_derived()

    def held(self, *, activated: Sequence[Purpose] = ()) -> Held:
        """Return what is in the keyring, or will be once the coming keys of some purposes count."""
        return held(self._activated(activated), self._slots)

    def _activated(self, purposes: Sequence[Purpose]) -> list[Entry]:
        having = [purpose for purpose in purposes if self.coming(purpose) is not None]
        after = {"active": "retiring", "coming": "active"}
        return [
            msgspec.structs.replace(entry, state=after[entry.state]) if entry.purpose in having and entry.state in after else entry
            for entry in self._entries
        ]

    def retire(self, purposes: Sequence[Purpose], *, at: datetime) -> None:
        """Destroy the secrets of the keys of these that wait for their end; public halves stay for ever."""
        self._replace([
            msgspec.structs.replace(entry, state="retired", not_after=at, secret=b"")
            if entry.purpose in purposes and entry.state == "retiring" else entry
            for entry in self._entries
        ])

    def give_up(self, purpose: Purpose) -> None:
        """Drop a key that was to come and that nothing was made with yet."""
        self._replace([entry for entry in self._entries if (entry.purpose, entry.state) != (purpose, "coming")])

    def set_ca_key(self, private_key: bytes, public: bytes, *, at: datetime) -> Entry:
        """Keep a certificate authority's key (PKCS#8 DER, SubjectPublicKeyInfo DER) in the place of any earlier one."""
        made = entries.make_ca(private_key, public, at=at)
        self._replace([
            *(
                msgspec.structs.replace(entry, state="retired", not_after=at, secret=b"") if entry.purpose == "ca" else entry
                for entry in self._entries
            ),
            made,
        ])
        return made

    # --- slots -------------------------------------------------------------------------------------------------------------------

    def slots(self) -> list[dict[str, str]]:
        """Return id, kind, label and created_at of every slot."""
        return [{"id": slot.id, "kind": slot.kind, "label": slot.label, "created_at": slot.created_at} for slot in self._slots]

    def slot_add(
        self, *, at: datetime, key_file: Path | None = None, recovery_kit: Path | None = None, passphrase: str | None = None,
        label: str = "", instead: str = "", tell: Tell = nobody,
    ) -> str:
        """Add a slot for a key file (made when absent), a new recovery kit or a passphrase, `instead` of one if named; return its id.

        Raises:
            InvalidRequest: not exactly one of the three, or the passphrase is too weak. NotFound: no such slot. KeysUnavailable.
        """
        self._require_root()
        left = self._without(instead) if instead else self._slots
        if [key_file, recovery_kit, passphrase].count(None) != 2:
            message = "name either a key file, a recovery kit or a passphrase"
            raise InvalidRequest(message)
        if passphrase is not None:
            slot = wrap(self._root, self._archive, passphrase, label=label or "passphrase", at=at)
        elif recovery_kit is not None:
            slot = self._new_kit(recovery_kit, label=label or "recovery kit", at=at)
        else:
            assert key_file is not None
            key = slots.read_key_file(key_file) if key_file.exists() else slots.write_key_file(key_file)
            slot = slots.wrap_for_key_file(self._root, self._archive, key, label=label or "key file", at=at)
            if any(other.key_id == slot.key_id for other in self._slots):
                message = "this key file has a slot already"
                raise InvalidRequest(message, remedy="name another key file")
        tell(slot.id, held(self._entries, [*left, slot]))
        self._replace(self._entries, slots=[*left, slot])
        return slot.id

    def slot_remove(self, slot_id: str, *, tell: Tell = nobody) -> None:
        """Remove a slot; what it opened the keyring with opens it no more.

        Raises:
            NotFound. InvalidRequest: it is the last one. KeysUnavailable.
        """
        left = self._without(slot_id)
        if not left:
            message = "the last slot cannot be removed: nothing would open the keyring"
            raise InvalidRequest(message, remedy="add another slot first: archive key slot add")
        tell(slot_id, held(self._entries, left))
        self._replace(self._entries, slots=left)

    def _without(self, slot_id: str) -> list[Slot]:
        left = [slot for slot in self._slots if slot.id != slot_id]
        if len(left) == len(self._slots):
            message = "there is no such slot"
            raise NotFound(message, remedy="see 'archive key slot list'")
        return left

    def _new_kit(self, path: Path, *, label: str, at: datetime) -> Slot:
        secret = secrets.token_bytes(KEY_BYTES)
        assert self._path is not None
        slots.write_kit(path, secret, archive_uuid=self.archive_uuid, label=label, keyring=self._path, at=at)
        return slots.wrap_for_recovery(self._root, self._archive, secret, label=label, at=at)

    # --- writing -----------------------------------------------------------------------------------------------------------------

    def _require_root(self) -> None:
        if not self.whole:
            message = "a worker process cannot change the keyring"
            raise KeysUnavailable(message, remedy="do this at the console, with the archive command")

    def _replace(self, changed: list[Entry], *, slots: list[Slot] | None = None) -> None:
        before = self._entries, self._slots
        self._entries, self._slots = changed, self._slots if slots is None else slots
        try:
            self._write()
        except BaseException:
            self._entries, self._slots = before
            raise
        self._forget_derived()

    def _write(self, *, first: bool = False) -> None:
        self._require_root()
        assert self._path is not None
        sealed = [entries.to_json(entry, self._root, self._archive) for entry in self._entries]
        file = keyring_file.sealed(KeyringFile(self.archive_uuid, self.generation + 1, self._slots, sealed), self._root)
        keyring_file.store(self._path, file, self._root, first=first)
        self.generation, self.mac, self._seen = file.generation, file.mac, _UNSEEN


def _stamp(path: Path | None) -> tuple[int, int]:
    """Tell one content of keyring.json from the next: each is a file of its own, put in the place of the last."""
    try:
        found = path.stat() if path is not None else None
    except OSError:
        found = None
    return (0, 0) if found is None else (found.st_ino, found.st_mtime_ns)
