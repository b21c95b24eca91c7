"""Second factors and recovery codes as the ledger's events say (V12, docs/format.md 6.4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from archive.db.tables import factor, principal, recovery_code
from archive.ledger.audit import Kind, secret_digest
from archive.services.core import Core
from archive.services.retrace import Found, details

Row = dict[str, Any]


@dataclass(slots=True)
class Held:
    """What events say a principal has: factors by what is kept of them, recovery codes, and those that were used."""

    factors: dict[int, tuple[str, str]] = field(default_factory=dict)
    codes: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)

    def take(self, said: Row) -> None:
        """Take in the next event, the oldest first."""
        what = said.get("what")
        if what == "added":
            self.factors[said["factor"]] = (said["sealed"], said["factor_kind"])
        elif what == "removed":
            self.factors.pop(said["factor"], None)
        elif what == "reset":
            self.factors.clear()
        elif what == "rebuilt":
            self.factors = {number: (sealed, kind) for number, sealed, kind in said["factors"]}
        elif what == "code used":
            self.used.add(said["code"])
        if "codes" in said:
            self.codes = set(said["codes"])


def held(core: Core, tx: sa.Connection) -> dict[int, Held]:
    """Return what events say of each principal that ever had a second factor."""
    found: dict[int, Held] = {}
    for said in reversed(list(details(core, tx, Kind.FACTOR_CHANGED))):
        found.setdefault(said["id"], Held()).take(said)
    return found


def proven(core: Core, tx: sa.Connection) -> Iterator[Found]:
    """Yield factors and recovery codes that no event made, or that are gone without one, and codes that count again."""
    said = held(core, tx)
    rows: dict[int, set[tuple[str, str]]] = {}
    confirmed = sa.select(factor.c.principal_id, factor.c.kind, factor.c.sealed).where(factor.c.confirmed_at.is_not(None))
    for row in tx.execute(confirmed):
        rows.setdefault(row.principal_id, set()).add((secret_digest(bytes(row.sealed)), row.kind))
    kept: dict[int, dict[str, bool]] = {}
    for row in tx.execute(sa.select(recovery_code.c.principal_id, recovery_code.c.code_hmac, recovery_code.c.used_at)):
        kept.setdefault(row.principal_id, {})[secret_digest(bytes(row.code_hmac))] = row.used_at is not None
    removed = set(tx.execute(sa.select(principal.c.id).where(principal.c.removed_at.is_not(None))).scalars())
    for who in sorted((said.keys() | rows.keys() | kept.keys()) - removed):
        known = said.get(who, Held())
        there, told = rows.get(who, set()), set(known.factors.values())
        if there - told:
            yield "V12", f"a second factor of user {who} was added by no event", ""
        if told - there:
            yield "V12", f"a second factor of user {who} was taken away by no event", ""
        codes = kept.get(who, {})
        if codes.keys() != known.codes:
            yield "V12", f"the recovery codes of user {who} are not those that were drawn", ""
        if any(not codes[one] for one in known.used & codes.keys()):
            yield "V12", f"a recovery code of user {who} counts again, although it was used", ""
