"""What ledger and records say the tables should hold, besides the instances: who was hidden, what was granted, whose a study is.

An edit of the index behind the archive's back that no statement contradicts is found here: an instance brought back to sight, a study
given to another patient, a grant slipped in, a role widened, the hash of a segment renewed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from archive.access import grants as access_grants
from archive.access import policy, roles
from archive.access.permissions import BUILTIN_ROLES, Permission
from archive.db.tables import audit_event, grants, held, instance, ledger_leaf, patient, principal, role, segment, series, statement, study
from archive.errors import ArchiveError
from archive.ledger.audit import Kind
from archive.ledger.log import AuditFilter, AuditRow
from archive.services.core import Core
from archive.services.passed_on import passed_on
from archive.services.state_events import decode_change

_HIDDEN = {"rejected": True, "restored": False}
_DECIDED = frozenset({"accepted", "held-rejected"})
_OUT = frozenset({True, "held-rejected"})
_TOKEN = policy.system("verify")
_PAGE = 1000
Found = tuple[str, str, str]
"""A code of docs/format.md, what does not hold, and the SOP Instance UID it is about or nothing."""


@dataclass(frozen=True, slots=True)
class Said:
    """What the last change says of each object that ever changed; small beside the archive."""

    hidden: dict[bytes, bool]
    decided: dict[bytes, str]  # "accepted" or "held-rejected"
    since: dict[bytes, tuple[datetime, int]] = field(default_factory=dict)  # when and by which event it was last changed
    purged: dict[bytes, int] = field(default_factory=dict)  # by which event
    unjust: list[int] = field(default_factory=list)  # events that took away for good what had not been rejected
    # Of what studies, by uid of the datastore and UID, say since what named them was purged.
    patients: dict[tuple[str, str], list[tuple[str, str]]] = field(default_factory=dict)

    @property
    def joined(self) -> frozenset[bytes]:
        """The objects that data managers let in, whatever they say of patient and study."""
        return frozenset(one for one, decision in self.decided.items() if decision == "accepted")

    def purge(self, change: dict[str, Any], objects: list[bytes], leaf: int) -> None:
        """Take in a purge."""
        states = {one: self.hidden.pop(one, self.decided.pop(one, None)) for one in objects}
        gone_along = {bytes.fromhex(one) for one in change.get("replaced", ())} | self.purged.keys()
        if any(state not in _OUT for one, state in states.items() if one not in gone_along):
            self.unjust.append(leaf)
        self.purged.update(dict.fromkeys(objects, leaf))
        if "patient" in change:
            where, issuer, patient_id = change["patient"]
            self.patients.setdefault((where, change["study"]), []).append((issuer, patient_id))


def said(tx: sa.Connection) -> Said:
    """Read every change of state there is a statement of."""
    found = Said({}, {})
    changes = (
        sa.select(statement.c.leaf, statement.c.envelope, ledger_leaf.c.data)
        .join(ledger_leaf, ledger_leaf.c.n == statement.c.leaf)
        .where(statement.c.leaf > sa.bindparam("last")).order_by(statement.c.leaf).limit(_PAGE)
    )
    last = -1
    while rows := tx.execute(changes, {"last": last}).all():
        last = rows[-1].leaf
        for row in rows:
            if _kind(row.data) not in ("rejected", "restored", "reconciled", "purged"):
                continue
            try:
                change = decode_change(bytes(row.envelope))
                objects = [bytes.fromhex(one) for one in change["objects"]]
                at = datetime.fromisoformat(change["at"])
            except (msgspec.DecodeError, KeyError, ValueError, TypeError):
                continue  # not what its leaf commits to: the ledger's own check has told
            if change["change"] == "purged":
                found.purge(change, objects, row.leaf)
                continue
            found.since.update(dict.fromkeys(objects, (at, row.leaf)))
            if change["change"] in _HIDDEN:
                found.hidden.update(dict.fromkeys(objects, _HIDDEN[change["change"]]))
            elif change["change"] in _DECIDED:
                found.decided.update(dict.fromkeys(objects, change["change"]))
                for one in objects:
                    found.hidden.pop(one, None)  # it took another's place, in sight
    return found


def _kind(data: bytes | None) -> str:
    try:
        return str(msgspec.json.decode(bytes(data or b"{}"), type=dict[str, Any]).get("k"))
    except msgspec.DecodeError:
        return ""


def hidden(tx: sa.Connection) -> Iterator[Found]:
    """Yield instances out of sight, in it, waiting or let in against what the last change of theirs in the ledger says."""
    told = said(tx)
    shown = (instance.c.object_id, instance.c.sop_instance_uid, instance.c.rejected_at)
    touched = [one for one, state in told.hidden.items() if state]
    for start in range(0, len(touched), _PAGE):
        query = sa.select(*shown).where(instance.c.object_id.in_(touched[start:start + _PAGE]), instance.c.rejected_at.is_(None))
        for row in policy.run_as(tx, _TOKEN, query):
            yield "V12", "a rejected instance was brought back without an event", row.sop_instance_uid
    for row in policy.run_as(tx, _TOKEN, sa.select(*shown).where(instance.c.rejected_at.is_not(None))):
        if not told.hidden.get(bytes(row.object_id)):
            yield "V12", "an instance was taken out of sight without an event", row.sop_instance_uid
    yield from _waiting(tx, told)


def _waiting(tx: sa.Connection, told: Said) -> Iterator[Found]:
    """Yield what waits, or was decided, otherwise than its arrival and the decisions say."""
    names = ("id", "datastore_id", "object_id", "sop_instance_uid", "kind", "state")
    query = sa.select(*[held.c[name] for name in names], ledger_leaf.c.data).outerjoin(ledger_leaf, ledger_leaf.c.n == held.c.leaf)
    there: set[bytes] = set()
    for row in policy.run_as(tx, _TOKEN, query.order_by(held.c.id)):
        key, arrived = bytes(row.object_id), _kind(row.data)
        there.add(key)
        # One that was stored and lies here gave its place to another; that is decided by the other's acceptance.
        state = {"accepted": "accepted", "held-rejected": "rejected"}.get(
            told.decided.get(key, ""), "rejected" if arrived == "stored" else "open"
        )
        kinds = {"held": ("held", "conflict"), "conflict": ("conflict",), "stored": ("conflict",), "quarantined": ("quarantine",)}
        if state == "accepted" and _replaced(tx, row, told, besides=key):
            state = "rejected"  # it had the place until another was let in to it
        if row.state != state:
            yield "V12", f"an instance that waits is {row.state}, and no event says so", row.sop_instance_uid
        if row.kind not in kinds.get(arrived, ()):
            yield "V12", f"an instance waits as {row.kind}, and its event says otherwise", row.sop_instance_uid
        if arrived == "stored" and not _replaced(tx, row, told):
            yield "V12", "a stored instance was put among those that wait", row.sop_instance_uid
    for key in told.decided.keys() - there:
        yield "V12", f"what was decided about object {key.hex()} is gone", ""
    entered = sa.select(instance.c.object_id, instance.c.sop_instance_uid).join(ledger_leaf, ledger_leaf.c.n == instance.c.leaf)
    # A store's leaf begins after "i" and "k" in canonical order; what is not `stored` came in by a decision.
    for row in policy.run_as(tx, _TOKEN, entered.where(sa.not_(_is_stored(tx)))):
        if told.decided.get(bytes(row.object_id)) != "accepted":
            yield "V12", "an instance that waited was let in without an event", row.sop_instance_uid


def _is_stored(tx: sa.Connection) -> sa.ColumnElement[bool]:
    word = b'"k":"stored"'
    if tx.dialect.name == "postgresql":
        return ledger_leaf.c.data.contains(word)  # position(a, b) is no call there
    return sa.func.instr(ledger_leaf.c.data, sa.literal(word)) > 0


def _replaced(tx: sa.Connection, row: Any, told: Said, *, besides: bytes = b"") -> bool:
    """Whether an instance that was let in has that UID, another than `besides`."""
    twin = sa.select(instance.c.object_id).where(
        instance.c.datastore_id == row.datastore_id, instance.c.sop_instance_uid == row.sop_instance_uid, instance.c.object_id != besides
    )
    return any(bytes(one) in told.joined for one in policy.run_as(tx, _TOKEN, twin).scalars())


def shape(tx: sa.Connection) -> Iterator[Found]:
    """Yield instances whose series, study, patient or statement is gone, counts that are not those of the rows, and restrictions."""
    whole = (
        instance.join(series, series.c.id == instance.c.series_pk).join(study, study.c.id == series.c.study_pk)
        .join(patient, patient.c.id == study.c.patient_pk)
    )
    numbers = [
        policy.run_as(tx, _TOKEN, sa.select(sa.func.count()).select_from(one)).scalar_one() for one in (instance, whole)
    ]
    if numbers[0] != numbers[1]:
        yield "V10", f"{numbers[0] - numbers[1]} instances belong to no series, study or patient", ""
    live = instance.c.rejected_at.is_(None)
    of_series = sa.select(sa.func.count()).where(instance.c.series_pk == series.c.id, live).correlate(series).scalar_subquery()
    wrong = sa.select(sa.func.count()).select_from(series).where(series.c.n_instances != of_series)
    one = series.alias("of_it")
    of_study = sa.select(sa.func.coalesce(sa.func.sum(one.c.n_instances), 0)).where(one.c.study_pk == study.c.id).scalar_subquery()
    with_any = sa.select(sa.func.count()).where(one.c.study_pk == study.c.id, one.c.n_instances > 0).scalar_subquery()
    other = sa.select(sa.func.count()).select_from(study).where((study.c.n_instances != of_study) | (study.c.n_series != with_any))
    for query, level in ((wrong, "series"), (other, "studies")):
        count = policy.run_as(tx, _TOKEN, query).scalar_one()
        if count:
            yield "V10", f"{count} {level} count other instances than they hold", ""
    elsewhere = sa.select(sa.func.count()).select_from(whole).where(
        (instance.c.datastore_id != study.c.datastore_id) | (series.c.datastore_id != study.c.datastore_id)
        | (patient.c.datastore_id != study.c.datastore_id)
    )
    if policy.run_as(tx, _TOKEN, elsewhere).scalar_one():
        yield "V10", "an instance, its series, study and patient are not of one datastore", ""
    restricted = sa.select(series.c.series_instance_uid).where(series.c.restricted | series.c.department_id.is_not(None))
    if policy.run_as(tx, _TOKEN, restricted).first() is not None:
        yield "V10", "a series is restricted, or of a department, and nothing made it so", ""


def granted(core: Core, tx: sa.Connection) -> Iterator[Found]:
    """Yield grants that no event gave, that say otherwise than theirs, or that came back, and roles that were changed."""
    given = {row["id"]: row for row in details(core, tx, Kind.GRANTED) if "id" in row}
    revoked = {row["id"] for row in details(core, tx, Kind.REVOKED)}
    bits = {row.id: row.permissions for row in tx.execute(sa.select(role.c.id, role.c.permissions))}
    names = ("id", "role_id", "permissions", "subject_id", "hard", "kind", "depth_left", "parent_id")
    raw = {row.id: row for row in tx.execute(sa.select(*[grants.c[name] for name in names], principal.c.removed_at).join(
        principal, principal.c.id == grants.c.subject_id
    ))}
    for number in given.keys() - raw.keys():
        yield "V12", f"grant {number} is gone", ""
    shown = access_grants.listed(tx, at=core.clock())
    for number in raw.keys() - {row["id"] for row in shown}:
        yield "V12", f"grant {number} is in no datastore", ""
    for row in shown:
        number, event = row["id"], given.get(row["id"])
        if event is None:
            yield "V12", f"grant {number} was given by no event", ""
            continue
        if number in revoked and row["revoked_at"] is None:
            yield "V12", f"grant {number} counts again, although it was revoked", ""
        elif number not in revoked and row["revoked_at"] is not None and raw[number].removed_at is None:
            yield "V12", f"grant {number} was ended by no event", ""
        level = row["level"]
        told = (
            row["effect"], row["role"] or "", row["datastore"], row["from"].isoformat(), row["until"].isoformat(),
            row["conditions"].get("modality", ""),
        )
        said = tuple(event.get(name) for name in ("effect", "role", "datastore", "from", "until", "modality"))
        # A study that finds its patient takes a grant on the nameless one along, as a grant on itself.
        moved = event.get("level") == "patient" and level == "study"
        elsewhere = level != event.get("level") or (level != "everything" and [level, row["object"]] not in event["objects"])
        conditions = {name: value for name, value in row["conditions"].items() if name != "modality"}
        others = conditions != event.get("conditions", {}) or row["need_context"] != event.get("need_context", 0)
        if told != said or (elsewhere and not moved) or others or event.get("subject") not in (None, raw[number].subject_id):
            yield "V12", f"grant {number} is not the one that was given", ""
        sort = (event.get("kind", "standing"), event.get("depth", 0), event.get("parent", 0))
        if (raw[number].hard, raw[number].kind, raw[number].depth_left, raw[number].parent_id or 0) != (False, *sort):
            yield "V12", f"grant {number} is of another kind than was given", ""
        chosen = roles.names(Permission(raw[number].permissions)) if raw[number].role_id is None else None
        if chosen != event.get("permissions") or (chosen is None and raw[number].permissions != bits.get(raw[number].role_id)):
            yield "V12", f"grant {number} covers other permissions than its role", ""
    yield from passed_on(tx, given)
    yield from _roles(core, tx)


def _roles(core: Core, tx: sa.Connection) -> Iterator[Found]:
    asked: dict[str, dict[str, Any]] = {}
    for event in details(core, tx, Kind.ROLE_CHANGED):
        if event.get("what") == "sign-in":
            asked.setdefault(event["name"], event)  # the last one comes first
    for one in tx.execute(sa.select(role.c.name, role.c.mfa_level, role.c.idle_s, role.c.max_session_s)):
        told = asked.get(one.name, {})
        if (one.mfa_level, one.idle_s, one.max_session_s) != (
            int(told.get("second_factor", False)), told.get("idle_s", 0), told.get("max_session_s", 0)
        ):
            yield "V12", f"the role {one.name} asks something else of sign-ins than was set", ""
    there: dict[str, set[str] | None] = {}  # after the last event about it, which comes first; None: removed
    for event in details(core, tx, Kind.ROLE_CHANGED):
        if event.get("what") in ("added", "changed", "removed"):
            there.setdefault(event["name"], set(event["permissions"]) if event["what"] != "removed" else None)
    for row in tx.execute(sa.select(role)):
        held: set[str] | None = set(roles.names(Permission(row.permissions)))
        if row.name in BUILTIN_ROLES:
            said: set[str] | None = set(roles.names(BUILTIN_ROLES[row.name]))
        else:
            said = there.get(row.name, set())
        if (held if row.removed_at is None else None) != said:
            yield "V12", f"the role {row.name} holds other permissions than it was given", ""


def closed(core: Core, tx: sa.Connection) -> Iterator[Found]:
    """Yield closed segments whose hash in the index is not the one that was recorded since it was first taken, or last lost a record."""
    said = hashes(core, tx)
    for row in tx.execute(sa.select(segment.c.name, segment.c.sha256)):
        known = said.get(row.name, set())
        if len(known) > 1 or (row.sha256 is None and known) or (row.sha256 is not None and known != {bytes(row.sha256).hex()}):
            yield "V03", f"the hash of segment {row.name} is not the one in the ledger", ""


def hashes(core: Core, tx: sa.Connection) -> dict[str, set[str]]:
    """Return what the ledger says the hash of each segment is: of one there are several only if somebody forged an event."""
    said: dict[str, set[str]] = {}
    holed: set[str] = set()  # what was said before a record was taken out counts no more
    for row in bodies(core, tx, AuditFilter(kinds=(Kind.SEGMENT_CLOSED, Kind.PURGED))):
        detail = {} if row.body is None else row.body["detail"]
        if row.kind == Kind.PURGED.label:
            holed.update(detail.get("segments", ()))
        elif detail and detail["segment"] not in holed:
            said.setdefault(detail["segment"], set()).add(detail["sha256"])
    return said


def details(core: Core, tx: sa.Connection, kind: Kind) -> Iterator[dict[str, Any]]:
    """Yield what events of a kind say, newest first; a body that was changed is told by the ledger's own check."""
    for row in bodies(core, tx, AuditFilter(kinds=(kind,))):
        if row.body is not None:
            yield {**row.body["detail"], "objects": [list(one) for one in row.body["objects"]]}


def bodies(core: Core, tx: sa.Connection, wanted: AuditFilter) -> Iterator[AuditRow]:
    """Yield the events that match, newest first, leaving out those whose body does not open."""
    before: int | None = None
    limit = _PAGE
    while True:
        try:
            rows = core.ledger.search(tx, replace(wanted, before=before, limit=limit))
        except ArchiveError:
            if limit > 1:
                limit = 1  # the next ones one by one: the ledger's own check tells which it was
                continue
            query = sa.select(sa.func.max(audit_event.c.n)).where(audit_event.c.kind.in_([kind.label for kind in wanted.kinds]))
            before = tx.execute(query if before is None else query.where(audit_event.c.n < before)).scalar_one()
            continue
        yield from rows
        if len(rows) < limit:
            return
        before = rows[-1].n
