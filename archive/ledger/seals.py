"""The seal of a study: one root over instances, so that who has them can tell that none is missing or changed.

Source: docs/format.md 9; RFC 6962 2.1.
"""

from __future__ import annotations

from collections.abc import Iterable

from archive.keys.sealing import canonical
from archive.ledger import tree


def seal(instances: Iterable[tuple[str, bytes]]) -> bytes:
    """Return the Merkle root over SOP Instance UID and SHA-256 of each, in the order of the UIDs."""
    leaves = (tree.leaf_hash(canonical({"sha256": digest.hex(), "sop": uid})) for uid, digest in sorted(instances))
    return tree.Tree(leaves).root()
