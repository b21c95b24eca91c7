"""Rebuild: the catalog made again from the sealed records, and with it what else of a lost index can be brought back.

In one transaction, so a run that was cut short changed nothing and is given again. Where the index opens, access and ledger stay as they
are; where it is lost they come from what lies beside it (docs/format.md 7, 10).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import sqlalchemy as sa

from archive.access import policy, principals, roles
from archive.access.subject import Subject
from archive.db.copies import copy_rows
from archive.db.engine import Database
from archive.db.tables import (
    access_study,
    archive_state,
    audit_event,
    audit_object,
    checkpoint,
    datastore,
    grants,
    held,
    instance,
    ledger_leaf,
    ledger_node,
    patient,
    principal,
    purged,
    purged_key,
    segment,
    series,
    series_pack,
    study,
    study_name_fts,
)
from archive.errors import ArchiveError, Unavailable
from archive.index import access_study as derived
from archive.ledger import files, mended, nodes, notes, recover
from archive.ledger.audit import Event, Kind
from archive.services import (
    catchup,
    deliveries,
    hold_rows,
    lifecycle,
    retrace,
    snapshot,
    targets,
    told_again,
    untaken,
    work_snapshot,
    working,
)
from archive.services.core import Core
from archive.services.ended import apply_later
from archive.services.history import History, forget_arrivals
from archive.services.rebuilt import Rebuilt, shown
from archive.services.replay import Replay
from archive.services.segment_rows import FIRST_RECORD
from archive.services.snapshot import Snapshot
from archive.services.survey import Progress, Survey, survey
from archive.services.targets import Placed, Resolver

CATALOG = (access_study, series_pack, instance, held, series, study, patient)
LEDGER = (ledger_leaf, ledger_node, audit_event, audit_object, checkpoint)
_TOKEN = policy.system("rebuild")
Fill = Callable[[sa.Connection], dict[sa.Table, dict[int, Placed]]]
DEFAULT_DATASTORE = "clinical"
_WHEN = "%Y-%m-%d %H:%M:%S UTC"


class Rebuild:
    """Runs alone: no archive serves, no import stores."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive; its index may be empty."""
        self._core = core
        self._known = 0  # how many events of a lost ledger were brought back

    def run(self, *, lost: bool, damaged: Database | None = None, operator: str = "", progress: Progress = lambda *_args: None) -> Rebuilt:
        """Make the catalog again; with `lost`, in an index that is empty, the rest too, as far as possible from a `damaged` one.

        Raises:
            Unavailable: somebody is storing.
            LedgerBroken: the ledger's files do not give the log that was signed; nothing was changed.
            DatabaseUnavailable, VaultUnavailable.
        """
        core = self._core
        self._require_alone()
        report, found, damaged = Rebuilt(lost), survey(core, progress), self._newer(damaged)
        with core.database.begin() as tx:
            self._require_alone(found)  # nobody opens a segment from here on: that is a transaction too
            kept = self._bring_back(tx, report, damaged, progress) if lost else self._clear(tx)
            history = History(core, tx, found)
            history.working = lost
            if lost:
                self._segments(tx)
            history.run(progress)
            if lost:
                working.reported(core, tx)
            self._resolve(tx, kept, report)
            if lost:
                self._work(tx, report, damaged)
            else:
                deliveries.put_back(tx, _TOKEN)
            derived.refill(tx, core.clock())
            if lost:
                self._replay_from(tx, found)
            if lost or untaken.noted(tx):  # what could not be done then may be possible now
                catchup.set_due(tx)
            untaken.forget(tx)
            untaken.note(tx, history.untaken(), self._not_done(tx))
            report.tell(history.done, found)
            if lost:
                self._give_up()
            self._record(tx, report, operator)
        done = catchup.CatchUp(core).run()
        replayed = Replay(core).run()
        report.adopted = done.instances + replayed.adopted
        report.changes += done.changes
        return report

    def onto(self, fill: Fill, settled: Callable[[sa.Connection], None], *, operator: str) -> Rebuilt:
        """Make the catalog in an index that has none, in one transaction with all else: `fill` brings it, and says what grants are about.

        What is still to be done again is done by the next start. `settled` sees the transaction before it is committed.

        Raises:
            DatabaseUnavailable, VaultUnavailable.
        """
        core, report = self._core, Rebuilt(lost=False)
        found = survey(core, lambda *_args: None)
        with core.database.begin() as tx:
            kept = fill(tx)
            self._from_ledger(tx, kept)
            forget_arrivals(tx)
            history = History(core, tx, found)
            history.run(lambda *_args: None)
            self._resolve(tx, kept, report)
            deliveries.put_back(tx, _TOKEN)
            derived.refill(tx, core.clock())
            catchup.set_due(tx)
            untaken.forget(tx)
            untaken.note(tx, history.untaken(), self._not_done(tx))
            report.tell(history.done, found)
            self._record(tx, report, operator)
            settled(tx)
        return report

    def _require_alone(self, found: Survey | None = None) -> None:
        """Refuse while somebody stores, or has stored since the segments were looked through: the rows of that would go.

        Raises:
            Unavailable.
        """
        core = self._core
        there = [file.segment_id for file in core.vault.segments.files()]
        if any(map(core.vault.in_use, there)) or (found is not None and not set(there) <= set(found.segments)):
            message = "something is storing into this archive"
            raise Unavailable(message, remedy="stop the archive and wait for imports to end, then give the command again")

    # --- where the index opens -----------------------------------------------------------------------------------------------------

    def _clear(self, tx: sa.Connection) -> dict[sa.Table, dict[int, Placed]]:
        """Empty the catalog and return what grants are about; what changes said stays, for some of it may not be sealed any more."""
        kept = targets.captured(tx)
        self._from_ledger(tx, kept)
        deliveries.set_aside(tx, _TOKEN)
        for table in CATALOG:
            policy.run_as(tx, _TOKEN, sa.delete(table))
        if tx.dialect.name == "sqlite":
            policy.run_as(tx, _TOKEN, sa.delete(study_name_fts))
        forget_arrivals(tx)
        for other in (purged, purged_key):
            tx.execute(sa.delete(other))
        return kept

    def _from_ledger(self, tx: sa.Connection, kept: dict[sa.Table, dict[int, Placed]]) -> None:
        """Ask the ledger what grants were about whose patient, study or series has no row."""
        about = kept[grants]
        gone = {number for number, (_, target) in about.items() if target == targets.GONE}
        if not gone:
            return
        places = {row.name: row.id for row in tx.execute(sa.select(datastore.c.id, datastore.c.name))}
        for said in retrace.details(self._core, tx, Kind.GRANTED):
            if said.get("id") in gone and said["objects"]:
                level, value = said["objects"][0]
                word = {"patient": "patient-id", "series": "series-uid"}.get(level, level)
                if said["effect"] == "allow" and level == "patient":
                    continue  # whose PatientID it was is not known for certain: nobody gets to see another's images
                about[said["id"]] = (places.get(said["datastore"], 0), (word, value))

    # --- where it is lost ----------------------------------------------------------------------------------------------------------

    def _newer(self, damaged: Database | None) -> Database | None:
        """Return the damaged index unless it says itself that what lies in storage/ledger is newer: an old one was left lying."""
        note = None if damaged is None else files.read_checkpoint(self._core.config.ledger_dir)
        if damaged is not None and note is not None:
            with suppress(ArchiveError, sa.exc.SQLAlchemyError), damaged.read() as tx:
                if nodes.size(tx) < notes.claims(note)[0]:
                    return None
        return damaged

    def _bring_back(
        self, tx: sa.Connection, report: Rebuilt, damaged: Database | None, progress: Progress
    ) -> dict[sa.Table, dict[int, Placed]]:
        core = self._core
        if damaged is not None and self._salvaged(tx, damaged, LEDGER):
            report.notes.append("the ledger was read from the damaged index")
            if shut := mended.mend(tx, core.keyring, core.config.ledger_dir):
                report.problems.append(f"{shown(shut)}: these events do not open any more, nor in the ledger's files; what they took away "
                                       "counts again, and what they said is lost: look at who may do what")
        else:
            found = recover.recover(
                tx, core.keyring, core.config.ledger_dir, progress=lambda done, total: progress("events of the ledger", done, total)
            )
            if found.at is None:
                report.problems.append("the ledger is lost: storage/ledger holds no checkpoint, and the log begins anew")
            else:
                report.notes.append(f"the ledger is as of its checkpoint of {found.at:{_WHEN}}: {found.size} events; later ones are lost, "
                                    "but for what the records themselves say")
        self._configuration(tx)
        leaves = self._known = nodes.size(tx)
        kept = self._salvaged_access(damaged, leaves)
        if kept is not None:
            report.notes.append("users and grants were read from the damaged index")
        else:
            kept, broken = snapshot.newest(core.keyring, core.config.ledger_dir, leaves)
            report.problems += [f"the access snapshot {name} does not open" for name in broken]
        if kept is None:
            self._nobody(tx)
            about: dict[sa.Table, dict[int, Placed]] = {}
            apply_later(core, tx, 0, about, partial(self._ended, tx))
            hold_rows.mend_in(core, tx, core.clock(), surplus=True)
            told_again.put_back(core, tx)
            report.problems.append("users, grants and peers are lost: there is no access snapshot; add them anew, the first with "
                                   "'archive user add NAME --role owner'")
            return about
        snapshot.put_back(tx, kept)
        hold_rows.mend_in(core, tx, core.clock(), surplus=True)
        later = apply_later(core, tx, kept.leaves, kept.targets, partial(self._ended, tx))
        report.notes.append(f"users, grants and peers are as of {kept.at:{_WHEN}}; of later changes {later.taken} that took away count, "
                            f"{later.ended} that gave do not")
        alerts, reviews = told_again.put_back(core, tx)
        report.notes.append(f"from the ledger came {alerts} alerts that nobody has acknowledged and {reviews} reviews closed since then")
        report.notes.append("sessions are lost: everybody signs in again; jobs, records of associations, peers that were waiting, "
                            "requests for approval that nobody had carried out and events that subscribers had not fetched are lost")
        return kept.targets

    def _configuration(self, tx: sa.Connection) -> None:
        """Note the configuration that the ledger knows, and whether two people decide, so that the next start tells what is otherwise."""
        known: dict[str, str] = {}
        for row in retrace.details(self._core, tx, Kind.CONFIGURED):  # the last one comes first
            if "sha256" in row:
                known.setdefault(lifecycle.CONFIGURATION, row["sha256"])
            elif row.get("what") == lifecycle.TWO_PERSON:
                known.setdefault(lifecycle.TWO_PERSON, "on" if row["on"] else "off")
        for name, value in known.items():
            tx.execute(sa.insert(archive_state).values(name=name, value=value))

    def _work(self, tx: sa.Connection, report: Rebuilt, damaged: Database | None) -> None:
        """Bring back rules, webhooks, subscriptions and what waits to be forwarded."""
        core = self._core
        kept = None
        if damaged is not None:
            with suppress(ArchiveError, sa.exc.SQLAlchemyError), damaged.read() as source:
                kept = work_snapshot.taken(source, core.clock())
        if kept is None:
            kept, broken = work_snapshot.newest(core.keyring, core.config.ledger_dir, self._known)
            report.problems += [f"the work snapshot {name} does not open" for name in broken]
        if kept is None:
            report.notes.append("there is no work snapshot: rules of forwarding, webhooks and subscriptions, if there were any, are lost")
            return
        waiting = work_snapshot.put_back(core, tx, kept)
        report.notes.append(f"rules of forwarding, webhooks and subscriptions are as of {kept.at:{_WHEN}}; {waiting} instances wait to be "
                            "forwarded, and what arrived later is looked at again")

    def _give_up(self) -> None:
        """Put away the snapshots of events that are lost: the log goes on otherwise from here, and would come to be as long as they are."""
        for kept in (snapshot.FILES, work_snapshot.FILES):
            kept.set_aside(self._core.config.ledger_dir, self._known)

    def _ended(self, tx: sa.Connection, kind: Kind, detail: dict[str, Any]) -> None:
        self._core.ledger.record(tx, Event(kind, detail=detail), at=self._core.clock())

    def _salvaged(self, tx: sa.Connection, damaged: Database, tables: Sequence[sa.Table]) -> bool:
        """Copy tables whole from a damaged index, or nothing of them."""
        try:
            with damaged.read() as source, tx.begin_nested():
                copy_rows(source, tx, _TOKEN, tables)
                return nodes.size(tx) > 0
        except (ArchiveError, sa.exc.SQLAlchemyError):
            return False

    def _salvaged_access(self, damaged: Database | None, leaves: int) -> Snapshot | None:
        if damaged is None:
            return None
        try:
            with damaged.read() as tx:
                found = snapshot.taken(tx, self._core.clock())
        except (ArchiveError, sa.exc.SQLAlchemyError):
            return None
        return found if found.tables["principal"] and found.leaves >= leaves else None

    def _nobody(self, tx: sa.Connection) -> None:
        """Make what an archive needs before anyone is in it: roles, the console, the datastores that have keys."""
        core = self._core
        at = core.clock()
        roles.add_builtin(tx, at=at)
        principals.add(tx, "console", principals.CONSOLE, at=at, full_name="The command line")
        uids = list(dict.fromkeys(kek.datastore for kek in core.keyring.keks()))
        for number, uid in enumerate(uids):
            name = f"recovered-{number}" if number else DEFAULT_DATASTORE
            tx.execute(sa.insert(datastore), {"uid": uid, "name": name, "created_at": at})

    def _segments(self, tx: sa.Connection) -> None:
        catchup.note_segments(self._core, tx)
        tx.execute(sa.update(segment).values(replay_from=FIRST_RECORD))

    def _replay_from(self, tx: sa.Connection, found: Survey) -> None:
        """Close the segments the ledger has the hash of; what is not in the ledger is looked at again from where it begins."""
        core = self._core
        hashes = {name: bytes.fromhex(min(said)) for name, said in retrace.hashes(core, tx).items()}
        first: dict[bytes, int] = {}
        for segment_id, offset in found.left():
            first[segment_id] = min(offset, first.get(segment_id, offset))
        for file in core.vault.segments.files():
            end = found.ends.get(file.segment_id, FIRST_RECORD)
            values: dict[str, Any] = {"replay_from": first.get(file.segment_id, end)}
            if file.name in hashes:
                settled = file.segment_id not in first
                values = {"state": "closed", "used": file.file_bytes, "sha256": hashes[file.name], "closed_at": core.clock(),
                          "replay_from": file.file_bytes if settled else first[file.segment_id]}
            tx.execute(sa.update(segment).where(segment.c.id == file.segment_id).values(**values))

    # -------------------------------------------------------------------------------------------------------------------------------

    def _not_done(self, tx: sa.Connection) -> set[bytes]:
        """Return the segments that a start looks through, there or brought back later."""
        rows = tx.execute(sa.select(segment.c.id, segment.c.state, segment.c.used, segment.c.replay_from)).all()
        done = {bytes(row.id) for row in rows if row.state == "closed" and row.replay_from >= row.used}
        return {bytes(row.id) for row in rows}.union(file.segment_id for file in self._core.vault.segments.files()) - done

    def _resolve(self, tx: sa.Connection, kept: dict[sa.Table, dict[int, Placed]], report: Rebuilt) -> None:
        resolver = Resolver(self._core, tx, self._core.clock())
        lost = targets.put_back(tx, resolver, kept)
        if lost:
            report.problems.append(f"nobody knows any more what these grants are about, so they give nothing: {shown(lost)}")
        if resolver.empty:
            report.notes.append(f"{resolver.empty} patients with grants have no images here now; the grants count when images come")

    def _record(self, tx: sa.Connection, report: Rebuilt, operator: str) -> None:
        core = self._core
        console = tx.execute(sa.select(principal.c.id).where(principal.c.kind == "console")).scalar_one()
        subject = Subject(console, principals.CONSOLE, "console", "console", operator=operator)
        detail = {
            "what": "index, ledger and access" if report.lost else "index", "instances": report.instances, "held": report.held,
            "changes": report.changes, "notes": report.notes, "problems": report.problems,
        }
        core.ledger.record(tx, Event(Kind.REBUILT, outcome=0 if report.ok else 4, subject=subject, detail=detail), at=core.clock())
