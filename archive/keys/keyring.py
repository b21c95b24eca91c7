"""The keyring: every long-lived key of an archive, opened once by the process that starts the others.

Source: docs/format.md 5.
"""

from __future__ import annotations

import os
import secrets
import uuid
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from archive.config import Config
from archive.errors import InvalidRequest, KeysUnavailable, NotFound
from archive.keys import entries, keyring_file, private_files, slots
from archive.keys.entries import SIGNING, AuditKey, Entry, Kek, PublicKey, Purpose, Signer, SigningPurpose
from archive.keys.keyring_file import KeyringFile
from archive.keys.sealing import KEY_BYTES, Keyed, derive
from archive.keys.slots import Slot

_FIRST: tuple[Purpose, ...] = ("index", "keystore", "audit", "pepper", "instance", "log", "log-pq")


class _Handed(msgspec.Struct, frozen=True):
    """What a worker process gets: opened entries, no root."""

    archive: str
    generation: int
    entries: list[Entry]


class Keyring:
    """An opened keyring; share it between threads.

    Changes are written to keyring.json before they count. A keyring from `from_bytes` has no root and changes nothing.
    """

    def __init__(
        self, archive_uuid: str, entries: list[Entry], *, generation: int, root: bytes = b"", slots: list[Slot] | None = None,
        path: Path | None = None,
    ) -> None:
        """Hold opened entries; use `create`, `open` or `from_bytes`."""
        self.archive_uuid = archive_uuid
        self.generation = generation
        self._archive = uuid.UUID(archive_uuid).bytes
        self._entries = entries
        self._root = root
        self._slots = slots or []
        self._path = path
        self._pepper: dict[str, bytes] = {}
        self._keyed: dict[str, Keyed] = {}

    def __repr__(self) -> str:
        """Name the archive without showing a key."""
        return f"Keyring({self.archive_uuid}, generation {self.generation})"

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Refuse pickling: keys travel by `to_bytes` over a checked socket only."""
        message = "a keyring is handed over by to_bytes, never pickled"
        raise TypeError(message)

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
    def open(cls, config: Config, *, recovery_kit: Path | None = None) -> Keyring:
        """Open with the configured key file, or with a recovery kit.

        Raises:
            KeysUnavailable: absent, open to others, not ours, damaged, or the key file or kit opens no slot.
        """
        path = config.keys_dir / "keyring.json"
        if not path.exists():
            message = f"there is no keyring at {path}"
            raise KeysUnavailable(message, remedy="run 'archive init' for a new archive; of an old one, put it back from its backup, "
                                  "or name its folder in keys.directory")
        private_files.check_directory(config.keys_dir)
        file = keyring_file.load(path)
        archive = uuid.UUID(file.archive).bytes
        if recovery_kit is not None:
            root = slots.open_with_kit(file.slots, archive, recovery_kit)
        else:
            root = slots.open_with_key_file(file.slots, archive, config.key_file)
        keyring_file.authenticate(file, root, path)
        opened = [entries.from_json(fields, root, archive) for fields in file.entries]
        return cls(file.archive, opened, root=root, slots=list(file.slots), path=path, generation=file.generation)

    def to_bytes(self) -> bytes:
        """Return the opened entries for a worker process, without root and CA key; for a checked local socket only."""
        handed = [msgspec.structs.replace(entry, secret=b"") if entry.purpose == "ca" else entry for entry in self._entries]
        return msgspec.msgpack.encode(_Handed(self.archive_uuid, self.generation, handed))

    @classmethod
    def from_bytes(cls, data: bytes) -> Keyring:
        """Return the keyring that `to_bytes` packed.

        Raises:
            KeysUnavailable: other bytes.
        """
        try:
            handed = msgspec.msgpack.decode(data, type=_Handed)
        except (msgspec.DecodeError, ValueError) as error:
            message = "what was handed over is not a keyring"
            raise KeysUnavailable(message, remedy="restart the archive") from error
        return cls(handed.archive, handed.entries, generation=handed.generation)

    # --- keys --------------------------------------------------------------------------------------------------------------------

    def _only(self, purpose: Purpose) -> Entry:
        """Return the newest active entry of a purpose."""
        found = [entry for entry in self._entries if entry.purpose == purpose and entry.state == "active" and entry.secret]
        if not found:
            message = f"the keyring holds no {purpose} key"
            raise KeysUnavailable(message, remedy="put keyring.json back from its backup, or do this at the console")
        return found[-1]

    @cached_property
    def index_key(self) -> bytes:
        """The raw key of the embedded index."""
        return self._only("index").secret

    @cached_property
    def keystore_key(self) -> bytes:
        """The raw key of the embedded keystore."""
        return self._only("keystore").secret

    def pepper(self, label: str) -> bytes:
        """Return the sub-key of one use of the pepper."""
        key = self._pepper.get(label)
        if key is None:
            key = self._pepper[label] = derive(self._only("pepper").secret, b"strongroom/v1/pepper\0" + label.encode())
        return key

    def pseudonym(self, label: str, value: str | bytes) -> bytes:
        """Return 32 bytes that stand for `value` and say nothing about it without the pepper."""
        if (keyed := self._keyed.get(label)) is None:
            keyed = self._keyed[label] = Keyed(self.pepper(label))
        return keyed.digest(value.encode() if isinstance(value, str) else value)

    def kek(self, datastore: bytes) -> Kek:
        """Return the key-encryption key that wraps new data keys of a datastore.

        Raises:
            KeysUnavailable: the datastore has none.
        """
        for kek in reversed(self.keks()):
            if kek.datastore == datastore and kek.active:
                return kek
        message = "the datastore has no key-encryption key in this keyring"
        raise KeysUnavailable(message, remedy="restart the archive if the datastore is new, else put keyring.json back")

    def keks(self) -> list[Kek]:
        """Return every key-encryption key that still opens something, oldest first."""
        return [
            Kek(entry.id, entry.secret, entry.datastore, entry.state == "active")
            for entry in self._entries
            if entry.purpose == "kek" and entry.secret
        ]

    @cached_property
    def current_audit_key(self) -> AuditKey:
        """The key that seals audit bodies now."""
        entry = self._only("audit")
        return AuditKey(entry.id, entry.secret)

    def audit_key(self, key_id: bytes) -> AuditKey | None:
        """Return the key that sealed a body, or None when it was destroyed."""
        for entry in self._entries:
            if entry.purpose == "audit" and entry.id == key_id and entry.secret:
                return AuditKey(entry.id, entry.secret)
        return None

    @cached_property
    def instance_signer(self) -> Signer:
        """The key that signs statements."""
        return Signer(self._only("instance"))

    @cached_property
    def log_signers(self) -> tuple[Signer, Signer]:
        """The Ed25519 and ML-DSA-44 keys that sign checkpoints."""
        return Signer(self._only("log")), Signer(self._only("log-pq"))

    def public_keys(self) -> list[PublicKey]:
        """Return every public key that ever signed here, oldest first."""
        return [
            PublicKey(entry.id.hex(), purpose, entries.ALGORITHMS[purpose], entry.public, entry.created_at, entry.not_after)
            for entry in self._entries
            for purpose in SIGNING
            if entry.purpose == purpose
        ]

    @property
    def ca_key(self) -> Entry | None:
        """The certificate authority's key pair, or None when there is none yet; a worker has the public half only."""
        return next((entry for entry in reversed(self._entries) if entry.purpose == "ca" and entry.state == "active"), None)

    def describe(self) -> list[dict[str, str]]:
        """Return every entry without its secret: id, purpose, state, datastore, created_at, not_after."""
        return [{name: value for name, value in entry.fields().items() if name != "public"} for entry in self._entries]

    def refresh(self) -> bool:
        """Take in what another process changed (KeysUnavailable: not readable); False when nothing is new or there is no root."""
        if not self._root or self._path is None or (file := keyring_file.load(self._path)).generation <= self.generation:
            return False
        keyring_file.authenticate(file, self._root, self._path)
        self._entries = [entries.from_json(fields, self._root, self._archive) for fields in file.entries]
        self._slots, self.generation = list(file.slots), file.generation
        self._forget_derived()
        return True

    # --- changes -----------------------------------------------------------------------------------------------------------------

    def add_kek(self, datastore: bytes, *, at: datetime) -> Kek:
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
        self._replace([*changed, made])
        return Kek(made.id, made.secret, datastore, active=True)

    def destroy_kek(self, kek_id: bytes, *, at: datetime) -> None:
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
        self._replace([gone if other is entry else other for other in self._entries])

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

    def rotate_signer(self, purpose: SigningPurpose, *, at: datetime) -> Signer:
        """Replace a signing key: the old public key is kept for ever with its end, the old private key is destroyed."""
        made = entries.make(purpose, at=at)
        self._replace([
            *(
                msgspec.structs.replace(entry, state="retired", not_after=at, secret=b"")
                if entry.purpose == purpose and entry.state == "active" else entry
                for entry in self._entries
            ),
            made,
        ])
        return Signer(made)

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

    def slot_add(self, *, at: datetime, key_file: Path | None = None, recovery_kit: Path | None = None, label: str = "") -> str:
        """Add a slot for a key file (made when absent) or for a new recovery kit, and return its id.

        Raises:
            InvalidRequest: not exactly one of the two. KeysUnavailable.
        """
        self._require_root()
        if (key_file is None) == (recovery_kit is None):
            message = "name either a key file or a recovery kit"
            raise InvalidRequest(message)
        if recovery_kit is not None:
            slot = self._new_kit(recovery_kit, label=label or "recovery kit", at=at)
        else:
            assert key_file is not None
            key = slots.read_key_file(key_file) if key_file.exists() else slots.write_key_file(key_file)
            slot = slots.wrap_for_key_file(self._root, self._archive, key, label=label or "key file", at=at)
            if any(other.key_id == slot.key_id for other in self._slots):
                message = "this key file has a slot already"
                raise InvalidRequest(message, remedy="name another key file")
        self._replace(self._entries, slots=[*self._slots, slot])
        return slot.id

    def slot_remove(self, slot_id: str) -> None:
        """Remove a slot; what it opened the keyring with opens it no more.

        Raises:
            NotFound. InvalidRequest: it is the last one. KeysUnavailable.
        """
        left = [slot for slot in self._slots if slot.id != slot_id]
        if len(left) == len(self._slots):
            message = "there is no such slot"
            raise NotFound(message, remedy="see 'archive key slot list'")
        if not left:
            message = "the last slot cannot be removed: nothing would open the keyring"
            raise InvalidRequest(message, remedy="add another slot first: archive key slot add")
        self._replace(self._entries, slots=left)

    def _new_kit(self, path: Path, *, label: str, at: datetime) -> Slot:
        secret = secrets.token_bytes(KEY_BYTES)
        assert self._path is not None
        slots.write_kit(path, secret, archive_uuid=self.archive_uuid, label=label, keyring=self._path, at=at)
        return slots.wrap_for_recovery(self._root, self._archive, secret, label=label, at=at)

    # --- writing -----------------------------------------------------------------------------------------------------------------

    def _require_root(self) -> None:
        if not self._root or self._path is None:
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

    def _forget_derived(self) -> None:
        for name in ("index_key", "keystore_key", "current_audit_key", "instance_signer", "log_signers"):
            self.__dict__.pop(name, None)

    def _write(self, *, first: bool = False) -> None:
        self._require_root()
        assert self._path is not None
        file = KeyringFile(
            self.archive_uuid, self.generation + 1, self._slots,
            [entries.to_json(entry, self._root, self._archive) for entry in self._entries],
        )
        keyring_file.store(self._path, file, self._root, first=first)
        self.generation = file.generation
