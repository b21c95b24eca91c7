"""Alerts: the background looks at each new event of the audit log by the rules of alert_rules.py, and what is found waits to be looked at.

That an alert was raised, told and acknowledged is in the ledger: a row taken away from the table does not undo that.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.tables import alert, archive_state, audit_event, principal
from archive.errors import ArchiveError, InvalidRequest, NotFound
from archive.ledger import nodes
from archive.ledger.audit import Event, Kind
from archive.services.alert_rules import LOOKED_AT, RULES, Found, Look, Seen
from archive.services.changes import Changes
from archive.services.core import Core
from archive.services.mail import Mail

log = logging.getLogger("archive.services")

SEEN = "alerts_seen"
AT_ONCE = 2000
TOGETHER = timedelta(hours=24)
"""How long what is found again counts to an alert that is open."""

MAIL_AGAIN = (timedelta(minutes=1), timedelta(minutes=10), timedelta(hours=1), timedelta(hours=6))
_A = alert.c


class Alerts(Changes):
    """Raised by one background worker; looked at with the permission audit, or at the console."""

    def __init__(self, core: Core, mail: Mail | None = None) -> None:
        """Work on an opened archive; `mail` sends, by the configuration unless given."""
        super().__init__(core.database, core.ledger, core.clock, read_only=core.read_only)
        self._settings = core.config.alerts
        self._mail = mail or Mail(core.config)

    # --- the background ---------------------------------------------------------------------------------------------------------------

    def tick(self) -> int:
        """Look at what is new, tell who is to be told, and return how many alerts were raised or went on.

        Raises:
            DatabaseUnavailable.
        """
        if self._read_only or not self._settings.enabled:
            return 0
        at = self._clock()
        count = 0
        while True:
            found, upto, more = self._look()
            if upto is not None:
                count += len(found)
                with self._database.begin(durable=bool(found)) as tx:
                    for one in found:
                        self._raise(tx, one, at)
                    self._note(tx, upto)
            if not more:
                break
        self._tell(at)
        return count

    def _look(self) -> tuple[list[Found], int | None, bool]:
        with self._database.read() as tx:
            size = nodes.size(tx)
            kept = tx.execute(sa.select(archive_state.c.value).where(archive_state.c.name == SEEN)).scalar()
            if kept is None:
                return [], size, False  # what was before alerts were there is not told now
            if int(kept) >= size:
                return [], None, False
            e = audit_event.c
            rows = tx.execute(
                sa.select(e.n, e.at, e.kind, e.outcome, e.principal_id)
                .where(e.n >= int(kept), e.n < size, e.kind.in_(LOOKED_AT)).order_by(e.n).limit(AT_ONCE)
            ).all()
            look = Look(tx, self._ledger, self._settings, [Seen(*row) for row in rows])
            found = self._found(look)
        more = len(rows) == AT_ONCE
        return found, rows[-1].n + 1 if more else size, more

    def _found(self, look: Look) -> list[Found]:
        found: list[Found] = []
        for name, (_severity, _text, rule) in RULES.items():
            if name not in self._settings.without:
                found += rule(look)
        return found

    def _raise(self, tx: sa.Connection, one: Found, at: datetime) -> None:
        severity = RULES[one.rule][0]
        open_one = tx.execute(sa.select(_A.id).where(
            _A.acknowledged_at.is_(None), _A.rule == one.rule, _A.about == one.about, _A.updated_at > at - TOGETHER
        ).order_by(_A.id.desc()).limit(1)).scalar()
        if open_one is not None:
            tx.execute(sa.update(alert).where(_A.id == open_one).values(
                times=_A.times + 1, last_event=one.event, updated_at=at, detail=one.detail
            ))
            return
        made = tx.execute(sa.insert(alert).values(
            rule=one.rule, about=one.about, severity=severity, principal_id=one.principal_id, detail=one.detail, first_event=one.event,
            last_event=one.event, times=1, raised_at=at, updated_at=at, due_at=at if self._mail.wanted else None,
        ))
        assert made.inserted_primary_key is not None
        detail = {"what": "raised", "alert": int(made.inserted_primary_key[0]), "rule": one.rule, "event": one.event, **one.detail}
        self._ledger.record(tx, Event(Kind.ALERT, outcome=4, detail=detail), at=at)

    @staticmethod
    def _note(tx: sa.Connection, upto: int) -> None:
        there = sa.update(archive_state).where(archive_state.c.name == SEEN).values(value=str(upto))
        if not tx.execute(there).rowcount:
            tx.execute(sa.insert(archive_state).values(name=SEEN, value=str(upto)))

    def _tell(self, at: datetime) -> None:
        """Send a mail for each alert that waits for one; what cannot be sent is tried again, later each time."""
        if not self._mail.wanted:
            return
        with self._database.read() as tx:
            due = [dict(row) for row in tx.execute(_shown(sa.select(alert).where(_A.due_at <= at).order_by(_A.id).limit(20))).mappings()]
        for row in due:
            try:
                self._mail.send(f"[{row['severity']}] {RULES[row['rule']][1]}", _letter(row))
            except ArchiveError as error:
                wait = MAIL_AGAIN[min(row["attempts"], len(MAIL_AGAIN) - 1)]
                values: dict[str, Any] = {"attempts": row["attempts"] + 1, "due_at": at + wait}
                log.warning("an alert could not be mailed: %s", error.message, extra={"remedy": error.remedy})
            else:
                values = {"attempts": row["attempts"] + 1, "due_at": None, "told_at": at}
            with self._database.begin(durable=False) as tx:
                tx.execute(sa.update(alert).where(_A.id == row["id"]).values(values))

    # --- for who looks at them --------------------------------------------------------------------------------------------------------

    def list(self, subject: Subject, *, every: bool = False, limit: int = 100) -> list[dict[str, Any]]:
        """Return alerts that nobody has acknowledged, with `every` the others too, the newest first.

        Raises:
            Forbidden.
        """
        query = _shown(sa.select(alert)).order_by(_A.id.desc()).limit(limit)
        if not every:
            query = query.where(_A.acknowledged_at.is_(None))
        return self._read(subject, Permission.AUDIT, lambda tx, _at: [_told(row) for row in tx.execute(query).mappings()])

    def acknowledge(self, subject: Subject, number: int, *, note: str) -> dict[str, Any]:
        """Close an alert, and say what it was.

        Raises:
            Forbidden; NotFound: no such alert, or closed already; InvalidRequest: no word about it.
        """
        if not note.strip():
            message = "say what it was"
            raise InvalidRequest(message, remedy="give a note: who was asked, what it was, what was done")

        def work(tx: sa.Connection, at: datetime) -> dict[str, Any]:
            mine = sa.update(alert).where(_A.id == number, _A.acknowledged_at.is_(None))
            values = {"acknowledged_at": at, "acknowledged_by": subject.principal_id, "note": note[:2000], "due_at": None}
            if not tx.execute(mine.values(values)).rowcount:
                message = "there is no such open alert"
                raise NotFound(message, remedy="'archive alert list' shows them")
            self._record(tx, Kind.ALERT, subject, at, what="acknowledged", alert=number, note=note[:2000])
            return _told(tx.execute(_shown(sa.select(alert).where(_A.id == number))).mappings().one())

        return self._change(subject, Permission.AUDIT, work)

    def test_mail(self, subject: Subject) -> None:
        """Send a mail that says it is a test.

        Raises:
            Forbidden, InvalidRequest: no mail is configured; Undeliverable.
        """
        self._change(subject, Permission.CONFIGURE, lambda tx, at: self._record(tx, Kind.ALERT, subject, at, what="mail tested"))
        if not self._mail.wanted:
            message = "nobody is to be mailed"
            raise InvalidRequest(message, remedy="set [alerts] mail_to, mail_from and smtp_host")
        self._mail.send("a test", "This is a test of the alerts. Nothing happened.\n")


def open_count(tx: sa.Connection) -> int:
    """Return how many alerts nobody has acknowledged."""
    return int(tx.execute(sa.select(sa.func.count()).select_from(alert).where(_A.acknowledged_at.is_(None))).scalar_one())


def _shown(query: sa.Select[Any]) -> sa.Select[Any]:
    return query.add_columns(principal.c.name.label("who")).outerjoin(principal, principal.c.id == _A.principal_id)


def _told(row: Any) -> dict[str, Any]:
    names: Sequence[str] = (
        "id", "rule", "severity", "detail", "first_event", "last_event", "times", "raised_at", "updated_at", "told_at", "acknowledged_at",
        "note",
    )
    return {**{name: row[name] for name in names}, "who": row["who"] or "", "text": RULES[row["rule"]][1] if row["rule"] in RULES else ""}


def _letter(row: dict[str, Any]) -> str:
    facts = "".join(f"  {name.replace('_', ' ')}: {value}\n" for name, value in row["detail"].items())
    who = f"Account: {row['who']}\n" if row["who"] else ""
    return (
        f"{RULES[row['rule']][1]}\n\n{who}{facts}At: {row['raised_at']:%Y-%m-%d %H:%M:%S} UTC\nEvent: {row['first_event']}\n\n"
        f"Look at it with 'archive audit search --before {row['last_event'] + 1}', then close it with\n"
        f"'archive alert acknowledge {row['id']} --note TEXT'.\n"
    )
