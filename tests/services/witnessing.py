"""A witness that answers in this process, and an archive that knows it."""

from __future__ import annotations

import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from archive.config import Config, WitnessAt, parse
from archive.config import Witness as Settings
from archive.ledger.notes import Verifier
from archive.node import Node
from archive.witness import memory, service
from tests.ports import free_port
from tests.services import archives

NAME = "nas.example/witness"


class Witness:
    """One that can be stopped, started and asked what it knows."""

    def __init__(self, folder: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.key = memory.make(folder, NAME)
        self.folder, self.clock = folder, clock
        self.logs: list[str] = []
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self, *logs: str) -> Iterator[Witness]:
        """Serve for these logs, or those of the last time."""
        self.logs = list(logs) or self.logs
        held = memory.Memory(self.folder)
        keys = [Verifier.parse(one) for one in self.logs if not one.split("+")[0].endswith("/instance")]
        server = service.Server(("127.0.0.1", self.port), service.Witness(held, keys, self.clock))
        server.rate.take = lambda _address, _now: True  # type: ignore[method-assign]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            held.close()


def agree(node: Node, folder: Path) -> None:
    """Let a new witness, with its memory in this folder, cosign the newest checkpoint."""
    outside = Witness(folder)
    with outside.running(*node.oversight.public_keys()):
        node.witnesses._settings._known = Settings(known=(WitnessAt(name="nas", url=outside.url, key=str(outside.key)),))
        [told] = node.witnesses.ask(archives.the_console(node))
    assert told["problem"] == ""


def write_config(config: Config, *witnesses: Witness, name: str = "nas", **settings: object) -> Config:
    """Write these witnesses into the archive's configuration file, and return the configuration."""
    lines = [
        "[archive]", 'storage = "storage"', "[storage]", "segment_bytes = 4194304", 'reserve = "0%"', "[http]", "port = 0", "[dimse.tls]",
        "port = 0",
    ]
    if config.database.url:
        lines += ["[database]", f'url = "{config.database.url}"']
    lines += ["[witness]", *(f"{key} = {value!r}".replace("'", '"') for key, value in settings.items())]
    for number, one in enumerate(witnesses):
        lines += ["[[witness.known]]", f'name = "{name}{number or ""}"', f'url = "{one.url}"', f'key = "{one.key}"']
    path = Path(config.path)
    path.write_text("\n".join(lines) + "\n")
    return parse(tomllib.loads(path.read_text()), path)
