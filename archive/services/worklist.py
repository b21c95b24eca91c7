"""The modality worklist: what is to be acquired, for whom, when and where (PS3.4 Annex K).

An entry is one scheduled procedure step. Who may see it: whoever holds the permission `worklist`, in the datastore; a device only what is
scheduled for one of its AE titles, or for no station in particular, unless it was set to see everything. That condition is part of the
statement that reads; keys narrow further, over the rows it lets through. Every page is in the ledger before it is shown.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from archive.access import policy
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.tables import peer, peer_ae_title, worklist_entry, worklist_station
from archive.dicom import scheduled
from archive.dicom.scheduled import DataSet
from archive.errors import ArchiveError, Forbidden, InvalidRequest, NotFound, StateConflict, Unavailable
from archive.ledger.audit import Event, Kind, ObjectRef
from archive.services import datastores, denials
from archive.services.core import Core

Row = dict[str, Any]
Rows = list[Row]
Meets = Callable[[DataSet], bool]

PAGE_ROWS = 200
STEPS = "00400100"  # Scheduled Procedure Step Sequence
KEEP = timedelta(days=90)
OPEN = ("scheduled", "in-progress")
"""The states in which a modality still sees an entry."""

STEP_STATUS = "00400020"
_SHOWN_STATUS = {"in-progress": "STARTED", "cancelled": "CANCELLED", "completed": "DEPARTED", "discontinued": "DEPARTED"}
_NEEDED = {"00100010": "PatientName", "00100020": "PatientID"}
_NEEDED_OF_STEP = {"00080060": "Modality", "00400002": "ScheduledProcedureStepStartDate"}
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
                    rows = tx.execute(_page(subject, place, request, after)).mappings().all()
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
            row = tx.execute(_visible(subject, place).where(worklist_entry.c.id == number)).mappings().first()
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
        with denials.recorded(core, subject), core.database.begin() as tx:
            policy.require(tx, subject, _WRITE, at)
            place = datastores.asked_for(tx, subject, datastore, at).id
            made = [self._put(tx, subject, place, entry, source, at) for entry in entries]
            return [_shown(row) for row in made]

    def cancel(self, subject: Subject, number: int, *, datastore: str = "clinical") -> Row:
        """Take an entry off the worklist; one that was begun stays.

        Raises:
            Forbidden, NotFound, StateConflict.
        """
        core = self._core
        core.require_writable()
        at = core.clock()
        with denials.recorded(core, subject), core.database.begin() as tx:
            policy.require(tx, subject, _WRITE, at)
            place = datastores.asked_for(tx, subject, datastore, at).id
            row = tx.execute(_visible(subject, place).where(worklist_entry.c.id == number).with_for_update()).mappings().first()
            if row is None:
                raise _absent()
            if row["state"] not in ("scheduled", "cancelled"):
                message = f"the entry is {row['state'].replace('-', ' ')} and cannot be cancelled"
                raise StateConflict(message, remedy="the modality completes or discontinues it")
            if row["state"] == "scheduled":
                change(core, tx, subject, row, "cancelled", at)
            return _shown(_row(tx, number))

    def _put(self, tx: sa.Connection, subject: Subject, place: int, entry: DataSet, source: str, at: datetime) -> sa.RowMapping:
        step = scheduled.items(entry, STEPS)[0]
        values = {
            "start_date": scheduled.text(step, "00400002"), "modality": scheduled.text(step, "00080060"),
            "patient_id": scheduled.text(entry, "00100020"), "accession_number": scheduled.text(entry, "00080050"),
            "attributes": entry, "source": source[:64], "updated_at": at,
        }
        study, number = scheduled.text(entry, "0020000D"), scheduled.text(step, "00400009")
        w = worklist_entry.c
        same = sa.and_(w.datastore_id == place, w.study_instance_uid == study, w.procedure_step_id == number)
        there = tx.execute(sa.select(worklist_entry).where(same).with_for_update()).mappings().first()
        if there is None:
            made = tx.execute(sa.insert(worklist_entry).values(
                datastore_id=place, study_instance_uid=study, procedure_step_id=number, state="scheduled", created_at=at, **values
            ))
            assert made.inserted_primary_key is not None
            key, what = int(made.inserted_primary_key[0]), "entered"
        else:
            key, what = there["id"], "replaced"
            if there["attributes"] == entry and there["state"] == "scheduled":
                return there
            if there["state"] != "scheduled":
                message = f"that procedure step is {there['state'].replace('-', ' ')} already"
                raise StateConflict(message, remedy="give the new one another ScheduledProcedureStepID")
            tx.execute(sa.update(worklist_entry).where(w.id == key).values(values))
            tx.execute(sa.delete(worklist_station).where(worklist_station.c.entry_id == key))
        titles = dict.fromkeys(scheduled.texts(step, "00400001"))
        if titles:
            tx.execute(sa.insert(worklist_station), [{"entry_id": key, "ae_title": title} for title in titles])
        row = _row(tx, key)
        self._record_change(tx, subject, row, what, at)
        return row

    def _record_change(self, tx: sa.Connection, subject: Subject, row: sa.RowMapping, what: str, at: datetime) -> None:
        record(self._core, tx, subject, row, what, at)

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


def change(core: Core, tx: sa.Connection, subject: Subject, row: sa.RowMapping, state: str, at: datetime) -> None:
    """Move an entry to another state, and say so in the ledger."""
    tx.execute(sa.update(worklist_entry).where(worklist_entry.c.id == row["id"]).values(state=state, updated_at=at))
    record(core, tx, subject, row, state, at)


def record(core: Core, tx: sa.Connection, subject: Subject, row: sa.RowMapping, what: str, at: datetime) -> None:
    """Record what became of an entry."""
    objects = [ObjectRef("patient", row["patient_id"])] if row["patient_id"] else []
    core.ledger.record(tx, Event(
        Kind.WORKLIST_CHANGED, subject=subject, objects=(*objects, ObjectRef("study", row["study_instance_uid"])),
        detail={"what": what, "id": row["id"], "step": row["procedure_step_id"], "modality": row["modality"], "source": row["source"]},
    ), at=at)


def of_step(tx: sa.Connection, place: int, study: str, number: str) -> list[sa.RowMapping]:
    """Return the entries that a performed step names: by its step's ID, or where it says none by the study."""
    w = worklist_entry.c
    query = sa.select(worklist_entry).where(w.datastore_id == place, w.study_instance_uid == study, w.state != "cancelled")
    if number:
        query = query.where(w.procedure_step_id == number)
    return list(tx.execute(query.order_by(w.id).with_for_update()).mappings())


def sweep(tx: sa.Connection, at: datetime) -> None:
    """Forget entries whose day is long gone, whatever became of them; what was performed is kept with its study."""
    w = worklist_entry.c
    before = (at - KEEP).strftime("%Y%m%d")
    tx.execute(sa.delete(worklist_entry).where(w.start_date < before, w.updated_at < at - KEEP))


def _visible(subject: Subject, place: int) -> sa.Select[Any]:
    """The entries of a datastore that a subject who may see the worklist sees."""
    query = sa.select(worklist_entry).where(worklist_entry.c.datastore_id == place)
    if subject.kind != "device":
        return query
    station, title = worklist_station.c, peer_ae_title.c
    here = sa.select(station.id).where(station.entry_id == worklist_entry.c.id)
    own = sa.select(title.ae_title).where(title.peer_id == subject.peer_id)
    whole = sa.select(peer.c.id).where(peer.c.id == subject.peer_id, peer.c.whole_worklist)
    return query.where(sa.or_(
        sa.not_(here.correlate(worklist_entry).exists()),
        here.where(station.ae_title.in_(own)).correlate(worklist_entry).exists(),
        whole.exists(),
    ))


def _page(subject: Subject, place: int, request: WorklistRequest, after: tuple[str, int]) -> sa.Select[Any]:
    w = worklist_entry.c
    query = _visible(subject, place).where(sa.or_(w.start_date > after[0], sa.and_(w.start_date == after[0], w.id > after[1])))
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


def _row(tx: sa.Connection, key: int) -> sa.RowMapping:
    return tx.execute(sa.select(worklist_entry).where(worklist_entry.c.id == key)).mappings().one()


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
    missing = [name for tag, name in _NEEDED.items() if not scheduled.text(dataset, tag)]
    missing += [name for tag, name in _NEEDED_OF_STEP.items() if not all(scheduled.text(step, tag) for step in steps)]
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
