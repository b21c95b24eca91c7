"""Whether each segment's file is there, has its length and its hash, and is one the index knows (V01, V02, V03, V10, V15).

A serving archive may go on beside it. A segment has its row before its first record and until nothing is left in its file; the row of one
that is closed says otherwise before its bytes become others. So what a file shows counts where the row, read again, is what it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from archive.db.tables import segment
from archive.errors import SealBroken
from archive.services.core import Core
from archive.services.segment_rows import FIRST_RECORD
from archive.vault.segment_store import check_head

Wrong = tuple[str, str]
_SAID = (segment.c.id, segment.c.name, segment.c.state, segment.c.used, segment.c.sha256)


def wrong(core: Core, *, hashes: bool, hashed: Callable[[], object]) -> Iterator[Wrong]:
    """Yield code and words of what does not hold; with `hashes` files are read, and `hashed` is called after each.

    Raises:
        DatabaseUnavailable, VaultUnavailable.
    """
    with core.database.read() as tx:
        rows = tx.execute(sa.select(*_SAID).order_by(segment.c.created_at)).all()
    for row in rows:
        if row.name != f"{bytes(row.id).hex()}.seg":
            yield "V10", f"segment {row.name} has another id than its name"
        yield from _of_row(core, row, hashed if hashes else None)
    known = {row.name for row in rows}
    for path in sorted(core.config.segments_dir.glob("*.seg")):
        if path.name not in known and _is_strange(core, path):
            yield "V15", f"segment {path.name} is not in the index"


def _of_row(core: Core, row: Any, hashed: Callable[[], object] | None) -> list[Wrong]:
    while row is not None:
        found = list(_look(core, row, hashed))
        now = _row(core, row.name) if found else row
        if now == row:
            return found
        row = now
    return []  # the segment is gone


def _row(core: Core, name: str) -> Any | None:
    with core.database.read() as tx:
        return tx.execute(sa.select(*_SAID).where(segment.c.name == name)).first()


def _look(core: Core, row: Any, hashed: Callable[[], object] | None) -> Iterator[Wrong]:
    path = core.config.segments_dir / row.name
    closed, read = row.state == "closed", hashed is not None and row.sha256 is not None
    try:
        size, digest = path.stat().st_size, _sha256(path) if read else b""
    except FileNotFoundError:
        if row.used or not closed:
            yield "V01", f"segment {row.name} is missing"
        return
    if closed and size != row.used:
        yield "V02", f"segment {row.name} has {size} bytes, not {row.used}"
    elif read and hashed is not None:
        hashed()
        if digest != bytes(row.sha256):
            yield "V03", f"segment {row.name} is not what was closed"


def _is_strange(core: Core, path: Path) -> bool:
    """Whether a file holds something and has no row; one that is just being made, or taken away, holds nothing."""
    if not _holds(core, path) or _row(core, path.name) is not None:
        return False
    return _holds(core, path)  # else its row went because it was emptied just now


def _holds(core: Core, path: Path) -> bool:
    """Whether a file is more than the head of a segment."""
    try:
        segment_id = bytes.fromhex(path.stem)
        if path.name != f"{segment_id.hex()}.seg":
            return True  # nothing the archive made
        block = memoryview(bytearray(FIRST_RECORD))
        head = bytes(block[: core.vault.segments.read_into(segment_id, 0, block)])
        if head.strip(b"\0"):
            check_head(head, segment_id)
        return core.vault.used_bytes(segment_id) > FIRST_RECORD
    except ValueError:
        return True
    except SealBroken as error:
        return error.verdict != "V01"  # else it is gone by now


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
