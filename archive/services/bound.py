"""Who users are in other systems, as the ledger's events say (V12, docs/format.md 6.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa

from archive.db.tables import external_identity, principal
from archive.ledger.audit import Kind
from archive.services.core import Core
from archive.services.retrace import Found, details


def bound(core: Core, tx: sa.Connection) -> Iterator[Found]:
    """Yield identities that no event bound, or bound to another, and those that are gone without one."""
    said: dict[tuple[str, str], int] = {}
    for event in reversed(list(details(core, tx, Kind.USER_CHANGED))):
        what = event.get("what")
        if what == "bound":
            said[event["issuer"], event["sub"]] = event["id"]
        elif what == "unbound":
            said.pop((event["issuer"], event["sub"]), None)
        elif what == "removed":
            said = {key: who for key, who in said.items() if who != event.get("id")}
    gone = set(tx.execute(sa.select(principal.c.id).where(principal.c.removed_at.is_not(None))).scalars())
    e = external_identity.c
    for row in tx.execute(sa.select(e.issuer, e.subject, e.principal_id)):
        if said.pop((row.issuer, row.subject), None) != row.principal_id:
            yield "V12", f"an identity of user {row.principal_id} elsewhere was bound by no event", ""
    for who in said.values():
        if who not in gone:
            yield "V12", f"an identity of user {who} elsewhere was taken away by no event", ""


def later(tx: sa.Connection, said: dict[str, Any], tell: Callable[[Kind, dict[str, Any]], None]) -> None:
    """Do what an event since a snapshot of access comes to: what was bound since does not come back, what was taken away goes again."""
    e = external_identity.c
    tx.execute(sa.delete(external_identity).where(e.issuer == said["issuer"], e.subject == said["sub"]))
    if said["what"] == "bound":
        kept: dict[str, Any] = {name: said[name] for name in ("id", "name", "identity", "issuer", "sub") if name in said}
        tell(Kind.USER_CHANGED, {**kept, "what": "unbound", "because": "lost with the index"})
