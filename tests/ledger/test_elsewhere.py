"""A log checked from its tiles alone: sound ones hold; a changed, missing or swapped bundle, or another history, does not."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from archive.errors import LedgerBroken
from archive.keys.keyring import Keyring
from archive.ledger import elsewhere, notes, printed, tree
from archive.ledger.cosignatures import Cosigner
from archive.ledger.files import WIDTH, tile_path

AT = datetime(2031, 3, 3, 12, 0, tzinfo=UTC)
ORIGIN = "strongroom/6f1c2b1e-8a55-4d6b-9a37-3c0c5a1f2e4d"


def log(keyring: Keyring, size: int, *, twist: int | None = None, lines: str = "") -> dict[str, bytes]:
    """The files of a log."""
    leaves = [b"leaf %d" % (n if n != twist else -1) for n in range(size)]
    root = tree.Tree(map(tree.leaf_hash, leaves)).root()
    found = {"checkpoint": notes.write(ORIGIN, size, root, keyring.log_signers, AT) + lines.encode()}
    for start in range(0, size, WIDTH):
        part = leaves[start : start + WIDTH]
        found[tile_path("tile/entries", start // WIDTH, len(part))] = b"".join(len(one).to_bytes(2, "big") + one for one in part)
    return found


def test_a_sound_log(keyring: Keyring) -> None:
    keys = notes.verifiers(ORIGIN, keyring.public_keys())
    for size in (0, 1, 255, 256, 257, 700):
        files = log(keyring, size)
        seen = elsewhere.check(files.__getitem__, keys)
        assert (seen.origin, seen.size, seen.signed_at, seen.witnesses) == (ORIGIN, size, AT, ())


@pytest.mark.parametrize("change", [
    lambda files: files.update({"tile/entries/000": files["tile/entries/001"]}),
    lambda files: files.update({"tile/entries/000": files["tile/entries/000"][:-1]}),
    lambda files: files.update({"tile/entries/000": b""}),
    lambda files: files.update({"tile/entries/002.p/188": files["tile/entries/002.p/188"].replace(b"leaf 600", b"leaf 601")}),
    lambda files: files.update({"checkpoint": files["checkpoint"].replace(b"\n700\n", b"\n699\n")}),
])
def test_what_does_not_hold(keyring: Keyring, change: Callable[[dict[str, bytes]], Any]) -> None:
    files = log(keyring, 700)
    change(files)
    with pytest.raises(LedgerBroken):
        elsewhere.check(files.__getitem__, notes.verifiers(ORIGIN, keyring.public_keys()))


def test_an_earlier_checkpoint_must_be_in_it(keyring: Keyring) -> None:
    keys = notes.verifiers(ORIGIN, keyring.public_keys())
    for size in (0, 1, 300, 700):
        earlier = printed.find(printed.short(log(keyring, size)["checkpoint"]), keys)
        assert elsewhere.check(log(keyring, 700).__getitem__, keys, earlier=earlier).size == 700
    for size, twist in ((300, 299), (700, 4), (701, None)):
        earlier = printed.find(printed.short(log(keyring, size, twist=twist)["checkpoint"]), keys)
        with pytest.raises(LedgerBroken) as caught:
            elsewhere.check(log(keyring, 700).__getitem__, keys, earlier=earlier)
        assert caught.value.verdict == "V14"


def test_witnesses_that_must_have_signed(keyring: Keyring) -> None:
    keys = notes.verifiers(ORIGIN, keyring.public_keys())
    ours, other = Cosigner("a.example", b"a" * 32), Cosigner("b.example", b"b" * 32)
    text = notes.parse(log(keyring, 9)["checkpoint"]).text
    files = log(keyring, 9, lines=ours.line(text, AT))
    assert elsewhere.check(files.__getitem__, keys, witnesses=[ours.verifier, other.verifier]).witnesses == (("a.example", AT),)
    with pytest.raises(LedgerBroken):
        elsewhere.check(files.__getitem__, keys, witnesses=[other.verifier])
