"""Modality performed procedure steps: what a device says it does, from IN PROGRESS to COMPLETED or DISCONTINUED (PS3.4 Annex F).

What a device said is kept, bound to the studies and worklist entries it names, and changes no more once it is over. Only who made a
step may change it; to anybody else it is not there.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from archive.access import policy
from archive.access.permissions import Permission
from archive.access.policy import scope_of
from archive.access.subject import Subject
from archive.db.tables import mpps, mpps_step, worklist_entry
from archive.dicom import scheduled
from archive.dicom.matching import UID
from archive.dicom.scheduled import DataSet
from archive.errors import ArchiveError, NotFound, Rejected, Unavailable
from archive.ledger.audit import Event, Kind, ObjectRef, StoredRef
from archive.services import datastores, denials, mpps_seen, state_events, worklist, worklist_rows
from archive.services.core import Core
from archive.services.datastores import Datastore

Row = dict[str, Any]
Rows = list[Row]
Moved = list[tuple[sa.RowMapping, str]]
"""Worklist entries and the state each goes to."""

STATUS = "00400252"
SCHEDULED_STEPS, SERIES, REASON = "00400270", "00400340", "00400281"
WRONG_ENTRY = ("110514", "DCM")
"""Performed Procedure Step Discontinuation Reason: the wrong worklist entry was chosen (PS3.16 CID 9300)."""

STATES = {"IN PROGRESS": "in-progress", "COMPLETED": "completed", "DISCONTINUED": "discontinued"}
NEEDED = {
    SCHEDULED_STEPS: "ScheduledStepAttributesSequence", "00080060": "Modality", "00400241": "PerformedStationAETitle",
    "00400244": "PerformedProcedureStepStartDate", "00400245": "PerformedProcedureStepStartTime", STATUS: "PerformedProcedureStepStatus",
    "00400253": "PerformedProcedureStepID",
}
"""What an N-CREATE must say (PS3.4 Table F.7.2-1, type 1)."""
FIXED = frozenset({
    "00080060", "00100010", "00100020", "00100021", "00100030", "00100040", "00081120", SCHEDULED_STEPS, "00400241", "00400242", "00400243",
    "00400244", "00400245", "00400253", "00200010",
})  # fmt: skip
"""What an N-SET does not change."""

MISSING_ATTRIBUTE, MISSING_VALUE, INVALID_VALUE, ENDED = 0x0120, 0x0121, 0x0106, 0x0110
NO_LONGER_UPDATED = 0xA710
"""Error ID of PS3.4 F.7.2.2.2."""


class Invalid(Rejected):
    """A request that PS3.4 Annex F does not allow; names the attribute, never a value."""

    code = "invalid-step"

    def __init__(self, message: str, status: int, *, tag: str = "", error_id: int | None = None) -> None:
        """Keep status, attribute and Error ID of the answer."""
        super().__init__(message)
        self.status = status
        self.tag = int(tag, 16) if tag else None
        self.error_id = error_id


class _SameAgain(Exception):  # nothing is wrong: there is nothing to do
    """What was asked is so already."""


class Duplicate(Rejected):
    """A step of that SOP Instance UID is there already."""

    code = "duplicate-step"


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of a request; `ignored`: an attribute was left as it is."""

    sop_instance_uid: str
    ignored: bool = False


class ProcedureSteps:
    """The one way to performed procedure steps; safe to share between threads."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core

    def create(self, subject: Subject, datastore: str, sop_instance_uid: str, dataset: DataSet) -> Kept:
        """Keep a step that was begun; the same again from the same device is the same step. Durable when it returns.

        Raises:
            Forbidden, Invalid, Duplicate, ReadOnly, Unavailable.
        """
        core = self._core
        core.require_writable()
        uid = sop_instance_uid or f"2.25.{uuid.uuid4().int}"
        if not UID.fullmatch(uid) or len(uid) > 64:
            raise Invalid("the SOP Instance UID is not valid", 0x0117)
        _check_new(dataset)
        at = core.clock()

        def enter(tx: sa.Connection, *, lock: bool) -> Datastore:
            place = self._enter(tx, subject, datastore, at)
            there = _find(tx, place.id, uid, lock=lock)
            if there is not None:
                if there["principal_id"] == subject.principal_id and there["attributes"] == dataset:
                    raise _SameAgain
                raise Duplicate("a procedure step of that SOP Instance UID is there already")
            return place

        def work(tx: sa.Connection, stored: StoredRef) -> int:
            moved = begin(tx, enter(tx, lock=True).id, subject.principal_id, uid, dataset, at)
            return self._record(tx, subject, uid, dataset, "begun", at, moved, stored)

        try:
            with denials.recorded(core, subject):
                with core.database.read() as tx:
                    place = enter(tx, lock=False)
                self._seal(subject, place, uid, dataset, at, {"what": "begun", "dataset": dataset}, work)
        except _SameAgain:
            pass
        return Kept(uid)

    def set(self, subject: Subject, datastore: str, sop_instance_uid: str, changes: DataSet) -> Kept:
        """Change a step that is in progress, to its end when its status says so. Durable when it returns.

        Raises:
            NotFound: there is none, or another device's.
            Forbidden, Invalid, ReadOnly, Unavailable.
        """
        core = self._core
        core.require_writable()
        at = core.clock()
        wanted = {tag: one for tag, one in changes.items() if tag not in FIXED}
        ignored = False

        def enter(tx: sa.Connection, *, lock: bool) -> tuple[Datastore, sa.RowMapping, DataSet]:
            nonlocal ignored
            place = self._enter(tx, subject, datastore, at)
            row = _find(tx, place.id, sop_instance_uid, lock=lock)
            if row is None or row["principal_id"] != subject.principal_id:
                raise NotFound("there is no such procedure step")
            dataset = row["attributes"] | wanted
            ignored = any(tag in FIXED and one.get("Value") and one != row["attributes"].get(tag) for tag, one in changes.items())
            if row["state"] != "in-progress":
                if dataset == row["attributes"]:  # the answer to the first one was lost
                    raise _SameAgain
                raise Invalid("the procedure step may no longer be updated", ENDED, error_id=NO_LONGER_UPDATED)
            if _state(dataset) == "completed" and not scheduled.items(dataset, SERIES):
                raise Invalid("a completed step names its series", MISSING_ATTRIBUTE, tag=SERIES)
            return place, row, dataset

        def work(tx: sa.Connection, stored: StoredRef) -> int:
            _, row, dataset = enter(tx, lock=True)
            state, moved = alter(tx, row, dataset, at)
            what = "changed" if state == "in-progress" else state
            return self._record(tx, subject, sop_instance_uid, dataset, what, at, moved, stored)

        try:
            with denials.recorded(core, subject):
                with core.database.read() as tx:
                    place, _, dataset = enter(tx, lock=False)
                self._seal(subject, place, sop_instance_uid, dataset, at, {"what": "changed", "set": wanted}, work)
        except _SameAgain:
            pass
        return Kept(sop_instance_uid, ignored)

    def list(
        self, subject: Subject, *, datastore: str = "clinical", state: str = "", study_instance_uid: str = "", limit: int = 100
    ) -> Rows:
        """Return steps, the newest first.

        Raises:
            Forbidden, NotFound, Unavailable.
        """
        core = self._core
        at = core.clock()
        with denials.recorded(core, subject), core.database.read() as tx:
            policy.require(tx, subject, Permission.WORKLIST, at)
            place, scope = datastores.asked_for(tx, subject, datastore, at).id, scope_of(subject, Permission.SEARCH, at)
            query = sa.select(mpps).where(mpps.c.datastore_id == place, mpps_seen.listed(scope.shape, sqlite=core.database.sqlite))
            if state:
                query = query.where(mpps.c.state == state)
            if study_instance_uid:
                query = query.where(mpps.c.id.in_(
                    sa.select(mpps_step.c.mpps_id).where(mpps_step.c.study_instance_uid == study_instance_uid)
                ))
            rows = scope.run(tx, query.order_by(mpps.c.id.desc()).limit(limit)).mappings().all()
        found = [_shown(row) for row in rows]
        self._record_read(subject, found, study_instance_uid)
        return found

    def of_study(self, subject: Subject, datastore: str, study_instance_uid: str) -> Rows:
        """Return the steps that acquired a study, as far as the subject may see its series; of any other study there are none.

        Raises:
            NotFound, Unavailable.
        """
        core = self._core
        at = core.clock()
        with core.database.read() as tx:
            place = datastores.asked_for(tx, subject, datastore, at).id
            rows = mpps_seen.of_study(tx, scope_of(subject, Permission.SEARCH, at), place, study_instance_uid)
        found = [_told_of(_shown(row), study_instance_uid, shown) for row, shown in rows]
        if found:
            self._record_read(subject, found, study_instance_uid)
        return found

    def _enter(self, tx: sa.Connection, subject: Subject, datastore: str, at: datetime) -> Datastore:
        policy.require(tx, subject, Permission.MPPS, at)
        return datastores.asked_for(tx, subject, datastore, at)

    def _seal(
        self, subject: Subject, place: Datastore, uid: str, dataset: DataSet, at: datetime, said: dict[str, Any],
        work: Callable[[sa.Connection, StoredRef], int],
    ) -> None:
        """Seal what was said before it is answered: a lost index is made again from it."""
        about = next((study for study, _ in _named(dataset) if study), "")
        state_events.commit_change(
            self._core, state_events.STEP, datastore=place.uid, study_instance_uid=about, objects=(), reason="", at=at, work=work,
            more={"datastore": place.uid.hex(), "by": subject.principal_id, "uid": uid, **said},
        )

    def _record(
        self, tx: sa.Connection, subject: Subject, uid: str, dataset: DataSet, what: str, at: datetime, moved: Moved, stored: StoredRef
    ) -> int:
        for entry, state in moved:
            worklist.record(self._core, tx, subject, entry, state, at)
        patient = scheduled.text(dataset, "00100020")
        objects = [ObjectRef("patient", patient)] if patient else []
        objects += [ObjectRef("study", about) for about in dict.fromkeys(about for about, _ in _named(dataset))]
        said = hashlib.sha256(msgspec.json.encode(dataset, order="sorted")).hexdigest()
        return self._core.ledger.record(tx, Event(Kind.PROCEDURE_STEP, subject=subject, objects=tuple(objects), stored=stored, detail={
            "what": what, "sop_instance_uid": uid, "step": scheduled.text(dataset, "00400253"), "said_sha256": said,
        }), at=at)

    def _record_read(self, subject: Subject, found: Rows, study_instance_uid: str) -> None:
        """No audit, no data."""
        core = self._core
        patients = dict.fromkeys(row["patient_id"] for row in found if row["patient_id"])
        objects = [ObjectRef("patient", one) for one in patients]
        objects += [ObjectRef("study", study_instance_uid)] if study_instance_uid else []
        event = Event(Kind.READ, subject=subject, objects=tuple(objects), detail={"what": "procedure-steps", "found": len(found)})
        try:
            core.database.group(lambda tx: core.ledger.record(tx, event, at=core.clock()), durable=True)
        except (ArchiveError, sa.exc.SQLAlchemyError) as error:
            message = "the read could not be recorded, so nothing was answered"
            raise Unavailable(message, remedy=getattr(error, "remedy", "") or "run 'archive doctor'") from error


def begin(tx: sa.Connection, place: int, by: int, uid: str, dataset: DataSet, at: datetime) -> Moved:
    """Insert a step that was begun, and return the worklist entries that begin with it."""
    made = tx.execute(sa.insert(mpps).values(
        datastore_id=place, sop_instance_uid=uid, state="in-progress", principal_id=by,
        station_ae_title=scheduled.text(dataset, "00400241"), modality=scheduled.text(dataset, "00080060"),
        patient_id=scheduled.text(dataset, "00100020"), attributes=dataset, created_at=at, updated_at=at,
    ))
    assert made.inserted_primary_key is not None
    key = int(made.inserted_primary_key[0])
    moved: Moved = []
    for about, number in _named(dataset):
        entries = worklist_rows.of_step(tx, place, about, number)
        links = [entry["id"] for entry in entries] or [None]
        tx.execute(sa.insert(mpps_step), [{"mpps_id": key, "study_instance_uid": about, "entry_id": link} for link in links])
        moved += [(entry, "in-progress") for entry in entries if entry["state"] in ("scheduled", "discontinued")]
    for entry, state in moved:
        worklist_rows.move(tx, entry, state, at)
    return moved


def alter(tx: sa.Connection, row: sa.RowMapping, dataset: DataSet, at: datetime) -> tuple[str, Moved]:
    """Give a step that is in progress other content, and return its state and the worklist entries that follow it."""
    state = _state(dataset)
    tx.execute(sa.update(mpps).where(mpps.c.id == row["id"]).values(attributes=dataset, state=state, updated_at=at))
    if state == "in-progress":
        return state, []
    # Only entries of which no other step goes on follow.
    own = sa.select(mpps_step.c.entry_id).where(mpps_step.c.mpps_id == row["id"], mpps_step.c.entry_id.is_not(None))
    others = sa.select(mpps_step.c.id).join(mpps, mpps.c.id == mpps_step.c.mpps_id).where(
        mpps_step.c.entry_id == worklist_entry.c.id, mpps_step.c.mpps_id != row["id"], mpps.c.state == "in-progress"
    )
    query = sa.select(worklist_entry).where(
        worklist_entry.c.id.in_(own), worklist_entry.c.state == "in-progress", sa.not_(others.correlate(worklist_entry).exists())
    )
    becomes = "scheduled" if state == "discontinued" and _wrong_entry(dataset) else state
    # What another step of it completed was done, however the last one ends.
    done = set(tx.execute(sa.select(mpps_step.c.entry_id).join(mpps, mpps.c.id == mpps_step.c.mpps_id).where(
        mpps_step.c.entry_id.in_(own), mpps_step.c.mpps_id != row["id"], mpps.c.state == "completed"
    )).scalars())
    moved = [(entry, "completed" if entry["id"] in done else becomes) for entry in tx.execute(query).mappings().all()]
    for entry, to in moved:
        worklist_rows.move(tx, entry, to, at)
    return state, moved


def redo(tx: sa.Connection, place: int, change: dict[str, Any]) -> None:
    """Do again what a sealed record says was answered with success; what is there already stays."""
    at = datetime.fromisoformat(change["at"])
    row = _find(tx, place, change["uid"], lock=False)
    if change["what"] == "begun":
        if row is None:
            begin(tx, place, change["by"], change["uid"], change["dataset"], at)
    elif row is not None and row["state"] == "in-progress":
        alter(tx, row, row["attributes"] | change["set"], at)


def _find(tx: sa.Connection, place: int, uid: str, *, lock: bool) -> sa.RowMapping | None:
    query = sa.select(mpps).where(mpps.c.datastore_id == place, mpps.c.sop_instance_uid == uid)
    return tx.execute(query.with_for_update() if lock else query).mappings().first()


def _check_new(dataset: DataSet) -> None:
    for tag, name in NEEDED.items():
        if tag not in dataset:
            raise Invalid(f"{name} is missing", MISSING_ATTRIBUTE, tag=tag)
        if not (scheduled.items(dataset, tag) if tag == SCHEDULED_STEPS else scheduled.text(dataset, tag)):
            raise Invalid(f"{name} has no value", MISSING_VALUE, tag=tag)
    if len(scheduled.items(dataset, SCHEDULED_STEPS)) > 100:
        raise Invalid("a step performs at most 100 scheduled ones", INVALID_VALUE, tag=SCHEDULED_STEPS)
    if not all(about for about, _ in _named(dataset)):
        raise Invalid("StudyInstanceUID is missing", MISSING_ATTRIBUTE, tag="0020000D")
    if scheduled.text(dataset, STATUS) != "IN PROGRESS":
        raise Invalid("a step begins IN PROGRESS", INVALID_VALUE, tag=STATUS)


def _named(dataset: DataSet) -> list[tuple[str, str]]:
    """Return study and scheduled step of each step that is performed."""
    found = [(scheduled.text(one, "0020000D"), scheduled.text(one, "00400009")) for one in scheduled.items(dataset, SCHEDULED_STEPS)]
    return list(dict.fromkeys(found))


def _state(dataset: DataSet) -> str:
    found = STATES.get(scheduled.text(dataset, STATUS))
    if found is None:
        raise Invalid("no status of a procedure step", INVALID_VALUE, tag=STATUS)
    return found


def _wrong_entry(dataset: DataSet) -> bool:
    return any(
        (scheduled.text(code, "00080100"), scheduled.text(code, "00080102")) == WRONG_ENTRY for code in scheduled.items(dataset, REASON)
    )


def _shown(row: sa.RowMapping) -> Row:
    dataset = row["attributes"]
    series = scheduled.items(dataset, SERIES)
    count = sum(len(scheduled.items(one, "00081140")) + len(scheduled.items(one, "00400220")) for one in series)
    return {
        "id": row["id"], "sop_instance_uid": row["sop_instance_uid"], "state": row["state"], "patient_id": row["patient_id"],
        "patient_name": scheduled.text(dataset, "00100010"), "modality": row["modality"], "station": row["station_ae_title"],
        "started": scheduled.text(dataset, "00400244") + " " + scheduled.text(dataset, "00400245"),
        "ended": (scheduled.text(dataset, "00400250") + " " + scheduled.text(dataset, "00400251")).strip(),
        "step": scheduled.text(dataset, "00400253"), "description": scheduled.text(dataset, "00400254"),
        "reason": "; ".join(scheduled.text(code, "00080104") for code in scheduled.items(dataset, REASON)),
        "studies": list(dict.fromkeys(about for about, _ in _named(dataset))),
        "series": [scheduled.text(one, "0020000E") for one in series], "instances": count,
        "created_at": row["created_at"], "updated_at": row["updated_at"], "dataset": dataset,
    }


def _told_of(step: Row, study_instance_uid: str, series: list[str]) -> Row:
    """Leave out of a step what it says of other studies and of series that are not there for whoever asks."""
    told = {name: value for name, value in step.items() if name not in ("dataset", "instances")}
    return told | {"studies": [study_instance_uid], "series": series}
