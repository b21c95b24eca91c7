"""/api/worklist and /api/mpps: what is to be acquired, and what the modalities say they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from flask import Response, request

from archive.access.permissions import Permission
from archive.dicom import scheduled
from archive.errors import InvalidQuery, InvalidRequest, NotFound
from archive.services import worklist
from archive.services.mpps import STATES
from archive.web.context import node, subject
from archive.web.permissions import Rule

MAXIMUM_ROWS = 1000
MAXIMUM_ENTRIES = 200
"""How many data sets one request may enter."""

_KEYS = ("date", "station", "modality", "patient_id", "accession_number")
_YES = {"": False, "0": False, "false": False, "1": True, "true": True}


def search() -> Response:
    """Answer entries that match, the next first; those that are over only with `all=true`.

    Raises:
        InvalidQuery, Forbidden, NotFound, Unavailable.
    """
    given = _parameters(*_KEYS, "all", "limit", "datastore")
    every = _YES.get(given.get("all", ""))
    if every is None:
        message = "all is true or false"
        raise InvalidQuery(message)
    asked = worklist.asked(
        **{name: given.get(name, "") for name in _KEYS}, every=every, datastore=given.get("datastore", "clinical"),
    )
    return _json(node().worklist.list(subject(), asked, limit=_limit(given)))


def add() -> Response:
    """Enter a data set of the DICOM JSON Model, or a list of them.

    Raises:
        InvalidRequest, InvalidQuery, StateConflict, Forbidden, NotFound, ReadOnly.
    """
    given = _parameters("datastore")
    try:
        body = msgspec.json.decode(request.get_data())
    except (msgspec.DecodeError, RecursionError) as error:
        message = "the body is no JSON"
        raise InvalidRequest(message, remedy="send a data set of the DICOM JSON Model, or a list of them") from error
    found = body if isinstance(body, list) else [body]
    if not 1 <= len(found) <= MAXIMUM_ENTRIES:
        message = f"a request enters 1 to {MAXIMUM_ENTRIES} data sets"
        raise InvalidRequest(message)
    datasets = [scheduled.checked(one) for one in found]
    made: list[dict[str, Any]] = []
    for dataset in datasets:
        made += node().worklist.add(subject(), dataset, datastore=given.get("datastore", "clinical"), source="api")
    response = _json(made, 201)
    if len(made) == 1:
        response.headers["Location"] = f"/api/worklist/{made[0]['id']}"
    return response


def show(entry: str) -> Response:
    """Answer one entry.

    Raises:
        NotFound: absent, or in a datastore that is not there for the caller.
        Forbidden, Unavailable.
    """
    given = _parameters("datastore")
    return _json(node().worklist.get(subject(), _number(entry), datastore=given.get("datastore", "clinical")))


def cancel(entry: str) -> Response:
    """Take an entry off the worklist.

    Raises:
        NotFound, StateConflict, Forbidden, ReadOnly.
    """
    given = _parameters("datastore")
    return _json(node().worklist.cancel(subject(), _number(entry), datastore=given.get("datastore", "clinical")))


def steps() -> Response:
    """Answer performed procedure steps, the newest first.

    Raises:
        InvalidQuery, Forbidden, NotFound, Unavailable.
    """
    given = _parameters("state", "study", "limit", "datastore")
    if given.get("state", "") not in ("", *STATES.values()):
        message = f"state is one of {', '.join(STATES.values())}"
        raise InvalidQuery(message)
    return _json(node().steps.list(
        subject(), datastore=given.get("datastore", "clinical"), state=given.get("state", ""), study_instance_uid=given.get("study", ""),
        limit=_limit(given),
    ))


ROUTES: tuple[tuple[str, str, str, Callable[..., Response]], ...] = (
    ("GET", "/worklist", "worklist_search", search),
    ("POST", "/worklist", "worklist_add", add),
    ("GET", "/worklist/<entry>", "worklist_show", show),
    ("DELETE", "/worklist/<entry>", "worklist_cancel", cancel),
    ("GET", "/mpps", "mpps_search", steps),
)
RULES = {
    "api.worklist_search": Rule(Permission.WORKLIST),
    "api.worklist_add": Rule(Permission.WORKLIST | Permission.STORE),
    "api.worklist_show": Rule(Permission.WORKLIST),
    "api.worklist_cancel": Rule(Permission.WORKLIST | Permission.STORE),
    "api.mpps_search": Rule(Permission.WORKLIST),
}


def _parameters(*known: str) -> dict[str, str]:
    """Return the query string, each parameter once.

    Raises:
        InvalidQuery: names one that is not known: a query never widens.
    """
    given = {}
    for name in request.args:
        values = request.args.getlist(name)
        if name not in known or len(values) != 1 or "\0" in values[0] or len(values[0]) > 256:
            message = f"the parameter {name[:40]!r} is not one of {', '.join(known)}, or comes twice"
            raise InvalidQuery(message)
        given[name] = values[0].strip()
    return given


def _limit(given: dict[str, str]) -> int:
    text = given.get("limit", str(MAXIMUM_ROWS))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= MAXIMUM_ROWS:
        message = f"limit is a number from 1 to {MAXIMUM_ROWS}"
        raise InvalidQuery(message)
    return int(text)


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        message = "there is no such worklist entry"
        raise NotFound(message)
    return int(text)


def _json(found: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(found, enc_hook=str), status=status, content_type="application/json")
