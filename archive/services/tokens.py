"""Tokens as people and programs manage them: made, listed and ended, each change with its event in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access import bounds, grants, policy, principals, roles, tokens, when
from archive.access.bounds import Named
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.errors import Forbidden, NotFound
from archive.keys.keyring import Keyring
from archive.ledger.audit import Event, Kind, ObjectRef, secret_digest
from archive.services.changes import Changes

Row = dict[str, Any]
When = datetime | str | None
P = Permission
LONGEST_LABEL = 200
PEOPLE: tuple[principals.Kind, ...] = ("user", "service")


class Tokens(Changes):
    """What token of the command line, the web and the API does."""

    _keyring: Keyring

    def create_token(
        self, subject: Subject, *, owner: str | int, until: When = None, studies: Sequence[str] = (), series: Sequence[str] = (),
        patients: Sequence[str] = (), issuer: str | None = None, datastores: Sequence[str] = (), permissions: Sequence[str] = (),
        datastore: str = "clinical", label: str = "", networks: Sequence[str] = (), parent: str | int | None = None,
    ) -> Row:
        """Make a token of `owner` and return it, shown once. Users make their own, in a session or with a token; the console anyone's.

        One made with a token carries no more than that one, and ends with it; at the console `parent` names that one.

        Raises:
            Forbidden: another's, or more than the token it is made with carries.
            NotFound: a datastore, patient, study or series that whoever makes it does not see.
            InvalidRequest.
        """
        given, from_where = roles.parse(tuple(permissions)), tokens.networks_of(networks)
        named, label = Named(studies, series, patients, datastores, datastore, issuer), label.replace("\0", "").strip()[:LONGEST_LABEL]

        def work(tx: sa.Connection, at: datetime) -> Row:
            who = principals.find(tx, owner, PEOPLE)
            made_with = self._made_with(tx, subject, who["id"], parent, at)
            maker = subject
            if subject.kind == "console":
                maker = Subject(who["id"], who["name"], "user", "internal") if made_with is None else made_with.subject()
            keys = bounds.scope_keys(tx, maker, named, at=at)
            end = when.parse(until, at) if isinstance(until, str) else until
            key, text = tokens.create(
                tx, self._keyring, who["id"], by=subject.principal_id, at=at, not_after=end, permissions=given, scope_keys=keys,
                label=label, networks=from_where, parent=made_with,
            )
            (shown,) = tokens.listed(tx, of=key)
            objects = tuple(
                ObjectRef(level, value) for level, value in grants.named(tx, set(keys)).values() if level != "everything"
            )
            detail = {
                "what": "made", "id": key, "user": who["name"], "owner": who["id"], "permissions": roles.names(P(shown["permissions"])),
                "until": shown["not_after"].isoformat(), "secret": secret_digest(tokens.kept(self._keyring, text)),
                "parent": shown["parent_id"] or 0, "networks": from_where, "datastores": sorted(set(datastores)), "label": label,
            }
            self._ledger.record(tx, Event(Kind.TOKEN_CHANGED, subject=subject, objects=objects, detail=detail), at=at)
            return shown_token(shown, at) | {"token": text}

        return self._change(subject, None, work)

    def list_tokens(self, subject: Subject, *, owner: str | int | None = None) -> list[Row]:
        """Return the caller's own tokens, newest first; the console and user-manage see everybody's.

        With a token without user-manage: itself and those that were made with it. Who may not see another's is told of none, whether
        there is such a user or not.

        Raises:
            NotFound: no such user, for those who see everybody's.
        """

        def work(tx: sa.Connection, at: datetime) -> list[Row]:
            whole = self._manages(tx, subject, at)
            try:
                who = None if owner is None else principals.find(tx, owner, PEOPLE)["id"]
            except NotFound:
                if whole:
                    raise
                who = -1
            if not whole:
                who = subject.principal_id if who in (None, subject.principal_id) else -1
            found = tokens.listed(tx, principal_id=who, of=None if whole else subject.token_id)
            return [shown_token(row, at) for row in found]

        return self._read(subject, None, work)

    def revoke_token(self, subject: Subject, ref: int | str) -> Row:
        """End a token by id or prefix, and every one made with it: one's own, or with user-manage anyone's.

        With a token without user-manage: itself, or one that was made with it.

        Raises:
            NotFound: no such token, or another's.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            row = self._known(tx, subject, ref, at)
            ended = tokens.revoke(tx, row["id"], at=at)
            if ended:
                others = [key for key in ended if key != row["id"]]
                self._record(tx, Kind.TOKEN_CHANGED, subject, at, what="revoked", id=row["id"], user=row["user"], besides=others)
            return shown_token(row | {"revoked_at": row["revoked_at"] or at}, at) | {"ended": len(ended)}

        return self._change(subject, None, work)

    def _known(self, tx: sa.Connection, subject: Subject, ref: int | str, at: datetime) -> Row:
        whole = self._manages(tx, subject, at)
        mine = tokens.listed(
            tx, principal_id=None if whole else subject.principal_id, of=None if whole else subject.token_id
        )
        row = next((found for found in mine if str(ref) in (str(found["id"]), found["prefix"])), None)
        if row is None:
            message = "there is no such token"
            raise NotFound(message, remedy="'archive token list' names them")
        return row

    def _manages(self, tx: sa.Connection, subject: Subject, at: datetime) -> bool:
        return bool(policy.functions_of(tx, subject, at) & P.USER_MANAGE)

    def _made_with(
        self, tx: sa.Connection, subject: Subject, owner_id: int, parent: str | int | None, at: datetime
    ) -> tokens.Live | None:
        """Return the token that the new one stands on, if any.

        Raises:
            Forbidden: who asks may not make a token for the owner.
            NotFound: `parent` is no token of the owner's.
        """
        if subject.kind == "console":
            if parent is None:
                return None
            row = self._known(tx, subject, parent, at)
            if row["principal_id"] != owner_id:
                message = "there is no such token"
                raise NotFound(message, remedy="'archive token list' names them")
            return tokens.standing(tx, row["id"], at=at)
        alone = subject.session_id is None and subject.token_id is None
        # Who acts for another within a boundary, without a token of theirs, hands nothing on.
        borrowed = subject.token_id is None and bool(subject.boundary_ids)
        if alone or borrowed or subject.principal_id != owner_id or parent is not None:
            message = "users make tokens for themselves, in a session of theirs or with a token"
            raise Forbidden(message, remedy="sign in as that user, or use 'archive token create' on the server")
        policy.require_live(tx, subject, at)
        return None if subject.token_id is None else tokens.standing(tx, subject.token_id, at=at)


def shown_token(row: Row, at: datetime) -> Row:
    """Return a token as lists show it, without its secret."""
    shown = grants.state(row | {"not_before": row["created_at"]}, at)
    return {
        "id": row["id"], "prefix": row["prefix"], "user": row["user"], "label": row["label"], "made_by": row["made_by"] or "",
        "parent": row["parent_id"], "permissions": roles.names(P(row["permissions"])), "bounded_to": row["bounded_to"],
        "networks": row["networks"].split(), "until": row["not_after"], "state": shown, "created_at": row["created_at"],
        "last_used_at": row["last_used_at"], "last_address": row["last_address"],
    }
