"""/api/grants, /api/explain, /api/tokens: who sees what, why, and what programs sign in with."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from msgspec import field

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


class NewGrant(Taken):
    """A grant to give: exactly one of everything, patient, study and series; RFC 3339 or counted from now (8h, 30d)."""

    to: str
    role: str
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


class Token(Told):
    """A token, without its secret; `token` is told once, when it is made."""

    id: int
    prefix: str
    user: str
    permissions: list[str]
    bounded_to: int
    until: datetime
    state: str
    created_at: datetime
    last_used_at: datetime | None


class TokenMade(Token):
    """A token with its secret."""

    token: str


class NewToken(Taken):
    """A token to make for oneself, signed in with the browser; bounded by what is named, and never more than its user may at its use."""

    until: str | None = None
    studies: tuple[str, ...] = ()
    series: tuple[str, ...] = ()
    permissions: tuple[str, ...] = ()
    datastore: str = "clinical"
    label: str = ""


class TokenQuery(Taken):
    """Whose tokens; others' only with user-manage."""

    user: str | None = None


def _add(asked: Asked) -> Any:
    given: NewGrant = asked.body
    named = [(level, value) for level, value in (("patient", given.patient), ("study", given.study), ("series", given.series))
             if value is not None]
    if len(named) + given.everything != 1 or any(not value.strip() for _level, value in named):
        raise InvalidRequest("a grant is on exactly one of everything, patient, study and series")
    level, value = named[0] if named else ("everything", "")
    target = Target(level, value, issuer=given.issuer, expected=given.expected)  # type: ignore[arg-type] # the four words of Level
    return node().accounts.add_grant(
        subject(), to=given.to, role=given.role, target=target, datastore=given.datastore, since=given.since, until=given.until,
        modality=given.modality, deny=given.deny, reason=given.reason,
    )


def _listed(asked: Asked) -> Any:
    given: GrantQuery = asked.query
    return node().accounts.list_grants(subject(), to=given.to, ended=given.ended, datastore=given.datastore)


def _explain(asked: Asked) -> Any:
    given: ExplainQuery = asked.query
    return node().accounts.explain(subject(), given.subject, given.uid, datastore=given.datastore)


def _make_token(asked: Asked) -> Any:
    given: NewToken = asked.body
    return node().accounts.create_token(
        subject(), owner=subject().principal_id, until=given.until, studies=given.studies, series=given.series,
        permissions=given.permissions, datastore=given.datastore, label=given.label,
    )


OPERATIONS = (
    Operation("GET", "/grants", "grants", "List grants that count now or later, newest first", _P.ROLE_MANAGE, _listed, list[Grant],
              query=GrantQuery, tag="grants", refuses=(404,)),
    Operation("POST", "/grants", "grant_add", "Give, or with deny hide, what a role may do", _P.ROLE_MANAGE, _add, Grant, NewGrant,
              status=201, tag="grants", refuses=(404,)),
    Operation("DELETE", "/grants/<number>", "grant_revoke", "End a grant at once", _P.ROLE_MANAGE,
              lambda asked, number: node().accounts.revoke_grant(subject(), number, reason=asked.query.reason), Grant, query=Because,
              tag="grants", refuses=(404,)),
    Operation("GET", "/explain", "explain", "Say why somebody can or cannot see a study or series", _P.ROLE_MANAGE, _explain, Explained,
              query=ExplainQuery, tag="grants", refuses=(404,)),
    Operation("GET", "/tokens", "tokens", "List one's own tokens, with user-manage everybody's", _P.NONE,
              lambda asked: node().accounts.list_tokens(subject(), owner=asked.query.user), list[Token], query=TokenQuery, tag="tokens",
              refuses=(404,)),
    Operation("POST", "/tokens", "token_add", "Make a token; it is told this once", _P.NONE, _make_token, TokenMade, NewToken, status=201,
              tag="tokens", refuses=(404,)),
    Operation("DELETE", "/tokens/<ref>", "token_revoke", "End a token at once, by id or prefix", _P.NONE,
              lambda _asked, ref: node().accounts.revoke_token(subject(), ref), Token, tag="tokens", refuses=(404,)),
)
