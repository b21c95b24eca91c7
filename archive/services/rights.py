"""What covers images: grants and denies, and why someone sees what they see."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from archive.access import explain, grants, policy, principals, roles, when
from archive.access.grants import Target, Terms
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.engine import Database
from archive.db.types import FOREVER
from archive.errors import InvalidRequest
from archive.keys.keyring import Keyring
from archive.ledger.audit import Event, Kind, ObjectRef
from archive.ledger.log import Ledger
from archive.services import grant_events, treatment
from archive.services.clock import Clock, utc_now
from archive.services.tokens import Tokens
from archive.services.two_person import Wish

Row = dict[str, Any]
When = datetime | str | None
DEFAULT_DATASTORE = "clinical"
P = Permission


class Rights(Tokens):
    """What grant and explain, and with services/tokens.py token of the command line and the web do."""

    def __init__(
        self, database: Database, ledger: Ledger, keyring: Keyring, clock: Clock = utc_now, *, default_issuer: str = "",
        read_only: str = "", two_person: bool = False, binds_into_groups: bool = False,
    ) -> None:
        """`default_issuer` is the archive's issuer of patient ids, for patients still to come.

        `binds_into_groups`: who comes from another system is bound by a name or address, and let into groups.
        """
        super().__init__(database, ledger, clock, read_only=read_only)
        self._two_person = two_person
        self._binds_into_groups = binds_into_groups
        self._keyring = keyring
        self._default_issuer = default_issuer

    # --- grants ---

    def add_grant(
        self, subject: Subject, *, to: str | int, role: str, target: Target, datastore: str = DEFAULT_DATASTORE, since: When = None,
        until: When = None, modality: str = "", deny: bool = False, reason: str = "", delegable: int = 0,
    ) -> Row:
        """Give, or with `deny` hide, what a role's object permissions cover; without `until` it has no end.

        `delegable` says how many times it may be passed on (services/delegation.py).

        Raises:
            Forbidden: also for a grant to oneself or a group one is in.
            NotFound, InvalidRequest.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            who, what = principals.find(tx, to), roles.find(tx, role)
            grants.refuse_self(tx, subject, who["id"])
            store = policy.datastore_id(tx, datastore)
            grant_events.check_depth(delegable, what["permissions"], deny=deny)
            terms = Terms(
                not_before=instant(since, at) or at, not_after=instant(until, at) or FOREVER, deny=deny,
                modality=modality.strip().upper(), reason=reason,
            )
            key = grants.give(
                tx, to=who["id"], role_row=what, datastore_id=store, terms=terms, by=subject.principal_id, at=at, depth=delegable,
                scope_key=grants.scope_key(tx, store, target, at=at, default_issuer=self._default_issuer),
            )
            made = grants.some(tx, [key], at=at)[0]
            grant_events.record(self._ledger, tx, Kind.GRANTED, subject, at, made)
            return made

        return self._change(subject, P.ROLE_MANAGE, work, alone=True)

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
        """End a grant at once, and all that was passed on from it; whoever passed one on may end it without role-manage.

        Ending a deny of oneself is refused, for it would give.

        Raises:
            Forbidden, NotFound.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            number = _number(grant_id, "grant")
            if not grants.gave(tx, number, subject):
                policy.require(tx, subject, P.ROLE_MANAGE, at)
            row = grants.find(tx, number)
            if row["effect"] == 0:
                grants.refuse_self(tx, subject, row["subject_id"])
                if row["revoked_at"] is None and row["not_after"] > at:
                    self._second(subject, Wish(
                        "deny-revoke", f"end the deny {number}", P.ROLE_MANAGE, {"grant": number, "reason": reason}, reason,
                    ))
            return grant_events.end(self._ledger, tx, subject, at, row["id"], because=reason)

        return self._change(subject, None, work, alone=True)

    def explain(self, subject: Subject, who: str | int, uid: str, *, datastore: str = DEFAULT_DATASTORE) -> Row:
        """Return why a user, service, peer or group's member can or cannot see a study or series."""

        def work(tx: sa.Connection, at: datetime) -> Row:
            row = principals.find(tx, who)
            place = policy.datastore_id(tx, datastore)
            found = {"subject": row["name"], **explain.explain(tx, row, place, uid, at=at)}
            if found["known"]:
                found["treatment"] = [asdict(one) for one in treatment.of_object(tx, row["id"], place, uid.strip(), at)]
            return found

        found = self._read(subject, P.ROLE_MANAGE | P.AUDIT, work)
        level: Literal["study", "series"] = "series" if found.get("level") == "series" else "study"
        self._looked(subject, "explain", ObjectRef(level, uid.strip()), of=found["subject"])
        return found

    def _looked(self, subject: Subject, what: str, *objects: ObjectRef, **detail: str) -> None:
        """Grants name patients and studies, so who looks at them leaves a trace before the answer."""
        event = Event(Kind.AUDIT_READ, subject=subject, objects=objects, detail={"what": what, **detail})
        with self._database.begin() as tx:
            self._ledger.record(tx, event, at=self._clock())


def instant(text: When, at: datetime) -> datetime | None:
    """Return an instant given as one or as people write it."""
    return when.parse(text, at) if isinstance(text, str) else text


def _number(ref: int | str, what: str) -> int:
    if not str(ref).isdecimal() or len(str(ref)) > 18:
        message = f"that is not the id of a {what}"
        raise InvalidRequest(message, remedy=f"'archive {what} list' shows the ids")
    return int(ref)
