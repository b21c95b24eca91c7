"""The log as tiles (c2sp.org/tlog-tiles), for whoever recomputes it elsewhere: hashes and leaves, nothing of their bodies."""

from __future__ import annotations

import re
import threading
from datetime import datetime

import sqlalchemy as sa

from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.errors import NotFound
from archive.ledger import checkpoints, files, nodes
from archive.ledger.audit import Kind
from archive.services.changes import Changes
from archive.services.core import Core
from archive.services.printed import checkpoint_of

_PATH = re.compile(r"((?:x[0-9]{3}/){0,5}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")
_DEEPEST = 7


class Tiles(Changes):
    """Read with the permission audit."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        super().__init__(core.database, core.ledger, core.clock, read_only=core.read_only)
        self._lock = threading.Lock()
        self._told: dict[tuple[int, int | None, int | None], int] = {}

    def checkpoint(self, subject: Subject) -> bytes:
        """Return the newest checkpoint, with what witnesses signed under it.

        Raises:
            Forbidden; NotFound: nothing is signed yet.
        """
        note = self._read(subject, Permission.AUDIT, lambda tx, _at: checkpoint_of(tx))
        if note is None:
            message = "nothing is signed yet"
            raise NotFound(message)
        return note

    def hashes(self, subject: Subject, level: str, path: str) -> bytes:
        """Return a tile of hashes.

        Raises:
            Forbidden; NotFound: no such tile under the newest checkpoint.
        """
        if not re.fullmatch(r"0|[1-9][0-9]?", level) or int(level) > _DEEPEST:
            raise _absent()
        depth = int(level)
        start, end = _range(path)

        def work(tx: sa.Connection, _at: datetime) -> bytes:
            _signed(tx, end << (8 * depth))
            if depth == 0:
                return b"".join(row[2] for page in nodes.leaves(tx, start, end) for row in page)
            stored, find = nodes.stored(tx, 8 * depth, start, end), nodes.lookup(tx)
            return b"".join(stored.get(position) or find(8 * depth, position) for position in range(start, end))

        return self._read(subject, Permission.AUDIT, work)

    def entries(self, subject: Subject, path: str) -> bytes:
        """Return a bundle of leaves; that somebody took some is recorded, once an hour of each session or token.

        Raises:
            Forbidden; NotFound: no such bundle under the newest checkpoint.
        """
        start, end = _range(path)

        def work(tx: sa.Connection, _at: datetime) -> bytes:
            _signed(tx, end)
            return b"".join(len(row[1]).to_bytes(2, "big") + row[1] for page in nodes.leaves(tx, start, end) for row in page)

        self._note(subject)
        return self._read(subject, Permission.AUDIT, work)

    def _note(self, subject: Subject) -> None:
        """Record it before the first leaf leaves; of this process once an hour, or a reader would write what it reads next."""
        at = self._clock()
        hour = int(at.timestamp()) // 3600
        who = (subject.principal_id, subject.session_id, subject.token_id)
        with self._lock:
            if self._told.get(who) == hour:
                return
        if not self._read_only:
            self._change(subject, Permission.AUDIT, lambda tx, at: self._record(tx, Kind.AUDIT_READ, subject, at, what="ledger entries"))
        with self._lock:
            if len(self._told) > 1000:
                self._told.clear()
            self._told[who] = hour


def _range(path: str) -> tuple[int, int]:
    """Return the first and behind the last position of a tile.

    Raises:
        NotFound: the path is not as the specification writes it.
    """
    match = _PATH.fullmatch(path)
    if match is None:
        raise _absent()
    index = int(match[1].replace("/", "").replace("x", ""))
    width = int(match[2] or files.WIDTH)
    if files.tile_path("", index, width if match[2] else files.WIDTH) != f"/{path}" or (match[2] and width >= files.WIDTH):
        raise _absent()
    return index * files.WIDTH, index * files.WIDTH + width


def _signed(tx: sa.Connection, end: int) -> None:
    """Nothing beyond the newest checkpoint is given out."""
    newest = checkpoints.latest(tx)
    if newest is None or end > newest.size:
        raise _absent()


def _absent() -> NotFound:
    return NotFound("there is no such tile")
