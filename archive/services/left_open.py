"""Segments that a process left when it died, found while the others serve: the records in them get their rows, and they are closed.

Else they would be neither cut nor hashed until the next start, and what was sealed last would have no rows until then.
"""

from __future__ import annotations

import logging

import sqlalchemy as sa

from archive.db.tables import segment
from archive.errors import ArchiveError, VaultUnavailable
from archive.services.core import Core
from archive.services.replay import Replay

log = logging.getLogger("archive.services")
SEEN = 3
"""Looks, a minute apart, at which nobody held the lock: a process that ends in order gives it up a moment before its last commit ends."""
AGAIN = 60
"""Looks after which one that could not be closed is tried again: it is read whole."""

_NOT_DONE = sa.and_(segment.c.sha256.is_(None), sa.or_(segment.c.state == "open", segment.c.replay_from < segment.c.used))


class LeftOpen:
    """Owned by the background worker; remembers what it saw at earlier looks."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core
        self._seen: dict[bytes, int] = {}

    def tick(self) -> int:
        """Look at segments that are not closed, hold something unsettled or have no row, and finish those nobody holds; return how many.

        Raises:
            DatabaseUnavailable.
        """
        core = self._core
        try:
            files = {file.segment_id for file in core.vault.segments.files()}
        except VaultUnavailable:  # storing says so; what else the worker has to do is not held up
            return 0
        with core.database.read() as tx:
            noted = {bytes(one) for one in tx.execute(sa.select(segment.c.id)).scalars()}
            waiting = {bytes(one) for one in tx.execute(sa.select(segment.c.id).where(_NOT_DONE)).scalars()}
        # To ask is to take the lock for a moment: not of one that its maker may be about to take.
        left = [one for one in sorted(waiting | files - noted) if one not in self._seen or not self._held(one)]
        self._seen = {one: self._seen.get(one, 0) + 1 for one in left}
        due = {one for one in left if self._seen[one] % AGAIN == SEEN}
        if not due:
            return 0
        try:
            done = Replay(core).left(due)
        except ArchiveError as error:  # what else is due is not held up by it
            log.error("segments that were left open cannot be closed (%s); tried again in an hour", error.verdict or error.code)
            return 0
        if done.damaged:
            log.warning(
                "a segment that was left open holds what does not verify (%s); run 'archive verify'", ", ".join(sorted(set(done.damaged)))
            )
        return len(due)

    def _held(self, segment_id: bytes) -> bool:
        try:
            return self._core.vault.in_use(segment_id)
        except VaultUnavailable:  # as long as that cannot be told it is left alone, and what comes after it is not held up
            return True
