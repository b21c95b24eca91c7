"""Memberships that follow another system's word: of the groups a mapping names, a user is in those it was told, and in no other of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime

import sqlalchemy as sa

from archive.access import principals
from archive.db.types import FOREVER
from archive.errors import NotFound
from archive.ledger.audit import Event, Kind
from archive.ledger.log import Ledger


def keep_in_step(
    tx: sa.Connection, ledger: Ledger, principal_id: int, name: str, mapping: Mapping[str, str], told: Collection[str], *, via: str,
    at: datetime,
) -> None:
    """Let a user join and leave groups as `told` says, an event each; groups `mapping` does not name, and roles, are left alone."""
    wanted = {group for value, group in mapping.items() if value in told}
    there = {row["id"]: row for row in principals.groups_of(tx, principal_id)}
    for group in sorted(set(mapping.values())):
        try:
            where = principals.find(tx, group, ("group",))
        except NotFound:
            continue  # a group is made by whoever manages users, never by a word from outside
        held = there.get(where["id"])
        said = {"group": where["name"], "name": name, "id": principal_id, "group_id": where["id"], "via": via}
        if group in wanted and (held is None or not held["not_before"] <= at < held["not_after"]):
            principals.join(tx, principal_id, where["id"], by=None, not_before=at)
            said |= {"what": "joined", "since": at.isoformat(), "until": FOREVER.isoformat()}
        elif group not in wanted and held is not None:
            principals.leave(tx, principal_id, where["id"])
            said["what"] = "left"
        else:
            continue
        ledger.record(tx, Event(Kind.USER_CHANGED, detail=said), at=at)
