"""Who users are in other systems that sign people in: bound and taken away by whoever manages users, an event each."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access import external, principals, sessions
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.config import Config
from archive.db.engine import Database
from archive.errors import InvalidRequest
from archive.ledger.audit import Kind
from archive.ledger.log import Ledger
from archive.services.becoming import refuse_anew, refuse_besides, refuse_into
from archive.services.changes import Changes
from archive.services.clock import Clock, utc_now
from archive.services.directory import normal
from archive.services.sessions import refuse_above
from archive.services.two_person import refuse_becoming

Row = dict[str, Any]


class Identities(Changes):
    """What `archive user bind`, `unbind` and `identities` do, and their operations."""

    def __init__(self, database: Database, ledger: Ledger, config: Config, clock: Clock = utc_now, *, read_only: str = "") -> None:
        """Take the issuers there are from the configuration."""
        super().__init__(database, ledger, clock, read_only=read_only)
        self._config = config

    def listed(self, subject: Subject) -> list[Row]:
        """Return every identity that is bound.

        Raises:
            Forbidden.
        """
        return self._read(subject, Permission.USER_MANAGE, lambda tx, _at: external.listed(tx))

    def bind(self, subject: Subject, user: str | int, *, issuer: str = "", external_subject: str) -> Row:
        """Say that a user is somebody at an issuer, which is the configured one unless it is named.

        Raises:
            Forbidden: also for who may do more, or for a user with grants, or by who is denied something, without role-manage.
            NotFound, InvalidRequest.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            where = issuer or self._only_issuer()
            known_as = normal(external_subject) if where == self._config.ldap.url else external_subject
            row = principals.find(tx, user, ("user",))
            self._refuse_into(tx, subject, row, at)
            if self._says_groups(where):
                refuse_besides(tx, subject, row["id"], at)
            key = external.bind(tx, row["id"], where, known_as, at=at)
            self._record(tx, Kind.USER_CHANGED, subject, at, what="bound", id=row["id"], name=row["name"], identity=key, issuer=where,
                         sub=known_as)
            return {"id": key, "user": row["name"], "issuer": where, "subject": known_as, "bound_at": at, "last_used_at": None}

        return self._change(subject, Permission.USER_MANAGE, work)

    def unbind(self, subject: Subject, identity_id: int) -> Row:
        """Take an identity away; the user's sessions end. Of one who is denied something that needs role-manage: another may be given it.

        Raises:
            Forbidden, NotFound.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            gone = external.unbind(tx, identity_id)
            row = principals.find(tx, gone["principal_id"])
            refuse_above(tx, subject, row, at)
            refuse_anew(tx, subject, row, at)
            sessions.end_all(tx, row["id"], at=at)
            self._record(tx, Kind.USER_CHANGED, subject, at, what="unbound", id=row["id"], name=row["name"], identity=gone["id"],
                         issuer=gone["issuer"], sub=gone["subject"])
            return {
                "id": gone["id"], "user": row["name"], "issuer": gone["issuer"], "subject": gone["subject"], "bound_at": gone["bound_at"],
                "last_used_at": gone["last_used_at"],
            }

        return self._change(subject, Permission.USER_MANAGE, work)

    def _refuse_into(self, tx: sa.Connection, subject: Subject, row: Row, at: datetime) -> None:
        """Who says who somebody is elsewhere may become them, as who sets their password may."""
        refuse_above(tx, subject, row, at)
        refuse_into(tx, subject, row["id"], at)
        refuse_becoming(tx, subject, row, at, on=self._config.policy.two_person)

    def _says_groups(self, issuer: str) -> bool:
        """Whether that system lets users into groups here, and with them to what those may see."""
        oidc, ldap = self._config.oidc, self._config.ldap
        return bool((issuer == oidc.issuer and oidc.groups) or (issuer == ldap.url and ldap.groups))

    def _only_issuer(self) -> str:
        known = [one for one in (self._config.oidc.issuer, self._config.ldap.url) if one]
        if len(known) != 1:
            message = "which system the user is known in is not clear"
            raise InvalidRequest(message, remedy="name it with --issuer: the issuer of [oidc], or the url of [ldap]")
        return known[0]
