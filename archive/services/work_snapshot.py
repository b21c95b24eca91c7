"""Work snapshots: rules, webhooks, subscriptions and what waits to be forwarded, sealed beside the ledger for the day the index is lost.

Source: docs/format.md 10.1.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import sqlalchemy as sa

from archive.access import policy
from archive.db.copies import number_on
from archive.db.tables import (
    audit_event,
    delivery,
    delivery_destination,
    forward_rule,
    instance,
    peer,
    principal,
    ups_subscriber,
    ups_subscription,
    webhook,
    workitem,
)
from archive.errors import ArchiveError
from archive.keys import sealing
from archive.keys.keyring import Keyring
from archive.ledger import nodes
from archive.ledger.audit import Kind
from archive.services import deliveries, forward_others, forward_places
from archive.services.clock import machine_now
from archive.services.core import Core
from archive.services.snapshot import from_json, to_json
from archive.services.snapshot_files import SnapshotFiles

FOLDER = "work"
KEPT = 4
EVERY = timedelta(seconds=30)
SHARE = 20
"""A look takes at most one part in so many of the time: where very much waits for a destination it takes a while."""
FILES = SnapshotFiles("work", b"SRWORK1\0", b"strongroom/v1/work\0", "work-snapshot", FOLDER, KEPT)
_ROWS = (forward_rule, delivery_destination, webhook, ups_subscriber)
_READS = (Kind.READ, Kind.SEARCHED, Kind.AUDIT_READ)
_TOKEN = policy.system("rebuild")
_D, _I, _S = delivery.c, instance.c, ups_subscription.c


@dataclass(frozen=True, slots=True)
class Work:
    """What a snapshot holds; `leaves` says up to where of the log it knows."""

    at: datetime
    leaves: int
    tables: dict[str, list[dict[str, Any]]]


class WorkSnapshots:
    """Written by one worker; read by a rebuild."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core
        self._looked_at: datetime | None = None
        self._wait = EVERY
        self._digest = b""

    def tick(self, *, now: bool = False) -> bool:
        """Write a snapshot when something is other than it was and half a minute or more has gone by; False when none was due.

        Raises:
            DatabaseUnavailable, VaultUnavailable.
        """
        core = self._core
        at = machine_now(core.clock)
        if not now and self._looked_at is not None and timedelta(0) <= at - self._looked_at < self._wait:
            return False
        self._looked_at, begun = at, monotonic()
        try:
            return self._look(core.clock())
        finally:
            self._wait = max(EVERY, SHARE * timedelta(seconds=monotonic() - begun))

    def behind(self) -> bool:
        """Whether anything but reading was recorded since the newest snapshot, or there is none: for a command, which changes nothing else.

        Raises:
            DatabaseUnavailable.
        """
        there = files(self._core.config.ledger_dir)
        if not there:
            return True
        known, e = int(there[0].name), audit_event.c
        later = sa.select(e.n).where(e.n >= known, e.kind.not_in([kind.label for kind in _READS])).order_by(e.n).limit(1)
        with self._core.database.read() as tx:
            return known > nodes.size(tx) or tx.execute(later).first() is not None

    def _look(self, at: datetime) -> bool:
        core = self._core
        with core.database.read() as tx:
            tables, leaves = _tables(tx), nodes.size(tx)
        said = sealing.canonical(tables)
        digest = hashlib.sha256(said).digest()
        there = files(core.config.ledger_dir)
        if digest == self._digest or (not there and not any(tables.values())):
            return False
        body = {"v": 1, "at": sealing.format_instant(at), "leaves": leaves, "tables": tables}
        FILES.write(core.keyring, core.config.ledger_dir, body)
        self._digest = digest
        return True


def files(ledger_dir: Path) -> list[Path]:
    """Return the snapshots there are, newest first."""
    return FILES.there(ledger_dir)


def newest(keyring: Keyring, ledger_dir: Path, leaves: int) -> tuple[Work | None, list[str]]:
    """Return the newest snapshot that opens and knows no more than a log of so many leaves, and names of newer ones that do not."""
    return FILES.newest(keyring, ledger_dir, leaves, _parsed)


def read(keyring: Keyring, path: Path) -> Work:
    """Open a snapshot.

    Raises:
        SealBroken: changed, cut, or not the one its name says. OSError.
    """
    return FILES.read(keyring, path, _parsed)


def _parsed(body: dict[str, Any]) -> Work:
    return Work(sealing.parse_instant(body["at"]), body["leaves"], body["tables"])


def taken(tx: sa.Connection, at: datetime) -> Work:
    """Return what a snapshot written now would say."""
    return Work(at, nodes.size(tx), _tables(tx))


def _tables(tx: sa.Connection) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for table in _ROWS:
        rows = tx.execute(sa.select(table).order_by(*table.primary_key.columns)).mappings()
        found[table.name] = [to_json(dict(row) | _LEASES.get(table, {})) for row in rows]
    # What went already is named too where its rule will look again.
    gone = [
        sa.and_(_D.peer_id == row["peer_id"], _D.instance_pk > row["seen"], _D.state == deliveries.DONE) for row in found[forward_rule.name]
    ]
    kept = {
        row["id"]: to_json({name: value for name, value in row.items() if name not in {"id", "instance_pk", "study_pk"}})
        for which in (_D.state.in_([deliveries.WAITING, deliveries.FAILED, deliveries.REJECTED]), *gone)
        for row in policy.run_as(tx, _TOKEN, _FORWARDS.where(which)).mappings()
    }
    found[delivery.name] = [kept[number] for number in sorted(kept)]
    for row in found[forward_rule.name]:
        row["seen"] = forward_places.first_unseen(tx, _TOKEN, row["seen"])
    found[ups_subscription.name] = _subscribed(tx)
    return found


def _subscribed(tx: sa.Connection) -> list[dict[str, Any]]:
    rows = tx.execute(sa.select(ups_subscription).order_by(_S.id)).mappings().all()
    if not rows:
        return []
    named = tx.execute(sa.select(workitem.c.id, workitem.c.sop_instance_uid)).all()
    uids: dict[int, str] = {row.id: row.sop_instance_uid for row in named}
    return [
        to_json(dict(row) | {"workitem_pk": uids.get(row["workitem_pk"], ""), "until_workitem": _until(uids, row["until_workitem"])})
        for row in rows if not row["workitem_pk"] or row["workitem_pk"] in uids
    ]


_FORWARDS = (
    sa.select(delivery, _I.object_id).join(instance, _I.id == _D.instance_pk).where(_D.kind == deliveries.FORWARD).order_by(_D.id)
)
_LEASES: dict[sa.Table, dict[str, Any]] = {delivery_destination: {"leased_by": "", "leased_until": None}}


def _until(uids: dict[int, str], last: int | None) -> str | None:
    """The newest workitem a suspended subscription goes on with; none: it goes on with no other."""
    return None if last is None else uids.get(max((pk for pk in uids if pk <= last), default=0), "")


def put_back(core: Core, tx: sa.Connection, kept: Work) -> int:
    """Fill the empty tables, end what later events end, and return how many instances wait again to be forwarded."""
    people = set(tx.execute(sa.select(principal.c.id)).scalars())
    rules: set[int] = set()
    known = [said["peer_id"] for said in kept.tables.get(delivery_destination.name, [])]
    tx.execute(sa.delete(delivery_destination).where(delivery_destination.c.peer_id.in_(known)))  # commitments have made it again
    for table in _ROWS:
        for said in kept.tables.get(table.name, []):
            row = from_json(table, said)
            if row.get("principal_id", min(people)) not in people:
                continue
            if table is forward_rule:
                row["seen"] = forward_places.seen(tx, _TOKEN, row["seen"])
                rules.add(row["id"])
            tx.execute(sa.insert(table), {column.name: row[column.name] for column in table.columns if column.name in row})
    waiting = sum(_wait(tx, said) for said in kept.tables.get(delivery.name, []) if said.get("rule_id") in rules)
    _subscriptions(tx, kept)
    number_on(tx, (*_ROWS, ups_subscription))
    _ended(core, tx, kept.leaves)
    return waiting


def _wait(tx: sa.Connection, said: dict[str, Any]) -> int:
    object_id = sealing.decode_base64(said["object_id"])
    found = policy.run_as(tx, _TOKEN, sa.select(_I.id, _I.study_pk).where(_I.object_id == object_id)).first()
    if found is None:
        return 0
    row = from_json(delivery, {name: value for name, value in said.items() if name != "object_id"})
    tx.execute(sa.insert(delivery), row | {"instance_pk": found.id, "study_pk": found.study_pk})
    return int(row["state"] == deliveries.WAITING)


def _subscriptions(tx: sa.Connection, kept: Work) -> None:
    pks = {uid: pk for pk, uid in tx.execute(sa.select(workitem.c.id, workitem.c.sop_instance_uid))}
    subscribers = set(tx.execute(sa.select(ups_subscriber.c.id)).scalars())
    for said in kept.tables.get(ups_subscription.name, []):
        row = from_json(ups_subscription, {name: value for name, value in said.items() if name not in {"workitem_pk", "until_workitem"}})
        one, until = said["workitem_pk"], said.get("until_workitem")
        if row["subscriber_pk"] not in subscribers or (one and one not in pks):
            continue
        row |= {"workitem_pk": pks[one] if one else 0, "until_workitem": None if until is None else pks.get(until, 0)}
        tx.execute(sa.insert(ups_subscription), row)


def _ended(core: Core, tx: sa.Connection, leaves: int) -> None:
    """Take away what was taken away later than the snapshot: nothing leaves by a rule or webhook that was removed."""
    kinds = (Kind.CONFIGURED, Kind.WEBHOOK_CHANGED)
    later = sa.select(audit_event.c.n, audit_event.c.at).where(
        audit_event.c.n >= leaves, audit_event.c.kind.in_([kind.label for kind in kinds])
    )
    for n, at in tx.execute(later.order_by(audit_event.c.n)).all():
        try:
            said = msgspec.json.decode(core.ledger.opening(tx, n)[1])["detail"]
        except (ArchiveError, msgspec.DecodeError, KeyError):
            continue  # the ledger's own check tells
        what, name = said.get("what"), said.get("name")
        if what in ("forward rule ended", "forward rule removed"):
            for rule in tx.execute(sa.select(forward_rule.c.id, forward_rule.c.peer_id).where(forward_rule.c.name == name)).all():
                begins = forward_others.beginnings(core, tx, rule.peer_id, rule.id)
                forward_others.take_away(tx, rule.id, rule.peer_id, begins, core.clock())
        elif what in ("destination paused", "destination resumed"):
            for number in tx.execute(sa.select(peer.c.id).where(peer.c.name == name)).scalars():
                deliveries.pause(tx, number, paused=what == "destination paused")
        elif what == "removed" and "webhook" in said:
            tx.execute(sa.update(webhook).where(webhook.c.id == said["webhook"]).values(removed_at=at))
