"""Webhooks: the change feed, sent to an address as it grows, for what the webhook's owner may see at that moment.

The feed is the queue: a webhook keeps how far it has told, durably, and goes on from there after any failure, later each time. A body
names UIDs and nothing else, and is signed as Standard Webhooks signs (HMAC-SHA256 over id, time and body).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa

from archive.access import principals
from archive.access.permissions import Permission
from archive.access.policy import scope_of
from archive.access.subject import Subject
from archive.config import Config
from archive.db.engine import Database
from archive.db.tables import datastore as datastores_table
from archive.db.tables import principal, webhook
from archive.errors import Forbidden, InvalidRequest, NotFound
from archive.index import changes
from archive.index.changes import Change, Page, Place
from archive.keys import sealing
from archive.ledger import nodes
from archive.ledger.audit import Event, Kind, ObjectRef
from archive.ledger.log import Ledger
from archive.services import datastores, outgoing
from archive.services.changes import Changes
from archive.services.clock import Clock, machine_now
from archive.services.core import Core
from archive.services.outgoing import Limits, Undeliverable

BATCH = 100
MOST = 100
FIRST_PAUSE = timedelta(seconds=5)
LONGEST_PAUSE = timedelta(hours=1)
_LAG = 10_000
"""How many leaves without anything to tell may pass before a webhook's place is written down."""


@dataclass(frozen=True, slots=True)
class _Hook:
    id: int
    datastore_id: int
    datastore: str
    owner: Subject
    url: str
    salt: bytes
    place: Place
    attempts: int


class Webhooks(Changes):
    """Made by their owners or at the console, looked after by whoever may configure; delivered by the background worker alone."""

    def __init__(
        self, database: Database, ledger: Ledger, clock: Clock, config: Config, *, read_only: str = "",
    ) -> None:
        """Take from the configuration where webhooks may lead."""
        super().__init__(database, ledger, clock, read_only=read_only)
        self._limits = Limits(
            config.webhooks.networks, str(config.resolve(config.webhooks.ca_file)) if config.webhooks.ca_file else ""
        )
        self._passed: dict[int, Place] = {}

    @classmethod
    def of(cls, core: Core) -> Webhooks:
        """Work on an opened archive."""
        return cls(core.database, core.ledger, core.clock, core.config, read_only=core.read_only)

    def add(
        self, subject: Subject, *, url: str, owner: str, datastore: str = datastores.DEFAULT, everything: bool = False
    ) -> dict[str, Any]:
        """Add a webhook that tells what `owner` sees, from now on or from the beginning; the secret is shown this once.

        Raises:
            InvalidRequest, NotFound, ReadOnly.
            Forbidden: also for another's, and by a token that may see less than its user.
        """
        def work(tx: sa.Connection, at: datetime) -> dict[str, Any]:
            outgoing.check(url, self._limits)
            _refuse_anothers(tx, subject, owner)
            whose = principals.find(tx, owner)
            if whose["kind"] not in {"user", "service"}:
                message = "a webhook belongs to a user"
                raise InvalidRequest(message, remedy="name the user whose grants decide what it tells")
            place = datastores.find(tx, datastore)
            if int(tx.execute(sa.select(sa.func.count()).select_from(webhook).where(webhook.c.removed_at.is_(None))).scalar_one()) >= MOST:
                message = f"there are {MOST} webhooks already"
                raise InvalidRequest(message, remedy="remove one first")
            start = changes.BEGINNING if everything else changes.behind(nodes.size(tx))
            salt = os.urandom(16)
            made = tx.execute(sa.insert(webhook).values(
                datastore_id=place.id, principal_id=whose["id"], url=url, salt=salt, leaf=start.leaf, position=start.position, due_at=at,
                created_by=subject.principal_id, created_at=at,
            ))
            assert made.inserted_primary_key is not None
            key = int(made.inserted_primary_key[0])
            told = {"url": url, "owner": whose["name"], "datastore": datastore}
            self._record(tx, Kind.WEBHOOK_CHANGED, subject, at, what="added", webhook=key, **told)
            return {"id": key, **told, "secret": self._secret(salt)}

        return self._change(subject, Permission.CONFIGURE, work)

    def list(self, subject: Subject) -> list[dict[str, Any]]:
        """Return every webhook, how far it is and what went wrong last, without its secret.

        Raises:
            Forbidden.
        """

        def work(tx: sa.Connection, at: datetime) -> list[dict[str, Any]]:
            size = nodes.size(tx)
            rows = tx.execute(_ALL.order_by(webhook.c.id)).all()
            return [
                {
                    "id": row.id, "url": row.url, "owner": row.name, "datastore": row.datastore,
                    "state": "failing" if row.attempts else "delivering", "attempts": row.attempts, "problem": row.problem,
                    "due_at": row.due_at if row.due_at > at else None, "delivered_at": row.delivered_at, "created_at": row.created_at,
                    "behind": max(0, size - 1 - row.leaf) if row.attempts else 0,
                }
                for row in rows
            ]

        return self._read(subject, Permission.CONFIGURE, work)

    def remove(self, subject: Subject, webhook_id: int) -> None:
        """End a webhook.

        Raises:
            NotFound, Forbidden, ReadOnly.
        """

        def work(tx: sa.Connection, at: datetime) -> None:
            there = sa.update(webhook).where(webhook.c.id == webhook_id, webhook.c.removed_at.is_(None))
            if not tx.execute(there.values(removed_at=at)).rowcount:
                raise _absent()
            self._record(tx, Kind.WEBHOOK_CHANGED, subject, at, what="removed", webhook=webhook_id)

        self._change(subject, Permission.CONFIGURE, work)

    def test(self, subject: Subject, webhook_id: int) -> dict[str, Any]:
        """Send a signed body without any change in it, and return the answer's status.

        Raises:
            NotFound, Forbidden, ReadOnly, Undeliverable.
        """

        def work(tx: sa.Connection, at: datetime) -> _Hook:
            row = tx.execute(_ALL.where(webhook.c.id == webhook_id)).first()
            if row is None:
                raise _absent()
            self._record(tx, Kind.WEBHOOK_CHANGED, subject, at, what="tested", webhook=webhook_id)
            return _hook(row)

        hook = self._change(subject, Permission.CONFIGURE, work)
        at = self._clock()
        message = os.urandom(16).hex()
        body = msgspec.json.encode({"type": "test", "webhook": hook.id, "datastore": hook.datastore, "at": sealing.format_instant(at)})
        return {"id": hook.id, "status": self._send(hook, message, body)}

    def tick(self) -> int:
        """Deliver what is due and return how many bodies went out.

        Raises:
            DatabaseUnavailable, Unavailable.
        """
        if self._read_only:
            return 0
        at = self._clock()
        with self._database.read() as tx:
            size = nodes.size(tx)
            # One that is due later than any pause was noted by a clock that has been set back since.
            is_due = sa.or_(webhook.c.due_at <= at, webhook.c.due_at > at + LONGEST_PAUSE)
            due = [_hook(row) for row in tx.execute(_ALL.where(is_due)).all()]
        return sum(self._deliver(hook, size) for hook in due)

    def _deliver(self, hook: _Hook, size: int) -> int:
        after = max(hook.place, self._passed.get(hook.id, hook.place))
        if after.leaf >= size - 1:
            return 0
        page = self._page(hook, after)
        if not page.changes:
            self._passed[hook.id] = page.end
            if page.end.leaf - hook.place.leaf > _LAG:
                self._note(hook, leaf=page.end.leaf, position=page.end.position)
            return 0
        if not self._stands(hook):
            return 0
        at = self._clock()
        places = msgspec.json.encode([hook.id, list(after), list(page.changes[-1].place)])
        message = self._ledger.keyring.pseudonym("webhook-message", places)[:16].hex()
        self._record_sent(hook, page, at)
        try:
            self._send(hook, message, _body(hook, page, at))
        except (Undeliverable, InvalidRequest) as problem:
            pause = min(FIRST_PAUSE * 2 ** min(hook.attempts, 20), LONGEST_PAUSE)
            self._note(hook, attempts=hook.attempts + 1, due_at=at + pause, problem=problem.message[:200])
            return 0
        self._note(hook, leaf=page.end.leaf, position=page.end.position, attempts=0, due_at=at, problem="", delivered_at=at)
        return 1

    def _stands(self, hook: _Hook) -> bool:
        """Whether it is still to be sent to, there: who came before it in this round may have taken long."""
        with self._database.read() as tx:
            row = tx.execute(_ALL.where(webhook.c.id == hook.id)).first()
        return row is not None and _hook(row).url == hook.url

    def _page(self, hook: _Hook, after: Place) -> Page:
        at = self._clock()
        with self._database.read() as tx:
            size = nodes.size(tx)
            with suppress(NotFound):
                datastores.asked_for(tx, hook.owner, hook.datastore, at)
                scope = scope_of(hook.owner, Permission.SEARCH, at)
                return changes.page(tx, scope, hook.datastore_id, after, size=size, limit=BATCH)
            return Page([], changes.behind(size), False)

    def _record_sent(self, hook: _Hook, page: Page, at: datetime) -> None:
        """No audit, no data."""
        studies = tuple(ObjectRef("study", uid) for uid in dict.fromkeys(one.study_instance_uid for one in page.changes))
        event = Event(
            Kind.SENT, subject=hook.owner, objects=studies, instances=len(page.changes),
            detail={"what": "changes", "webhook": hook.id, "url": hook.url},
        )
        self._database.group(lambda tx: self._ledger.record(tx, event, at=at), durable=True)

    def _note(self, hook: _Hook, **values: Any) -> None:
        with self._database.begin() as tx:
            tx.execute(sa.update(webhook).where(webhook.c.id == hook.id).values(**values))

    def _send(self, hook: _Hook, message: str, body: bytes) -> int:
        second = str(int(machine_now(self._clock).timestamp()))  # which a receiver compares with its own clock
        signed = f"{message}.{second}.".encode() + body
        signature = base64.b64encode(hmac.new(self._key(hook.salt), signed, hashlib.sha256).digest()).decode()
        headers = {
            "Content-Type": "application/json", "User-Agent": "strongroom", "webhook-id": message, "webhook-timestamp": second,
            "webhook-signature": f"v1,{signature}",
        }
        return outgoing.post(hook.url, body, headers, self._limits)

    def _key(self, salt: bytes) -> bytes:
        return self._ledger.keyring.pseudonym("webhook", salt)

    def _secret(self, salt: bytes) -> str:
        return "whsec_" + base64.b64encode(self._key(salt)).decode()


_ALL = (
    sa.select(webhook, principal.c.name, principal.c.kind, datastores_table.c.name.label("datastore"))
    .join(principal, principal.c.id == webhook.c.principal_id)
    .join(datastores_table, datastores_table.c.id == webhook.c.datastore_id)
    .where(webhook.c.removed_at.is_(None))
)


def _refuse_anothers(tx: sa.Connection, subject: Subject, owner: str) -> None:
    """Whoever says where a webhook leads sees by it what its owner sees, so that is the owner alone, or the console.

    Raises:
        Forbidden.
    """
    if subject.kind == "console":
        return
    with suppress(NotFound):  # of somebody else, there or not, the same is said
        if principals.find(tx, owner)["id"] == subject.principal_id:
            if not subject.boundary_ids and (subject.limit is None or Permission.SEARCH in subject.limit):
                return
            message = "a webhook tells all its owner sees, and this token does not show that"
            raise Forbidden(message, remedy="take a token with the permissions configure and search, not bound to a part of the archive")
    message = "a webhook tells what its owner sees, so nobody else makes it"
    raise Forbidden(message, remedy="name yourself, or let it be made on the server: 'archive webhook add URL --as USER'")


def _hook(row: Any) -> _Hook:
    owner = Subject(row.principal_id, row.name, row.kind, "internal")
    return _Hook(
        row.id, row.datastore_id, row.datastore, owner, row.url, bytes(row.salt), Place(row.leaf, row.position), row.attempts
    )


def _body(hook: _Hook, page: Page, at: datetime) -> bytes:
    return msgspec.json.encode({
        "type": "changes", "webhook": hook.id, "datastore": hook.datastore, "at": sealing.format_instant(at),
        "changes": [as_dict(one) for one in page.changes], "more": page.more,
    })


def as_dict(one: Change) -> dict[str, str]:
    """Return a change as JSON names it: UIDs, and no more of the patient."""
    return {
        "kind": one.kind, "at": sealing.format_instant(one.at), "study_instance_uid": one.study_instance_uid,
        "series_instance_uid": one.series_instance_uid, "sop_instance_uid": one.sop_instance_uid, "sop_class_uid": one.sop_class_uid,
        "state": one.state,
    }


def _absent() -> NotFound:
    message = "there is no such webhook"
    return NotFound(message, remedy="'archive webhook list' shows those there are")

