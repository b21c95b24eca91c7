"""Opening a share link: a code that came another way, then a session in the right of whoever shared; a look at the address does nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from archive.access import sessions, share_codes, shares
from archive.access.permissions import Permission
from archive.access.shares import Link, Opened
from archive.access.subject import Subject
from archive.errors import ArchiveError, Forbidden, NotFound, Unauthenticated
from archive.ledger.audit import Detail, Event, Kind, secret_digest
from archive.services.core import Core
from archive.services.mail import Mail
from archive.services.shares import recipient

TOUCH_EVERY = timedelta(seconds=30)
_MAIL = """{code} is the code for the images that {owner} shared with you.

It counts for {minutes} minutes and once. Type it into the page that the link opened.
If you did not just open such a link, nothing needs to be done: without it the code opens nothing.
"""


@dataclass(frozen=True, slots=True)
class Asked:
    """How the code reaches whoever opened the link: by mail, `sent` now or a moment ago, or told apart by whoever shared."""

    code_by: str
    sent: bool
    hint: str


@dataclass(frozen=True, slots=True)
class Visit:
    """A session of a link: who comes, and what its page says of it."""

    subject: Subject
    owner: str
    recipient: str
    label: str
    datastore: str
    until: datetime
    download: bool


class ShareDoor:
    """Safe to share between threads; whatever is wrong with a link, the answer is the same."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core
        self._mail = Mail(core.config)

    def ask(self, word: str) -> Asked:
        """Take a link's word and send its code, where codes are mailed.

        Raises:
            NotFound: it opens nothing.
            Unavailable: the mail server does not take it.
        """
        core = self._core
        core.require_writable()
        at, code = core.clock(), None
        self._require(word, at)
        with core.database.begin() as tx:
            link = self._link(tx, word, at)
            if link.code_by == "mail" and share_codes.may_mail(tx, link.id, at=at):
                code = share_codes.draw(tx, core.keyring, link.id, at=at, not_after=min(at + share_codes.MAILED_LASTS, link.not_after))
                detail = {"what": "code sent", "id": link.id, "owner": link.owner_id}
                core.ledger.record(tx, Event(Kind.SHARE_CHANGED, detail=detail), at=at)
        if code is not None:
            self._send(link, code)
        return Asked(link.code_by, code is not None, _hint(link.recipient_email) if link.code_by == "mail" else "")

    def _send(self, link: Link, code: str) -> None:
        text = _MAIL.format(code=code, owner=link.owner, minutes=int(share_codes.MAILED_LASTS.total_seconds() // 60))
        try:
            self._mail.send("your code", text, to=[link.recipient_email])
        except ArchiveError:
            with self._core.database.begin() as tx:
                share_codes.forget(tx, link.id, at=self._core.clock())
            raise

    def enter(self, word: str, code: str, *, address: str, user_agent: str) -> str:
        """Use a code up and return the word of a new session, for the browser alone.

        Raises:
            NotFound: the link opens nothing.
            Forbidden: the code is wrong, was used, is too old, or too many were tried: the same for all.
        """
        core = self._core
        core.require_writable()
        at = core.clock()
        self._require(word, at)
        with core.database.begin() as tx:  # commits a failed try too
            link = self._link(tx, word, at)
            who = recipient(core.keyring, link.recipient_email or link.recipient_name)
            right = share_codes.take(tx, core.keyring, link.id, code, at=at)
            begun = shares.open_session(tx, link, at=at, address=address, user_agent=user_agent) if right else None
            subject = Subject(
                link.owner_id, link.owner, "user", "share", address=address, share_id=link.id, user_agent=user_agent[:300],
                share_session_id=None if begun is None else begun[0], recipient=who,
            )
            detail: Detail = {"id": link.id, "owner": link.owner_id}
            if begun is not None:
                until = min(at + shares.ABSOLUTE, link.not_after).isoformat()
                detail["session"] = {"id": begun[0], "of": secret_digest(sessions.digest(begun[1])), "until": until}
            event = Event(Kind.SHARE_OPENED, outcome=0 if begun is not None else 8, subject=subject, detail=detail)
            core.ledger.record(tx, event, at=at)
        if begun is None:
            message = "the code is wrong, or counts no more"
            raise Forbidden(message, remedy="ask for a new one")
        return begun[1]

    def visit(self, word: str, *, address: str, user_agent: str) -> Visit:
        """Return who a session's word belongs to, and move its idle end.

        Raises:
            Unauthenticated: it, its link or the right of whoever shared has ended.
        """
        core = self._core
        at = core.clock()
        with core.database.glance() as tx:
            opened = shares.session(tx, word, at=at)
        if opened is None:
            message = "the link is not open"
            raise Unauthenticated(message, remedy="open the link again that you were given, or ask for a new one")
        if at - opened.last_seen_at >= TOUCH_EVERY:
            with core.database.begin(durable=False) as tx:
                shares.touch(tx, opened, at=at)
        return self._visit(opened, address, user_agent)

    def leave(self, subject: Subject) -> None:
        """End a session."""
        if subject.share_session_id is None:
            return
        core, at = self._core, self._core.clock()
        with core.database.begin() as tx:
            shares.end_session(tx, subject.share_session_id, at=at)
            core.ledger.record(tx, Event(Kind.SHARE_CLOSED, subject=subject), at=at)

    def _require(self, word: str, at: datetime) -> None:
        """Look at a word before the turn to write is taken, which is everybody's: strangers send what they like."""
        with self._core.database.glance() as tx:
            if not shares.is_there(tx, self._core.keyring, word, at=at):
                raise _nothing()

    def _link(self, tx: sa.Connection, word: str, at: datetime) -> Link:
        found = shares.find(tx, self._core.keyring, word, at=at)
        if found is None:
            raise _nothing()
        return found

    def _visit(self, opened: Opened, address: str, user_agent: str) -> Visit:
        link = opened.link
        who = recipient(self._core.keyring, link.recipient_email or link.recipient_name)
        return Visit(
            opened.subject(who, address=address, user_agent=user_agent), link.owner, link.recipient_name or link.recipient_email,
            link.label, link.datastore, link.not_after, bool(link.permissions & Permission.ORIGINAL),
        )


def _nothing() -> NotFound:
    message = "there is nothing here"
    return NotFound(message)


def _hint(email: str) -> str:
    """Return as much of an address as its owner needs to know which it is."""
    name, _, host = email.partition("@")
    return f"{name[:1]}…@{host[:1]}…{host[host.rfind('.'):]}" if name and host else ""
