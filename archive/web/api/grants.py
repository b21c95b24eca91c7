"""/api/grants, /api/explain: who sees what, and why."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta, field

from archive.access.grants import Target
from archive.access.permissions import Permission
from archive.errors import InvalidRequest
from archive.web.api.operation import Asked, Operation, Taken, Told
from archive.web.context import node, subject

_P = Permission
Row = dict[str, Any]


class Grant(Told):
    """A grant, or a deny, on everything, a patient, a study or a series."""

    id: int
    effect: Literal["allow", "deny"]
    subject: str
    role: str | None
    level: str
    object: str
    datastore: str
    since: datetime = field(name="from")
    until: datetime
    endless: bool
    state: str
    permissions: list[str]
    conditions: dict[str, Any]
    reason: str
    granted_by: int
    created_at: datetime
    revoked_at: datetime | None
    kind: str
    parent: int | None
    delegable: int


class NewGrant(Taken):
    """A grant to give: exactly one of everything, patient, study and series; RFC 3339 or counted from now (8h, 30d).

    With a role whoever manages roles gives it. Without one it is passed on from a grant of the caller's own (`parent`, else the one that
    lasts longest): the permissions named, or to search, read and look, for seven days unless said. `delegable`: how many times it may be
    passed on.
    """

    to: str
    role: str | None = None
    permissions: tuple[str, ...] = ()
    parent: int | None = None
    delegable: Annotated[int, Meta(ge=0, le=100)] = 0
    everything: bool = False
    patient: str | None = None
    study: str | None = None
    series: str | None = None
    expected: bool = False
    issuer: str | None = None
    datastore: str = "clinical"
    since: str | None = field(name="from", default=None)
    until: str | None = None
    modality: str = ""
    deny: bool = False
    reason: str = ""


class GrantQuery(Taken):
    """Which grants; with `ended` the expired and revoked ones too."""

    to: str | None = None
    ended: bool = False
    datastore: str | None = None


class GivenQuery(Taken):
    """With `ended` the expired and revoked ones too."""

    ended: bool = False


class Because(Taken):
    """Why a grant ends."""

    reason: str = ""


class ExplainQuery(Taken):
    """Whose access to which study or series."""

    subject: str
    uid: str
    datastore: str = "clinical"


class Explained(Told):
    """Whether somebody sees a study or series, and every grant that had a say."""

    subject: str
    allowed: bool
    known: bool
    because: list[Row]
    level: str = ""
    enabled: bool = True
    permissions: list[str] = field(default_factory=list)
    treatment: list[Row] = field(default_factory=list)
    """What the archive knows of their having to do with the patient's treatment."""


def _add(asked: Asked) -> Any:
    given: NewGrant = asked.body
    named = [(level, value) for level, value in (("patient", given.patient), ("study", given.study), ("series", given.series))
             if value is not None]
    if len(named) + given.everything != 1 or any(not value.strip() for _level, value in named):
        raise InvalidRequest("a grant is on exactly one of everything, patient, study and series")
    level, value = named[0] if named else ("everything", "")
    target = Target(level, value, issuer=given.issuer, expected=given.expected)  # type: ignore[arg-type] # the four words of Level
    if given.role is None:
        if given.modality or given.deny or given.expected:
            raise InvalidRequest("what is passed on is an allow, with the conditions of the grant it comes from")
        return node().delegation.delegate(
            subject(), to=given.to, target=target, permissions=given.permissions, datastore=given.datastore, since=given.since,
            until=given.until, depth=given.delegable, parent=given.parent, reason=given.reason,
        )
    if given.permissions or given.parent is not None:
        raise InvalidRequest("a grant of a role holds the role's permissions and stands on no other")
    return node().accounts.add_grant(
        subject(), to=given.to, role=given.role, target=target, datastore=given.datastore, since=given.since, until=given.until,
        modality=given.modality, deny=given.deny, reason=given.reason, delegable=given.delegable,
    )


def _listed(asked: Asked) -> Any:
    given: GrantQuery = asked.query
    return node().accounts.list_grants(subject(), to=given.to, ended=given.ended, datastore=given.datastore)


def _explain(asked: Asked) -> Any:
    given: ExplainQuery = asked.query
    return node().accounts.explain(subject(), given.subject, given.uid, datastore=given.datastore)


OPERATIONS = (
    Operation("GET", "/grants", "grants", "List grants that count now or later, newest first", _P.ROLE_MANAGE, _listed, list[Grant],
              query=GrantQuery, tag="grants", refuses=(404,)),
    Operation("POST", "/grants", "grant_add", "Give, or with deny hide, what a role may do, or pass on a part of a grant of one's own",
              _P.NONE, _add, Grant, NewGrant, status=201, tag="grants", refuses=(404,)),
    Operation("GET", "/me/grants", "my_grants", "List what one passed on", _P.NONE,
              lambda asked: node().delegation.given(subject(), ended=asked.query.ended), list[Grant], query=GivenQuery, tag="grants"),
    Operation("DELETE", "/grants/<number>", "grant_revoke", "End a grant at once, and all that was passed on from it", _P.NONE,
              lambda asked, number: node().accounts.revoke_grant(subject(), number, reason=asked.query.reason), Grant, query=Because,
              tag="grants", refuses=(202, 404,)),
    Operation("GET", "/explain", "explain", "Say why somebody can or cannot see a study or series", _P.ROLE_MANAGE, _explain, Explained,
              query=ExplainQuery, tag="grants", refuses=(404,)),
)
