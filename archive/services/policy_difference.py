"""What a policy says otherwise than the archive has it: the changes that make the one of the other, in the order they are done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from archive.access import grants, roles
from archive.access.permissions import Permission
from archive.db.types import FOREVER
from archive.errors import InvalidRequest, NotFound
from archive.services.policy_document import AssignmentText, Document, GrantText, RoleText, end_of
from archive.services.policy_present import Present, Row, plain


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is done; `what` names how in policy_text.py, `reached` whom it touches."""

    what: str
    said: str
    given: Row
    reached: frozenset[int] = frozenset()


def changes(tx: sa.Connection, there: Present, wanted: Document, *, at: datetime, issuer: str) -> list[Change]:
    """Return what makes the archive as a document says, in the order it is done.

    Raises:
        InvalidRequest: it names who or what is not here.
    """
    _known(there, wanted)
    given, ended = _granted(tx, there, wanted, at, issuer)
    made = [*ended, *_roles(there, wanted), *_groups(there, wanted), *_members(there, wanted, at), *_assigned(there, wanted, at), *given]
    kept = {plain(one.name) for one in wanted.group or ()}
    if wanted.group is not None:
        made += [
            Change("group-remove", f"group {name} is removed", {"row": row}, frozenset({row["id"]}))
            for name, row in there.people.items() if row["kind"] == "group" and name not in kept
        ]
    if wanted.role is not None:
        named = {plain(one.name) for one in wanted.role}
        made += [
            Change("role-remove", f"role {name} is removed", {"row": row})
            for name, row in there.roles.items() if not row["builtin"] and name not in named
        ]
    return made


def _known(there: Present, wanted: Document) -> None:
    groups = {plain(one.name) for one in wanted.group} if wanted.group is not None else {
        name for name, row in there.people.items() if row["kind"] == "group"
    }
    people = {name for name, row in there.people.items() if row["kind"] != "group"}
    own = {name for name, row in there.roles.items() if row["builtin"]}
    known = own | ({plain(one.name) for one in wanted.role} if wanted.role is not None else there.roles.keys())
    given: list[AssignmentText | GrantText] = [*(wanted.assignment or ()), *(wanted.grant or ())]
    asked = [one.to for one in given]
    lacking = {name for name in asked if plain(name) not in people | groups}
    lacking |= {one.name for group in wanted.group or () for one in group.member if plain(one.name) not in people}
    lacking |= {one.subject for one in wanted.expect if plain(one.subject) not in people}
    if lacking:
        message = "the policy names users, peers or groups that are not here: " + ", ".join(sorted(lacking)[:20])
        raise InvalidRequest(message, remedy="add them first; a policy makes groups, never users or peers")
    absent = {one.role for one in given if plain(one.role) not in known}
    absent |= {one.name for one in wanted.role or () if one.permissions is None and plain(one.name) not in own}
    if absent:
        message = "the policy names roles that it does not define: " + ", ".join(sorted(absent)[:20])
        raise InvalidRequest(message, remedy="add a [[role]] with their permissions")
    elsewhere = {one.datastore for one in (*(wanted.grant or ()), *wanted.expect)} - there.places.keys()
    if elsewhere:
        message = "the policy names datastores that are not here: " + ", ".join(sorted(elsewhere)[:20])
        raise InvalidRequest(message, remedy="name one that exists; the default is clinical")


def _roles(there: Present, wanted: Document) -> Iterator[Change]:
    named = {plain(one.name): one for one in wanted.role or ()}
    for name, one in named.items():
        row, held = there.roles.get(name), roles.parse(one.permissions or ())
        if row is None:
            yield Change("role-add", f"role {name} is added: {', '.join(roles.names(held))}", {"name": name, "permissions": held})
        elif one.permissions is not None and held != Permission(row["permissions"]):
            more, less = held & ~Permission(row["permissions"]), Permission(row["permissions"]) & ~held
            words = [f"+{word}" for word in roles.names(more)] + [f"-{word}" for word in roles.names(less)]
            yield Change("role-change", f"role {name}: {' '.join(words)}", {"row": row, "permissions": held}, _holders(there, name))
    for name, row in there.roles.items() if wanted.role is not None else ():
        asks = named.get(name, RoleText(name=name)).asks()
        if (row["builtin"] or name in named) and asks != {
            "second_factor": bool(row["mfa_level"]), "idle_s": row["idle_s"], "max_session_s": row["max_session_s"]
        }:
            yield Change("sign-in", f"role {name} asks of sign-ins: {_asks(asks)}", {"name": name, "asks": asks})
    for name, one in named.items():
        if name not in there.roles and one.asks() != RoleText(name=name).asks():
            yield Change("sign-in", f"role {name} asks of sign-ins: {_asks(one.asks())}", {"name": name, "asks": one.asks()})


def _asks(asks: Row) -> str:
    words = ["a second factor"] if asks["second_factor"] else []
    words += [f"at most {asks['idle_s'] // 60} minutes of quiet"] if asks["idle_s"] else []
    words += [f"at most {asks['max_session_s'] // 3600} hours"] if asks["max_session_s"] else []
    return ", ".join(words) or "nothing beyond the archive's own"


def _holders(there: Present, name: str) -> frozenset[int]:
    who = {to for (to, held) in there.assignments if held == name} | {row["subject"] for row in there.grants if row["role"] == name}
    return frozenset(there.people[one]["id"] for one in who if one in there.people)


def _groups(there: Present, wanted: Document) -> Iterator[Change]:
    for one in wanted.group or ():
        name = plain(one.name)
        if name not in there.people:
            yield Change("group-add", f"group {name} is added", {"name": name, "full_name": one.full_name})
        elif there.people[name]["kind"] != "group":
            message = f"{name} is no group"
            raise InvalidRequest(message, remedy="users, groups and peers share their names; choose another")


def _members(there: Present, wanted: Document, at: datetime) -> Iterator[Change]:
    if wanted.group is None:
        return
    asked = {(plain(group.name), plain(one.name)): one for group in wanted.group for one in group.member if end_of(one) > at}
    kept = {plain(group.name) for group in wanted.group}
    for (group, who) in there.members.keys() - asked.keys():
        if group in kept:  # of the others it ends with the group
            yield Change("leave", f"{who} leaves {group}", {"group": group, "member": who}, frozenset({there.people[who]["id"]}))
    for (group, who), one in asked.items():
        now, start = there.members.get((group, who)), None if one.since is None else one.since.astimezone(UTC)
        if now is not None and now[1] == end_of(one) and (start == now[0] or (start is None and now[0] <= at)):
            continue
        word = "joins" if now is None else "stays, from and until otherwise, in"
        yield Change(
            "join", f"{who} {word} {group}{_when(start, end_of(one))}",
            {"group": group, "member": who, "start": start or at, "end": end_of(one)}, frozenset({there.people[who]["id"]}),
        )


def _assigned(there: Present, wanted: Document, at: datetime) -> Iterator[Change]:
    if wanted.assignment is None:
        return
    asked: dict[tuple[str, str], list[AssignmentText]] = {}
    for one in wanted.assignment:
        if end_of(one) > at:
            asked.setdefault((plain(one.to), plain(one.role)), []).append(one)
    for pair in sorted(there.assignments.keys() | asked.keys()):
        to, name = pair
        left, new = Counter(there.assignments.get(pair, Counter())), []
        for one in sorted(asked.get(pair, ()), key=lambda one: one.since is None):
            start = None if one.since is None else one.since.astimezone(UTC)
            same = next((w for w in left if left[w] and w[1] == end_of(one) and (w[0] == start or (start is None and w[0] <= at))), None)
            if same is None:
                new.append((start or at, end_of(one)))
            else:
                left[same] -= 1
        reached = frozenset({there.people[to]["id"]}) if to in there.people else frozenset()
        if +left:  # what is withdrawn is every assignment of a role, so those that stay are given again
            kept = there.assignments[pair] - left
            new = [*kept.elements(), *new]
            yield Change("withdraw", f"{to} has the role {name} no more" if not new else f"the role {name} of {to} is given anew",
                         {"to": to, "role": name}, reached)
        for start, end in new:
            given: Row = {"to": to, "role": name, "start": start, "end": end}
            yield Change("assign", f"{to} has the role {name}{_when(start, end)}", given, reached)


def _granted(
    tx: sa.Connection, there: Present, wanted: Document, at: datetime, issuer: str
) -> tuple[list[Change], list[Change]]:
    """Return what is given, and what is ended."""
    if wanted.grant is None:
        return [], []
    left: dict[tuple[Any, ...], list[Row]] = {}
    for row in there.grants:
        left.setdefault(_key(row["subject"], row["role"], row["effect"], there.places[row["datastore"]], row["scope_key"], row["until"],
                             row["conditions"].get("modality", ""), row["delegable"]), []).append(row)
    made: list[Change] = []
    # What says when it begins chooses first among those that are alike but for that.
    for number, one in sorted(enumerate(wanted.grant, 1), key=lambda each: each[1].since is None):
        if end_of(one) <= at:
            continue
        place, start = there.places[one.datastore], None if one.since is None else one.since.astimezone(UTC)
        try:
            scope = grants.scope_key(tx, place, one.target(), at=at, default_issuer=issuer)
        except NotFound:
            message = f"grant {number} of the policy, to {one.to}, is about a patient, study or series that is not here"
            raise InvalidRequest(message, remedy="check identifier and datastore; of a patient still to come say expected = true") from None
        key = _key(plain(one.to), plain(one.role), one.effect, place, scope, end_of(one), one.modality.strip().upper(), one.delegable)
        same = next((row for row in left.get(key, ()) if row["from"] == start or (start is None and row["from"] <= at)), None)
        if same is not None:
            left[key].remove(same)
            continue
        made.append(Change(
            "give", f"{_verb(one.effect, one.to)} {one.role} on {_object(one)}{_when(start, end_of(one))}",
            {"text": one, "place": place, "scope_key": scope, "start": start or at, "end": end_of(one)},
            frozenset({there.people[plain(one.to)]["id"]}) if plain(one.to) in there.people else frozenset(),
        ))
    return made, [
        Change("revoke", f"grant {row['id']} ends: {_verb(row['effect'], row['subject'])} {row['role']} on {_shown(row)}", {"row": row},
               frozenset({row["subject_id"]}))
        for row in sorted((row for rows in left.values() for row in rows), key=lambda row: row["id"])
    ]


def _key(*parts: Any) -> tuple[Any, ...]:
    return parts


def _verb(effect: str, who: str) -> str:
    return f"{who} has" if effect == "allow" else f"{who} is denied"


def _object(one: GrantText) -> str:
    level, value = ("everything", "") if one.everything else one.aims()[0]
    return " ".join(part for part in (level, value, one.modality.strip().upper()) if part)


def _shown(row: Row) -> str:
    return " ".join(part for part in (row["level"], row["object"], row["conditions"].get("modality", "")) if part)


def _when(start: datetime | None, end: datetime) -> str:
    words = "" if start is None else f" from {start.isoformat()}"
    return words + ("" if end >= FOREVER else f" until {end.isoformat()}")
