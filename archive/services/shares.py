"""Share links: looked at before they are made, made by whoever may share, listed, ended. Opening them is services/share_door.py."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access import grants, policy, principals, share_codes, shares, tokens, when
from archive.access.permissions import Permission
from archive.access.policy import Scope, scope_of
from archive.access.roles import names
from archive.access.shares import CodeBy
from archive.access.subject import Subject
from archive.db.tables import series, study
from archive.dicom.marks import bounded
from archive.errors import Forbidden, InvalidRequest, NotFound
from archive.ledger.audit import Event, Kind, ObjectRef, secret_digest
from archive.services import datastores
from archive.services.changes import Changes
from archive.services.core import Core
from archive.services.mail import Mail

Row = dict[str, Any]
Rows = list[Row]
Keys = list[int]
When = datetime | str | None
P = Permission
READ = P.SEARCH | P.METADATA | P.PIXELS
MOST_ITEMS = 200
_EVERYBODYS = P.USER_MANAGE | P.AUDIT
_ENDS = P.USER_MANAGE | P.ROLE_MANAGE
_EMAIL = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,187}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A link to be made: what, for whom, until when; `download` gives the originals too."""

    studies: Sequence[str] = ()
    series: Sequence[str] = ()
    datastore: str = datastores.DEFAULT
    until: When = None
    recipient: str = ""
    email: str = ""
    download: bool = False
    max_views: int | None = None
    label: str = ""

    @property
    def permissions(self) -> Permission:
        """What it lets somebody do."""
        return READ | P.ORIGINAL if self.download else READ

    @property
    def objects(self) -> tuple[ObjectRef, ...]:
        """What it is about, as events name it."""
        return tuple(ObjectRef("study", uid.strip()) for uid in self.studies) + tuple(
            ObjectRef("series", uid.strip()) for uid in self.series
        )


class Shares(Changes):
    """What share links are made, listed and ended with."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        super().__init__(core.database, core.ledger, core.clock, read_only=core.read_only)
        self._keyring = core.keyring
        self._mail = Mail(core.config)
        self._longest = core.config.policy.longest_share
        self._address = core.config.archive.public_url.rstrip("/")

    def preview(self, subject: Subject, wanted: Wanted, *, owner: str | int | None = None) -> Row:
        """Return what somebody with such a link will see now, until when, and how the code reaches them; nothing is made.

        Raises:
            NotFound: a study or series that the subject does not see, or may not share. InvalidRequest, Forbidden.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            me, scope, keys = self._asked(tx, subject, wanted, owner, at)
            return self._terms(wanted, at) | {"owner": me.name, "items": _seen(tx, scope, keys)}

        found = self._read(subject, None, work)
        event = Event(Kind.READ, subject=subject, objects=wanted.objects, detail={"what": "share-preview"})
        with self._database.begin() as tx:
            self._ledger.record(tx, event, at=self._clock())
        return found

    def create(self, subject: Subject, wanted: Wanted, *, owner: str | int | None = None) -> Row:
        """Make a link and return it with its address, and its code where that goes another way; both are told this once.

        Raises:
            NotFound: a study or series that the owner does not see, or may not share. InvalidRequest, Forbidden.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            me, scope, keys = self._asked(tx, subject, wanted, owner, at)
            terms = self._terms(wanted, at)
            store = datastores.asked_for(tx, me, wanted.datastore, at).id
            key, word = shares.create(
                tx, self._keyring, me.principal_id, datastore_id=store, scope_keys=keys, permissions=wanted.permissions, at=at,
                not_after=terms["until"], recipient_name=terms["recipient"], recipient_email=terms["email"],
                code_by=terms["code_by"], max_views=wanted.max_views, label=plain(wanted.label), token_id=subject.token_id,
            )
            self._ledger.record(tx, Event(Kind.SHARED, subject=subject, objects=wanted.objects, detail={
                "what": "made", "id": key, "owner": me.principal_id, "datastore": wanted.datastore,
                "permissions": names(wanted.permissions | P.SHARE), "until": terms["until"].isoformat(), "code_by": terms["code_by"],
                "recipient": recipient(self._keyring, terms["email"] or terms["recipient"]), "max_views": wanted.max_views or 0,
                "token": subject.token_id or 0, "secret": secret_digest(shares.kept(self._keyring, word)),
            }), at=at)
            code = None
            if terms["code_by"] == "apart":
                code = share_codes.draw(tx, self._keyring, key, at=at, not_after=terms["until"])
            row = next(iter(shares.listed(tx, at=at, share_id=key)))
            told = {"url": f"{self._address}/s#{word}", "code": code, "sees": _seen(tx, scope, keys)}
            return self._shown(tx, row, at) | told

        return self._change(subject, None, work)

    def list(self, subject: Subject, *, everybody: bool = False) -> Rows:
        """Return one's own links, newest first; everybody's with user-manage or audit, and at the console.

        Raises:
            Forbidden.
        """

        everybody = everybody or subject.kind == "console"

        def work(tx: sa.Connection, at: datetime) -> Rows:
            if everybody:
                policy.require_any(tx, subject, _EVERYBODYS, at)
            rows = shares.listed(tx, at=at, owner_id=None if everybody else subject.principal_id)
            return [self._shown(tx, row, at) for row in (rows if everybody else self._own(tx, subject, rows))]

        found = self._read(subject, None, work)
        if everybody:
            with self._database.begin() as tx:
                self._ledger.record(tx, Event(Kind.AUDIT_READ, subject=subject, detail={"what": "shares"}), at=self._clock())
        return found

    def revoke(self, subject: Subject, share_id: int) -> Row:
        """End a link and everything opened by it: one's own, or with user-manage or role-manage anyone's.

        Raises:
            NotFound: no such link, or another's.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            row = self._mine(tx, subject, share_id, at, others=_ENDS)
            if shares.revoke(tx, row["id"], by=subject.principal_id, at=at):
                self._changed(tx, subject, row, at, what="revoked")
            return self._shown(tx, next(iter(shares.listed(tx, at=at, share_id=row["id"]))), at)

        return self._change(subject, None, work)

    def new_code(self, subject: Subject, share_id: int) -> Row:
        """Draw another code of one's own link, to be told to its recipient; any before counts no more.

        Raises:
            NotFound: no such link, another's, or one that has ended. StateConflict: there were many today.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            shares.alone(tx, share_id)
            row = self._mine(tx, subject, share_id, at, others=P.NONE)
            if row["state"] != "active":
                raise _absent()
            share_codes.require_rest(tx, row["id"], at=at)
            code = share_codes.draw(tx, self._keyring, row["id"], at=at, not_after=row["not_after"])
            self._changed(tx, subject, row, at, what="code drawn")
            return self._shown(tx, row, at) | {"code": code}

        return self._change(subject, None, work)

    def may_share(self, subject: Subject, datastore: str, study_uid: str) -> bool:
        """Whether the subject may share something of a study."""
        at = self._clock()
        with self._database.read() as tx:
            try:
                place = datastores.asked_for(tx, subject, datastore, at).id
                grants.visible_key(tx, scope_of(subject, READ | P.SHARE, at), place, "study", study_uid)
            except NotFound:
                return False
            return True

    # -------------------------------------------------------------------------------------------------------------------------------

    def _asked(
        self, tx: sa.Connection, subject: Subject, wanted: Wanted, owner: str | int | None, at: datetime
    ) -> tuple[Subject, Scope, Keys]:
        """Return in whose right, the series they may share, and what of them the link is to be about."""
        me = self._owner(tx, subject, owner, at)
        if not 1 <= len(wanted.studies) + len(wanted.series) <= MOST_ITEMS:
            message = f"a link is about 1 to {MOST_ITEMS} studies and series"
            raise InvalidRequest(message, remedy="name them by UID")
        scope = scope_of(me, wanted.permissions | P.SHARE, at)
        store = datastores.asked_for(tx, me, wanted.datastore, at).id
        keys = [grants.visible_key(tx, scope, store, "study", uid) for uid in wanted.studies]
        keys += [grants.visible_key(tx, scope, store, "series", uid) for uid in wanted.series]
        return me, scope, keys

    def _owner(self, tx: sa.Connection, subject: Subject, owner: str | int | None, at: datetime) -> Subject:
        if subject.kind == "console":
            if owner is None:
                message = "the command line sees no image, so a link is made in a user's right"
                raise InvalidRequest(message, remedy="name the user with --as USER")
            row = principals.find(tx, owner, ("user", "service"))
            if not row["enabled"]:
                message = "that user is disabled"
                raise InvalidRequest(message, remedy="name another with --as USER")
            return Subject(row["id"], row["name"], "user", "internal")
        if subject.kind not in ("user", "service") or subject.share_id is not None:
            message = "links are made by users"
            raise Forbidden(message, remedy="sign in as one")
        policy.require_live(tx, subject, at)
        return subject

    def _terms(self, wanted: Wanted, at: datetime) -> Row:
        longest = when.parse(self._longest, at)
        end = when.parse(wanted.until, at) if isinstance(wanted.until, str) else wanted.until
        end = min(at + shares.DEFAULT_LIFE, longest) if end is None else end
        if end <= at:
            message = "the link would have ended already"
            raise InvalidRequest(message, remedy="name a later end")
        if end > longest:
            message = f"a link lasts {self._longest} at most"
            raise InvalidRequest(message, remedy="name an earlier end, or raise [policy] longest_share")
        email, name = wanted.email.strip(), plain(wanted.recipient)
        if email and (not _EMAIL.fullmatch(email) or ".." in email):
            message = "that is no mail address"
            raise InvalidRequest(message, remedy="write it as name@example.org")
        if wanted.max_views is not None and not 1 <= wanted.max_views <= 10_000:
            message = "a link is opened 1 to 10000 times"
            raise InvalidRequest(message, remedy="leave it out for as often as wanted")
        code_by: CodeBy = "mail" if email and self._mail.works else "apart"
        return {
            "until": end, "recipient": name, "email": email, "code_by": code_by, "max_views": wanted.max_views,
            "permissions": names(wanted.permissions), "datastore": wanted.datastore,
        }

    def _mine(self, tx: sa.Connection, subject: Subject, share_id: int, at: datetime, *, others: Permission) -> Row:
        rows = shares.listed(tx, at=at, share_id=share_id)
        if not rows or not (self._own(tx, subject, rows) or policy.functions_of(tx, subject, at) & others):
            raise _absent()
        return rows[0]

    @staticmethod
    def _own(tx: sa.Connection, subject: Subject, rows: Rows) -> Rows:
        """Keep what is the subject's; a token is shown, and ends, what was made with it or with those made of it."""
        mine = [row for row in rows if row["owner_id"] == subject.principal_id]
        if subject.token_id is None:
            return mine
        family = set(tx.execute(tokens.family(subject.token_id)).scalars())
        return [row for row in mine if row["token_id"] in family]

    def _changed(self, tx: sa.Connection, subject: Subject, row: Row, at: datetime, *, what: str) -> None:
        objects = tuple(ObjectRef(one["level"], one["uid"]) for one in row["items"] if one["uid"])
        detail = {"what": what, "id": row["id"], "owner": row["owner_id"]}
        self._ledger.record(tx, Event(Kind.SHARE_CHANGED, subject=subject, objects=objects, detail=detail), at=at)

    @staticmethod
    def _shown(tx: sa.Connection, row: Row, at: datetime) -> Row:
        kept = ("id", "owner", "datastore", "items", "code_by", "max_views", "views", "label", "created_at", "last_opened_at", "revoked_at",
                "state")
        return {name: row[name] for name in kept} | {
            "recipient": row["recipient_name"], "email": row["recipient_email"], "until": row["not_after"],
            "permissions": names(P(row["permissions"]) & ~P.SHARE),
            "code_waits": row["state"] == "active" and share_codes.waiting(tx, row["id"], at=at),
        }


def recipient(keyring: Any, text: str) -> str:
    """Return what stands for a recipient in events."""
    return keyring.pseudonym("ledger/recipient", text.strip().casefold())[:16].hex() if text else ""


def _seen(tx: sa.Connection, scope: Scope, keys: list[int]) -> Rows:
    """Return each item as people know it, with what of it the scope lets through now."""
    found = []
    for key in keys:
        st, se = study.c, series.c
        query = (
            sa.select(
                st.study_instance_uid, st.patient_name, st.study_date, st.study_description, sa.func.count(se.id).label("n_series"),
                sa.func.sum(se.n_instances).label("n_instances"), sa.func.min(se.modality).label("modality"),
                sa.func.min(se.series_instance_uid).label("series_uid"), sa.func.min(se.series_description).label("series_description"),
            )
            .join_from(series, study, st.id == se.study_pk)
            .where(scope.series(series), (st.id if key % 4 == 2 else se.id) == key // 4)
            .group_by(st.id, st.study_instance_uid, st.patient_name, st.study_date, st.study_description)
        )
        row = scope.run(tx, query).one()
        one = key % 4 == 3
        found.append({
            "level": "series" if one else "study", "uid": row.series_uid if one else row.study_instance_uid,
            "patient": row.patient_name, "date": row.study_date, "modality": row.modality,
            "description": row.series_description if one else row.study_description,
            "series": int(row.n_series), "instances": int(row.n_instances),
        })
    return found


def plain(text: str) -> str:
    """Return a line as people typed it, without what would steer a page or a mail."""
    shown = "".join(" " if unicodedata.category(one)[0] == "C" else one for one in unicodedata.normalize("NFC", bounded(text)))
    return " ".join(shown.split())[:100]


def _absent() -> NotFound:
    message = "there is no such link"
    return NotFound(message, remedy="'archive share list' names them")
