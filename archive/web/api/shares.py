"""/api/shares: links that show studies and series to somebody without an account."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from msgspec import field

from archive.access.permissions import Permission
from archive.services.shares import Wanted
from archive.web.api.operation import Asked, Operation, Taken, Told
from archive.web.context import node, subject

_P = Permission


class ShareItem(Told):
    """What a link is about."""

    level: str
    uid: str


class ShareSeen(ShareItem):
    """What somebody would see of it now."""

    patient: str
    date: str
    modality: str
    description: str
    series: int
    instances: int


class NewShare(Taken):
    """A link to make: studies and series by UID, for whom, until when (RFC 3339 or 8h, 30d; 7 days unless said)."""

    studies: tuple[str, ...] = ()
    series: tuple[str, ...] = ()
    datastore: str = "clinical"
    until: str | None = None
    recipient: str = ""
    email: str = ""
    download: bool = False
    max_views: int | None = None
    label: str = ""

    @property
    def wanted(self) -> Wanted:
        """The same, as the service takes it."""
        return Wanted(
            self.studies, self.series, self.datastore, self.until, self.recipient, self.email, self.download, self.max_views, self.label
        )


class SharePreview(Told):
    """What a link would show, until when, and how its code reaches the recipient: by mail, or told apart."""

    owner: str
    datastore: str
    until: datetime
    recipient: str
    email: str
    code_by: str
    max_views: int | None
    permissions: list[str]
    items: list[ShareSeen]


class Share(Told):
    """A link, without its address."""

    id: int
    owner: str
    datastore: str
    items: list[ShareItem]
    permissions: list[str]
    recipient: str
    email: str
    code_by: str
    code_waits: bool
    until: datetime
    max_views: int | None
    views: int
    label: str
    state: str
    created_at: datetime
    last_opened_at: datetime | None
    revoked_at: datetime | None


class ShareMade(Share):
    """A link with its address, and its code where that is told apart; told this once."""

    url: str
    code: str | None
    sees: list[ShareSeen] = field(default_factory=list)


class ShareCode(Share):
    """A link with its new code."""

    code: str


class SharesQuery(Taken):
    """Whose links; everybody's only with user-manage or audit."""

    everybody: bool = False


def _add(asked: Asked) -> Any:
    given: NewShare = asked.body
    return node().shares.create(subject(), given.wanted)


OPERATIONS = (
    Operation("POST", "/shares/preview", "share_preview", "Say what a link would show; nothing is made", _P.SHARE,
              lambda asked: node().shares.preview(subject(), asked.body.wanted), SharePreview, NewShare, tag="shares", refuses=(404,)),
    Operation("POST", "/shares", "share_add", "Make a link; its address and code are told this once", _P.SHARE, _add, ShareMade, NewShare,
              status=201, tag="shares", refuses=(404,)),
    Operation("GET", "/shares", "shares", "List one's own links, with user-manage or audit everybody's", _P.NONE,
              lambda asked: node().shares.list(subject(), everybody=asked.query.everybody), list[Share], query=SharesQuery, tag="shares"),
    Operation("DELETE", "/shares/<number>", "share_revoke", "End a link at once", _P.NONE,
              lambda _asked, number: node().shares.revoke(subject(), number), Share, tag="shares", refuses=(404,)),
    Operation("POST", "/shares/<number>/code", "share_code", "Draw another code of a link; the one before counts no more", _P.NONE,
              lambda _asked, number: node().shares.new_code(subject(), number), ShareCode, tag="shares", refuses=(404, 409)),
)
