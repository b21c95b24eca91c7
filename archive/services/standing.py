"""What the ledger says of who stands where: principals, whether they are enabled, groups' members, roles assigned.

A row slipped in, changed, switched on, brought back or taken away behind the archive's back is a V12 (docs/format.md 6.4).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from archive.db.tables import membership, principal, role, role_assignment
from archive.db.types import FOREVER
from archive.ledger.audit import Kind
from archive.ledger.log import AuditFilter
from archive.services.core import Core
from archive.services.retrace import Found, bodies

Window = tuple[str, str] | None
"""From and until, as instants in text; None where the event of an earlier release does not say."""


@dataclass(slots=True)
class _Who:
    name: str
    kind: str = ""  # empty: the event does not say
    enabled: bool = True
    removed: bool = False


@dataclass(slots=True)
class _Said:
    """Everyone, by id of the principal, after the last event."""

    ids: dict[str, int]  # of names that events of earlier releases give without an id
    who: dict[int, _Who] = field(default_factory=dict)
    members: dict[tuple[int, int], Window] = field(default_factory=dict)
    roles: dict[tuple[int, str], list[Window]] = field(default_factory=dict)

    def take(self, kind: str, at: str, row: dict[str, Any]) -> None:
        """Take in the next event."""
        what, name = row.get("what"), str(row.get("name"))
        key = row.get("id", self.ids.get(name, 0))
        if what in ("added", "group added", "peer added") and kind != Kind.ROLE_CHANGED.label:
            self.who[key] = _Who(name, "device" if what == "peer added" else str(row.get("principal_kind", "")))
            self.ids[name] = key
            for one in row.get("roles", [row["role"]] if row.get("role") else []):
                self.roles.setdefault((key, one), []).append((at, FOREVER.isoformat()))
        elif what in ("enabled", "disabled") and key in self.who:
            self.who[key].enabled = what == "enabled"
        elif what in ("removed", "peer removed") and key in self.who and kind != Kind.ROLE_CHANGED.label:
            self._remove(key)
        elif what in ("joined", "left"):
            place = (key, row.get("group_id", self.ids.get(str(row["group"]), 0)))
            if what == "joined":
                self.members[place] = _window(row)
            else:
                self.members.pop(place, None)
        elif what == "assigned":
            self.roles.setdefault((key, str(row["role"])), []).append(_window(row))
        elif what == "withdrawn":
            self.roles.pop((key, str(row["role"])), None)

    def _remove(self, key: int) -> None:
        self.who[key] = _Who(f"{self.who[key].name}/{key}", self.who[key].kind, enabled=False, removed=True)
        self.members = {pair: window for pair, window in self.members.items() if key not in pair}
        self.roles = {pair: windows for pair, windows in self.roles.items() if pair[0] != key}


def _window(row: dict[str, Any]) -> Window:
    return (row["since"], row["until"]) if "since" in row else None


def stands(core: Core, tx: sa.Connection) -> Iterator[Found]:
    """Yield principals, memberships and role assignments that are not as the last event about them says."""
    rows = {row.id: row for row in tx.execute(sa.select(principal))}
    said = _Said({row.name: row.id for row in rows.values()})
    kinds = (Kind.USER_CHANGED, Kind.ROLE_CHANGED, Kind.PEER_CHANGED)
    for event in reversed(list(bodies(core, tx, AuditFilter(kinds=kinds)))):
        if event.body is not None:
            said.take(event.kind, event.at.isoformat(), event.body["detail"])
    yield from _principals(said, rows)
    yield from _memberships(said, tx)
    yield from _assignments(said, tx)


def _principals(said: _Said, rows: dict[int, sa.Row[Any]]) -> Iterator[Found]:
    consoles = [row.id for row in rows.values() if row.kind == "console"]
    if len(consoles) != 1 or not rows[consoles[0]].enabled or rows[consoles[0]].removed_at is not None:
        yield "V12", "the console's principal is not as it was made", ""
    for row in rows.values():
        known = said.who.get(row.id)
        if row.kind == "console" and row.id == min(consoles):
            continue
        if known is None:
            yield "V12", f"the {row.kind} {row.id} was added by no event", ""
        elif (row.name, row.kind, row.removed_at is not None) != (known.name, known.kind or row.kind, known.removed):
            yield "V12", f"the {row.kind} {row.id} is not the one that was added", ""
        elif row.enabled != known.enabled:
            yield "V12", f"the {row.kind} {row.id} was switched on or off by no event", ""
    for key in said.who.keys() - rows.keys():
        yield "V12", f"principal {key} is gone", ""


def _memberships(said: _Said, tx: sa.Connection) -> Iterator[Found]:
    left = dict(said.members)
    for row in tx.execute(sa.select(membership)):
        pair = (row.principal_id, row.group_id)
        window = (row.not_before.isoformat(), row.not_after.isoformat())
        if pair not in left or left.pop(pair) not in (None, window):
            yield "V12", f"membership {row.id} was given by no event", ""
    for who, group in left:
        yield "V12", f"principal {who} was taken out of group {group} by no event", ""


def _assignments(said: _Said, tx: sa.Connection) -> Iterator[Found]:
    left = {key: list(windows) for key, windows in said.roles.items()}
    live = sa.select(role_assignment, role.c.name).outerjoin(role, role.c.id == role_assignment.c.role_id)
    for row in tx.execute(live.where(role_assignment.c.revoked_at.is_(None))):
        windows = left.get((row.principal_id, row.name), [])
        window = (row.not_before.isoformat(), row.not_after.isoformat())
        found = window if window in windows else None
        if found not in windows:
            yield "V12", f"role assignment {row.id} was given by no event", ""
        else:
            windows.remove(found)
    for (who, name), windows in left.items():
        if windows:
            yield "V12", f"principal {who} lost the role {name} by no event", ""
