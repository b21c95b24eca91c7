"""Associations out: C-ECHO to a peer, for `archive peer test`."""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ASSOCIATE

from archive.config import Config
from archive.dimse import contexts, tls, turns
from archive.dimse.pdus import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from archive.dimse.scp import configure
from archive.dimse.tls import TlsFiles

_REJECTIONS: dict[tuple[int | None, int | None], str] = {
    (1, 3): "it does not know this archive's AE title",
    (1, 7): "it does not answer to that AE title",
    (1, 2): "it does not speak this application context",
    (3, 1): "it is busy",
    (3, 2): "it has too many associations",
}


_WAITS = 3
"""An association has one wait for its acceptance, one for the answer, and one for its release."""


class _OtherCertificate(Exception):
    """Somebody else answers at a peer's address."""


@dataclass(frozen=True, slots=True)
class EchoResult:
    """Whether a peer answered C-ECHO, and in plain words what happened."""

    answered: bool
    text: str


class Node(Protocol):
    """What of an opened archive is needed here."""

    @property
    def config(self) -> Config:
        """Its configuration."""


def echo(node: Node, peer: Mapping[str, Any]) -> dict[str, Any]:
    """Call a peer as `Peers.get` shows it: over TLS with the archive's own certificate, or plain for a peer that comes so.

    Returns:
        `ok`, `peer`, and `text`: what happened, in plain words.
    """
    name = peer["name"]
    if not peer["host"] or not peer["port"]:
        return {"ok": False, "peer": name, "text": f"{name} has no address; add it again with --address HOST:PORT"}
    digest = peer["certificate_sha256"]
    result = call(
        host=peer["host"],
        port=peer["port"],
        calling_ae_title=node.config.dimse.ae_title,
        called_ae_title=peer["ae_titles"][0],
        files=TlsFiles.of(node.config) if peer["tls"] else None,
        pinned_sha256=bytes.fromhex(digest) if digest else None,
    )
    return {"ok": result.answered, "peer": name, "text": result.text}


def call(
    *,
    host: str,
    port: int,
    calling_ae_title: str,
    called_ae_title: str,
    files: TlsFiles | None,
    pinned_sha256: bytes | None = None,
    timeout_s: float = 10.0,
) -> EchoResult:
    """Associate, send C-ECHO and release; over TLS with the archive's own certificate when `files` are given.

    The peer's certificate must be the one bound to it; of a peer without one, any of the built-in CA.
    """
    configure()
    where = f"{host}:{port}"
    try:
        probe = socket.create_connection((host, port), timeout=timeout_s)
    except OSError as error:
        return EchoResult(False, f"nothing accepts connections at {where}: {error.strerror or 'no answer in time'}")
    secured = ""
    if files is not None:
        try:
            secured = _check_tls(probe, files, pinned_sha256, timeout_s)
        except _OtherCertificate:
            return EchoResult(False, f"{where} shows another certificate than the one bound to this peer")
        except OSError as error:
            return EchoResult(False, _tls_trouble(where, error))
    else:
        probe.close()
    with _within(_WAITS * timeout_s) as handlers:
        association = _associate(
            host, port, calling=calling_ae_title, called=called_ae_title, files=files, pinned_sha256=pinned_sha256, timeout_s=timeout_s,
            handlers=handlers,
        )
        if not association.is_established:
            return EchoResult(False, _refusal(where, called_ae_title, association))
        turns.settle(association)
        try:
            answer = association.send_c_echo()
        finally:
            association.release()
    if answer.get("Status") == 0:
        return EchoResult(True, f"{called_ae_title} at {where} answered C-ECHO{secured}")
    return EchoResult(False, f"{called_ae_title} at {where} took the association but did not answer C-ECHO")


@contextmanager
def _within(limit_s: float) -> Iterator[list[evt.EventHandlerType]]:
    """Yield the event handlers of an association that ends at the limit: the library waits for the rest of a PDU without one."""
    opened: list[socket.socket] = []

    def end() -> None:
        for connection in opened:
            with suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)  # under the TLS session, which a thread is reading from

    timer = threading.Timer(limit_s, end)
    timer.start()
    try:
        yield [(evt.EVT_CONN_OPEN, lambda event: opened.append(event.assoc.dul.socket.socket))]
    finally:
        timer.cancel()


def _check_tls(probe: socket.socket, files: TlsFiles, pinned_sha256: bytes | None, timeout_s: float) -> str:
    probe.settimeout(timeout_s)
    with tls.client_context(files, pinned_sha256).wrap_socket(probe) as secured:
        certificate = secured.getpeercert(binary_form=True) or b""
        if pinned_sha256 is not None and hashlib.sha256(certificate).digest() != pinned_sha256:
            raise _OtherCertificate
        whose = "a certificate of the built-in CA" if pinned_sha256 is None else "the certificate bound to it"
        return f" over {secured.version()} with {whose}"


def _associate(
    host: str, port: int, *, calling: str, called: str, files: TlsFiles | None, pinned_sha256: bytes | None, timeout_s: float,
    handlers: list[evt.EventHandlerType],
) -> Association:
    ae = AE(ae_title=calling)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = timeout_s
    ae.add_requested_context(contexts.VERIFICATION, sorted(contexts.NATIVE))
    tls_args = None if files is None else (tls.client_context(files, pinned_sha256), host)
    return ae.associate(host, port, ae_title=called, tls_args=tls_args, evt_handlers=handlers)


def _tls_trouble(where: str, error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{where} shows a certificate that is neither bound to this peer nor of the built-in CA ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or "TLS failed").replace("_", " ").lower()
        return f"{where} does not speak TLS 1.2 or 1.3 with this archive ({reason})"
    return f"{where} closed the connection during the TLS handshake"


def _refusal(where: str, called: str, association: Association) -> str:
    # The library takes a connection that was rejected and closed before it looked for one that failed: the answer lies there unread.
    answer = association.acceptor.primitive or association.dul.receive_pdu(wait=False)
    if isinstance(answer, A_ASSOCIATE) and answer.result:
        why = _REJECTIONS.get((answer.result_source, answer.diagnostic), "it gave no reason")
        return f"{called} at {where} rejected the association: {why}"
    if association.is_aborted:
        return f"{called} at {where} aborted the association; over TLS that is also how a refused certificate looks"
    return f"{called} at {where} did not answer the association request in time"
