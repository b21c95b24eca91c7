"""Verify: is everything that was stored still here, whole and ours? The ladder of codes is in docs/format.md.

`quick` asks that files, rows and ledger agree; the standard run opens every record's header and statement; `full` reads and hashes
every byte; `keyless` needs no key: it hashes closed segments against what the ledger says of them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from archive.access import policy
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.tables import datastore, held, instance, ledger_leaf, patient, purged, series, statement, study
from archive.errors import ArchiveError
from archive.index import catalog
from archive.ledger import statements
from archive.ledger.announcements import Succession
from archive.ledger.audit import Event, Kind
from archive.ledger.bodies import parse
from archive.services import (
    admitted,
    agreement,
    alert_check,
    approval_check,
    bound,
    candidates,
    change_keys,
    delivery_check,
    denials,
    forward_check,
    hold_rows,
    purge_check,
    retrace,
    rules_check,
    segment_check,
    standing,
    untaken,
    watch_check,
    webhook_check,
)
from archive.services.core import Core
from archive.services.oversight import verify_ledger
from archive.services.packs import Packs
from archive.services.records import decode
from archive.services.retrace import Found
from archive.services.signers import Signers

Mode = Literal["quick", "standard", "full", "keyless"]
_PAGE = 500


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that does not hold; the UID is for the person who asked, never for a log."""

    code: str
    detail: str
    sop_instance_uid: str = ""


@dataclass(slots=True)
class Report:
    """What a run checked and found."""

    mode: Mode
    checked: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything held."""
        return not self.findings

    def add(self, code: str, detail: str, uid: str = "") -> None:
        """Note a finding."""
        self.findings.append(Finding(code, detail, uid))


Progress = Callable[[int, int], None]


class Verify:
    """The check ladder; reads only, except for its own ledger event."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core

    def run(
        self, subject: Subject, mode: Mode = "standard", *, study_instance_uid: str | None = None, subset: float = 1.0,
        progress: Progress | None = None,
    ) -> Report:
        """Check what the mode says, of one study or a random `subset` (0..1) of records, and record the run.

        Raises:
            Forbidden, DatabaseUnavailable, KeysUnavailable.
        """
        core = self._core
        if subject.kind != "console":
            with denials.recorded(core, subject), core.database.read() as tx:
                policy.require(tx, subject, Permission.CONFIGURE, core.clock())
        report = Report(mode)
        self._segments(report, hashes=mode == "keyless")
        self._ledger(report)
        if mode == "keyless":
            self._structure(report)
        else:
            self._records(report, study_instance_uid, subset, progress)
        if study_instance_uid is None and subset >= 1.0:
            self._completeness(report)
            with core.database.read() as tx:
                checks = (
                    retrace.closed(core, tx), retrace.shape(tx), retrace.hidden(tx), retrace.granted(core, tx), standing.stands(core, tx),
                    admitted.admitted(core, tx), candidates.led(core, tx), hold_rows.stand(core, tx), purge_check.gone(core, tx),
                    rules_check.ruled(core, tx), forward_check.sent_by(core, tx), bound.bound(core, tx), approval_check.approved(core, tx),
                    change_keys.opening(core, tx) if mode != "keyless" else (), untaken.told(tx), webhook_check.hooked(core, tx),
                    alert_check.waiting(core, tx), watch_check.watched(core, tx), delivery_check.queued(core, tx),
                )
                found = chain.from_iterable(checks)
                for code, detail, uid in found:
                    report.add(code, detail, uid)
        counts: dict[str, int] = {}
        for finding in report.findings:
            counts[finding.code] = counts.get(finding.code, 0) + 1
        if not core.read_only:
            event = Event(
                Kind.VERIFIED, outcome=0 if report.ok else 8, subject=subject,
                detail={"mode": mode, "checked": report.checked, "findings": [f"{code}:{n}" for code, n in sorted(counts.items())]},
            )
            with core.database.begin() as tx:
                core.ledger.record(tx, event, at=core.clock())
        return report

    # ------------------------------------------------------------------------------------------------------------------------------

    def _segments(self, report: Report, *, hashes: bool) -> None:
        def hashed() -> None:
            report.checked += 1

        for code, detail in segment_check.wrong(self._core, hashes=hashes, hashed=hashed):
            report.add(code, detail)

    def _ledger(self, report: Report) -> None:
        report.findings += [Finding(found.code, found.detail) for found in verify_ledger(self._core).findings]

    def _structure(self, report: Report) -> None:
        """Walk every record's header without a key."""
        for name, offset, verdict in self._core.vault.walk_keyless():
            report.checked += 1
            if verdict:
                report.add(verdict, f"record at {offset} of {name}")

    def _records(self, report: Report, study_instance_uid: str | None, subset: float, progress: Progress | None) -> None:
        done = 0
        with self._core.database.read() as tx:
            compared = agreement.Agreement(retrace.said(tx))
        signers = Signers(self._core)
        for rows, places, total in self._pages(study_instance_uid):
            signers.renew()  # after the rows were read: who signed them is known by now
            with self._core.database.read() as tx:
                compared.page(tx, rows)
            for row in rows:
                done += 1
                if subset < 1.0 and random.random() >= subset:  # noqa: S311 # a sample, not a secret
                    continue
                report.checked += 1
                self._record(report, row, places.get(row.datastore_id, _NOWHERE), compared, signers)
            if progress is not None:
                progress(done, total)
        if subset >= 1.0 and report.mode != "quick":
            with self._core.database.read() as tx:
                for uid in Packs(self._core).misnamed(tx):
                    report.add("V10", "the metadata that is kept for a series is not of its instances", uid)
            for study_uid in sorted(compared.doubted()):
                for code, detail, uid in self._compared_again(study_uid):
                    report.add(code, detail, uid)

    def _compared_again(self, study_instance_uid: str) -> Iterator[Found]:
        """Yield what no record of a study says: beside a serving archive the one that did may have been purged since the first look."""
        with self._core.database.read() as tx:
            compared = agreement.Agreement(retrace.said(tx))
        for rows, places, _total in self._pages(study_instance_uid):
            with self._core.database.read() as tx:
                compared.page(tx, rows)
            for row in rows:
                try:
                    meta = decode(self._core.vault.sections(catalog.ref_of(row, places.get(row.datastore_id, _NOWHERE))).meta)
                except ArchiveError:
                    compared.skip(row)  # told already
                else:
                    list(compared.add(row, meta))  # so is what does not hold of it alone
        yield from compared.findings()

    @staticmethod
    def _rows() -> tuple[sa.Select[Any], sa.Select[Any]]:
        """Return what reads the instances that are there, and those that wait."""
        columns = [instance.c[name] for name in _COLUMNS]
        live = (
            sa.select(*columns, *agreement.OF_INSTANCE, statement.c.envelope, statement.c.leaf.label("statement_leaf"),
                      study.c.study_instance_uid, series.c.series_instance_uid, study.c.patient_pk, series.c.study_pk, instance.c.series_pk,
                      instance.c.study_pk.label("of_study_pk"),
                      series.c.patient_pk.label("series_patient_pk"), study.c.study_date, series.c.study_date.label("series_study_date"),
                      patient.c.issuer, patient.c.patient_id, patient.c.synthetic)
            .select_from(
                instance.join(series, series.c.id == instance.c.series_pk).join(study, study.c.id == series.c.study_pk)
                .join(patient, patient.c.id == study.c.patient_pk)
                .outerjoin(statement, statement.c.object_id == instance.c.object_id)
            )
        )
        waiting = sa.select(
            *[held.c[name] for name in _COLUMNS], *agreement.OF_HELD, statement.c.envelope, statement.c.leaf.label("statement_leaf"),
            held.c.study_instance_uid, held.c.series_instance_uid, sa.null().label("patient_pk"),
        ).select_from(held.outerjoin(statement, statement.c.object_id == held.c.object_id))
        return live, waiting

    def _pages(self, study_instance_uid: str | None) -> Iterator[tuple[list[Any], dict[int, bytes], int]]:
        core = self._core
        token = policy.system("verify")
        live, waiting = self._rows()
        if study_instance_uid is not None:
            live = live.where(study.c.study_instance_uid == study_instance_uid)
            waiting = waiting.where(held.c.study_instance_uid == study_instance_uid)
        with core.database.read() as tx:
            places = {row.id: bytes(row.uid) for row in tx.execute(sa.select(datastore))}
            total = sum(
                policy.run_as(tx, token, sa.select(sa.func.count()).select_from(one.subquery())).scalar_one() for one in (live, waiting)
            )
        for query, key in ((live, instance.c.id), (waiting, held.c.id)):
            last = 0
            while True:
                with core.database.read() as tx:
                    rows = policy.run_as(tx, token, query.where(key > last).order_by(key).limit(_PAGE)).all()
                if not rows:
                    break
                last = rows[-1].id
                yield list(rows), places, total

    def _record(self, report: Report, row: Any, place: bytes, compared: agreement.Agreement, signers: Signers) -> None:
        """Check a record; what is found counts where its row says the same still: beside a serving archive it is purged or re-keyed."""
        for last in (False,) * _LOOKS + (True,):
            found = Report(report.mode)
            opened = self._look_at_record(found, row, place, compared, signers.succession)
            if not found.findings:
                return
            now = self._row_now(row)
            if now is None:
                compared.skip(row)
                return
            if last or (not signers.renew() and now == row):
                break
            row = now
        if not opened:
            compared.skip(row)
        report.findings += found.findings

    def _row_now(self, row: Any) -> Any | None:
        """Read a row once more; of what waited, or waits by now, where it went."""
        token = policy.system("verify")
        tables = [*zip(self._rows(), (instance, held), strict=True)]
        (own, mine), (other, theirs) = tables if row.patient_pk is not None else reversed(tables)
        with self._core.database.read() as tx:
            now = policy.run_as(tx, token, own.where(mine.c.id == row.id)).first()
            return now or policy.run_as(tx, token, other.where(theirs.c.object_id == row.object_id)).first()

    def _look_at_record(self, report: Report, row: Any, place: bytes, compared: agreement.Agreement, succession: Succession) -> bool:
        """Check a record against its row as it was read; False where it does not open."""
        core = self._core
        uid = row.sop_instance_uid
        try:
            if report.mode == "quick":
                core.vault.probe(catalog.ref_of(row, place))
                return True
            sections = core.vault.sections(catalog.ref_of(row, place))
            if report.mode == "full":
                digest = hashlib.sha256()
                for view in core.vault.read(catalog.ref_of(row, place)):
                    digest.update(view)
                if digest.digest() != bytes(row.sha256) or digest.digest() != sections.sha256:
                    report.add("V08", "the bytes are not the ones that were hashed on arrival", uid)
            self._signed(report, row, sections.statement, succession)
            for code, detail, of in compared.add(row, decode(sections.meta)):
                report.add(code, detail, of)
        except ArchiveError as error:
            report.add(error.verdict or "V01", error.message, uid)
            return False
        return True

    def _signed(self, report: Report, row: Any, sealed: bytes, succession: Succession) -> None:
        core = self._core
        uid = row.sop_instance_uid
        if row.envelope is None or bytes(row.envelope) != sealed:
            report.add("V10", "the statement in the index is not the one sealed with the instance", uid)
        try:
            signed = statements.verify(sealed, core.keyring.public_keys())
        except ArchiveError as error:
            report.add("V09", error.message, uid)
            return
        said = {
            "sop": row.sop_instance_uid, "cls": row.sop_class_uid, "study": row.study_instance_uid, "series": row.series_instance_uid,
            "ts": row.transfer_syntax_uid, "size": row.part10_bytes, "sha256": bytes(row.sha256).hex(), "obj": bytes(row.object_id).hex(),
            "ds_off": row.dataset_offset,
        }
        wrong = sorted(name for name, value in said.items() if signed.get(name) != value)
        if wrong:
            report.add("V10", f"the index says otherwise than the signed statement: {', '.join(wrong)}", uid)
        leaf = self._leaf(row.leaf)
        if row.statement_leaf != row.leaf or not self._in_ledger(leaf, row, sealed):
            report.add("V11", "the ledger does not hold this instance's statement", uid)
        elif succession.early(signed["kid"], row.leaf):
            report.add("V09", "the statement does not verify: its key was not announced yet", uid)
        elif succession.late(signed["kid"], leaf) and not self._replayed(row.leaf):
            report.add("V09", "the statement does not verify: its key was retired before", uid)

    def _replayed(self, n: int) -> bool:
        """Whether what was sealed long before was taken in by that event."""
        core = self._core
        with suppress(ArchiveError), core.database.read() as tx:
            return bool(parse(core.ledger.opening(tx, n)[1])["detail"].get("replayed"))
        return False

    def _leaf(self, n: int) -> dict[str, Any]:
        with self._core.database.read() as tx:
            data = tx.execute(sa.select(ledger_leaf.c.data).where(ledger_leaf.c.n == n)).scalar()
        return {} if data is None else dict(msgspec.json.decode(bytes(data)))

    @staticmethod
    def _in_ledger(leaf: dict[str, Any], row: Any, sealed: bytes) -> bool:
        said = leaf.get("obj"), leaf.get("stmt"), leaf.get("len")
        return bool(said == (bytes(row.object_id).hex(), hashlib.sha256(sealed).hexdigest(), row.record_bytes))

    def _completeness(self, report: Report) -> None:
        """Every stored leaf has its row: nothing was deleted behind the ledger's back."""
        core = self._core
        last = -1
        with core.database.read() as tx:
            unread = purge_check.keyless(core, tx)
        while True:
            with core.database.read() as tx:
                leaves = tx.execute(
                    sa.select(ledger_leaf.c.n, ledger_leaf.c.data).where(ledger_leaf.c.n > last).order_by(ledger_leaf.c.n).limit(_PAGE)
                ).all()
                present = self._present(tx, [leaf for leaf in map(_leaf, leaves) if "obj" in leaf])
            if not leaves:
                return
            last = leaves[-1].n
            for leaf in map(_leaf, leaves):
                if "obj" in leaf and leaf["obj"] not in present and not any(
                    leaf["k"] not in _ARRIVALS and leaf["n"] < unread.get(one, 0) for one in leaf.get("ob", ())
                ):
                    report.add("V12", f"event {leaf['n']} says that something was stored, and no row has it")

    @staticmethod
    def _present(tx: sa.Connection, leaves: list[dict[str, Any]]) -> set[str]:
        """Return the object ids that still have their rows: an instance its own, a change of state its statement's."""
        token = policy.system("verify")
        present: set[str] = set()
        for tables, wanted in (((instance, held, purged), True), ((statement,), False)):
            ids = [bytes.fromhex(leaf["obj"]) for leaf in leaves if (leaf["k"] in _ARRIVALS) == wanted]
            for table in tables if ids else ():
                found = policy.run_as(tx, token, sa.select(table.c.object_id).where(table.c.object_id.in_(ids)))
                present.update(bytes(one).hex() for one in found.scalars())
        return present


def _leaf(row: Any) -> dict[str, Any]:
    try:
        return dict(msgspec.json.decode(bytes(row.data)))
    except msgspec.DecodeError:
        return {}  # the ledger's own check has told


_NOWHERE = bytes(16)
_LOOKS = 4
_ARRIVALS = frozenset({"stored", "held", "conflict"})
_COLUMNS = (
    "id", "datastore_id", "sop_instance_uid", "sop_class_uid", "transfer_syntax_uid", "object_id", "key_id", "segment_id", "record_offset",
    "record_bytes", "record_kind", "plaintext_bytes", "part10_bytes", "dataset_offset", "sha256", "leaf",
)
