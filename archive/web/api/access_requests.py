"""/api/access-requests: asking for what one does not see, and deciding on what others ask for."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from archive.access.permissions import Permission
from archive.services.access_requests import Level
from archive.web.api.operation import Asked, Operation, Taken, Told
from archive.web.context import node, subject

_P = Permission


class AccessRequest(Told):
    """A request, as it was asked; that there is such a patient or study is not said."""

    id: int
    requester: str
    level: Literal["patient", "study"]
    object: str
    issuer: str
    datastore: str
    permissions: list[str]
    until: datetime
    reason: str
    state: Literal["open", "granted", "refused", "withdrawn", "expired"]
    created_at: datetime
    expires_at: datetime
    decided_at: datetime | None
    decided_by: str
    note: str
    grant: int | None


class NewAccessRequest(Taken):
    """What is asked for: a patient by PatientID (and issuer) or a study by UID, to search, read and look unless said, and why."""

    reason: str
    patient: str | None = None
    study: str | None = None
    issuer: str = ""
    permissions: tuple[str, ...] = ()
    until: str | None = None
    datastore: str = "clinical"


class RequestQuery(Taken):
    """One's own, or with `others` what one may decide; with `every` (for role-manage) the decided too."""

    others: bool = False
    every: bool = False


class NewDecision(Taken):
    """Whether it is given, until when (else as asked), which of what was asked for (else all), and a word to who asked."""

    approve: bool
    until: str | None = None
    permissions: tuple[str, ...] = ()
    note: str = ""


def target_of(patient: str | None, study: str | None) -> tuple[Level, str]:
    """Return level and identifier of the one that is named; of none, or both, what the service refuses once it knows who asks."""
    if (patient is None) == (study is None):
        return "", ""
    return ("patient", patient) if patient is not None else ("study", study or "")


def _ask(asked: Asked) -> Any:
    given: NewAccessRequest = asked.body
    level, value = target_of(given.patient, given.study)
    return node().access_requests.ask(
        subject(), level=level, value=value, issuer=given.issuer, permissions=given.permissions, until=given.until, reason=given.reason,
        datastore=given.datastore,
    )


def _listed(asked: Asked) -> Any:
    given: RequestQuery = asked.query
    requests = node().access_requests
    return requests.waiting(subject(), every=given.every) if given.others else requests.mine(subject())


def _decide(asked: Asked, number: int) -> Any:
    given: NewDecision = asked.body
    return node().access_requests.decide(
        subject(), number, approve=given.approve, until=given.until, permissions=given.permissions, note=given.note
    )


OPERATIONS = (
    Operation("POST", "/access-requests", "access_request_add", "Ask for a patient or study; the answer does not say whether it is there",
              _P.NONE, _ask, AccessRequest, NewAccessRequest, status=201, tag="requests"),
    Operation("GET", "/access-requests", "access_requests", "List one's own requests, or those of others that one may decide", _P.NONE,
              _listed, list[AccessRequest], query=RequestQuery, tag="requests"),
    Operation("POST", "/access-requests/<number>/decision", "access_request_decide", "Give what a request asks for, or refuse it", _P.NONE,
              _decide, AccessRequest, NewDecision, tag="requests", refuses=(404, 409)),
    Operation("DELETE", "/access-requests/<number>", "access_request_withdraw", "Take back a request of one's own", _P.NONE,
              lambda _asked, number: node().access_requests.withdraw(subject(), number), AccessRequest, tag="requests", refuses=(404,)),
)
