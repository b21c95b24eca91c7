"""The listening sockets: made once by the supervisor, shared by the workers that accept on them."""

from __future__ import annotations

import http.client
import socket
import ssl

from archive.errors import ConfigurationError

BACKLOG = 1024
PROBE_S = 2.0


def listen(host: str, port: int, key: str) -> socket.socket:
    """Return a TCP socket that listens at `host` and `port` (0: any free one); `key` names the setting in errors.

    Raises:
        ConfigurationError: the address is not ours, or another program listens there.
    """
    made = _bound(host, port, key)
    made.listen(BACKLOG)
    made.set_inheritable(True)
    return made


def reserve(host: str, port: int, key: str) -> socket.socket:
    """Return a socket that holds `port` (0: any free one) without listening, so that granian's workers can bind it beside us.

    A bound socket that does not listen gets no connections (SO_REUSEPORT groups hold listeners only).

    Raises:
        ConfigurationError: the address is not ours, or another program listens there.
    """
    if port:
        _bound(host, port, key).close()  # refused when anyone listens, also one that would share the port
    return _bound(host, port, key, share=True)


def _bound(host: str, port: int, key: str, *, share: bool = False) -> socket.socket:
    made = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(address)
    except OSError as error:
        if made is not None:
            made.close()
        message = f"cannot listen at {host} port {port}: {error.strerror or error}"
        remedy = f"set {key}.host and {key}.port to a free address of this machine, or stop what listens there"
        raise ConfigurationError(message, remedy=remedy) from error
    return made


def answers(host: str, port: int, *, tls: bool) -> bool:
    """Return whether the web listener answers /healthz now."""
    target = reachable(host)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # the question is whether our own workers answer, not who they are
        context.verify_mode = ssl.CERT_NONE
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(target, port, timeout=PROBE_S, context=context)
    else:
        connection = http.client.HTTPConnection(target, port, timeout=PROBE_S)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def reachable(host: str) -> str:
    """Return an address to connect to for a listener bound to `host`."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 # read, not bound
