"""The slot a passphrase opens: strength, what is kept of it, what is refused; and keyrings of earlier releases stay readable."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from archive.config import Archive, Config
from archive.errors import InvalidRequest, KeysUnavailable
from archive.keys import passphrase
from archive.keys.keyring import Keyring
from archive.keys.slots import Slot

GOOD = "kq7vw mh3xz pp2ra tn8bd"
VECTORS = Path(__file__).parents[1] / "vectors" / "keyring"


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least that a reader takes; what is written by default is asked in the first test."""
    monkeypatch.setattr(passphrase, "MEMORY_KIB", 19456)
    monkeypatch.setattr(passphrase, "ITERATIONS", 2)


def test_what_is_written_by_default(config: Config, keyring: Keyring, now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    made = keyring.slot_add(at=now, passphrase=GOOD)
    text = (config.keys_dir / "keyring.json").read_text()
    slot = next(one for one in json.loads(text)["slots"] if one["id"] == made)
    assert (slot["kdf"], slot["memory_kib"], slot["iterations"], slot["lanes"]) == ("argon2id", 65536, 3, 1)
    assert len(base64.b64decode(slot["salt"])) == 16
    assert GOOD not in text
    assert Keyring.open(config, passphrase=GOOD).index_key == keyring.index_key


def test_it_opens_without_the_key_file(config: Config, keyring: Keyring, now: datetime, tmp_path: Path) -> None:
    first = keyring.slots()[0]["id"]
    keyring.slot_add(at=now, passphrase="Ünïcode correct horse battery")
    keyring.slot_add(at=now, recovery_kit=tmp_path / "kit.txt")
    keyring.slot_remove(first)
    config.key_file.unlink()
    decomposed = "U\u0308ni\u0308code correct horse battery"
    for way in ({"passphrase": decomposed}, {"recovery_kit": tmp_path / "kit.txt"}):
        opened = Keyring.open(config, **way)  # type: ignore[arg-type]
        assert opened.index_key == keyring.index_key
        opened.slot_add(at=now, passphrase=GOOD)
    for wrong in ("", GOOD + " ", "unicode correct horse battery"):
        with pytest.raises(KeysUnavailable, match="wrong passphrase"):
            Keyring.open(config, passphrase=wrong)
    with pytest.raises(KeysUnavailable, match="missing"):
        Keyring.open(config)


def test_the_last_slot_stays(config: Config, keyring: Keyring, now: datetime) -> None:
    made = keyring.slot_add(at=now, passphrase=GOOD)
    keyring.slot_remove(keyring.slots()[0]["id"])
    with pytest.raises(InvalidRequest, match="last slot"):
        keyring.slot_remove(made)
    assert Keyring.open(config, passphrase=GOOD).slots()[0]["kind"] == "passphrase"


@pytest.mark.parametrize("weak", ["", "short words", "a" * 40, "abababababababababab", "fourteen chars"])
def test_what_is_soon_guessed_is_refused(keyring: Keyring, now: datetime, weak: str) -> None:
    with pytest.raises(InvalidRequest, match="15 characters"):
        keyring.slot_add(at=now, passphrase=weak)
    assert len(keyring.slots()) == 1


def test_no_passphrase_slot(config: Config, keyring: Keyring) -> None:
    with pytest.raises(KeysUnavailable, match="no passphrase opens"):
        Keyring.open(config, passphrase=GOOD)


@pytest.mark.parametrize("change", [
    {"memory_kib": 8}, {"iterations": 1}, {"lanes": 0}, {"lanes": 99}, {"memory_kib": 1 << 30}, {"iterations": 1 << 20}, {"kdf": "pbkdf2"},
    {"salt": ""}, {"salt": "!"}, {"salt": base64.b64encode(bytes(8)).decode()},
])
def test_a_slot_that_asks_for_too_little_or_too_much(now: datetime, change: dict[str, Any]) -> None:
    slot = passphrase.wrap(bytes(32), bytes(16), GOOD, label="", at=now)
    with pytest.raises(KeysUnavailable, match="damaged"):
        passphrase.unwrap([msgspec.structs.replace(slot, **change)], bytes(16), GOOD)


def test_slots_do_not_stand_for_each_other(now: datetime) -> None:
    one, other = (passphrase.wrap(bytes([n]) * 32, bytes(16), GOOD, label=str(n), at=now) for n in (1, 2))
    assert passphrase.unwrap([one], bytes(16), GOOD) == bytes([1]) * 32
    swapped: list[Slot] = [
        msgspec.structs.replace(one, blob=other.blob), msgspec.structs.replace(one, label="2"), msgspec.structs.replace(one, id=other.id),
        msgspec.structs.replace(one, salt=other.salt),
    ]
    for slot in swapped:
        with pytest.raises(KeysUnavailable, match="wrong passphrase"):
            passphrase.unwrap([slot], bytes(16), GOOD)
    with pytest.raises(KeysUnavailable, match="wrong passphrase"):
        passphrase.unwrap([one], bytes([1]) * 16, GOOD)  # another archive's
    assert passphrase.unwrap([one, other], bytes(16), GOOD) == bytes([1]) * 32


# --- frozen --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(VECTORS.glob("*.json")), ids=lambda path: path.stem)
def test_keyrings_of_earlier_releases(path: Path, tmp_path: Path) -> None:
    case = json.loads(path.read_text())
    config = Config(archive=Archive(storage=str(tmp_path / "storage")))
    config.keys_dir.mkdir(parents=True, mode=0o700)
    files = {"keyring.json": case["keyring"], "root.key": case["key_file"], "kit.txt": case["kit"]}
    for name, text in files.items():
        (config.keys_dir / name).write_text(text)
        (config.keys_dir / name).chmod(0o600)
    ways: list[dict[str, Any]] = [{}, {"recovery_kit": config.keys_dir / "kit.txt"}]
    if "passphrase" in case:
        ways.append({"passphrase": case["passphrase"]})
    for way in ways:
        ring, expect = Keyring.open(config, **way), case["expect"]
        assert (ring.archive_uuid, ring.generation) == (expect["archive"], expect["generation"])
        for name, key in (("index", ring.index_key), ("keystore", ring.keystore_key), ("audit", ring.current_audit_key.key)):
            assert hashlib.sha256(key).hexdigest() == expect[f"{name}_sha256"]
        assert [[kek.id.hex(), kek.active] for kek in ring.keks()] == expect["keks"]
        assert ring.pseudonym("ledger/study", "1.2.3").hex() == expect["pseudonym"]
        assert ring.pseudonym("api-token", "aaaaaaaa_b").hex() == expect["api_token"]
        assert [one.hex() for one in ring.pseudonyms("api-token", "aaaaaaaa_b")] == expect.get("api_tokens", [expect["api_token"]])
        assert ring.instance_signer.sign(b"data").hex() == expect["signature"]
        assert [[one.kid, one.purpose, one.not_after.isoformat() if one.not_after else ""] for one in ring.public_keys()] == \
            expect["public_keys"]
        before = (config.keys_dir / "keyring.json").read_text()
        assert sorted(ring.waiting()) == expect.get("waiting", [])
        assert before == case["keyring"]
