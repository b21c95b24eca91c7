"""Break-glass: in an emergency a user opens one patient they may not see, for a short time, and somebody else reviews why.

Whether there is such a patient changes nothing in the answer: what is opened is opened for the identifier, and looked for afterwards like
anything else. A deny hides from it as from every grant.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa

from archive.access import grants, policy
from archive.access.grants import Target, Terms
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.tables import break_glass, patient, principal, study
from archive.db.tables import grants as grant_table
from archive.errors import Forbidden, InvalidRequest, NotFound, StateConflict
from archive.ledger.audit import Event, Kind, ObjectRef
from archive.services import datastores, grant_events
from archive.services.access_requests import Level, named, worded
from archive.services.alert_look import Found
from archive.services.alerts import Alerts
from archive.services.changes import Changes
from archive.services.core import Core
from archive.services.rights import DEFAULT_DATASTORE, Row

P = Permission
KIND = "break_glass"
OPENS = P.SEARCH | P.METADATA | P.PIXELS | P.RESTRICTED
"""To look, and no more: nothing leaves by it."""

REASONS = {
    "emergency": "emergency treatment",
    "unconscious": "the patient cannot be asked",
    "covering": "covering for a colleague",
    "transfer": "transfer from another unit or clinic",
    "other": "another reason",
}
Verdict = Literal["justified", "unjustified"]
AT_ONCE = 10
_B = break_glass.c
_TOKEN = policy.system("access")


class BreakGlass(Changes):
    """What `break-glass` of the command line, /api/break-glass and the pages do."""

    def __init__(self, core: Core, alerts: Alerts) -> None:
        """Work on an opened archive; `alerts` raises at once."""
        super().__init__(core.database, core.ledger, core.clock, read_only=core.read_only)
        self._alerts = alerts
        self._issuer = core.config.identity.issuer
        self._lasts = timedelta(minutes=core.config.policy.break_glass_minutes)

    def open(
        self, subject: Subject, *, level: Level, value: str, reason_code: str, reason: str, issuer: str = "",
        datastore: str = DEFAULT_DATASTORE,
    ) -> Row:
        """Open a patient by exact PatientID, or the patient of a study by its UID, to be looked at from now for the configured time.

        Raises:
            Forbidden: without break-glass, or by a token. InvalidRequest: no reason of the list, no word why, too many at once.
            NotFound: a datastore that is not there for the caller.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            _refuse_others(subject)
            asked, of, why = named(value, level), issuer.strip()[:64], worded(reason)
            if reason_code not in REASONS:
                message = "that is no reason that is taken"
                raise InvalidRequest(message, remedy="take one of " + ", ".join(REASONS))
            where = datastores.asked_for(tx, subject, datastore, at)
            mine = sa.select(sa.func.count()).select_from(break_glass).where(_B.principal_id == subject.principal_id, *_running(at))
            if tx.execute(mine).scalar_one() >= AT_ONCE:
                message = f"{AT_ONCE} are open already"
                raise InvalidRequest(message, remedy="end one, or wait")
            until = at + self._lasts
            terms = Terms(not_before=at, not_after=until, reason=f"break-glass, {REASONS[reason_code]}: {why}")
            opened = [
                grants.give(
                    tx, to=subject.principal_id, role_row=None, datastore_id=where.id, scope_key=key, terms=terms, permissions=OPENS,
                    by=subject.principal_id, at=at, kind=KIND,
                )
                for key in self._keys(tx, where.id, Target(level or "patient", asked, issuer=of or None), at)
            ]
            made = tx.execute(sa.insert(break_glass).values(
                principal_id=subject.principal_id, session_id=subject.session_id, datastore=where.name, level=level, object=asked,
                issuer=of, grant_ids=opened, reason_code=reason_code, reason=why, started_at=at, ends_at=until,
            ))
            assert made.inserted_primary_key is not None
            row = _one(tx, int(made.inserted_primary_key[0]))
            for grant in grants.some(tx, opened, at=at):
                grant_events.record(self._ledger, tx, Kind.GRANTED, subject, at, grant)
            n = self._told(tx, Kind.BREAK_GLASS_STARTED, subject, at, row, reason_code=reason_code, reason=why,
                           until=until.isoformat(), grants=opened)
            about = {"what": level, "reason": REASONS[reason_code]}
            self._alerts.raise_at_once(tx, Found("break-glass", n, f"{subject.principal_id} {n}", about, subject.principal_id), at)
            return shown(row, at)

        return self._change(subject, P.BREAK_GLASS, work, alone=True)

    def mine(self, subject: Subject, *, active: bool = False) -> list[Row]:
        """Return what the caller opened, the newest first; with `active` only what is open now."""
        query = _rows().where(_B.principal_id == subject.principal_id).order_by(_B.id.desc()).limit(100)

        def work(tx: sa.Connection, at: datetime) -> list[Row]:
            rows = tx.execute(query.where(*_running(at)) if active else query).mappings().all()
            return [shown(row, at) for row in rows if not active or not _revoked(tx, row)]

        return self._read(subject, None, work)

    def end(self, subject: Subject, number: int) -> Row:
        """Close early what one opened.

        Raises:
            NotFound: not one's own, or not open.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            mine = sa.update(break_glass).where(_B.id == number, _B.principal_id == subject.principal_id, *_running(at))
            if not tx.execute(mine.values(ended_at=at)).rowcount:
                raise _absent()
            row = _one(tx, number)
            for grant_id in row["grant_ids"]:
                grant_events.end(self._ledger, tx, subject, at, grant_id, because="break-glass was ended by its user")
            self._told(tx, Kind.BREAK_GLASS_STOPPED, subject, at, row, because="ended by its user")
            return shown(_one(tx, number), at)

        return self._change(subject, None, work)

    def to_review(self, subject: Subject, *, every: bool = False, limit: int = 100) -> list[Row]:
        """Return what waits for a review, oldest first, with `every` all of it, newest first; looking is an event.

        Raises:
            Forbidden.
        """
        query = _rows().order_by(_B.id.desc()) if every else _rows().where(_B.reviewed_at.is_(None)).order_by(_B.id)
        found = self._read(subject, P.AUDIT, lambda tx, at: [
            shown(row, at) | {"grants": row["grant_ids"]} for row in tx.execute(query.limit(limit)).mappings()
        ])
        event = Event(Kind.AUDIT_READ, subject=subject, detail={"what": "break-glass", "count": len(found)})
        with self._database.begin() as tx:
            self._ledger.record(tx, event, at=self._clock())
        return found

    def review(self, subject: Subject, number: int, *, verdict: str, note: str) -> Row:
        """Say whether it was justified; once, and never of one's own.

        Raises:
            Forbidden: without audit, or one's own. NotFound. StateConflict: it was reviewed. InvalidRequest: no word about it.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            found = worded(note)
            if verdict not in ("justified", "unjustified"):
                message = "a review says justified or unjustified"
                raise InvalidRequest(message, remedy="give one of the two as verdict")
            row = tx.execute(_rows().where(_B.id == number)).mappings().first()
            if row is None:
                raise _absent()
            if row["principal_id"] == subject.principal_id:
                message = "nobody reviews what they opened themselves"
                raise Forbidden(message, remedy="ask somebody else with the permission audit")
            values = {"reviewed_at": at, "reviewed_by": subject.principal_id, "verdict": verdict, "note": found}
            waiting = sa.update(break_glass).where(_B.id == number, _B.reviewed_at.is_(None))
            if not tx.execute(waiting.values(values)).rowcount:
                message = "it was reviewed already"
                raise StateConflict(message, remedy="'archive break-glass list --all' shows how")
            done = _one(tx, number)
            self._told(tx, Kind.BREAK_GLASS_REVIEWED, subject, at, done, verdict=verdict, note=found)
            return shown(done, at) | {"grants": done["grant_ids"]}

        return self._change(subject, P.AUDIT, work)

    def tick(self, at: datetime) -> int:
        """Record the end of what ran out, and return how many did; that nothing is seen by it any more needs no record."""
        if self._read_only:
            return 0
        out = _rows().where(_B.ended_at.is_(None), _B.ends_at <= at).order_by(_B.id).limit(100)
        with self._database.read() as tx:
            if not tx.execute(out.limit(1)).first():
                return 0
        with self._database.begin() as tx:
            rows = [dict(row) for row in tx.execute(out).mappings()]
            for row in rows:
                over = sa.update(break_glass).where(_B.id == row["id"], _B.ended_at.is_(None))
                if tx.execute(over.values(ended_at=row["ends_at"])).rowcount:
                    self._told(tx, Kind.BREAK_GLASS_STOPPED, None, at, row, because="its time was over")
        return len(rows)

    # -----------------------------------------------------------------------------------------------------------------------------------

    def _keys(self, tx: sa.Connection, datastore_id: int, target: Target, at: datetime) -> list[int]:
        """Return scope keys of every patient that is meant; where none is known, of one that may still come, or of nothing."""
        p, st = patient.c, study.c
        if target.level == "study":
            of = sa.select(p.id, p.synthetic, st.id.label("study_pk")).join(study, st.patient_pk == p.id)
            row = policy.run_as(tx, _TOKEN, of.where(st.datastore_id == datastore_id, st.study_instance_uid == target.value)).first()
            return [] if row is None else [row.study_pk * 4 + 2 if row.synthetic else row.id * 4 + 1]
        query = sa.select(p.id).where(p.datastore_id == datastore_id, p.patient_id == target.value, p.synthetic == sa.false())
        if target.issuer is not None:
            query = query.where(p.issuer == target.issuer)
        known = policy.run_as(tx, _TOKEN, query.order_by(p.id).limit(AT_ONCE)).scalars().all()
        expected = Target("patient", target.value, issuer=target.issuer, expected=True)
        return [key * 4 + 1 for key in known] or [grants.scope_key(tx, datastore_id, expected, at=at, default_issuer=self._issuer)]

    def _told(self, tx: sa.Connection, kind: Kind, subject: Subject | None, at: datetime, row: Row, **more: Any) -> int:
        detail = {"id": row["id"], "principal": row["principal_id"], "level": row["level"], "datastore": row["datastore"],
                  "issuer": row["issuer"], **more}
        objects = (ObjectRef(row["level"], row["object"]),)
        return self._ledger.record(tx, Event(kind, subject=subject, objects=objects, detail=detail), at=at)


def shown(row: Any, at: datetime) -> Row:
    """Return one as lists show it; what it opened is not in it."""
    running = row["ended_at"] is None and at < row["ends_at"]
    return {
        "id": row["id"], "who": row["who"], "level": row["level"], "object": row["object"], "issuer": row["issuer"],
        "datastore": row["datastore"], "reason_code": row["reason_code"], "reason": row["reason"], "started_at": row["started_at"],
        "until": row["ends_at"], "ended_at": row["ended_at"], "state": "active" if running else "ended",
        "reviewed_at": row["reviewed_at"], "reviewed_by": row["reviewer"] or "", "verdict": row["verdict"], "note": row["note"],
    }


def _running(at: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    return _B.ended_at.is_(None), _B.ends_at > at


def _revoked(tx: sa.Connection, row: Any) -> bool:
    """Whether somebody ended all it opened."""
    live = sa.select(grant_table.c.id).where(grant_table.c.id.in_(row["grant_ids"]), grant_table.c.revoked_at.is_(None))
    return bool(row["grant_ids"]) and tx.execute(live.limit(1)).first() is None


def _rows() -> sa.Select[Any]:
    who, reviewer = principal.alias("who"), principal.alias("reviewer")
    return (
        sa.select(break_glass, who.c.name.label("who"), reviewer.c.name.label("reviewer"))
        .join(who, who.c.id == _B.principal_id).outerjoin(reviewer, reviewer.c.id == _B.reviewed_by)
    )


def _one(tx: sa.Connection, number: int) -> Row:
    return dict(tx.execute(_rows().where(_B.id == number)).mappings().one())


def _refuse_others(subject: Subject) -> None:
    if subject.session_id is None or subject.kind != "user":
        message = "break-glass is for a person who is signed in, not for a token"
        raise Forbidden(message, remedy="sign in with the browser")


def _absent() -> NotFound:
    message = "there is no such break-glass"
    return NotFound(message, remedy="'archive break-glass list' shows those that wait for a review")
