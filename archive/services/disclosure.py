"""Who saw a patient's images, when, and why they could: what the audit log and the grants say together.

A patient may ask for it (GDPR article 15, HIPAA 164.528), so it is whole: every read, sending, export and sharing of each study the
patient has or had, by people, programs, devices and the console. Why is told from the grants in force at that moment.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access import grants, policy
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.tables import patient, principal, series, study
from archive.errors import NotFound
from archive.ledger.audit import Event, Kind, ObjectRef
from archive.ledger.log import AuditFilter, AuditRow
from archive.services import datastores, denials
from archive.services.core import Core

KINDS = (Kind.READ, Kind.SENT, Kind.EXPORTED, Kind.SHARED)
PAGE = 1000
COLUMNS = ("at", "who", "kind", "action", "what", "study_instance_uid", "series_instance_uid", "instances", "network", "because", "event")
_TOKEN = policy.system("access")
_STEERS = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for a formula."""


@dataclass(frozen=True, slots=True)
class Known:
    """One study of the patient: its UID and the scopes that cover it."""

    uid: str
    datastore_id: int
    scope_keys: tuple[int, ...]


class Disclosure:
    """The report; needs the permission audit, or the console."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core

    def of_patient(
        self, subject: Subject, patient_id: str, *, issuer: str | None = None, datastore: str = datastores.DEFAULT,
        since: datetime | None = None, until: datetime | None = None,
    ) -> list[dict[str, Any]]:
        """Return every access to the patient's studies, oldest first; asking is an event too.

        Raises:
            Forbidden; NotFound: no such patient or datastore.
        """
        core = self._core
        at = core.clock()
        with denials.recorded(core, subject), core.database.read() as tx:
            policy.require(tx, subject, Permission.AUDIT, at)
        event = Event(Kind.AUDIT_READ, subject=subject, objects=(ObjectRef("patient", patient_id),), detail={"what": "disclosures"})
        with core.database.begin() as tx:
            core.ledger.record(tx, event, at=at)
        with core.database.read() as tx:
            known = {one.uid: one for one in _studies(tx, datastores.find(tx, datastore).id, patient_id, issuer)}
            found: dict[int, AuditRow] = {}
            for obj in (ObjectRef("patient", patient_id), *(ObjectRef("study", uid) for uid in known)):
                for row in self._events(tx, obj, since, until):
                    found[row.n] = row
            names = {row.id: row.name for row in tx.execute(sa.select(principal.c.id, principal.c.name))}
            return [self._told(tx, found[n], known, names) for n in sorted(found)]

    def _events(self, tx: sa.Connection, obj: ObjectRef, since: datetime | None, until: datetime | None) -> Iterator[AuditRow]:
        before = None
        while True:
            wanted = AuditFilter(kinds=KINDS, obj=obj, since=since, until=until, outcome=0, before=before, limit=PAGE)
            rows = self._core.ledger.search(tx, wanted)
            yield from rows
            if len(rows) < PAGE:
                return
            before = rows[-1].n

    @staticmethod
    def _told(tx: sa.Connection, row: AuditRow, known: dict[str, Known], names: dict[int, str]) -> dict[str, Any]:
        body = row.body or {}
        said, who = body.get("detail") or {}, body.get("subject") or {}
        objects = [(kind, value) for kind, value in body.get("objects", ())]
        mine = [value for kind, value in objects if kind == "study" and value in known]
        name = who.get("name") or names.get(row.principal_id or 0, "the archive")
        return {
            "event": row.n, "at": row.at, "who": f"{name}, by share link {who['share']}" if "share" in who else name,
            "kind": who.get("kind", ""), "action": row.kind, "what": str(said.get("what", "")),
            "study_instance_uid": mine[0] if len(mine) == 1 else "", "studies": mine,
            "series_instance_uid": next((value for kind, value in objects if kind == "series"), ""),
            "instances": row.instances, "network": who.get("address", ""), "erased": row.body is None,
            "because": _because(tx, row, [known[uid] for uid in mine]),
        }


def _studies(tx: sa.Connection, datastore_id: int, patient_id: str, issuer: str | None) -> list[Known]:
    """Return the patient's studies, those out of sight too.

    Raises:
        NotFound.
    """
    p, st, se = patient.c, study.c, series.c
    query = sa.select(p.id).where(p.datastore_id == datastore_id, p.patient_id == patient_id, p.synthetic == sa.false())
    if issuer is not None:
        query = query.where(p.issuer == issuer)
    patients = policy.run_as(tx, _TOKEN, query).scalars().all()
    if not patients:
        message = "there is no such patient"
        raise NotFound(message, remedy="check the PatientID, its issuer and the datastore")
    rows = policy.run_as(
        tx, _TOKEN, sa.select(st.id, st.study_instance_uid, st.patient_pk).where(st.patient_pk.in_(patients)).order_by(st.id)
    ).all()
    parts: dict[int, list[int]] = {}
    for row in policy.run_as(tx, _TOKEN, sa.select(se.id, se.study_pk).where(se.patient_pk.in_(patients))):
        parts.setdefault(row.study_pk, []).append(row.id * 4 + 3)
    return [
        Known(row.study_instance_uid, datastore_id, (0, row.patient_pk * 4 + 1, row.id * 4 + 2, *parts.get(row.id, ())))
        for row in rows
    ]


def _because(tx: sa.Connection, row: AuditRow, about: list[Known]) -> list[dict[str, Any]]:
    """Return the allows that covered one of the studies for who it was, at that moment."""
    if row.principal_id is None:
        return []
    found: dict[int, dict[str, Any]] = {}
    for one in about:
        for grant in grants.reaching(tx, row.principal_id, one.datastore_id, list(one.scope_keys), at=row.at):
            ended = grant["revoked_at"]
            if grant["effect"] == "allow" and grant["from"] <= row.at < grant["until"] and (ended is None or ended > row.at):
                shown = {name: grant[name] for name in ("subject", "level", "object", "reason")}
                found[grant["id"]] = {"grant": grant["id"], "role": grant["role"] or grant["kind"], **shown}
    return list(found.values())


def as_csv(rows: list[dict[str, Any]]) -> str:
    """Return the report as RFC 4180 with a header line; no cell begins as a formula does."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for row in rows:
        because = "; ".join(f"grant {one['grant']} to {one['subject']}: {one['role']} on {one['level']}" for one in row["because"])
        shown = {
            **row, "at": row["at"].isoformat(), "study_instance_uid": " ".join(row["studies"]),
            "because": because or "no grant in force is left that says so",
        }
        writer.writerow([_cell(str(shown[name])) for name in COLUMNS])
    return out.getvalue()


def _cell(text: str) -> str:
    return "'" + text if text.startswith(_STEERS) else text
