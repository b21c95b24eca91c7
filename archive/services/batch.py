"""Instances of one sender that become durable together: each is sealed as it ends, then one sync and one commit serve all of them.

The order is that of the store; only how many share a sync and a commit differs. Nobody is told of an instance before that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from archive.errors import ArchiveError
from archive.services.adoption import Adopted, Arrival, adopt_all
from archive.services.core import Core
from archive.services.state_events import free_after

if TYPE_CHECKING:
    from archive.services.store import Incoming, Outcome

INSTANCES = 32
BYTES = 16 << 20
"""Where a batch ends: others wait for its commit, and what it holds is not acknowledged yet."""

K = TypeVar("K")


class Batch(Generic[K]):
    """Takes instances of one subject and door, one after the other; one thread. `flush` is owed at the end, whatever happened."""

    def __init__(self, core: Core, told: Callable[[K, Outcome | ArchiveError], None]) -> None:
        """`told` is called with each instance's key and what became of it, of one commit those that were kept first."""
        self._core, self._told = core, told
        self._waiting: list[tuple[K, Incoming, Arrival]] = []
        self._bytes = 0
        self.unsettled = False
        """Whether settling what waited failed in a way that nobody was told of: then it is not the fault of the instance at hand."""

    def begin(self, incoming: Incoming) -> None:
        """Note an instance that has just been opened: its bytes come next."""
        incoming.before_deciding = self._beside

    def add(self, key: K, incoming: Incoming) -> None:
        """End that instance; it may be told of now or later.

        Raises:
            InvalidInstance, UnsupportedClass, OutOfSpace, VaultUnavailable, DatabaseUnavailable: it alone is not stored.
        """
        ended = incoming.seal()
        if not isinstance(ended, Arrival):
            self._told(key, ended)
            return
        self._waiting.append((key, incoming, ended))
        self._bytes += incoming.part10_bytes
        if len(self._waiting) >= INSTANCES or self._bytes >= BYTES:
            self.flush()

    def flush(self) -> None:
        """Sync, index and record what waits, and tell of it."""
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        if not waiting:
            return
        self.unsettled = True
        failed: list[tuple[K, ArchiveError]] = []
        with self._core.database.approaching():
            settled = self._settled([arrival for _, _, arrival in waiting], waiting[0][1])
        unexpected: Exception | None = None
        for (key, incoming, arrival), adopted in zip(waiting, settled, strict=True):
            if isinstance(adopted, ArchiveError):
                failed.append((key, adopted))
            elif not isinstance(adopted, Adopted):
                unexpected = adopted
            else:
                try:
                    outcome = incoming.settle(arrival, adopted)
                except ArchiveError as rotted:
                    failed.append((key, rotted))
                else:
                    self._told(key, outcome)
        if unexpected is not None:
            raise unexpected
        for key, error in failed:
            self._told(key, error)
        self.unsettled = False

    def _settled(self, arrivals: list[Arrival], first: Incoming) -> list[Adopted | Exception]:
        core = self._core
        try:
            core.vault.sync(arrival.ref for arrival in arrivals)
        except ArchiveError as error:
            for arrival in arrivals:
                free_after(core, arrival.ref, error)  # those in segments of their own; the others are gone
            return [error for _ in arrivals]
        settled = adopt_all(core, arrivals, first.subject, door=first.door)
        for arrival, adopted in zip(arrivals, settled, strict=True):
            if isinstance(adopted, Exception):
                free_after(core, arrival.ref, adopted)
        return settled

    def _beside(self, sop_instance_uid: str) -> None:
        """Settle what waits when one of it has the same UID: what becomes of the next is decided by what is stored."""
        if any(arrival.scanned.sop_instance_uid == sop_instance_uid for _, _, arrival in self._waiting):
            self.flush()
