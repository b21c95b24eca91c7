"""The tree against RFC 6962's recursive definition, exhaustively to 130 leaves."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest

from archive.errors import LedgerBroken
from archive.ledger import tree
from archive.ledger.tree import Tree

SIZES = 130
# The eight inputs and the roots of every size that Certificate Transparency's implementations share.
CT_LEAVES = [bytes.fromhex(text) for text in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")]
CT_ROOTS = [bytes.fromhex(text) for text in (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328")]


def mth(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962 2.1, word for word."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def path(m: int, leaves: Sequence[bytes]) -> list[bytes]:
    """RFC 6962 2.1.1."""
    if len(leaves) == 1:
        return []
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m: int, leaves: Sequence[bytes], whole: bool) -> list[bytes]:
    """RFC 6962 2.1.2."""
    n = len(leaves)
    if m == n:
        return [] if whole else [mth(leaves)]
    k = 1
    while k * 2 < n:
        k *= 2
    if m <= k:
        return [*subproof(m, leaves[:k], whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


@pytest.fixture(scope="module")
def grown() -> Tree:
    return Tree([tree.leaf_hash(b"%d" % n) for n in range(SIZES)])


@pytest.fixture(scope="module")
def roots(grown: Tree) -> list[bytes]:
    return [grown.root(size) for size in range(SIZES + 1)]


def test_roots_of_certificate_transparency() -> None:
    growing = Tree()
    assert growing.root() == hashlib.sha256().digest()
    for leaf, root in zip(CT_LEAVES, CT_ROOTS, strict=True):
        growing.append(tree.leaf_hash(leaf))
        assert growing.root() == root


def test_roots_are_rfc_6962(roots: list[bytes]) -> None:
    leaves = [b"%d" % n for n in range(SIZES)]
    for size in range(SIZES + 1):
        assert roots[size] == mth(leaves[:size])


def test_proofs_are_rfc_6962(grown: Tree) -> None:
    leaves = [b"%d" % n for n in range(20)]
    for size in range(1, 21):
        for index in range(size):
            assert tree.inclusion_proof(grown.lookup, index, size) == path(index, leaves[:size])
        for old in range(1, size):
            assert tree.consistency_proof(grown.lookup, old, size) == subproof(old, leaves[:size], True)


def forgeries(proof: list[bytes]) -> list[list[bytes]]:
    """Every proof one step away: longer, shorter, swapped, flipped."""
    other = bytes(32)
    forged = [[*proof, other], [other, *proof], [*proof, b"short"], [*proof[:-1], b"short"] if proof else [b""]]
    if proof:
        forged += [proof[1:], proof[:-1], [*proof, proof[-1]]]
        forged += [[*proof[:i], bytes([proof[i][0] ^ 1]) + proof[i][1:], *proof[i + 1:]] for i in range(len(proof))]
        forged += [swapped for i in range(len(proof) - 1)
                   if (swapped := [*proof[:i], proof[i + 1], proof[i], *proof[i + 2:]]) != proof]
    return forged


def test_every_inclusion(grown: Tree, roots: list[bytes]) -> None:
    verified = refused = 0
    for size in range(1, SIZES + 1):
        for index in range(size):
            leaf = grown.lookup(0, index)
            proof = tree.inclusion_proof(grown.lookup, index, size)
            tree.verify_inclusion(leaf, index, size, proof, roots[size])
            verified += 1
            if size % 13 and index % 7:
                continue
            wrong = [(leaf, index, size, forged, roots[size]) for forged in forgeries(proof)]
            wrong += [
                (bytes(32), index, size, proof, roots[size]), (leaf, index, size, proof, roots[size - 1]),
                (leaf, size, size, proof, roots[size]), (leaf, -1, size, proof, roots[size]),
                *[(leaf, other, size, proof, roots[size]) for other in {0, index - 1, index + 1, size - 1} - {index}],
            ]
            for case in wrong:
                with pytest.raises(LedgerBroken) as caught:
                    tree.verify_inclusion(*case)
                assert caught.value.verdict == "V11"
                refused += 1
    assert verified == SIZES * (SIZES + 1) // 2
    assert refused > 15_000


def test_every_consistency(grown: Tree, roots: list[bytes]) -> None:
    refused = 0
    for new in range(SIZES + 1):
        for old in range(new + 1):
            proof = tree.consistency_proof(grown.lookup, old, new)
            tree.verify_consistency(old, new, proof, roots[old], roots[new])
            if new % 13 and old % 7:
                continue
            wrong = [(old, new, forged, roots[old], roots[new]) for forged in forgeries(proof)]
            wrong += [(old, new, proof, bytes(32), roots[new]), (new + 1, new, proof, roots[old], roots[new])]
            if old:
                wrong += [(old, new, proof, roots[old], bytes(32)), (old - 1, new, proof, roots[old], roots[new])]
            if old != new:
                wrong.append((old, new, proof, roots[new], roots[old]))
            for case in wrong:
                with pytest.raises(LedgerBroken) as caught:
                    tree.verify_consistency(*case)
                assert caught.value.verdict == "V13"
                refused += 1
    assert refused > 10_000


def test_proofs_outside_the_tree(grown: Tree) -> None:
    for index, size in ((0, 0), (5, 5), (-1, 5)):
        with pytest.raises(LedgerBroken):
            tree.inclusion_proof(grown.lookup, index, size)
    with pytest.raises(LedgerBroken):
        tree.consistency_proof(grown.lookup, 6, 5)
