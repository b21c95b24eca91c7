"""Alerts: the background looks at each new event by the rules of alert_rules.py, and at what lasts by alert_states.py; what is found waits.

That an alert was raised, told and acknowledged is in the ledger: a row taken away from the table does not undo that.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa

from archive.access import policy
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.tables import alert, archive_state, audit_event
from archive.errors import ArchiveError, Denied, InvalidRequest, NotFound
from archive.ledger import nodes
from archive.ledger.audit import Event, Kind
from archive.services.alert_look import Found, Look, Seen
from archive.services.alert_rules import LOOKED_AT, RULES
from archive.services.alert_states import STATES
from archive.services.alert_telling import Telling, shown
from archive.services.changes import Changes
from archive.services.clock import machine_now
from archive.services.core import Core
from archive.services.mail import Mail

SEEN = "alerts_seen"
AT_ONCE = 2000
TOGETHER = timedelta(hours=24)
"""How long what is found again counts to an alert that is open."""

STATES_EVERY = timedelta(minutes=1)
MEANINGS = {name: (severity, text) for name, (severity, text, _) in (*RULES.items(), *STATES.items())}
"""Rule -> its severity and what it means."""

log = logging.getLogger("archive.services")
_A = alert.c


class Alerts(Changes):
    """Raised by one background worker; looked at with the permission audit, or at the console."""

    def __init__(self, core: Core, mail: Mail | None = None) -> None:
        """Work on an opened archive; `mail` sends, by the configuration unless given."""
        super().__init__(core.database, core.ledger, core.clock, read_only=core.read_only)
        self._config = core.config
        files = {name: getattr(core.config.alerts, name) for name in ("geoip_file", "watched_patients")}
        named = {name: str(core.config.resolve(path)) for name, path in files.items() if path}
        self._settings = msgspec.structs.replace(core.config.alerts, **named)
        self._mail = mail or Mail(core.config)
        self._telling = Telling(core, self._mail)
        self._states_at: datetime | None = None

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
        now = machine_now(self._clock)  # nobody is told later because the archive's clock stands
        if self._states_at is None or not timedelta(0) <= now - self._states_at < STATES_EVERY:
            count += self._lasting(at)
            self._states_at = now
        self._telling.tick(now, MEANINGS)
        return count

    def _lasting(self, at: datetime) -> int:
        """Raise what is wrong now and not yet told."""
        with self._database.read() as tx:
            told = {tuple(row) for row in tx.execute(sa.select(_A.rule, _A.about).where(_A.acknowledged_at.is_(None)))}
            size = nodes.size(tx)
            found = [
                Found(name, max(size - 1, 0), one.about, one.detail, one.principal_id)
                for name, (_severity, _text, state) in STATES.items() if name not in self._settings.without
                for one in state(tx, at, self._config) if (name, one.about) not in told
            ]
        if found:
            with self._database.begin() as tx:
                for one in found:
                    self._raise(tx, one, at)
        return len(found)

    def _look(self) -> tuple[list[Found], int | None, bool]:
        with self._database.read() as tx:
            size = nodes.size(tx)
            kept = tx.execute(sa.select(archive_state.c.value).where(archive_state.c.name == SEEN)).scalar()
            if kept is None or not kept.isdigit() or int(kept) > size:
                last = tx.execute(sa.select(sa.func.max(_A.last_event)).where(_A.rule.in_(list(RULES)))).scalar()
                if last is None or last >= size:
                    return [], size, False  # what was before alerts were there is not told now
                kept = str(last + 1)  # who takes the place away hides nothing that came later
            if int(kept) == size:
                return [], None, False
            e = audit_event.c
            rows = tx.execute(
                sa.select(e.n, e.at, e.kind, e.outcome, e.principal_id)
                .where(e.n >= int(kept), e.n < size, e.kind.in_(LOOKED_AT)).order_by(e.n).limit(AT_ONCE)
            ).all()
            look = Look(tx, self._ledger, self._settings, [Seen(*row) for row in rows], self._clock() - machine_now(self._clock))
            found = self._found(look)
        more = len(rows) == AT_ONCE
        return found, rows[-1].n + 1 if more else size, more

    def _found(self, look: Look) -> list[Found]:
        found: list[Found] = []
        for name, (_severity, _text, rule) in RULES.items():
            if name in self._settings.without:
                continue
            try:
                found += rule(look)
            except (ArchiveError, sa.exc.SQLAlchemyError):
                raise
            except Exception as error:  # noqa: BLE001 # one rule's fault silences no other
                log.error("the alert %s could not be looked for (%s)", name, type(error).__name__)
        return found

    def raise_at_once(self, tx: sa.Connection, one: Found, at: datetime) -> None:
        """Raise what must not wait for the next look, in the transaction of its event."""
        if self._settings.enabled and one.rule not in self._settings.without:
            self._raise(tx, one, at)

    def _raise(self, tx: sa.Connection, one: Found, at: datetime) -> None:
        again = sa.select(_A.id).where(_A.rule == one.rule, _A.about == one.about, _A.first_event <= one.event, _A.last_event >= one.event)
        if tx.execute(again.limit(1)).first() is not None:
            return  # it was raised at once
        severity = MEANINGS[one.rule][0]
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
            last_event=one.event, times=1, raised_at=at, updated_at=at, **self._telling.due(machine_now(self._clock)),
        ))
        assert made.inserted_primary_key is not None
        detail = {"what": "raised", "alert": int(made.inserted_primary_key[0]), "rule": one.rule, "event": one.event, **one.detail}
        self._ledger.record(tx, Event(Kind.ALERT, outcome=4, detail=detail), at=at)

    @staticmethod
    def _note(tx: sa.Connection, upto: int) -> None:
        there = sa.update(archive_state).where(archive_state.c.name == SEEN).values(value=str(upto))
        if not tx.execute(there).rowcount:
            tx.execute(sa.insert(archive_state).values(name=SEEN, value=str(upto)))

    # --- for who looks at them --------------------------------------------------------------------------------------------------------

    def list(self, subject: Subject, *, every: bool = False, limit: int = 100) -> list[dict[str, Any]]:
        """Return alerts that nobody has acknowledged, with `every` the others too, the newest first.

        Raises:
            Forbidden.
        """
        query = shown(sa.select(alert)).order_by(_A.id.desc()).limit(limit)
        if not every:
            query = query.where(_A.acknowledged_at.is_(None))
        return self._read(subject, Permission.AUDIT, lambda tx, _at: [_told(row) for row in tx.execute(query).mappings()])

    def waiting(self, subject: Subject) -> int | None:
        """Return how many alerts nobody has acknowledged; None to whoever may not look."""
        with self._database.read() as tx:
            try:
                policy.require(tx, subject, Permission.AUDIT, self._clock())
            except Denied:
                return None
            return open_count(tx)

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
            values = {
                "acknowledged_at": at, "acknowledged_by": subject.principal_id, "note": note[:2000], "due_at": None, "hook_due_at": None,
            }
            if not tx.execute(mine.values(values)).rowcount:
                message = "there is no such open alert"
                raise NotFound(message, remedy="'archive alert list' shows them")
            self._record(tx, Kind.ALERT, subject, at, what="acknowledged", alert=number, note=note[:2000])
            return _told(tx.execute(shown(sa.select(alert).where(_A.id == number))).mappings().one())

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


def _told(row: Any) -> dict[str, Any]:
    names: Sequence[str] = (
        "id", "rule", "severity", "detail", "first_event", "last_event", "times", "raised_at", "updated_at", "told_at", "acknowledged_at",
        "note",
    )
    return {**{name: row[name] for name in names}, "who": row["who"] or "", "text": MEANINGS.get(row["rule"], ("", ""))[1]}

