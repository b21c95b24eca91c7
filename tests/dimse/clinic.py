"""An archive with content behind real sockets, peers that may see some of it, and what dcmtk and pynetdicom say to it."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pydicom
from pydicom.dataset import Dataset
from pynetdicom import AE, AllStoragePresentationContexts, build_role
from pynetdicom.association import Association
from pynetdicom.transport import ThreadedAssociationServer

from archive.access.grants import Target
from archive.dimse import listener as listener_module
from archive.dimse.listener import Endpoint
from archive.dimse.turns import settle
from archive.dimse.worker import run_worker
from archive.ledger.audit import Kind
from archive.ledger.log import AuditFilter, AuditRow
from archive.node import Node
from archive.services.clock import Clock, utc_now
from tests.services.archives import made, opened, store, the_console

FIND, MOVE, GET = (f"1.2.840.10008.5.1.4.1.2.2.{n}" for n in (1, 2, 3))
PATIENT_FIND, PATIENT_MOVE, PATIENT_GET = (f"1.2.840.10008.5.1.4.1.2.1.{n}" for n in (1, 2, 3))
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"


@dataclass
class Clinic:
    """A served archive."""

    node: Node
    tls_port: int
    plain_port: int
    folder: Path

    def put(self, *files: bytes) -> None:
        for data in files:
            assert store(self.node, data).status == "stored"

    def plain_peer(self, name: str, *, port: int | None = None, target: Target | None = None, role: str = "workstation") -> dict[str, Any]:
        """A peer without TLS on this host, with a grant for everything or for one target."""
        console = the_console(self.node)
        address = None if port is None else f"127.0.0.1:{port}"
        row = self.node.peers.add(console, name, [name], networks=["127.0.0.1/32"], address=address, roles=["workstation"])
        if target is not None:
            self.grant(name, target, role=role)
        return row

    def tls_peer(self, name: str, *, port: int | None = None, target: Target | None = None) -> Path:
        """A peer with a certificate issued to it; returns where that lies."""
        console = the_console(self.node)
        address = None if port is None else f"127.0.0.1:{port}"
        self.node.peers.add(console, name, [name], issue=self.folder / name, address=address, roles=["workstation"])
        if target is not None:
            self.grant(name, target)
        return self.folder / name

    def grant(self, name: str, target: Target, *, role: str = "workstation", deny: bool = False) -> dict[str, Any]:
        return self.node.accounts.add_grant(the_console(self.node), to=name, role=role, target=target, deny=deny)

    def events(self, *kinds: Kind) -> list[AuditRow]:
        core = self.node.core
        with core.database.read() as tx:
            return core.ledger.search(tx, AuditFilter(kinds=kinds, limit=1000))

    @contextmanager
    def association(self, name: str, *classes: str, syntaxes: list[str] | None = None, storage: list[str] | None = None,
                    extended: dict[str, bytes] | None = None, roles: bool = True, tls: Path | None = None,
                    **handlers: Any) -> Iterator[Association]:
        """A pynetdicom requestor."""
        ae = AE(ae_title=name)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 60  # its patience is not what is tested
        for uid in classes:
            ae.add_requested_context(uid, syntaxes or [EXPLICIT, IMPLICIT])
        negotiation: list[Any] = []
        for uid in storage or []:
            ae.add_requested_context(uid, handlers.get("storage_syntaxes") or [EXPLICIT, IMPLICIT])
            if roles:
                negotiation.append(build_role(uid, scp_role=True))
        for uid, information in (extended or {}).items():
            from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation

            item = SOPClassExtendedNegotiation()
            item.sop_class_uid, item.service_class_application_information = uid, information
            negotiation.append(item)
        association = ae.associate(
            "127.0.0.1", self.tls_port if tls else self.plain_port, ae_title="STRONGROOM", ext_neg=negotiation,
            evt_handlers=handlers.get("evt_handlers"), tls_args=(context_of(tls), "127.0.0.1") if tls else None,
        )
        assert association.is_established
        settle(association)
        try:
            yield association
        finally:
            if association.is_established:
                association.release()

    def find(self, name: str, level: str, *, root: str = FIND, extended: dict[str, bytes] | None = None, **keys: Any) -> list[Dataset]:
        """Every answer of a C-FIND, which must succeed."""
        status, found = self.ask(name, level, root=root, extended=extended, **keys)
        assert status == 0, f"{status:04X}"
        return found

    def ask(
        self, name: str, level: str, *, root: str = FIND, extended: dict[str, bytes] | None = None, **keys: Any
    ) -> tuple[int, list[Dataset]]:
        with self.association(name, root, extended=extended) as association:
            answers = [(int(status.Status), found) for status, found in association.send_c_find(identifier(level, **keys), root)]
        assert all(status in (0xFF00, 0xFF01) and found is not None for status, found in answers[:-1])
        return answers[-1][0], [found for _, found in answers[:-1] if found is not None]

    def dcmtk(self, program: str, name: str, *options: str, tls: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a dcmtk client."""
        secure = ["+tls", str(tls / "key.pem"), str(tls / "cert.pem"), "+cf", str(tls / "ca.pem")] if tls else []
        port = self.tls_port if tls else self.plain_port
        command = [program, *secure, "-aet", name, "-aec", "STRONGROOM", *options, "127.0.0.1", str(port)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, errors="replace")


def context_of(certificate: Path) -> ssl.SSLContext:
    """The client side of mutual TLS with what `peer add --issue` wrote."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(certificate / "ca.pem")
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    return context


def identifier(level: str, **keys: Any) -> Dataset:
    """An identifier; a key `CharacterSet` is (0008,0005)."""
    made_of = Dataset()
    if level:
        made_of.QueryRetrieveLevel = level
    if "CharacterSet" in keys:
        made_of.SpecificCharacterSet = keys.pop("CharacterSet")
    for keyword, value in keys.items():
        setattr(made_of, keyword, value)
    return made_of


@contextmanager
def clinic(folder: Path, *, sections: dict[str, Any] | None = None, clock: Clock = utc_now, **dimse: Any) -> Iterator[Clinic]:
    """Serve an archive made in `folder`."""
    config = made(folder, dimse={"plain": {"enabled": True, "port": 0, "networks": ["127.0.0.0/8"]}, **dimse}, **(sections or {}))
    stop, ready = threading.Event(), threading.Event()
    listening = [socket.create_server(("127.0.0.1", 0), backlog=64) for _ in range(2)]
    try:
        with opened(config, clock=clock) as node, patch.object(listener_module, "_TICK_S", 0.02):  # how long stopping takes
            endpoints = [Endpoint(listening[0], tls=True), Endpoint(listening[1], tls=False)]
            worker = threading.Thread(target=run_worker, args=(node, endpoints, stop), kwargs={"ready": ready.set})
            worker.start()
            assert ready.wait(60)
            try:
                yield Clinic(node, listening[0].getsockname()[1], listening[1].getsockname()[1], folder)
            finally:
                stop.set()
                worker.join(60)
            assert not worker.is_alive()
    finally:
        for one in listening:
            one.close()


def listen(ae: AE, port: int, handlers: list[Any]) -> Any:
    """Serve in a thread; it looks often whether it is to end, so ending it takes no half second."""
    with patch.object(ThreadedAssociationServer, "serve_forever", partialmethod(ThreadedAssociationServer.serve_forever, 0.02)):
        return ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)


class Receiver:
    """A pynetdicom storage SCP that keeps what comes; `answers` gives the status of each."""

    def __init__(self, title: str, *, syntaxes: list[str] | None = None, answers: Any = None) -> None:
        from pynetdicom import evt

        self.received: list[tuple[str, str, bytes]] = []
        self.associations = 0
        self.originators: list[tuple[str, int]] = []
        self._answers = answers or (lambda _event, _n: 0)
        ae = AE(ae_title=title)
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(context.abstract_syntax, syntaxes or [EXPLICIT, IMPLICIT])
        ae.add_supported_context("1.2.840.10008.1.1", [IMPLICIT])
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_ACCEPTED, self._accepted)]
        self._server = listen(ae, 0, handlers)
        self.port = self._server.socket.getsockname()[1]

    def _accepted(self, _event: Any) -> None:
        self.associations += 1

    def _store(self, event: Any) -> int:
        request = event.request
        self.received.append((str(request.AffectedSOPInstanceUID), str(event.context.transfer_syntax), request.DataSet.getvalue()))
        self.originators.append((request.MoveOriginatorApplicationEntityTitle, request.MoveOriginatorMessageID))
        return int(self._answers(event, len(self.received)))

    def close(self) -> None:
        with suppress(Exception):
            self._server.shutdown()


def final_counts(output: str) -> dict[str, int]:
    """The counters of dcmtk's last response."""
    found = re.findall(r"Number of (\w+) Suboperations\s*:\s*(\d+)", output)
    return {name: int(number) for name, number in found}


def received(folder: Path) -> dict[str, pydicom.FileDataset]:
    """What a dcmtk client wrote, by SOP Instance UID."""
    found = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    return {str(one.SOPInstanceUID): one for one in found}
