"""The audit log, told to a syslog collector as it grows.

The log itself is the queue: what is kept is how far the collector has been told, and that moves on only after it took what came before.
A collector that is away misses nothing; nobody waits for it.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa

from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.tables import archive_state, audit_event
from archive.errors import ArchiveError, InvalidRequest
from archive.ledger import nodes
from archive.ledger.audit import Event, Kind, ObjectRef
from archive.services import syslog
from archive.services.audit_messages import Occurrence, Source, message, occurrence, together
from archive.services.changes import Changes
from archive.services.core import Core

log = logging.getLogger("archive.services")

STATE = "syslog_told"
CHECKPOINT_MSGID = "CHECKPOINT"
AT_ONCE = 500
PAUSES = (timedelta(seconds=5), timedelta(seconds=30), timedelta(minutes=2), timedelta(minutes=10))
BEHIND = timedelta(hours=1)
"""How long a collector may be away before somebody is told."""

Deliver = Callable[[Sequence[bytes], syslog.Collector], None]


@dataclass(frozen=True, slots=True)
class Told:
    """How far the collector is: it has every event below leaf `next`."""

    next: int
    attempts: int = 0
    problem: str = ""
    failing_since: datetime | None = None
    due_at: datetime | None = None
    told_at: datetime | None = None


class AuditFeed(Changes):
    """Told by one background worker; asked about with the permission audit, or at the console."""

    def __init__(self, core: Core, deliver: Deliver = syslog.deliver) -> None:
        """Work on an opened archive; `deliver` is another one in tests."""
        super().__init__(core.database, core.ledger, core.clock, read_only=core.read_only)
        config, settings = core.config, core.config.syslog
        self._settings, self._deliver = settings, deliver
        self._host = socket.gethostname()
        self._source = Source(
            settings.source_id or config.archive.name, settings.site, core.keyring.archive_uuid, config.dimse.ae_title, settings.patients,
            lambda kind, value: ObjectRef(kind, value).pseudonym(core.keyring),  # type: ignore[arg-type] # read from an event
        )
        named = (config.resolve(one) if one else None for one in (settings.ca_file, settings.certificate_file, settings.key_file))
        self._collector = syslog.Collector(settings.host, settings.port, *named)

    @property
    def wanted(self) -> bool:
        """Whether there is a collector."""
        return bool(self._settings.host)

    def tick(self) -> int:
        """Tell the collector what is new and return how many events that were.

        Raises:
            DatabaseUnavailable.
        """
        if self._read_only or not self.wanted:
            return 0
        at = self._clock()
        with self._database.read() as tx:
            kept, size = state(tx), nodes.size(tx)
            told = kept or Told(0 if self._settings.history else size)
            # One that is due later than any pause was noted by a clock that has been set back since.
            if told.due_at is not None and at < told.due_at <= at + PAUSES[-1]:
                return 0
            events = self._events(tx, told.next, size)
        if not events:
            if kept is None or told.next < size:
                self._keep(replace(told, next=size), kept)
            return 0
        try:
            self._deliver([self._line(one) for one in together(events)], self._collector)
        except ArchiveError as error:
            pause = PAUSES[min(told.attempts, len(PAUSES) - 1)]
            self._keep(replace(
                told, attempts=told.attempts + 1, problem=error.message[:200], failing_since=told.failing_since or at, due_at=at + pause
            ), kept)
            log.warning("the audit log waits for its collector: %s", error.message, extra={"remedy": error.remedy})
            return 0
        self._keep(Told(events[-1].last + 1, told_at=at), kept)
        return len(events)

    def _events(self, tx: sa.Connection, first: int, size: int) -> list[Occurrence]:
        e = audit_event.c
        rows = tx.execute(
            sa.select(e.n, e.at, e.kind, e.outcome, e.instances).where(e.n >= first, e.n < size).order_by(e.n).limit(AT_ONCE)
        ).all()
        said = self._ledger.bodies(tx, [row.n for row in rows])
        # Erased, or changed, which verify tells of: the leaf is told all the same.
        return [occurrence(row.n, row.at, row.kind, row.outcome, row.instances, said.get(row.n, {})) for row in rows]

    def _line(self, one: Occurrence) -> bytes:
        return syslog.line(message(one, self._source), at=one.at, host=self._host, outcome=one.outcome)

    def checkpoint(self, line: str) -> None:
        """Tell the collector the newest checkpoint, as one line of words beside the audit messages.

        Raises:
            Undeliverable.
        """
        said = syslog.line(line.encode(), at=self._clock(), host=self._host, msgid=CHECKPOINT_MSGID)
        self._deliver([said], self._collector)

    def _keep(self, told: Told, before: Told | None) -> None:
        """Note how far it is, unless somebody has asked meanwhile for something to be told again: that goes on from there."""
        with self._database.begin(durable=False) as tx:
            tx.execute(sa.select(archive_state.c.value).where(archive_state.c.name == STATE).with_for_update())
            if state(tx) == before:
                _write(tx, told)

    # --- for who looks after it -------------------------------------------------------------------------------------------------------

    def status(self, subject: Subject) -> dict[str, Any]:
        """Return where the log is told to, how far that is and what went wrong last.

        Raises:
            Forbidden.
        """

        def work(tx: sa.Connection, _at: datetime) -> dict[str, Any]:
            told, size = state(tx), nodes.size(tx)
            shown = asdict(told) if told is not None else {}
            return {
                "collector": f"{self._settings.host}:{self._settings.port}" if self.wanted else "", "told": shown.get("next", size),
                "behind": size - shown.get("next", size) if self.wanted else 0, "problem": shown.get("problem", ""),
                "failing_since": shown.get("failing_since"), "told_at": shown.get("told_at"),
            }

        return self._read(subject, Permission.AUDIT, work)

    def again(self, subject: Subject, first: int) -> dict[str, Any]:
        """Tell the collector everything from leaf `first` on once more.

        Raises:
            Forbidden; InvalidRequest: no collector, or no such leaf yet; ReadOnly.
        """

        def work(tx: sa.Connection, at: datetime) -> dict[str, Any]:
            size = nodes.size(tx)
            if not self.wanted or not 0 <= first <= size:
                said = f"there are {size} events" if self.wanted else "the audit log is told to nobody"
                raise InvalidRequest(said, remedy="name the number of an event" if self.wanted else "set [syslog] host")
            _write(tx, Told(first))
            self._record(tx, Kind.CONFIGURED, subject, at, what="audit log told again", first=first)
            return {"first": first, "events": size - first}

        return self._change(subject, Permission.CONFIGURE, work)

    def test(self, subject: Subject) -> None:
        """Send the collector one event: that it was tested.

        Raises:
            Forbidden, Undeliverable; InvalidRequest: no collector.
        """
        event = Event(Kind.ALERT, subject=subject, detail={"what": "syslog tested"})

        def work(tx: sa.Connection, at: datetime) -> tuple[int, datetime]:
            if not self.wanted:
                said = "the audit log is told to nobody"
                raise InvalidRequest(said, remedy="set [syslog] host")
            return self._ledger.record(tx, event, at=at), at

        n, at = self._change(subject, Permission.CONFIGURE, work)
        with self._database.read() as tx:
            one = occurrence(n, at, event.kind.label, 0, 0, self._ledger.bodies(tx, [n]).get(n, {}))
        self._deliver([self._line(one)], self._collector)


def state(tx: sa.Connection) -> Told | None:
    """Return how far the collector is; None before anything was told."""
    kept = tx.execute(sa.select(archive_state.c.value).where(archive_state.c.name == STATE)).scalar()
    return None if kept is None else msgspec.json.decode(kept, type=Told)


def _write(tx: sa.Connection, told: Told) -> None:
    kept = msgspec.json.encode(told).decode()
    if not tx.execute(sa.update(archive_state).where(archive_state.c.name == STATE).values(value=kept)).rowcount:
        tx.execute(sa.insert(archive_state).values(name=STATE, value=kept))
