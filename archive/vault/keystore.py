"""Data keys, one per study and datastore, in a database of their own (docs/format.md 4).

A key is committed with synchronous=FULL before anything is sealed under it. This module and db.group are the only two places below
the services that commit.
"""

from __future__ import annotations

import hmac
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import sqlalchemy as sa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from archive.db import upsert
from archive.db.engine import Database
from archive.db.tables import anchor, data_key
from archive.errors import DatabaseUnavailable, KeyShredded, KeysUnavailable, SealBroken

WRAPPED_BYTES = 77
_AAD = b"strongroom/v1/dk\0"
_WRAPPING = "kek/"
"""Anchors of this prefix name the key-encryption key that wraps a datastore's new data keys."""


class Kek(Protocol):
    """A key-encryption key of the keyring."""

    @property
    def id(self) -> bytes:
        """16 bytes derived from the key."""

    @property
    def key(self) -> bytes:
        """32 bytes."""


class Keks(Protocol):
    """What the keystore needs of the keyring."""

    def kek(self, datastore: bytes) -> Kek:
        """Return the datastore's active key-encryption key."""

    def keks(self) -> Iterable[Kek]:
        """Return every key-encryption key, also those being retired."""

    def pseudonym(self, label: str, value: str | bytes) -> bytes:
        """Return a keyed 32-byte name for `value`."""

    def refresh(self) -> bool:
        """Take in what other processes changed; False where that is not possible."""


@dataclass(frozen=True, slots=True, repr=False)
class StudyKey:
    """An opened data key."""

    key_id: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class Anchor:
    """The largest log ever signed here, and its note."""

    size: int
    note: bytes


def check_value(key: bytes) -> bytes:
    """Return the kcv of a data key."""
    return HKDFExpand(hashes.SHA256(), 8, b"kcv").derive(key)


def wrap(kek: Kek, datastore: bytes, study_key: StudyKey) -> bytes:
    """Return the wrap blob of a data key."""
    nonce = os.urandom(12)
    aad = _AAD + datastore + study_key.key_id + kek.id
    return b"\x01" + kek.id + nonce + AESGCM(kek.key).encrypt(nonce, study_key.key, aad)


def unwrap(kek: Kek, datastore: bytes, key_id: bytes, blob: bytes) -> bytes:
    """Return the data key of a wrap blob.

    Raises:
        SealBroken: V05.
    """
    if len(blob) != WRAPPED_BYTES or blob[:1] != b"\x01" or blob[1:17] != kek.id:
        raise _broken("the data key's row is damaged")
    try:
        return AESGCM(kek.key).decrypt(blob[17:29], blob[29:], _AAD + datastore + key_id + kek.id)
    except InvalidTag:
        raise _broken("the data key's row is damaged") from None


def _broken(message: str) -> SealBroken:
    return SealBroken(message, verdict="V05", remedy="restore the keystore from its backup")


class Keystore:
    """The keys of all studies; any thread."""

    def __init__(self, database: Database, keyring: Keks, *, keep: int = 512) -> None:
        """Use the keystore database (opened with guarded=False) and keep the last `keep` opened keys in memory."""
        self._database = database
        self._keyring = keyring
        self._keep = keep
        self._lock = threading.Lock()
        self._by_id: OrderedDict[bytes, StudyKey] = OrderedDict()
        self._by_study: OrderedDict[bytes, bytes] = OrderedDict()

    def for_study(self, datastore: bytes, study_instance_uid: str, *, at: datetime) -> StudyKey:
        """Return the study's active key, made and committed on first use.

        A cached key may meanwhile be shredded by another process: the store transaction compares it with `study.key_id`, and
        `forget` makes the next call look again.

        Raises:
            SealBroken: V05.
            DatabaseUnavailable, OutOfSpace.
        """
        study_ref = self._keyring.pseudonym("keystore/study", datastore + study_instance_uid.encode())
        with self._lock:
            cached = self._by_id.get(self._by_study.get(study_ref, b""))
            if cached is not None:
                self._by_id.move_to_end(cached.key_id)
                return cached
        where = sa.and_(data_key.c.datastore == datastore, data_key.c.study_ref == study_ref, data_key.c.state == "active")
        with self._database.read() as tx:
            row = tx.execute(sa.select(data_key).where(where)).first()
        if row is None:
            with self._database.begin(durable=True) as tx:
                kek = self._wrapping(tx, datastore)
                values = self._fresh(kek, datastore, study_ref, at)
                tx.execute(self._insert(data_key).values(values).on_conflict_do_nothing())
                row = tx.execute(sa.select(data_key).where(where)).one()
        return self._remember(self._opened(row), study_ref)

    def wrap_under(self, datastore: bytes, kek_id: bytes) -> None:
        """From now on every process wraps the datastore's new data keys under this key-encryption key, or none.

        Asked in the transaction of each new data key: a process that holds an older keyring cannot wrap under a key that is about to
        be destroyed, and one that holds a newer one does not wrap yet under a key that others lack.

        Raises:
            DatabaseUnavailable, OutOfSpace.
        """
        insert = self._insert(anchor).values(name=_WRAPPING + datastore.hex(), size=0, note=kek_id)
        with self._database.begin(durable=True) as tx:
            tx.execute(insert.on_conflict_do_update(index_elements=[anchor.c.name], set_={"note": kek_id}))

    def wrapping(self, datastore: bytes) -> bytes | None:
        """Return the id that `wrap_under` was last given.

        Raises:
            DatabaseUnavailable.
        """
        with self._database.read() as tx:
            said = tx.execute(sa.select(anchor.c.note).where(anchor.c.name == _WRAPPING + datastore.hex())).scalar()
        return None if said is None else bytes(said)

    def _wrapping(self, tx: sa.Connection, datastore: bytes) -> Kek:
        said = tx.execute(sa.select(anchor.c.note).where(anchor.c.name == _WRAPPING + datastore.hex())).scalar()
        return self._keyring.kek(datastore) if said is None else self._held(bytes(said))

    def _held(self, kek_id: bytes) -> Kek:
        for again in (False, True):
            if not again or self._keyring.refresh():
                for kek in self._keyring.keks():
                    if kek.id == kek_id:
                        return kek
        message = "this process does not hold the newest keys"
        raise KeysUnavailable(message, remedy="a rotation is under way: try again, or restart the archive")

    @staticmethod
    def _fresh(kek: Kek, datastore: bytes, study_ref: bytes, at: datetime) -> dict[str, Any]:
        study_key = StudyKey(os.urandom(16), os.urandom(32))
        return {
            "key_id": study_key.key_id, "datastore": datastore, "study_ref": study_ref, "wrapped": wrap(kek, datastore, study_key),
            "kek_id": kek.id, "kcv": check_value(study_key.key), "state": "active", "created_at": at,
        }

    def _insert(self, table: sa.Table) -> Any:
        return upsert.insert(table, sqlite=self._database.sqlite)

    def open(self, key_id: bytes) -> StudyKey:
        """Return a data key by its id, active or retiring.

        Raises:
            KeyShredded: V05, destroyed on purpose.
            SealBroken: V05, missing, damaged, or wrapped under a key the keyring lacks.
            DatabaseUnavailable.
        """
        with self._lock:
            cached = self._by_id.get(key_id)
            if cached is not None:
                self._by_id.move_to_end(key_id)
                return cached
        with self._database.read() as tx:
            row = tx.execute(sa.select(data_key).where(data_key.c.key_id == key_id)).first()
        if row is None:
            raise _broken("the data key is missing from the keystore")
        return self._remember(self._opened(row))

    def _opened(self, row: sa.Row[Any]) -> StudyKey:
        if row.state == "shredded":
            raise KeyShredded("the study's key was destroyed", verdict="V05")
        try:
            kek = self._held(row.kek_id)
        except KeysUnavailable:
            raise _broken("the data key is wrapped under a key-encryption key that is not in the keyring") from None
        key = unwrap(kek, row.datastore, row.key_id, row.wrapped)
        if not hmac.compare_digest(check_value(key), row.kcv):
            raise _broken("the data key does not match its check value")
        return StudyKey(row.key_id, key)

    def _remember(self, study_key: StudyKey, study_ref: bytes | None = None) -> StudyKey:
        with self._lock:
            self._by_id[study_key.key_id] = study_key
            if study_ref is not None:
                self._by_study[study_ref] = study_key.key_id
            for cache in (self._by_id, self._by_study):
                while len(cache) > self._keep:
                    cache.popitem(last=False)
        return study_key

    def forget(self, key_id: bytes) -> None:
        """Drop an opened key from memory, so that the next use reads the database."""
        with self._lock:
            self._by_id.pop(key_id, None)

    def state(self, key_id: bytes) -> str | None:
        """Return active, coming, retiring or shredded; None for a key that never was here.

        Raises:
            DatabaseUnavailable.
        """
        with self._database.read() as tx:
            return tx.execute(sa.select(data_key.c.state).where(data_key.c.key_id == key_id)).scalar()

    def renew(self, datastore: bytes, study_instance_uid: str, *, at: datetime) -> StudyKey:
        """Return the key that is to be the study's next: it opens records, and `for_study` does not seal under it yet.

        Raises:
            SealBroken: V05. DatabaseUnavailable, OutOfSpace.
        """
        study_ref = self._keyring.pseudonym("keystore/study", datastore + study_instance_uid.encode())
        where = sa.and_(data_key.c.datastore == datastore, data_key.c.study_ref == study_ref, data_key.c.state == "coming")
        with self._database.begin(durable=True) as tx:
            row = tx.execute(sa.select(data_key).where(where)).first()
            if row is None:
                values = self._fresh(self._wrapping(tx, datastore), datastore, study_ref, at) | {"state": "coming"}
                tx.execute(sa.insert(data_key).values(values))
                row = tx.execute(sa.select(data_key).where(where)).one()
        return self._remember(self._opened(row))

    def drop_coming(self, datastore: bytes, study_instance_uid: str, *, at: datetime) -> None:
        """Destroy a study's key that was to come, when nothing is left that could be sealed under it.

        Raises:
            DatabaseUnavailable, OutOfSpace.
        """
        study_ref = self._keyring.pseudonym("keystore/study", datastore + study_instance_uid.encode())
        where = sa.and_(data_key.c.datastore == datastore, data_key.c.study_ref == study_ref, data_key.c.state == "coming")
        with self._database.read() as tx:
            found = [bytes(one) for one in tx.execute(sa.select(data_key.c.key_id).where(where)).scalars()]
        for key_id in found:
            self.shred(key_id, at=at, reason="shred")

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A read transaction of the keystore's own database.

        Raises:
            DatabaseUnavailable.
        """
        with self._database.read() as tx:
            yield tx

    def shred(self, key_id: bytes, *, at: datetime, reason: str, successor: bytes | None = None) -> None:
        """Overwrite a data key for good, and let its `successor` seal from then on; again is harmless.

        Raises:
            DatabaseUnavailable: somebody who reads kept the file from being overwritten, among others. It opens nothing any more here, but
                is destroyed only once this has returned. OutOfSpace.
        """
        gone = {"wrapped": bytes(WRAPPED_BYTES), "kcv": bytes(8), "state": "shredded", "shredded_at": at, "shred_reason": reason}
        with self._database.begin(durable=True) as tx:
            tx.execute(sa.update(data_key).where(data_key.c.key_id == key_id, data_key.c.state != "shredded").values(gone))
            if successor is not None:
                self._succeed(tx, successor)
        self.forget(key_id)
        if not self._database.checkpoint():
            message = "the key is overwritten in the keystore's log, but not yet in its file, which somebody reads"
            raise DatabaseUnavailable(message, remedy="let a backup or check that is running end; it is tried again")

    @staticmethod
    def _succeed(tx: sa.Connection, key_id: bytes) -> None:
        """Let a key that is to come be its study's active one; another, made since the old one went, seals no more."""
        coming = sa.and_(data_key.c.key_id == key_id, data_key.c.state == "coming")
        found = tx.execute(sa.select(data_key.c.datastore, data_key.c.study_ref).where(coming)).first()
        if found is not None:
            mine = sa.and_(data_key.c.datastore == found.datastore, data_key.c.study_ref == found.study_ref, data_key.c.state == "active")
            tx.execute(sa.update(data_key).where(mine).values(state="retiring"))
            tx.execute(sa.update(data_key).where(coming).values(state="active"))

    def rewrap(self, datastore: bytes, *, batch: int = 1000, progress: Callable[[int], None] = lambda _done: None) -> int:
        """Wrap every key of the datastore that is under another key-encryption key under the one of `wrap_under`; return how many.

        One that does not open stays as it is and costs no other its new wrapping: see `behind`. Batches commit one by one, so a run that
        is cut short goes on where it stopped.

        Raises:
            DatabaseUnavailable, OutOfSpace.
        """
        with self._database.read() as tx:
            kek = self._wrapping(tx, datastore)
        where = sa.and_(data_key.c.datastore == datastore, data_key.c.kek_id != kek.id, data_key.c.state != "shredded")
        change = sa.update(data_key).where(data_key.c.key_id == sa.bindparam("of")).values(
            wrapped=sa.bindparam("new"), kek_id=kek.id
        )
        done, last = 0, b""
        while True:
            with self._database.begin(durable=True) as tx:
                rows = tx.execute(sa.select(data_key).where(where, data_key.c.key_id > last).order_by(data_key.c.key_id).limit(batch)).all()
                fresh = [{"of": key.key_id, "new": wrap(kek, datastore, key)} for key in self._sound(rows)]
                if fresh:
                    tx.execute(change, fresh)
            if not rows:
                return done
            done, last = done + len(fresh), rows[-1].key_id
            progress(done)

    def _sound(self, rows: Sequence[sa.Row[Any]]) -> Iterator[StudyKey]:
        for row in rows:
            with suppress(SealBroken):
                yield self._opened(row)

    def behind(self, datastore: bytes, former: Sequence[bytes]) -> list[str]:
        """Return the ids, in hex, of keys that do not open (V05), so that `rewrap` left them: the datastore's, or under `former` ones.

        Raises:
            DatabaseUnavailable.
        """
        with self._database.read() as tx:
            kek = self._wrapping(tx, datastore)
            left = sa.and_(data_key.c.datastore == datastore, data_key.c.kek_id != kek.id) | data_key.c.kek_id.in_(former)
            query = sa.select(data_key.c.key_id).where(left, data_key.c.state != "shredded").order_by(data_key.c.key_id)
            return [bytes(one).hex() for one in tx.execute(query).scalars()]

    def wrapped_under(self, kek_id: bytes) -> int:
        """Return how many data keys still need the key-encryption key: it may be destroyed at 0.

        Raises:
            DatabaseUnavailable.
        """
        query = sa.select(sa.func.count()).select_from(data_key).where(data_key.c.kek_id == kek_id, data_key.c.state != "shredded")
        with self._database.read() as tx:
            return tx.execute(query).scalar_one()

    def anchor(self, name: str) -> Anchor | None:
        """Return the anchor of that name.

        Raises:
            DatabaseUnavailable.
        """
        with self._database.read() as tx:
            row = tx.execute(sa.select(anchor.c.size, anchor.c.note).where(anchor.c.name == name)).first()
        return None if row is None else Anchor(row.size, row.note)

    def set_anchor(self, name: str, size: int, note: bytes, *, instead: bytes | None = None) -> None:
        """Keep the anchor durably, unless a larger one is there that is not the note it takes the place of, `instead`.

        Raises:
            DatabaseUnavailable, OutOfSpace.
        """
        insert = self._insert(anchor).values(name=name, size=size, note=note)
        gives_way = anchor.c.size <= size if instead is None else sa.or_(anchor.c.size <= size, anchor.c.note == instead)
        upsert = insert.on_conflict_do_update(
            index_elements=[anchor.c.name], set_={"size": size, "note": note}, where=gives_way
        )
        with self._database.begin(durable=True) as tx:
            tx.execute(upsert)

    def close(self) -> None:
        """Forget every opened key and close the database."""
        with self._lock:
            self._by_id.clear()
            self._by_study.clear()
        self._database.close()
