"""Who was who and what was granted at a moment of the past: the events of access up to then, taken in one after the other.

Events say when something began and ended. Of what a grant was about, and under which conditions, the table's own row is taken, for it is
never changed and its keys number what is there; verify compares each with its event. What neither says is told as a note, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access import roles
from archive.access.permissions import BUILTIN_ROLES
from archive.db.tables import grant_lineage, grants, membership, principal, role
from archive.db.types import FOREVER
from archive.ledger.audit import Kind
from archive.ledger.log import AuditFilter
from archive.services.core import Core
from archive.services.retrace import bodies

_KINDS = (Kind.USER_CHANGED, Kind.ROLE_CHANGED, Kind.PEER_CHANGED, Kind.GRANTED, Kind.REVOKED, Kind.TOKEN_CHANGED)
_NEW = {"added": "", "group added": "group", "peer added": "device"}
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Moment:
    """Up to where of the log: events below `size`, and none later than `at`."""

    at: datetime
    size: int

    def holds(self, n: int, at: datetime) -> bool:
        """Whether an event was there already."""
        return n < self.size and at <= self.at


@dataclass(slots=True)
class Person:
    """A principal as it stood."""

    id: int
    name: str
    kind: str
    enabled: bool = True


@dataclass(slots=True)
class Access:
    """The tables of access as they stood, and what could not be told."""

    people: dict[int, Person] = field(default_factory=dict)
    members: dict[tuple[int, int], tuple[datetime, datetime]] = field(default_factory=dict)
    roles: dict[str, int] = field(default_factory=dict)
    grants: dict[int, Row] = field(default_factory=dict)
    lineage: list[Row] = field(default_factory=list)
    tokens: dict[int, Row] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def access_at(core: Core, tx: sa.Connection, moment: Moment) -> Access:
    """Return who was who and what was granted.

    Raises:
        LedgerBroken: a body was changed.
    """
    replayed = _Replayed(tx)
    for event in reversed(list(bodies(core, tx, AuditFilter(kinds=_KINDS, until=None)))):
        if moment.holds(event.n, event.at):
            if event.body is None:
                replayed.erased += 1
            else:
                replayed.take(event.kind, event.n, event.at, event.body)
    return replayed.finish()


class _Replayed:
    def __init__(self, tx: sa.Connection) -> None:
        self._tx = tx
        self._rows = {row.id: row for row in tx.execute(sa.select(principal))}
        self._ids = {row.name: row.id for row in self._rows.values()}
        self._windows = {(row.principal_id, row.group_id): (row.not_before, row.not_after) for row in tx.execute(sa.select(membership))}
        self._given: dict[int, Row] = {}
        self._revoked: set[int] = set()
        self.found = Access(roles={name: int(bits) for name, bits in BUILTIN_ROLES.items()})
        self.erased = 0

    def take(self, kind: str, n: int, at: datetime, body: Row) -> None:
        said, what = body["detail"], str(body["detail"].get("what"))
        if kind == Kind.GRANTED.label:
            if "id" in said:
                self._given[said["id"]] = {**said, "n": n}
        elif kind == Kind.REVOKED.label:
            self._revoked.add(said["id"])
        elif kind == Kind.TOKEN_CHANGED.label:
            self._token(what, said, body)
        elif kind == Kind.ROLE_CHANGED.label:
            self._role(what, said)
        else:
            self._person(what, said, at)

    def _role(self, what: str, said: Row) -> None:
        if what in ("added", "changed"):
            self.found.roles[said["name"]] = int(roles.parse(tuple(said["permissions"])))
        elif what == "removed":
            self.found.roles.pop(said["name"], None)

    def _token(self, what: str, said: Row, body: Row) -> None:
        if what == "made":
            self.found.tokens[said["id"]] = {
                "id": said["id"], "owner": said.get("owner", self._ids.get(str(said.get("user")), 0)), "until": said.get("until", ""),
                "permissions": said.get("permissions", []), "bounded_to": [value for _kind, value in body["objects"]],
            }
        elif what == "revoked":
            for number in (said["id"], *said.get("besides", ())):
                self.found.tokens.pop(number, None)

    def _person(self, what: str, said: Row, at: datetime) -> None:
        people, name = self.found.people, str(said.get("name"))
        key = said.get("id", self._ids.get(name, 0))
        if what in _NEW:
            row = self._rows.get(key)
            kind = _NEW[what] or str(said.get("principal_kind") or (row.kind if row is not None else ""))
            if not kind:
                self.found.notes.append(f"principal {key} was added by an event that does not say what it was, and its row is gone")
                return
            people[key] = Person(key, name, kind)
            self._ids.setdefault(name, key)
        elif what in ("enabled", "disabled") and key in people:
            people[key].enabled = what == "enabled"
        elif what in ("removed", "peer removed"):
            self._removed(key)
        elif what == "joined":
            self._joined(key, said, at)
        elif what == "left":
            self.found.members.pop((key, said.get("group_id", self._ids.get(str(said["group"]), 0))), None)

    def _joined(self, key: int, said: Row, at: datetime) -> None:
        place = (key, said.get("group_id", self._ids.get(str(said["group"]), 0)))
        if "since" in said:
            self.found.members[place] = (datetime.fromisoformat(said["since"]), datetime.fromisoformat(said["until"]))
        elif place in self._windows:
            self.found.members[place] = self._windows[place]
        else:
            self.found.notes.append(
                f"{said.get('name')} joined {said.get('group')} at {at.isoformat()}, and the event does not say for how long: left out"
            )

    def _removed(self, key: int) -> None:
        self.found.people.pop(key, None)
        self.found.members = {pair: window for pair, window in self.found.members.items() if key not in pair}
        self._revoked.update(number for number, said in self._given.items() if said.get("subject", self._ids.get(said["to"])) == key)

    def finish(self) -> Access:
        found, tx = self.found, self._tx
        if self.erased:
            found.notes.append(f"{self.erased} events about access were erased: what they said is not in this answer")
        rows = {row["id"]: dict(row) for row in tx.execute(sa.select(grants)).mappings()}
        names = {row.id: row.name for row in tx.execute(sa.select(role.c.id, role.c.name))}
        for number, said in self._given.items():
            if number in self._revoked:
                continue
            row = rows.get(number)
            if row is not None and row["subject_id"] not in found.people:
                continue
            if row is None:
                found.notes.append(f"grant {number} counted then, and its row is gone: what it was about is not known, so it is left out")
                continue
            since, until = (datetime.fromisoformat(said[name]) for name in ("from", "until"))
            row |= {"revoked_at": None, "not_before": since, "not_after": until}
            if row["role_id"] is not None:
                name = names.get(row["role_id"], "")
                if name not in found.roles:
                    found.notes.append(f"grant {number} is of a role that no event made: it is left out")
                    continue
                row["permissions"] = found.roles[name]
            found.grants[number] = row
        self._passed_on()
        return found

    def _passed_on(self) -> None:
        """Note what grants stood on; one that stood on something that counted no more gave nothing."""
        found = self.found
        for number in sorted(found.grants):
            if found.grants[number]["parent_id"] is None:
                continue
            links = list(_chain(number, self._given))
            if links and all(ancestor in found.grants and giver in found.people for ancestor, giver in links):
                found.lineage += [{"grant_id": number, "ancestor_id": ancestor, "giver_id": giver} for ancestor, giver in links]
            else:
                del found.grants[number]


def _chain(number: int, given: Mapping[int, Row]) -> Iterator[tuple[int, int]]:
    """Yield each grant that one stands on, nearest first, and who passed it on, as the events say."""
    seen = {number}
    while (parent := given.get(number, {}).get("parent", 0)) and parent not in seen:
        yield parent, given[number].get("giver", 0)
        seen.add(parent)
        number = parent


def insert(tx: sa.Connection, access: Access, there: sa.Connection) -> None:
    """Fill the tables of access of a scratch database; role names come from the archive's own rows."""
    console = [dict(row) for row in there.execute(sa.select(principal).where(principal.c.kind == "console")).mappings()]
    people: list[Row] = [
        {"id": one.id, "kind": one.kind, "name": f"{one.name}/{one.id}", "enabled": one.enabled, "created_at": FOREVER, "security_epoch": 0}
        for one in access.people.values()
    ]
    known = {one["id"] for one in people}
    columns = ("id", "kind", "name", "enabled", "created_at", "security_epoch")
    tx.execute(sa.insert(principal), [*people, *({name: one[name] for name in columns} for one in console if one["id"] not in known)])
    kept = [dict(row) for row in there.execute(sa.select(role)).mappings()]
    if kept:
        tx.execute(sa.insert(role), [{**row, "permissions": access.roles.get(row["name"], 0)} for row in kept])
    members = [
        {"principal_id": who, "group_id": group, "not_before": since, "not_after": until}
        for (who, group), (since, until) in access.members.items() if who in known and group in known
    ]
    if members:
        tx.execute(sa.insert(membership), members)
    if access.grants:
        tx.execute(sa.insert(grants), list(access.grants.values()))
    if access.lineage:
        tx.execute(sa.insert(grant_lineage), access.lineage)

