"""What ledger and records say the tables should hold, besides the instances: who was hidden, what was granted, whose a study is.

An edit of the index behind the archive's back that no statement contradicts is found here: an instance brought back to sight, a study
given to another patient, a grant slipped in, a role widened, the hash of a segment renewed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import sqlalchemy as sa

from archive.access import grants as access_grants
from archive.access import policy, roles
from archive.access.permissions import BUILTIN_ROLES
from archive.db.tables import grants, instance, ledger_leaf, role, segment, statement
from archive.errors import ArchiveError
from archive.index import columns
from archive.index.identity import key_of
from archive.ledger.audit import Kind
from archive.ledger.log import AuditFilter, AuditRow
from archive.services.core import Core
from archive.services.records import RecordMeta
from archive.services.state_events import decode_change

_CHANGES = {"rejected": True, "restored": False, "accepted": None}  # hidden afterwards; None: it took another's place, or joined
_PAGE = 1000
Found = tuple[str, str, str]
"""A code of docs/format.md, what does not hold, and the SOP Instance UID it is about or nothing."""


def hidden(tx: sa.Connection) -> Iterator[Found]:
    """Yield instances that are out of sight, or in it, against what the last change of theirs in the ledger says."""
    said = _states(tx)
    shown = (instance.c.object_id, instance.c.sop_instance_uid, instance.c.rejected_at)
    touched = [one for one, state in said.items() if state is True]
    for start in range(0, len(touched), _PAGE):
        query = sa.select(*shown).where(instance.c.object_id.in_(touched[start:start + _PAGE]), instance.c.rejected_at.is_(None))
        for row in policy.run_as(tx, policy.system("verify"), query):
            yield "V12", "a rejected instance was brought back without an event", row.sop_instance_uid
    for row in policy.run_as(tx, policy.system("verify"), sa.select(*shown).where(instance.c.rejected_at.is_not(None))):
        if said.get(bytes(row.object_id), False) is False:
            yield "V12", "an instance was taken out of sight without an event", row.sop_instance_uid


def _states(tx: sa.Connection) -> dict[bytes, bool | None]:
    """Return what the last change says of each object that ever changed; small beside the archive."""
    said: dict[bytes, bool | None] = {}
    changes = (
        sa.select(statement.c.leaf, statement.c.envelope, ledger_leaf.c.data)
        .join(ledger_leaf, ledger_leaf.c.n == statement.c.leaf)
        .where(statement.c.leaf > sa.bindparam("last")).order_by(statement.c.leaf).limit(_PAGE)
    )
    last = -1
    while rows := tx.execute(changes, {"last": last}).all():
        last = rows[-1].leaf
        for row in rows:
            if _kind(row.data) not in ("rejected", "restored", "reconciled"):
                continue
            try:
                change = decode_change(bytes(row.envelope))
                objects = [bytes.fromhex(one) for one in change["objects"]]
            except (msgspec.DecodeError, KeyError, ValueError, TypeError):
                continue  # not what its leaf commits to: the ledger's own check has told
            if change["change"] in _CHANGES:
                said |= dict.fromkeys(objects, _CHANGES[change["change"]])
    return said


def _kind(data: bytes) -> str:
    try:
        return str(msgspec.json.decode(bytes(data), type=dict[str, Any]).get("k"))
    except msgspec.DecodeError:
        return ""


def joined(tx: sa.Connection) -> frozenset[bytes]:
    """Return the objects that data managers let in, whatever they say of patient and study."""
    return frozenset(one for one, state in _states(tx).items() if state is None)


class Agreement:
    """What decides who sees a series (patient, study date, modality), compared with what the sealed records say of it."""

    def __init__(self, joined: frozenset[bytes]) -> None:
        """`joined` may be in a study of another patient."""
        self._joined = joined
        self._said: dict[tuple[int, str, str], set[str]] = {}
        self._rows: dict[tuple[int, str, str], tuple[str, str]] = {}

    def add(self, row: Any, meta: RecordMeta) -> Iterator[Found]:
        """Take one record and its row; yield what does not hold of it alone."""
        series = columns.of_series(meta.scanned)
        place, study_uid, series_uid = row.datastore_id, meta.scanned.study_instance_uid, meta.scanned.series_instance_uid
        modality, date = (place, series_uid, "modality"), (place, study_uid, "study date")
        self._said.setdefault(modality, set()).add(series["modality"])
        self._said.setdefault(date, set()).add(columns.of_study(meta.scanned)["study_date"])
        if row.patient_pk is None:
            return  # it waits, and decides nothing yet
        uid = row.sop_instance_uid
        self._rows[modality], self._rows[date] = (row.modality, uid), (row.study_date, uid)
        if (row.patient_pk, row.study_date) != (row.series_patient_pk, row.series_study_date):
            yield "V10", "its series and its study say otherwise of patient or date", uid
        key = key_of(meta.scanned, meta.issuer)
        other = row.synthetic or (row.issuer, row.patient_id) != (key.issuer, key.patient_id)
        if key.patient_id and other and bytes(row.object_id) not in self._joined:
            yield "V10", "its study is another patient's than the record says", uid

    def findings(self) -> Iterator[Found]:
        """Yield what no record of a series or study says; only once all of them were added."""
        for key, (value, uid) in self._rows.items():
            if value not in self._said[key]:
                yield "V10", f"no record says the {key[2]} that the index does", uid


def granted(core: Core, tx: sa.Connection) -> Iterator[Found]:
    """Yield grants that no event gave, that say otherwise than theirs, or that came back, and roles that were changed."""
    given = {row["id"]: row for row in _details(core, tx, Kind.GRANTED) if "id" in row}
    revoked = {row["id"] for row in _details(core, tx, Kind.REVOKED)}
    bits = {row.id: row.permissions for row in tx.execute(sa.select(role.c.id, role.c.permissions))}
    raw = {row.id: row for row in tx.execute(sa.select(grants.c.id, grants.c.role_id, grants.c.permissions, grants.c.subject_id))}
    for row in access_grants.listed(tx, at=core.clock()):
        number, event = row["id"], given.get(row["id"])
        if event is None:
            yield "V12", f"grant {number} was given by no event", ""
            continue
        if number in revoked and row["revoked_at"] is None:
            yield "V12", f"grant {number} counts again, although it was revoked", ""
        level = row["level"]
        told = (
            row["effect"], row["role"], row["datastore"], row["from"].isoformat(), row["until"].isoformat(),
            row["conditions"].get("modality", ""),
        )
        said = tuple(event.get(name) for name in ("effect", "role", "datastore", "from", "until", "modality"))
        # A study that finds its patient takes a grant on the nameless one along, as a grant on itself.
        moved = event.get("level") == "patient" and level == "study"
        elsewhere = level != event.get("level") or (level != "everything" and [level, row["object"]] not in event["objects"])
        others = {name for name in row["conditions"] if name != "modality"} or row["need_context"]
        if told != said or (elsewhere and not moved) or others or event.get("subject") not in (None, raw[number].subject_id):
            yield "V12", f"grant {number} is not the one that was given", ""
        if raw[number].permissions != bits.get(raw[number].role_id):
            yield "V12", f"grant {number} covers other permissions than its role", ""
    yield from _roles(core, tx)


def _roles(core: Core, tx: sa.Connection) -> Iterator[Found]:
    added = {row["name"]: set(row["permissions"]) for row in _details(core, tx, Kind.ROLE_CHANGED) if row.get("what") == "added"}
    for row in roles.listed(tx):
        said = set(roles.names(BUILTIN_ROLES[row["name"]])) if row["name"] in BUILTIN_ROLES else added.get(row["name"])
        if set(row["permissions"]) != said:
            yield "V12", f"the role {row['name']} holds other permissions than when it was made", ""


def closed(core: Core, tx: sa.Connection) -> Iterator[Found]:
    """Yield closed segments whose hash in the index is not the one that was recorded when it was first taken."""
    said: dict[str, set[str]] = {}
    for detail in _details(core, tx, Kind.SEGMENT_CLOSED):
        said.setdefault(detail["segment"], set()).add(detail["sha256"])
    for row in tx.execute(sa.select(segment.c.name, segment.c.sha256)):
        known = said.get(row.name, set())
        if len(known) > 1 or (row.sha256 is None and known) or (row.sha256 is not None and known != {bytes(row.sha256).hex()}):
            yield "V03", f"the hash of segment {row.name} is not the one in the ledger", ""


def _details(core: Core, tx: sa.Connection, kind: Kind) -> Iterator[dict[str, Any]]:
    """Yield what events of a kind say, newest first; a body that was changed is told by the ledger's own check."""
    before: int | None = None
    while True:
        rows = _search(core, tx, kind, before)
        for row in rows:
            if row.body is not None:
                yield {**row.body["detail"], "objects": [list(one) for one in row.body["objects"]]}
        if len(rows) < _PAGE:
            return
        before = rows[-1].n


def _search(core: Core, tx: sa.Connection, kind: Kind, before: int | None) -> list[AuditRow]:
    try:
        return core.ledger.search(tx, AuditFilter(kinds=(kind,), before=before, limit=_PAGE))
    except ArchiveError:
        return []
