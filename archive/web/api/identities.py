"""/api/identities: who users are in the systems they sign in with."""

from __future__ import annotations

from datetime import datetime

from archive.access.permissions import Permission
from archive.web.api.operation import Operation, Taken, Told
from archive.web.context import node, subject

_P = Permission


class Identity(Told):
    """A user as another system knows it."""

    id: int
    user: str
    issuer: str
    subject: str
    bound_at: datetime
    last_used_at: datetime | None


class NewIdentity(Taken):
    """Whom a user is elsewhere; the issuer may be left out where one is configured."""

    subject: str
    issuer: str = ""


OPERATIONS = (
    Operation("GET", "/identities", "identities", "List who users are in other systems that sign them in", _P.USER_MANAGE,
              lambda _asked: node().identities.listed(subject()), list[Identity], tag="people"),
    Operation("POST", "/users/<user>/identities", "identity_bind", "Say who a user is in another system", _P.USER_MANAGE,
              lambda asked, user: node().identities.bind(
                  subject(), user, issuer=asked.body.issuer, external_subject=asked.body.subject
              ), Identity, NewIdentity, status=201, tag="people", refuses=(404,)),
    Operation("DELETE", "/identities/<number>", "identity_unbind", "Take that away; the user's sessions end", _P.USER_MANAGE,
              lambda _asked, number: node().identities.unbind(subject(), number), Identity, tag="people", refuses=(404,)),
)
