"""Download: a study or series leaves as one zip of Part 10 files with a DICOMDIR.

Instances are located inside the caller's scope by one statement, the export is in the ledger before the first byte leaves, and the
scope is asked again before each instance. Names in the zip count; they tell nothing of a patient. Memory holds one block and the
directory's records. A zip that is cut short has no end and cannot pass for a whole one.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator

import sqlalchemy as sa

from archive.access.permissions import Permission
from archive.access.policy import scope_of
from archive.access.subject import Subject
from archive.dicom.dicomdir import NAME, Directory
from archive.errors import ArchiveError, NotFound, Unavailable
from archive.index import locate
from archive.index.locate import InstanceRow
from archive.ledger.audit import Event, Kind, ObjectRef
from archive.services import datastores, named
from archive.services.core import Core
from archive.services.records import decode

NEEDS = (Permission.ORIGINAL | Permission.SEND, Permission.ORIGINAL | Permission.SHARE)
"""Whoever may have the original and give it away, by sending or by sharing, may take it away."""

_NEVER = (1980, 1, 1, 0, 0, 0)
"""The date of every file: when something was stored is nobody's business."""


class Download:
    """Studies and series as files; safe to share between threads."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core

    def zip(self, subject: Subject, datastore: str, study: str, series: str | None = None) -> Iterator[bytes]:
        """Return the bytes of a zip of all that the subject may export of a study or series.

        Raises:
            NotFound: nothing, or nothing that the subject may export; also while the bytes are taken, when a right ended meanwhile.
            Unavailable: the export could not be recorded, so nothing may leave.
            SealBroken, KeyShredded, VaultUnavailable: while the bytes are taken.
        """
        found = self._located(subject, datastore, study, series)
        self._record(subject, datastore, study, series, [row for row, _ in found])
        return self._zipped(subject, found)

    def _located(self, subject: Subject, datastore: str, study: str, series: str | None) -> list[tuple[InstanceRow, Permission]]:
        core = self._core
        at = core.clock()
        found: dict[int, tuple[InstanceRow, Permission]] = {}
        with core.database.read() as tx:
            place = datastores.asked_for(tx, subject, datastore, at)
            for need in NEEDS:
                for row in locate.locate(tx, scope_of(subject, need, at), place.id, study, series, None):
                    found.setdefault(row.instance_pk, (row, need))
        return list(found.values())

    def _record(self, subject: Subject, datastore: str, study: str, series: str | None, rows: list[InstanceRow]) -> None:
        core = self._core
        event = Event(
            Kind.EXPORTED if rows else Kind.DENIED, outcome=0 if rows else 4, subject=subject,
            objects=(ObjectRef("study", study), *([ObjectRef("series", series)] if series else [])), instances=len(rows),
            bytes=sum(row.ref.part10_bytes for row in rows), detail={"what": "zip", "datastore": datastore},
        )
        try:
            core.database.group(lambda tx: core.ledger.record(tx, event, at=core.clock()), durable=True)
        except (ArchiveError, sa.exc.SQLAlchemyError) as error:
            message = "the export could not be recorded, so nothing was answered"
            raise Unavailable(message, remedy=getattr(error, "remedy", "") or "run 'archive doctor'") from error
        if not rows:
            message = "there is no such object"
            raise NotFound(message)

    def _zipped(self, subject: Subject, found: list[tuple[InstanceRow, Permission]]) -> Iterator[bytes]:
        core = self._core
        sink, directory = _Sink(), Directory()
        numbers: dict[int, int] = {}
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as made:
            for number, (row, need) in enumerate(found, 1):
                if not locate.still(core.database, scope_of(subject, need, core.clock()), row):
                    message = "there is no such object"
                    raise NotFound(message)
                folder = numbers.setdefault(row.series_pk, len(numbers) + 1)
                file_id = ("DICOM", f"S{folder:07}", f"I{number:07}")
                scanned = decode(core.vault.sections(row.ref).meta).scanned
                named.require_same(row, scanned)
                directory.add(scanned, file_id)
                size = row.ref.part10_bytes
                with made.open(_entry("/".join(file_id), size), "w", force_zip64=size >= zipfile.ZIP64_LIMIT) as file:
                    for view in named.checked(core, row, core.vault.read(row.ref), from_start=True):
                        file.write(view)
                        yield from sink.taken()
                yield from sink.taken()
            data = directory.written()
            with made.open(_entry(NAME, len(data)), "w") as file:
                file.write(data)
        yield from sink.taken()


def _entry(name: str, size: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _NEVER)
    entry.file_size = size
    entry.external_attr = 0o600 << 16
    return entry


class _Sink:
    """What a zip is written to: it holds a piece until it is taken, and cannot go back."""

    def __init__(self) -> None:
        self._held: list[bytes] = []

    def write(self, data: bytes | memoryview) -> int:
        self._held.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""

    def taken(self) -> Iterator[bytes]:
        held, self._held = self._held, []
        if held:
            yield b"".join(held)
