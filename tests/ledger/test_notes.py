"""Checkpoints as signed notes, against the format's own words and vectors."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

from archive.errors import LedgerBroken
from archive.keys.keyring import Keyring
from archive.ledger import notes
from archive.ledger.notes import ED25519, Verifier
from tests.ledger.conftest import ARCHIVE, fixed_keyring

ORIGIN = f"strongroom/{ARCHIVE}"
ROOT = hashlib.sha256(b"root").digest()
# The verifier key and note that the Go implementation of signed notes documents (golang.org/x/mod/sumdb/note).
GO_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_TEXT = b"If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
GO_SIGNATURE = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="


def known(keyring: Keyring) -> list[Verifier]:
    return notes.verifiers(ORIGIN, keyring.public_keys())


def note_of(keyring: Keyring, at: datetime, size: int = 12345) -> bytes:
    return notes.write(ORIGIN, size, ROOT, keyring.log_signers, at)


def test_key_ids_and_signatures_are_those_of_signed_notes() -> None:
    key = Verifier.parse(GO_KEY)
    assert str(key) == GO_KEY
    assert (key.name, key.kind, key.key_id.hex()) == ("PeterNeumann", ED25519, "c74f20a3")
    signature = base64.b64decode(GO_SIGNATURE)
    assert signature[:4] == key.key_id
    Ed25519PublicKey.from_public_bytes(key.public).verify(signature[4:], GO_TEXT)


def test_written_as_the_formats_say(keyring: Keyring, now: datetime) -> None:
    """Taken apart by hand: signed-note, tlog-checkpoint and tlog-cosignature, no shared code."""
    note = note_of(keyring, now).decode()
    text, signatures = note.split("\n\n")
    assert text == f"{ORIGIN}\n12345\n{base64.b64encode(ROOT).decode()}"
    first, second, end = signatures.split("\n")
    assert end == ""
    for line, kind, signer in ((first, 1, keyring.log_signers[0]), (second, 6, keyring.log_signers[1])):
        dash, name, encoded = line.split(" ")
        assert (dash, name) == ("\u2014", ORIGIN)
        data = base64.b64decode(encoded)
        assert data[:4] == hashlib.sha256(ORIGIN.encode() + b"\x0a" + bytes([kind]) + signer.public).digest()[:4]
        if kind == 1:
            Ed25519PublicKey.from_public_bytes(signer.public).verify(data[4:], (text + "\n").encode())
            continue
        assert len(data) == 4 + 8 + 2420
        seconds = int(now.timestamp())
        assert data[4:12] == seconds.to_bytes(8, "big")
        name_field = bytes([len(ORIGIN)]) + ORIGIN.encode()
        message = b"subtree/v1\n\x00" + name_field + data[4:12] + name_field + (0).to_bytes(8, "big") + (12345).to_bytes(8, "big") + ROOT
        MLDSA44PublicKey.from_public_bytes(signer.public).verify(data[12:], message)


def test_read_what_was_written(keyring: Keyring, now: datetime) -> None:
    for size in (0, 1, 2**40):
        note = notes.read(note_of(keyring, now, size), known(keyring))
        assert (note.origin, note.size, note.root) == (ORIGIN, size, ROOT)
        assert note.signed_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert notes.claims(note_of(keyring, now)) == (12345, ROOT)


def test_every_flipped_byte_is_refused(keyring: Keyring, now: datetime) -> None:
    note = note_of(keyring, now)
    keys = known(keyring)
    positions = [*range(400), *range(400, len(note), 17)]
    for position in positions:
        if position >= len(note):
            continue
        for bit in (1, 0x20):
            changed = note[:position] + bytes([note[position] ^ bit]) + note[position + 1:]
            with pytest.raises(LedgerBroken) as caught:
                notes.read(changed, keys)
            assert caught.value.verdict == "V13"


def test_both_signatures_are_needed(keyring: Keyring, now: datetime) -> None:
    head, _, signatures = note_of(keyring, now).decode().partition("\n\n")
    first, second = signatures.splitlines()
    keys = known(keyring)
    notes.read(f"{head}\n\n{second}\n{first}\n".encode(), keys)
    for kept in (first, second):
        with pytest.raises(LedgerBroken, match="both keys"):
            notes.read(f"{head}\n\n{kept}\n".encode(), keys)
    with pytest.raises(LedgerBroken, match="both keys"):
        notes.read(note_of(keyring, now), known(fixed_keyring(now, "another")))


def test_a_witness_may_sign_too_but_not_instead(keyring: Keyring, now: datetime) -> None:
    note = note_of(keyring, now)
    witness = f"\u2014 witness.example/w1 {base64.b64encode(bytes(76)).decode()}\n"
    assert notes.read(note + witness.encode(), known(keyring)).size == 12345
    head, _, _ = note.decode().partition("\n\n")
    with pytest.raises(LedgerBroken):
        notes.read(f"{head}\n\n{witness}".encode(), known(keyring))


def test_another_logs_checkpoint_by_our_keys_is_not_ours(keyring: Keyring, now: datetime) -> None:
    with pytest.raises(LedgerBroken):
        notes.read(notes.write("strongroom/other", 1, ROOT, keyring.log_signers, now), known(keyring))


def test_replaced_log_keys_still_verify_old_checkpoints(keyring: Keyring, now: datetime) -> None:
    newer = fixed_keyring(now, "newer")
    keys = [*known(keyring), *known(newer)]
    notes.read(note_of(keyring, now), keys)
    notes.read(note_of(newer, now), keys)
    with pytest.raises(LedgerBroken):
        notes.read(note_of(newer, now), known(keyring))


@pytest.mark.parametrize("harm", [
    lambda text: "", lambda text: text[:-1], lambda text: text + "\n", lambda text: text.replace("12345", "012345"),
    lambda text: text.replace("12345", "+12345"), lambda text: text.replace("12345", "１２３４５"),
    lambda text: text.replace("\n\n", "\nextension\n\n"), lambda text: text.replace("\n\n", "\n"), lambda text: text.replace("\n", "\r\n"),
    lambda text: text.replace("\u2014", "-"), lambda text: text.replace(ORIGIN, "", 1), lambda text: text + "\u2014 x+y AAAAAAA=\n",
    lambda text: text + "\u2014 x AAAA\n", lambda text: text + "\u2014 x ****\n", lambda text: "\x00" + text,
    lambda text: text + "x" * (2 << 20),
])
def test_not_a_checkpoint(keyring: Keyring, now: datetime, harm: object) -> None:
    assert callable(harm)
    with pytest.raises(LedgerBroken) as caught:
        notes.read(harm(note_of(keyring, now).decode()).encode(), known(keyring))
    assert caught.value.verdict == "V13"
    with pytest.raises(LedgerBroken):
        notes.read(b"\xff" + note_of(keyring, now), known(keyring))


@pytest.mark.parametrize("text", ["", "a+b", "a+00000000+AQ==", GO_KEY.replace("c74f20a3", "c74f20a4"), GO_KEY + "=", "+" + GO_KEY[12:]])
def test_not_a_verifier_key(text: str) -> None:
    with pytest.raises(LedgerBroken):
        Verifier.parse(text)
