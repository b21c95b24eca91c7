"""The ledger's files: a tlog-tiles log that gives back every root, whole after any interruption."""

from __future__ import annotations

import hashlib
from datetime import datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.access.subject import Subject
from archive.db.engine import Database
from archive.db.tables import ledger_leaf
from archive.errors import LedgerBroken, VaultUnavailable
from archive.keys import private_files
from archive.keys.keyring import Keyring
from archive.ledger import checkpoints, files, nodes, tree
from archive.ledger.bodies import Bodies
from archive.ledger.checkpoints import Checkpoint
from archive.ledger.log import Ledger
from tests.ledger.conftest import fill, fill_fast


def grow(database: Database, keyring: Keyring, count: int, at: datetime) -> Checkpoint:
    with database.begin() as tx:
        fill_fast(tx, count, first=nodes.size(tx))
        made = checkpoints.make(tx, keyring, at)
    assert made is not None
    return made


def publish(database: Database, made: Checkpoint, directory: Path) -> list[tuple[int, bytes]]:
    told: list[tuple[int, bytes]] = []
    with database.read() as tx:
        files.publish(tx, made, directory, [lambda size, note: told.append((size, note))])
    return told


def names(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def test_paths_are_those_of_tlog_tiles() -> None:
    assert files.tile_path("tile/0", 1234067) == "tile/0/x001/x234/067"
    assert files.tile_path("tile/0", 0) == "tile/0/000"
    assert files.tile_path("tile/1", 273, 17) == "tile/1/273.p/17"
    assert files.tile_path("tile/entries", 1000, 1) == "tile/entries/x001/000.p/1"


@pytest.mark.parametrize(("size", "expected"), [
    (1, {"tile/0/000.p/1"}), (255, {"tile/0/000.p/255"}), (256, {"tile/0/000", "tile/1/000.p/1"}),
    (257, {"tile/0/000", "tile/0/001.p/1", "tile/1/000.p/1"}), (700, {"tile/0/000", "tile/0/001", "tile/0/002.p/188", "tile/1/000.p/2"}),
])
def test_which_files(embedded: Database, keyring: Keyring, folder: Path, now: datetime, size: int, expected: set[str]) -> None:
    made = grow(embedded, keyring, size, now)
    assert publish(embedded, made, folder) == [(size, made.note)]
    entries = {name.replace("tile/0/", "tile/entries/") for name in expected if name.startswith("tile/0/")}
    bodies = {name.replace("tile/0/", "bodies/") for name in expected if name.startswith("tile/0/")}
    assert names(folder) == {"checkpoint", *expected, *entries, *bodies}
    assert (folder / "checkpoint").read_bytes() == made.note


def root_from_files(directory: Path, size: int) -> bytes:
    """RFC 6962 over the entry bundles, no shared code; each entry must also hash to its place in the level 0 tile."""
    hashes = []
    for index in range(-(-size // 256)):
        width = min(256, size - index * 256)
        suffix = f"{index:03d}" if width == 256 else f"{index:03d}.p/{width}"
        bundle, tile = (directory / "tile/entries" / suffix).read_bytes(), (directory / "tile/0" / suffix).read_bytes()
        position = 0
        for i in range(width):
            length = int.from_bytes(bundle[position:position + 2], "big")
            hashes.append(hashlib.sha256(b"\0" + bundle[position + 2:position + 2 + length]).digest())
            assert tile[i * 32:i * 32 + 32] == hashes[-1]
            position += 2 + length
        assert (position, len(tile)) == (len(bundle), width * 32)
    full = [hashes[i:i + 256] for i in range(0, len(hashes) - 255, 256)]
    if full:
        width = len(full)
        tile = (directory / f"tile/1/000.p/{width}").read_bytes()
        assert [tile[i * 32:i * 32 + 32] for i in range(width)] == [_mth(part) for part in full]
    return _mth(hashes)


def _mth(hashes: list[bytes]) -> bytes:
    if len(hashes) == 1:
        return hashes[0]
    k = 1 << ((len(hashes) - 1).bit_length() - 1)
    return hashlib.sha256(b"\1" + _mth(hashes[:k]) + _mth(hashes[k:])).digest()


def test_grown_in_steps_the_files_give_every_root(database: Database, keyring: Keyring, folder: Path, now: datetime) -> None:
    for step in (1, 2, 250, 3, 1, 255, 88, 400):
        made = grow(database, keyring, step, now)
        publish(database, made, folder)
        assert root_from_files(folder, made.size) == made.root
        with database.read() as tx:
            assert list(files.differing(tx, folder, made.size)) == []
        partial = [name for name in names(folder) if ".p/" in name]
        assert len(partial) == (3 if made.size % 256 else 0) + (1 if made.size >= 256 else 0)


def test_an_interrupted_run_is_made_good(
    embedded: Database, keyring: Keyring, folder: Path, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk refuses the k-th write, for every k; the next run leaves what an undisturbed one leaves."""
    first = grow(embedded, keyring, 300, now)
    second = grow(embedded, keyring, 300, now)
    whole = folder / "whole"
    publish(embedded, first, whole)
    publish(embedded, second, whole)
    wanted = {name: (whole / name).read_bytes() for name in names(whole)}
    real = private_files.write
    for k in range(1, 30):
        directory = folder / f"cut{k}"
        publish(embedded, first, directory)
        count = 0

        def failing(path: Path, data: bytes, k: int = k) -> None:
            nonlocal count
            count += 1
            if count == k:
                raise OSError(28, "No space left on device")
            real(path, data)

        with monkeypatch.context() as patched:
            patched.setattr(private_files, "write", failing)
            try:
                publish(embedded, second, directory)
                interrupted = False
            except VaultUnavailable:
                interrupted = True
                assert (directory / "checkpoint").read_bytes() == first.note
                assert root_from_files(directory, first.size) == first.root
        publish(embedded, second, directory)
        assert {name: (directory / name).read_bytes() for name in names(directory)} == wanted
        if not interrupted:
            return
    pytest.fail("the run never came to its end")


def test_files_of_another_history_are_replaced(embedded: Database, keyring: Keyring, folder: Path, now: datetime) -> None:
    """After an acknowledged rollback the log goes on differently from where it was; nothing old may stay in the tiles."""
    publish(embedded, grow(embedded, keyring, 900, now), folder)
    made = grow(embedded, keyring, 100, now)
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "checkpoint":
            path.write_bytes(b"old")
    other = Checkpoint(900, b"\0" * 32, now, made.note.replace(b"\n1000\n", b"\n900\n"))
    (folder / "checkpoint").write_bytes(other.note)
    publish(embedded, made, folder)
    assert root_from_files(folder, 1000) == made.root


@pytest.mark.parametrize("content", [b"", b"garbage", b"strongroom/x\n99999999\n" + b"A" * 43 + b"=\n\n\xe2\x80\x94 x AAAAAAA=\n"])
def test_a_damaged_checkpoint_file_means_all_is_written_anew(
    embedded: Database, keyring: Keyring, folder: Path, now: datetime, content: bytes
) -> None:
    made = grow(embedded, keyring, 300, now)
    (folder / "checkpoint").write_bytes(content)
    publish(embedded, made, folder)
    assert root_from_files(folder, 300) == made.root


def test_bodies_are_there_sealed(
    embedded: Database, ledger: Ledger, keyring: Keyring, subject: Subject, folder: Path, now: datetime
) -> None:
    with embedded.begin() as tx:
        fill(tx, ledger, subject, 3, at=now)
        made = checkpoints.make(tx, keyring, now)
    assert made is not None
    publish(embedded, made, folder)
    bundle = (folder / "bodies/000.p/3").read_bytes()
    position = 0
    for n in range(3):
        length = int.from_bytes(bundle[position:position + 4], "big")
        opened = Bodies(keyring).open(n, bundle[position + 4:position + 4 + length])
        assert opened is not None
        assert b"CANARY" in opened[1]
        position += 4 + length
    assert position == len(bundle)
    for path in folder.rglob("*"):
        assert path.is_dir() or b"CANARY" not in path.read_bytes()


def test_a_missing_leaf_is_told(embedded: Database, keyring: Keyring, folder: Path, now: datetime) -> None:
    made = grow(embedded, keyring, 10, now)
    with embedded.begin() as tx:
        tx.execute(sa.delete(ledger_leaf).where(ledger_leaf.c.n == 4))
    with pytest.raises(LedgerBroken) as caught:
        publish(embedded, made, folder)
    assert caught.value.verdict == "V11"
    assert not (folder / "checkpoint").exists()


def test_root_is_the_one_of_the_tree(embedded: Database, keyring: Keyring, now: datetime) -> None:
    made = grow(embedded, keyring, 300, now)
    assert made.root == tree.Tree(tree.leaf_hash(b"leaf %d" % n) for n in range(300)).root()
