"""A keyring without files, a keystore without a database, and a disk that fails when told."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import os
from dataclasses import dataclass
from pathlib import Path

from archive.errors import KeyShredded, SealBroken
from archive.vault.disk import BLOCK, Disk
from archive.vault.keystore import StudyKey

DATASTORE = bytes(range(16))


@dataclass(frozen=True)
class FakeKek:
    id: bytes
    key: bytes


class FakeKeyring:
    """KEKs in a list, the last one active."""

    def __init__(self) -> None:
        self.held: list[FakeKek] = []
        self.rotate()

    def rotate(self) -> FakeKek:
        key = os.urandom(32)
        # kek id = HKDF-Expand(KEK, "strongroom/kek-id", 16), written out by hand
        self.held.append(FakeKek(hmac.digest(key, b"strongroom/kek-id\x01", "sha256")[:16], key))
        return self.held[-1]

    def kek(self, datastore: bytes) -> FakeKek:
        return self.held[-1]

    def keks(self) -> list[FakeKek]:
        return list(self.held)

    def refresh(self) -> bool:
        return False

    def pseudonym(self, label: str, value: str | bytes) -> bytes:
        data = value.encode() if isinstance(value, str) else value
        return hashlib.sha256(b"pepper" + label.encode() + b"\0" + data).digest()


class FakeKeystore:
    """Keys in a dictionary."""

    def __init__(self) -> None:
        self.held: dict[bytes, StudyKey] = {}
        self.shredded: set[bytes] = set()

    def new(self) -> StudyKey:
        key = StudyKey(os.urandom(16), os.urandom(32))
        self.held[key.key_id] = key
        return key

    def open(self, key_id: bytes) -> StudyKey:
        if key_id in self.shredded:
            raise KeyShredded("destroyed", verdict="V05")
        if key_id not in self.held:
            raise SealBroken("missing", verdict="V05")
        return self.held[key_id]


class Killed(BaseException):
    """The process is gone: nothing catches this, and no later operation happens."""


class FaultyDisk(Disk):
    """Numbers operations and fails at one of them; keeps what a power cut would lose.

    `fault`: an errno, "short" (a write stops after some bytes, then goes on), or "kill".
    """

    def __init__(self, at: int | None = None, fault: int | str = errno.EIO) -> None:
        super().__init__(self._decide)
        self.at, self.fault = at, fault
        self.names: list[str] = []
        self.dead = False
        self.refuse_direct = ""  # "open" or "write"
        self._direct: set[int] = set()
        self._created: list[tuple[int, int]] = []  # descriptor and inode
        self.unsynced: dict[int, list[tuple[int, int]]] = {}  # by inode: offset and length
        self.free: int | None = None

    def _decide(self, number: int, name: str) -> int | None:
        if self.dead:
            raise Killed
        self.names.append(name)
        if number != self.at:
            return None
        if self.fault == "kill":
            self.dead = True
            raise Killed
        if self.fault == "short":
            return BLOCK if name == "pwrite" else None
        assert isinstance(self.fault, int)
        raise OSError(self.fault, os.strerror(self.fault))

    def create(self, path: Path, *, direct: bool) -> int:
        if direct and self.refuse_direct == "open":
            path.touch()  # as Linux does before it refuses
            raise OSError(errno.EINVAL, "no O_DIRECT here")
        fd = super().create(path, direct=False if self.refuse_direct else direct)
        self._created.append((fd, os.fstat(fd).st_ino))
        self._direct.discard(fd)
        if direct:
            self._direct.add(fd)
        return fd

    def pwrite(self, fd: int, data: memoryview, offset: int) -> None:
        if fd in self._direct and self.refuse_direct == "write":
            self._direct.discard(fd)
            raise OSError(errno.EINVAL, "no O_DIRECT here")
        self.unsynced.setdefault(os.fstat(fd).st_ino, []).append((offset, len(data)))
        super().pwrite(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        waiting = list(self.unsynced.get(os.fstat(fd).st_ino, []))
        super().fdatasync(fd)
        held = self.unsynced.get(os.fstat(fd).st_ino, [])
        for one in waiting:
            held.remove(one)

    def let_go(self) -> None:
        """Close what a killed process had open."""
        for fd, inode in self._created:
            with contextlib.suppress(OSError):
                if os.fstat(fd).st_ino == inode:
                    os.close(fd)

    def unlink(self, path: Path) -> None:
        inode = path.stat().st_ino if path.exists() else None
        super().unlink(path)
        if inode is not None:
            self.unsynced.pop(inode, None)  # the number will be used again

    def space(self, folder: Path) -> tuple[int, int]:
        free, total = super().space(folder)
        return (free, total) if self.free is None else (self.free, total)

    def power_cut(self, folder: Path, keep: int) -> None:
        """Zero what was written but not synced, except that block number `keep` of each write made it to the disk."""
        for path in folder.glob("*.seg"):
            ranges = self.unsynced.get(path.stat().st_ino, [])
            with path.open("r+b") as file:
                size = path.stat().st_size
                for offset, length in ranges:
                    for number, at in enumerate(range(offset, offset + length, BLOCK)):
                        if number != keep and at < size:
                            file.seek(at)
                            file.write(bytes(BLOCK))
