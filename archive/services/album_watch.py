"""What was shared by those who manage an album no more ends, however their managing did: a group left, an account off, a window."""

from __future__ import annotations

from datetime import datetime

from archive.access import albums
from archive.services.albums import Albums
from archive.services.console import console
from archive.services.core import Core


class AlbumWatch:
    """Owned by the background worker; sharing and unsharing look for themselves."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core, self._albums = core, Albums(core)

    def tick(self, at: datetime) -> int:
        """End such shares; return in how many albums.

        Raises:
            DatabaseUnavailable, OutOfSpace.
        """
        database = self._core.database
        with database.read() as tx:
            left = albums.orphaned(tx, at=at)
        for one in left:
            who = console(self._core, "upkeep")
            with database.begin() as tx:
                self._core.ledger.alone(tx)
                if (row := albums.find(tx, one, at=at)) is not None:
                    self._albums.end_orphans(tx, who, row, at)
        return len(left)
