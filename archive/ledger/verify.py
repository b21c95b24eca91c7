"""The whole ledger against itself: leaves, tree, checkpoints, bodies, statements, files, clock.

Source: docs/format.md 1 (verdicts), 6, 7.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from archive.db.tables import audit_event, audit_object, checkpoint, ledger_leaf
from archive.db.tables import statement as statement_table
from archive.db.types import from_micros
from archive.errors import ArchiveError, LedgerBroken
from archive.keys.keyring import Keyring
from archive.keys.sealing import parse_instant
from archive.ledger import checkpoints, files, nodes, notes, objects, statements, tree
from archive.ledger.announcements import Succession
from archive.ledger.audit import MAX_LEAF_OBJECTS, digest_of, principal_pseudonym
from archive.ledger.bodies import Bodies, commitment, parse

CLOCK_TOLERANCE = timedelta(minutes=15)
"""How far back an event's time may lie behind an earlier one: a large instance is recorded when it has arrived."""
MAX_FINDINGS = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that does not hold; `detail` names events by number, never a patient."""

    code: str
    detail: str


@dataclass(slots=True)
class Report:
    """What was checked and found; `erased` counts bodies whose audit key was destroyed."""

    size: int = 0
    root: bytes = tree.EMPTY
    checkpoints: int = 0
    erased: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything held."""
        return not self.findings

    def add(self, code: str, detail: str) -> None:
        """Note a finding; a thousand are enough to know."""
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(code, detail))


def of_files(tx: sa.Connection, directory: Path) -> list[Finding]:
    """Compare the files beside the log with it; beside a serving archive, inside `locks.alone`: it replaces them."""
    last = tx.execute(sa.select(sa.func.max(checkpoint.c.size)).where(checkpoint.c.size <= nodes.size(tx))).scalar() or 0
    try:
        note = files.read_checkpoint(directory)
        if note is None:
            return [Finding("V13", "the ledger's files are missing")] if last else []
        published = min(notes.claims(note)[0], last)
        said = "is missing or not what the database says"
        return [Finding("V13", f"the ledger's file {path} {said}") for path in files.differing(tx, directory, published)]
    except ArchiveError as error:
        return [Finding(error.verdict or "V13", error.message)]


class Verifier:
    """One run over the ledger as it stands in one read transaction."""

    def __init__(self, tx: sa.Connection, keyring: Keyring, *, heartbeat: timedelta) -> None:
        """`heartbeat` is the longest pause between checkpoints."""
        self._tx = tx
        self._keyring = keyring
        self._heartbeat = heartbeat
        self._bodies = Bodies(keyring)
        self._tree = tree.Frontier()
        self._made: dict[int, dict[int, bytes]] = {}
        self._latest_at = from_micros(0)
        self._uncovered: tuple[datetime, bool] | None = None  # time of the oldest event without a checkpoint; whether a start followed
        self._signed: dict[int, sa.Row[Any]] = {}
        self._succession = Succession()
        self._covered = 0  # events that have the rows of their objects
        self.report = Report()

    def run(self, *, anchors: Iterable[bytes | None] = (), acknowledged: frozenset[str] = frozenset(), directory: Path | None) -> Report:
        """Check everything; findings are collected, nothing raises for them."""
        tx, report = self._tx, self.report
        self._signed = {row.size: row for row in tx.execute(sa.select(checkpoint).order_by(checkpoint.c.size))}
        report.size = nodes.size(tx)
        self._covered = objects.covered(tx)
        self._succession = Succession.of(tx, self._keyring)
        for detail in self._succession.findings:
            report.add("V13", detail)
        present = tx.execute(sa.select(sa.func.count()).select_from(ledger_leaf)).scalar_one()
        if report.size - present > MAX_FINDINGS:
            report.add("V11", f"{report.size - present} events are missing before event {report.size - 1}")
            report.size = present  # a number moved far away must not make this run for ever
        for first in range(0, report.size, nodes.PAGE):
            self._page(first, min(first + nodes.PAGE, report.size))
        report.root = self._tree.root()
        for size in self._signed:
            if size > report.size:
                report.add("V13", f"a checkpoint covers {size} events, but the ledger holds {report.size}")
        self._beyond()
        try:
            checkpoints.check_anchor(tx, self._keyring, anchors, acknowledged=acknowledged)
        except LedgerBroken as error:
            report.add(error.verdict, error.message)
        if directory is not None:
            for finding in of_files(tx, directory):
                report.add(finding.code, finding.detail)
        return report

    # --- leaves ------------------------------------------------------------------------------------------------------------------

    def _page(self, start: int, end: int) -> None:
        rows = {n: (data, digest) for page in nodes.leaves(self._tx, start, end) for n, data, digest in page}
        audits = self._audits(start, end)
        signed = self._statements(start, end)
        for n in range(start, end):
            if n not in rows:
                self.report.add("V11", f"event {n} is missing")
                self._grow(bytes(32))
                continue
            data, digest = rows[n]
            self._grow(tree.leaf_hash(data))
            if tree.leaf_hash(data) != digest:
                self.report.add("V11", f"event {n} was changed")
            leaf = self._leaf(n, data)
            if leaf is not None:
                self._clock(n, leaf)
                self._audit(n, leaf, audits.get(n))
                self._statement(n, leaf, signed.get(n, []))
            if n + 1 in self._signed:
                self._checkpoint(self._signed[n + 1])
        self._nodes()

    def _leaf(self, n: int, data: bytes) -> dict[str, Any] | None:
        try:
            leaf = msgspec.json.decode(data, type=dict[str, Any])
            parse_instant(leaf["t"])
        except (msgspec.DecodeError, KeyError, ValueError, TypeError):
            leaf = {}
        if leaf.get("n") != n:
            self.report.add("V11", f"event {n} is not what a leaf is")
            return None
        return leaf

    def _clock(self, n: int, leaf: dict[str, Any]) -> None:
        at = parse_instant(leaf["t"])
        if at < self._latest_at - CLOCK_TOLERANCE:
            self.report.add("V16", f"event {n} is dated {self._latest_at - at} before an earlier one")
        self._latest_at = max(self._latest_at, at)
        since, started = self._uncovered or (at, False)
        self._uncovered = (since, started or leaf.get("k") == "started")

    def _grow(self, value: bytes) -> None:
        for level, position, digest in self._tree.append(value)[1:]:
            self._made.setdefault(level, {})[position] = digest

    def _nodes(self) -> None:
        """Subtrees that a checkpoint covers are kept, and say what the leaves say."""
        covered = max((size for size in self._signed if size <= self.report.size), default=0)
        for level, made in self._made.items():
            kept = nodes.stored(self._tx, level, min(made), max(made) + 1)
            for position, digest in made.items():
                if (position + 1) << level <= covered and kept.get(position) != digest:
                    self.report.add("V13", f"the tree's node {position} of level {level} is not what the events give")
                    break
        self._made.clear()

    # --- beside the leaves -------------------------------------------------------------------------------------------------------

    def _audits(self, start: int, end: int) -> dict[int, tuple[sa.Row[Any], list[bytes]]]:
        events = sa.select(audit_event).where(audit_event.c.n >= start, audit_event.c.n < end)
        found: dict[int, tuple[sa.Row[Any], list[bytes]]] = {row.n: (row, []) for row in self._tx.execute(events)}
        about = sa.select(audit_object).where(audit_object.c.n >= start, audit_object.c.n < end)
        for row in self._tx.execute(about.order_by(audit_object.c.n, audit_object.c.position)):
            if row.n in found:
                found[row.n][1].append(bytes(row.ref))
        return found

    def _audit(self, n: int, leaf: dict[str, Any], found: tuple[sa.Row[Any], list[bytes]] | None) -> None:
        if found is None:
            self.report.add("V12", f"the audit record of event {n} is missing")
            return
        row, refs = found
        said = (leaf.get("k"), leaf.get("a"), leaf.get("o"), leaf.get("i", 0), leaf.get("t"), leaf.get("p"))
        principal = None if row.principal_id is None else principal_pseudonym(self._keyring, row.principal_id)
        at = row.at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if said != (row.kind, row.action, row.outcome, row.instances, at, principal):
            self.report.add("V12", f"the audit record of event {n} says otherwise than its leaf")
        named = [ref.hex() for ref in refs[:MAX_LEAF_OBJECTS]], digest_of(refs) if len(refs) > MAX_LEAF_OBJECTS else None
        waiting = not refs and n >= self._covered and "om" not in leaf
        if not waiting and named != (leaf.get("ob", []), leaf.get("om")):
            self.report.add("V12", f"the objects of event {n} are not the ones its leaf names")
        sealed = bytes(row.body or b"")
        try:
            opened = self._bodies.open(n, sealed) if sealed else None
        except LedgerBroken as error:
            self.report.add("V12", error.message)
            return
        if opened is None and self._bodies.erased(sealed):
            self.report.erased += 1
        elif opened is None:
            self.report.add("V12", f"the body of event {n} is gone, and no audit key of its was destroyed")
        elif commitment(*opened).hex() != leaf.get("c"):
            self.report.add("V12", f"the body of event {n} is not the one its leaf commits to")
        elif parse(opened[1]).get("subject", {}).get("peer") != row.peer_id:
            self.report.add("V12", f"the audit record of event {n} names another peer than its body")

    def _statements(self, start: int, end: int) -> dict[int, list[sa.Row[Any]]]:
        query = sa.select(statement_table).where(statement_table.c.leaf >= start, statement_table.c.leaf < end)
        found: dict[int, list[sa.Row[Any]]] = {}
        for row in self._tx.execute(query):
            found.setdefault(row.leaf, []).append(row)
        return found

    def _statement(self, n: int, leaf: dict[str, Any], rows: list[sa.Row[Any]]) -> None:
        for row in rows:
            if (leaf.get("obj"), leaf.get("stmt")) != (bytes(row.object_id).hex(), statements.digest(bytes(row.envelope)).hex()):
                self.report.add("V11", f"a statement claims event {n}, which is not about it")

    def _beyond(self) -> None:
        """Nothing may refer to events that are not there."""
        for column, what in ((statement_table.c.leaf, "statements"), (audit_event.c.n, "audit records")):
            count = self._tx.execute(sa.select(sa.func.count()).where(column >= self.report.size)).scalar()
            if count:
                self.report.add("V11", f"{count} {what} name events the ledger does not hold")

    # --- checkpoints and files ---------------------------------------------------------------------------------------------------

    def _checkpoint(self, row: sa.Row[Any]) -> None:
        report = self.report
        report.checkpoints += 1
        origin = notes.origin_of(self._keyring.archive_uuid)
        try:
            known = notes.verifiers(origin, self._keyring.public_keys())
            note = notes.read(bytes(row.note), known)
            signers = [key.kid for key in notes.signed_by(bytes(row.note), known)]
        except LedgerBroken as error:
            report.add("V13", f"checkpoint {row.size}: {error.message}")
            return
        if (note.origin, note.size, note.root) != (origin, row.size, bytes(row.root)) or note.signed_at != row.at.replace(microsecond=0):
            report.add("V13", f"checkpoint {row.size} is not the one that was signed")
        if why := self._succession.checkpoint(signers, row.size, note.signed_at):
            report.add("V13", f"checkpoint {row.size}: {why}")
        if self._tree.root() != note.root:
            report.add("V13", f"the first {row.size} events are not the ones that were signed")
        if self._uncovered is not None:
            since, started = self._uncovered
            if not started and note.signed_at - since > 2 * self._heartbeat:
                report.add("V16", f"events before checkpoint {row.size} waited {note.signed_at - since} to be signed")
            self._uncovered = None

