"""/api/tokens: what programs sign in with, and hand on with less."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from archive.access.permissions import Permission
from archive.web.api.operation import Asked, Operation, Taken, Told
from archive.web.context import node, subject

_P = Permission


class Token(Told):
    """A token, without its secret: `parent` is the one it was made with, `bounded_to` how many things its own boundary names."""

    id: int
    prefix: str
    user: str
    label: str
    made_by: str
    parent: int | None
    permissions: list[str]
    bounded_to: int
    networks: list[str]
    until: datetime
    state: str
    created_at: datetime
    last_used_at: datetime | None
    last_address: str


class TokenMade(Token):
    """A token with its secret, told this once."""

    token: str


class TokenEnded(Token):
    """A token that ended, and how many did with it, itself included."""

    ended: int


class NewToken(Taken):
    """A token to make for oneself, in a session or with a token: bounded by what is named, and never more than its maker at its use.

    `until` is RFC 3339 or counted from now (8h, 30d); without it 30 days, or as long as the token it is made with. `studies`, `series`
    and `patients` (with `issuer` where several have the same PatientID) are of `datastore`; `datastores` are meant whole. `networks` are
    those it is taken from.
    """

    until: str | None = None
    studies: tuple[str, ...] = ()
    series: tuple[str, ...] = ()
    patients: tuple[str, ...] = ()
    issuer: str | None = None
    datastores: tuple[str, ...] = ()
    permissions: tuple[str, ...] = ()
    datastore: str = "clinical"
    label: str = ""
    networks: tuple[str, ...] = ()


class TokenQuery(Taken):
    """Whose tokens; others' only with user-manage."""

    user: str | None = None


def _make(asked: Asked) -> Any:
    given: NewToken = asked.body
    return node().accounts.create_token(
        subject(), owner=subject().principal_id, until=given.until, studies=given.studies, series=given.series,
        patients=given.patients, issuer=given.issuer, datastores=given.datastores, permissions=given.permissions,
        datastore=given.datastore, label=given.label, networks=given.networks,
    )


OPERATIONS = (
    Operation("GET", "/tokens", "tokens", "List one's own tokens, with user-manage everybody's", _P.NONE,
              lambda asked: node().accounts.list_tokens(subject(), owner=asked.query.user), list[Token], query=TokenQuery, tag="tokens",
              refuses=(404,)),
    Operation("POST", "/tokens", "token_add", "Make a token; it is told this once", _P.NONE, _make, TokenMade, NewToken, status=201,
              tag="tokens", refuses=(404,)),
    Operation("DELETE", "/tokens/<ref>", "token_revoke", "End a token and all made with it at once, by id or prefix", _P.NONE,
              lambda _asked, ref: node().accounts.revoke_token(subject(), ref), TokenEnded, tag="tokens", refuses=(404,)),
)
