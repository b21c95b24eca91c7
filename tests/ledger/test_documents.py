"""Announcements and receipts, by the vectors of the release that first wrote them, and what a checker comes to trust by them."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from archive.errors import LedgerBroken
from archive.keys.sealing import canonical
from archive.ledger import documents
from archive.ledger.notes import Verifier
from archive.ledger.trust import Chain
from tests.vectors.make_ledger import ORIGIN

FOLDER = Path(__file__).resolve().parents[1] / "vectors" / "documents"
CASES = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def chain(name: str) -> Chain:
    return Chain(ORIGIN, [Verifier.parse(key) for key in CASES[name]["keys"]])


@pytest.mark.parametrize("name", CASES)
def test_what_was_signed_verifies_for_ever(name: str) -> None:
    case = CASES[name]
    if case["expect"] == "ok":
        said = chain(name).document(case["document"], case["leaf"], 8)
        assert said["v"] == 1
        return
    with pytest.raises(LedgerBroken) as refused:
        chain(name).document(case["document"], case["leaf"], 8)
    assert refused.value.verdict == case["expect"]


def test_every_byte_counts() -> None:
    for name in ("announcement_of_a_signing_key", "receipt_sound"):
        case = CASES[name]
        document = case["document"]
        for at in range(0, len(document), 7):
            changed = document[:at] + chr(ord(document[at]) ^ 1) + document[at + 1 :]
            with pytest.raises(LedgerBroken):
                chain(name).document(changed, case["leaf"], 8)


def test_whom_an_announcement_makes_trusted() -> None:
    made = chain("announcement_of_a_signing_key")
    made.follow(CASES["announcement_of_a_signing_key"]["document"])
    (added,) = made.added
    assert added.name == f"{ORIGIN}/instance"
    made.require(7, [added.kid], "V09", "it")
    with pytest.raises(LedgerBroken, match="not announced yet"):
        made.require(6, [added.kid], "V09", "it")
    made.follow(CASES["announcement_of_log_keys"]["document"])
    assert [(key.name, key.kind) for key in made.added[1:]] == [(ORIGIN, 1), (ORIGIN, 6)]


def test_one_by_keys_that_nobody_trusts_says_nothing() -> None:
    stranger = Chain(ORIGIN, [])
    stranger.follow(CASES["announcement_of_log_keys"]["document"])
    assert stranger.added == []


def test_one_that_is_nested_without_end_is_none() -> None:
    payload = base64.b64encode(b'{"v":' + b"[" * 100_000).decode()
    envelope = canonical({"payload": payload, "payloadType": "application/vnd.strongroom.announcement.v1+json", "signatures": []}).decode()
    with pytest.raises(LedgerBroken):
        documents.read(envelope)


def test_a_document_of_another_event() -> None:
    case = CASES["receipt_sound"]
    with pytest.raises(LedgerBroken) as refused:
        chain("receipt_sound").document(case["document"], {**case["leaf"], "doc": "00" * 32}, 8)
    assert refused.value.verdict == "V11"
