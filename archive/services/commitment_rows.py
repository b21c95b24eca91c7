"""Rows of storage commitment: written when it is asked and checked, and made again from what was sealed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa

from archive.db.tables import commitment, commitment_item, delivery
from archive.ledger import seals
from archive.services import deliveries
from archive.services.commitment_check import DUPLICATE_TRANSACTION, NO_SUCH_INSTANCE, Reference

HEAD_START = timedelta(seconds=30)
"""How long a report that goes on the same association first keeps the queue from sending it too."""
REQUESTED, REPORTED = "storage-commitment-request", "storage-commitment-reported"
AUDITED_STUDIES = 1000
_C, _I = commitment.c, commitment_item.c


def begin(tx: sa.Connection, place: int, said: dict[str, Any], at: datetime, *, reason: int | None) -> int:
    """Insert a transaction that is to be checked, or whose references all failed for one reason; return its number."""
    made = tx.execute(sa.insert(commitment).values(
        datastore_id=place, transaction_uid=said["uid"], principal_id=said["by"], peer_id=said["peer"], peer=said["name"],
        calling_ae_title=said["ae_title"], state="checking", n_references=len(said["references"]), same_association=said["same"],
        run_at=at + (HEAD_START if said["same"] else timedelta()), created_at=at,
    ))
    assert made.inserted_primary_key is not None
    key, unseen = int(made.inserted_primary_key[0]), frozenset(said.get("unseen", ()))
    tx.execute(sa.insert(commitment_item), [
        {"commitment_id": key, "sop_class_uid": sop_class, "sop_instance_uid": sop_instance,
         "reason": NO_SUCH_INSTANCE if reason is None and sop_instance in unseen else reason}
        for sop_class, sop_instance in said["references"]
    ])
    return key


def finish(tx: sa.Connection, key: int, failed: int, leaf: int, at: datetime) -> None:
    """Note that a transaction is checked, and let its report wait."""
    tx.execute(sa.update(commitment).where(_C.id == key).values(
        state="checked", n_failed=failed, leaf=leaf, checked_at=at, leased_by="", leased_until=None
    ))
    same = tx.execute(sa.select(_C.same_association).where(_C.id == key)).scalar_one()
    _queue(tx, key, at, run_at=at + (HEAD_START if same else timedelta()))


def _queue(tx: sa.Connection, key: int, at: datetime, *, run_at: datetime) -> None:
    head = tx.execute(sa.select(_C.peer_id, _C.calling_ae_title).where(_C.id == key)).one()
    deliveries.need_destination(tx, head.peer_id)
    tx.execute(sa.insert(delivery).values(
        kind=deliveries.REPORT, peer_id=head.peer_id, ae_title=head.calling_ae_title, state=deliveries.WAITING, commitment_id=key,
        run_at=run_at, created_at=at,
    ))


def valid(of: Any) -> sa.ColumnElement[bool]:
    """Whether a transaction is not one that failed because its UID was used for other references."""
    item = commitment_item.alias()
    return ~sa.exists(sa.select(1).where(item.c.commitment_id == of.c.id, item.c.reason == DUPLICATE_TRANSACTION))


def replaced() -> sa.ColumnElement[bool]:
    """Whether a transaction was asked again, so that a later look says what counts."""
    later = commitment.alias("later")
    same = (later.c.principal_id == _C.principal_id, later.c.transaction_uid == _C.transaction_uid, later.c.id > _C.id)
    return sa.and_(valid(commitment), sa.exists(sa.select(1).where(*same, valid(later))))


def alike(tx: sa.Connection, key: int, references: Sequence[Reference]) -> bool:
    """Whether a transaction is about just these references."""
    rows = tx.execute(sa.select(_I.sop_class_uid, _I.sop_instance_uid).where(_I.commitment_id == key))
    return {Reference(*row) for row in rows} == set(references)


def said_of(rows: Sequence[Any]) -> list[list[Any]]:
    """Return results as receipts and records say them: [class, instance, reason, study, SHA-256 in hex] of each."""
    return [
        [row.sop_class_uid, row.sop_instance_uid, row.reason, row.study_instance_uid, bytes(row.sha256).hex() if row.sha256 else ""]
        for row in rows
    ]


def digest(results: list[list[Any]]) -> str:
    """Return the SHA-256 over results in order (docs/format.md 9.1)."""
    return hashlib.sha256(msgspec.json.encode(results)).hexdigest()


def study_seals(results: list[list[Any]]) -> dict[str, str]:
    """Return the seal of each study over the instances of it that are committed."""
    by_study: dict[str, list[tuple[str, bytes]]] = {}
    for _, sop_instance, reason, study, sha256 in results:
        if reason == 0:
            by_study.setdefault(study, []).append((sop_instance, bytes.fromhex(sha256)))
    return {uid: seals.seal(found).hex() for uid, found in sorted(by_study.items())}


def receipt_of(transaction_uid: str, datastore: str, results: list[list[Any]]) -> dict[str, Any]:
    """Return what the event that is the receipt says."""
    return {
        "what": "storage-commitment", "transaction_uid": transaction_uid, "datastore": datastore, "references": len(results),
        "failed": sum(one[2] != 0 for one in results), "results_sha256": digest(results),
        "seals": dict(list(study_seals(results).items())[:AUDITED_STUDIES]),
    }


def receipt(change: dict[str, Any]) -> dict[str, Any]:
    """Return what the event of a sealed record says, when it is recorded again."""
    if change["what"] == "asked":
        return {"what": REQUESTED, "transaction_uid": change["uid"]}
    return receipt_of(change["uid"], change["place"], change["results"])


def redo(tx: sa.Connection, place: int, change: dict[str, Any], leaf: int) -> None:
    """Do again what a sealed record says was asked, or found; what is there already stays."""
    at = datetime.fromisoformat(change["at"])
    same = sa.select(commitment).where(_C.principal_id == change["by"], _C.transaction_uid == change["uid"])
    if change["what"] == "asked":
        there = tx.execute(same.order_by(_C.id)).all()
        if not any(row.created_at == at for row in there):
            used = there and not alike(tx, there[0].id, [Reference(*one) for one in change["references"]])
            begin(tx, place, change, at, reason=DUPLICATE_TRANSACTION if used else None)
        return
    head = tx.execute(same.where(_C.created_at == datetime.fromisoformat(change["asked_at"]))).first()
    if head is None or head.state == "checked":
        return
    ids = tx.execute(sa.select(_I.id).where(_I.commitment_id == head.id).order_by(_I.id)).scalars().all()
    for item, (_, _, reason, study, sha256) in zip(ids, change["results"], strict=True):
        tx.execute(sa.update(commitment_item).where(_I.id == item).values(
            reason=reason, study_instance_uid=study, sha256=bytes.fromhex(sha256) or None
        ))
    finish(tx, head.id, sum(one[2] != 0 for one in change["results"]), leaf, at)


def reported(tx: sa.Connection, said: Iterable[tuple[int, datetime]]) -> None:
    """Note reports that were taken, each by the event of its check, so that they are not sent again."""
    for leaf, at in said:
        key = tx.execute(sa.select(_C.id).where(_C.leaf == leaf)).scalar()
        if key is not None:
            tx.execute(sa.update(commitment).where(_C.id == key).values(reported_at=at))
            tx.execute(sa.update(delivery).where(delivery.c.commitment_id == key).values(
                state=deliveries.DONE, finished_at=at, reason=""
            ))
