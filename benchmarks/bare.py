"""A C-STORE SCP that does what durability, sealing, signing and an enciphered index take at the least, and nothing else.

What an archive adds is left out: reading the header, permissions, duplicates, patients, studies and series, the ledger, its own checks. So
no archive with these guarantees stores faster with this interpreter on this machine. Each level holds what the one before it does.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import sqlcipher3.dbapi2 as sqlcipher
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from archive.access.subject import Subject
from archive.config import Dimse
from archive.db.pages import PRESENT
from archive.dimse import admission
from archive.dimse.contexts import Answered
from archive.dimse.storage_lane import StorageAssociation
from archive.services.doorkeeper import Admission
from archive.services.store import Source
from archive.vault.disk import BLOCK, padded

LEVELS = ("received", "sealed", "committed")
"""Bytes taken and thrown away; hashed, signed, enciphered, written past the page cache and synced; a row of it committed as well."""

_CHUNK, _TAG = 1 << 18, 16
_SEGMENT_BYTES = 256 << 20
_ROW_BYTES = 700  # what the attributes of an instance's row come to
_MOST_BYTES = 4 << 20
_KEY = bytes(range(32))  # of what nobody reads: an index and segments that end with the measurement


@dataclass(frozen=True, slots=True)
class _Outcome:
    status: str = "stored"


class _Keeps(Protocol):
    def keep(self, uid: str, memory: memoryview, length: int) -> None: ...


class Segment:
    """One process's file, written past the page cache; threads that end together share a sync."""

    def __init__(self, path: Path) -> None:
        """Reserve it."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
        os.posix_fallocate(self._fd, 0, _SEGMENT_BYTES)
        self._tail = self._written = self._synced = 0
        self._lock, self._leader = threading.Lock(), threading.Lock()

    def append(self, data: memoryview) -> None:
        """Return once it is on the disk; what is full begins again."""
        with self._lock:
            if self._tail + len(data) > _SEGMENT_BYTES:
                self._tail = 0
            offset = self._tail
            self._tail += len(data)
        os.pwrite(self._fd, data, offset)
        with self._lock:
            self._written += 1
            ticket = self._written
        with self._leader:
            if self._synced < ticket:
                with self._lock:
                    upto = self._written
                os.fdatasync(self._fd)
                self._synced = upto


class Index:
    """One table with one unique index, enciphered; whoever has the turn commits for all that wait."""

    def __init__(self, folder: Path) -> None:
        """Open it, and make it where it is not there."""
        self._db: Any = sqlcipher.connect(str(folder / "index.db"), isolation_level=None, check_same_thread=False, timeout=60)
        PRESENT.unlock(self._db, _KEY)
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "cache_size = -16000"):
            self._db.execute(f"PRAGMA {pragma}").close()
        self._db.execute("CREATE TABLE IF NOT EXISTS instance (id INTEGER PRIMARY KEY, uid TEXT UNIQUE, digest BLOB, attributes BLOB)")
        self._turn = os.open(folder / "writer.lock", os.O_RDWR | os.O_CREAT, 0o600)
        self._waiting: list[tuple[str, bytes, bytes]] = []
        self._put = self._done = 0
        self._lock, self._leader = threading.Lock(), threading.Lock()

    def add(self, row: tuple[str, bytes, bytes]) -> None:
        """Return once the row is committed."""
        with self._lock:
            self._waiting.append(row)
            self._put += 1
            ticket = self._put
        with self._leader:
            if self._done >= ticket:
                return
            fcntl.flock(self._turn, fcntl.LOCK_EX)
            try:
                with self._lock:
                    rows, self._waiting, upto = self._waiting, [], self._put
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany("INSERT INTO instance (uid, digest, attributes) VALUES (?, ?, ?)", rows)
                self._db.execute("COMMIT")
            finally:
                fcntl.flock(self._turn, fcntl.LOCK_UN)
            self._done = upto


@dataclass
class Bare:
    """In the place of a store: what the receiver calls, and the least it can do."""

    level: str
    folder: Path
    _here: threading.local = field(default_factory=threading.local)

    def __post_init__(self) -> None:
        self._segment = Segment(self.folder / f"segment-{os.getpid()}")
        self._index = Index(self.folder)
        self._signer, self._aead = Ed25519PrivateKey.generate(), AESGCM(_KEY)

    def open_dataset(self, *_context: object, sop_instance_uid: str, **_more: object) -> _Incoming:
        """Take a data set of 4 MiB at most; each thread has its buffer, the second half for what is sealed."""
        if not hasattr(self._here, "memory"):
            self._here.memory = memoryview(mmap.mmap(-1, 2 * _MOST_BYTES))
        return _Incoming(self, sop_instance_uid, self._here.memory)

    def keep(self, uid: str, memory: memoryview, length: int) -> None:
        """Do with `length` bytes what the level says."""
        if self.level == "received":
            return
        digest = hashlib.sha256(memory[:length]).digest()
        signature = self._signer.sign(digest)
        at, sealed = 0, memory[_MOST_BYTES:]
        nonce = os.urandom(12)
        for start in range(0, length, _CHUNK):
            piece = memory[start : min(start + _CHUNK, length)]
            self._aead.encrypt_into(nonce, piece, None, sealed[at : at + len(piece) + _TAG])
            at += len(piece) + _TAG
        self._segment.append(sealed[: padded(at + BLOCK)])
        if self.level == "committed":
            self._index.add((uid, digest + signature, os.urandom(_ROW_BYTES)))


class _Incoming:
    def __init__(self, store: _Keeps, uid: str, memory: memoryview) -> None:
        self._store, self._uid, self._memory, self._length = store, uid, memory, 0

    def write(self, data: memoryview) -> None:
        self._memory[self._length : self._length + len(data)] = data
        self._length += len(data)

    def finish(self) -> _Outcome:
        self._store.keep(self._uid, self._memory, self._length)
        return _Outcome()

    def abort(self) -> None:
        """Nothing was kept."""


def _associate(connection: socket.socket, store: Bare, config: Dimse) -> None:
    with connection, suppress(admission.Silence, admission.ProtocolError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        proposal = admission.parse(admission.read_request(connection, timeout_s=60))
        contexts = tuple(Answered(one.context_id, one.abstract_syntax, 0, one.transfer_syntaxes[0]) for one in proposal.contexts)
        nobody = Admission(Subject(0, "bare", "device", "dimse"), "", "", "", may_store=True, may_query=False)
        accepted = admission.Acceptance(nobody, proposal, contexts, ())
        anything: Any = store
        StorageAssociation(connection, accepted, anything, Source("dimse"), config, name="").run()


def serve(listener: socket.socket, folder: Path, level: str) -> None:
    """Accept for ever."""
    store, config = Bare(level, folder), Dimse(max_pdu_bytes=131072)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_associate, args=(connection, store, config), daemon=True).start()


def main(folder: Path, level: str) -> None:
    """Listen in two processes, say where, and serve until the end."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    Index(folder)
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    print(listener.getsockname()[1], flush=True)
    if os.fork() == 0:
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    serve(listener, folder, level)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
