"""What happens before the workers run, and what each of them runs."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from archive.config import Config
from archive.errors import ArchiveError, KeysUnavailable
from archive.keys import ca, private_files
from archive.keys.hygiene import harden_process
from archive.keys.keyring import Keyring
from archive.serve import allocator, logs, ports, state, supervisor
from archive.serve.forked import FORKS, Forked, called, preload
from archive.serve.handover import Handover, Link
from archive.services import last_known, viewers

if TYPE_CHECKING:
    from archive.node import Role


def serve(
    config: Config, opened: Callable[[], Keyring] | None = None, *, on_ready: Callable[[state.Status], None],
    first: Callable[[Any], Any] = lambda _node: None, told: Callable[[Any], None] = lambda _answer: None,
) -> None:
    """Serve until SIGTERM or SIGINT; `first` is called with the opened node before anyone is let in.

    `opened` returns the keyring; without it the key file opens it. `first` may run in a process of its own: only what it returns
    comes back, to `told`.

    Raises:
        KeysUnavailable: the keyring is absent, open to others or does not open.
        DatabaseUnavailable: a database is of another revision, or does not open.
        ConfigurationError: an address cannot be listened at.
        Unavailable: another archive serves this storage, or a worker does not come up.
    """
    lock = state.RunLock(config)
    try:
        harden_process()
        keyring = Keyring.open(config) if opened is None else opened()
        if FORKS:
            preload(postgresql=bool(config.database.url))  # once, for the checks too
        read_only, answer = called(lambda: prepare(config, keyring, first)) if FORKS else prepare(config, keyring, first)
        keyring.refresh()  # what the start finished is in the file
        if not read_only:
            told(answer)
        try:
            _supervise(config, keyring, read_only, on_ready)
        finally:
            _record_stop(config, keyring, read_only)
    finally:
        lock.release()


def _supervise(config: Config, keyring: Keyring, read_only: str, on_ready: Callable[[state.Status], None]) -> None:
    sockets, real = ports.open_sockets(config, viewer=viewers.installed(config) is not None)

    def handover(why: str) -> Handover:
        return Handover(keyring=keyring.to_bytes(), config=real, read_only=why, generation=keyring.generation)

    held_against = read_only

    def again() -> Handover:
        nonlocal held_against
        missed: KeysUnavailable | None = None
        try:
            keyring.refresh()  # what opened it once is not asked for again
        except KeysUnavailable as error:
            missed = error
        looked = called(lambda: contradicted(config, keyring)) if FORKS else contradicted(config, keyring)
        if missed is not None and (held_against or not looked):
            raise missed  # told, and tried again; all go on with the keys they hold
        if missed is not None:
            logging.getLogger("archive.serve").error("the keyring was not taken again: %s", missed.message, extra={"remedy": missed.remedy})
        # That nobody may write any more waits for no keyring, and stays so until a start catches up with what was acknowledged.
        held_against = held_against or looked
        return handover(held_against)

    supervisor.Supervisor(
        real, handover(read_only), sockets, launch=launch if FORKS else None, on_ready=on_ready, again=again,
    ).run()


def _record_stop(config: Config, keyring: Keyring, read_only: str) -> None:
    """Say in the ledger that the archive stopped; after every worker, so that none adds to it, and of none that was only replaced."""
    if read_only:
        return
    try:
        called(lambda: finish(config, keyring)) if FORKS else finish(config, keyring)
    except ArchiveError as error:
        logging.getLogger("archive.serve").error("the stop was not recorded (%s)", error.code, extra={"remedy": error.remedy})


def launch(child: supervisor.Child, sockets: ports.Sockets, config: Config) -> Forked:
    """Start a worker by fork; of the listening sockets only a DIMSE worker takes any."""
    tls, plain = (sockets.dimse_tls, sockets.dimse_plain) if child.role == "dimse" else (None, None)
    keep = [made.fileno() for made in (tls, plain) if made is not None]
    return Forked(lambda: run_role(child.role, state.socket_path(config), tls, plain), keep=keep)


def run_role(role: str, socket_path: Path, tls: socket.socket | None, plain: socket.socket | None) -> int:
    """Be a worker of that role until SIGTERM, and return the exit status."""
    os.umask(0o077)
    allocator.limit_arenas()
    logs.configure(role)
    try:
        link = Link(socket_path)
        if role in {"web", "viewer"}:
            from archive.serve import web

            web.run(link, socket_path, viewer=role == "viewer")
        elif role == "events":
            from archive.serve import web

            web.run_events(link, socket_path)
        elif role == "dimse":
            run_dimse(link, tls, plain)
        else:
            run_background(link)
    except ArchiveError as error:
        logging.getLogger("archive.serve").critical("worker cannot run: %s", error.message, extra={"remedy": error.remedy})
        return 1
    return 0


def prepare(config: Config, keyring: Keyring, first: Callable[[Any], Any]) -> tuple[str, Any]:
    """Check and mend what must be right before anyone is let in.

    Returns:
        Why only reading is allowed, or nothing; and what `first` returned, which runs only when all is right.

    Raises:
        DatabaseUnavailable, ConfigurationError, KeysUnavailable.
    """
    from archive.node import open_node
    from archive.services import health, setup

    setup.check_databases(config, keyring)
    if (room := health.space(config)).state != "ok":
        logging.getLogger("archive.serve").error(room.detail, extra={"remedy": room.remedy})
    for path in (config.key_file, config.tls_dir / "server.key"):  # what opens the keyring now is not what goes
        private_files.sweep(path)
    if config.http.tls != "off" or config.dimse.tls.enabled:
        ca.ensure_server_certificate(config, keyring, at=datetime.now(UTC))
    node = open_node(config, keyring=keyring, role="serve")
    try:
        read_only = node.start()
        return read_only, None if read_only else first(node)
    finally:
        node.close()


def contradicted(config: Config, keyring: Keyring) -> str:
    """Return what the ledger's anchors hold against it now, or nothing: a witness may have spoken since the start."""
    from archive.node import open_node

    node = open_node(config, keyring=keyring, role="serve")
    try:
        return node.oversight.rolled_back()
    finally:
        node.close()


def finish(config: Config, keyring: Keyring) -> None:
    """Record the stop, sign the ledger's head and show it to the witnesses.

    Raises:
        DatabaseUnavailable, VaultUnavailable, LedgerBroken.
    """
    from archive.node import open_node

    node = open_node(config, keyring=keyring, role="serve")
    try:
        if not node.oversight.rolled_back():  # else it serves to read only by now
            node.upkeep.finish()
            node.witnesses.at_stop()
    finally:
        node.close()


def web_certificate(config: Config) -> tuple[Path | None, Path | None]:
    """Return certificate and key of the web listener, or nothing when it speaks plain HTTP."""
    if config.http.tls == "off":
        return None, None
    if config.http.tls == "files":
        return config.resolve(config.http.certificate), config.resolve(config.http.key)
    return config.tls_dir / "server.pem", config.tls_dir / "server.key"


def node_of(handover: Handover, role: Role) -> Any:
    """Open a worker's node from what it was handed."""
    from archive.node import open_node

    node = open_node(handover.config, keyring=Keyring.from_bytes(handover.keyring), role=role, read_only=handover.read_only)
    last_known.keep_hearing(node.core.clock, node.core.database)
    node.witnesses.on_against = lambda: state.begin_anew(handover.config)  # every worker starts again, to read only
    return node


def web_application(handover: Handover) -> Any:
    """Return the application of one web worker."""
    from archive.web.wsgi import application

    node = node_of(handover, "web")
    with contextlib.suppress(ArchiveError):  # what the database cannot tell now is built with the first request
        node.retrieve.prepare()
    return application(node)


def events_application(handover: Handover) -> Any:
    """Return the application of the notification connections."""
    from archive.web.events import Events

    return Events(node_of(handover, "web"), handover.config)


def viewer_application(handover: Handover) -> Any:
    """Return the application of the viewer's origin: what it serves says so in every address it gives."""
    from archive.web.ohif import Ohif
    from archive.web.wsgi import application

    config = handover.config
    replace = msgspec.structs.replace
    beside = replace(config, archive=replace(config.archive, public_url=config.viewer_url))
    node = node_of(replace(handover, config=beside), "web")
    return Ohif(application(node), beside, viewers.folder(config) / viewers.FILES, config.archive.public_url)


def run_dimse(link: Link, tls: socket.socket | None, plain: socket.socket | None) -> None:
    """Accept associations until SIGTERM."""
    from archive.dimse.listener import Endpoint
    from archive.dimse.worker import run_worker

    sockets = [Endpoint(made, speaks_tls) for made, speaks_tls in ((tls, True), (plain, False)) if made is not None]
    node = node_of(link.handover, "dimse")
    try:
        link.watch()
        allocator.keep_giving_back()
        run_worker(node, sockets, threading.Event(), ready=link.ready, shared=supervisor.dimse_processes(node.config) > 1)
    finally:
        node.close()


def run_background(link: Link) -> None:
    """Do the background work until SIGTERM."""
    from archive.dimse.forward import Delivering
    from archive.jobs import processors, ticking, worker

    node = node_of(link.handover, "background")
    try:
        stop = stop_on_signal()
        link.watch()
        allocator.keep_giving_back()
        link.ready()
        ticking.start("webhooks", node.webhooks, stop, look_s=1.0)
        ticking.start("alerts", node.alerts, stop, look_s=5.0)
        ticking.start("witnesses", node.witnesses, stop, look_s=2.0)
        ticking.start("checkpoint mail", node.printed, stop, look_s=60.0)
        ticking.start("audit log to syslog", node.audit_feed, stop, look_s=1.0)
        delivering = Delivering(node)
        delivering.start()
        node.upkeep.busy = processors.Processors().busy
        worker.run(node.upkeep, stop)
        delivering.stop()
        node.upkeep.leave()
    finally:
        node.close()


def stop_on_signal() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    return stop

