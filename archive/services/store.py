"""Store: an instance comes in and is kept safe before anyone is told so.

The order is the guarantee: sealed and synced, then rows, statement and ledger leaf in one transaction, then success. Bytes without a
row are adopted or swept at the next start (replay.py); rows without bytes cannot come to be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal, TypeVar

import sqlalchemy as sa

from archive.access import policy
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.tables import study
from archive.dicom.alike import Alike
from archive.dicom.part10 import Finding, Limits, Scanned, meta
from archive.dicom.stream import StreamScanner
from archive.errors import ArchiveError, DatabaseUnavailable, Forbidden, InvalidInstance
from archive.index import catalog
from archive.services import datastores, denials
from archive.services.adoption import Adopted, Arrival, Decision, adopt, decide, record_duplicate
from archive.services.batch import Batch
from archive.services.core import Core
from archive.services.datastores import Datastore
from archive.services.incoming import BUFFERED_BYTES, Intake, Source
from archive.services.records import encode
from archive.services.state_events import free, free_after
from archive.services.statement import statement_for
from archive.vault.vault import Kind, RecordRef, RecordWriter

K = TypeVar("K")
DERIVED_CLASSES = ("1.2.840.10008.5.1.4.1.1.88.", "1.2.840.10008.5.1.4.1.1.11.", "1.2.840.10008.5.1.4.1.1.104.")
"""SR, presentation states and encapsulated documents: what STORE_DERIVED alone may store."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an instance; every status but `duplicate` means sealed, synced, signed and in the ledger.

    `held`: kept, but its patient or study contradicts what is stored; data managers decide. `conflict`: its SOP Instance UID is stored
    with other bytes; kept in quarantine. `quarantined`: kept, but cannot be indexed.
    """

    status: Literal["stored", "duplicate", "held", "conflict", "quarantined"]
    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    findings: tuple[Finding, ...] = ()
    leaf: int | None = None
    decided: bool = False
    """A data manager decided against exactly these bytes before."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the sender said the instance is; a data set that says otherwise is refused."""

    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    study_instance_uid: str = ""


class Store:
    """The door-keeper of the vault; safe to share between threads."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core
        limits = core.config.limits
        self.limits = Limits(inflated_bytes=limits.inflated_bytes, nesting=limits.nesting, elements=limits.elements)

    def open(
        self, subject: Subject, datastore: str, source: Source, *, study_instance_uid: str | None = None, alike: Alike | None = None
    ) -> Incoming:
        """Start an instance whose Part 10 bytes follow; with a study given, one of another study is refused.

        `alike` is given again with each instance of the same sender, who is likely to send whole series.

        Raises:
            Forbidden: the subject may not store.
            NotFound: no such datastore.
            ReadOnly, DatabaseUnavailable.
        """
        return self._start(subject, datastore, source, Expected(study_instance_uid=study_instance_uid or ""), alike)

    def open_dataset(
        self, subject: Subject, datastore: str, source: Source, *, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str,
        alike: Alike | None = None,
    ) -> Incoming:
        """Start an instance whose data set bytes follow, as C-STORE sends them; `alike` as in `open`.

        File meta is built from these three alone, so the same object from any peer gives the same bytes.

        Raises:
            Forbidden, NotFound, ReadOnly, DatabaseUnavailable, InvalidInstance.
        """
        incoming = self._start(subject, datastore, source, Expected(sop_class_uid, sop_instance_uid), alike)
        if not sop_instance_uid:
            message = "the request names no SOP Instance UID"
            raise InvalidInstance(message, reason="uid-mismatch")
        incoming.begin(sop_class_uid, sop_instance_uid, transfer_syntax_uid)
        return incoming

    def batch(self, told: Callable[[K, Outcome | ArchiveError], None]) -> Batch[K]:
        """Return a batch for instances opened here by one subject at one door; see Batch."""
        return Batch(self._core, told)

    def _start(self, subject: Subject, datastore: str, source: Source, expected: Expected, alike: Alike | None) -> Incoming:
        core = self._core
        core.require_writable()
        with denials.recorded(core, subject), core.database.glance() as tx:
            at = core.clock()
            derived_only = _require_store(tx, subject, at)
            place = datastores.asked_for(tx, subject, datastore, at)
        scanner = StreamScanner(self.limits, character_set=source.character_set, alike=alike)
        intake = Intake(self.limits, max_bytes=core.config.dimse.max_dataset_bytes, scanner=scanner)
        return Incoming(core, subject, source, expected, intake, place, derived_only)


def _require_store(tx: sa.Connection, subject: Subject, at: datetime) -> bool:
    """Return whether only derived objects may be stored."""
    held = policy.functions_of(tx, subject, at)
    if held & Permission.STORE:
        return False
    if not held & Permission.STORE_DERIVED:
        policy.require(tx, subject, Permission.STORE_DERIVED, at)
    return True


@dataclass(slots=True)
class Incoming:
    """One instance on its way in; used by one thread, ended by `finish` or `abort`."""

    _core: Core
    subject: Subject
    _source: Source
    _expected: Expected
    _intake: Intake
    _place: Datastore
    _derived_only: bool
    _writer: RecordWriter | None = None
    _decision: Decision | None = None
    before_deciding: Callable[[str], None] | None = None
    _ended: bool = field(default=False)

    @property
    def door(self) -> str:
        """Which way it comes in."""
        return self._source.via

    @property
    def part10_bytes(self) -> int:
        """How much of it has come."""
        return self._intake.part10_bytes

    def begin(self, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> None:
        """Make the file meta information of a data set, which follows."""
        uids = sop_class_uid, sop_instance_uid, transfer_syntax_uid
        self._intake.begin(meta(*uids), uids)

    def write(self, data: bytes | memoryview) -> None:
        """Take the next bytes.

        Raises:
            InvalidInstance: they cannot become an instance; the rest may be thrown away. `abort` is still owed.
            OutOfSpace, VaultUnavailable.
        """
        self._intake.feed(data)
        if self._intake.overflowing:
            head = self._intake.head
            if head is None:
                if self._intake.part10_bytes > 2 * BUFFERED_BYTES:
                    message = "the identifying attributes do not come within the first 8 MiB"
                    raise InvalidInstance(message, reason="cannot-understand")
                return
            self._check(head)
            self._open_record(head)

    def finish(self) -> Outcome:
        """Decide, seal, sync, sign, index and record the instance; durable when this returns.

        Raises:
            InvalidInstance, UnsupportedClass, OutOfSpace, VaultUnavailable, DatabaseUnavailable.
        """
        try:
            with self._core.database.approaching():
                ended = self._finish(durable=True)
                outcome = self._index(ended) if isinstance(ended, Arrival) else ended
        except BaseException:
            self.abort()
            raise
        self._ended = True
        return outcome

    def seal(self) -> Outcome | Arrival:
        """Decide, and seal without a sync; for Batch, which makes it durable and indexes it, unless it was a duplicate.

        Raises:
            InvalidInstance, UnsupportedClass, OutOfSpace, VaultUnavailable, DatabaseUnavailable.
        """
        try:
            ended = self._finish(durable=False)
        except BaseException:
            self.abort()
            raise
        self._ended = True
        return ended

    def settle(self, arrival: Arrival, adopted: Adopted) -> Outcome:
        """Return what became of an instance whose rows are committed.

        Raises:
            SealBroken, KeyShredded, VaultUnavailable: its bytes were there already, and are not any more.
        """
        if adopted.kept:
            self._core.vault.segments.settle(arrival.ref.location)
        else:
            free(self._core, arrival.ref)
            if adopted.other is not None:
                self._require_sound(adopted.other)
        findings = adopted.findings
        if len(findings) > len(arrival.scanned.findings):
            try:
                sees = self._sees(arrival)
            except DatabaseUnavailable:  # it is stored all the same, and told with less
                sees = False
            findings = findings if sees else arrival.scanned.findings
        return replace(_outcome(adopted.status, arrival.scanned, findings, adopted.leaf), decided=adopted.decided)

    def abort(self) -> None:
        """Leave nothing behind; harmless when already ended."""
        if not self._ended:
            self._ended = True
            if self._writer is not None:
                self._writer.abort()

    def _check(self, head: Scanned) -> None:
        expected = self._expected
        if expected.sop_instance_uid and head.sop_instance_uid != expected.sop_instance_uid.rstrip("\0 "):
            message = "the data set's SOP Instance UID is not the one announced"
            raise InvalidInstance(message, reason="uid-mismatch")
        if expected.sop_class_uid and head.sop_class_uid != expected.sop_class_uid.rstrip("\0 "):
            message = "the data set's SOP Class UID is not the one announced"
            raise InvalidInstance(message, reason="class-mismatch")
        if expected.study_instance_uid and head.study_instance_uid != expected.study_instance_uid:
            message = "the instance belongs to another study than the one addressed"
            raise InvalidInstance(message, reason="wrong-study")
        if self._derived_only and not head.sop_class_uid.startswith(DERIVED_CLASSES):
            message = "only reports, presentation states and documents may be stored"
            raise Forbidden(message)

    def _issuer(self, scanned: Scanned) -> str:
        return scanned.text("IssuerOfPatientID") or self._source.issuer or self._core.config.identity.issuer

    def _decide(self, scanned: Scanned) -> Decision:
        if self.before_deciding is not None:
            self.before_deciding(scanned.sop_instance_uid)
        with self._core.database.glance() as tx:
            return decide(tx, self._place, scanned, self._issuer(scanned))

    def _open_record(self, head: Scanned) -> None:
        """Give the stream its record; a record under a UID that is taken is born as held or quarantined."""
        if self._decision is None:
            self._decision = self._decide(head)
            if self._decision.twin is not None:
                self._intake.digest_dataset(head.dataset_offset)
        keystore, at = self._core.keystore, self._core.clock()
        key = keystore.for_study(self._place.uid, head.study_instance_uid, at=at)
        if self._decision.emptied:
            keystore.forget(key.key_id)
            key = keystore.for_study(self._place.uid, head.study_instance_uid, at=at)
        kind = Kind.INSTANCE if self._decision.status == "stored" else Kind.HELD
        self._writer = self._core.vault.writer(key, self._place.uid, kind=kind, at=self._core.clock())
        self._intake.attach(self._writer)

    def _finish(self, *, durable: bool) -> Outcome | Arrival:
        scanned = self._intake.finish()
        if self._intake.coercion is not None:
            scanned = replace(scanned, findings=(*scanned.findings, Finding("", "the preamble could be another file format: cleared")))
        self._check(scanned)
        decision = self._decision = self._decision or self._decide(scanned)
        twin = decision.twin
        if twin is not None and self._identical(scanned, twin):
            return self._duplicate(scanned, twin)
        if self._writer is None:
            self._open_record(scanned)
        assert self._writer is not None
        return self._seal(scanned, self._writer, durable=durable)

    def _identical(self, scanned: Scanned, twin: catalog.StoredInstance) -> bool:
        """Equal SHA-256 of Part 10, or equal transfer syntax and data set bytes (file meta alone differs)."""
        if self._intake.sha256 == twin.sha256:
            return True
        stored_dataset_bytes = twin.ref.part10_bytes - twin.dataset_offset
        if scanned.transfer_syntax_uid != twin.transfer_syntax_uid:
            return False
        if self._intake.part10_bytes - scanned.dataset_offset != stored_dataset_bytes:
            return False
        buffered = self._intake.buffered
        if buffered is not None:
            ours = hashlib.sha256(buffered[scanned.dataset_offset :]).digest()
        elif self._intake.dataset_digest is not None:
            ours = self._intake.dataset_digest.digest()
        else:
            return False
        stored = hashlib.sha256()
        for view in self._core.vault.read(twin.ref, twin.dataset_offset, stored_dataset_bytes):
            stored.update(view)
        return stored.digest() == ours

    def _duplicate(self, scanned: Scanned, twin: catalog.StoredInstance) -> Outcome:
        if self._writer is not None:
            self._writer.abort()
            self._writer = None
        self._require_sound(twin.ref)
        leaf = record_duplicate(self._core, self.subject, scanned, twin, datastore_id=self._place.id, door=self._source.via)
        return _outcome("duplicate", scanned, scanned.findings, leaf)

    def _require_sound(self, kept: RecordRef) -> None:
        """Tell nobody that something is kept of which the record is gone or has rotted: theirs may be the last good copy."""
        for _ in self._core.vault.read(kept):
            pass
        self._core.vault.sections(kept)

    def _seal(self, scanned: Scanned, writer: RecordWriter, *, durable: bool) -> Arrival:
        core = self._core
        at = core.clock()
        sha256 = self._intake.sha256
        issuer = self._issuer(scanned)
        envelope = statement_for(
            core, scanned, sha256=sha256, part10_bytes=self._intake.part10_bytes, object_id=writer.object_id,
            datastore=self._place.uid, at=at, subject=self.subject, source=self._source,
            coercion=self._intake.coercion,
        )
        received = {"via": self._source.via, "at": at.isoformat()}
        ref = writer.finish(encode(scanned, issuer=issuer, received=received), envelope, durable=durable)
        self._writer = None
        return Arrival(self._place, scanned, ref, sha256, issuer, envelope, at)

    def _index(self, arrival: Arrival) -> Outcome:
        try:
            adopted = adopt(self._core, arrival, self.subject, door=self.door)
        except Exception as error:
            free_after(self._core, arrival.ref, error)
            raise
        return self.settle(arrival, adopted)

    def _sees(self, arrival: Arrival) -> bool:
        """Whether the sender may know what its study holds: what differs from it is told to nobody else."""
        subject = self.subject
        if subject.kind == "console":
            return True
        with self._core.database.read() as tx:
            scope = policy.scope_of(subject, Permission.METADATA, self._core.clock())
            wanted = sa.select(study.c.id).where(
                study.c.datastore_id == arrival.place.id, study.c.study_instance_uid == arrival.scanned.study_instance_uid,
                scope.study(study),
            )
            return scope.run(tx, wanted).first() is not None


def _outcome(
    status: Literal["stored", "duplicate", "held", "conflict", "quarantined"],
    scanned: Scanned,
    findings: tuple[Finding, ...],
    leaf: int | None,
) -> Outcome:
    return Outcome(
        status, scanned.sop_class_uid, scanned.sop_instance_uid, scanned.study_instance_uid, scanned.series_instance_uid, findings, leaf
    )


__all__ = ["Incoming", "Outcome", "Source", "Store"]
