"""Requests that the archive sends by itself: to addresses somebody named, so to no more places than the operator allows.

The name is resolved once, every address it has must be allowed, and the connection goes to the address that was looked at: a name
that points elsewhere a moment later gains nothing. Redirects are not followed.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from archive.errors import InvalidRequest, Unavailable

TIMEOUT_S = 10.0
DEADLINE_S = 20.0
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Undeliverable(Unavailable):
    """The other side cannot be reached, may not be, or did not answer 2xx; the message is fit to be kept and shown."""

    code = "undeliverable"


@dataclass(frozen=True, slots=True)
class Limits:
    """Where requests may go: every global address over TLS, and what lies in `networks`; plain HTTP to loopback in them alone."""

    networks: tuple[str, ...] = ()
    ca_file: str = ""


@dataclass(frozen=True, slots=True)
class _Target:
    secure: bool
    host: str
    port: int
    path: str


def check(url: str, limits: Limits) -> None:
    """Refuse an address that could never be sent to.

    Raises:
        InvalidRequest.
    """
    _target(url, limits)


def post(url: str, body: bytes, headers: Mapping[str, str], limits: Limits) -> int:
    """Send a request and return its 2xx status.

    Raises:
        InvalidRequest, Undeliverable.
    """
    return _asked(url, body, headers, limits, 0)[0]


def fetch(url: str, limits: Limits, *, most_bytes: int, headers: Mapping[str, str] | None = None, form: bytes | None = None) -> bytes:
    """Return the body of a 2xx answer to a GET, or to a POST of a form.

    Raises:
        InvalidRequest, Undeliverable: also for a body longer than `most_bytes`.
    """
    kind = {} if form is None else {"Content-Type": "application/x-www-form-urlencoded"}
    return _asked(url, form, {"Accept": "application/json", "User-Agent": "strongroom", **kind, **(headers or {})}, limits, most_bytes)[1]


def _asked(url: str, body: bytes | None, headers: Mapping[str, str], limits: Limits, most_bytes: int) -> tuple[int, bytes]:
    target = _target(url, limits)
    address = _resolved(target, limits)
    try:
        sock = socket.create_connection((str(address), target.port), TIMEOUT_S)
    except OSError as error:
        raise _failed(f"no connection: {error.strerror or type(error).__name__}") from None
    held, over = sock.dup(), threading.Event()  # a TLS session takes the socket itself over
    watchdog = threading.Timer(DEADLINE_S, _cut, [held, over])  # one that answers byte by byte is not waited for
    watchdog.daemon = True
    watchdog.start()
    try:
        answer = _exchange(sock, target, body, headers, limits, most_bytes)
    except ssl.SSLError as error:
        raise _failed(f"TLS: {error.reason or type(error).__name__}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _failed(f"no answer: {type(error).__name__}") from None
    finally:
        watchdog.cancel()
        held.close()
        sock.close()
    if over.is_set():
        raise _failed("no answer in time")
    return answer


def _exchange(
    sock: socket.socket, target: _Target, body: bytes | None, headers: Mapping[str, str], limits: Limits, most_bytes: int
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(target.host, target.port, timeout=TIMEOUT_S)
    if target.secure:
        context = ssl.create_default_context(cafile=limits.ca_file or None)
        sock = context.wrap_socket(sock, server_hostname=target.host)
    connection.sock = sock
    try:
        default = {True: 443, False: 80}[target.secure]
        host = f"[{target.host}]" if ":" in target.host else target.host
        named = host if target.port == default else f"{host}:{target.port}"
        connection.request("GET" if body is None else "POST", target.path, body, {**headers, "Host": named, "Connection": "close"})
        answer = connection.getresponse()
        status, held = answer.status, answer.read(most_bytes + 1) if most_bytes else b""
    finally:
        connection.close()
    if not 200 <= status < 300:
        raise _failed(f"answered {status}")
    if len(held) > most_bytes:
        raise _failed("the answer is too long")
    return status, held


def _cut(sock: socket.socket, over: threading.Event) -> None:
    over.set()
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _target(url: str, limits: Limits) -> _Target:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    host = parts.hostname or ""
    plain = any(ord(character) <= 32 or ord(character) > 126 for character in url)
    if parts.scheme not in {"https", "http"} or not host or plain or "@" in parts.netloc or parts.fragment or len(url) > 2000:
        message = "the address is not one to send to"
        raise InvalidRequest(message, remedy="write it as https://host/path, without user name and fragment")
    if parts.scheme == "http" and not any(_network(one).network_address.is_loopback for one in limits.networks):
        message = "the address is not https"
        raise InvalidRequest(message, remedy="use https; http only goes to loopback networks named in [webhooks] networks")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return _Target(parts.scheme == "https", host, port or (443 if parts.scheme == "https" else 80), path)


def _resolved(target: _Target, limits: Limits) -> Address:
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise _failed("the name does not resolve") from None
    addresses = [ipaddress.ip_address(str(one[4][0]).partition("%")[0]) for one in found]
    if not addresses or not all(allowed(one, limits.networks, secure=target.secure) for one in addresses):
        message = "the name leads to an address that is not allowed"
        raise Undeliverable(message, remedy="name its network in [webhooks] networks if it is meant")
    return addresses[0]


def allowed(address: Address, networks: Sequence[str], *, secure: bool) -> bool:
    """Return whether a request may go to an address."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    real: Address = mapped or address
    named = any(real.version == network.version and real in network for network in map(_network, networks))
    if not secure:
        return named and real.is_loopback
    return named or _is_global(real)


def _is_global(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and (address.sixtofour or address.teredo or address in _NAT64 or address.is_site_local):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(text, strict=False)


def _failed(why: str) -> Undeliverable:
    return Undeliverable(why, remedy="look at the receiver; it is tried again")
