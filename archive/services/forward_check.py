"""Rules of forwarding are what the ledger's events say: by one slipped in, or made another, images would leave."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from archive.db.tables import datastore, forward_rule, peer, principal
from archive.ledger.audit import Kind
from archive.services.core import Core
from archive.services.retrace import Found, details

_R = forward_rule.c
_AUTHOR = principal.alias("author")
_RULES = (
    sa.select(
        _R.name, _R.conditions, _R.hours, _R.quiet_s, _R.enabled, _R.principal_id, _R.peer_id, peer.c.principal_id.label("theirs"),
        peer.c.name.label("destination"), _AUTHOR.c.name.label("on_behalf_of"), datastore.c.name.label("datastore"),
    )
    .outerjoin(peer, peer.c.id == _R.peer_id).outerjoin(_AUTHOR, _AUTHOR.c.id == _R.principal_id)
    .outerjoin(datastore, datastore.c.id == _R.datastore_id)
)


def sent_by(core: Core, tx: sa.Connection) -> Iterator[Found]:
    """Yield rules that no event added, and such as say otherwise than theirs; a lost index may have lost one, and sends less then."""
    told: dict[str, dict[str, Any]] = {}
    ended: set[str] = set()
    for event in reversed(list(details(core, tx, Kind.CONFIGURED))):
        if event.get("what") == "forward rule added":
            told[event["name"]] = event
            ended.discard(event["name"])
        elif event.get("what") == "forward rule ended":
            ended.add(event["name"])
        elif event.get("what") == "forward rule removed":
            told.pop(event["name"], None)
    for row in tx.execute(_RULES).mappings():
        said = told.get(row["name"])
        if said is None:
            yield "V12", f"the rule of forwarding {row['name']} was added by no event", ""
        elif row["enabled"] == (row["name"] in ended) or any(
            said.get(name, row[name]) != row[name] for name in ("conditions", "hours", "quiet_s", "datastore")
        ):
            yield "V12", f"the rule of forwarding {row['name']} is not the one that was added", ""
        elif row["destination"] not in _names(said["destination"], row["peer_id"], row["theirs"]) or row["on_behalf_of"] not in _names(
            said["on_behalf_of"], row["principal_id"]
        ):
            yield "V12", f"the rule of forwarding {row['name']} sends to another, or on another's right, than was said", ""


def _names(said: str, *numbers: int) -> set[str]:
    """Return what a user or peer of that name may be called; once removed, with its number."""
    return {said, *(f"{said}/{number}" for number in numbers)}
