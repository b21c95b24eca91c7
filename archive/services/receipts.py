"""Receipts: what was shredded, when and under which checkpoint, signed, and kept in an event (docs/format.md 8.1)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.keys.sealing import format_instant
from archive.ledger import checkpoints, documents
from archive.ledger.audit import Event, Kind, ObjectRef
from archive.ledger.log import AuditFilter
from archive.services.core import Core


@dataclass(frozen=True, slots=True)
class Receipt:
    """An event that a study was shredded, and the signed document it carries."""

    event: int
    at: datetime
    document: str
    said: dict[str, Any]


def give(core: Core, tx: sa.Connection, change: dict[str, Any], *, leaf: int, at: datetime) -> None:
    """Record the receipt of a purge that shredded a study, once its keys are destroyed; a second one is never given."""
    if any(leaf in one.said["purge"] for one in found(core, tx, change["study"])):
        return
    latest = checkpoints.latest(tx)
    signer = core.keyring.instance_signer
    objects = b"".join(sorted(bytes.fromhex(one) for one in change["objects"]))
    said = {
        "v": 1, "type": "shred", "archive": core.keyring.archive_uuid, "at": format_instant(at),
        "study": change["study"], "reason": change["reason"], "instances": len(change["objects"]),
        "objects": hashlib.sha256(objects).hexdigest(),
        "keys": sorted(hashlib.sha256(bytes.fromhex(one)).hexdigest() for one in change["keys"]), "purge": [leaf],
        "checkpoint": {"size": 0 if latest is None else latest.size, "root": "" if latest is None else latest.root.hex()},
        "kid": signer.key_id,
    }
    document = documents.sign("receipt", said, [signer])
    event = Event(
        Kind.SHREDDED, objects=(ObjectRef("study", change["study"]),), instances=len(change["objects"]),
        detail={"document": document, "purge": [leaf], "keys": len(change["keys"])}, document=documents.digest(document).hex(),
    )
    core.ledger.record(tx, event, at=at)


def found(core: Core, tx: sa.Connection, study_instance_uid: str) -> list[Receipt]:
    """Return the receipts of a study, newest first: it may have been sent again, and shredded again."""
    wanted = AuditFilter(kinds=(Kind.SHREDDED,), obj=ObjectRef("study", study_instance_uid), limit=1000)
    made = []
    for row in core.ledger.search(tx, wanted):
        if row.body is not None and "document" in row.body["detail"]:
            document = row.body["detail"]["document"]
            made.append(Receipt(row.n, row.at, document, documents.read(document).said))
    return made
