"""Records of associations: who came, what was agreed, how it went and ended, in plain words and without patient data.

Nothing waits for them: a record is put into memory when its association is over, and a thread writes what has gathered, once in a while, in
one transaction that need not reach the disk. Refusals that repeat are one row that counts; strangers cannot fill the table.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from archive.access import policy
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.tables import association_record, peer
from archive.errors import ArchiveError
from archive.services.core import Core

LOG = logging.getLogger("archive.services")

EVERY_S = 2.0
"""How long a record may wait in memory."""
WAITING = 10_000
KEEP = timedelta(days=90)
KEEP_ROWS = 200_000
ALIKE = timedelta(minutes=10)
"""The same refusal again within this time is counted in its row."""
REFUSED_ROWS = 60
"""How many rows of refusals a process makes in that time; more are counted in one row."""
OTHERS = "many more refusals of callers of other names or addresses"

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AssociationRecord:
    """One association that is over, or was refused."""

    opened_at: datetime
    at: datetime
    outcome: str
    reason: str
    failed: bool
    calling_ae_title: str = ""
    called_ae_title: str = ""
    address: str = ""
    tls: bool = False
    peer_id: int | None = None
    peer: str = ""
    association: str = ""
    negotiation: Mapping[str, Any] = field(default_factory=dict)
    operations: Mapping[str, Any] = field(default_factory=dict)

    @property
    def alike(self) -> tuple[str, ...] | None:
        """What makes two refusals one row; None where each counts."""
        return None if self.outcome != "refused" else (self.address, self.calling_ae_title, self.called_ae_title, self.reason)


class AssociationLog:
    """Takes records in and finds them again; safe to share between threads."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core
        self._lock = threading.Lock()
        self._waiting: list[AssociationRecord] = []
        self._dropped = 0
        self._writer: threading.Thread | None = None
        self._wake = threading.Event()
        self._rows: dict[tuple[str, ...], tuple[int, datetime]] = {}

    @property
    def clock(self) -> Any:
        """The archive's clock."""
        return self._core.clock

    def note(self, record: AssociationRecord) -> None:
        """Take a record; it is written soon."""
        with self._lock:
            if len(self._waiting) >= WAITING:
                self._dropped += 1
                return
            self._waiting.append(record)
            if self._writer is None:
                self._writer = threading.Thread(target=self._write_on, name="association-log", daemon=True)
                self._writer.start()

    def flush(self) -> None:
        """Write what waits, now; what cannot be written is lost."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
            dropped, self._dropped = self._dropped, 0
        if dropped:
            LOG.warning("records of associations were lost", extra={"count": dropped})
        if not waiting or self._core.read_only:
            return
        try:
            with self._core.database.begin(durable=False) as tx:
                self._write(tx, waiting)
        except (ArchiveError, sa.exc.SQLAlchemyError) as error:
            LOG.warning("records of associations were lost", extra={"count": len(waiting), "error": type(error).__name__})

    def search(
        self, subject: Subject, *, name: str = "", since: datetime | None = None, failed: bool = False, limit: int = 100
    ) -> list[Row]:
        """Return records, the newest first; `name` is a peer's, or a calling AE title.

        Raises:
            Forbidden.
        """
        r = association_record.c
        query = sa.select(association_record).order_by(r.at.desc(), r.id.desc()).limit(limit)
        if name:
            query = query.where(sa.or_(
                r.peer == name, r.calling_ae_title == name, r.peer_id.in_(sa.select(peer.c.id).where(peer.c.name == name))
            ))
        if since is not None:
            query = query.where(r.at >= since)
        if failed:
            query = query.where(r.failed)
        with self._core.database.read() as tx:
            policy.require(tx, subject, Permission.PEER_MANAGE, self._core.clock())
            return [dict(row) for row in tx.execute(query).mappings()]

    def _write_on(self) -> None:
        while True:
            self._wake.wait(EVERY_S)
            with self._lock:
                if not self._waiting:
                    self._writer = None
                    return
            self.flush()

    def _write(self, tx: sa.Connection, waiting: list[AssociationRecord]) -> None:
        plain = [record for record in waiting if record.alike is None]
        if plain:
            tx.execute(sa.insert(association_record), [_values(record) for record in plain])
        refused: dict[tuple[str, ...], AssociationRecord] = {}
        counted: Counter[tuple[str, ...]] = Counter()
        self._rows = {key: known for key, known in self._rows.items() if waiting[-1].at - known[1] < ALIKE}
        for record in waiting:
            key = record.alike
            if key is None:
                continue
            if key not in self._rows and key not in refused and len(self._rows) + len(refused) >= REFUSED_ROWS:
                key = (OTHERS,)
            refused[key] = record
            counted[key] += 1
        for key, record in refused.items():
            known = self._rows.get(key)
            if known is None:
                others = {"reason": OTHERS, "calling_ae_title": "", "called_ae_title": "", "address": ""} if key == (OTHERS,) else {}
                made = tx.execute(sa.insert(association_record).values(_values(record) | others | {"repeats": counted[key]}))
                assert made.inserted_primary_key is not None
                self._rows[key] = int(made.inserted_primary_key[0]), record.at
            else:
                r = association_record.c
                tx.execute(sa.update(association_record).where(r.id == known[0]).values(
                    repeats=r.repeats + counted[key], at=record.at
                ))


def sweep(tx: sa.Connection, at: datetime) -> None:
    """Forget records that are old, and the oldest of too many."""
    r = association_record.c
    tx.execute(sa.delete(association_record).where(r.at < at - KEEP))
    last = tx.execute(sa.select(sa.func.max(r.id))).scalar()
    if last is not None:
        tx.execute(sa.delete(association_record).where(r.id <= last - KEEP_ROWS))


def _values(record: AssociationRecord) -> dict[str, Any]:
    return {
        "at": record.at, "opened_at": record.opened_at, "peer_id": record.peer_id, "peer": record.peer,
        "calling_ae_title": _printable(record.calling_ae_title), "called_ae_title": _printable(record.called_ae_title),
        "address": record.address, "tls": record.tls, "association": record.association, "outcome": record.outcome,
        "reason": record.reason[:256], "failed": record.failed, "negotiation": dict(record.negotiation),
        "operations": dict(record.operations), "repeats": 1,
    }


def _printable(text: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in text[:16])
