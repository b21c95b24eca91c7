"""Simulated power cuts: what a disk may hold when its machine loses power at a given moment.

Every write of the vault since the last sync of its file may be there or not, block by block; a new name, or a removed one, may be
there or not until its folder is synced; a database's write-ahead log may end anywhere after the last commit that was made durable.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from archive.db.engine import Database
from archive.node import Node
from archive.vault.disk import BLOCK, DISK, Disk

Loss = Literal["everything", "nothing", "some", "names"]
LOSSES: tuple[Loss, ...] = ("everything", "nothing", "some", "names")
_FULL = 2


@dataclass
class _Unsynced:
    """What may be lost of one file: for each block every content since the last sync, oldest first; its length likewise."""

    blocks: dict[int, list[bytes]] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)


@dataclass
class _Log:
    """One database file's write-ahead log, and how much of it is durable."""

    path: Path
    salt: bytes = b""
    durable_bytes: int = 0


class Power:
    """Watches one archive's disk and commits; `cut` makes a folder as the disk could look now.

    `moment(name)` is called ahead of each operation and after each commit, with everything else held still.
    """

    def __init__(self, folder: Path, moment: Callable[[str], None] = lambda _name: None) -> None:
        """Watch the archive in `folder`."""
        self.folder = folder
        self.moment = moment
        self._lock = threading.RLock()
        self._files: dict[Path, _Unsynced] = {}
        self._names: dict[Path, bytes | None] = {}  # before the change: content, or None where there was no file
        self._logs: list[_Log] = []

    # --- watching ---------------------------------------------------------------------------------------------------------------------

    @contextmanager
    def watching(self, *nodes: Node) -> Iterator[Power]:
        """Watch this process's disk and the nodes' databases until the block ends."""
        names = ("create", "pwrite", "fdatasync", "sync_folder", "allocate", "truncate", "punch", "rename", "unlink")
        for name in names:
            setattr(DISK, name, getattr(self, f"_{name}"))
        undo = [self._watch(database) for node in nodes for database in (node.core.database, node.core.keystore._database)]
        try:
            yield self
        finally:
            for name in names:
                delattr(DISK, name)
            for one in undo:
                one()

    def _watch(self, database: Database) -> Callable[[], None]:
        dialect = database.engine.dialect
        commit, log = dialect.do_commit, _Log(Path(f"{database.url.database}-wal"))
        log.durable_bytes = _used(log.path)[1]  # opened and started: what is there now is taken as durable
        log.salt = _used(log.path)[0]
        self._logs.append(log)

        def watched(connection: Any) -> None:
            with self._lock:
                before = _used(log.path)
                self.moment("before commit")
                commit(connection)
                if _used(log.path) != before:  # reads are committed too
                    full = connection.execute("PRAGMA synchronous").fetchone()[0] == _FULL
                    self._committed(log, durable=full)
                    self.moment("committed")

        dialect.do_commit = watched  # type: ignore[method-assign]
        return lambda: setattr(dialect, "do_commit", commit)

    def _committed(self, log: _Log, *, durable: bool) -> None:
        salt, used = _used(log.path)
        if salt != log.salt:  # the log began anew: a checkpoint has synced all that came before
            log.salt, log.durable_bytes = salt, 0
        if durable:
            log.durable_bytes = used

    def _of(self, fd: int) -> tuple[Path, _Unsynced]:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        return path, self._files.setdefault(path, _Unsynced())

    def _create(self, path: Path, *, direct: bool) -> int:
        with self._lock:
            self.moment("create")
            fd = Disk.create(DISK, path, direct=direct)
            self._names.setdefault(path, None)
            return fd

    def _pwrite(self, fd: int, data: memoryview, offset: int) -> None:
        with self._lock:
            self.moment("pwrite")
            path, lost = self._of(fd)
            first, last = offset // BLOCK, (offset + len(data) - 1) // BLOCK
            for block in range(first, last + 1):
                if block not in lost.blocks:
                    lost.blocks[block] = [_block(path, block)]
            lost.lengths = lost.lengths or [path.stat().st_size]
            Disk.pwrite(DISK, fd, data, offset)
            lost.lengths.append(path.stat().st_size)
            for block in range(first, last + 1):
                lost.blocks[block].append(_block(path, block))

    def _fdatasync(self, fd: int) -> None:
        with self._lock:
            self.moment("fdatasync")
            Disk.fdatasync(DISK, fd)
            self._files.pop(self._of(fd)[0], None)
            self.moment("synced")

    def _sync_folder(self, folder: Path) -> None:
        with self._lock:
            self.moment("sync_folder")
            Disk.sync_folder(DISK, folder)
            for path in [path for path in self._names if path.parent == folder]:
                del self._names[path]

    def _resize(self, fd: int, name: str, change: Callable[[], None]) -> None:
        with self._lock:
            self.moment(name)
            path, lost = self._of(fd)
            lost.lengths = lost.lengths or [path.stat().st_size]
            change()
            lost.lengths.append(path.stat().st_size)

    def _allocate(self, fd: int, offset: int, length: int) -> None:
        self._resize(fd, "allocate", lambda: Disk.allocate(DISK, fd, offset, length))

    def _truncate(self, fd: int, length: int) -> None:
        self._resize(fd, "truncate", lambda: Disk.truncate(DISK, fd, length))

    def _punch(self, fd: int, offset: int, length: int) -> None:
        with self._lock:
            self.moment("punch")
            path, lost = self._of(fd)
            blocks = range(offset // BLOCK, -(-(offset + length) // BLOCK))
            for block in blocks:
                if block not in lost.blocks:
                    lost.blocks[block] = [_block(path, block)]
            Disk.punch(DISK, fd, offset, length)
            for block in blocks:
                lost.blocks[block].append(_block(path, block))

    def _rename(self, source: Path, target: Path) -> None:
        with self._lock:
            self.moment("rename")
            self._names.setdefault(target, target.read_bytes() if target.exists() else None)
            self._names.setdefault(source, source.read_bytes())
            Disk.rename(DISK, source, target)

    def _unlink(self, path: Path) -> None:
        with self._lock:
            self.moment("unlink")
            if path.exists():
                self._names.setdefault(path, path.read_bytes())
            self._files.pop(path, None)
            Disk.unlink(DISK, path)

    # --- cutting ----------------------------------------------------------------------------------------------------------------------

    def cut(self, target: Path, loss: Loss, chance: random.Random, *, log_bytes: Callable[[int, int], int] | None = None) -> None:
        """Copy the archive to `target` as a power cut now may leave it.

        `log_bytes(durable, written)` says where each database's log ends; without it the loss decides.
        """
        with self._lock:
            shutil.copytree(self.folder, target, ignore=_not_copied)
            for path, lost in self._files.items():
                copied = target / path.relative_to(self.folder)
                if copied.exists():
                    _lose(copied, lost, loss, chance)
            if loss in {"everything", "names"} or (loss == "some" and chance.random() < 0.5):
                self._lose_names(target)
            for log in self._logs:
                self._cut_log(target / log.path.relative_to(self.folder), log, loss, chance, log_bytes)

    def _lose_names(self, target: Path) -> None:
        for path, content in self._names.items():
            copied = target / path.relative_to(self.folder)
            if content is None:
                copied.unlink(missing_ok=True)
            else:
                copied.write_bytes(content)

    @staticmethod
    def _cut_log(path: Path, log: _Log, loss: Loss, chance: random.Random, log_bytes: Callable[[int, int], int] | None) -> None:
        salt, used = _used(path)
        durable = log.durable_bytes if salt == log.salt else 0
        if log_bytes is not None:
            end = log_bytes(durable, used)
        elif loss == "nothing":
            end = used
        else:
            end = chance.choice([durable, used, chance.randint(durable, used)]) if loss == "some" else durable
        if path.exists():
            os.truncate(path, end)


def _not_copied(_folder: str, names: list[str]) -> list[str]:
    """Sockets, and the memory that all openers of a database share, do not outlive the machine."""
    return [name for name in names if name.endswith(("-shm", ".sock"))]


def _block(path: Path, block: int) -> bytes:
    with path.open("rb") as file:
        file.seek(block * BLOCK)
        return file.read(BLOCK).ljust(BLOCK, b"\0")


def _lose(path: Path, lost: _Unsynced, loss: Loss, chance: random.Random) -> None:
    def pick(versions: list[Any]) -> Any:
        if loss == "some":
            return chance.choice(versions)
        return versions[-1] if loss in {"nothing", "names"} else versions[0]

    with path.open("r+b") as file:
        for block, versions in lost.blocks.items():
            file.seek(block * BLOCK)
            file.write(pick(versions))
        if lost.lengths:
            file.truncate(pick(lost.lengths))


def _used(path: Path) -> tuple[bytes, int]:
    """Return a log's salt, and the bytes up to the end of the last frame of its present generation."""
    if not path.exists() or path.stat().st_size < 32:
        return b"", 0
    with path.open("rb") as file:
        header = file.read(32)
        page, salt = struct.unpack_from(">I", header, 8)[0], header[16:24]
        used = 32
        while len(frame := file.read(24)) == 24 and frame[8:16] == salt:
            file.seek(page, 1)
            used += 24 + page
    return salt, min(used, path.stat().st_size)


def log_frames(path: Path) -> list[int]:
    """Return where each frame of a log's present generation ends."""
    salt, used = _used(path)
    if not salt:
        return []
    page = struct.unpack(">I", path.read_bytes()[8:12])[0]
    return list(range(32 + 24 + page, used + 1, 24 + page))
