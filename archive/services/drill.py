"""Drill: a backup restored for a look, so that it is known to open before it is needed."""

from __future__ import annotations

import os
from pathlib import Path

import sqlalchemy as sa

from archive.access import policy
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.tables import archive_state
from archive.errors import ArchiveError, NotFound
from archive.ledger.audit import Event, Kind
from archive.services import denials, drill_folder
from archive.services.backup import LAST_PLACE, note_state
from archive.services.core import Core
from archive.services.restore import Restored, Way, rehearse

DRILL_AT, DRILL_OK = "last_drill_at", "last_drill_ok"


class Drill:
    """Needs the permission configure, or the console."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core

    def run(self, subject: Subject, folder: Path | None, way: Way) -> Restored:
        """Restore the backup (the last one, unless a folder is named) into a folder that only this user may enter, verify it, remove it.

        Raises:
            Forbidden; NotFound: no backup is known; KeysUnavailable, DigestMismatch: it cannot be restored, which is in the ledger then.
        """
        core = self._core
        with denials.recorded(core, subject), core.database.read() as tx:
            policy.require(tx, subject, Permission.CONFIGURE, core.clock())
            last = tx.execute(sa.select(archive_state.c.value).where(archive_state.c.name == LAST_PLACE)).scalar()
        if folder is None and last is None:
            message = "no backup has been made that a drill could restore"
            raise NotFound(message, remedy="make one with 'archive backup DIR'")
        chosen = folder if folder is not None else Path(str(last))
        parent = chosen if os.access(chosen, os.W_OK) else None
        drill_folder.sweep(parent)
        try:
            with drill_folder.made(parent) as place:
                report = rehearse(chosen, core.config, place / drill_folder.STORAGE, way)
        except ArchiveError as error:
            self._record(subject, chosen, [f"{error.verdict or error.code}: {error.message}"], 0)
            raise
        self._record(subject, chosen, [f"{one['code']}: {one['detail']}" for one in report.findings], report.checked)
        return report

    def _record(self, subject: Subject, folder: Path, findings: list[str], checked: int) -> None:
        core = self._core
        at = core.clock()
        detail = {"mode": "backup drill", "folder": str(folder), "checked": checked, "findings": findings[:20]}
        with core.database.begin() as tx:
            note_state(tx, {DRILL_AT: at.isoformat(), DRILL_OK: "yes" if not findings else "no"})
            core.ledger.record(tx, Event(Kind.VERIFIED, outcome=8 if findings else 0, subject=subject, detail=detail), at=at)


