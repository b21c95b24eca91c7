"""The keyring: what is written, who may open it, and that nothing in it can be changed, swapped or dropped unseen."""

from __future__ import annotations

import base64
import json
import os
import pickle
import stat
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from archive.config import Archive, Config
from archive.errors import InvalidRequest, KeysUnavailable, NotFound
from archive.keys import private_files
from archive.keys.keyring import Keyring

CLINICAL = b"clinical-16bytes"
RESEARCH = b"research-16bytes"


def test_what_create_leaves(config: Config, now: datetime) -> None:
    made = Keyring.create(config, at=now)
    assert sorted(path.name for path in config.keys_dir.iterdir()) == ["keyring.json", "keyring.lock", "root.key"]
    assert stat.S_IMODE(config.keys_dir.stat().st_mode) == 0o700
    for path in config.keys_dir.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = (config.keys_dir / "keyring.json").read_bytes()
    for secret in (made.index_key, made.keystore_key, made.current_audit_key.key, made.pepper("x"), made._root):
        assert len(secret) == 32
        assert secret not in text
        assert secret.hex().encode() not in text
        assert base64.b64encode(secret) not in text
    assert len({made.index_key, made.keystore_key, made.current_audit_key.key, made.pepper("x"), made._root}) == 5


def test_opens_to_the_same_keys(config: Config, keyring: Keyring, now: datetime) -> None:
    kek = keyring.add_kek(CLINICAL, at=now)
    opened = Keyring.open(config)
    assert opened.archive_uuid == keyring.archive_uuid
    assert opened.index_key == keyring.index_key
    assert opened.kek(CLINICAL) == kek
    assert opened.pseudonym("study", "1.2.3") == keyring.pseudonym("study", "1.2.3")
    assert opened.public_keys() == keyring.public_keys()
    signature = opened.instance_signer.sign(b"data")
    assert signature == keyring.instance_signer.sign(b"data")


def test_create_never_replaces(config: Config, keyring: Keyring, now: datetime) -> None:
    before = (config.keys_dir / "keyring.json").read_bytes()
    with pytest.raises(KeysUnavailable, match="already"):
        Keyring.create(config, at=now)
    assert (config.keys_dir / "keyring.json").read_bytes() == before


def test_create_takes_a_key_file_that_is_there(config: Config, now: datetime) -> None:
    made = Keyring.create(config, at=now)
    key = config.key_file.read_bytes()
    (config.keys_dir / "keyring.json").unlink()  # as after a crash between the two
    again = Keyring.create(config, at=now)
    assert config.key_file.read_bytes() == key
    assert Keyring.open(config).archive_uuid == again.archive_uuid != made.archive_uuid


def test_pseudonyms_differ_by_label_value_and_archive(keyring: Keyring, tmp_path: Path, now: datetime) -> None:
    other = Keyring.create(Config(archive=Archive(storage=str(tmp_path / "other"))), at=now)
    made = {ring.pseudonym(label, value) for ring in (keyring, other) for label in ("a", "b") for value in ("1", b"2", "")}
    assert len(made) == 12
    assert {len(value) for value in made} == {32}
    assert keyring.pseudonym("a", "é") == keyring.pseudonym("a", "é".encode())


# --- refused -------------------------------------------------------------------------------------------------------------------------


def _keyring_file(config: Config) -> Path:
    return config.keys_dir / "keyring.json"


def _key_file(config: Config) -> Path:
    return config.key_file


def _directory(config: Config) -> Path:
    return config.keys_dir


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o677])
@pytest.mark.parametrize("which", [_keyring_file, _key_file, _directory])
def test_open_to_others_is_refused(config: Config, keyring: Keyring, which: Callable[[Config], Path], mode: int) -> None:
    path = which(config)
    path.chmod(mode | (0o700 if path.is_dir() else 0))
    with pytest.raises(KeysUnavailable, match="group or others") as caught:
        Keyring.open(config)
    assert caught.value.remedy == f"close it: chmod {'0700' if path.is_dir() else '0600'} {path}"
    path.chmod(0o700 if path.is_dir() else 0o600)
    Keyring.open(config)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("which", [_keyring_file, _key_file, _directory])
def test_another_owner_is_refused(config: Config, keyring: Keyring, which: Callable[[Config], Path]) -> None:
    os.chown(which(config), 12345, -1)
    with pytest.raises(KeysUnavailable, match="belongs to user id 12345") as caught:
        Keyring.open(config)
    assert "chown" in caught.value.remedy


def test_absent(config: Config, keyring: Keyring) -> None:
    config.key_file.rename(config.keys_dir / "elsewhere")
    with pytest.raises(KeysUnavailable, match="missing"):
        Keyring.open(config)
    (config.keys_dir / "keyring.json").unlink()
    with pytest.raises(KeysUnavailable, match="no keyring") as caught:
        Keyring.open(config)
    assert "archive init" in caught.value.remedy


def test_wrong_key_file(config: Config, keyring: Keyring, tmp_path: Path, now: datetime) -> None:
    other = Config(archive=Archive(storage=str(tmp_path / "other")))
    Keyring.create(other, at=now)
    private_files.write(config.key_file, other.key_file.read_bytes())
    with pytest.raises(KeysUnavailable, match="wrong key file"):
        Keyring.open(config)


@pytest.mark.parametrize("content", [b"", b"strongroom-key-v1:00", b"\xff\xfe" * 40, b"x" * 100, b"strongroom-key-v2:" + b"0" * 64])
def test_not_a_key_file(config: Config, keyring: Keyring, content: bytes) -> None:
    private_files.write(config.key_file, content)
    with pytest.raises(KeysUnavailable, match="not a key file"):
        Keyring.open(config)


@pytest.mark.parametrize("which", [_keyring_file, _key_file])
def test_not_a_file(config: Config, keyring: Keyring, which: Callable[[Config], Path]) -> None:
    which(config).unlink()
    os.mkfifo(which(config), 0o600)
    with pytest.raises(KeysUnavailable, match="not a file"):
        Keyring.open(config)


def test_every_changed_value_is_found(config: Config, keyring: Keyring, now: datetime) -> None:
    """Any field of any slot or entry, changed, dropped, doubled or swapped, is refused."""
    keyring.add_kek(CLINICAL, at=now)
    keyring.add_kek(RESEARCH, at=now)
    path = config.keys_dir / "keyring.json"
    sound = json.loads(path.read_text())
    cases = []
    for part in ("slots", "entries"):
        for i, item in enumerate(sound[part]):
            for name, value in item.items():
                changed = value[:-1] + ("A" if value[-1:] != "A" else "B") if value else "00"
                cases.append((part, i, name, changed))
    for part, i, name, changed in cases:
        file = json.loads(path.read_text())
        file[part][i][name] = changed
        _refused(config, file)
    for part in ("slots", "entries"):
        for i in range(len(sound[part])):
            _refused(config, {**sound, part: sound[part][:i] + sound[part][i + 1:]})
            _refused(config, {**sound, part: [*sound[part], sound[part][i]]})
    _refused(config, {**sound, "entries": sound["entries"][::-1]})
    swapped = json.loads(json.dumps(sound))
    swapped["entries"][-1]["sealed"], swapped["entries"][-2]["sealed"] = sound["entries"][-2]["sealed"], sound["entries"][-1]["sealed"]
    _refused(config, swapped)
    for name in ("format", "version", "archive", "generation", "mac"):
        wrong = sound[name] + 1 if isinstance(sound[name], int) else sound[name][:-1] + ("0" if sound[name][-1] != "0" else "1")
        _refused(config, {**sound, name: wrong})
    assert len(cases) > 60
    private_files.write(path, json.dumps(sound).encode())
    Keyring.open(config)


def _refused(config: Config, file: dict[str, object]) -> None:
    sound = (config.keys_dir / "keyring.json").read_bytes()
    private_files.write(config.keys_dir / "keyring.json", json.dumps(file).encode())
    with pytest.raises(KeysUnavailable):
        Keyring.open(config)
    private_files.write(config.keys_dir / "keyring.json", sound)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"\xff", b'{"format": 1}', b"x" * (17 << 20)])
def test_damaged_file(config: Config, keyring: Keyring, content: bytes) -> None:
    private_files.write(config.keys_dir / "keyring.json", content)
    with pytest.raises(KeysUnavailable):
        Keyring.open(config)


# --- handing over --------------------------------------------------------------------------------------------------------------------


def test_a_worker_gets_keys_but_no_root_and_no_ca_key(config: Config, keyring: Keyring, tmp_path: Path, now: datetime) -> None:
    keyring.add_kek(CLINICAL, at=now)
    keyring.set_ca_key(b"private half of the CA", b"public half", at=now)
    handed = keyring.to_bytes()
    assert keyring._root not in handed
    assert b"private half of the CA" not in handed
    worker = Keyring.from_bytes(handed)
    assert worker.index_key == keyring.index_key
    assert worker.keks() == keyring.keks()
    assert worker.pseudonym("a", "b") == keyring.pseudonym("a", "b")
    assert worker.instance_signer.sign(b"x") == keyring.instance_signer.sign(b"x")
    assert worker.public_keys() == keyring.public_keys()
    assert worker.ca_key is not None
    assert worker.ca_key.public == b"public half"
    for change in (
        lambda: worker.add_kek(RESEARCH, at=now),
        lambda: worker.slot_add(at=now, key_file=tmp_path / "k"),
        lambda: worker.prepare(["log"], at=now),
    ):
        with pytest.raises(KeysUnavailable, match="worker process"):
            change()
    assert not (tmp_path / "k").exists()
    with pytest.raises(KeysUnavailable):
        Keyring.from_bytes(handed[:-1])


def test_nothing_shows_keys(keyring: Keyring, now: datetime) -> None:
    kek = keyring.add_kek(CLINICAL, at=now)
    secrets = [keyring.index_key, keyring.current_audit_key.key, kek.key, *(entry.secret for entry in keyring._entries)]
    for shown in (keyring, keyring.instance_signer, keyring.current_audit_key, kek, keyring.keks(), keyring._entries):
        assert not [secret for secret in secrets if repr(secret) in repr(shown) or secret.hex() in str(shown)]
    assert all(entry.keys() == {"id", "purpose", "state", "datastore", "created_at", "not_after"} for entry in keyring.describe())
    with pytest.raises(TypeError):
        pickle.dumps(keyring)


# --- changes -------------------------------------------------------------------------------------------------------------------------


def test_kek_rotation(config: Config, keyring: Keyring, now: datetime) -> None:
    first = keyring.add_kek(CLINICAL, at=now)
    keyring.add_kek(RESEARCH, at=now)
    second = keyring.add_kek(CLINICAL, at=now)
    assert keyring.kek(CLINICAL) == second != first
    assert [kek.active for kek in keyring.keks() if kek.datastore == CLINICAL] == [False, True]
    opened = Keyring.open(config)
    assert [kek.id for kek in opened.keks()] == [kek.id for kek in keyring.keks()]
    with pytest.raises(InvalidRequest):
        opened.destroy_kek(second.id, at=now)
    opened.destroy_kek(first.id, at=now)
    again = Keyring.open(config)
    assert first.id not in {kek.id for kek in again.keks()}
    assert again.kek(CLINICAL) == second
    with pytest.raises(NotFound):
        again.destroy_kek(b"\0" * 16, at=now)
    with pytest.raises(KeysUnavailable):
        again.kek(b"unknown-16-bytes")


def test_a_stale_keyring_writes_nothing(config: Config, keyring: Keyring, now: datetime) -> None:
    stale = Keyring.open(config)
    kek = keyring.add_kek(CLINICAL, at=now)
    with pytest.raises(KeysUnavailable, match="another process"):
        stale.add_kek(RESEARCH, at=now)
    assert stale.keks() == []
    assert Keyring.open(config).kek(CLINICAL) == kek


def test_a_failed_write_changes_nothing(config: Config, keyring: Keyring, now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = (config.keys_dir / "keyring.json").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(KeysUnavailable, match="No space left"):
            keyring.add_kek(CLINICAL, at=now)
    assert keyring.keks() == []
    assert (config.keys_dir / "keyring.json").read_bytes() == before
    assert not [path for path in config.keys_dir.iterdir() if path.name.startswith(".")]
    keyring.add_kek(CLINICAL, at=now)
    assert len(Keyring.open(config).keks()) == 1


def test_audit_key_rotation(config: Config, keyring: Keyring, now: datetime) -> None:
    first = keyring.current_audit_key
    second = keyring.rotate_audit_key(at=now)
    assert keyring.current_audit_key == second != first
    assert keyring.audit_key(first.id) == first
    with pytest.raises(InvalidRequest):
        keyring.destroy_audit_key(second.id, at=now)
    keyring.destroy_audit_key(first.id, at=now)
    assert keyring.audit_key(first.id) is None
    assert Keyring.open(config).audit_key(first.id) is None
    with pytest.raises(NotFound):
        keyring.destroy_audit_key(first.id, at=now)


@pytest.mark.parametrize("purpose", ["instance", "log", "log-pq"])
def test_a_replaced_signer_keeps_its_public_key(config: Config, keyring: Keyring, now: datetime, purpose: str) -> None:
    def key_id(ring: Keyring) -> str:
        signers = {"instance": ring.instance_signer, "log": ring.log_signers[0], "log-pq": ring.log_signers[1]}
        return signers[purpose].key_id

    old = key_id(keyring)
    later = now + timedelta(days=1)
    keyring.prepare([purpose], at=later)  # type: ignore[list-item]
    coming = keyring.coming(purpose)  # type: ignore[arg-type]
    assert coming is not None
    assert key_id(keyring) == old
    assert coming.id.hex() in {key.kid for key in Keyring.from_bytes(keyring.to_bytes()).public_keys()}  # known before it counts
    assert coming.secret not in keyring.to_bytes()
    signing = next(entry.secret for entry in keyring._entries if entry.id.hex() == old)
    keyring.activate([purpose])  # type: ignore[list-item]
    assert keyring.waiting() == {purpose}
    assert signing not in keyring.to_bytes()
    keyring.retire([purpose], at=later)  # type: ignore[list-item]
    opened = Keyring.open(config)
    new = coming.id.hex()
    assert key_id(keyring) == key_id(opened) == new != old
    assert not any(entry.secret == signing for entry in opened._entries)
    known = {key.kid: key for key in opened.public_keys() if key.purpose == purpose}
    assert known[old].not_after == later
    assert known[new].not_after is None
    assert known[new].not_before == later
    assert keyring.waiting() == frozenset()


def test_what_a_writer_that_was_killed_left_goes_with_the_next_change(config: Config, keyring: Keyring, now: datetime) -> None:
    left = config.keys_dir / ".keyring.json.0123456789ab"
    left.write_bytes((config.keys_dir / "keyring.json").read_bytes())  # with every key it had, also those destroyed since
    keyring.add_kek(CLINICAL, at=now)
    assert not left.exists()
    assert config.key_file.exists()
