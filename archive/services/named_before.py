"""Whose a study is that an earlier release purged what named the patient from: said at the first start of a release that says so.

Purges say it now (`patient`, docs/format.md 2.5). Without it verify finds nothing that names the patient, and a rebuild gives the study to
nobody: a deny of the patient would hide it no more. What the ledger says that study's instances were, when they came, is believed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import sqlalchemy as sa

from archive.access import policy
from archive.db.tables import archive_state, audit_event, datastore, held, instance, ledger_leaf, patient, statement, study
from archive.errors import ArchiveError, StateConflict
from archive.index import catalog
from archive.index.identity import PatientKey, key_of
from archive.ledger import objects
from archive.ledger.audit import Event, Kind, ObjectRef, StoredRef
from archive.services.core import Core
from archive.services.purged import say_again, staying
from archive.services.records import decode
from archive.services.state_events import commit_change, decode_change

DONE = "patients_said"
REASON = "an earlier release purged what named the patient"
_TOKEN = policy.system("shred")
_ARRIVALS = ("stored", "held", "conflict")


def say(core: Core) -> int:
    """Say it of every such study, once; return of how many.

    Raises:
        OutOfSpace, VaultUnavailable, DatabaseUnavailable.
    """
    with core.database.read() as tx:
        if tx.execute(sa.select(archive_state.c.name).where(archive_state.c.name == DONE)).first() is not None:
            return 0
        due = [row for uid in _unsaid(tx) for row in _studies(tx, uid) if _is_due(core, tx, row)]
    count = sum(_say(core, row) for row in due)
    with core.database.begin() as tx:
        tx.execute(sa.delete(archive_state).where(archive_state.c.name == DONE))
        tx.execute(sa.insert(archive_state).values(name=DONE, value="1"))
    return count


def _unsaid(tx: sa.Connection) -> list[str]:
    """Return the studies whose last purge does not say whose they stay."""
    found: dict[str, bool] = {}
    changes = sa.select(statement.c.envelope).join(audit_event, audit_event.c.n == statement.c.leaf).where(audit_event.c.kind == "purged")
    for row in tx.execute(changes.order_by(statement.c.leaf)):
        try:
            change = decode_change(bytes(row.envelope))
            found[change["study"]] = "patient" not in change
        except (msgspec.DecodeError, KeyError, ValueError, TypeError):
            continue  # verify tells
    return sorted(uid for uid, unsaid in found.items() if unsaid)


def _studies(tx: sa.Connection, uid: str) -> list[Any]:
    query = (
        sa.select(study.c.id, study.c.study_instance_uid, study.c.datastore_id, datastore.c.uid, patient.c.issuer, patient.c.patient_id)
        .join(patient, patient.c.id == study.c.patient_pk).join(datastore, datastore.c.id == study.c.datastore_id)
        .where(study.c.study_instance_uid == uid, patient.c.synthetic.is_(sa.false()))
    )
    return list(policy.run_as(tx, _TOKEN, query).all())


def _is_due(core: Core, tx: sa.Connection, row: Any) -> bool:
    """Whether something of a study is left, none of it names its patient, and something that came did."""
    whose, there = PatientKey(row.issuer, row.patient_id), False
    for ref in _records(tx, row):
        there = True
        try:
            meta = decode(core.vault.sections(ref).meta)
        except ArchiveError:
            return False  # verify tells; what it says is not known
        if key_of(meta.scanned, meta.issuer) == whose:
            return False
    of_patient = ObjectRef("patient", row.patient_id).pseudonym(core.keyring)
    about = objects.about(ObjectRef("study", row.study_instance_uid).pseudonym(core.keyring))
    leaves = sa.select(ledger_leaf.c.data).join(audit_event, audit_event.c.n == ledger_leaf.c.n).where(
        audit_event.c.n.in_(about), audit_event.c.kind.in_(_ARRIVALS)
    )
    return there and any(of_patient in objects.named(bytes(data)) for data in tx.execute(leaves).scalars())


def _records(tx: sa.Connection, row: Any) -> Iterator[Any]:
    here = sa.select(instance).where(instance.c.datastore_id == row.datastore_id, instance.c.study_pk == row.id)
    waiting = sa.select(held).where(held.c.datastore_id == row.datastore_id, held.c.study_instance_uid == row.study_instance_uid)
    for query in (here, waiting):
        for one in policy.run_as(tx, _TOKEN, query):
            yield catalog.ref_of(one, bytes(row.uid))


def _say(core: Core, row: Any) -> bool:
    """Seal it as a purge of nothing says it, and let the study say no more of the patient than that."""
    at, uid = core.clock(), row.study_instance_uid
    with core.database.read() as tx:
        stays = staying(tx, row.datastore_id, uid, ())

    def work(tx: sa.Connection, stored: StoredRef) -> int:
        if staying(tx, row.datastore_id, uid, ()) != stays:
            message = "the study changed meanwhile"
            raise StateConflict(message)
        event = Event(Kind.PURGED, objects=(ObjectRef("study", uid),), stored=stored, detail={
            "reason": REASON, "payload": stored.statement_sha256.hex(), "segments": [], "keys": 0,
        })
        leaf = core.ledger.record(tx, event, at=at)
        say_again(core, tx, row.id, (), stays["patient"], at)
        return leaf

    more = {"places": [], "keys": [], "replaced": [], **stays}
    commit_change(
        core, "purged", datastore=bytes(row.uid), study_instance_uid=uid, objects=(), reason=REASON, at=at, work=work, more=more,
    )
    return True
