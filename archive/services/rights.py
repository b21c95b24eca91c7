"""What covers images: grants and denies, API tokens, and why someone sees what they see."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from archive.access import explain, grants, policy, principals, roles, tokens, when
from archive.access.grants import Target, Terms
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.engine import Database
from archive.db.types import FOREVER
from archive.errors import Forbidden, InvalidRequest, NotFound
from archive.keys.keyring import Keyring
from archive.ledger.audit import Event, Kind, ObjectRef, secret_digest
from archive.ledger.log import Ledger
from archive.services.changes import Changes
from archive.services.clock import Clock, utc_now

Row = dict[str, Any]
When = datetime | str | None
DEFAULT_DATASTORE = "clinical"
P = Permission
PEOPLE: tuple[principals.Kind, ...] = ("user", "service")


class Rights(Changes):
    """What grant, token and explain of the command line and the web do."""

    def __init__(
        self, database: Database, ledger: Ledger, keyring: Keyring, clock: Clock = utc_now, *, default_issuer: str = "",
        read_only: str = "",
    ) -> None:
        """`default_issuer` is the archive's issuer of patient ids, for patients still to come."""
        super().__init__(database, ledger, clock, read_only=read_only)
        self._keyring = keyring
        self._default_issuer = default_issuer

    # --- grants ---

    def add_grant(
        self, subject: Subject, *, to: str | int, role: str, target: Target, datastore: str = DEFAULT_DATASTORE, since: When = None,
        until: When = None, modality: str = "", deny: bool = False, reason: str = "",
    ) -> Row:
        """Give, or with `deny` hide, what a role's object permissions cover; without `until` it has no end.

        Raises:
            Forbidden: also for a grant to oneself or a group one is in.
            NotFound, InvalidRequest.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            who, what = principals.find(tx, to), roles.find(tx, role)
            grants.refuse_self(tx, subject, who["id"])
            store = policy.datastore_id(tx, datastore)
            terms = Terms(
                not_before=instant(since, at) or at, not_after=instant(until, at) or FOREVER, deny=deny,
                modality=modality.strip().upper(), reason=reason,
            )
            key = grants.give(
                tx, to=who["id"], role_row=what, datastore_id=store, terms=terms, by=subject.principal_id, at=at,
                scope_key=grants.scope_key(tx, store, target, at=at, default_issuer=self._default_issuer),
            )
            made = next(row for row in grants.listed(tx, at=at, to=who["id"]) if row["id"] == key)
            self._record_grant(tx, Kind.GRANTED, subject, at, made, who["id"])
            return made

        return self._change(subject, P.ROLE_MANAGE, work)

    def list_grants(
        self, subject: Subject, *, to: str | int | None = None, ended: bool = False, datastore: str | None = None
    ) -> list[Row]:
        """Return the grants that count now or later, newest first; with `ended` the expired and revoked ones too."""

        def work(tx: sa.Connection, at: datetime) -> list[Row]:
            who = None if to is None else principals.find(tx, to)["id"]
            store = None if datastore is None else policy.datastore_id(tx, datastore)
            found = grants.listed(tx, at=at, to=who, datastore_id=store)
            return [row for row in found if ended or row["state"] in ("active", "not yet")]

        found = self._read(subject, P.ROLE_MANAGE | P.AUDIT, work)
        self._looked(subject, "grants")
        return found

    def revoke_grant(self, subject: Subject, grant_id: int | str, *, reason: str = "") -> Row:
        """End a grant at once; ending a deny of oneself is refused, for it would give.

        Raises:
            Forbidden, NotFound.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            row = grants.find(tx, _number(grant_id, "grant"))
            if row["effect"] == 0:
                grants.refuse_self(tx, subject, row["subject_id"])
            ended = grants.revoke(tx, row["id"], by=subject.principal_id, at=at)
            shown = next(found for found in grants.listed(tx, at=at, to=row["subject_id"]) if found["id"] == row["id"])
            if ended:
                self._record_grant(tx, Kind.REVOKED, subject, at, shown, row["subject_id"], because=reason)
            return shown

        return self._change(subject, P.ROLE_MANAGE, work)

    def explain(self, subject: Subject, who: str | int, uid: str, *, datastore: str = DEFAULT_DATASTORE) -> Row:
        """Return why a user, service, peer or group's member can or cannot see a study or series."""

        def work(tx: sa.Connection, at: datetime) -> Row:
            row = principals.find(tx, who)
            return {"subject": row["name"], **explain.explain(tx, row, policy.datastore_id(tx, datastore), uid, at=at)}

        found = self._read(subject, P.ROLE_MANAGE | P.AUDIT, work)
        level: Literal["study", "series"] = "series" if found.get("level") == "series" else "study"
        self._looked(subject, "explain", ObjectRef(level, uid.strip()), of=found["subject"])
        return found

    # --- tokens ---

    def create_token(
        self, subject: Subject, *, owner: str | int, until: When = None, studies: Sequence[str] = (), series: Sequence[str] = (),
        permissions: Sequence[str] = (), datastore: str = DEFAULT_DATASTORE, label: str = "",
    ) -> Row:
        """Make a token of `owner` and return it, shown once. Users make their own; only the console makes another's.

        Raises:
            Forbidden: another's, or asked for with a token.
            NotFound: a study or series the owner does not see.
            InvalidRequest.
        """
        named = roles.parse(tuple(permissions))

        def work(tx: sa.Connection, at: datetime) -> Row:
            who = principals.find(tx, owner, PEOPLE)
            self._own(tx, subject, who["id"], at)
            me = Subject(who["id"], who["name"], "user", "internal")
            store = policy.datastore_id(tx, datastore)
            scope = policy.scope_of(me, P.SEARCH, at)
            keys = [grants.visible_key(tx, scope, store, "study", uid) for uid in studies]
            keys += [grants.visible_key(tx, scope, store, "series", uid) for uid in series]
            key, text = tokens.create(
                tx, self._keyring, who["id"], by=subject.principal_id, at=at, not_after=instant(until, at), permissions=named,
                scope_keys=keys, label=label,
            )
            shown = next(row for row in tokens.listed(tx, principal_id=who["id"]) if row["id"] == key)
            objects = tuple(ObjectRef("study", uid) for uid in studies) + tuple(ObjectRef("series", uid) for uid in series)
            detail = {
                "what": "made", "id": key, "user": who["name"], "owner": who["id"], "permissions": roles.names(P(shown["permissions"])),
                "until": shown["not_after"].isoformat(), "secret": secret_digest(tokens.kept(self._keyring, text)),
            }
            self._ledger.record(tx, Event(Kind.TOKEN_CHANGED, subject=subject, objects=objects, detail=detail), at=at)
            return shown_token(shown, at) | {"token": text}

        return self._change(subject, None, work)

    def list_tokens(self, subject: Subject, *, owner: str | int | None = None) -> list[Row]:
        """Return the caller's own tokens; the console and user-manage see everybody's."""

        def work(tx: sa.Connection, at: datetime) -> list[Row]:
            all_of_them = bool(policy.functions_of(tx, subject, at) & P.USER_MANAGE)
            who = None if owner is None else principals.find(tx, owner, PEOPLE)["id"]
            if not all_of_them:
                who = subject.principal_id if who in (None, subject.principal_id) else -1
            found = tokens.listed(tx, principal_id=who)
            if not all_of_them and subject.token_id is not None:
                found = [row for row in found if row["id"] == subject.token_id]
            return [shown_token(row, at) for row in found]

        return self._read(subject, None, work)

    def revoke_token(self, subject: Subject, ref: int | str) -> Row:
        """End a token by id or prefix: one's own, or with user-manage anyone's.

        Raises:
            NotFound: no such token, or another's.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            everyone = bool(policy.functions_of(tx, subject, at) & P.USER_MANAGE)
            mine = tokens.listed(tx, principal_id=None if everyone else subject.principal_id)
            if not everyone and subject.token_id is not None:
                mine = [found for found in mine if found["id"] == subject.token_id]  # what was handed out ends nothing but itself
            row = next((found for found in mine if str(ref) in (str(found["id"]), found["prefix"])), None)
            if row is None:
                message = "there is no such token"
                raise NotFound(message, remedy="'archive token list' names them")
            if tokens.revoke(tx, row["id"], at=at):
                self._record(tx, Kind.TOKEN_CHANGED, subject, at, what="revoked", id=row["id"], user=row["user"])
            return shown_token(row | {"revoked_at": row["revoked_at"] or at}, at)

        return self._change(subject, None, work)

    def _own(self, tx: sa.Connection, subject: Subject, owner_id: int, at: datetime) -> None:
        if subject.kind == "console":
            return
        if subject.session_id is None or subject.principal_id != owner_id:
            message = "users make tokens for themselves, signed in with the browser"
            raise Forbidden(message, remedy="sign in as that user, or use 'archive token create' on the server")
        policy.require_live(tx, subject, at)

    def _refuse_into(self, tx: sa.Connection, subject: Subject, row: Row, at: datetime) -> None:
        """Who may become another, by its password, needs what it takes to give away the grants that one has."""
        if policy.reaches(tx, Subject(row["id"], row["name"], "user", "internal"), None, at):
            policy.require(tx, subject, P.ROLE_MANAGE, at)

    def _looked(self, subject: Subject, what: str, *objects: ObjectRef, **detail: str) -> None:
        """Grants name patients and studies, so who looks at them leaves a trace before the answer."""
        event = Event(Kind.AUDIT_READ, subject=subject, objects=objects, detail={"what": what, **detail})
        with self._database.begin() as tx:
            self._ledger.record(tx, event, at=self._clock())

    def _record_grant(  # as _record, and what is recorded
        self, tx: sa.Connection, kind: Kind, subject: Subject, at: datetime, grant: Row, subject_id: int, *, because: str = ""
    ) -> None:
        level, value = grant["level"], grant["object"]
        objects = () if level == "everything" else (ObjectRef(level, value),)
        detail = {
            "id": grant["id"], "to": grant["subject"], "subject": subject_id, "effect": grant["effect"], "role": grant["role"],
            "level": level, "datastore": grant["datastore"], "from": grant["from"].isoformat(), "until": grant["until"].isoformat(),
            "modality": grant["conditions"].get("modality", ""), "reason": grant["reason"], "because": because,
        }
        self._ledger.record(tx, Event(kind, subject=subject, objects=objects, detail=detail), at=at)


def instant(text: When, at: datetime) -> datetime | None:
    """Return an instant given as one or as people write it."""
    return when.parse(text, at) if isinstance(text, str) else text


def _number(ref: int | str, what: str) -> int:
    if not str(ref).isdecimal() or len(str(ref)) > 18:
        message = f"that is not the id of a {what}"
        raise InvalidRequest(message, remedy=f"'archive {what} list' shows the ids")
    return int(ref)


def shown_token(row: Row, at: datetime) -> Row:
    """Return a token as lists show it, without its secret."""
    shown = grants.state(row | {"not_before": row["created_at"]}, at)
    return {
        "id": row["id"], "prefix": row["prefix"], "user": row["user"], "permissions": roles.names(P(row["permissions"])),
        "bounded_to": row["bounded_to"], "until": row["not_after"], "state": shown, "created_at": row["created_at"],
        "last_used_at": row["last_used_at"],
    }
