"""What the archive listens on: opened by the supervisor, with the ports they really have in the configuration."""

from __future__ import annotations

import socket
from dataclasses import dataclass

import msgspec

from archive.config import Config
from archive.serve import listeners


@dataclass(frozen=True, slots=True)
class Sockets:
    """What the archive listens on; `http`, `viewer` and `events` only hold their port for granian."""

    http: socket.socket
    viewer: socket.socket | None
    dimse_tls: socket.socket | None
    dimse_plain: socket.socket | None
    events: socket.socket | None = None

    def refuse(self) -> None:
        """Let go of the DIMSE ports: who connects while workers drain is refused, and not left to wait for nobody."""
        for made in (self.dimse_tls, self.dimse_plain):
            if made is not None:
                made.close()

    def close(self) -> None:
        """Close them all."""
        self.refuse()
        self.http.close()
        for made in (self.viewer, self.events):
            if made is not None:
                made.close()


def open_sockets(config: Config, *, viewer: bool = False) -> tuple[Sockets, Config]:
    """Return the sockets, one for a viewer when there is one, and the configuration with the ports they really have.

    Raises:
        ConfigurationError: an address is not ours or taken.
    """
    made: list[socket.socket] = []

    def keep(one: socket.socket) -> socket.socket:
        made.append(one)
        return one

    tls, plain = config.dimse.tls, config.dimse.plain
    try:
        web = keep(listeners.reserve(config.http.host, config.http.port, "http"))
        beside = keep(listeners.reserve(config.http.host, config.viewer.port, "viewer")) if viewer else None
        telling = keep(listeners.reserve(config.http.host, config.events.port, "events")) if config.events.enabled else None
        secure = keep(listeners.listen(tls.host, tls.port, "dimse.tls")) if tls.enabled else None
        open_one = keep(listeners.listen(plain.host, plain.port, "dimse.plain")) if plain.enabled else None
    except BaseException:
        for one in made:
            one.close()
        raise
    real = with_ports(config, _port(web), _port(secure), _port(open_one), viewer=_port(beside), events=_port(telling))
    return Sockets(web, beside, secure, open_one, telling), real


def with_ports(config: Config, http: int, dimse_tls: int, dimse_plain: int, *, viewer: int = 0, events: int = 0) -> Config:
    """Return the configuration with real ports in place of 0, in public_url too when it names the web listener itself."""
    replace = msgspec.structs.replace
    public_url = config.archive.public_url
    if config.http.port == 0:
        scheme, _, rest = public_url.partition("://")
        host, slash, path = rest.partition("/")
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        public_url = f"{scheme}://{name}:{http}{slash}{path}"
    return replace(
        config,
        archive=replace(config.archive, public_url=public_url),
        http=replace(config.http, port=http),
        viewer=replace(config.viewer, port=viewer or config.viewer.port),
        events=replace(config.events, port=events or config.events.port),
        dimse=replace(
            config.dimse,
            tls=replace(config.dimse.tls, port=dimse_tls or config.dimse.tls.port),
            plain=replace(config.dimse.plain, port=dimse_plain or config.dimse.plain.port),
        ),
    )


def _port(made: socket.socket | None) -> int:
    return int(made.getsockname()[1]) if made is not None else 0
