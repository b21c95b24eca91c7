"""The modality worklist: what is to be acquired, for whom, when and where (PS3.4 Annex K).

An entry is one scheduled procedure step. Who may see it: whoever holds the permission `worklist`, in the datastore, and is denied neither
patient nor study; a device only what is scheduled for one of its AE titles, or for no station in particular, unless it was set to see
everything. That condition is part of the statement that reads; keys narrow further, over the rows it lets through. Every page is in the
ledger before it is shown.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from archive.access import policy
from archive.access.permissions import Permission
from archive.access.policy import Scope, scope_of
from archive.access.subject import Subject
from archive.db.tables import worklist_entry
from archive.dicom import scheduled
from archive.dicom.scheduled import DataSet
from archive.errors import ArchiveError, Forbidden, InvalidRequest, NotFound, StateConflict, Unavailable
from archive.ledger.audit import Event, Kind, ObjectRef, StoredRef
from archive.services import datastores, denials, state_events
from archive.services.core import Core
from archive.services.datastores import Datastore
from archive.services.worklist_rows import STEPS, by_key, move, put
from archive.services.worklist_seen import require_seen, visible

Row = dict[str, Any]
Rows = list[Row]
Meets = Callable[[DataSet], bool]

PAGE_ROWS = 200
KEEP = timedelta(days=90)
OPEN = ("scheduled", "in-progress")
"""The states in which a modality still sees an entry."""

STEP_STATUS = "00400020"
_SHOWN_STATUS = {"in-progress": "STARTED", "cancelled": "CANCELLED", "completed": "DEPARTED", "discontinued": "DEPARTED"}
NEEDED = {"00100010": "PatientName", "00100020": "PatientID"}
NEEDED_OF_STEP = {"00080060": "Modality", "00400002": "ScheduledProcedureStepStartDate"}
_WRITE = Permission.WORKLIST | Permission.STORE


@dataclass(frozen=True, slots=True)
class WorklistRequest:
    """What is asked; `meets` decides, the rest only narrows what it is asked about."""

    datastore: str = "clinical"
    meets: Meets = lambda _entry: True
    first_date: str = ""
    last_date: str = ""
    patient_id: str = ""
    accession_number: str = ""
    every: bool = False
    """Entries that are over too."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """What was asked in words, for the sealed body of the event."""


class _SameAgain(Exception):  # nothing is wrong: there is nothing to do
    """What was asked is so already."""


class Worklist:
    """The one way to entries; safe to share between threads."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core

    def find(self, subject: Subject, request: WorklistRequest) -> Iterator[Rows]:
        """Yield entries that match, by date, a page at a time; who may not see the worklist sees an empty one.

        Raises:
            NotFound: no such datastore.
            Unavailable: the search could not be recorded, so nothing is answered.
        """
        core = self._core
        after: tuple[str, int] = ("", 0)
        while True:
            at = core.clock()
            try:
                with denials.recorded(core, subject), core.database.read() as tx:
                    policy.require(tx, subject, Permission.WORKLIST, at)
                    place = datastores.asked_for(tx, subject, request.datastore, at).id
                    scope = scope_of(subject, Permission.SEARCH, at)
                    rows = scope.run(tx, _page(scope, subject, place, request, after)).mappings().all()
            except Forbidden:
                return
            found = [shown for row in rows if request.meets((shown := _shown(row))["dataset"])]
            self._record_search(subject, request, found)
            yield found
            if len(rows) < PAGE_ROWS:
                return
            after = (rows[-1]["start_date"], rows[-1]["id"])

    def list(self, subject: Subject, request: WorklistRequest, *, limit: int = 1000) -> Rows:
        """Return entries that match, by date.

        Raises:
            Forbidden, NotFound, Unavailable.
        """
        core = self._core
        with denials.recorded(core, subject), core.database.read() as tx:
            policy.require(tx, subject, Permission.WORKLIST, core.clock())
        found: Rows = []
        for page in self.find(subject, request):
            found += page
            if len(found) >= limit:
                break
        return found[:limit]

    def get(self, subject: Subject, number: int, *, datastore: str = "clinical") -> Row:
        """Return one entry.

        Raises:
            Forbidden, NotFound, Unavailable.
        """
        core = self._core
        at = core.clock()
        with denials.recorded(core, subject), core.database.read() as tx:
            policy.require(tx, subject, Permission.WORKLIST, at)
            place = datastores.asked_for(tx, subject, datastore, at).id
            scope = scope_of(subject, Permission.SEARCH, at)
            row = scope.run(tx, visible(scope, subject, place).where(worklist_entry.c.id == number)).mappings().first()
        if row is None:
            raise _absent()
        found = _shown(row)
        self._record_search(subject, WorklistRequest(datastore, keys={"id": str(number)}), [found])
        return found

    def add(self, subject: Subject, dataset: DataSet, *, datastore: str = "clinical", source: str = "") -> Rows:
        """Enter what a data set schedules, an entry for each of its steps; one that is there already is replaced while it waits.

        What is missing and need not be said is made: StudyInstanceUID, ScheduledProcedureStepID, RequestedProcedureID, the start time.

        Raises:
            Forbidden, NotFound, InvalidRequest, StateConflict.
        """
        core = self._core
        core.require_writable()
        entries = _entries(dataset)
        at = core.clock()
        made: Rows = []

        def enter(tx: sa.Connection) -> Datastore:
            place = self._enter(tx, subject, datastore, at)
            require_seen(tx, subject, place.id, entries, at)
            return place

        def work(tx: sa.Connection, stored: StoredRef) -> int:
            place = enter(tx)
            put_now = [put(tx, place.id, entry, source, at) for entry in entries]
            made[:] = [_shown(row) for row, _ in put_now]
            changed = [(row, what) for row, what in put_now if what]
            if not changed:
                raise _SameAgain
            for row, what in changed[:-1]:
                record(core, tx, subject, row, what, at)
            return record(core, tx, subject, *changed[-1], at, stored)

        said = {"what": "entered", "entries": entries, "source": source}
        with denials.recorded(core, subject):
            with core.database.read() as tx:
                place = enter(tx)
            with suppress(_SameAgain):
                self._seal(subject, place, scheduled.text(entries[0], "0020000D"), at, said, work)
        return made

    def cancel(self, subject: Subject, number: int, *, datastore: str = "clinical") -> Row:
        """Take an entry off the worklist; one that was begun stays.

        Raises:
            Forbidden, NotFound, StateConflict.
        """
        core = self._core
        core.require_writable()
        at = core.clock()
        shown: Rows = []

        def enter(tx: sa.Connection, *, lock: bool) -> tuple[Datastore, sa.RowMapping]:
            place = self._enter(tx, subject, datastore, at)
            scope = scope_of(subject, Permission.SEARCH, at)
            query = visible(scope, subject, place.id).where(worklist_entry.c.id == number)
            row = scope.run(tx, query.with_for_update() if lock else query).mappings().first()
            if row is None:
                raise _absent()
            if row["state"] not in ("scheduled", "cancelled"):
                message = f"the entry is {row['state'].replace('-', ' ')} and cannot be cancelled"
                raise StateConflict(message, remedy="the modality completes or discontinues it")
            shown[:] = [_shown(row)]
            if row["state"] == "cancelled":
                raise _SameAgain
            return place, row

        def work(tx: sa.Connection, stored: StoredRef) -> int:
            _, row = enter(tx, lock=True)
            move(tx, row, "cancelled", at)
            shown[:] = [_shown(by_key(tx, number))]
            return record(core, tx, subject, row, "cancelled", at, stored)

        with denials.recorded(core, subject), suppress(_SameAgain):
            with core.database.read() as tx:
                place, row = enter(tx, lock=False)
            said = {"what": "cancelled", "step": row["procedure_step_id"]}
            self._seal(subject, place, row["study_instance_uid"], at, said, work)
        return shown[0]

    def _enter(self, tx: sa.Connection, subject: Subject, datastore: str, at: datetime) -> Datastore:
        policy.require(tx, subject, _WRITE, at)
        return datastores.asked_for(tx, subject, datastore, at)

    def _seal(
        self, subject: Subject, place: Datastore, study: str, at: datetime, said: dict[str, Any],
        work: Callable[[sa.Connection, StoredRef], int],
    ) -> None:
        """Seal what was entered before it is answered: a lost index is made again from it."""
        state_events.commit_change(
            self._core, state_events.ENTRY, datastore=place.uid, study_instance_uid=study, objects=(), reason="", at=at, work=work,
            more={"datastore": place.uid.hex(), "by": subject.principal_id, **said},
        )

    def _record_search(self, subject: Subject, request: WorklistRequest, found: Rows) -> None:
        """No audit, no data."""
        core = self._core
        patients = dict.fromkeys(row["patient_id"] for row in found if row["patient_id"])
        event = Event(
            Kind.SEARCHED, subject=subject, objects=tuple(ObjectRef("patient", one) for one in patients),
            detail={"what": "worklist", "datastore": request.datastore, "keys": dict(request.keys), "found": len(found)},
        )
        try:
            core.database.group(lambda tx: core.ledger.record(tx, event, at=core.clock()), durable=True)
        except (ArchiveError, sa.exc.SQLAlchemyError) as error:
            message = "the search could not be recorded, so nothing was answered"
            raise Unavailable(message, remedy=getattr(error, "remedy", "") or "run 'archive doctor'") from error


def record(
    core: Core, tx: sa.Connection, subject: Subject, row: sa.RowMapping, what: str, at: datetime, stored: StoredRef | None = None
) -> int:
    """Record what became of an entry, and return the event's number."""
    objects = [ObjectRef("patient", row["patient_id"])] if row["patient_id"] else []
    return core.ledger.record(tx, Event(
        Kind.WORKLIST_CHANGED, subject=subject, objects=(*objects, ObjectRef("study", row["study_instance_uid"])), stored=stored,
        detail={"what": what, "id": row["id"], "step": row["procedure_step_id"], "modality": row["modality"], "source": row["source"]},
    ), at=at)


def sweep(tx: sa.Connection, at: datetime) -> None:
    """Forget entries whose day is long gone, whatever became of them; what was performed is kept with its study."""
    w = worklist_entry.c
    before = (at - KEEP).strftime("%Y%m%d")
    tx.execute(sa.delete(worklist_entry).where(w.start_date < before, w.updated_at < at - KEEP))


def _page(scope: Scope, subject: Subject, place: int, request: WorklistRequest, after: tuple[str, int]) -> sa.Select[Any]:
    w = worklist_entry.c
    query = visible(scope, subject, place).where(sa.or_(w.start_date > after[0], sa.and_(w.start_date == after[0], w.id > after[1])))
    if not request.every:
        query = query.where(w.state.in_(OPEN))
    if request.first_date:
        query = query.where(w.start_date >= request.first_date)
    if request.last_date:
        query = query.where(w.start_date <= request.last_date)
    if request.patient_id:
        query = query.where(w.patient_id == request.patient_id)
    if request.accession_number:
        query = query.where(w.accession_number == request.accession_number)
    return query.order_by(w.start_date, w.id).limit(PAGE_ROWS)


def _shown(row: sa.RowMapping) -> Row:
    """Return an entry as it is answered; the step's status is what became of it here."""
    dataset = dict(row["attributes"])
    step = dict(scheduled.items(dataset, STEPS)[0])
    if row["state"] in _SHOWN_STATUS or not scheduled.text(step, STEP_STATUS):
        step[STEP_STATUS] = scheduled.element("CS", [_SHOWN_STATUS.get(row["state"], "SCHEDULED")])
    dataset[STEPS] = scheduled.element("SQ", [dict(sorted(step.items()))])
    return {
        "id": row["id"], "state": row["state"], "patient_id": row["patient_id"], "patient_name": scheduled.text(dataset, "00100010"),
        "station": scheduled.texts(step, "00400001"), "start_date": row["start_date"], "start_time": scheduled.text(step, "00400003"),
        "modality": row["modality"], "accession_number": row["accession_number"], "procedure_step_id": row["procedure_step_id"],
        "study_instance_uid": row["study_instance_uid"], "description": scheduled.text(step, "00400007"), "source": row["source"],
        "created_at": row["created_at"], "updated_at": row["updated_at"], "dataset": dataset,
    }


def _entries(dataset: DataSet) -> list[DataSet]:
    """Split a data set into entries of one step each, with what must be there.

    Raises:
        InvalidRequest: names what is missing.
    """
    steps = scheduled.items(dataset, STEPS)
    if not 1 <= len(steps) <= 64:
        message = "an entry has a ScheduledProcedureStepSequence of 1 to 64 items"
        raise InvalidRequest(message, remedy="see docs/worklist.md for what an entry holds")
    missing = [name for tag, name in NEEDED.items() if not scheduled.text(dataset, tag)]
    missing += [name for tag, name in NEEDED_OF_STEP.items() if not all(scheduled.text(step, tag) for step in steps)]
    if missing:
        message = f"an entry needs {', '.join(missing)}"
        raise InvalidRequest(message, remedy="see docs/worklist.md for what an entry holds")
    common = {tag: one for tag, one in dataset.items() if tag != STEPS}
    if not scheduled.text(common, "0020000D"):
        common["0020000D"] = scheduled.element("UI", [f"2.25.{uuid.uuid4().int}"])
    made = []
    for step in steps:
        number = scheduled.text(step, "00400009") or f"S{secrets.token_hex(5).upper()}"
        filled = step | {"00400009": scheduled.element("SH", [number])}
        if not scheduled.text(step, "00400003"):
            filled["00400003"] = scheduled.element("TM", ["000000"])
        own = dict(common)
        if not scheduled.text(own, "00401001"):
            own["00401001"] = scheduled.element("SH", [number])
        own[STEPS] = scheduled.element("SQ", [dict(sorted(filled.items()))])
        made.append(dict(sorted(own.items())))
    return made


def _absent() -> NotFound:
    message = "there is no such worklist entry"
    return NotFound(message, remedy="'archive worklist list --all' names them")


def asked(
    *, date: str = "", station: str = "", modality: str = "", patient_id: str = "", accession_number: str = "", every: bool = False,
    datastore: str = "clinical",
) -> WorklistRequest:
    """Return what people and programs ask of the worklist in words; a date is one day or a range of days.

    Raises:
        InvalidRequest: no date.
    """
    first, dash, last = (part.strip() for part in date.partition("-"))
    if any(day and not (len(day) == 8 and day.isdecimal()) for day in (first, last)):
        message = "a date is YYYYMMDD, or YYYYMMDD-YYYYMMDD"
        raise InvalidRequest(message)

    def meets(entry: DataSet) -> bool:
        step = scheduled.items(entry, STEPS)[0]
        return (not station or station in scheduled.texts(step, "00400001")) and modality in ("", scheduled.text(step, "00080060"))

    words = {"date": date, "station": station, "modality": modality, "patient_id": patient_id, "accession_number": accession_number}
    return WorklistRequest(
        datastore, meets, first_date=first, last_date=last if dash else first, patient_id=patient_id, accession_number=accession_number,
        every=every, keys={name: text for name, text in words.items() if text},
    )
