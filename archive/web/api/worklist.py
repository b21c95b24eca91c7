"""/api/worklist and /api/mpps: what is to be acquired, and what the modalities say they do."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
from flask import Response
from msgspec import Meta

from archive.access.permissions import Permission
from archive.dicom import scheduled
from archive.errors import InvalidQuery, InvalidRequest
from archive.services import worklist
from archive.services.mpps import STATES
from archive.web.api.operation import JSON, Asked, Operation, Taken, Told
from archive.web.context import node, subject

MAXIMUM_ROWS = 1000
MAXIMUM_ENTRIES = 200
"""How many data sets one request may enter."""

_P = Permission
_KEYS = ("date", "station", "modality", "patient_id", "accession_number")
Limit = Annotated[int, Meta(ge=1, le=MAXIMUM_ROWS)]
Short = Annotated[str, Meta(max_length=256)]
Row = dict[str, Any]


class WorklistQuery(Taken):
    """Which entries; those that are over only with `all`; a date is YYYYMMDD or a range of two."""

    date: Short = ""
    station: Short = ""
    modality: Short = ""
    patient_id: Short = ""
    accession_number: Short = ""
    every: bool = msgspec.field(name="all", default=False)
    limit: Limit = MAXIMUM_ROWS
    datastore: Short = "clinical"


class InDatastore(Taken):
    """Of which datastore."""

    datastore: Short = "clinical"


class Entry(Told):
    """A worklist entry; `dataset` is of the DICOM JSON Model."""

    id: int
    state: str
    patient_id: str
    patient_name: str
    station: list[str]
    start_date: str
    start_time: str
    modality: str
    accession_number: str
    procedure_step_id: str
    study_instance_uid: str
    description: str
    source: str
    created_at: datetime
    updated_at: datetime
    dataset: Row


class StepQuery(Taken):
    """Which performed procedure steps."""

    state: Short = ""
    study: Short = ""
    limit: Limit = MAXIMUM_ROWS
    datastore: Short = "clinical"


class Step(Told):
    """What a modality says it does or did (MPPS)."""

    id: int
    sop_instance_uid: str
    state: str
    patient_id: str
    patient_name: str
    modality: str
    station: str
    started: str
    ended: str
    step: str
    description: str
    reason: str
    studies: list[str]
    series: list[str]
    instances: int
    created_at: datetime
    updated_at: datetime
    dataset: Row


def _search(asked: Asked) -> Any:
    given: WorklistQuery = asked.query
    wanted = worklist.asked(
        **{name: getattr(given, name).strip() for name in _KEYS}, every=given.every, datastore=given.datastore,
    )
    return node().worklist.list(subject(), wanted, limit=given.limit)


def _add(asked: Asked) -> Response:
    """Enter a data set of the DICOM JSON Model, or a list of them."""
    found = asked.body if isinstance(asked.body, list) else [asked.body]
    if not 1 <= len(found) <= MAXIMUM_ENTRIES:
        message = f"a request enters 1 to {MAXIMUM_ENTRIES} data sets"
        raise InvalidRequest(message)
    datasets = [scheduled.checked(one) for one in found]
    made: list[Row] = []
    for dataset in datasets:
        made += node().worklist.add(subject(), dataset, datastore=asked.query.datastore, source="api")
    response = Response(msgspec.json.encode(msgspec.convert(made, list[Entry])), status=201, content_type=JSON)
    if len(made) == 1:
        response.headers["Location"] = f"/api/worklist/{made[0]['id']}"
    return response


def _steps(asked: Asked) -> Any:
    given: StepQuery = asked.query
    if given.state not in ("", *STATES.values()):
        message = f"state is one of {', '.join(STATES.values())}"
        raise InvalidQuery(message)
    return node().steps.list(
        subject(), datastore=given.datastore, state=given.state, study_instance_uid=given.study, limit=given.limit,
    )


OPERATIONS = (
    Operation("GET", "/worklist", "worklist_search", "Find entries, the next first", _P.WORKLIST, _search, list[Entry],
              query=WorklistQuery, tag="worklist", refuses=(404,)),
    Operation("POST", "/worklist", "worklist_add", "Enter a data set of the DICOM JSON Model, or a list of them", _P.WORKLIST | _P.STORE,
              _add, list[Entry], Any, query=InDatastore, status=201, tag="worklist", refuses=(404, 409)),
    Operation("GET", "/worklist/<number>", "worklist_show", "Show an entry", _P.WORKLIST,
              lambda asked, number: node().worklist.get(subject(), number, datastore=asked.query.datastore), Entry, query=InDatastore,
              tag="worklist", refuses=(404,)),
    Operation("DELETE", "/worklist/<number>", "worklist_cancel", "Take an entry off the worklist", _P.WORKLIST | _P.STORE,
              lambda asked, number: node().worklist.cancel(subject(), number, datastore=asked.query.datastore), Entry, query=InDatastore,
              tag="worklist", refuses=(404, 409)),
    Operation("GET", "/mpps", "mpps_search", "List performed procedure steps, the newest first", _P.WORKLIST, _steps, list[Step],
              query=StepQuery, tag="worklist", refuses=(404,)),
)
