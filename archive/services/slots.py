"""Association slots: how many a peer, and all of them, have open at once, counted in the database for all workers together.

What a worker holds is its own: nobody else knows whether it still does. So what could not be given back, or may have been taken by a
change of which nobody knows whether it was made, is owed, and given back as soon as the database answers again.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from archive.db.engine import Database
from archive.db.prepared import Prepared
from archive.db.tables import association_slot, peer
from archive.errors import ArchiveError, Unavailable
from archive.services.clock import Clock
from archive.services.processes import is_alive

LOG = logging.getLogger("archive.services")

AGAIN_S = 5.0
"""How long after a failure what is owed is given back."""

_TURN = Prepared(sa.select(sa.func.pg_advisory_xact_lock(0x536C6F7473)))  # "Slots": of several at once none would see another


@dataclass(frozen=True, slots=True, eq=False)
class _Debt:
    key: int
    worker: str


class Slots:
    """The slots of this process, and the number of all; safe to share between threads and processes."""

    def __init__(self, database: Database, clock: Clock, *, most: int, most_of_a_peer: int) -> None:
        """Allow `most` altogether, and each peer `most_of_a_peer` unless a limit of its own is set."""
        self._database = database
        self._clock = clock
        self._most, self._most_of_a_peer = most, most_of_a_peer
        self._lock = threading.Lock()
        self._held: set[int] = set()
        self._owed: set[_Debt] = set()
        self._trying = False

    @contextlib.contextmanager
    def hold(self, peer_id: int, worker: str) -> Iterator[None]:
        """Hold one of the peer's slots; those of dead workers are swept first.

        Raises:
            Unavailable: the peer, or the archive, has as many associations as it may.
            DatabaseUnavailable.
        """
        key = self._taken(peer_id, worker)
        try:
            yield
        finally:
            self._give_back(key, worker)

    def sweep(self, worker: str) -> None:
        """Give back every slot of a worker that ends.

        Raises:
            DatabaseUnavailable.
        """
        with self._database.begin(durable=False) as tx:
            tx.execute(sa.delete(association_slot).where(association_slot.c.worker == worker))

    def _taken(self, peer_id: int, worker: str) -> int:
        key = None
        try:
            with self._database.begin(durable=False) as tx:
                if tx.dialect.name == "postgresql":
                    _TURN.first(tx, {})
                limit = tx.execute(sa.select(peer.c.max_associations).where(peer.c.id == peer_id)).scalar()
                for (other,) in tx.execute(sa.select(association_slot.c.worker).distinct()).all():
                    if not is_alive(other):
                        tx.execute(sa.delete(association_slot).where(association_slot.c.worker == other))
                counted = sa.select(association_slot.c.peer_id, sa.func.count()).group_by(association_slot.c.peer_id)
                held = {row[0]: int(row[1]) for row in tx.execute(counted)}
                if held.get(peer_id, 0) >= (limit or self._most_of_a_peer) or sum(held.values()) >= self._most:
                    message = "too many associations"
                    raise Unavailable(message, remedy="release one, or raise dimse.max_associations_per_peer")
                at = self._clock()
                made = tx.execute(sa.insert(association_slot).values(peer_id=peer_id, worker=worker, opened_at=at))
                assert made.inserted_primary_key is not None
                key = int(made.inserted_primary_key[0])
                with self._lock:  # before the commit: a key that is held is never given back for another that had it
                    self._held.add(key)
                tx.execute(sa.update(peer).where(peer.c.id == peer_id).values(last_seen_at=at))
        except BaseException:
            if key is not None:
                self._give_back(key, worker)
            raise
        return key

    def _give_back(self, key: int, worker: str) -> None:
        """Now, or later."""
        with self._lock:
            self._held.discard(key)
            self._owed.add(_Debt(key, worker))
        if self._paid() or self._paid():  # the first connection may be one that the database has closed meanwhile
            return
        with self._lock:
            if self._trying:
                return
            self._trying = True
        LOG.warning("an association slot is given back later")
        threading.Thread(target=self._pay_later, name="slots", daemon=True).start()

    def _pay_later(self) -> None:
        ended = threading.Event()
        while True:
            ended.wait(AGAIN_S)
            if self._paid():
                with self._lock:
                    if not self._owed:
                        self._trying = False
                        return

    def _paid(self) -> bool:
        """Give back what is owed; False when the database did not take it."""
        with self._lock:
            owed = list(self._owed)
        if not owed:
            return True
        s = association_slot.c
        try:
            with self._database.begin(durable=False) as tx:
                for debt in owed:
                    with self._lock:
                        again = debt.key in self._held  # it was never committed, and the key was given out anew
                    if not again:
                        tx.execute(sa.delete(association_slot).where(s.id == debt.key, s.worker == debt.worker))
        except (ArchiveError, sa.exc.SQLAlchemyError):
            return False
        with self._lock:
            self._owed.difference_update(owed)
        return True
