"""What a checker elsewhere comes to trust: the keys it has, and those that these announced (docs/format.md 8.1, 9)."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from archive.db.tables import audit_event
from archive.errors import LedgerBroken
from archive.keys.keyring import Keyring
from archive.ledger import announcements, documents
from archive.ledger.bodies import Bodies, parse
from archive.ledger.notes import ED25519, ML_DSA_44, Verifier


def carried(tx: sa.Connection, keyring: Keyring, n: int, *, document: bool) -> dict[str, Any]:
    """Return, for a proof, the announcements there were, and the document that event `n` carries when it does."""
    found: dict[str, Any] = {}
    said = [base64.b64encode(one.envelope.encode()).decode() for one in announcements.events(tx, keyring) if one.envelope]
    if said:
        found["announcements"] = said
    if document:
        sealed = tx.execute(sa.select(audit_event.c.body).where(audit_event.c.n == n)).scalar()
        opened = None if sealed is None else Bodies(keyring).open(n, bytes(sealed))
        if opened is not None:
            found["document"] = base64.b64encode(parse(opened[1])["detail"]["document"].encode()).decode()
    return found


@dataclass(slots=True)
class Chain:
    """The keys of a log, trusted ones first, and from which size of the log on each announced one may sign."""

    origin: str
    trusted: Sequence[Verifier]
    added: list[Verifier] = field(default_factory=list)
    after: dict[str, int] = field(default_factory=dict)

    @property
    def keys(self) -> list[Verifier]:
        """Every key that counts."""
        return [*self.trusted, *self.added]

    def follow(self, envelope: str) -> None:
        """Take in an announcement; one by keys that nobody here trusts says nothing.

        Raises:
            LedgerBroken: it does not hold (V13).
        """
        kinds = {"instance": (f"{self.origin}/instance", ED25519), "log": (self.origin, ED25519), "log-pq": (self.origin, ML_DSA_44)}
        for one in announcements.read(envelope, self.origin.removeprefix("strongroom/")):
            name, kind = kinds[one.purpose]
            known = {key.kid for key in self.keys if (key.name, key.kind) == (name, kind)}
            if one.old in known:
                self.after[one.new] = one.after
                if one.new not in known:
                    self.added.append(Verifier(name, kind, one.public))

    def require(self, number: int, kids: Sequence[str], verdict: str, what: str) -> None:
        """Refuse what is signed by a key that was announced only later.

        Raises:
            LedgerBroken.
        """
        if any(number < self.after.get(kid, 0) for kid in kids):
            message = f"{what} is signed by a key that was not announced yet"
            raise LedgerBroken(message, remedy="treat it as forged", verdict=verdict)

    def document(self, envelope: str, leaf: dict[str, Any], index: int) -> dict[str, Any]:
        """Return what the document of an event says: hashed to its leaf, and signed by a key that counts there.

        Raises:
            LedgerBroken: V11, V13.
        """
        if leaf.get("doc") != documents.digest(envelope).hex():
            message = "the proof is of another document"
            raise LedgerBroken(message, remedy="ask for the proof of this event", verdict="V11")
        document = documents.read(envelope)
        if document.what == "receipt":
            kid = document.said["kid"]
            name = f"{self.origin}/instance"
            key = next((key for key in self.keys if (key.name, key.kind, key.kid) == (name, ED25519, kid)), None)
            if key is None or f"strongroom/{document.said['archive']}" != self.origin:
                raise documents.refused("the receipt is not signed by a key of this archive")
            document.require(0, kid, "Ed25519", key.public)
            self.require(index, [kid], "V13", "the receipt")
        else:
            announcements.read(envelope, self.origin.removeprefix("strongroom/"))
        return document.said
