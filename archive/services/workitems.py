"""The unified worklist: create, search, retrieve, update, change the state of and ask to cancel workitems.

Who asks holds the permission worklist and sees, by the condition inside each statement, the studies a workitem takes in; what it does not
see is not there. Each change, with what its watchers are told of it, is in the ledger in the transaction of its effect.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import sqlalchemy as sa

from archive.access import policy
from archive.access.permissions import Permission
from archive.access.policy import Scope
from archive.access.subject import Subject
from archive.db.tables import datastore as datastores_table
from archive.db.tables import ups_event
from archive.dicom import workitem as rules
from archive.dicom.workitem import Dataset, State
from archive.dicom.workitem_keys import Key, met
from archive.errors import ArchiveError, InvalidRequest, NotFound, Unavailable
from archive.index import workitems as rows
from archive.ledger.audit import Event, Kind, ObjectRef, StoredRef
from archive.services import datastores, denials, state_events
from archive.services.core import Core

T = TypeVar("T")
_MOST_STUDIES = 1000
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Made:
    """A new workitem: its UID, and whether the archive added to it what was left out."""

    uid: str
    modified: bool


@dataclass(frozen=True, slots=True)
class Page:
    """Workitems that match, and whether there are more."""

    found: list[Dataset]
    more: bool


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a workitem becomes and what its watchers are told; or a warning, and nothing becomes of it."""

    what: str = ""
    dataset: Dataset = field(default_factory=dict)
    told: list[Dataset] = field(default_factory=list)
    lock: str | None = None
    final: bool = False
    warning: int = 0


class _Moved(Exception):
    """The workitem is another than was planned with."""


class Workitems:
    """The one way to workitems; safe to share between threads."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core

    def create(self, subject: Subject, datastore: str, uid: str | None, dataset: object) -> Made:
        """Add a workitem; without a UID in address or body it gets one.

        Raises:
            InvalidRequest: not a workitem. StateConflict: the UID is taken.
            Forbidden, NotFound, ReadOnly, Unavailable.
        """
        checked = rules.checked(dataset)
        chosen = uid or rules.text_of(checked, rules.SOP_INSTANCE_UID) or f"2.25.{uuid.uuid4().int}"
        if chosen in {rules.GLOBAL, rules.FILTERED}:
            message = "that UID stands for all workitems"
            raise InvalidRequest(message)

        modified = False

        def plan(tx: sa.Connection, scope: Scope, place: int, at: datetime) -> _Plan:  # noqa: ARG001 # one signature for all
            nonlocal modified
            if rows.taken(tx, place, chosen):
                raise rules.refusal(0x0111)
            kept, modified = rules.created(checked, chosen, at)
            told = [rules.state_report(kept)]
            if kept["00404025"].get("Value") or kept.get("00404034", {}).get("Value"):
                told.append(rules.assigned(kept))
            return _Plan("created", kept, told)

        self._keep(subject, datastore, chosen, plan)
        return Made(chosen, modified)

    def retrieve(self, subject: Subject, datastore: str, uid: str) -> Dataset:
        """Return a workitem, without the Transaction UID that locks it.

        Raises:
            NotFound, Forbidden, Unavailable.
        """
        core = self._core
        at = core.clock()
        with denials.recorded(core, subject), core.database.read() as tx:
            scope, place = self._enter(tx, subject, datastore, at)
            row = rows.find(tx, scope, place, uid)
        if row is None:
            raise _absent()
        record_read(core, subject, Kind.READ, [row.dataset], what="workitem")
        return dict(row.dataset)

    def search(self, subject: Subject, datastore: str, keys: tuple[Key, ...], *, limit: int, offset: int) -> Page:
        """Return what matches and the caller may see, oldest first.

        Raises:
            NotFound, Forbidden, Unavailable.
        """
        core = self._core
        at = core.clock()
        found: list[Dataset] = []
        skipped, more = 0, False
        narrow = {key.name: key.match for key in keys}
        with denials.recorded(core, subject), core.database.read() as tx:
            scope, place = self._enter(tx, subject, datastore, at)
            for row in rows.seen(tx, scope, place, **rows.narrowed(narrow)):
                if not met(keys, row.dataset):
                    continue
                if skipped < offset:
                    skipped += 1
                elif len(found) < limit:
                    found.append(dict(row.dataset))
                else:
                    more = True
                    break
        record_read(core, subject, Kind.SEARCHED, found, what="workitems", keys=[key.name for key in keys])
        return Page(found, more)

    def update(self, subject: Subject, datastore: str, uid: str, transaction_uid: str, dataset: object) -> None:
        """Replace the attributes that `dataset` names.

        Raises:
            InvalidRequest, StateConflict, NotFound, Forbidden, ReadOnly, Unavailable.
        """
        changes = rules.checked(dataset)
        inside = rules.text_of(changes, rules.TRANSACTION_UID)
        if inside and transaction_uid and inside != transaction_uid:
            message = "the TransactionUID of the body is not the one of the address"
            raise InvalidRequest(message)
        sent = transaction_uid or inside

        def plan(tx: sa.Connection, scope: Scope, place: int, at: datetime) -> _Plan:
            row = _seen(tx, scope, place, uid)
            rules.require_updatable(State(row.state), row.transaction_uid, sent)
            kept = rules.updated(row.dataset, changes, at)
            return _Plan("updated", kept, rules.events_between(row.dataset, kept))

        self._keep(subject, datastore, uid, plan)

    def change_state(self, subject: Subject, datastore: str, uid: str, dataset: object) -> int:
        """Claim, complete or cancel a workitem; return 0, or the warning that it was in that state already.

        Raises:
            InvalidRequest, StateConflict, NotFound, Forbidden, ReadOnly, Unavailable.
        """
        asked = rules.checked(dataset)
        sent = rules.text_of(asked, rules.TRANSACTION_UID)
        try:
            target = State(rules.text_of(asked, rules.STATE))
        except ValueError:
            message = "ProcedureStepState is none a workitem can have"
            raise InvalidRequest(message, remedy="name IN PROGRESS, COMPLETED or CANCELED") from None
        if not sent:
            message = "a change of state needs a TransactionUID"
            raise InvalidRequest(message, remedy="make one to claim it; send the same to complete or cancel it")

        def plan(tx: sa.Connection, scope: Scope, place: int, at: datetime) -> _Plan:
            row = _seen(tx, scope, place, uid)
            kept, warning = rules.moved(row.dataset, State(row.state), target, row.transaction_uid, sent, at)
            if warning:
                return _Plan(warning=warning)
            lock = sent if target is State.IN_PROGRESS else None
            return _Plan(target.value.lower(), kept, [rules.state_report(kept)], lock, final=target in rules.FINAL)

        return self._keep(subject, datastore, uid, plan)

    def request_cancel(self, subject: Subject, datastore: str, uid: str, dataset: object) -> int:
        """Ask for a workitem to be given up: one that nobody has claimed is canceled, of any other its watchers are told.

        Returns:
            0, or the warning that it is CANCELED already.

        Raises:
            StateConflict: it is COMPLETED.
            InvalidRequest, NotFound, Forbidden, ReadOnly, Unavailable.
        """
        request = rules.checked(dataset)

        def plan(tx: sa.Connection, scope: Scope, place: int, at: datetime) -> _Plan:
            row = _seen(tx, scope, place, uid)
            state = State(row.state)
            if state is State.CANCELED:
                return _Plan(warning=0xB304)
            if state is State.COMPLETED:
                raise rules.refusal(0xC311)
            if state is State.IN_PROGRESS:
                return _Plan("cancel-requested", row.dataset, [rules.cancel_requested(row.dataset, request, subject.name[:16])])
            kept = rules.canceled(row.dataset, request, at)
            return _Plan("canceled", kept, [rules.state_report(kept)], final=True)

        return self._keep(subject, datastore, uid, plan)

    def _keep(
        self, subject: Subject, datastore: str, uid: str, plan: Callable[[sa.Connection, Scope, int, datetime], _Plan]
    ) -> int:
        """Seal what a workitem becomes, then let it become that; return the plan's warning.

        What was sealed is what is committed: where the workitem changed in between it is planned and sealed anew.
        """
        core = self._core
        core.require_writable()
        for _ in range(_ATTEMPTS):
            at = core.clock()  # anew: what it is planned with has changed since, and a catch-up goes by these times
            with denials.recorded(core, subject):
                with core.database.read() as tx:
                    scope, place = self._enter(tx, subject, datastore, at)
                    planned, after = plan(tx, scope, place, at), rows.updated_at(tx, place, uid)
                    home = tx.execute(sa.select(datastores_table.c.uid).where(datastores_table.c.id == place)).scalar_one()
                if planned.warning:
                    return planned.warning

                def work(tx: sa.Connection, stored: StoredRef, planned: _Plan = planned, after: datetime = after, at: datetime = at) -> int:
                    scope, place = self._enter(tx, subject, datastore, at)
                    if planned.what != "created":
                        _taken(tx, scope, place, uid)
                    if plan(tx, scope, place, at) != planned or rows.updated_at(tx, place, uid) != after:
                        raise _Moved
                    pk = keep(tx, place, uid, planned.dataset, planned.lock, by=subject.principal_id, final=planned.final, at=at)
                    return self._record(tx, subject, planned.what, planned.dataset, at, pk, planned.told, stored)

                said = {
                    "datastore": bytes(home).hex(), "by": subject.principal_id, "uid": uid, "dataset": planned.dataset,
                    "lock": planned.lock or "", "final": planned.final, "after": after.isoformat(),
                }
                about = next(iter(rules.studies_of(planned.dataset)), "")
                try:
                    state_events.commit_change(
                        core, state_events.WORKITEM, datastore=bytes(home), study_instance_uid=about, objects=(), reason="", at=at,
                        work=work, more=said,
                    )
                except _Moved:
                    continue
                return 0
        message = "the workitem changes all the time"
        raise Unavailable(message, remedy="try again")

    def _enter(self, tx: sa.Connection, subject: Subject, datastore: str, at: datetime) -> tuple[Scope, int]:
        return enter(tx, subject, datastore, at)

    def _record(
        self, tx: sa.Connection, subject: Subject, what: str, dataset: Dataset, at: datetime, pk: int, told: list[Dataset],
        stored: StoredRef,
    ) -> int:
        event = Event(
            Kind.WORKITEM_CHANGED, subject=subject, objects=objects_of([dataset]), stored=stored,
            detail={"what": what, "workitem": rules.text_of(dataset, rules.SOP_INSTANCE_UID)},
        )
        leaf = self._core.ledger.record(tx, event, at=at)
        tell(tx, leaf, pk, told, at=at)
        return leaf


def keep(
    tx: sa.Connection, place: int, uid: str, dataset: Dataset, lock: str | None, *, by: int, final: bool, at: datetime
) -> int:
    """Let a workitem be as it is now said to be, new or not, and return its key."""
    pk = rows.insert(tx, place, uid, dataset, by=by, at=at)
    if pk is None:
        pk = rows.key_of(tx, place, uid)
        rows.replace(tx, pk, dataset, at=at, lock=lock, deletable_at=at if final else None)
    return pk


def redo(tx: sa.Connection, place: int, change: dict[str, Any], *, late: datetime | None) -> None:
    """Do again what a sealed record says a workitem became; what comes `late`, unless it became something else by now."""
    at, uid = datetime.fromisoformat(change["at"]), change["uid"]
    made_of = datetime.fromisoformat(change["after"]) if "after" in change else late
    if (late is None or made_of == rows.NEVER) and rules.text_of(change["dataset"], rules.STATE) == State.SCHEDULED:
        rows.forget(tx, place, uid, rules.FINAL)  # its UID was free, so the one before was swept
    # In the ledger's order each came after the one before: of two at once the later may have been asked for first.
    last = rows.updated_at(tx, place, uid)
    if late is None or made_of is None or last <= made_of:
        keep(tx, place, uid, change["dataset"], change["lock"] or None, by=change["by"], final=change["final"], at=at)


def change(core: Core, subject: Subject, datastore: str, work: Callable[[sa.Connection, Scope, int, datetime], T]) -> T:
    """Run `work` in a durable transaction for someone who may work with the worklist of that datastore.

    Raises:
        Forbidden, NotFound, ReadOnly, Unavailable, and what `work` raises.
    """
    core.require_writable()

    def all_of_it(tx: sa.Connection) -> T:
        at = core.clock()
        scope, place = enter(tx, subject, datastore, at)
        return work(tx, scope, place, at)

    with denials.recorded(core, subject):
        return core.database.group(all_of_it, durable=True)


def enter(tx: sa.Connection, subject: Subject, datastore: str, at: datetime) -> tuple[Scope, int]:
    """Return what a holder of the permission worklist may see, and the key of the datastore.

    Raises:
        Forbidden, NotFound.
    """
    policy.require(tx, subject, Permission.WORKLIST, at)
    place = datastores.asked_for(tx, subject, datastore, at).id
    return policy.scope_of(subject, Permission.SEARCH, at), place


def tell(tx: sa.Connection, leaf: int, pk: int, told: list[Dataset], *, at: datetime, subscriber_pk: int | None = None) -> None:
    """Queue events about a workitem, for all its watchers or one."""
    for position, body in enumerate(told):
        tx.execute(sa.insert(ups_event).values(
            leaf=leaf, position=position, workitem_pk=pk, subscriber_pk=subscriber_pk, body=body, at=at
        ))


def record_read(core: Core, subject: Subject, kind: Kind, found: list[Dataset], *, what: str, **detail: Any) -> None:
    """No audit, no data: what was read of workitems is in the ledger, durably, before it leaves.

    Raises:
        Unavailable.
    """
    uids = [rules.text_of(dataset, rules.SOP_INSTANCE_UID) for dataset in found[:_MOST_STUDIES]]
    event = Event(kind, subject=subject, objects=objects_of(found), detail={"what": what, "workitems": uids, "found": len(found), **detail})
    try:
        core.database.group(lambda tx: core.ledger.record(tx, event, at=core.clock()), durable=True)
    except (ArchiveError, sa.exc.SQLAlchemyError) as error:
        message = "the request could not be recorded, so nothing was answered"
        raise Unavailable(message, remedy=getattr(error, "remedy", "") or "run 'archive doctor'") from error


def objects_of(found: list[Dataset]) -> tuple[ObjectRef, ...]:
    """Return the patients and studies that workitems name."""
    patients = {text for dataset in found if (text := rules.text_of(dataset, rules.PATIENT_ID))}
    studies = {uid for dataset in found for uid in rules.studies_of(dataset)}
    return (
        *(ObjectRef("patient", one) for one in sorted(patients)[:_MOST_STUDIES]),
        *(ObjectRef("study", one) for one in sorted(studies)[:_MOST_STUDIES]),
    )


def _seen(tx: sa.Connection, scope: Scope, place: int, uid: str) -> Any:
    row = rows.find(tx, scope, place, uid)
    if row is None:
        raise _absent()
    return row


def _taken(tx: sa.Connection, scope: Scope, place: int, uid: str) -> Any:
    row = rows.find(tx, scope, place, uid)
    held = None if row is None else rows.locked(tx, row.id)
    if held is None:
        raise _absent()
    return held


def _absent() -> NotFound:
    message = "there is no such workitem"
    return NotFound(message, remedy="search the worklist for what there is")
