"""The Merkle tree: roots, proofs and their verification; pure.

A tree is seen through a `Lookup`: the hash of the complete subtree at (level, position), level 0 being leaf hashes. Whoever holds
the hashes (a list, a table) answers it; nothing else is needed for any root or proof.

Source: RFC 6962 2.1; RFC 9162 2.1.3.2 and 2.1.4.2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from archive.errors import LedgerBroken

HASH_BYTES = 32
Lookup = Callable[[int, int], bytes]
EMPTY = hashlib.sha256(b"").digest()


def leaf_hash(leaf: bytes) -> bytes:
    """Return the hash of a leaf's bytes."""
    return hashlib.sha256(b"\0" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node."""
    return hashlib.sha256(b"\1" + left + right).digest()


def _split(size: int) -> int:
    """Return the largest power of two smaller than `size` (> 1)."""
    return 1 << ((size - 1).bit_length() - 1)


def subtree(lookup: Lookup, start: int, end: int) -> bytes:
    """Return MTH(D[start:end]) for a range that RFC 6962 makes a subtree (start a multiple of its largest complete part)."""
    size = end - start
    if size & (size - 1) == 0:
        level = size.bit_length() - 1
        return lookup(level, start >> level)
    middle = start + _split(size)
    return node_hash(subtree(lookup, start, middle), subtree(lookup, middle, end))


def root(lookup: Lookup, size: int) -> bytes:
    """Return the root of the first `size` leaves."""
    return subtree(lookup, 0, size) if size else EMPTY


def inclusion_proof(lookup: Lookup, index: int, size: int) -> list[bytes]:
    """Return the audit path of a leaf, from its sibling up.

    Raises:
        LedgerBroken: the tree has no such leaf.
    """
    if not 0 <= index < size:
        raise _broken("there is no such leaf in a tree of this size")
    path = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(subtree(lookup, middle, end))
            end = middle
        else:
            path.append(subtree(lookup, start, middle))
            start = middle
    return path[::-1]


def consistency_proof(lookup: Lookup, old: int, new: int) -> list[bytes]:
    """Return the proof that the tree of `new` leaves continues the one of `old`.

    Raises:
        LedgerBroken: `old` is larger than `new`.
    """
    if not 0 <= old <= new:
        raise _broken("a tree cannot continue a larger one")
    if old in {0, new}:
        return []
    path = []
    start, end = 0, new
    whole = True  # whether the old tree's root is a complete subtree met on the way
    while old != end:
        middle = start + _split(end - start)
        if old <= middle:
            path.append(subtree(lookup, middle, end))
            end = middle
        else:
            path.append(subtree(lookup, start, middle))
            start = middle
            whole = False
    if not whole:
        path.append(subtree(lookup, start, end))
    return path[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], expected_root: bytes) -> None:
    """Check that the leaf with hash `leaf` is at `index` in the tree of that size and root.

    Raises:
        LedgerBroken: it is not, or the proof is not one (V11).

    Source: RFC 9162 2.1.3.2.
    """
    if not 0 <= index < size:
        raise _broken("there is no such leaf in a tree of this size")
    value = leaf
    for part, left in _sides(index, size - 1, proof, "V11"):
        value = node_hash(part, value) if left else node_hash(value, part)
    if value != expected_root:
        raise _broken("the leaf is not in the tree with that root")


def verify_consistency(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    """Check that the tree of `new` leaves continues the one of `old`.

    Raises:
        LedgerBroken: it does not, or the proof is not one (V13).

    Source: RFC 9162 2.1.4.2.
    """
    if not 0 <= old <= new:
        raise _broken("a tree cannot continue a larger one", "V13")
    parts = list(proof)
    if old in {0, new}:
        if parts or old_root != (EMPTY if old == 0 else new_root):
            raise _broken("the larger tree does not continue the smaller one", "V13")
        return
    if old & (old - 1) == 0:
        parts.insert(0, old_root)
    if not parts:
        raise _broken("this is not a proof for trees of these sizes", "V13")
    fn, sn = old - 1, new - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    from_old = from_new = parts[0]
    for part, left in _sides(fn, sn, parts[1:], "V13"):
        if left:
            from_old = node_hash(part, from_old)
        from_new = node_hash(part, from_new) if left else node_hash(from_new, part)
    if (from_old, from_new) != (old_root, new_root):
        raise _broken("the larger tree does not continue the smaller one", "V13")


def _sides(fn: int, sn: int, proof: Sequence[bytes], verdict: str) -> Iterator[tuple[bytes, bool]]:
    """Go up from node `fn` where `sn` is the last of its level: each part of the proof, and whether it stands to the left."""
    for part in proof:
        if sn == 0 or len(part) != HASH_BYTES:
            raise _broken("this is not a proof for trees of these sizes", verdict)
        left = bool(fn & 1) or fn == sn
        yield part, left
        while left and fn and not fn & 1:
            fn, sn = fn >> 1, sn >> 1
        fn, sn = fn >> 1, sn >> 1
    if sn != 0:
        raise _broken("this is not a proof for trees of these sizes", verdict)


class Frontier:
    """A tree that only grows and remembers no more than it needs for its root: the complete subtrees side by side."""

    def __init__(self) -> None:
        """Start empty."""
        self.size = 0
        self._peaks: list[bytes] = []

    def append(self, value: bytes) -> list[tuple[int, int, bytes]]:
        """Add a leaf hash; return level, position and hash of every subtree it completes, itself first."""
        level = 0
        made = [(0, self.size, value)]
        while self.size >> level & 1:
            value = node_hash(self._peaks.pop(), value)
            level += 1
            made.append((level, self.size >> level, value))
        self._peaks.append(value)
        self.size += 1
        return made

    def root(self) -> bytes:
        """Return the root."""
        if not self._peaks:
            return EMPTY
        value = self._peaks[-1]
        for peak in self._peaks[-2::-1]:
            value = node_hash(peak, value)
        return value


class Tree:
    """A tree in memory that remembers every complete subtree, and so gives every root and proof."""

    def __init__(self, hashes: Iterable[bytes] = ()) -> None:
        """Start from leaf hashes."""
        self._frontier = Frontier()
        self._known: dict[tuple[int, int], bytes] = {}
        for value in hashes:
            self.append(value)

    def append(self, value: bytes) -> None:
        """Add a leaf hash."""
        for level, position, digest in self._frontier.append(value):
            self._known[level, position] = digest

    @property
    def size(self) -> int:
        """The number of leaves."""
        return self._frontier.size

    def lookup(self, level: int, position: int) -> bytes:
        """Return a complete subtree's hash."""
        return self._known[level, position]

    def root(self, size: int | None = None) -> bytes:
        """Return the root now, or when it had `size` leaves."""
        return root(self.lookup, self.size if size is None else size)


def _broken(message: str, verdict: str = "V11") -> LedgerBroken:
    return LedgerBroken(message, remedy="run 'archive ledger verify'", verdict=verdict)
