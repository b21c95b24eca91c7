"""Rules on arrival: a new series gives the grants that rules say, in the transaction that takes it in.

What made it arrive is told only then, so whoever a rule is for sees it at once. Each rule gives one grant for each target; rules are read
from the table each time a series is new, and never otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import bindparam

from archive.access import grants as access_grants
from archive.access import policy
from archive.access.grants import Terms
from archive.access.permissions import OBJECT
from archive.db.prepared import Prepared
from archive.db.tables import (
    auto_rule,
    datastore,
    grants,
    instance,
    membership,
    patient,
    principal,
    role,
    rule_grant,
    series,
    statement,
    study,
)
from archive.ledger.audit import Event, Kind, ObjectRef
from archive.services.arrival_terms import Conditions, Facts, calling_ae_of
from archive.services.core import Core

if TYPE_CHECKING:
    from archive.index.catalog import Inserted

KIND = "rule"
RENEWED_AT_LEAST = timedelta(hours=1)
"""A grant is not renewed to end so little later: each series of a study would make another."""

_TOKEN = policy.system("access")
_R, _ST, _SE, _PT = auto_rule.c, study.c, series.c, patient.c
_RULES = Prepared(
    sa.select(
        _R.id, _R.name, _R.datastore_id, _R.conditions, _R.subject_id, _R.role_id, _R.level, _R.lifetime_s, _R.renew, _R.created_by,
        role.c.name.label("role"), role.c.permissions, principal.c.name.label("subject"), datastore.c.name.label("datastore"),
    )
    .join(role, role.c.id == _R.role_id).join(principal, principal.c.id == _R.subject_id).join(datastore, datastore.c.id == _R.datastore_id)
    .where(
        _R.datastore_id == bindparam("datastore"), _R.enabled == sa.true(), _R.removed_at.is_(None), principal.c.removed_at.is_(None),
        role.c.removed_at.is_(None),
        role.c.permissions.bitwise_and(int(OBJECT)) != 0,
    )
    .order_by(_R.priority.desc(), _R.id)
)
_PLACE = Prepared(
    sa.select(
        _SE.id, _SE.datastore_id, _SE.study_pk, _SE.series_instance_uid, _SE.modality, _SE.attributes, _ST.study_instance_uid,
        _ST.attributes.label("of_study"), _ST.patient_pk, _PT.synthetic, _PT.patient_id,
    )
    .join(study, _ST.id == _SE.study_pk).join(patient, _PT.id == _ST.patient_pk).where(_SE.id == bindparam("series"))
)
_PARTS = Prepared(sa.select(_SE.id).where(_SE.study_pk == bindparam("study")).order_by(_SE.id))
_LAST = Prepared(
    sa.select(grants.c.id, grants.c.not_after, grants.c.revoked_at, grants.c.revoked_by)
    .join(rule_grant, rule_grant.c.grant_id == grants.c.id)
    .where(grants.c.scope_key == bindparam("scope"), rule_grant.c.rule_id == bindparam("rule"))
    .order_by(grants.c.id.desc()).limit(1)
)
_KEEP = Prepared(sa.insert(rule_grant), keys=("grant_id", "rule_id"))
_FIRST_STATEMENT = Prepared(
    sa.select(statement.c.envelope).join(instance, instance.c.object_id == statement.c.object_id)
    .where(instance.c.series_pk == bindparam("series")).order_by(instance.c.id).limit(1)
)


@dataclass(frozen=True, slots=True)
class Match:
    """A rule that is about a series, and the target its grant is to cover."""

    rule: Any
    level: str
    scope_key: int
    value: str  # PatientID or UID, as events name it


def arrived(core: Core, tx: sa.Connection, inserted: Inserted, *, datastore_id: int, envelope: bytes, at: datetime) -> int:
    """Give what rules say of an instance just taken in, when its series is new or its study found its patient; return how many."""
    if not inserted.series_new and not inserted.patient_moved:
        return 0
    rules = _RULES.all(tx, {"datastore": datastore_id})
    if not rules:
        return 0
    # Of a study that found its patient each series may be what a rule on the patient waits for.
    found = [inserted.series_pk]
    if inserted.patient_moved:
        found += [row.id for row in _PARTS.all(tx, {"study": inserted.study_pk}, _TOKEN) if row.id != inserted.series_pk]
    return sum(
        1 for key in found
        for match in matching(tx, key, rules, envelope=envelope if key == inserted.series_pk else None) if give(core, tx, match, at=at)
    )


def of_datastore(tx: sa.Connection, datastore_id: int) -> list[Any]:
    """Return the rules that count, in the order they are asked."""
    return _RULES.all(tx, {"datastore": datastore_id})


def matching(tx: sa.Connection, series_pk: int, rules: list[Any], *, envelope: bytes | None = None) -> Iterator[Match]:
    """Yield the rules that are about a series; of several that would give the same to the same, the first alone."""
    row = _PLACE.first(tx, {"series": series_pk}, _TOKEN)
    if row is None:
        return
    facts = Facts({**row.of_study, **row.attributes}, lambda: calling_ae_of(envelope or _FIRST_STATEMENT.scalar(
        tx, {"series": series_pk}, _TOKEN
    )))
    given: set[tuple[int, int, int]] = set()
    for rule in rules:
        if not Conditions.of(rule.conditions).hold(facts):
            continue
        level, key, value = _target(row, rule.level)
        if (rule.subject_id, rule.role_id, key) not in given:
            given.add((rule.subject_id, rule.role_id, key))
            yield Match(rule, level, key, value)


def _target(row: Any, level: str) -> tuple[str, int, str]:
    if level == "patient" and not row.synthetic:
        return "patient", row.patient_pk * 4 + 1, row.patient_id
    if level == "series":
        return "series", row.id * 4 + 3, row.series_instance_uid
    return "study", row.study_pk * 4 + 2, row.study_instance_uid  # who a nameless study's patient is, is not known: its images alone


def wanted(tx: sa.Connection, match: Match, at: datetime) -> tuple[bool, int | None]:
    """Return whether a match gives a grant now, and the one it takes the place of.

    What somebody revoked is not given again. What a rebuild ended is.
    """
    last = _LAST.first(tx, {"scope": match.scope_key, "rule": match.rule.id})
    if last is None:
        return True, None
    if last.revoked_at is not None:
        return last.revoked_by is None, None
    if not match.rule.renew or at + timedelta(seconds=match.rule.lifetime_s) - last.not_after < RENEWED_AT_LEAST:
        return False, None
    return True, last.id if last.not_after > at else None


def give(core: Core, tx: sa.Connection, match: Match, *, at: datetime) -> int | None:
    """Give the grant of a match unless it is there, with its event, and return its id."""
    due, earlier = wanted(tx, match, at)
    if not due:
        return None
    rule = match.rule
    if earlier is not None:
        access_grants.revoke(tx, earlier, by=rule.created_by or 0, at=at)
        _record(core, tx, Kind.REVOKED, match, earlier, at, at, because="renewed")
    until = at + timedelta(seconds=rule.lifetime_s)
    terms = Terms(not_before=at, not_after=until, reason=f"rule {rule.name}")
    row = {"id": rule.role_id, "name": rule.role, "permissions": rule.permissions}
    key = access_grants.give(
        tx, to=rule.subject_id, role_row=row, datastore_id=rule.datastore_id, scope_key=match.scope_key, terms=terms,
        by=rule.created_by or 0, at=at, kind=KIND,
    )
    _KEEP.run(tx, {"grant_id": key, "rule_id": rule.id})
    _record(core, tx, Kind.GRANTED, match, key, at, until)
    return key


def _record(
    core: Core, tx: sa.Connection, kind: Kind, match: Match, number: int, at: datetime, until: datetime, *, because: str = ""
) -> None:
    rule = match.rule
    detail = {
        "id": number, "to": rule.subject, "subject": rule.subject_id, "effect": "allow", "role": rule.role, "level": match.level,
        "datastore": rule.datastore, "from": at.isoformat(), "until": until.isoformat(), "modality": "", "reason": f"rule {rule.name}",
        "because": because, "kind": KIND, "rule": rule.id,
    }
    objects = (ObjectRef(match.level, match.value),)  # type: ignore[arg-type] # one of the three words
    core.ledger.record(tx, Event(kind, objects=objects, detail=detail), at=at)


def reach(tx: sa.Connection, principal_id: int) -> bool:
    """Whether a rule gives to a principal, or to a group it is in now or later: what it will see is no less than what it sees."""
    groups = sa.select(membership.c.group_id).where(membership.c.principal_id == principal_id)
    live = sa.and_(_R.enabled == sa.true(), _R.removed_at.is_(None))
    query = sa.select(_R.id).where(live, sa.or_(_R.subject_id == principal_id, _R.subject_id.in_(groups)))
    return tx.execute(query.limit(1)).first() is not None


def rule_of(tx: sa.Connection, ids: list[int]) -> Mapping[int, str]:
    """Return the names of the rules that gave grants, by grant."""
    query = sa.select(rule_grant.c.grant_id, _R.name).join(auto_rule, _R.id == rule_grant.c.rule_id)
    return {row.grant_id: row.name for row in tx.execute(query.where(rule_grant.c.grant_id.in_(ids)))}
