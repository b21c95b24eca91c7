"""TLS of DIMSE: DICOM's BCP 195 profile (PS3.15 B, RFC 9325): TLS 1.2 and 1.3, ECDHE and AES-GCM, certificates on both sides.

Who a peer is, the table of peers decides by the SHA-256 of its certificate (PS3.15 leaves that to the node), never a chain of
issuers: certificates of the built-in CA and foreign ones that were enrolled are alike. So the handshake asks for less and proves it
all: a certificate is presented, within its dates, fit for a client, of a key that is not too weak, and the peer holds its private
key. Then a stranger can be told no by a clean A-ASSOCIATE-RJ, and its certificate be shown to whoever may enrol it.

Python's ssl has no hook to accept a certificate that no trust anchor signed: with CERT_REQUIRED an unknown one ends in an alert,
with CERT_NONE none is asked for. What it has is the message callback of an SSLContext, called with the peer's Certificate message
before that is verified; the certificate in it becomes a trust anchor (X509_V_FLAG_PARTIAL_CHAIN) of a context made for this
connection only. Where an interpreter lacks the callback, certificates of the built-in CA still pass, and foreign ones end in an
alert. A peer without a certificate, with one out of its dates, or one for servers only, always ends in an alert and is recorded by
its address.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archive.config import Config
from archive.dimse.secured import Secured

CIPHERS = "ECDHE+AESGCM"  # TLS 1.2; the three of TLS 1.3 are all authenticated encryption
_CERTIFICATE = 11  # HandshakeType (RFC 8446 4)
_TLS_1_3 = 0x0304


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The archive's own certificate and key, used on both sides, and the built-in CA's certificate."""

    certificate: Path
    key: Path
    authority: Path

    @classmethod
    def of(cls, config: Config) -> TlsFiles:
        """Return where the built-in CA put them."""
        folder = config.tls_dir
        return cls(folder / "server.pem", folder / "server.key", folder / "ca.pem")


class HandshakeFailed(Exception):
    """The handshake did not succeed; `why` is in words of our own, `certificate` (DER) what the peer presented."""

    def __init__(self, why: str, certificate: bytes | None = None) -> None:
        """Keep both."""
        super().__init__(why)
        self.why = why
        self.certificate = certificate


def server_context(files: TlsFiles, presented: Callable[[bytes], bool]) -> ssl.SSLContext:
    """Return a context for one incoming connection.

    `presented` is called with the client's certificate (DER) and says whether it may serve as its own trust anchor.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _profile(context, files)
    context.num_tickets = 0  # associations are long and rare; a ticket would outlive a removed peer
    context.options |= ssl.OP_NO_TICKET
    _anchor(context, presented)
    return context


def client_context(files: TlsFiles, pinned_sha256: bytes | None) -> ssl.SSLContext:
    """Return a context for outgoing connections: the peer's certificate is of the built-in CA, or exactly the pinned one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # a modality has a certificate for itself, not for a name in DNS
    _profile(context, files)
    _anchor(context, lambda certificate: pinned_sha256 is not None and hashlib.sha256(certificate).digest() == pinned_sha256)
    return context


def handshake(connection: socket.socket, files: TlsFiles, *, timeout_s: float) -> Secured:
    """Do the server's side of the handshake within `timeout_s` altogether; the socket returned owns the connection.

    Raises:
        HandshakeFailed: the connection is closed then.
    """
    seen: list[bytes] = []

    def presented(certificate: bytes) -> bool:
        seen.append(certificate)
        return True

    deadline = time.monotonic() + timeout_s
    try:
        context = server_context(files, presented)
    except (OSError, ssl.SSLError) as error:
        connection.close()
        raise HandshakeFailed("the archive's own certificate cannot be read") from error
    try:
        return Secured.handshake(connection, context, deadline=deadline)
    except (OSError, ValueError) as error:
        connection.close()
        raise HandshakeFailed(_why(error), seen[0] if seen else None) from error
    finally:
        forget_callback(context)


def _profile(context: ssl.SSLContext, files: TlsFiles) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.load_cert_chain(files.certificate, files.key)
    context.load_verify_locations(files.authority)
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION


def _anchor(context: ssl.SSLContext, presented: Callable[[bytes], bool]) -> None:
    def on_message(_connection: Any, direction: str, version: int, _content: int, message: int, data: bytes) -> None:
        if direction != "read" or message != _CERTIFICATE:
            return
        certificate = _first_certificate(data, tls_1_3=int(version) == _TLS_1_3)
        if certificate and presented(certificate):
            try:
                context.load_verify_locations(cadata=certificate)
            except ssl.SSLError:
                return  # not a certificate: the handshake finds the same

    if hasattr(context, "_msg_callback"):
        context._msg_callback = on_message  # noqa: SLF001 # the only hook there is, see above; tests/dimse/test_tls.py holds it


def forget_callback(context: ssl.SSLContext) -> None:
    """Break the cycle of context and callback, and spare the data records their callback."""
    if hasattr(context, "_msg_callback"):
        context._msg_callback = None  # noqa: SLF001 # as above


def _first_certificate(data: bytes, *, tls_1_3: bool) -> bytes:
    """Return the end entity's certificate of a Certificate message (RFC 8446 4.4.2, RFC 5246 7.4.2), empty if there is none."""
    offset = 4  # handshake header
    if tls_1_3:
        if offset >= len(data):
            return b""
        offset += 1 + data[offset]  # certificate_request_context
    offset += 3  # length of the list
    length = int.from_bytes(data[offset : offset + 3], "big")
    certificate = data[offset + 3 : offset + 3 + length]
    return certificate if len(certificate) == length else b""


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no TLS handshake in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or "").replace("_", " ").lower()
        if "did not return a certificate" in reason:
            return "no client certificate"
        if reason in {"http request", "wrong version number", "unknown protocol", "unsupported protocol", "no protocols available"}:
            return "not TLS 1.2 or 1.3"
        return f"TLS failed: {reason}" if reason else "TLS failed"
    return "the connection was lost during the TLS handshake"
