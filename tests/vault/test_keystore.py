"""Data keys in their database, on both engines."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from archive.db import wal
from archive.db.engine import Database
from archive.db.migrate import create_all, upgrade
from archive.db.tables import data_key
from archive.errors import DatabaseUnavailable, KeyShredded, SealBroken
from archive.vault.keystore import Anchor, Keystore, StudyKey, check_value, unwrap, wrap
from tests.vault.fakes import DATASTORE, FakeKeyring

UID = "1.2.840.113619.2.5.1762583153.215519.978957063.78"


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        opened = Database.embedded(tmp_path / "keystore.db", os.urandom(32), tmp_path / "keystore.lock", guarded=False)
        create_all(opened, keystore=True)
    else:
        opened = Database(request.getfixturevalue("postgresql_url"), guarded=False)
        upgrade(opened, keystore=True)
    yield opened
    opened.close()


@pytest.fixture
def keyring() -> FakeKeyring:
    return FakeKeyring()


@pytest.fixture
def keystore(database: Database, keyring: FakeKeyring) -> Keystore:
    return Keystore(database, keyring)


def rows(database: Database) -> list[sa.Row[tuple[object, ...]]]:
    with database.read() as tx:
        return list(tx.execute(sa.select(data_key).order_by(data_key.c.created_at)))


def set_row(database: Database, key_id: bytes, **values: object) -> None:
    with database.begin() as tx:
        tx.execute(sa.update(data_key).where(data_key.c.key_id == key_id).values(**values))


def verdict(keystore: Keystore, key_id: bytes) -> str:
    with pytest.raises(SealBroken) as caught:
        keystore.open(key_id)
    return caught.value.verdict


def test_one_key_per_study_and_datastore(database: Database, keyring: FakeKeyring, keystore: Keystore, now: datetime) -> None:
    key = keystore.for_study(DATASTORE, UID, at=now)
    assert len(key.key) == 32
    assert keystore.for_study(DATASTORE, UID, at=now) == key
    assert keystore.for_study(DATASTORE, UID + ".1", at=now) != key
    assert keystore.for_study(bytes(16), UID, at=now) != key
    other = Keystore(database, keyring)  # another process
    assert other.for_study(DATASTORE, UID, at=now) == key
    assert other.open(key.key_id) == key
    assert len(rows(database)) == 3


def test_the_row_is_as_documented(database: Database, keyring: FakeKeyring, keystore: Keystore, now: datetime) -> None:
    key = keystore.for_study(DATASTORE, UID, at=now)
    (row,) = rows(database)
    assert row.study_ref == keyring.pseudonym("keystore/study", DATASTORE + UID.encode())
    assert row.created_at == now
    assert row.state == "active"
    kek = keyring.kek(DATASTORE)
    assert len(row.wrapped) == 77
    assert row.wrapped[:17] == b"\x01" + kek.id
    aad = b"strongroom/v1/dk\0" + DATASTORE + key.key_id + kek.id
    assert AESGCM(kek.key).decrypt(row.wrapped[17:29], row.wrapped[29:], aad) == key.key
    assert UID.encode() not in b"".join(bytes(one) for one in row if isinstance(one, bytes))


def test_many_threads_agree_on_one_key(database: Database, keyring: FakeKeyring, now: datetime) -> None:
    found: list[StudyKey] = []
    stores = [Keystore(database, keyring) for _ in range(4)]
    gate = threading.Barrier(8)

    def work(number: int) -> None:
        gate.wait()
        found.extend(stores[number % 4].for_study(DATASTORE, uid, at=now) for uid in ("1.2", "1.3"))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert len({key.key_id for key in found}) == len(rows(database)) == 2


def test_no_key_is_used_that_is_not_committed(database: Database, keystore: Keystore, now: datetime) -> None:
    def fail(_tx: sa.Connection) -> None:
        raise OSError(28, "No space left on device")

    database.before_commit = fail
    with pytest.raises(DatabaseUnavailable):
        keystore.for_study(DATASTORE, UID, at=now)
    database.before_commit = lambda _tx: None
    key = keystore.for_study(DATASTORE, UID, at=now)
    assert [row.key_id for row in rows(database)] == [key.key_id]


def test_damage_is_told_from_another_keyring(database: Database, keyring: FakeKeyring, keystore: Keystore, now: datetime) -> None:
    assert verdict(keystore, bytes(16)) == "V05"
    key = keystore.for_study(DATASTORE, UID, at=now)
    (row,) = rows(database)
    for change in (
        {"wrapped": row.wrapped[:-1] + bytes([row.wrapped[-1] ^ 1])}, {"wrapped": row.wrapped[:-1]}, {"wrapped": b"\x02" + row.wrapped[1:]},
        {"kcv": bytes(8)}, {"datastore": bytes(16)},
    ):
        set_row(database, key.key_id, **change)
        keystore.forget(key.key_id)
        assert verdict(keystore, key.key_id) == "V05"
        set_row(database, key.key_id, wrapped=row.wrapped, kcv=row.kcv, datastore=row.datastore)
    assert keystore.open(key.key_id) == key
    stranger = Keystore(database, FakeKeyring())
    with pytest.raises(SealBroken, match="not in the keyring"):
        stranger.open(key.key_id)


def test_a_wrapped_key_opens_in_its_own_row_only(keyring: FakeKeyring) -> None:
    key = StudyKey(os.urandom(16), os.urandom(32))
    kek = keyring.kek(DATASTORE)
    blob = wrap(kek, DATASTORE, key)
    assert unwrap(kek, DATASTORE, key.key_id, blob) == key.key
    assert wrap(kek, DATASTORE, key) != blob
    for datastore, key_id in ((bytes(16), key.key_id), (DATASTORE, bytes(16))):
        with pytest.raises(SealBroken):
            unwrap(kek, datastore, key_id, blob)
    for at in range(len(blob)):
        changed = bytearray(blob)
        changed[at] ^= 1
        with pytest.raises(SealBroken):
            unwrap(kek, DATASTORE, key.key_id, bytes(changed))
    assert len(check_value(key.key)) == 8


def test_shredding(database: Database, keyring: FakeKeyring, keystore: Keystore, now: datetime) -> None:
    key = keystore.for_study(DATASTORE, UID, at=now)
    (before,) = rows(database)
    later = now + timedelta(days=1)
    keystore.shred(key.key_id, at=later, reason="purge")
    keystore.shred(key.key_id, at=later + timedelta(days=1), reason="again")
    for store in (keystore, Keystore(database, keyring)):
        with pytest.raises(KeyShredded) as caught:
            store.open(key.key_id)
        assert caught.value.verdict == "V05"
    (row,) = rows(database)
    assert (row.state, row.shredded_at, row.shred_reason) == ("shredded", later, "purge")
    assert row.wrapped == bytes(77)
    assert keystore.state(key.key_id) == "shredded"
    assert keystore.state(bytes(16)) is None
    fresh = keystore.for_study(DATASTORE, UID, at=later)  # the study is sent again
    assert fresh.key_id != key.key_id
    assert fresh.key != key.key
    assert before.wrapped not in {bytes(one.wrapped) for one in rows(database)}


def test_a_key_that_comes_takes_the_place_of_any_other(database: Database, keyring: FakeKeyring, keystore: Keystore, now: datetime) -> None:
    """Also of one that was made meanwhile: whoever ends a re-keying would be stopped by it for ever, and with it each start."""
    old, coming = keystore.for_study(DATASTORE, UID, at=now), keystore.renew(DATASTORE, UID, at=now)
    keystore.shred(old.key_id, at=now, reason="purge")
    other = keystore.for_study(DATASTORE, UID, at=now)
    assert other not in {old, coming}
    for _ in range(2):
        keystore.shred(old.key_id, at=now, reason="purge", successor=coming.key_id)
        elsewhere = Keystore(database, keyring)
        assert elsewhere.for_study(DATASTORE, UID, at=now) == coming
        assert (keystore.state(other.key_id), elsewhere.open(other.key_id)) == ("retiring", other)
    assert keystore.for_study(DATASTORE, UID + ".1", at=now) != coming
    keystore.shred(coming.key_id, at=now, reason="purge")
    keystore.shred(old.key_id, at=now, reason="purge", successor=coming.key_id)
    assert (keystore.state(coming.key_id), keystore.state(other.key_id)) == ("shredded", "retiring")


def test_the_log_is_cut_when_a_key_is_shredded(tmp_path: Path, keyring: FakeKeyring, now: datetime) -> None:
    database = Database(f"sqlite:///{tmp_path / 'plain.db'}", lock=tmp_path / "lock", guarded=False)  # unencrypted, to look inside
    create_all(database, keystore=True)
    keystore = Keystore(database, keyring)
    key = keystore.for_study(DATASTORE, UID, at=now)
    (row,) = rows(database)

    def on_disk() -> bool:
        return any(bytes(row.wrapped) in path.read_bytes() for path in tmp_path.glob("plain.db*"))

    assert on_disk()
    keystore.shred(key.key_id, at=now, reason="purge")
    assert not on_disk()
    database.close()


def test_rewrapping_goes_on_where_it_stopped(database: Database, keyring: FakeKeyring, keystore: Keystore, now: datetime) -> None:
    keys = [keystore.for_study(DATASTORE, f"1.2.{n}", at=now) for n in range(25)]
    elsewhere = keystore.for_study(bytes(16), "1.2.3", at=now)
    keystore.shred(keys[24].key_id, at=now, reason="purge")
    old = keyring.kek(DATASTORE)
    new = keyring.rotate()

    class StopError(Exception):
        pass

    def stop(done: int) -> None:
        if done == 20:
            raise StopError

    with pytest.raises(StopError):
        keystore.rewrap(DATASTORE, batch=10, progress=stop)
    assert keystore.wrapped_under(old.id) == 4 + 1
    done: list[int] = []
    assert keystore.rewrap(DATASTORE, batch=10, progress=done.append) == 4
    assert done == [4]
    assert keystore.rewrap(DATASTORE) == 0
    assert keystore.wrapped_under(old.id) == 1  # the other datastore's
    keystore.rewrap(bytes(16))
    keyring.held.remove(old)
    again = Keystore(database, keyring)
    for key in [*keys[:24], elsewhere]:
        assert again.open(key.key_id) == key
    assert keystore.wrapped_under(new.id) == 25


@pytest.mark.parametrize("damage", [{"wrapped": bytes(77)}, {"kcv": bytes(8)}, {"kek_id": bytes(16)}, {"datastore": bytes(16)}],
                         ids=lambda damage: next(iter(damage)))
def test_one_damaged_row_keeps_no_other_from_being_wrapped_anew(
    database: Database, keyring: FakeKeyring, keystore: Keystore, now: datetime, damage: dict[str, bytes]
) -> None:
    keys = [keystore.for_study(DATASTORE, f"1.2.{n}", at=now) for n in range(9)]
    old = keyring.kek(DATASTORE)
    broken = sorted(key.key_id for key in keys)[4]
    (before,) = [row for row in rows(database) if row.key_id == broken]
    set_row(database, broken, **damage)
    keyring.rotate()
    again = Keystore(database, keyring)
    assert again.rewrap(DATASTORE, batch=2) == 8
    assert again.behind(DATASTORE, [old.id]) == [broken.hex()]
    assert verdict(again, broken) == "V05"
    assert all(again.open(key.key_id) == key for key in keys if key.key_id != broken)
    assert again.rewrap(DATASTORE, batch=2) == 0
    set_row(database, broken, **{name: getattr(before, name) for name in damage})  # put back
    assert again.rewrap(DATASTORE, batch=2) == 1
    assert again.behind(DATASTORE, [old.id]) == []
    assert again.open(broken).key == next(key.key for key in keys if key.key_id == broken)


def test_few_keys_stay_in_memory(database: Database, keyring: FakeKeyring, now: datetime) -> None:
    keystore = Keystore(database, keyring, keep=4)
    keys = [keystore.for_study(DATASTORE, f"1.2.{n}", at=now) for n in range(10)]
    assert len(keystore._by_id) <= 4
    assert [keystore.open(key.key_id) for key in keys] == keys
    assert [keystore.for_study(DATASTORE, f"1.2.{n}", at=now) for n in range(10)] == keys


def test_anchors_never_go_back(keystore: Keystore) -> None:
    assert keystore.anchor("checkpoint") is None
    keystore.set_anchor("checkpoint", 10, b"ten")
    keystore.set_anchor("checkpoint", 12, b"twelve")
    keystore.set_anchor("checkpoint", 11, b"eleven")
    found = keystore.anchor("checkpoint")
    assert found is not None
    assert (found.size, found.note) == (12, b"twelve")
    keystore.set_anchor("checkpoint", 12, b"twelve again")
    found = keystore.anchor("checkpoint")
    assert found is not None
    assert found.note == b"twelve again"


def test_an_anchor_gives_way_to_a_smaller_one_only_by_its_note(keystore: Keystore) -> None:
    keystore.set_anchor("checkpoint", 12, b"twelve")
    keystore.set_anchor("checkpoint", 11, b"eleven", instead=b"another")
    assert keystore.anchor("checkpoint") == Anchor(12, b"twelve")
    keystore.set_anchor("checkpoint", 11, b"eleven", instead=b"twelve")
    assert keystore.anchor("checkpoint") == Anchor(11, b"eleven")


def test_closing_forgets_the_keys(keystore: Keystore, now: datetime) -> None:
    keystore.for_study(DATASTORE, UID, at=now)
    keystore.close()
    assert not keystore._by_id
    assert not keystore._by_study


def test_a_key_is_destroyed_only_once_it_is_gone_from_the_file(
    tmp_path: Path, keyring: FakeKeyring, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads the keystore keeps its log from being moved: the file still has the key, and nobody is told that it has not."""
    monkeypatch.setattr(wal, "BUSY_MS", 50)
    key, path = os.urandom(32), tmp_path / "keystore.db"
    database = Database.embedded(path, key, tmp_path / "lock", guarded=False)
    create_all(database, keystore=True)
    keystore = Keystore(database, keyring)
    made = keystore.for_study(DATASTORE, UID, at=now)
    assert database.checkpoint()
    other = Database.embedded(path, key, tmp_path / "lock", guarded=False)
    with other.read() as tx:
        tx.execute(sa.select(data_key)).all()
        with pytest.raises(DatabaseUnavailable, match="not yet in its file"):
            keystore.shred(made.key_id, at=now, reason="shred")
        assert keystore.state(made.key_id) == "shredded"
    keystore.shred(made.key_id, at=now, reason="shred")
    assert database.log_bytes() == 0
    other.close()
    database.close()
