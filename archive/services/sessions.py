"""Browser sessions as people see them: one's own, and for an administrator another's; ended one by one or all at once."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access import policy, principals, roles, sessions
from archive.access.permissions import ADMINISTRATIVE, Permission
from archive.access.subject import Subject
from archive.errors import Forbidden, NotFound
from archive.ledger.audit import Kind
from archive.services.changes import Changes

Row = dict[str, Any]
_BROWSERS = (
    ("Edg", "Edge"), ("OPR", "Opera"), ("Firefox", "Firefox"), ("Chrome", "Chrome"), ("Chromium", "Chromium"), ("Safari", "Safari"),
)
_SYSTEMS = (
    ("Android", "Android"), ("iPhone", "iPhone"), ("iPad", "iPad"), ("Windows", "Windows"), ("Mac OS X", "macOS"), ("Linux", "Linux"),
)


class Sessions(Changes):
    """Lists and ends sessions; each end is an event."""

    def mine(self, subject: Subject) -> list[Row]:
        """Return one's own sessions, the last seen first."""
        return self._read(subject, None, lambda tx, at: [
            shown(row, subject) for row in sessions.live_of(tx, subject.principal_id, at=at)
        ])

    def end_mine(self, subject: Subject, session_id: int) -> Row:
        """End one of one's own sessions.

        Raises:
            Forbidden: came by a token. NotFound.
        """
        _in_browser(subject)
        return self._change(subject, None, lambda tx, at: self._end(tx, subject, subject.principal_id, session_id, at))

    def end_others(self, subject: Subject) -> list[Row]:
        """End every other session of one's own, and return them.

        Raises:
            Forbidden: came by a token.
        """
        _in_browser(subject)

        def work(tx: sa.Connection, at: datetime) -> list[Row]:
            others = [row["id"] for row in sessions.live_of(tx, subject.principal_id, at=at) if row["id"] != subject.session_id]
            return [self._end(tx, subject, subject.principal_id, one, at) for one in others]

        return self._change(subject, None, work)

    def of(self, subject: Subject, user: str | int) -> list[Row]:
        """Return the sessions of a user.

        Raises:
            Forbidden, NotFound.
        """

        def work(tx: sa.Connection, at: datetime) -> list[Row]:
            return [shown(row, subject) for row in sessions.live_of(tx, principals.find(tx, user, ("user",))["id"], at=at)]

        return self._read(subject, Permission.USER_MANAGE, work)

    def end_of(self, subject: Subject, user: str | int, session_id: int | None = None) -> list[Row]:
        """End one session of a user, or all of them.

        Raises:
            Forbidden: also for a user who may do more than the caller. NotFound.
        """

        def work(tx: sa.Connection, at: datetime) -> list[Row]:
            row = principals.find(tx, user, ("user",))
            refuse_above(tx, subject, row, at)
            wanted = [one["id"] for one in sessions.live_of(tx, row["id"], at=at)] if session_id is None else [session_id]
            return [self._end(tx, subject, row["id"], one, at) for one in wanted]

        return self._change(subject, Permission.USER_MANAGE, work)

    def _end(self, tx: sa.Connection, subject: Subject, principal_id: int, session_id: int, at: datetime) -> Row:
        found = next((row for row in sessions.live_of(tx, principal_id, at=at) if row["id"] == session_id), None)
        if found is None:
            message = "there is no such session"
            raise NotFound(message, remedy="list those there are; it may have ended")
        sessions.end(tx, session_id, at=at)
        self._record(tx, Kind.SESSION_ENDED, subject, at, what="ended", session=session_id, of=principal_id)
        return shown(found, subject)


def refuse_above(tx: sa.Connection, subject: Subject, row: Row, at: datetime) -> None:
    """User-manage does not reach those who may do more, now or later: else an administrator could become the owner.

    One who is switched off counts as well: who sets the password could switch it on again.

    Raises:
        Forbidden.
    """
    if subject.kind == "console":
        return
    theirs = roles.coming(tx, row["id"], at=at)
    if theirs & ADMINISTRATIVE & ~policy.functions_of(tx, subject, at):
        message = "that user may do more than you"
        raise Forbidden(message, remedy="ask an owner, or use the command line on the server")


def shown(row: Row, subject: Subject) -> Row:
    """Return a session as lists show it."""
    return {
        "id": row["id"], "current": row["id"] == subject.session_id, "device": device(row["user_agent"]), "address": row["address"],
        "created_at": row["created_at"], "last_seen_at": row["last_seen_at"], "idle_until": row["idle_until"],
        "until": row["absolute_until"], "second_factor": row["auth_level"] >= 2,
    }


def device(user_agent: str) -> str:
    """Return what a browser says it is, shortly: Firefox on Linux."""
    browser = next((name for mark, name in _BROWSERS if mark + "/" in user_agent), "")
    system = next((name for mark, name in _SYSTEMS if mark in user_agent), "")
    return " on ".join(part for part in (browser, system) if part) or re.sub(r"[^ -~]", "", user_agent)[:40] or "unknown"


def _in_browser(subject: Subject) -> None:
    if subject.session_id is None:
        message = "sessions are ended by their user, signed in with the browser"
        raise Forbidden(message, remedy="sign in with the browser, or use 'archive user end-sessions' on the server")
