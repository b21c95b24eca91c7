"""/api/break-glass: opening a patient in an emergency, and the review of it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta, field

from archive.access.permissions import Permission
from archive.web.api.access_requests import target_of
from archive.web.api.operation import Asked, Operation, Taken, Told
from archive.web.context import node, subject

_P = Permission


class BreakGlass(Told):
    """One break-glass; that there is such a patient or study is not said."""

    id: int
    who: str
    level: Literal["patient", "study"]
    object: str
    issuer: str
    datastore: str
    reason_code: str
    reason: str
    started_at: datetime
    until: datetime
    ended_at: datetime | None
    state: Literal["active", "ended"]
    reviewed_at: datetime | None
    reviewed_by: str
    verdict: str
    note: str


class Reviewed(BreakGlass):
    """One break-glass for who reviews it, with the grants it made: none where there was nothing of that name."""

    grants: list[int] = field(default_factory=list)


class NewBreakGlass(Taken):
    """Whom to open: a patient by exact PatientID (and issuer), or the patient of a study by its UID; a reason of the list, and why."""

    reason_code: str
    reason: str
    patient: str | None = None
    study: str | None = None
    issuer: str = ""
    datastore: str = "clinical"


class ReviewQuery(Taken):
    """With `every`, the reviewed ones too."""

    every: bool = False
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class NewVerdict(Taken):
    """Whether it was justified, and what was found."""

    verdict: Literal["justified", "unjustified"]
    note: str


def _open(asked: Asked) -> Any:
    given: NewBreakGlass = asked.body
    level, value = target_of(given.patient, given.study)
    return node().break_glass.open(
        subject(), level=level, value=value, issuer=given.issuer, reason_code=given.reason_code, reason=given.reason,
        datastore=given.datastore,
    )


def _review(asked: Asked, number: int) -> Any:
    return node().break_glass.review(subject(), number, verdict=asked.body.verdict, note=asked.body.note)


OPERATIONS = (
    Operation("POST", "/break-glass", "break_glass_open", "Open a patient in an emergency; the answer does not say whether there is one",
              _P.BREAK_GLASS, _open, BreakGlass, NewBreakGlass, status=201, tag="break-glass", refuses=(404,)),
    Operation("GET", "/me/break-glass", "my_break_glass", "List what one opened by break-glass", _P.NONE,
              lambda _asked: node().break_glass.mine(subject()), list[BreakGlass], tag="break-glass"),
    Operation("POST", "/break-glass/<number>/end", "break_glass_end", "Close early what one opened", _P.NONE,
              lambda _asked, number: node().break_glass.end(subject(), number), BreakGlass, tag="break-glass", refuses=(404,)),
    Operation("GET", "/break-glass", "break_glass", "List what waits for a review", _P.AUDIT,
              lambda asked: node().break_glass.to_review(subject(), every=asked.query.every, limit=asked.query.limit), list[Reviewed],
              query=ReviewQuery, tag="break-glass"),
    Operation("POST", "/break-glass/<number>/review", "break_glass_review", "Say whether it was justified", _P.AUDIT,
              _review, Reviewed, NewVerdict, tag="break-glass", refuses=(404, 409)),
)
