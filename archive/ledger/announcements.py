"""Keys that follow one another: each later one was announced by the one before it, and signs nothing earlier than that.

Source: docs/format.md 5 (rotation), 8.1.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa

from archive.db.tables import audit_event, ledger_leaf
from archive.errors import LedgerBroken
from archive.keys.entries import ALGORITHMS, SIGNING, PublicKey
from archive.keys.keyring import Keyring
from archive.keys.sealing import decode_base64, format_instant, parse_instant
from archive.ledger import documents
from archive.ledger.audit import Kind
from archive.ledger.bodies import Bodies, parse

ANNOUNCED, RETIRED = "key-announced", "key-retired"
LATE = timedelta(minutes=15)
"""How long after its key was retired a statement may come into the log: what was on its way."""


@dataclass(frozen=True, slots=True)
class Change:
    """One key that takes the place of another, and the size of the log before which it signs nothing."""

    purpose: str
    old: str
    new: str
    public: bytes
    after: int


def written(keyring: Keyring, purposes: Sequence[str], *, after: int, at: datetime) -> str:
    """Return the announcement that old and coming keys of these purposes sign.

    Raises:
        KeysUnavailable: none is to come.
    """
    pairs = [keyring.handover_signers(purpose) for purpose in SIGNING if purpose in purposes]
    named = [
        {"purpose": purpose, **{side: {"kid": one.key_id, "public": base64.b64encode(one.public).decode()}
                                for side, one in zip(("old", "new"), pair, strict=True)}}
        for purpose, pair in zip((one for one in SIGNING if one in purposes), pairs, strict=True)
    ]
    said = {"v": 1, "type": "key-announcement", "archive": keyring.archive_uuid, "at": format_instant(at), "after": after, "keys": named}
    return documents.sign("announcement", said, [one for pair in pairs for one in pair])


def read(envelope: str, archive: str) -> list[Change]:
    """Return what an announcement says, each change signed by the old key and the new one it names.

    Whether the old key is one to be trusted is for the caller to know.

    Raises:
        LedgerBroken: V13.
    """
    document = documents.read(envelope)
    if document.what != "announcement" or document.said["archive"] != archive:
        raise documents.refused("this announces no key of this archive")
    found = []
    for number, one in enumerate(document.said["keys"]):
        publics = []
        for side, which in enumerate(("old", "new")):
            public = _public(one[which]["public"])
            if hashlib.sha256(public).digest()[:16].hex() != one[which]["kid"]:
                raise documents.refused("an announcement names a key by another's id")
            document.require(2 * number + side, one[which]["kid"], ALGORITHMS[one["purpose"]], public)
            publics.append(public)
        found.append(Change(one["purpose"], one["old"]["kid"], one["new"]["kid"], publics[1], document.said["after"]))
    if len(document.signatures) != 2 * len(found):
        raise documents.refused("an announcement is signed by others too")
    return found


def _public(text: str) -> bytes:
    try:
        return decode_base64(text)
    except ValueError:
        raise documents.refused("an announcement names what is no key") from None


@dataclass(frozen=True, slots=True)
class Announced:
    """An event that carries an announcement; `envelope` is empty, and `wrong` says why, where it does not hold."""

    n: int
    envelope: str
    changes: tuple[Change, ...] = ()
    wrong: str = ""


def events(tx: sa.Connection, keyring: Keyring) -> Iterator[Announced]:
    """Yield every announcement of the log, oldest first."""
    bodies = Bodies(keyring)
    query = (
        sa.select(audit_event.c.n, audit_event.c.body, ledger_leaf.c.data).join(ledger_leaf, ledger_leaf.c.n == audit_event.c.n)
        .where(audit_event.c.kind == Kind.KEY_CHANGED.label).order_by(audit_event.c.n)
    )
    for row in tx.execute(query).all():
        try:
            leaf: dict[str, Any] = msgspec.json.decode(bytes(row.data))
            opened = None if row.body is None else bodies.open(row.n, bytes(row.body))
            said = {} if opened is None else parse(opened[1])["detail"]
            if said.get("what") != ANNOUNCED and "doc" not in leaf:
                continue
            if "document" not in said and "doc" not in leaf:
                continue  # of a pepper there is nothing to sign
            envelope = said["document"]
            if documents.digest(envelope).hex() != leaf.get("doc"):
                raise documents.refused("it is not the announcement its leaf names")
            yield Announced(row.n, envelope, tuple(read(envelope, keyring.archive_uuid)))
        except (LedgerBroken, KeyError, TypeError, AttributeError, msgspec.DecodeError) as error:
            yield Announced(row.n, "", wrong=error.message if isinstance(error, LedgerBroken) else "what it announces cannot be read")


@dataclass(slots=True)
class Succession:
    """Which keys of an archive may have signed what, by their announcements."""

    after: dict[str, int] = field(default_factory=dict)
    until: dict[str, datetime] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    envelopes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, tx: sa.Connection, keyring: Keyring) -> Succession:
        """Follow the keys of a keyring through the announcements of its log."""
        made, said = cls(), {}
        for event in events(tx, keyring):
            if event.wrong:
                made.findings.append(f"event {event.n} announces a key, but {event.wrong}")
                continue
            made.envelopes.append(event.envelope)
            said.update({(one.purpose, one.new): (one, event.n) for one in event.changes})
        made._follow(keyring.public_keys(), said)
        return made

    def _follow(self, keys: Iterable[PublicKey], said: dict[tuple[str, str], tuple[Change, int]]) -> None:
        before: dict[str, str] = {}
        for key in keys:
            if key.not_after is not None:
                self.until[key.kid] = key.not_after
            old = before.get(key.purpose)
            if old is not None:
                one, n = said.get((key.purpose, key.kid), (None, 0))
                if one is None and key.state == "coming":
                    continue  # it is to be announced; nothing is made with it yet
                if one is None or one.old != old or one.public != key.public or one.after > n:
                    self.findings.append(f"the {key.purpose} key {key.kid} was not announced by the one before it")
                    self.after[key.kid] = 1 << 62
                else:
                    self.after[key.kid] = one.after
            before[key.purpose] = key.kid

    def early(self, kid: str, n: int) -> bool:
        """Whether leaf `n` is older than the announcement of the key that signed its statement."""
        return n < self.after.get(kid, 0)

    def late(self, kid: str, leaf: dict[str, Any]) -> bool:
        """Whether a leaf came long after the key that signed its statement was retired: only what was replayed may."""
        until = self.until.get(kid)
        try:
            return until is not None and parse_instant(leaf["t"]) > until + LATE
        except (KeyError, ValueError, TypeError):
            return False  # the ledger's own check has told

    def checkpoint(self, kids: Iterable[str], size: int, signed_at: datetime) -> str:
        """Return why these keys cannot have signed a checkpoint of that size, or nothing."""
        for kid in kids:
            if size <= self.after.get(kid, -1):
                return "it is signed by a key that was not announced yet"
            until = self.until.get(kid)
            if until is not None and signed_at > until:
                return "it is signed by a key that was retired before"
        return ""
