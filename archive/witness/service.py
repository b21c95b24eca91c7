"""The witness protocol over HTTP: one call that cosigns, two that tell.

Source: c2sp.org/tlog-witness.
"""

from __future__ import annotations

import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import AF_INET, AF_INET6, SHUT_RDWR, socket
from typing import Any

from archive.errors import ArchiveError, ConfigurationError, LedgerBroken
from archive.keys.sealing import decode_base64
from archive.ledger import notes
from archive.ledger.notes import Parsed, Verifier
from archive.witness.memory import Conflict, Memory, NotConsistent

MAX_BODY_BYTES = 1 << 17
MAX_PROOF_LINES = 63
TIMEOUT_S = 10.0
CONNECTIONS = 32
OF_ONE_ADDRESS = 8
CONNECTION_S = 60.0
A_MINUTE = 120
"""Requests of one address: an archive sends one each few minutes."""

_OLD = re.compile(r"old (0|[1-9][0-9]{0,18})")
_ORIGIN = re.compile(r"/checkpoint/([0-9a-f]{64})")
TEXT = "text/plain; charset=utf-8"
Answer = tuple[int, str, str]


class Witness:
    """Answers requests; knows the logs' keys and the memory, and nothing of sockets."""

    def __init__(self, memory: Memory, logs: Sequence[Verifier], clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """`logs` are the keys whose checkpoints are cosigned."""
        self._memory = memory
        self._logs = list(logs)
        self._clock = clock

    def get(self, path: str) -> Answer:
        """Tell who this is, or what was cosigned last of a log (named by the SHA-256 of its origin)."""
        if path == "/":
            return 200, TEXT, f"{self._memory.cosigner.verifier}\n"
        named = _ORIGIN.fullmatch(path)
        known = self._memory.newest(named[1]) if named else None
        if known is None or not known.size:
            return 404, TEXT, "there is nothing here\n"
        return 200, TEXT, known.note

    def add_checkpoint(self, body: bytes) -> Answer:
        """Cosign a checkpoint that continues what is remembered."""
        try:
            old, proof, note = _read(body)
            parsed = notes.parse(note, extensions=True)
        except (ValueError, LedgerBroken):
            return 400, TEXT, "this is not a request to add a checkpoint\n"
        return self._refusal(parsed, old) or self._remember(old, proof, note)

    def _refusal(self, parsed: Parsed, old: int) -> Answer | None:
        keys = [key for key in self._logs if key.name == parsed.origin]
        if not keys:
            return 404, TEXT, "this log is not known here\n"
        if not _signed(parsed, keys):
            return 403, TEXT, "the checkpoint is not signed by a known key of its log\n"
        if old > parsed.size:
            return 400, TEXT, "the old size is larger than the checkpoint's\n"
        return None

    def _remember(self, old: int, proof: Sequence[bytes], note: bytes) -> Answer:
        try:
            return 200, TEXT, self._memory.add(old, proof, note, self._clock())
        except Conflict as known:
            return 409, "text/x.tlog.size", f"{known.size}\n"
        except NotConsistent:
            return 422, TEXT, "the proof does not show that the checkpoint continues the one cosigned last\n"


def _read(body: bytes) -> tuple[int, list[bytes], bytes]:
    head, blank, note = body.partition(b"\n\n")
    lines = head.decode("ascii").split("\n")
    old = _OLD.fullmatch(lines[0])
    if not blank or old is None or len(lines) > MAX_PROOF_LINES + 1:
        raise ValueError
    proof = [decode_base64(line) for line in lines[1:]]
    if any(len(part) != 32 for part in proof):
        raise ValueError
    return int(old[1]), proof, note


def _signed(parsed: Parsed, keys: Sequence[Verifier]) -> bool:
    """Whether a known key of the log signed, and none of them did wrongly."""
    known = {(key.name, key.key_id): key for key in keys}
    count = 0
    for name, key_id, signature in parsed.signatures:
        key = known.get((name, key_id))
        if key is not None:
            try:
                notes.verify(key, signature, parsed)
            except LedgerBroken:
                return False
            count += 1
    return bool(count)


class _Rate:
    """So many requests a minute of each address; it forgets those that are quiet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used: dict[str, tuple[float, float]] = {}

    def take(self, address: str, now: float) -> bool:
        with self._lock:
            if len(self._used) > 10_000:
                self._used.clear()
            left, last = self._used.get(address, (float(A_MINUTE), now))
            left = min(float(A_MINUTE), left + (now - last) * A_MINUTE / 60)
            allowed = left >= 1
            self._used[address] = (left - 1 if allowed else left, now)
            return allowed


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "strongroom-witness"
    sys_version = ""
    timeout = TIMEOUT_S
    server: Server

    def do_GET(self) -> None:
        """Tell."""
        if self._may():
            self._answer(*self.server.witness.get(self.path))

    def do_POST(self) -> None:
        """Cosign."""
        if not self._may():
            return
        if self.path != "/add-checkpoint":
            self._refuse(404, "there is nothing here\n")
            return
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,9}", length) or self.headers.get("Transfer-Encoding"):
            self._refuse(411, "say how long the request is\n")
        elif int(length) > MAX_BODY_BYTES:
            self._refuse(413, "the request is too long\n")
        else:
            body = self.rfile.read(int(length))
            try:
                answer = self.server.witness.add_checkpoint(body) if len(body) == int(length) else (400, TEXT, "cut short\n")
            except ArchiveError:
                answer = (500, TEXT, "the checkpoint could not be kept\n")
            self._answer(*answer)

    def _may(self) -> bool:
        if self.server.rate.take(str(self.client_address[0]), time.monotonic()):
            return True
        self._refuse(429, "too many requests\n")
        return False

    def _refuse(self, status: int, text: str) -> None:
        self.close_connection = True  # what was not read would be taken for the next request
        self._answer(status, TEXT, text)

    def _answer(self, status: int, content_type: str, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        if status == 429:
            self.send_header("Retry-After", "60")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 # the base's name
        """Nothing is logged of each request."""


class Server(ThreadingHTTPServer):
    """Listens; each connection has a thread and, with certificates, its TLS handshake there."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = CONNECTIONS

    def __init__(self, address: tuple[str, int], witness: Witness, tls: ssl.SSLContext | None = None) -> None:
        """Listen at an address; port 0 is any free one."""
        self.address_family = AF_INET6 if ":" in address[0] else AF_INET
        self.witness = witness
        self.rate = _Rate()
        self._tls = tls
        self._turn = threading.Lock()
        self._open: Counter[str] = Counter()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread, or close it when there are too many, of all or of its address."""
        host = str(client_address[0])
        with self._turn:
            full = self._open.total() >= CONNECTIONS or self._open[host] >= OF_ONE_ADDRESS
            if not full:
                self._open[host] += 1
        if full:
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # there is no thread to give it back
            self._close(host)
            raise

    def _close(self, host: str) -> None:
        with self._turn:
            self._open[host] -= 1
            if not self._open[host]:
                del self._open[host]

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection, for a minute at most."""
        try:
            self._serve(request, client_address)
        except OSError:
            self.shutdown_request(request)
        finally:
            self._close(str(client_address[0]))

    def _serve(self, request: socket, client_address: Any) -> None:
        with request.dup() as handle:  # the request's own goes into TLS
            watchdog = threading.Timer(CONNECTION_S, _cut, [handle])
            watchdog.daemon = True
            watchdog.start()
            try:
                super().process_request_thread(self._secured(request), client_address)
            finally:
                watchdog.cancel()

    def _secured(self, request: socket) -> socket:
        request.settimeout(TIMEOUT_S)
        return request if self._tls is None else self._tls.wrap_socket(request, server_side=True)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that goes away is nothing to tell of."""


def _cut(handle: socket) -> None:
    """End a connection that sends byte by byte."""
    with suppress(OSError):
        handle.shutdown(SHUT_RDWR)


def tls_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Return the TLS settings for certificate files, or None for plain HTTP: what counts is signed.

    Raises:
        ConfigurationError: one of two files, or files that are not a certificate and its key.
    """
    if certificate is None and key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if certificate is None or key is None:
            raise ValueError
        context.load_cert_chain(certificate, key)
    except (OSError, ValueError) as error:
        message = "the certificate and its key cannot be used"
        raise ConfigurationError(message, remedy="give both --certificate and --key, in PEM, the key without a passphrase") from error
    return context


def read_logs(given: Sequence[str]) -> list[Verifier]:
    """Return the keys named on the command line: verifier keys, or files with one in each line.

    Raises:
        ConfigurationError: none, or one that is no key of a log.
    """
    found: list[Verifier] = []
    for one in given:
        lines = [one]
        if "+" not in one:
            try:
                lines = Path(one).read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                message = f"{one} is neither a verifier key nor a file that can be read"
                raise ConfigurationError(message, remedy="give what 'archive ledger keys' prints, or a file with it") from error
        for line in lines:
            text = line.strip()
            if text and not text.startswith("#") and not text.split("+", 1)[0].endswith("/instance"):
                try:
                    found.append(Verifier.parse(text))
                except LedgerBroken as error:
                    raise ConfigurationError(error.message, remedy="give what 'archive ledger keys' prints") from error
    if not found:
        message = "no log is named"
        raise ConfigurationError(message, remedy="give --log with what 'archive ledger keys' prints")
    return found
