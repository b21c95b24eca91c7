"""Proofs that travel: an event is in the log, checkable with public keys alone.

Source: docs/format.md 9; c2sp.org/tlog-proof.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from archive.db.tables import ledger_leaf
from archive.db.tables import statement as statement_table
from archive.errors import InvalidRequest, LedgerBroken, NotFound
from archive.keys.entries import PublicKey
from archive.keys.keyring import Keyring
from archive.keys.sealing import canonical, decode_base64
from archive.ledger import checkpoints, cosignatures, nodes, notes, statements, tree, witnessed
from archive.ledger.notes import ED25519, Verifier
from archive.ledger.trust import Chain, carried

HEADER = "c2sp.org/tlog-proof@v1"
_MAX_BYTES = 1 << 20
_ALWAYS = datetime.min.replace(tzinfo=UTC)


class _Extra(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    leaf: str
    keys: list[str]
    statement: str = ""
    document: str = ""
    announcements: list[str] = []


@dataclass(frozen=True, slots=True)
class Checked:
    """What a proof proves; `trusted` says whether the keys were the checker's own, else `fingerprints` wait to be compared."""

    index: int
    leaf: dict[str, Any]
    origin: str
    size: int
    signed_at: datetime
    statement: dict[str, Any] | None
    trusted: bool
    fingerprints: tuple[str, ...]
    witnesses: tuple[tuple[str, datetime], ...] = ()
    """Name of each witness whose key was given and who cosigned the checkpoint, and when."""
    document: dict[str, Any] | None = None
    announced: tuple[str, ...] = ()
    """Fingerprints of keys that count because keys of the checker's announced them."""


def verifier_keys(keyring: Keyring) -> list[Verifier]:
    """Return every public key of the archive, as a checker needs them: the log's, and the statements' under `<origin>/instance`."""
    origin = notes.origin_of(keyring.archive_uuid)
    keys = keyring.public_keys()
    return [
        *notes.verifiers(origin, keys),
        *(Verifier(f"{origin}/instance", ED25519, key.public) for key in keys if key.purpose == "instance"),
    ]


def prove(tx: sa.Connection, keyring: Keyring, n: int) -> str:
    """Return the proof of event `n` under the latest checkpoint that a witness cosigned, or else the latest of all.

    Raises:
        NotFound: no such event, or none signed yet. LedgerBroken: the log is not what was signed.
    """
    checkpoint = _checkpoint(tx, n)
    leaf = tx.execute(sa.select(ledger_leaf.c.data).where(ledger_leaf.c.n == n)).scalar()
    if leaf is None or checkpoint is None or n >= checkpoint.size:
        message = "there is no such event under a checkpoint"
        raise NotFound(message, remedy="the next checkpoint follows within seconds while the archive runs; see 'archive status'")
    find = nodes.lookup(tx)
    path = tree.inclusion_proof(find, n, checkpoint.size)
    tree.verify_inclusion(tree.leaf_hash(bytes(leaf)), n, checkpoint.size, path, checkpoint.root)
    extra: dict[str, Any] = {"keys": [str(key) for key in verifier_keys(keyring)], "leaf": base64.b64encode(leaf).decode()}
    envelope = tx.execute(sa.select(statement_table.c.envelope).where(statement_table.c.leaf == n)).scalar()
    if envelope is not None and statements.is_envelope(bytes(envelope)):  # of an event record nothing but its hash leaves
        extra["statement"] = base64.b64encode(envelope).decode()
    extra |= carried(tx, keyring, n, document="doc" in _leaf(bytes(leaf), n))
    lines = [HEADER, f"extra {base64.b64encode(canonical(extra)).decode()}", f"index {n}"]
    lines += [base64.b64encode(part).decode() for part in path]
    return "\n".join(lines) + "\n\n" + cosignatures.with_lines(checkpoint.note, witnessed.lines(tx, checkpoint.size)).decode()


def _checkpoint(tx: sa.Connection, n: int) -> checkpoints.Checkpoint | None:
    """Return the newest checkpoint over an event that a witness cosigned, else the newest of all."""
    size = witnessed.newest_over(tx, n)
    return checkpoints.latest(tx) if size is None else checkpoints.of_size(tx, size)


def check(
    text: str, *, trusted: Sequence[Verifier] | None = None, statement: bytes | None = None, leaf: bytes | None = None,
    witnesses: Sequence[Verifier] = (),
) -> Checked:
    """Check a proof with public keys alone; `statement` (a DSSE envelope) or `leaf`, when given, must be what is proved.

    Of `witnesses`, when given, at least one must have cosigned the checkpoint.

    Raises:
        InvalidRequest: the text is not a proof. LedgerBroken: it does not prove anything (V09, V11, V13).
    """
    parsed = _parse(text)
    keys = list(trusted) if trusted is not None else parsed.keys
    chain = Chain(notes.parse(parsed.note).origin, keys)
    for envelope_of_keys in parsed.announcements:
        chain.follow(envelope_of_keys)
    note = notes.read(parsed.note, chain.keys)
    chain.require(note.size, [key.kid for key in notes.signed_by(parsed.note, chain.keys)], "V13", "the checkpoint")
    tree.verify_inclusion(tree.leaf_hash(parsed.leaf), parsed.index, note.size, parsed.path, note.root)
    if leaf is not None and leaf != parsed.leaf:
        message = "the proof is of another event"
        raise LedgerBroken(message, remedy="ask for the proof of this event", verdict="V11")
    said = _leaf(parsed.leaf, parsed.index)
    envelope = statement if statement is not None else parsed.statement
    signed = None
    if envelope is not None:
        if said.get("stmt") != statements.digest(envelope).hex():
            message = "the proof is of another statement"
            raise LedgerBroken(message, remedy="ask for the proof of this instance", verdict="V11")
        signed = statements.verify(envelope, _instance_keys(chain.keys, note.origin))
        chain.require(parsed.index, [signed["kid"]], "V09", "the statement")
    document = chain.document(parsed.document, said, parsed.index) if parsed.document is not None else None
    prints = tuple(key.fingerprint for key in keys)
    seen = tuple((key.name, at) for key, at in cosignatures.found(notes.parse(parsed.note), witnesses).items())
    if witnesses and not seen:
        message = "none of these witnesses cosigned the checkpoint"
        raise LedgerBroken(message, remedy="ask for a proof that was made after the witness agreed", verdict="V14")
    return Checked(
        parsed.index, said, note.origin, note.size, note.signed_at, signed, trusted is not None, prints, seen, document,
        tuple(key.fingerprint for key in chain.added),
    )


@dataclass(frozen=True, slots=True)
class _Parsed:
    index: int
    path: list[bytes]
    leaf: bytes
    keys: list[Verifier]
    statement: bytes | None
    note: bytes
    document: str | None
    announcements: list[str]


def _parse(text: str) -> _Parsed:
    head, blank, note = text.partition("\n\n")
    lines = head.split("\n")
    if len(text) > _MAX_BYTES or not blank or lines[0] != HEADER or len(lines) < 3:
        raise _not_a_proof()
    try:
        extra = msgspec.json.decode(decode_base64(lines[1].removeprefix("extra ")), type=_Extra)
        index = lines[2].removeprefix("index ")
        if not lines[1].startswith("extra ") or not lines[2].startswith("index ") or str(int(index)) != index:
            raise _not_a_proof()
        return _Parsed(
            int(index),
            [decode_base64(line) for line in lines[3:]],
            decode_base64(extra.leaf),
            [Verifier.parse(key) for key in extra.keys],
            decode_base64(extra.statement) if extra.statement else None,
            note.encode(),
            decode_base64(extra.document).decode() if extra.document else None,
            [decode_base64(one).decode() for one in extra.announcements],
        )
    except (ValueError, msgspec.DecodeError, LedgerBroken) as error:
        raise _not_a_proof() from error


def _leaf(data: bytes, index: int) -> dict[str, Any]:
    try:
        said = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, ValueError, RecursionError):
        said = {}
    if said.get("n") != index:
        message = "the leaf is not the event its number says"
        raise LedgerBroken(message, remedy="run 'archive ledger verify'", verdict="V11")
    return said


def _instance_keys(keys: Sequence[Verifier], origin: str) -> list[PublicKey]:
    """When a key ended is known to the archive alone; the checkpoint over the leaf bounds the time here."""
    return [
        PublicKey(hashlib.sha256(key.public).digest()[:16].hex(), "instance", "Ed25519", key.public, _ALWAYS)
        for key in keys
        if key.name == f"{origin}/instance" and key.kind == ED25519
    ]


def _not_a_proof() -> InvalidRequest:
    return InvalidRequest("this is not a proof", remedy="give the file that 'archive ledger prove' wrote")
