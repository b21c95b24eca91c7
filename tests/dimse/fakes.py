"""A store and a table of peers in memory, with the signatures of the services."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.errors import Forbidden, Unavailable
from archive.services.association_log import AssociationRecord
from archive.services.peer_settings import PeerSettings


@dataclass
class Kept:
    """One instance that came in."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    subject: Subject
    datastore: str
    source: object
    length: int = 0
    sha256: str = ""
    data: bytes = b""


@dataclass(frozen=True)
class FakeOutcome:
    """What the lane reads of services.store.Outcome."""

    status: str


class FakeIncoming:
    """services.store.Incoming in memory; with `keep_bytes` off it only hashes."""

    def __init__(self, store: FakeStore, kept: Kept) -> None:
        self._store = store
        self._kept = kept
        self._digest = hashlib.sha256()
        self._data = bytearray()
        self._thread = threading.get_ident()

    def write(self, data: bytes | memoryview) -> None:
        assert threading.get_ident() == self._thread, "an Incoming belongs to one thread"
        if self._store.on_write is not None:
            raise self._store.on_write
        self._digest.update(data)
        self._kept.length += len(data)
        if self._store.keep_bytes:
            self._data += data

    def finish(self) -> FakeOutcome:
        if self._store.gate is not None:
            self._store.finishing.set()
            self._store.gate.wait(20)
        if self._store.on_finish is not None:
            raise self._store.on_finish
        self._kept.sha256 = self._digest.hexdigest()
        self._kept.data = bytes(self._data)
        with self._store.lock:
            self._store.kept.append(self._kept)
        return FakeOutcome(self._store.outcome)

    def abort(self) -> None:
        with self._store.lock:
            self._store.aborted += 1


@dataclass
class FakeStore:
    """services.store.Store in memory, with faults to order."""

    keep_bytes: bool = True
    outcome: str = "stored"
    on_open: Exception | None = None
    on_write: Exception | None = None
    on_finish: Exception | None = None
    gate: threading.Event | None = None
    finishing: threading.Event = field(default_factory=threading.Event)
    kept: list[Kept] = field(default_factory=list)
    opened: int = 0
    aborted: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def open_dataset(
        self, subject: Subject, datastore: str, source: object, *, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str,
        alike: object = None,  # as Store's
    ) -> FakeIncoming:
        if self.on_open is not None:
            raise self.on_open
        with self.lock:
            self.opened += 1
        return FakeIncoming(self, Kept(sop_class_uid, sop_instance_uid, transfer_syntax_uid, subject, datastore, source))


@dataclass(frozen=True, slots=True)
class FakeAdmission:
    """services.peers.Admission."""

    subject: Subject
    datastore: str
    issuer: str
    peer_name: str
    may_store: bool
    may_query: bool
    functions: Permission = Permission.NONE
    settings: PeerSettings = field(default_factory=PeerSettings)


@dataclass
class FakePeer:
    """One enrolled peer."""

    id: int
    name: str
    titles: tuple[str, ...]
    certificate_sha256: str | None = None
    may_store: bool = True
    limit: int = 25
    settings: PeerSettings = field(default_factory=PeerSettings)


@dataclass
class FakePeers:
    """services.peers.Peers in memory."""

    peers: list[FakePeer] = field(default_factory=list)
    pending: list[tuple[str, str, bytes | None]] = field(default_factory=list)
    away: list[tuple[str, str, bytes | None]] = field(default_factory=list)
    slots: dict[int, int] = field(default_factory=dict)
    swept: list[str] = field(default_factory=list)
    trouble: Exception | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def admit(
        self, *, calling_ae_title: str, called_ae_title: str, address: str, certificate: bytes | None, tls: bool
    ) -> FakeAdmission:
        if self.trouble is not None:
            raise self.trouble
        digest = hashlib.sha256(certificate).hexdigest() if certificate else None
        assert tls == (certificate is not None)
        for peer in self.peers:
            if peer.certificate_sha256 == digest and calling_ae_title in peer.titles:
                subject = Subject(peer.id, peer.name, "device", "dimse", address, peer_id=peer.id)
                return FakeAdmission(subject, "clinical", "", peer.name, peer.may_store, False, settings=peer.settings)
        self.pending.append((calling_ae_title, address, certificate))
        raise Forbidden

    def on_behalf(
        self, admission: FakeAdmission, *, name: str = "", password: str = "", token: str = "", tls: bool
    ) -> FakeAdmission:
        """Whoever it is, the peer goes on as itself."""
        assert name or token
        return admission

    def turned_away(self, *, address: str, reason: str, certificate: bytes | None) -> None:
        self.away.append((address, reason, certificate))

    @contextmanager
    def slot(self, peer_id: int, worker: str) -> Iterator[None]:
        limit = next(peer.limit for peer in self.peers if peer.id == peer_id)
        with self.lock:
            if self.slots.get(peer_id, 0) >= limit:
                raise Unavailable
            self.slots[peer_id] = self.slots.get(peer_id, 0) + 1
        try:
            yield
        finally:
            with self.lock:
                self.slots[peer_id] -= 1

    @property
    def worker(self) -> str:
        return "test"

    def sweep(self, worker: str) -> None:
        self.swept.append(worker)


@dataclass
class FakeLog:
    """services.association_log.AssociationLog in memory."""

    records: list[AssociationRecord] = field(default_factory=list)
    flushed: int = 0

    def clock(self) -> datetime:
        return datetime.now(UTC)

    def note(self, record: AssociationRecord) -> None:
        self.records.append(record)

    def flush(self) -> None:
        """Nothing waits."""
        self.flushed += 1


def eventually(condition: object, timeout_s: float = 60.0) -> bool:
    """Wait until `condition()` holds."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.01)
    return False
