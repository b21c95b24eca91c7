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
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from archive.access import policy
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.tables import commitment, commitment_item, datastore, delivery
from archive.dicom.matching import UID
from archive.errors import NotFound, Rejected, Unavailable
from archive.ledger import proofs
from archive.ledger.audit import Event, Kind, ObjectRef, StoredRef
from archive.services import commitment_check, datastores, deliveries, denials, state_events
from archive.services.commitment_check import DUPLICATE_TRANSACTION, PROCESSING_FAILURE, RESOURCES, Checked, Reference
from archive.services.commitment_rows import (
    AUDITED_STUDIES,
    REPORTED,
    REQUESTED,
    again,
    alike,
    begin,
    digest,
    finish,
    receipt_of,
    said_of,
    study_seals,
)
from archive.services.core import Core
from archive.services.datastores import Datastore
from archive.services.processes import is_alive, this_worker

MAXIMUM_REFERENCES = 10_000
MAXIMUM_WAITING = 1000
"""How many transactions of one peer may wait to be checked."""
LEASE = timedelta(hours=1)
_ATTEMPTS = 8
_BATCH = 200
_C, _I = commitment.c, commitment_item.c


class DuplicateTransaction(Rejected):
    """The peer has used that Transaction UID for other references."""

    code = "duplicate-transaction"


class _AskedMeanwhile(Exception):
    """Another thread was asked the same."""


class Invalid(Rejected):
    """A request that Annex J does not allow."""

    code = "invalid-commitment"


class TooMany(Rejected):
    """More references, or more transactions at once, than are taken."""

    code = "too-many"


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
        """Keep a request and return its number; the same again is the same one, reported again. Durable when it returns.

        Under a Transaction UID that was used for other instances every one fails, as a duplicate transaction.

        Raises:
            Forbidden, Invalid, TooMany, ReadOnly, Unavailable.
        """
        core = self._core
        core.require_writable()
        _check(transaction_uid, references)
        at = core.clock()
        assert subject.peer_id is not None
        said = {
            "by": subject.principal_id, "peer": subject.peer_id, "name": subject.name, "uid": transaction_uid,
            "ae_title": calling_ae_title, "same": same_association,
            "references": [[one.sop_class_uid, one.sop_instance_uid] for one in references],
        }
        made = 0

        def work(tx: sa.Connection, stored: StoredRef) -> int:
            nonlocal made
            place, used, there = self._enter(tx, subject, datastore_name, transaction_uid, references, at)
            if there is not None:
                raise _AskedMeanwhile
            made = begin(tx, place.id, said, at, reason=DUPLICATE_TRANSACTION if used else None)
            detail = {"what": REQUESTED, "transaction_uid": transaction_uid, "references": len(references)}
            return core.ledger.record(tx, Event(Kind.COMMITTED, subject=subject, stored=stored, detail=detail), at=at)

        for _ in range(_ATTEMPTS):
            with denials.recorded(core, subject), core.database.read() as tx:
                place, _, there = self._enter(tx, subject, datastore_name, transaction_uid, references, at)
            if there is not None:
                self._again(there, at)
                return int(there.id)
            with suppress(_AskedMeanwhile), denials.recorded(core, subject):
                self._seal(place.uid, at, work, {"what": "asked", **said})
                return made
        raise Unavailable("the transaction is asked for again and again", remedy="ask again later")

    def _enter(
        self, tx: sa.Connection, subject: Subject, datastore_name: str, transaction_uid: str, references: Sequence[Reference], at: datetime
    ) -> tuple[Datastore, bool, Any | None]:
        """Return the datastore, whether the Transaction UID was used, and the transaction that is this one."""
        policy.require(tx, subject, Permission.COMMIT, at)
        place = datastores.asked_for(tx, subject, datastore_name, at)
        used = sa.select(commitment).where(_C.principal_id == subject.principal_id, _C.transaction_uid == transaction_uid)
        there = tx.execute(used.order_by(_C.id)).first()
        if there is not None and alike(tx, there, references):
            return place, True, there
        mine = sa.select(sa.func.count()).select_from(commitment).where(_C.principal_id == subject.principal_id, _C.state == "checking")
        if tx.execute(mine).scalar_one() >= MAXIMUM_WAITING:
            raise TooMany("too many commitment requests wait to be checked", remedy="ask again later")
        return place, there is not None, None

    def _again(self, there: Any, at: datetime) -> None:
        """A peer that missed the answer asks anew: what was found is reported once more, and nothing else is done."""
        if there.state == "checked":
            with self._core.database.begin() as tx:
                again(tx, there.id, at)

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
            free = [row.id for row in tx.execute(query.limit(50)) if _free(row, at)]
        return any(self.check(key) is not None for key in free[:1])

    def check(self, key: int) -> Report | None:
        """Check a transaction here and now, and return what to report; None when another process has it or it must wait.

        Raises:
            DatabaseUnavailable.
        """
        core = self._core
        if not self._lease(key):
            return None
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
                for item, one in found:
                    tx.execute(sa.update(commitment_item).where(_I.id == item).values(
                        reason=one.reason, study_instance_uid=one.study_instance_uid, sha256=one.sha256
                    ))
                tx.execute(sa.update(commitment).where(_C.id == key).values(leased_until=core.clock() + LEASE))  # the rest takes its time
        if late:
            self._later(key, head["attempts"] + 1)
            return None
        self._close(key, head, them)
        return self.report(key)

    def _lease(self, key: int) -> bool:
        core = self._core
        at = core.clock()
        with core.database.begin(durable=False) as tx:
            row = tx.execute(sa.select(_C.state, _C.leased_by, _C.leased_until).where(_C.id == key).with_for_update()).first()
            if row is None or row.state != "checking" or not _free(row, at):
                return False
            tx.execute(sa.update(commitment).where(_C.id == key).values(leased_by=this_worker(), leased_until=at + LEASE))
        return True

    def _later(self, key: int, attempts: int) -> None:
        with self._core.database.begin(durable=False) as tx:
            tx.execute(sa.update(commitment).where(_C.id == key).values(
                attempts=attempts, run_at=self._core.clock() + deliveries.backoff(attempts), leased_by="", leased_until=None
            ))

    def _close(self, key: int, head: Any, them: Subject) -> None:
        """Record the receipt and queue the report, durable together."""
        core = self._core
        at = core.clock()
        with core.database.read() as tx:
            rows = tx.execute(sa.select(commitment_item).where(_I.commitment_id == key).order_by(_I.id)).all()
            place = tx.execute(sa.select(datastore.c.uid).where(datastore.c.id == head["datastore_id"])).scalar_one()
        results = said_of(rows)
        detail = receipt_of(head["transaction_uid"], head["datastore"], results)
        failed, studies = detail["failed"], list(study_seals(results))

        def work(tx: sa.Connection, stored: StoredRef) -> int:
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
        """Return what to tell the peer; None when nothing is known of it, or it is not checked."""
        with self._core.database.read() as tx:
            head = tx.execute(sa.select(_C.transaction_uid, _C.state).where(_C.id == key)).first()
            if head is None or head.state != "checked":
                return None
            rows = tx.execute(sa.select(commitment_item).where(_I.commitment_id == key).order_by(_I.id)).all()
        named = [(Reference(row.sop_class_uid, row.sop_instance_uid), row.reason) for row in rows]
        return Report(
            key, head.transaction_uid, tuple(one for one, reason in named if reason == 0),
            tuple((one, PROCESSING_FAILURE if reason is None else reason) for one, reason in named if reason != 0),
        )

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
        """Return transactions, the newest first: checking, waiting (for its report to be taken), reported, failed.

        Raises:
            Forbidden.
        """
        core = self._core
        shown = sa.case(
            (_C.state == "checking", "checking"), (_C.reported_at.is_not(None), "reported"),
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
            head = tx.execute(sa.select(commitment).where(_C.transaction_uid == transaction_uid).order_by(_C.id)).first()
            if head is None or head.leaf is None:
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
    found = tx.execute(sa.select(_C.leaf).where(_C.transaction_uid == transaction_uid, _C.leaf.is_not(None)).order_by(_C.id))
    leaf = found.scalars().first()
    return None if leaf is None else int(leaf)


def _check(transaction_uid: str, references: Sequence[Reference]) -> None:
    if not _is_uid(transaction_uid):
        raise Invalid("the Transaction UID is missing or not a UID")
    if not references:
        raise Invalid("no instance is referenced")
    if len(references) > MAXIMUM_REFERENCES:
        raise TooMany("more references than one transaction may have", remedy=f"at most {MAXIMUM_REFERENCES}")
    if not all(_is_uid(one.sop_class_uid) and _is_uid(one.sop_instance_uid) for one in references):
        raise Invalid("a referenced UID is missing or not a UID")
    if len({one.sop_instance_uid for one in references}) != len(references):
        raise Invalid("an instance is referenced twice")


def _is_uid(text: str) -> bool:
    return len(text) <= 64 and UID.fullmatch(text) is not None


def _free(row: Any, at: datetime) -> bool:
    return not row.leased_by or row.leased_until is None or row.leased_until <= at or not is_alive(row.leased_by)


__all__ = ["Commitments", "Invalid", "Reference", "Report", "TooMany"]
