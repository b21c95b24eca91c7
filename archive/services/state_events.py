"""Event records: changes of state that a rebuild must know, sealed into a segment before they are committed (docs/format.md 2)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Final, Literal

import msgspec
import sqlalchemy as sa

from archive.db.prepared import Prepared
from archive.db.tables import purged, segment, statement
from archive.errors import ArchiveError, CommitUncertain
from archive.ledger import statements
from archive.ledger.audit import StoredRef
from archive.services.core import Core
from archive.vault.disk import padded
from archive.vault.vault import Kind, RecordRef

log = logging.getLogger("archive.services")

Change = Literal[
    "rejected", "restored", "accepted", "held-rejected", "purged", "procedure-step", "worklist-entry", "workitem", "commitment",
]
STEP: Final = "procedure-step"
ENTRY: Final = "worklist-entry"
WORKITEM: Final = "workitem"
COMMITMENT: Final = "commitment"
"""What peers and people were told is kept though it is no part of an instance (docs/format.md 2.6)."""
NO_STUDY = ""
"""Whose key seals event records: that of no study, so that it outlives the keys of studies that are purged."""


def commit_change(
    core: Core, change: Change, *, datastore: bytes, study_instance_uid: str, objects: Iterable[bytes], reason: str, at: datetime,
    work: Callable[[sa.Connection, StoredRef], int], more: dict[str, Any] | None = None,
) -> None:
    """Seal the change, with what `more` it says, then commit `work`, which records it with the given reference, durably.

    `work` returns the leaf and may run more than once. If the commit fails the record is freed.

    Raises:
        OutOfSpace, VaultUnavailable, DatabaseUnavailable, KeyShredded.
    """
    key = core.keystore.for_study(datastore, NO_STUDY, at=at)
    payload = {
        "change": change, "study": study_instance_uid, "objects": sorted(one.hex() for one in objects), "reason": reason,
        "at": at.isoformat(), **(more or {}),
    }
    encoded = msgspec.json.encode(payload, order="sorted")
    ref = core.vault.put_event(key, datastore, encoded, at=at)

    def all_of_it(tx: sa.Connection) -> None:
        core.ledger.alone(tx)  # before the rows of a study, as those do that store or give it: or each could wait for the other
        leaf = work(tx, StoredRef(statements.digest(encoded), ref.object_id, ref.location.record_bytes))
        keep_statement(core, tx, ref, leaf, encoded)

    try:
        core.database.group(all_of_it, durable=True)
    except Exception as error:
        free_after(core, ref, error)
        raise
    core.vault.segments.settle(ref.location)


def free_after(core: Core, ref: RecordRef, error: Exception) -> None:
    """Free the record of a failed transaction, unless it may have been committed all the same: then the next start decides."""
    if not isinstance(error, CommitUncertain):
        free(core, ref)


def free(core: Core, ref: RecordRef) -> None:
    """Free a record that no row names; if even that fails, the next start sweeps it."""
    try:
        core.vault.forget([ref])
    except ArchiveError as error:
        log.warning("a record that is not needed could not be freed (%s); the next start frees it", error.code)


def is_known(tx: sa.Connection, object_id: bytes) -> bool:
    """Whether a record has its rows, or had them until it was purged: then it is never taken in again."""
    return any(tx.execute(query, {"object": object_id}).first() is not None for query in _KNOWN)


def decode_change(payload: bytes) -> dict[str, Any]:
    """Return the payload of an event record."""
    return dict(msgspec.json.decode(payload))


def keep_statement(core: Core, tx: sa.Connection, ref: RecordRef, leaf: int, envelope: bytes) -> None:
    """Insert the row that makes a record known, and move its segment's replay position when that is due.

    The position goes up to what is settled once this transaction, the record's own, commits. A change of state has its place in no row:
    its segment, while it is open, says that it holds something, so that it is missed when it is lost.
    """
    _STATEMENT.run(tx, {"object_id": ref.object_id, "leaf": leaf, "envelope": envelope})
    if ref.kind == Kind.EVENT:
        end = padded(ref.location.offset + ref.location.record_bytes)
        _HOLDS.run(tx, {"segment": ref.location.segment_id, "end": end})
    position = core.vault.segments.replay_due(ref.location)
    if position is not None:
        _ADVANCE.run(tx, {"segment": ref.location.segment_id, "position": position})


_KNOWN = [
    sa.select(table.c.leaf).where(table.c.object_id == sa.bindparam("object")) for table in (statement, purged)
]
_STATEMENT = Prepared(sa.insert(statement), keys=("object_id", "leaf", "envelope"))
_HOLDS = Prepared(
    sa.update(segment)
    .where(segment.c.id == sa.bindparam("segment"), segment.c.state == "open", segment.c.used < sa.bindparam("end"))
    .values(used=sa.bindparam("end"))
)
_ADVANCE = Prepared(
    sa.update(segment)
    .where(segment.c.id == sa.bindparam("segment"), segment.c.replay_from < sa.bindparam("position"))
    .values(replay_from=sa.bindparam("position"))
)
