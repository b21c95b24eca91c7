"""Table `hold` is what the ledger's events say: a hold removed, moved or shortened behind the archive's back is found and put back."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.db.copies import number_on
from archive.db.tables import datastore, hold
from archive.errors import StateConflict
from archive.ledger.audit import Event, Kind, ObjectRef
from archive.ledger.log import AuditFilter
from archive.services.core import Core
from archive.services.retrace import Found, bodies

log = logging.getLogger("archive.services")


@dataclass(frozen=True, slots=True)
class Said:
    """A hold as its event put it."""

    datastore: str
    study_instance_uid: str
    reason: str
    until: datetime | None
    principal_id: int | None
    at: datetime

    def detail(self, number: int) -> dict[str, Any]:
        """Return what an event says of it."""
        until = {} if self.until is None else {"until": self.until.isoformat()}
        return {"hold": number, "reason": self.reason, "datastore": self.datastore, **until}


def said(core: Core, tx: sa.Connection) -> dict[int, Said]:
    """Return the holds that were put and not let go."""
    found: dict[int, Said] = {}
    for row in reversed(list(bodies(core, tx, AuditFilter(kinds=(Kind.HOLD_ADDED, Kind.HOLD_REMOVED))))):
        if row.body is None:
            continue
        detail = row.body["detail"]
        if row.kind == Kind.HOLD_REMOVED.label:
            found.pop(detail["hold"], None)
            continue
        until = datetime.fromisoformat(detail["until"]) if detail.get("until") else None
        one = Said(detail["datastore"], row.body["objects"][0][1], detail["reason"], until, row.principal_id, row.at)
        found[detail["hold"]] = found.get(detail["hold"], one) if detail.get("put_back") else one
    return found


def stand(core: Core, tx: sa.Connection) -> Iterator[Found]:
    """Yield holds that are gone or say otherwise than their event, and such as no event put."""
    told, rows = said(core, tx), _rows(tx)
    for number, one in told.items():
        if number not in rows:
            yield "V12", f"hold {number} is gone, and no event let go", ""
        elif rows[number] != (one.datastore, one.study_instance_uid, one.reason, one.until):
            yield "V12", f"hold {number} is not the one that was put", ""
    for number in rows.keys() - told.keys():
        yield "V12", f"hold {number} was put by no event", ""


def in_force(core: Core, tx: sa.Connection, at: datetime) -> set[tuple[str, str]]:
    """Return datastore and study of each hold that the ledger says is in force, whatever the rows say."""
    return {(one.datastore, one.study_instance_uid) for one in said(core, tx).values() if one.until is None or one.until > at}


def require_none(core: Core, tx: sa.Connection, place: str, study_instance_uid: str, at: datetime) -> None:
    """Go on only if the ledger knows of no hold in force.

    Raises:
        StateConflict.
    """
    if (place, study_instance_uid) in in_force(core, tx, at):
        message = "the study is on hold, and nothing of it may be deleted"
        raise StateConflict(message, remedy="ask who put it on hold; 'archive hold list' shows why")


def mend(core: Core, at: datetime, *, surplus: bool = False) -> int:
    """Put back what is gone or was changed, and say so in the ledger; return how many. Rows that no event put stay unless `surplus`.

    Raises:
        DatabaseUnavailable.
    """
    with core.database.read() as tx:
        if not _differing(core, tx) and not surplus:
            return 0

    def work(tx: sa.Connection) -> int:
        return mend_in(core, tx, at, surplus=surplus)

    count = core.database.group(work, durable=True)
    if count:
        log.warning("%d holds were not as the ledger says, and were put back", count)
    return count


def mend_in(core: Core, tx: sa.Connection, at: datetime, *, surplus: bool = False) -> int:
    """Do so in a transaction."""
    places = {row.name: row.id for row in tx.execute(sa.select(datastore.c.id, datastore.c.name))}
    wrong = {number: one for number, one in _differing(core, tx).items() if one.datastore in places}
    for number, one in wrong.items():
        tx.execute(sa.delete(hold).where(hold.c.id == number))
        tx.execute(sa.insert(hold), {
            "id": number, "datastore_id": places[one.datastore], "study_instance_uid": one.study_instance_uid, "reason": one.reason,
            "hold_until": one.until, "principal_id": one.principal_id, "created_at": one.at,
        })
        detail = {**one.detail(number), "put_back": 1}
        core.ledger.record(tx, Event(Kind.HOLD_ADDED, objects=(ObjectRef("study", one.study_instance_uid),), detail=detail), at=at)
    if surplus:
        tx.execute(sa.delete(hold).where(hold.c.id.not_in(list(said(core, tx)))))
    if wrong:
        number_on(tx, (hold,))
    return len(wrong)


def _differing(core: Core, tx: sa.Connection) -> dict[int, Said]:
    rows = _rows(tx)
    return {
        number: one for number, one in said(core, tx).items()
        if rows.get(number) != (one.datastore, one.study_instance_uid, one.reason, one.until)
    }


def _rows(tx: sa.Connection) -> dict[int, tuple[str, str, str, datetime | None]]:
    query = sa.select(hold, datastore.c.name).outerjoin(datastore, datastore.c.id == hold.c.datastore_id)
    return {row.id: (row.name, row.study_instance_uid, row.reason, row.hold_until) for row in tx.execute(query)}
