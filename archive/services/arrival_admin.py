"""Rules on arrival as people manage them: added, switched, removed, tried on a stored study, applied to what is there already."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access import grants as access_grants
from archive.access import naming, policy, principals, roles
from archive.access.permissions import OBJECT, Permission
from archive.access.subject import Subject
from archive.db.tables import auto_rule, datastore, grants, principal, role, rule_grant, series, study
from archive.errors import InvalidRequest, NotFound
from archive.ledger.audit import Event, Kind, ObjectRef
from archive.services import arrival_rules, datastores, grant_events
from archive.services.arrival_rules import Match
from archive.services.arrival_terms import LEVELS, USUAL_S, Conditions
from archive.services.changes import Changes
from archive.services.core import Core

Row = dict[str, Any]
Rows = list[Row]
Keys = list[int]
P = Permission
AT_ONCE = 200
"""Series looked at in one transaction when a rule is applied to what is there."""

MOST_SHOWN = 1000
_TOKEN = policy.system("access")
_R = auto_rule.c


@dataclass(frozen=True, slots=True)
class NewRule:
    """A rule to add."""

    name: str
    to: str | int
    role: str
    conditions: Conditions
    level: str = "study"
    lifetime_s: int = USUAL_S
    renew: bool = False
    priority: int = 0
    datastore: str = datastores.DEFAULT


class ArrivalRules(Changes):
    """What `archive rule` and /api/rules do; changing asks for role-manage."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        super().__init__(core.database, core.ledger, core.clock, read_only=core.read_only)
        self._core = core

    def add(self, subject: Subject, new: NewRule) -> Row:
        """Add a rule; it counts for what arrives from now on.

        Raises:
            Forbidden: also for a rule that gives to oneself or to a group one is in.
            NotFound, InvalidRequest.
        """
        name = principals.check_name(new.name)
        new.conditions.check()
        if new.level not in LEVELS:
            message = "a rule gives grants on the patient, the study or the series"
            raise InvalidRequest(message)
        if not -1000 <= new.priority <= 1000:
            message = "priority is a number from -1000 to 1000"
            raise InvalidRequest(message)

        def work(tx: sa.Connection, at: datetime) -> Row:
            who, what, place = principals.find(tx, new.to), roles.find(tx, new.role), datastores.find(tx, new.datastore)
            access_grants.refuse_self(tx, subject, who["id"])
            if not Permission(what["permissions"]) & OBJECT:
                message = f"the role {what['name']} holds no permission on images, so the rule would give nothing"
                raise InvalidRequest(message, remedy="name another ('archive role list')")
            if naming.alike(tx, _R.name, name):
                message = "there is a rule of that name"
                raise InvalidRequest(message, remedy="'archive rule list' shows it")
            made = tx.execute(sa.insert(auto_rule).values(
                name=name, datastore_id=place.id, priority=new.priority, conditions=new.conditions.kept(), subject_id=who["id"],
                role_id=what["id"], level=new.level, lifetime_s=new.lifetime_s, renew=new.renew, enabled=True,
                created_by=subject.principal_id, created_at=at,
            ))
            assert made.inserted_primary_key is not None
            key = int(made.inserted_primary_key[0])
            self._record(
                tx, Kind.RULE_CHANGED, subject, at, what="added", rule=key, name=name, datastore=place.name, priority=new.priority,
                conditions=new.conditions.kept(), subject_id=who["id"], to=who["name"], role=what["name"], level=new.level,
                lifetime_s=new.lifetime_s, renew=new.renew,
            )
            return _shown(tx, at, _R.id == key)[0]

        return self._change(subject, P.ROLE_MANAGE, work, alone=True)

    def list(self, subject: Subject) -> Rows:
        """Return every rule in the order they are asked, with how many of its grants count.

        Raises:
            Forbidden.
        """
        return self._read(subject, P.ROLE_MANAGE | P.AUDIT, _shown)

    def switch(self, subject: Subject, ref: str | int, *, enabled: bool) -> Row:
        """Let a rule count or not; its grants stay as they are.

        Raises:
            Forbidden, NotFound.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            row = _find(tx, ref)
            if enabled:
                access_grants.refuse_self(tx, subject, row.subject_id)
            if row.enabled != enabled:
                tx.execute(sa.update(auto_rule).where(_R.id == row.id).values(enabled=enabled))
                self._record(tx, Kind.RULE_CHANGED, subject, at, what="enabled" if enabled else "disabled", rule=row.id, name=row.name)
            return _shown(tx, at, _R.id == row.id)[0]

        return self._change(subject, P.ROLE_MANAGE, work)

    def remove(self, subject: Subject, ref: str | int, *, keep_grants: bool = False) -> Row:
        """Take a rule away and end what it gave, all at once; with `keep_grants` that goes on to its end.

        Raises:
            Forbidden, NotFound.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            row = _find(tx, ref)
            values = {"removed_at": at, "enabled": False, "name": f"{row.name}/{row.id}"}
            tx.execute(sa.update(auto_rule).where(_R.id == row.id).values(**values))
            self._record(tx, Kind.RULE_CHANGED, subject, at, what="removed", rule=row.id, name=row.name, kept=keep_grants)
            ended = [] if keep_grants else _counting(tx, row.id, at)
            for number in ended:
                grant_events.end(self._ledger, tx, subject, at, number, because=f"rule {row.name} removed")
            return {"id": row.id, "name": row.name, "revoked": len(ended), "kept": len(_counting(tx, row.id, at))}

        return self._change(subject, P.ROLE_MANAGE, work, alone=True)

    def test(self, subject: Subject, study_instance_uid: str, *, datastore_name: str = datastores.DEFAULT) -> Rows:
        """Return which rules are about the series of a stored study, and whether each would give a grant now.

        Raises:
            Forbidden, NotFound.
        """

        def work(tx: sa.Connection, at: datetime) -> Rows:
            place = datastores.find(tx, datastore_name)
            query = sa.select(series.c.id).join(study, study.c.id == series.c.study_pk).where(
                study.c.datastore_id == place.id, study.c.study_instance_uid == study_instance_uid.strip(),
            ).order_by(series.c.id)
            keys = list(policy.run_as(tx, _TOKEN, query).scalars())
            if not keys:
                message = "there is no such study"
                raise NotFound(message, remedy="check the UID and the datastore")
            return _told(tx, _matches(tx, keys, arrival_rules.of_datastore(tx, place.id)), at)

        found = self._read(subject, P.ROLE_MANAGE | P.AUDIT, work)
        event = Event(Kind.AUDIT_READ, subject=subject, objects=(ObjectRef("study", study_instance_uid.strip()),), detail={"what": "rules"})
        with self._database.begin() as tx:
            self._ledger.record(tx, event, at=self._clock())
        return found

    def apply(
        self, subject: Subject, *, since: datetime, rule: str | int | None = None, datastore_name: str = datastores.DEFAULT,
        confirm: bool = False,
    ) -> Row:
        """Give what rules say of series that arrived since then; without `confirm` only tell what that would be.

        Raises:
            Forbidden, NotFound.
        """
        told: Rows = []
        count, last = 0, 0
        while True:
            def work(tx: sa.Connection, at: datetime, last: int = last) -> tuple[Keys, Rows, int]:
                policy.require(tx, subject, P.ROLE_MANAGE, at)
                place = datastores.find(tx, datastore_name)
                rules = arrival_rules.of_datastore(tx, place.id)
                if rule is not None:
                    rules = [one for one in rules if one.id == _find(tx, rule).id]
                keys = _arrived_since(tx, place.id, since, last)
                due = [row for row in _told(tx, _matches(tx, keys, rules), at) if row["due"]]
                if confirm:
                    by_key = {(one.rule.id, one.scope_key): one for one in _matches(tx, keys, rules)}
                    for row in due:
                        row["grant"] = arrival_rules.give(self._core, tx, by_key[row["rule_id"], row.pop("scope_key")], at=at)
                return keys, due, len(due)

            keys, due, more = (
                self._change(subject, P.ROLE_MANAGE, work, alone=True) if confirm else self._read(subject, P.ROLE_MANAGE, work)
            )
            count += more
            told += due[: MOST_SHOWN - len(told)]
            if not keys:
                break
            last = keys[-1]
        with self._database.begin() as tx:
            detail = {"what": "applied" if confirm else "preview", "since": since.isoformat(), "grants": count, "name": str(rule or "")}
            kind = Kind.RULE_CHANGED if confirm else Kind.AUDIT_READ
            self._ledger.record(tx, Event(kind, subject=subject, detail=detail), at=self._clock())
        for row in told:
            row.pop("scope_key", None)
        return {"done": confirm, "grants": count, "shown": told}


def _find(tx: sa.Connection, ref: str | int) -> Any:
    wanted = _R.id == int(ref) if str(ref).isdecimal() and len(str(ref)) < 19 else _R.name == str(ref).strip()
    row = tx.execute(sa.select(auto_rule).where(wanted, _R.removed_at.is_(None))).first()
    if row is None:
        message = "there is no such rule"
        raise NotFound(message, remedy="'archive rule list' names them")
    return row


def _counting(tx: sa.Connection, rule_id: int, at: datetime) -> list[int]:
    """Return the grants of a rule that count now."""
    query = sa.select(grants.c.id).join(rule_grant, rule_grant.c.grant_id == grants.c.id).where(
        rule_grant.c.rule_id == rule_id, grants.c.revoked_at.is_(None), grants.c.not_after > at,
    )
    return list(tx.execute(query.order_by(grants.c.id)).scalars())


def _shown(tx: sa.Connection, at: datetime, *which: sa.ColumnElement[bool]) -> Rows:
    query = (
        sa.select(auto_rule, principal.c.name.label("to"), role.c.name.label("role"), datastore.c.name.label("datastore"))
        .join(principal, principal.c.id == _R.subject_id).join(role, role.c.id == _R.role_id)
        .join(datastore, datastore.c.id == _R.datastore_id)
        .where(_R.removed_at.is_(None), *which).order_by(_R.priority.desc(), _R.id)
    )
    return [
        {
            "id": row.id, "name": row.name, "to": row.to, "role": row.role, "conditions": row.conditions, "level": row.level,
            "days": round(row.lifetime_s / 86400, 2), "renew": row.renew, "priority": row.priority, "datastore": row.datastore,
            "enabled": row.enabled, "grants": len(_counting(tx, row.id, at)), "created_by": row.created_by, "created_at": row.created_at,
        }
        for row in tx.execute(query)
    ]


def _arrived_since(tx: sa.Connection, datastore_id: int, since: datetime, last: int) -> list[int]:
    query = sa.select(series.c.id).where(
        series.c.datastore_id == datastore_id, series.c.created_at >= since, series.c.id > last, series.c.n_instances > 0,
    )
    return list(policy.run_as(tx, _TOKEN, query.order_by(series.c.id).limit(AT_ONCE)).scalars())


def _matches(tx: sa.Connection, keys: list[int], rules: list[Any]) -> Iterator[Match]:
    """Yield each rule and target of these series once."""
    seen: set[tuple[int, int]] = set()
    for key in keys:
        for match in arrival_rules.matching(tx, key, rules):
            if (match.rule.id, match.scope_key) not in seen:
                seen.add((match.rule.id, match.scope_key))
                yield match


def _told(tx: sa.Connection, matches: Iterator[Match], at: datetime) -> Rows:
    return [
        {
            "rule": one.rule.name, "rule_id": one.rule.id, "to": one.rule.subject, "role": one.rule.role, "level": one.level,
            "object": one.value, "due": arrival_rules.wanted(tx, one, at)[0], "scope_key": one.scope_key,
        }
        for one in matches
    ]
