"""/api/holds, /api/reconcile, /api/imports: what is kept from deletion, what waits for a decision, what was brought in."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from msgspec import Meta, field

from archive.access.permissions import Permission
from archive.services import datastores
from archive.web.api.operation import Asked, Operation, Taken, Told
from archive.web.context import node, subject

_P = Permission
Row = dict[str, Any]
Instant = Annotated[datetime, Meta(tz=True)]


class Hold(Told):
    """A hold on a study; `until` is empty where it has no end."""

    id: int
    study_instance_uid: str
    reason: str
    until: str
    created_at: str
    in_force: bool


class NewHold(Taken):
    """A hold to put on a study, which nobody can delete until it ends."""

    study: str
    reason: str
    until: Instant | None = None
    datastore: str = datastores.DEFAULT


class Made(Told):
    """What was made."""

    id: int


class HoldQuery(Taken):
    """Which holds."""

    study: str = ""


class Reason(Taken):
    """Why."""

    reason: str


class Held(Told):
    """An instance that waits for a decision, or was decided."""

    id: int
    reason: str
    state: str
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    patient_id: str
    patient_name: str
    sha256: str
    created_at: str


class HeldShown(Held):
    """One with its findings and how it differs from what is stored under its UIDs."""

    findings: list[str]
    differing: list[str] = field(default_factory=list)


class HeldQuery(Taken):
    """With `every`, what was decided too."""

    every: bool = False


class Import(Told):
    """A bulk import."""

    id: int
    state: str
    datastore: str
    created_at: str
    finished_at: str | None
    stored: int = 0
    duplicate: int = 0
    conflict: int = 0
    rejected: int = 0


class ImportShown(Import):
    """One with the outcome of each file."""

    files: list[Row] = field(default_factory=list)


def _add_hold(asked: Asked) -> Any:
    given: NewHold = asked.body
    return {"id": node().holds.add(subject(), given.datastore, given.study, reason=given.reason, until=given.until)}


OPERATIONS = (
    Operation("GET", "/holds", "holds", "List holds on studies one may let go", _P.HOLD,
              lambda asked: node().holds.list(subject(), study_instance_uid=asked.query.study), list[Hold], query=HoldQuery, tag="holds"),
    Operation("POST", "/holds", "hold_add", "Keep a study from deletion", _P.HOLD, _add_hold, Made, NewHold, status=201, tag="holds",
              refuses=(404,)),
    Operation("DELETE", "/holds/<number>", "hold_remove", "Let a study go", _P.HOLD,
              lambda asked, number: node().holds.remove(subject(), number, reason=asked.query.reason), query=Reason, tag="holds",
              refuses=(404,)),
    Operation("GET", "/reconcile", "reconcile", "List instances that wait for a decision", _P.PATIENT_MERGE,
              lambda asked: node().reconcile.list(subject(), every=asked.query.every), list[Held], query=HeldQuery, tag="reconcile"),
    Operation("GET", "/reconcile/<number>", "reconcile_show", "Show one, with how it differs", _P.PATIENT_MERGE,
              lambda _asked, number: node().reconcile.show(subject(), number), HeldShown, tag="reconcile", refuses=(404,)),
    Operation("POST", "/reconcile/<number>/accept", "reconcile_accept", "Let it in", _P.PATIENT_MERGE,
              lambda asked, number: node().reconcile.accept(subject(), number, reason=asked.body.reason), body=Reason, tag="reconcile",
              refuses=(404, 409)),
    Operation("POST", "/reconcile/<number>/reject", "reconcile_reject", "Close the case; it stays sealed, out of sight", _P.PATIENT_MERGE,
              lambda asked, number: node().reconcile.reject(subject(), number, reason=asked.body.reason), body=Reason, tag="reconcile",
              refuses=(404, 409)),
    Operation("GET", "/imports", "imports", "List bulk imports, newest first", _P.JOB_MANAGE, lambda _asked: node().imports.list(subject()),
              list[Import], tag="imports"),
    Operation("GET", "/imports/<number>", "import_show", "Show one with the outcome of each file", _P.JOB_MANAGE,
              lambda _asked, number: node().imports.show(subject(), number), ImportShown, tag="imports", refuses=(404,)),
)
