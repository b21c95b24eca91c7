"""What an earlier release signed verifies for ever, and what it refused stays refused (tests/vectors/make_ledger.py)."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from archive.errors import InvalidRequest, LedgerBroken
from archive.keys.entries import PublicKey
from archive.keys.sealing import parse_instant
from archive.ledger import notes, proofs, statements
from archive.ledger.notes import Verifier

FOLDER = Path(__file__).resolve().parents[1] / "vectors" / "ledger"
VECTORS = sorted(FOLDER.glob("*.json"))


def read(kind: str, data: bytes, keys: list[Verifier], not_before: str) -> Any:
    if kind == "checkpoint":
        return notes.read(data, keys)
    if kind == "proof":
        return proofs.check(data.decode(), trusted=keys)
    instance = [key for key in keys if key.name.endswith("/instance")]
    return statements.verify(data, [
        PublicKey(hashlib.sha256(key.public).digest()[:16].hex(), "instance", "Ed25519", key.public, parse_instant(not_before))
        for key in instance
    ])


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_vector(path: Path) -> None:
    vector = json.loads(path.read_text())
    kind = path.stem.partition("_")[0]
    data = base64.b64decode(vector["data"])
    keys = [Verifier.parse(key) for key in vector["keys"]]
    if vector["expect"] == "ok":
        assert read(kind, data, keys, vector["not_before"])
    elif vector["expect"] == "not-a-proof":
        with pytest.raises(InvalidRequest):
            read(kind, data, keys, vector["not_before"])
    else:
        with pytest.raises(LedgerBroken) as caught:
            read(kind, data, keys, vector["not_before"])
        assert caught.value.verdict == vector["expect"]


def test_all_kinds_are_there() -> None:
    kinds = [path.stem.partition("_")[0] for path in VECTORS]
    assert {kind: kinds.count(kind) >= 17 for kind in ("statement", "checkpoint", "proof")} == {
        "statement": True, "checkpoint": True, "proof": True}
