"""Who could see what, then: access and holdings as the ledger says they stood at a moment, asked by the rule that decides every read.

What is told is what principals could see, whoever signed in; their sessions, tokens and shares never show more.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access import grants as access_grants
from archive.access import policy, roles
from archive.access.permissions import OBJECT, Permission
from archive.access.policy import scope_of
from archive.access.subject import Subject
from archive.db.scratch import scratch
from archive.db.tables import audit_event, series, study
from archive.errors import InvalidRequest, NotFound
from archive.ledger import nodes
from archive.ledger.audit import Event, Kind, ObjectRef
from archive.services import denials, replay_access, replay_catalog
from archive.services.core import Core
from archive.services.replay_access import Access, Moment, Person
from archive.services.replay_catalog import Catalog

Row = dict[str, Any]
MOST = 10_000
EVERY_CONTEXT = (1 << 31) - 1
_TOKEN = policy.system("verify")
_ST, _SE = study.c, series.c


class LedgerReplay:
    """Needs the permission audit, or the console; that it was asked is an event."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core

    def at(
        self, subject: Subject, *, when: datetime | None = None, size: int | None = None, who: str | None = None,
        study_instance_uid: str | None = None,
    ) -> Row:
        """Return what `who` could see, who could see a study, or of everybody how much, at an instant or at a size of the log.

        Raises:
            Forbidden, InvalidRequest; NotFound: nobody of that name then, or no such study at any time.
        """
        core = self._core
        if (when is None) == (size is None):
            message = "name an instant or a size of the log"
            raise InvalidRequest(message, remedy="--at 2026-01-31T18:00Z, or --at 1234 for the log of 1234 events")
        if who is not None and study_instance_uid is not None:
            message = "name a subject or a study"
            raise InvalidRequest(message)
        now = core.clock()
        with denials.recorded(core, subject), core.database.read() as tx:
            policy.require(tx, subject, Permission.AUDIT, now)
            moment = _moment(tx, when, size, now)
        objects = () if study_instance_uid is None else (ObjectRef("study", study_instance_uid),)
        detail = {"what": "replay", "size": moment.size, "at": moment.at.isoformat(), "of": (who or "")[:64]}
        with core.database.begin() as tx:
            core.ledger.record(tx, Event(Kind.AUDIT_READ, subject=subject, objects=objects, detail=detail), at=now)
        with core.database.read() as tx:
            access = replay_access.access_at(core, tx, moment)
            person = None if who is None else _person(access, who)
            catalog = replay_catalog.catalog_at(core, tx, moment, study_instance_uid=study_instance_uid)
            answer: Row = {"at": moment.at.isoformat(), "size": moment.size, "notes": [*access.notes, *catalog.notes]}
            with scratch() as then:
                catalog.insert(then, tx)
                replay_access.insert(then, access, tx)
                if person is not None:
                    answer |= _of_person(then, person, access, moment.at)
                elif study_instance_uid is not None:
                    answer |= _of_study(then, study_instance_uid, access, catalog, moment.at)
                else:
                    answer |= _of_all(then, access, catalog, moment.at)
        if any(row["need_context"] for row in access.grants.values()):
            answer["notes"].append("grants that ask for a context, such as the clinic's network, are told apart: only_in_context")
        return answer


def _moment(tx: sa.Connection, when: datetime | None, size: int | None, now: datetime) -> Moment:
    there = nodes.size(tx)
    if size is not None:
        if not 0 < size <= there:
            message = f"the log never had that size; it has {there} events"
            raise InvalidRequest(message)
        at = tx.execute(sa.select(audit_event.c.at).where(audit_event.c.n == size - 1)).scalar()
        if at is None:
            message = "the event that made the log so long is not there any more"
            raise InvalidRequest(message, remedy="name another size, or an instant")
        # An event may be dated before one that was written earlier: by size, order alone counts.
        latest = tx.execute(sa.select(sa.func.max(audit_event.c.at)).where(audit_event.c.n < size)).scalar_one()
        return Moment(max(at, latest), size)
    assert when is not None
    if when > now:
        message = "that has not been yet"
        raise InvalidRequest(message, remedy="name an instant of the past")
    return Moment(when, there)


def _person(access: Access, who: str) -> Person:
    word = who.strip()
    for one in access.people.values():
        if word in (one.name, str(one.id)) and one.kind != "group":
            return one
    message = "there was no such user, service or peer then"
    raise NotFound(message, remedy="name one by the name it had, or by its number; 'archive ledger replay --at …' alone lists them")


def _asks(one: Person, *, context: int = 0) -> Subject:
    return Subject(one.id, one.name, "device" if one.kind == "device" else "user", "internal", context=context)


def _visible(then: sa.Connection, subject: Subject, bit: Permission, at: datetime) -> set[int]:
    scope = scope_of(subject, bit, at)
    return set(scope.run(then, sa.select(_ST.id).where(scope.study(study))).scalars())


def _may(then: sa.Connection, one: Person, at: datetime, *, context: int = 0) -> dict[int, Permission]:
    """Return what somebody could do with each study they found."""
    subject = _asks(one, context=context)
    found = dict.fromkeys(_visible(then, subject, Permission.SEARCH, at), Permission.SEARCH)
    if found:
        for bit in OBJECT & ~Permission.SEARCH:
            for key in _visible(then, subject, bit, at) & found.keys():
                found[key] |= bit
    return found


def _of_person(then: sa.Connection, one: Person, access: Access, at: datetime) -> Row:
    may, wider = _may(then, one, at), _may(then, one, at, context=EVERY_CONTEXT)
    keys = sorted(wider)[:MOST]
    uids: dict[int, str] = {}
    for start in range(0, len(keys), 500):
        query = sa.select(_ST.id, _ST.study_instance_uid).where(_ST.id.in_(keys[start : start + 500]))
        uids |= {row.id: row.study_instance_uid for row in policy.run_as(then, _TOKEN, query)}
    groups = sorted(access.people[group].name for (who, group), (since, until) in access.members.items()
                    if who == one.id and since <= at < until and group in access.people)
    return {
        "subject": {"id": one.id, "name": one.name, "kind": one.kind, "enabled": one.enabled, "groups": groups},
        "count": len(may), "studies": [
            {"study_instance_uid": uids[key], "permissions": roles.names(may.get(key, wider[key])), "only_in_context": key not in may}
            for key in keys
        ],
        "tokens": [row for row in access.tokens.values() if row["owner"] == one.id],
    }


def _of_study(then: sa.Connection, uid: str, access: Access, catalog: Catalog, at: datetime) -> Row:
    people = []
    keys = {key: row for key, row in catalog.studies.items() if row["study_instance_uid"] == uid}
    for one in sorted(access.people.values(), key=lambda person: person.name):
        if one.kind == "group":
            continue
        may, wider = _may(then, one, at), _may(then, one, at, context=EVERY_CONTEXT)
        for key in sorted(keys.keys() & wider.keys()):
            parts = [number * 4 + 3 for number, part in catalog.series.items() if part.row["study_pk"] == key]
            scopes = [0, keys[key]["patient_pk"] * 4 + 1, key * 4 + 2, *parts]
            because = access_grants.reaching(then, one.id, keys[key]["datastore_id"], scopes, at=at)
            people.append({
                "id": one.id, "name": one.name, "kind": one.kind, "permissions": roles.names(may.get(key, wider[key])),
                "only_in_context": key not in may,
                "because": [
                    {"grant": row["id"], "role": row["role"], "level": row["level"], "reason": row["reason"]} for row in because
                    if row["effect"] == "allow" and row["state"] == "active"
                ],
            })
    live = sum(part.live for part in catalog.series.values() if part.row["study_pk"] in keys)
    return {"study_instance_uid": uid, "existed": live > 0, "instances": live, "people": people}


def _of_all(then: sa.Connection, access: Access, catalog: Catalog, at: datetime) -> Row:
    people = [
        {"id": one.id, "name": one.name, "kind": one.kind, "enabled": one.enabled,
         "studies": len(_visible(then, _asks(one), Permission.SEARCH, at))}
        for one in sorted(access.people.values(), key=lambda person: person.name) if one.kind != "group"
    ]
    live = {part.row["study_pk"] for part in catalog.series.values() if part.live}
    return {
        "people": people, "grants": sum(1 for row in access.grants.values() if row["not_before"] <= at < row["not_after"]),
        "studies_there": len(live), "instances": sum(part.live for part in catalog.series.values()),
    }
