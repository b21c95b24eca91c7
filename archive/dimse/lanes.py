"""Which lane serves an association: what its request proposes decides, before anything of it is answered."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from archive.config import Dimse
from archive.dimse import query_lane, storage_lane
from archive.dimse.admission import Acceptance, takes_private
from archive.dimse.query_lane import QueryLane, Services
from archive.dimse.records import Tally
from archive.dimse.scp import Lane
from archive.dimse.storage_lane import StorageLane

if TYPE_CHECKING:
    from archive.services.store import Source, Store


class Association(Protocol):
    """An association that is being served, as the listener sees it."""

    name: str
    tally: Tally
    """What it served, and how it ended."""

    @property
    def quiet(self) -> bool:
        """Whether no message is under way."""

    def abort(self, *, block: bool = True) -> None:
        """End it."""


class Lanes:
    """Every lane of one process; safe to share between threads."""

    def __init__(self, store: Store, config: Dimse, services: Services | None = None) -> None:
        """`[dimse] receiver = "pynetdicom"` leaves what only stores to the library; without `services` nobody queries."""
        self._config = config
        self._library = Lane(store, config)
        self._storage = StorageLane(store, config) if config.receiver == "own" else None
        self._query = QueryLane(store, config, services) if services is not None else None

    def serve(
        self, connection: socket.socket, acceptance: Acceptance, source: Source, *, name: str, begun: Callable[[Association], None]
    ) -> None:
        """Serve one association until it ends; `begun` is told of it before its first PDU is answered."""
        own, query = self._storage, self._query
        if query is not None and query_lane.serves(acceptance):
            query.serve(connection, acceptance, source, name=name, begun=begun)
        elif own is not None and storage_lane.serves(acceptance, private=takes_private(acceptance.admission, self._config)):
            own.serve(connection, acceptance, source, name=name, begun=begun)
        else:
            self._library.serve(connection, acceptance, source, name=name, begun=begun)
