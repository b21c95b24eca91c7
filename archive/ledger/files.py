"""The ledger beside the database: tiles, entries, sealed bodies and the checkpoint as files.

Source: docs/format.md 7; c2sp.org/tlog-tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import sqlalchemy as sa

from archive.db.tables import audit_event
from archive.errors import KeysUnavailable, LedgerBroken, VaultUnavailable
from archive.keys import private_files
from archive.ledger import nodes, notes, tree
from archive.ledger.checkpoints import Checkpoint

WIDTH = 256
Anchor = Callable[[int, bytes], None]
_BODIES = (
    sa.select(audit_event.c.n, audit_event.c.body)
    .where(audit_event.c.n >= sa.bindparam("start"), audit_event.c.n < sa.bindparam("stop"))
    .order_by(audit_event.c.n)
)


def tile_path(kind: str, index: int, width: int = WIDTH) -> str:
    """Return `tile/<kind>/x001/x234/067[.p/<width>]`; kind is a level or `entries`."""
    digits = f"{index:03d}"
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[i : i + 3] for i in range(0, len(digits), 3)]
    name = "/".join([*(f"x{group}" for group in groups[:-1]), groups[-1]])
    return f"{kind}/{name}" if width == WIDTH else f"{kind}/{name}.p/{width}"


def contents(tx: sa.Connection, old: int, new: int) -> Iterator[tuple[str, bytes]]:
    """Yield path and bytes of every file that differs between a log of `old` and one of `new` leaves.

    Raises:
        LedgerBroken: a leaf is missing.
    """
    for index, start, end in _tiles(old, new):
        rows = [row for page in nodes.leaves(tx, start, end) for row in page]
        if len(rows) != end - start:
            message = "an event is missing from the ledger"
            raise LedgerBroken(message, remedy="run 'archive ledger verify'", verdict="V11")
        width = end - start
        yield tile_path("tile/0", index, width), b"".join(row[2] for row in rows)
        yield tile_path("tile/entries", index, width), b"".join(len(row[1]).to_bytes(2, "big") + row[1] for row in rows)
        sealed = {row.n: bytes(row.body or b"") for row in tx.execute(_BODIES, {"start": start, "stop": end})}
        bodies = [sealed.get(n, b"") for n in range(start, end)]
        yield tile_path("bodies", index, width), b"".join(len(body).to_bytes(4, "big") + body for body in bodies)
    find = nodes.lookup(tx)
    level = 1
    while new >> (8 * level):
        for index, start, end in _tiles(old >> (8 * level), new >> (8 * level)):
            stored = nodes.stored(tx, 8 * level, start, end)
            hashes = [stored.get(position) or find(8 * level, position) for position in range(start, end)]
            yield tile_path(f"tile/{level}", index, end - start), b"".join(hashes)
        level += 1


def _tiles(old: int, new: int) -> Iterator[tuple[int, int, int]]:
    """Yield index, start and end of each tile that grew from `old` to `new` hashes."""
    if old == new:
        return
    for index in range(old // WIDTH, -(-new // WIDTH)):
        yield index, index * WIDTH, min((index + 1) * WIDTH, new)


def publish(tx: sa.Connection, made: Checkpoint, directory: Path, anchors: Iterable[Anchor] = ()) -> None:
    """Write the files up to a committed checkpoint, the checkpoint last, then tell each anchor its size and note.

    Safe to repeat; what an earlier run left out is written too.

    Raises:
        LedgerBroken: a leaf is missing (V11). VaultUnavailable: a file cannot be written.
    """
    old = _published_size(tx, directory, made.size)
    try:
        for path, data in contents(tx, old, made.size):
            _write(directory / path, data)
        _write(directory / "checkpoint", made.note)
    except (OSError, KeysUnavailable) as error:
        message = "the ledger's files cannot be written"
        raise VaultUnavailable(message, remedy="free space on the storage disk, then restart the archive") from error
    _sweep(directory, old, made.size)
    for anchor in anchors:
        anchor(made.size, made.note)


def read_checkpoint(directory: Path) -> bytes | None:
    """Return the note beside the log, unverified, or None before the first.

    Raises:
        VaultUnavailable.
    """
    try:
        return (directory / "checkpoint").read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        message = f"the ledger's checkpoint cannot be read: {error.strerror}"
        raise VaultUnavailable(message, remedy="give the archive's user the right to read it") from error


def _published_size(tx: sa.Connection, directory: Path, size: int) -> int:
    """Return up to where the files are this log's; 0 when they must be written anew."""
    note = read_checkpoint(directory)
    try:
        claimed, root = (0, b"") if note is None else notes.claims(note)
        return claimed if claimed <= size and tree.root(nodes.lookup(tx), claimed) == root else 0
    except LedgerBroken:
        return 0


def differing(tx: sa.Connection, directory: Path, size: int) -> Iterator[str]:
    """Yield the path of each file that is missing or not what the database says; bodies may have been erased since."""
    for path, data in contents(tx, 0, size):
        try:
            found = (directory / path).read_bytes()
        except OSError:
            found = b""
        if found != data:
            yield path


def _write(path: Path, data: bytes) -> None:
    private_files.make_directory(path.parent)
    private_files.write(path, data)


def _sweep(directory: Path, old: int, new: int) -> None:
    """Remove narrower tiles now that wider ones and their checkpoint are there; what stays behind does no harm."""
    kinds = [("tile/entries", 0), ("bodies", 0), *((f"tile/{level}", 8 * level) for level in range(8))]
    for kind, shift in kinds:
        count = new >> shift
        for index in {(old >> shift) // WIDTH, count // WIDTH}:
            tile = directory / tile_path(kind, index)
            keep = str(count - index * WIDTH)
            with suppress(OSError):
                folder = tile.with_name(f"{tile.name}.p")
                for narrower in folder.iterdir():
                    if narrower.name != keep:
                        narrower.unlink()
                if index < count // WIDTH:
                    folder.rmdir()
