"""Storage commitment: a peer asks the archive to answer for instances, and each is really looked at before it is promised.

A request is durable before it is answered. Each instance is then decrypted, its SHA-256 compared with the one that was signed on arrival,
and the signature checked; the result is an event of the ledger, the receipt, and a report waits in the queue until the peer has taken it.
What a peer did not store and may not see is to it what does not exist.

Source: PS3.4 Annex J.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access import policy
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.tables import commitment, commitment_item, datastore, delivery
from archive.errors import ArchiveError, NotFound, Rejected, Unavailable
from archive.index import referenced
from archive.ledger import proofs
from archive.ledger.audit import Event, Kind, ObjectRef, StoredRef
from archive.services import commitment_check, commitment_lease, datastores, deliveries, denials, state_events
from archive.services.commitment_check import DUPLICATE_TRANSACTION, NO_SUCH_INSTANCE, PROCESSING_FAILURE, RESOURCES, Checked, Reference
from archive.services.commitment_request import MAXIMUM_REFERENCES, Invalid, TooMany, check
from archive.services.commitment_rows import (
    AUDITED_STUDIES,
    REPORTED,
    REQUESTED,
    alike,
    begin,
    digest,
    finish,
    receipt_of,
    replaced,
    said_of,
    study_seals,
    valid,
)
from archive.services.core import Core
from archive.services.datastores import Datastore

MAXIMUM_WAITING = 1000
"""How many transactions of one peer may wait to be checked."""
_ATTEMPTS = 8
_BATCH = 200
_C, _I = commitment.c, commitment_item.c


class DuplicateTransaction(Rejected):
    """The peer has used that Transaction UID for other references."""

    code = "duplicate-transaction"


class _AskedMeanwhile(Exception):
    """Another thread was asked the same."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a peer is told (PS3.4 J.3.3)."""

    commitment_id: int
    transaction_uid: str
    committed: tuple[Reference, ...]
    failed: tuple[tuple[Reference, int], ...]


class Commitments:
    """The one way to storage commitment; safe to share between threads."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core

    # --- the request --------------------------------------------------------------------------------------------------------------

    def request(
        self, subject: Subject, datastore_name: str, transaction_uid: str, references: Sequence[Reference], *, calling_ae_title: str,
        same_association: bool = False,
    ) -> int:
        """Keep a request and return its number; the same again is looked at again once it was checked. Durable when it returns.

        Under a Transaction UID that was used for other instances every one fails, as a duplicate transaction.

        Raises:
            Forbidden, Invalid, TooMany, ReadOnly, Unavailable.
        """
        core = self._core
        core.require_writable()
        check(transaction_uid, references)
        at = core.clock()
        assert subject.peer_id is not None
        said: dict[str, Any] = {
            "by": subject.principal_id, "peer": subject.peer_id, "name": subject.name, "uid": transaction_uid,
            "ae_title": calling_ae_title, "same": same_association,
            "references": [[one.sop_class_uid, one.sop_instance_uid] for one in references],
        }

        def place_of(tx: sa.Connection) -> tuple[int, bool]:
            place, used, there = self._enter(tx, subject, datastore_name, transaction_uid, references, at)
            if there is not None:
                raise _AskedMeanwhile
            return place.id, used

        for _ in range(_ATTEMPTS):
            with denials.recorded(core, subject), core.database.read() as tx:
                place, _, there = self._enter(tx, subject, datastore_name, transaction_uid, references, at)
            if there is not None:
                return there
            if subject.narrowed_by is not None:  # that user is known now alone
                checker = commitment_check.Checker(core, subject, place.id)
                said["unseen"] = [one.sop_instance_uid for one in references if not checker.knows(one.sop_instance_uid)]
            with suppress(_AskedMeanwhile), denials.recorded(core, subject):
                return self._begin(subject, place.uid, said, at, place_of)
        raise Unavailable("the transaction is asked for again and again", remedy="ask again later")

    def _begin(
        self, subject: Subject, datastore_uid: bytes, said: dict[str, Any], at: datetime,
        place_of: Callable[[sa.Connection], tuple[int, bool]],
    ) -> int:
        """Seal what is asked and insert it; `place_of` returns its datastore and whether the Transaction UID was used for others."""
        core, made = self._core, 0

        def work(tx: sa.Connection, stored: StoredRef) -> int:
            nonlocal made
            place, used = place_of(tx)
            made = begin(tx, place, said, at, reason=DUPLICATE_TRANSACTION if used else None)
            detail = {"what": REQUESTED, "transaction_uid": said["uid"], "references": len(said["references"])}
            return core.ledger.record(tx, Event(Kind.COMMITTED, subject=subject, stored=stored, detail=detail), at=at)

        self._seal(datastore_uid, at, work, {"what": "asked", **said})
        return made

    def _enter(
        self, tx: sa.Connection, subject: Subject, datastore_name: str, transaction_uid: str, references: Sequence[Reference], at: datetime
    ) -> tuple[Datastore, bool, int | None]:
        """Return the datastore, whether the Transaction UID was used for others, and the same transaction if it waits to be checked."""
        policy.require(tx, subject, Permission.COMMIT, at)
        place = datastores.asked_for(tx, subject, datastore_name, at)
        query = sa.select(_C.id, _C.state).where(_C.principal_id == subject.principal_id, _C.transaction_uid == transaction_uid)
        there = tx.execute(query.order_by(_C.id)).all()
        used = bool(there) and not alike(tx, there[0].id, references)
        for row in there:
            if not used and row.state == "checking" and alike(tx, row.id, references):
                return place, False, int(row.id)
        mine = sa.select(sa.func.count()).select_from(commitment).where(_C.principal_id == subject.principal_id, _C.state == "checking")
        if tx.execute(mine).scalar_one() >= MAXIMUM_WAITING:
            raise TooMany("too many commitment requests wait to be checked", remedy="ask again later")
        return place, used, None

    def _seal(
        self, datastore_uid: bytes, at: datetime, work: Callable[[sa.Connection, StoredRef], int], said: dict[str, Any]
    ) -> None:
        """Seal what was asked or found before it is answered: a lost index is made again from it."""
        state_events.commit_change(
            self._core, state_events.COMMITMENT, datastore=datastore_uid, study_instance_uid="", objects=(), reason="", at=at, work=work,
            more={"datastore": datastore_uid.hex(), **said},
        )

    # --- the check ----------------------------------------------------------------------------------------------------------------

    def check_next(self) -> bool:
        """Check one transaction that waits; False when none does.

        Raises:
            DatabaseUnavailable.
        """
        core = self._core
        if core.read_only:
            return False
        at = core.clock()
        query = sa.select(_C.id, _C.leased_by, _C.leased_until).where(_C.state == "checking", _C.run_at <= at).order_by(_C.run_at, _C.id)
        with core.database.read() as tx:
            free = [row.id for row in tx.execute(query.limit(50)) if commitment_lease.free(row, at)]
        return any(self.check(key) is not None for key in free[:1])

    def check(self, key: int) -> Report | None:
        """Check a transaction here and now, and return what to report; None when another process has it or it must wait.

        Raises:
            DatabaseUnavailable.
        """
        lease = commitment_lease.take(self._core, key)
        if lease is None:
            return None
        try:
            return self._checked(key, lease)
        except commitment_lease.Lost:
            return None
        except Exception:
            with suppress(ArchiveError):
                commitment_lease.later(self._core, key, lease)
            raise

    def _checked(self, key: int, lease: str) -> Report | None:
        core = self._core
        with core.database.read() as tx:
            head = tx.execute(
                sa.select(commitment, datastore.c.name.label("datastore"))
                .join(datastore, datastore.c.id == _C.datastore_id).where(_C.id == key)
            ).mappings().one()
            todo = tx.execute(sa.select(commitment_item).where(_I.commitment_id == key, _I.reason.is_(None)).order_by(_I.id)).all()
        them = Subject(head["principal_id"], head["peer"], "device", "dimse", peer_id=head["peer_id"])
        checker = commitment_check.Checker(core, them, head["datastore_id"])
        late = False
        for at in range(0, len(todo), _BATCH):
            found: list[tuple[int, Checked]] = []
            for row in todo[at : at + _BATCH]:
                try:
                    found.append((row.id, checker.check(Reference(row.sop_class_uid, row.sop_instance_uid))))
                except Unavailable:
                    if head["attempts"] + 1 >= _ATTEMPTS:
                        found.append((row.id, Checked(RESOURCES)))
                    else:
                        late = True
            with core.database.begin(durable=False) as tx:
                commitment_lease.keep(tx, key, lease, core.clock())  # the rest takes its time
                for item, one in found:
                    tx.execute(sa.update(commitment_item).where(_I.id == item).values(
                        reason=one.reason, study_instance_uid=one.study_instance_uid, sha256=one.sha256
                    ))
        if late:
            commitment_lease.later(core, key, lease)
            return None
        self._close(key, lease, head, them)
        return self.report(key)

    def _close(self, key: int, lease: str, head: Any, them: Subject) -> None:
        """Record the receipt and queue the report, durable together.

        Raises:
            Lost: another has it by now.
        """
        core = self._core
        at = core.clock()
        with core.database.read() as tx:
            rows = tx.execute(sa.select(commitment_item).where(_I.commitment_id == key).order_by(_I.id)).all()
            place = tx.execute(sa.select(datastore.c.uid).where(datastore.c.id == head["datastore_id"])).scalar_one()
        results = said_of(rows)
        detail = receipt_of(head["transaction_uid"], head["datastore"], results)
        failed, studies = detail["failed"], list(study_seals(results))

        def work(tx: sa.Connection, stored: StoredRef) -> int:
            commitment_lease.keep(tx, key, lease, at)
            leaf = core.ledger.record(tx, Event(
                Kind.COMMITTED, outcome=4 if failed else 0, subject=them, instances=len(rows) - failed, detail=detail, stored=stored,
                objects=tuple(ObjectRef("study", uid) for uid in studies[:AUDITED_STUDIES]),
            ), at=at)
            finish(tx, key, failed, leaf, at)
            return leaf

        self._seal(bytes(place), at, work, {
            "what": "checked", "by": head["principal_id"], "uid": head["transaction_uid"], "asked_at": head["created_at"].isoformat(),
            "place": head["datastore"], "results": results,
        })

    # --- the report ---------------------------------------------------------------------------------------------------------------

    def report(self, key: int) -> Report | None:
        """Return what to tell the peer; None when nothing is known of it, it is not checked, was told, or is looked at again first.

        A report may have waited for days: what was committed and is gone since is not reported so.
        """
        with self._core.database.read() as tx:
            head = tx.execute(
                sa.select(commitment, datastore.c.uid.label("place"), replaced().label("replaced"))
                .join(datastore, datastore.c.id == _C.datastore_id).where(_C.id == key)
            ).first()
            if head is None or head.state != "checked" or head.reported_at is not None or head.replaced:
                return None
            rows = tx.execute(sa.select(commitment_item).where(_I.commitment_id == key).order_by(_I.id)).all()
            committed = {(row.sop_instance_uid, bytes(row.sha256)) for row in rows if row.reason == 0}
            gone = committed - referenced.still(tx, policy.system("verify"), head.datastore_id, [uid for uid, _ in committed])
        if gone:
            self._anew(head, rows)
            return None
        named = [(Reference(row.sop_class_uid, row.sop_instance_uid), row.reason) for row in rows]
        return Report(
            key, head.transaction_uid, tuple(one for one, reason in named if reason == 0),
            tuple((one, PROCESSING_FAILURE if reason is None else reason) for one, reason in named if reason != 0),
        )

    def _anew(self, head: Any, rows: Sequence[Any]) -> None:
        """Have a transaction looked at again whose report was not taken yet; what its peer may not know of stays so."""
        def place_of(tx: sa.Connection) -> tuple[int, bool]:
            if tx.execute(sa.select(_C.id).where(_C.id == head.id, replaced())).first() is not None:
                raise _AskedMeanwhile
            return head.datastore_id, False

        them = Subject(head.principal_id, head.peer, "device", "dimse", peer_id=head.peer_id)
        with suppress(_AskedMeanwhile):
            self._begin(them, bytes(head.place), {
                "by": head.principal_id, "peer": head.peer_id, "name": head.peer, "uid": head.transaction_uid,
                "ae_title": head.calling_ae_title, "same": False, "references": [[row.sop_class_uid, row.sop_instance_uid] for row in rows],
                "unseen": [row.sop_instance_uid for row in rows if row.reason == NO_SUCH_INSTANCE],
            }, self._core.clock(), place_of)

    def reported(self, key: int) -> None:
        """The peer has taken the report, on whatever association. Durable when it returns."""
        at = self._core.clock()
        with self._core.database.begin() as tx:
            tx.execute(sa.update(commitment).where(_C.id == key).values(reported_at=at))
            for row in tx.execute(sa.select(delivery.c.id).where(delivery.c.commitment_id == key)).all():
                deliveries.finish(tx, row.id, at)
            head = tx.execute(sa.select(commitment).where(_C.id == key)).first()
            if head is not None:
                them = Subject(head.principal_id, head.peer, "device", "dimse", peer_id=head.peer_id)
                self._core.ledger.record(tx, Event(Kind.COMMITTED, subject=them, detail={
                    "what": REPORTED, "transaction_uid": head.transaction_uid, "checked": head.leaf or 0,
                }), at=at)

    # --- for who looks after it ---------------------------------------------------------------------------------------------------

    def list(self, subject: Subject, *, peer_name: str = "", state: str = "", limit: int = 100) -> list[dict[str, Any]]:
        """Return transactions, the newest first: checking, waiting (for its report to be taken), reported, failed, replaced.

        Raises:
            Forbidden.
        """
        core = self._core
        shown = sa.case(
            (_C.state == "checking", "checking"), (_C.reported_at.is_not(None), "reported"), (replaced(), "replaced"),
            (delivery.c.state == deliveries.FAILED, "failed"), else_="waiting",
        )
        query = (
            sa.select(_C.id, _C.transaction_uid, _C.peer, _C.calling_ae_title, shown.label("state"), _C.n_references, _C.n_failed, _C.leaf,
                      _C.created_at, _C.checked_at, _C.reported_at, delivery.c.attempts, delivery.c.reason)
            .select_from(commitment.outerjoin(delivery, delivery.c.commitment_id == _C.id)).order_by(_C.id.desc()).limit(limit)
        )
        if peer_name:
            query = query.where(_C.peer == peer_name)
        if state:
            query = query.where(shown == state)
        with denials.recorded(core, subject), core.database.read() as tx:
            policy.require_any(tx, subject, Permission.PEER_MANAGE | Permission.AUDIT | Permission.JOB_MANAGE, core.clock())
            return [dict(row) for row in tx.execute(query).mappings()]

    def receipt(self, subject: Subject, transaction_uid: str) -> dict[str, Any]:
        """Return the receipt of a transaction: its results, the seal of each study, and the proof that the ledger holds it.

        Raises:
            Forbidden; NotFound: no such transaction, or not checked or not signed yet.
        """
        core = self._core
        at = core.clock()
        with denials.recorded(core, subject), core.database.read() as tx:
            policy.require(tx, subject, Permission.AUDIT, at)
        event = Event(Kind.AUDIT_READ, subject=subject, detail={"what": "receipt", "of": transaction_uid[:64]})
        with core.database.begin() as tx:
            core.ledger.record(tx, event, at=at)
        with core.database.read() as tx:
            head = tx.execute(_receipts(transaction_uid)).first()
            if head is None:
                raise NotFound("there is no receipt of that transaction", remedy="'archive commitments list' shows which are checked")
            rows = tx.execute(sa.select(commitment_item).where(_I.commitment_id == head.id).order_by(_I.id)).all()
            salt, body = core.ledger.opening(tx, head.leaf)
            proof = proofs.prove(tx, core.keyring, head.leaf)
        return {
            "transaction_uid": head.transaction_uid, "peer": head.peer, "event": head.leaf, "checked_at": head.checked_at,
            "results": [
                {"sop_class_uid": row.sop_class_uid, "sop_instance_uid": row.sop_instance_uid, "reason": row.reason,
                 "study_instance_uid": row.study_instance_uid, "sha256": bytes(row.sha256).hex() if row.sha256 else ""}
                for row in rows
            ],
            "results_sha256": digest(said_of(rows)), "seals": study_seals(said_of(rows)),
            "body": body.decode(), "salt": salt.hex(), "proof": proof,
        }

    def leaf_of(self, transaction_uid: str) -> int | None:
        """Return the event that is the receipt of a transaction, None when there is none."""
        with self._core.database.read() as tx:
            return receipt_leaf(tx, transaction_uid)


def receipt_leaf(tx: sa.Connection, transaction_uid: str) -> int | None:
    """Return the event that is the receipt of a transaction, None when there is none."""
    found = tx.execute(_receipts(transaction_uid)).first()
    return None if found is None else int(found.leaf)


def _receipts(transaction_uid: str) -> sa.Select[Any]:
    """Those of a transaction, the last look of whoever used its UID first before all others."""
    first = sa.select(_C.principal_id).where(_C.transaction_uid == transaction_uid).order_by(_C.id).limit(1).scalar_subquery()
    return (
        sa.select(commitment).where(_C.transaction_uid == transaction_uid, _C.leaf.is_not(None))
        .order_by(sa.case((sa.and_(_C.principal_id == first, valid(commitment)), 0), else_=1), _C.id.desc())
    )


__all__ = ["MAXIMUM_REFERENCES", "Commitments", "Invalid", "Reference", "Report", "TooMany"]
