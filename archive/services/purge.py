"""Purge: what was rejected is taken away for good, study by study (docs/format.md 2.5).

Nothing goes that the ledger does not say was rejected, and nothing of a study on hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from archive.access import policy, predicate
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.batches import batches
from archive.db.tables import datastore, held, instance, ledger_leaf, series, series_pack, statement, study
from archive.errors import ArchiveError, InvalidRequest, LedgerBroken, NotFound, StateConflict
from archive.ledger import checkpoints, proofs, statements
from archive.ledger.audit import Event, Kind, ObjectRef, StoredRef
from archive.ledger.bodies import commitment, parse
from archive.services import datastores, hold_rows, holds, retrace
from archive.services.core import Core
from archive.services.purge_finish import finish
from archive.services.purged import carry_out, staying
from archive.services.state_events import commit_change
from archive.services.two_person import Wish, demand

_TOKEN = policy.system("shred")
AT_ONCE = 500
"""Instances of one event."""
Progress = Callable[[str, int, int | None], None]


@dataclass(slots=True)
class Purged:
    """What went, or would go.

    `held` are studies on hold, `doubted` instances that the ledger does not say were rejected; what `changed` or is `left` comes again.
    """

    dry_run: bool
    studies: int = 0
    instances: int = 0
    bytes: int = 0
    keys: int = 0
    held: int = 0
    doubted: int = 0
    changed: int = 0
    left: int = 0

    @property
    def ok(self) -> bool:
        """Whether everything that may go went."""
        return not (self.doubted or self.changed)


@dataclass(frozen=True, slots=True)
class _Item:
    object_id: bytes
    place: tuple[bytes, int, int]
    key_id: bytes
    series_pk: int | None
    replaced: bool = False


@dataclass(slots=True)
class _Group:
    """What goes with one event: of one study."""

    datastore_id: int
    datastore: str
    datastore_uid: bytes
    study_instance_uid: str
    items: list[_Item]


class Purge:
    """Needs the permission purge on what goes, or the console; safe to share between threads."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core

    def run(
        self, subject: Subject | None, datastore: str | None = None, *, study: str | None = None, before: datetime | None = None,
        reason: str, dry_run: bool = False, limit: int | None = None, progress: Progress = lambda *_args: None, whole: bool = False,
    ) -> Purged:
        """Take away what was rejected: of a study, or what was rejected before a time, or both; `subject` None is the archive itself.

        A study that is named and on hold refuses; else studies on hold are passed over. `limit` is of events.
        `whole` is the study that is shredded, all of it and its key by one event: that the subject may is known then.

        Raises:
            NotFound: nothing rejected there that the subject may purge.
            StateConflict: the study that was named is on hold.
            InvalidRequest: no reason, or neither study nor time; ReadOnly, OutOfSpace, VaultUnavailable, DatabaseUnavailable.
        """
        core = self._core
        core.require_writable()
        if not reason.strip():
            message = "a reason is needed"
            raise InvalidRequest(message, remedy="say why with --reason")
        if study is None and before is None:
            message = "nothing says what is to be purged"
            raise InvalidRequest(message, remedy="name a study, or how long ago it was rejected")
        at = core.clock()
        report = Purged(dry_run)
        if not dry_run:
            hold_rows.mend(core, at)
        told, groups = self._planned(subject, datastore, study, before, at, report, whole=whole)
        subject = subject and self._seconded(subject, datastore, study, before, reason, idle=dry_run or not groups)
        studies = set()
        for done, group in enumerate(groups[:limit]):
            progress("instances purged", report.instances, sum(len(one.items) for one in groups))
            if not dry_run and not self._one(subject, group, told, reason, report, whole=whole):
                continue
            studies.add((group.datastore_id, group.study_instance_uid))
            report.instances += len(group.items)
            report.bytes += sum(one.place[2] for one in group.items)
            if not dry_run and done % 8 == 7:
                finish(core)
        report.studies, report.left = len(studies), max(0, len(groups) - (len(groups) if limit is None else limit))
        if not dry_run and groups:
            report.keys += finish(core).keys
        return report

    def would_go(self, subject: Subject, datastore: str | None, *, study: str | None, before: datetime | None) -> frozenset[bytes]:
        """Return the objects that `run` would take away.

        Raises:
            NotFound, StateConflict: as `run`.
        """
        _told, groups = self._planned(subject, datastore, study, before, self._core.clock(), Purged(dry_run=True))
        return frozenset(item.object_id for group in groups for item in group.items)

    def _planned(
        self, subject: Subject | None, datastore: str | None, study: str | None, before: datetime | None, at: datetime, report: Purged, *,
        whole: bool = False,
    ) -> tuple[retrace.Said, list[_Group]]:
        with self._core.database.read() as tx:
            places = None if datastore is None else self._place(tx, subject, datastore, at)
            told = retrace.said(tx)
            groups = list(self._groups(tx, None if whole else subject, told, report, places, study, before, at, whole=whole))
            kept = self._held(tx, groups, at)
        if study is not None and any((one.datastore, one.study_instance_uid) in kept for one in groups):
            message = "the study is on hold, and nothing of it may be purged"
            raise StateConflict(message, remedy="ask who put it on hold; 'archive hold list' shows why")
        report.held = len({(one.datastore, one.study_instance_uid) for one in groups} & kept)
        groups = [one for one in groups if (one.datastore, one.study_instance_uid) not in kept]
        if not groups and study is not None and not report.doubted:
            message = "there is nothing rejected under that UID"
            raise NotFound(message, remedy="only what was rejected can be purged: 'archive delete' comes first")
        return told, groups

    def _seconded(
        self, subject: Subject, datastore: str | None, study: str | None, before: datetime | None, reason: str, *, idle: bool
    ) -> Subject:
        if idle:
            return subject
        until = "" if before is None else before.isoformat()
        asked = {"datastore": datastore or "", "study": study or "", "before": until, "reason": reason}
        what = [f"of study {study}"] * bool(study) + ([] if before is None else [f"rejected before {before:%Y-%m-%d %H:%M} UTC"])
        said = f"purge what was rejected: {', '.join(what)}"
        return demand(self._core, subject, Wish("purge", said, Permission.NONE, asked, reason))

    # --- what is to go -------------------------------------------------------------------------------------------------------------

    def _place(self, tx: sa.Connection, subject: Subject | None, name: str, at: datetime) -> int:
        if subject is None:
            return policy.datastore_id(tx, name)
        return datastores.asked_for(tx, subject, name, at).id

    def _groups(
        self, tx: sa.Connection, subject: Subject | None, told: retrace.Said, report: Purged, place: int | None, study_uid: str | None,
        before: datetime | None, at: datetime, *, whole: bool = False,
    ) -> Iterator[_Group]:
        """Yield what went out of sight, and with it what it had taken the place of."""
        places = {row.id: row for row in tx.execute(sa.select(datastore))}
        out = [one for one, state in told.hidden.items() if state]
        out += [one for one, state in told.decided.items() if state == "held-rejected"]
        due = [one for one in out if before is None or told.since[one][0] <= before]
        found: dict[tuple[int, str], dict[bytes, _Item]] = {}
        for some in batches(due):
            for row in self._rows(tx, subject, some, place, study_uid, at):
                mine = found.setdefault((row.datastore_id, row.study_instance_uid), {})
                for item in self._with_replaced(tx, row, told):
                    if not item.replaced or item.object_id not in mine:
                        mine[item.object_id] = item
        if study_uid is not None:
            report.doubted = self._unsaid(tx, told, study_uid, place)
        for (where, uid), by_id in sorted(found.items(), key=lambda one: one[0]):
            items = list(by_id.values())
            step = len(items) if whole else AT_ONCE
            for start in range(0, len(items), step):
                yield _Group(where, places[where].name, bytes(places[where].uid), uid, items[start : start + step])

    def _rows(
        self, tx: sa.Connection, subject: Subject | None, objects: list[bytes], place: int | None, study_uid: str | None, at: datetime
    ) -> Iterable[Any]:
        shown = ("object_id", "key_id", "segment_id", "record_offset", "record_bytes", "datastore_id", "sop_instance_uid")
        live = (
            sa.select(*[instance.c[name] for name in shown], instance.c.series_pk, study.c.study_instance_uid)
            .select_from(instance.join(ANY_SE, ANY_SE.c.id == instance.c.series_pk).join(study, study.c.id == ANY_SE.c.study_pk))
            .where(instance.c.object_id.in_(objects), instance.c.rejected_at.is_not(None))
        )
        waiting = sa.select(*[held.c[name] for name in shown], sa.null().label("series_pk"), held.c.study_instance_uid).where(
            held.c.object_id.in_(objects), held.c.state == "rejected"
        )
        queries: list[tuple[sa.Select[Any], Any]] = [(live, study.c.study_instance_uid), (waiting, held.c.study_instance_uid)]
        if subject is not None and subject.kind != "console":
            scope = policy.scope_of(subject, Permission.PURGE, at)
            # What waits is nobody's yet.
            queries = [(live.where(predicate.series_condition(ANY_SE, scope.shape)), study.c.study_instance_uid)]
        for query, uid in queries:
            if study_uid is not None:
                query = query.where(uid == study_uid)  # noqa: PLW2901 # narrowed
            if place is not None:
                query = query.where((instance if uid.table is study else held).c.datastore_id == place)  # noqa: PLW2901 # as above
            if subject is not None and subject.kind != "console":
                yield from scope.run(tx, query)
            else:
                yield from policy.run_as(tx, _TOKEN, query)

    def _with_replaced(self, tx: sa.Connection, row: Any, told: retrace.Said) -> Iterator[_Item]:
        yield _item(row)
        if bytes(row.object_id) not in told.decided:
            return
        query = sa.select(held).where(
            held.c.datastore_id == row.datastore_id, held.c.sop_instance_uid == row.sop_instance_uid, held.c.state == "rejected"
        )
        for one in policy.run_as(tx, _TOKEN, query).all():
            if told.decided.get(bytes(one.object_id)) != "held-rejected" and told.decided[bytes(row.object_id)] == "accepted":
                yield _item(one, replaced=True)

    def _unsaid(self, tx: sa.Connection, told: retrace.Said, study_uid: str, place: int | None) -> int:
        """Count instances of a study that are out of sight although no event says so: they stay."""
        query = (
            sa.select(instance.c.object_id).join(series, series.c.id == instance.c.series_pk).join(study, study.c.id == series.c.study_pk)
            .where(study.c.study_instance_uid == study_uid, instance.c.rejected_at.is_not(None))
        )
        if place is not None:
            query = query.where(instance.c.datastore_id == place)
        return sum(not told.hidden.get(bytes(one)) for one in policy.run_as(tx, _TOKEN, query).scalars())

    def _held(self, tx: sa.Connection, groups: list[_Group], at: datetime) -> set[tuple[str, str]]:
        kept = hold_rows.in_force(self._core, tx, at)
        for one in groups:
            try:
                holds.require_none(tx, one.datastore_id, one.study_instance_uid, at)
            except StateConflict:
                kept.add((one.datastore, one.study_instance_uid))
        return kept

    # --- one event -----------------------------------------------------------------------------------------------------------------

    def _one(
        self, subject: Subject | None, group: _Group, told: retrace.Said, reason: str, report: Purged, *, whole: bool = False
    ) -> bool:
        core = self._core
        at = core.clock()
        objects = sorted(group.items, key=lambda one: one.object_id)
        gone = {one.object_id for one in objects}
        try:
            with core.database.read() as tx:
                for leaf in sorted({told.since[one.object_id][1] for one in objects if not one.replaced}):
                    self._require_said(tx, leaf)
        except LedgerBroken:
            report.doubted += len(objects)
            return False
        with core.database.read() as tx:
            keys = self._keys_gone(tx, group)
            stays = staying(tx, group.datastore_id, group.study_instance_uid, gone)
        if whole and keys != {one.key_id for one in objects}:
            report.changed += 1  # something came meanwhile
            return False
        self._drop_packs(objects)
        more = {
            "places": [[one.place[0].hex(), *one.place[1:]] for one in objects], "keys": sorted(key.hex() for key in keys),
            "replaced": [one.object_id.hex() for one in objects if one.replaced], **({"shred": True} if whole else {}), **stays,
        }

        def work(tx: sa.Connection, stored: StoredRef) -> int:
            self._lock(tx, group)
            holds.require_none(tx, group.datastore_id, group.study_instance_uid, at)
            hold_rows.require_none(core, tx, group.datastore, group.study_instance_uid, at)
            rest = staying(tx, group.datastore_id, group.study_instance_uid, gone)
            if not self._unchanged(tx, objects) or self._keys_gone(tx, group) != keys or rest != stays:
                message = "the study changed meanwhile"
                raise StateConflict(message, remedy="give the command again")
            named = [f"{one.hex()}.seg" for one in sorted({one.place[0] for one in objects})]
            event = Event(
                Kind.PURGED, subject=subject, objects=(ObjectRef("study", group.study_instance_uid),), instances=len(objects),
                bytes=sum(one.place[2] for one in objects), stored=stored,
                detail={"reason": reason, "payload": stored.statement_sha256.hex(), "segments": named, "keys": len(keys)},
            )
            leaf = core.ledger.record(tx, event, at=at)
            change = {"study": group.study_instance_uid, "objects": [one.object_id.hex() for one in objects], **more}
            carry_out(core, tx, change, leaf=leaf, at=at)
            return leaf

        try:
            commit_change(
                core, "purged", datastore=group.datastore_uid, study_instance_uid=group.study_instance_uid,
                objects=[one.object_id for one in objects], reason=reason, at=at, work=work, more=more,
            )
        except StateConflict:
            report.changed += 1
            return False
        return True

    def _require_said(self, tx: sa.Connection, leaf: int) -> None:
        """Go on only if the rejection is in the ledger as it was recorded, and as it was signed where a checkpoint covers it.

        Raises:
            LedgerBroken.
        """
        try:
            salt, body = self._core.ledger.opening(tx, leaf)
            row = tx.execute(
                sa.select(ledger_leaf.c.data, statement.c.envelope).join(statement, statement.c.leaf == ledger_leaf.c.n)
                .where(ledger_leaf.c.n == leaf)
            ).one()
            said = msgspec.json.decode(bytes(row.data), type=dict[str, Any])
            if (said["c"], said["stmt"]) == (commitment(salt, body).hex(), statements.digest(bytes(row.envelope)).hex()) and parse(body)[
                "kind"] in (Kind.REJECTED.label, Kind.RECONCILED.label) and said["k"] == parse(body)["kind"]:
                signed = checkpoints.latest(tx)
                if signed is not None and leaf < signed.size:
                    proofs.prove(tx, self._core.keyring, leaf)
                return
        except (ArchiveError, sa.exc.NoResultFound, msgspec.DecodeError, KeyError, ValueError):
            pass
        message = f"event {leaf} does not prove a rejection"
        raise LedgerBroken(message, remedy="run 'archive verify'", verdict="V12")

    def _keys_gone(self, tx: sa.Connection, group: _Group) -> set[bytes]:
        """Return the keys of the study under which nothing is left when these are gone."""
        mine = {one.object_id for one in group.items}
        keys = {one.key_id for one in group.items}
        here = (
            sa.select(instance.c.object_id, instance.c.key_id).join(series, series.c.id == instance.c.series_pk)
            .join(study, study.c.id == series.c.study_pk)
            .where(study.c.datastore_id == group.datastore_id, study.c.study_instance_uid == group.study_instance_uid)
        )
        waiting = sa.select(held.c.object_id, held.c.key_id).where(
            held.c.datastore_id == group.datastore_id, held.c.study_instance_uid == group.study_instance_uid
        )
        for query in (here, waiting):
            keys -= {bytes(row.key_id) for row in policy.run_as(tx, _TOKEN, query) if bytes(row.object_id) not in mine}
        return keys

    def _lock(self, tx: sa.Connection, group: _Group) -> None:
        wanted = sa.select(study.c.id).where(
            study.c.datastore_id == group.datastore_id, study.c.study_instance_uid == group.study_instance_uid
        )
        policy.run_as(tx, _TOKEN, wanted.with_for_update()).all()

    def _unchanged(self, tx: sa.Connection, items: list[_Item]) -> bool:
        """Whether each is still out of sight, where it was."""
        there: set[tuple[bytes, tuple[bytes, int, int]]] = set()
        for some in batches([one.object_id for one in items]):
            for table, out in ((instance, instance.c.rejected_at.is_not(None)), (held, held.c.state == "rejected")):
                rows = policy.run_as(tx, _TOKEN, sa.select(table).where(table.c.object_id.in_(some), out))
                there.update((one.object_id, one.place) for one in map(_item, rows))
        return {(one.object_id, one.place) for one in items} <= there

    def _drop_packs(self, items: list[_Item]) -> None:
        """Remove the kept metadata of their series: a cache, and made again from what stays."""
        core = self._core
        wanted = sorted({one.series_pk for one in items if one.series_pk is not None})
        for some in batches(wanted):
            with core.database.read() as tx:
                kept = sa.select(series_pack.c.object_id).where(series_pack.c.series_pk.in_(some))
                packs = [bytes(one) for one in policy.run_as(tx, _TOKEN, kept).scalars()]
            for one in packs:
                core.vault.drop_blob(one)


# The condition leaves out series without live instances, which is what is purged.
ANY_SE = sa.select(
    series.c.id, series.c.datastore_id, series.c.patient_pk, series.c.study_pk, series.c.study_date, series.c.department_id,
    series.c.restricted, series.c.modality, sa.literal_column("1", sa.Integer).label("n_instances"),
).subquery("rejected_series")


def _item(row: Any, *, replaced: bool = False) -> _Item:
    place = (bytes(row.segment_id), row.record_offset, row.record_bytes)
    return _Item(bytes(row.object_id), place, bytes(row.key_id), getattr(row, "series_pk", None), replaced)
