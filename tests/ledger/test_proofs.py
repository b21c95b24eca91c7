"""Proofs: made from the log, checked by anyone with public keys, and by code that shares nothing with ours."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.access.subject import Subject
from archive.db.engine import Database
from archive.db.tables import ledger_leaf, statement
from archive.errors import ArchiveError, InvalidRequest, LedgerBroken, NotFound
from archive.keys.keyring import Keyring
from archive.keys.sealing import canonical
from archive.ledger import checkpoints, notes, proofs, tree
from archive.ledger.audit import Event, Kind
from archive.ledger.log import Ledger
from archive.ledger.notes import Verifier
from tests.ledger.conftest import ARCHIVE, fill, fixed_keyring

# Everything a stranger needs: RFC 6962, RFC 8032, FIPS 204 and the C2SP formats.
STRANGER = """
import base64, hashlib, json, sys
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

proof, keys, instance = open(sys.argv[1]).read(), open(sys.argv[2]).read().split(), open(sys.argv[3], "rb").read()
b64 = base64.standard_b64decode
head, _, note = proof.partition("\\n\\n")
lines = head.split("\\n")
assert lines[0] == "c2sp.org/tlog-proof@v1"
extra, index = json.loads(b64(lines[1].split()[1])), int(lines[2].split()[1])
text, _, signatures = note.rpartition("\\n\\n")
origin, size, root = text.split("\\n")
size, root = int(size), b64(root)
good = 0
for line in signatures.splitlines():
    _, name, signature = line.split(" ")
    signature = b64(signature)
    for key in keys:
        key_name, key_id, material = key.split("+", 2)
        kind, public = b64(material)[0], b64(material)[1:]
        if key_name == name == origin and bytes.fromhex(key_id) == signature[:4]:
            if kind == 1:
                Ed25519PublicKey.from_public_bytes(public).verify(signature[4:], text.encode() + b"\\n")
            else:
                named = bytes([len(origin)]) + origin.encode()
                MLDSA44PublicKey.from_public_bytes(public).verify(
                    signature[12:], b"subtree/v1\\n\\0" + named + signature[4:12] + named + bytes(8) + size.to_bytes(8, "big") + root)
            good += 1
assert good == 2
sha = lambda data: hashlib.sha256(data).digest()
leaf = b64(extra["leaf"])
path = [b64(line) for line in lines[3:]]
def up(start, end, path):
    if end - start == 1:
        assert not path
        return sha(b"\\0" + leaf)
    k = 1
    while k * 2 < end - start:
        k *= 2
    if index < start + k:
        return sha(b"\\1" + up(start, start + k, path[:-1]) + path[-1])
    return sha(b"\\1" + path[-1] + up(start + k, end, path[:-1]))
assert up(0, size, path) == root
said = json.loads(leaf)
envelope = b64(extra["statement"])
assert said["stmt"] == hashlib.sha256(envelope).hexdigest()
dsse = json.loads(envelope)
payload = b64(dsse["payload"])
public = next(b64(key.split("+", 2)[2])[1:] for key in keys if key.startswith(origin + "/instance+"))
pae = f"DSSEv1 {len(dsse['payloadType'])} {dsse['payloadType']} {len(payload)} ".encode() + payload
Ed25519PublicKey.from_public_bytes(public).verify(b64(dsse["signatures"][0]["sig"]), pae)
assert json.loads(payload)["sha256"] == hashlib.sha256(instance).hexdigest()
print("proved", index)
"""


@pytest.fixture
def proved(embedded: Database, ledger: Ledger, subject: Subject, now: datetime) -> Database:
    with embedded.begin() as tx:
        fill(tx, ledger, subject, 21, at=now)
        assert checkpoints.make(tx, ledger.keyring, now + timedelta(minutes=1)) is not None
        ledger.record(tx, Event(Kind.STARTED), at=now + timedelta(minutes=2))
    return embedded


def prove(database: Database, keyring: Keyring, n: int) -> str:
    with database.read() as tx:
        return proofs.prove(tx, keyring, n)


def test_every_event_under_the_checkpoint(proved: Database, keyring: Keyring) -> None:
    trusted = proofs.verifier_keys(keyring)
    for n in range(21):
        checked = proofs.check(prove(proved, keyring, n), trusted=trusted)
        assert (checked.index, checked.leaf["n"], checked.size, checked.origin) == (n, n, 21, f"strongroom/{ARCHIVE}")
        assert checked.statement is not None
        assert checked.statement["sop"] == f"1.2.826.77.{n}"
        assert checked.trusted
    for n in (21, 22, -1):
        with pytest.raises(NotFound):
            prove(proved, keyring, n)


def test_on_both_engines(database: Database, ledger: Ledger, subject: Subject, now: datetime) -> None:
    with database.begin() as tx:
        fill(tx, ledger, subject, 5, at=now)
        checkpoints.make(tx, ledger.keyring, now)
        assert proofs.check(proofs.prove(tx, ledger.keyring, 3)).index == 3


def test_a_stranger_checks_it(proved: Database, keyring: Keyring, tmp_path: Path) -> None:
    """Another process, no archive package, no database: only the proof, the public keys and the instance's bytes."""
    (tmp_path / "proof").write_text(prove(proved, keyring, 13))
    (tmp_path / "keys").write_text("\n".join(str(key) for key in proofs.verifier_keys(keyring)))
    (tmp_path / "instance").write_bytes(b"13")
    done = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, "proof", "keys", "instance"], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        check=True,
    )
    assert done.stdout == "proved 13\n"
    (tmp_path / "instance").write_bytes(b"12")
    assert subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, "proof", "keys", "instance"], cwd=tmp_path, capture_output=True, timeout=60, check=False
    ).returncode


def test_without_trusted_keys_it_says_so(proved: Database, keyring: Keyring) -> None:
    checked = proofs.check(prove(proved, keyring, 2))
    assert not checked.trusted
    assert list(checked.fingerprints) == [key.fingerprint for key in proofs.verifier_keys(keyring)]
    assert len(checked.fingerprints) == 3


def test_trusted_keys_of_another_archive(proved: Database, keyring: Keyring, now: datetime) -> None:
    with pytest.raises(LedgerBroken):
        proofs.check(prove(proved, keyring, 2), trusted=proofs.verifier_keys(fixed_keyring(now, "another")))
    without_instance = [key for key in proofs.verifier_keys(keyring) if not key.name.endswith("/instance")]
    with pytest.raises(LedgerBroken) as caught:
        proofs.check(prove(proved, keyring, 2), trusted=without_instance)
    assert caught.value.verdict == "V09"


def test_of_the_statement_or_leaf_asked_for(proved: Database, keyring: Keyring) -> None:
    text = prove(proved, keyring, 2)
    with proved.read() as tx:
        envelopes = {row.leaf: bytes(row.envelope) for row in tx.execute(sa.select(statement))}
        leaves = {row.n: bytes(row.data) for row in tx.execute(sa.select(ledger_leaf))}
    proofs.check(text, statement=envelopes[2], leaf=leaves[2])
    for wrong in ({"statement": envelopes[3]}, {"leaf": leaves[3]}):
        with pytest.raises(LedgerBroken) as caught:
            proofs.check(text, **wrong)
        assert caught.value.verdict == "V11"


def test_every_flipped_character_is_refused(proved: Database, keyring: Keyring) -> None:
    text = prove(proved, keyring, 2)
    trusted = proofs.verifier_keys(keyring)
    statement_at = text.index("\nindex")
    positions = [*range(len("c2sp.org/tlog-proof@v1")), *range(statement_at, statement_at + 400), *range(30, len(text), 37)]
    for position in positions:
        if position >= len(text) or _in_keys(text, position):
            continue
        changed = text[:position] + ("A" if text[position] != "A" else "B") + text[position + 1:]
        with pytest.raises(ArchiveError):
            proofs.check(changed, trusted=trusted)


def _in_keys(text: str, position: int) -> bool:
    """The keys a proof carries prove nothing and are not used when the checker has its own."""
    start = text.index("extra ") + 6
    decoded = base64.b64decode(text[start:text.index("\nindex")])
    first, last = decoded.index(b'"keys"'), decoded.index(b'"leaf"')
    return start + first * 4 // 3 - 4 <= position <= start + last * 4 // 3 + 4


def test_moved_to_another_index_or_tree(proved: Database, keyring: Keyring) -> None:
    text, other = prove(proved, keyring, 2), prove(proved, keyring, 3)
    for changed in (
        *[text.replace("\nindex 2\n", f"\nindex {index}\n") for index in ("3", "02", "-2", "")],
        text.replace(text.splitlines()[1], other.splitlines()[1]), text.replace(text.splitlines()[3] + "\n", "", 1),
        text.replace(text.splitlines()[3], text.splitlines()[4], 1),
    ):
        assert changed != text
        with pytest.raises(ArchiveError):
            proofs.check(changed)


def test_keys_inside_the_proof_that_are_not_what_they_say(proved: Database, keyring: Keyring, now: datetime) -> None:
    text = prove(proved, keyring, 2)
    extra = json.loads(base64.b64decode(text.splitlines()[1][6:]))
    extra["keys"] = [str(key) for key in proofs.verifier_keys(fixed_keyring(now, "another"))]
    line = "extra " + base64.b64encode(json.dumps(extra).encode()).decode()
    with pytest.raises(LedgerBroken):
        proofs.check(text.replace(text.splitlines()[1], line))


@pytest.mark.parametrize("text", ["", "c2sp.org/tlog-proof@v1", "\nindex 0\n\n", "x" * (2 << 20), "\nextra e30=\nindex 0\n\nnote",
                                  "\nextra /w==\nindex 0\n\nnote", "\nextra e30=\nindex ٣\n\nnote", "\nextra *\nindex 0\n\nnote"])
def test_not_a_proof(text: str) -> None:
    for proof in (text, proofs.HEADER + text):
        with pytest.raises(InvalidRequest):
            proofs.check(proof)


def test_a_leaf_that_is_nested_without_end(keyring: Keyring, now: datetime) -> None:
    """Whoever makes a log of their own can sign anything."""
    leaf = b'{"n":' + b"[" * 100_000
    extra = {"keys": [str(key) for key in proofs.verifier_keys(keyring)], "leaf": base64.b64encode(leaf).decode()}
    note = notes.write(notes.origin_of(keyring.archive_uuid), 1, tree.leaf_hash(leaf), keyring.log_signers, now).decode()
    head = [proofs.HEADER, f"extra {base64.b64encode(canonical(extra)).decode()}", "index 0"]
    with pytest.raises(LedgerBroken):
        proofs.check("\n".join(head) + "\n\n" + note)


def test_prove_refuses_a_log_that_is_not_what_was_signed(proved: Database, keyring: Keyring) -> None:
    with proved.begin() as tx:
        tx.execute(sa.update(ledger_leaf).where(ledger_leaf.c.n == 2).values(data=b"{}"))
    with pytest.raises(LedgerBroken):
        prove(proved, keyring, 2)


def test_fingerprints_are_of_the_verifier_key(keyring: Keyring) -> None:
    for key in proofs.verifier_keys(keyring):
        assert Verifier.parse(str(key)) == key
        assert key.fingerprint == hashlib.sha256(str(key).encode()).hexdigest()
