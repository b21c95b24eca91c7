"""The keys of an opened keyring and what is made with them; every process has these, the one that opened the keyring has more.

Source: docs/format.md 1, 5.
"""

from __future__ import annotations

from datetime import datetime
from functools import cached_property

import msgspec

from archive.errors import KeysUnavailable
from archive.keys import entries
from archive.keys.entries import SIGNING, AuditKey, Entry, Kek, PublicKey, Purpose, Signer
from archive.keys.sealing import Keyed, WrongKey, derive, seal, unseal

RENEWED = ("api-token", "signin/", "change-cursor", "access-snapshot", "work-snapshot")
"""Labels of the newest pepper; the names of every other stand where nothing is written again, and stay with the oldest."""


class _Handed(msgspec.Struct, frozen=True):
    """What a worker process gets: opened entries, no root."""

    archive: str
    generation: int
    entries: list[Entry]


class OpenedKeys:
    """Opened entries; share them between threads."""

    def __init__(self, archive_uuid: str, entries: list[Entry], *, generation: int) -> None:
        """Hold opened entries."""
        self.archive_uuid = archive_uuid
        self.generation = generation
        self._entries = entries
        self._pepper: dict[str, bytes] = {}
        self._keyed: dict[str, Keyed] = {}

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
            key = self._pepper[label] = _use(self._peppers(label)[0], label)
        return key

    def pseudonym(self, label: str, value: str | bytes) -> bytes:
        """Return 32 bytes that stand for `value` and say nothing about it without the pepper."""
        if (keyed := self._keyed.get(label)) is None:
            keyed = self._keyed[label] = Keyed(self.pepper(label))
        return keyed.digest(value.encode() if isinstance(value, str) else value)

    def pseudonyms(self, label: str, value: str | bytes) -> list[bytes]:
        """Return what stands for `value` now, then what did, or is about to, under other peppers: what is kept may be any of them."""
        said = value.encode() if isinstance(value, str) else value
        now = self.pseudonym(label, value)
        others = (Keyed(_use(entry, label)).digest(said) for entry in self._peppers(label)[1:])
        return [now, *others]

    def seal(self, label: str, plaintext: bytes, aad: bytes) -> bytes:
        """Seal under one use of the pepper."""
        return seal(self.pepper(label), plaintext, aad)

    def seal_ahead(self, label: str, plaintext: bytes, aad: bytes) -> bytes:
        """Seal as `seal` will once the pepper that is to come counts; as `seal` where none is to come."""
        coming = next((entry for entry in self._peppers(label) if entry.state == "coming"), None)
        return self.seal(label, plaintext, aad) if coming is None else seal(_use(coming, label), plaintext, aad)

    def unseal(self, label: str, sealed: bytes, aad: bytes) -> bytes:
        """Return what `seal` sealed, now or under an earlier pepper.

        Raises:
            WrongKey: another context, or changed bytes.
        """
        for entry in self._peppers(label):
            try:
                return unseal(_use(entry, label), sealed, aad)
            except WrongKey:
                continue
        raise WrongKey

    def _peppers(self, label: str) -> list[Entry]:
        """Return the pepper that a label is made with, then those that it may have been made with, newest first."""
        found = [entry for entry in self._entries if entry.purpose == "pepper" and entry.secret]
        if not label.startswith(RENEWED):
            found = found[:1]
        if not found:
            message = "the keyring holds no pepper key"
            raise KeysUnavailable(message, remedy="put keyring.json back from its backup, or do this at the console")
        newest = found[::-1]
        return sorted(newest, key=lambda entry: entry.state != "active")

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

    def audit_key_destroyed(self, key_id: bytes) -> bool:
        """Whether there was an audit key of that id, and it was destroyed."""
        return any(
            entry.purpose == "audit" and entry.id == key_id and entry.state == "retired" and not entry.secret for entry in self._entries
        )

    @cached_property
    def instance_signer(self) -> Signer:
        """The key that signs statements."""
        return Signer(self._only("instance"))

    @property
    def instance_signer_since(self) -> datetime:
        """When the key that signs statements was made."""
        return self._only("instance").created_at

    @cached_property
    def log_signers(self) -> tuple[Signer, Signer]:
        """The Ed25519 and ML-DSA-44 keys that sign checkpoints."""
        return Signer(self._only("log")), Signer(self._only("log-pq"))

    def public_keys(self) -> list[PublicKey]:
        """Return every public key that ever signed here, oldest first."""
        return [
            PublicKey(
                entry.id.hex(), purpose, entries.ALGORITHMS[purpose], entry.public, entry.created_at, entry.not_after, entry.state,
            )
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

    # --- to a worker -------------------------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """Return the opened entries for a worker process, without root, CA key and idle signing keys; for a checked local socket only."""
        handed = [msgspec.structs.replace(entry, secret=b"") if _stays(entry) else entry for entry in self._entries]
        return msgspec.msgpack.encode(_Handed(self.archive_uuid, self.generation, handed))

    def _forget_derived(self) -> None:
        self._pepper, self._keyed = {}, {}
        for name in ("index_key", "keystore_key", "current_audit_key", "instance_signer", "log_signers"):
            self.__dict__.pop(name, None)


def handed_over(data: bytes) -> tuple[str, list[Entry], int]:
    """Return archive, entries and generation of what `to_bytes` packed.

    Raises:
        KeysUnavailable: other bytes.
    """
    try:
        handed = msgspec.msgpack.decode(data, type=_Handed)
    except (msgspec.DecodeError, ValueError) as error:
        message = "what was handed over is not a keyring"
        raise KeysUnavailable(message, remedy="restart the archive") from error
    return handed.archive, handed.entries, handed.generation


def _use(entry: Entry, label: str) -> bytes:
    return derive(entry.secret, b"strongroom/v1/pepper\0" + label.encode())


def _stays(entry: Entry) -> bool:
    """Whether a secret stays with the process that opened the keyring."""
    return entry.purpose == "ca" or (entry.purpose in (*SIGNING, "index") and entry.state != "active")
