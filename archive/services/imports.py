"""Import: many files become instances as one job with a report, resumable where it stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

import msgspec
import sqlalchemy as sa

from archive.access import policy
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db import upsert
from archive.db.tables import job, job_item
from archive.dicom.alike import Alike
from archive.dicom.part10 import bare
from archive.errors import ArchiveError, Denied, NotFound, Rejected, Unavailable
from archive.ledger.audit import Event, Kind
from archive.services import denials, job_lock
from archive.services.batch import Batch
from archive.services.core import Core
from archive.services.sources import Source as File
from archive.services.sources import belonging, walk
from archive.services.store import Outcome, Source, Store

READ_BYTES = 1 << 20
THREADS = 4
BATCH = 64
TOGETHER = BATCH // THREADS
"""As many files as one thread takes share a sync and a commit."""


@dataclass(slots=True)
class Summary:
    """What an import did; the four counts of the contract, and the job's id."""

    job: int = 0
    stored: int = 0
    duplicate: int = 0
    conflict: int = 0
    rejected: int = 0
    held: int = 0
    skipped: int = 0  # done by an earlier run of the same job

    def count(self, outcome: str) -> None:
        """Add one file."""
        setattr(self, outcome, getattr(self, outcome) + 1)


@dataclass(frozen=True, slots=True)
class FileOutcome:
    """One line of the report."""

    file: str
    outcome: str
    reason: str = ""
    sop_instance_uid: str = ""
    study_instance_uid: str = ""
    warnings: list[str] = field(default_factory=list)


Progress = Callable[[Summary, int, int], None]
"""Called with the summary, the files done and the files found so far."""


class Imports:
    """Bulk import; safe to run beside a serving archive."""

    def __init__(self, core: Core, store: Store) -> None:
        """Work on an opened archive through its store."""
        self._core = core
        self._store = store

    def run(
        self, subject: Subject, paths: Iterable[Path], datastore: str, *, report: TextIO | None = None, wrap: bool = False,
        progress: Progress | None = None, via: Source | None = None,
    ) -> Summary:
        """Import every file under the paths; the same call after an interruption goes on where it stopped.

        Raises:
            Forbidden: the subject may not store.
            InvalidRequest: a path is not there.
            OutOfSpace, Unavailable: the archive cannot go on; what was stored stays, the job can be resumed.
        """
        core = self._core
        core.require_writable()
        resolved = list(dict.fromkeys(Path(path).absolute() for path in paths))
        source = via or Source("import")
        with denials.recorded(core, subject), core.database.read() as tx:
            policy.require(tx, subject, Permission.STORE, core.clock())
        begun = self._begin(subject, resolved, datastore, wrap=wrap)
        try:
            return self._work(subject, begun, resolved, datastore, source, report=report, wrap=wrap, progress=progress)
        finally:
            begun.lock.release()

    def _work(
        self, subject: Subject, begun: _Begun, paths: Sequence[Path], datastore: str, source: Source, *, report: TextIO | None, wrap: bool,
        progress: Progress | None,
    ) -> Summary:
        core, summary, total = self._core, Summary(begun.number), 0
        try:
            files = walk(list(paths), belonging(core.config.storage_dir, (core.config.index_path, core.config.keystore_path)))
            with ThreadPoolExecutor(THREADS, thread_name_prefix="import") as pool:
                for batch in _batched(files, BATCH):
                    fresh = [file for file in batch if _name(file.name) not in begun.done]
                    summary.skipped += len(batch) - len(fresh)
                    total += len(batch)
                    some = [fresh[start : start + TOGETHER] for start in range(0, len(fresh), TOGETHER)]
                    results = list(pool.map(lambda files: self._some(subject, files, datastore, source, wrap=wrap), some))
                    self._keep(summary, begun, list(chain.from_iterable(results)), report)
                    if progress is not None:
                        progress(summary, total, total)
        except BaseException:
            self._end(subject, summary, "interrupted")
            raise
        self._end(subject, summary, "done")
        return summary

    def list(self, subject: Subject) -> list[dict[str, Any]]:
        """Return the imports, newest first.

        Raises:
            Forbidden.
        """
        with denials.recorded(self._core, subject), self._core.database.read() as tx:
            policy.require(tx, subject, Permission.JOB_MANAGE, self._core.clock())
            rows = tx.execute(sa.select(job).where(job.c.kind == "import").order_by(job.c.id.desc())).all()
        return [self._as_dict(row) for row in rows]

    def show(self, subject: Subject, job_id: int) -> dict[str, Any]:
        """Return one import with the outcome of each file.

        Raises:
            Forbidden, NotFound.
        """
        with denials.recorded(self._core, subject), self._core.database.read() as tx:
            policy.require(tx, subject, Permission.JOB_MANAGE, self._core.clock())
            row = tx.execute(sa.select(job).where(job.c.id == job_id, job.c.kind == "import")).first()
            if row is None:
                message = "there is no such import"
                raise NotFound(message, remedy="'archive import list' shows them")
            items = tx.execute(sa.select(job_item).where(job_item.c.job_id == job_id).order_by(job_item.c.id)).all()
        return {**self._as_dict(row), "files": [{"file": one.name, "outcome": one.outcome, "reason": one.reason} for one in items]}

    # ------------------------------------------------------------------------------------------------------------------------------

    def _some(self, subject: Subject, files: Sequence[File], datastore: str, source: Source, *, wrap: bool) -> Sequence[FileOutcome]:
        """Store files as one batch, and return what became of each, in order."""
        became: dict[int, FileOutcome] = {}

        def told(number: int, what: Outcome | ArchiveError) -> None:
            became[number] = _of(files[number], what)

        batch, alike = self._store.batch(told), Alike()
        try:
            for number, file in enumerate(files):
                try:
                    with file.open() as opened:
                        self._feed(batch, number, subject, opened, datastore, source, alike, wrap=wrap)
                except ArchiveError as error:
                    told(number, error)
                except (sa.exc.SQLAlchemyError, MemoryError):
                    raise
                except Exception as error:
                    # Unreadable files, broken, encrypted or exotic zip members, and whatever fault of ours one file brings to light:
                    # it must not keep the others out. The file's own text does not travel.
                    if batch.unsettled:
                        raise
                    became[number] = FileOutcome(file.name, "rejected", f"unreadable: {_kind(error)}")
        except BaseException:
            with suppress(ArchiveError):
                batch.flush()
            raise
        batch.flush()
        return [became[number] for number in range(len(files))]

    def _feed(
        self, batch: Batch[int], number: int, subject: Subject, opened: Any, datastore: str, source: Source, alike: Alike, *,
        wrap: bool,
    ) -> None:
        first = opened.read(READ_BYTES)
        found = bare(first) if wrap else None
        if found is not None:
            incoming = self._store.open_dataset(
                subject, datastore, source, sop_class_uid=found.sop_class_uid, sop_instance_uid=found.sop_instance_uid,
                transfer_syntax_uid=found.transfer_syntax_uid, alike=alike,
            )
            first = first[found.dataset_offset :]
        else:
            incoming = self._store.open(subject, datastore, source, alike=alike)
        try:
            batch.begin(incoming)
            data = first
            while data:
                incoming.write(data)
                data = opened.read(READ_BYTES)
            batch.add(number, incoming)
        finally:
            incoming.abort()  # harmless once ended

    def _begin(self, subject: Subject, paths: Sequence[Path], datastore: str, *, wrap: bool) -> _Begun:
        """Take up the same call's job that was interrupted or killed, or make one; what was refused then is looked at again."""
        core = self._core
        arguments = {"paths": [_text(str(path)) for path in paths], "datastore": datastore, "wrap": wrap}
        at = core.clock()
        with core.database.begin() as tx:
            rows = tx.execute(
                sa.select(job).where(
                    job.c.kind == "import", job.c.state.in_(("interrupted", "running")), job.c.subject_id == subject.principal_id,
                ).order_by(job.c.id.desc())
            ).all()
            for row in rows:
                if row.arguments == arguments and (lock := job_lock.take(core.config.run_dir, row.id)) is not None:
                    tx.execute(sa.delete(job_item).where(job_item.c.job_id == row.id, job_item.c.outcome.in_(_AGAIN)))
                    done = tx.execute(sa.select(job_item.c.name).where(job_item.c.job_id == row.id)).scalars().all()
                    before = {name: count for name, count in row.progress.items() if name not in _AGAIN}
                    tx.execute(sa.update(job).where(job.c.id == row.id).values(state="running", progress=before))
                    return _Begun(row.id, lock, set(done), before)
            values = {
                "kind": "import", "state": "running", "subject_id": subject.principal_id, "arguments": arguments, "progress": {},
                "run_at": at, "created_at": at,
            }
            created = tx.execute(sa.insert(job), values).inserted_primary_key
            assert created is not None
            lock = job_lock.take(core.config.run_dir, int(created[0]))
            assert lock is not None  # nobody else knows the number yet
        return _Begun(int(created[0]), lock)

    def _keep(self, summary: Summary, begun: _Begun, results: Sequence[FileOutcome], report: TextIO | None) -> None:
        for result in results:
            summary.count(result.outcome)
            if report is not None:
                report.write(msgspec.json.encode(replace(result, file=_text(result.file))).decode() + "\n")
        if report is not None:
            report.flush()
        rows = [
            {"job_id": summary.job, "name": _name(result.file), "outcome": result.outcome, "reason": result.reason} for result in results
        ]
        counts = ("stored", "duplicate", "conflict", "rejected", "held")
        progress = {name: begun.before.get(name, 0) + getattr(summary, name) for name in counts}
        with self._core.database.begin(durable=False) as tx:
            if rows:
                # A file may be met twice, in a folder and by its name, and a zip file have two members of one name: the first counts.
                tx.execute(upsert.insert(job_item, sqlite=self._core.database.sqlite).on_conflict_do_nothing(), rows)
            tx.execute(sa.update(job).where(job.c.id == summary.job).values(progress=progress))

    def _as_dict(self, row: Any) -> dict[str, Any]:
        dead = row.state == "running" and not job_lock.is_taken(self._core.config.run_dir, row.id)
        return {
            "id": row.id, "state": "interrupted" if dead else row.state, "paths": row.arguments["paths"],
            "datastore": row.arguments["datastore"], **row.progress, "created_at": row.created_at.isoformat(),
            "finished_at": row.finished_at.isoformat() if row.finished_at else None,
        }

    def _end(self, subject: Subject, summary: Summary, state: str) -> None:
        core = self._core
        detail = {
            "job": summary.job, "state": state, "stored": summary.stored, "duplicate": summary.duplicate, "conflict": summary.conflict,
            "rejected": summary.rejected, "held": summary.held,
        }
        with core.database.begin() as tx:
            tx.execute(sa.update(job).where(job.c.id == summary.job).values(state=state, finished_at=core.clock()))
            core.ledger.record(tx, Event(Kind.IMPORTED, subject=subject, instances=summary.stored, detail=detail), at=core.clock())


@dataclass(frozen=True, slots=True)
class _Begun:
    """A job of this process: what of it is done already, and the counts of that."""

    number: int
    lock: job_lock.JobLock
    done: set[str] = field(default_factory=set)
    before: dict[str, int] = field(default_factory=dict)


_AGAIN = ("rejected", "conflict")
"""What the same call looks at again: it tells of them as the first one did, unless they can be stored by now."""


def _of(file: File, became: Outcome | ArchiveError) -> FileOutcome:
    """Return the line of one file.

    Raises:
        Unavailable, Denied: the import cannot go on.
    """
    match became:
        case Rejected():
            return FileOutcome(file.name, "rejected", getattr(became, "reason", became.code) + ": " + became.message)
        case Unavailable() | Denied() if type(became) is not Unavailable:  # itself it is of one instance, that was purged say meanwhile
            raise became
        case ArchiveError():
            return FileOutcome(file.name, "rejected", f"{became.code}: {became.message}")
    status = {"quarantined": "held"}.get(became.status, became.status)
    warnings = [f"{finding.tag} {finding.text}" for finding in became.findings]
    return FileOutcome(file.name, status, "", became.sop_instance_uid, became.study_instance_uid, warnings)


def _kind(error: Exception) -> str:
    """The class of an error; that of the struct module is called nothing but `error`."""
    kind = type(error)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _batched(files: Iterator[File], size: int) -> Iterator[list[File]]:
    while batch := list(islice(files, size)):
        yield batch


def _text(name: str) -> str:
    """A path as text: it may be any bytes, which neither a column nor a line of the report takes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _name(name: str) -> str:
    """A file's name as the job keeps it."""
    text = _text(name)
    return text if len(text) <= 1000 else text[:900] + hashlib.sha256(text.encode()).hexdigest()
