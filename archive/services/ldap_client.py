"""A connection to a directory: TLS before anything is said, bounds on time and size, referrals followed nowhere."""

from __future__ import annotations

import secrets
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from archive.config import Config
from archive.errors import Unavailable
from archive.services import ldap_messages as messages
from archive.services.ldap_messages import Entry, Malformed, Message

_MOST_ENTRIES = 1000


class DirectoryAway(Unavailable):
    """The directory does not answer, or not as one; the message is for the log."""

    code = "directory-away"


class Refused(DirectoryAway):
    """It answers at once, but not this: about somebody else it may, and nobody has to wait for it."""


class CutOff(Refused):
    """There is more than it tells at once."""


class Connection:
    """One connection; each request waits for its answer, all of them together for a limited time."""

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        """Begin on a connected socket."""
        self._socket = sock
        self._deadline = time.monotonic() + 2 * timeout_s
        self._held = bytearray()
        self._number = 0

    def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        """Go on over TLS.

        Raises:
            DirectoryAway: it will not; nothing has been said yet.
        """
        answer = self._ask(messages.start_tls(self._next()))
        if answer.tag != messages.EXTENDED_RESPONSE or answer.result != messages.SUCCESS or self._held:
            message = "it does not go on over TLS"
            raise DirectoryAway(message)
        self._socket = context.wrap_socket(self._socket, server_hostname=host)

    def bind(self, dn: str, password: str) -> bool:
        """Whether a name and a password are right.

        Raises:
            DirectoryAway: it says neither yes nor no.
        """
        answer = self._ask(messages.bind(self._next(), dn, password))
        if answer.tag != messages.BIND_RESPONSE:
            raise Malformed
        return answer.result == messages.SUCCESS

    def search(
        self, base: str, wanted: bytes, attributes: Sequence[str], *, only: bool = False, limit: int = 2, whole: bool = False
    ) -> list[Entry]:
        """Return what is found; what another server would know is not asked for.

        Raises:
            DirectoryAway. CutOff: the `whole` of it is wanted, and it is more than the limit, here or there.
        """
        number = self._next()
        seconds = max(1, int(self._deadline - time.monotonic()))
        self._send(messages.search(number, base, wanted, attributes, only=only, limit=limit, seconds=seconds))
        found: list[Entry] = []
        while True:
            answer = self._receive(number)
            if answer.tag == messages.SEARCH_ENTRY and len(found) < _MOST_ENTRIES:
                found.append(messages.entry(answer))
            elif answer.tag == messages.SEARCH_DONE:
                # More than asked for is told apart from none by what came.
                if whole and answer.result == messages.SIZE_LIMIT_EXCEEDED:
                    message = "a search finds more than is told at once"
                    raise CutOff(message)
                if answer.result not in (
                    messages.SUCCESS, messages.NO_SUCH_OBJECT, messages.REFERRAL, messages.SIZE_LIMIT_EXCEEDED
                ):
                    message = f"a search ended with {answer.result}"
                    raise (DirectoryAway if answer.result == messages.TIME_LIMIT_EXCEEDED else Refused)(message)
                return found
            elif answer.tag != messages.SEARCH_REFERENCE:
                raise Malformed

    def close(self) -> None:
        """Say farewell and go."""
        with suppress(OSError):
            self._socket.sendall(messages.unbind(self._next()))
        with suppress(OSError):
            self._socket.close()

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _ask(self, request: bytes) -> Message:
        self._send(request)
        return self._receive(self._number)

    def _send(self, request: bytes) -> None:
        self._wait()
        self._socket.sendall(request)

    def _receive(self, number: int) -> Message:
        while not (count := messages.needed(self._held)) or len(self._held) < count:
            self._wait()
            piece = self._socket.recv(65536)
            if not piece:
                message = "it closed the connection"
                raise DirectoryAway(message)
            self._held += piece
        data = bytes(self._held[:count])
        del self._held[:count]
        answer = messages.read(data)
        if answer.number != number:
            message = "it said farewell" if answer.number == 0 else "it answered something else"
            raise DirectoryAway(message)
        return answer

    def _wait(self) -> None:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            message = "it takes too long"
            raise DirectoryAway(message)
        self._socket.settimeout(left_s)


@contextmanager
def connected(config: Config) -> Iterator[Connection]:
    """Connect as the configuration says, over TLS unless that names this machine itself.

    Raises:
        DirectoryAway.
    """
    section = config.ldap
    parts = urlsplit(section.url)
    host, secure = parts.hostname or "", parts.scheme == "ldaps"
    try:
        sock = socket.create_connection((host, parts.port or (636 if secure else 389)), section.timeout_s)
    except (OSError, UnicodeError) as error:
        message = f"no connection: {type(error).__name__}"
        raise DirectoryAway(message) from None
    connection: Connection | None = None
    try:
        context = _context(str(config.resolve(section.ca_file)) if section.ca_file else None)
        if secure:
            sock = context.wrap_socket(sock, server_hostname=host)
        connection = Connection(sock, section.timeout_s)
        if section.starttls and not secure:
            connection.start_tls(context, host)
        yield connection
    except ssl.SSLError as error:
        message = f"TLS: {error.reason or type(error).__name__}"
        raise DirectoryAway(message) from None
    except (OSError, Malformed) as error:
        message = f"no answer: {type(error).__name__}"
        raise DirectoryAway(message) from None
    finally:
        if connection is None:
            sock.close()
        else:
            connection.close()


def _context(ca_file: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def nobody(base: str) -> str:
    """Return a distinguished name that nothing has, for work that must look like any other."""
    return f"cn={secrets.token_hex(16)},{base}" if base else f"cn={secrets.token_hex(16)}"


def secret_of(path: Path) -> str:
    """Return the first line of a file that holds a password.

    Raises:
        DirectoryAway: there is none.
    """
    try:
        found = path.read_text(encoding="utf-8").split("\n", 1)[0].strip("\r")
    except (OSError, UnicodeDecodeError):
        found = ""
    if not found:
        message = "ldap.bind_password_file holds no password"
        raise DirectoryAway(message)
    return found
