"""The log checked from its tiles alone, on a machine that has nothing else of the archive; pure but for what fetches.

Source: c2sp.org/tlog-tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from archive.errors import LedgerBroken
from archive.ledger import cosignatures, notes, tree
from archive.ledger.files import WIDTH, tile_path
from archive.ledger.notes import Verifier
from archive.ledger.printed import Copied

Fetch = Callable[[str], bytes]
"""Returns what is at a path below the log's address."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A log whose every leaf was fetched and whose root is the one that was signed."""

    origin: str
    size: int
    root: bytes
    signed_at: datetime
    witnesses: tuple[tuple[str, datetime], ...]


def check(fetch: Fetch, keys: Sequence[Verifier], *, witnesses: Sequence[Verifier] = (), earlier: Copied | None = None) -> Seen:
    """Fetch a log, recompute its root and return what was signed; it must contain `earlier`, when that is given.

    Raises:
        LedgerBroken: a signature, a leaf or the root is wrong (V11, V13), no witness named signed, or it does not contain `earlier` (V14).
    """
    signed = fetch("checkpoint")
    note = notes.read(signed, keys)
    seen = tuple((key.name, at) for key, at in cosignatures.found(notes.parse(signed), witnesses).items())
    if witnesses and not seen:
        raise _broken("none of these witnesses cosigned the checkpoint", "V14")
    if earlier is not None and (earlier.origin != note.origin or earlier.size > note.size):
        raise _broken("the log is smaller than the earlier checkpoint, or another one", "V14")
    grown = tree.Frontier()
    _contains(grown, earlier)
    for leaf in _leaves(fetch, note.size):
        grown.append(tree.leaf_hash(leaf))
        _contains(grown, earlier)
    if grown.root() != note.root:
        raise _broken("the events are not the ones that were signed", "V13")
    return Seen(note.origin, note.size, note.root, note.signed_at, seen)


def _contains(grown: tree.Frontier, earlier: Copied | None) -> None:
    if earlier is not None and grown.size == earlier.size and grown.root() != earlier.root:
        raise _broken(f"the first {earlier.size} events are not the ones of the earlier checkpoint", "V14")


def _leaves(fetch: Fetch, size: int) -> Iterator[bytes]:
    for start in range(0, size, WIDTH):
        width = min(WIDTH, size - start)
        data, at, count = fetch(tile_path("tile/entries", start // WIDTH, width)), 0, 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 2], "big")
            at += 2 + length
            count += 1
            yield data[at - length : at]
        if at != len(data) or count != width:
            raise _broken("a bundle of events is not what it should be", "V11")


def _broken(message: str, verdict: str) -> LedgerBroken:
    return LedgerBroken(message, remedy="keep what was fetched, and ask the archive's operator", verdict=verdict)
