"""The DIMSE worker process: what serve starts, once per worker, with the listening sockets it opened."""

from __future__ import annotations

import logging
import resource
import signal
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from archive.config import Config
from archive.dimse.lanes import Lanes
from archive.dimse.listener import Endpoint, Listener
from archive.dimse.query_lane import Services
from archive.dimse.tls import TlsFiles
from archive.errors import ArchiveError

if TYPE_CHECKING:
    from archive.services.association_log import AssociationLog
    from archive.services.commitments import Commitments
    from archive.services.mpps import ProcedureSteps
    from archive.services.peers import Peers
    from archive.services.query import Query
    from archive.services.sending import Sending
    from archive.services.store import Store
    from archive.services.worklist import Worklist

LOG = logging.getLogger("archive.dimse")

DRAIN_S = 20.0
"""How long running associations may take to end after SIGTERM."""

_DESCRIPTORS = 65536


class Node(Protocol):
    """What of an opened archive is needed here."""

    @property
    def config(self) -> Config:
        """Its configuration."""

    @property
    def store(self) -> Store:
        """Where instances go."""

    @property
    def peers(self) -> Peers:
        """Who may come."""

    @property
    def query(self) -> Query:
        """What searches."""

    @property
    def sending(self) -> Sending:
        """What lets instances leave."""

    @property
    def worklist(self) -> Worklist:
        """What is scheduled."""

    @property
    def association_log(self) -> AssociationLog:
        """Where associations leave a record."""

    @property
    def steps(self) -> ProcedureSteps:
        """What is performed."""

    @property
    def commitments(self) -> Commitments:
        """What is promised."""


class StopEvent(Protocol):
    """An event of threading or multiprocessing."""

    def is_set(self) -> bool:
        """Whether to stop."""


def run_worker(
    node: Node,
    sockets: Sequence[Endpoint],
    stop_event: StopEvent,
    *,
    ready: Callable[[], None] = lambda: None,
    drain_s: float = DRAIN_S,
    shared: bool = False,
) -> bool:
    """Serve associations until told to stop by the event, SIGTERM or SIGINT; then no new ones, and running ones may end.

    `ready` is called once connections are accepted; `shared`: other processes accept on the same sockets. Returns whether every
    association came to its own end.
    """
    told = threading.Event()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: told.set())
    _allow_descriptors()
    config = node.config
    name = node.peers.worker
    files = TlsFiles.of(config) if any(endpoint.tls for endpoint in sockets) else None
    listener = Listener(
        sockets, config=config.dimse, peers=node.peers, files=files, worker=name,
        lane=Lanes(node.store, config.dimse, Services(
            node.query, node.sending, TlsFiles.of(config), node.worklist, node.steps, node.commitments
        )),
        shared=shared, log=node.association_log,
    )
    ready()
    try:
        listener.run(lambda: told.is_set() or stop_event.is_set())
        for endpoint in sockets:
            endpoint.listening.close()  # when no other process listens there, who connects now is refused at once
        return listener.drain(drain_s)
    finally:
        try:
            node.peers.sweep(name)
        except ArchiveError as error:  # slots of a process that is gone are taken back by who next asks for one
            LOG.warning("the worker's association slots could not be given back", extra={"error": error.code})
        node.association_log.flush()


def _allow_descriptors() -> None:
    """An association takes four descriptors; the usual soft limit of 1024 is for programs that use select."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
