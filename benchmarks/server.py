"""A server under measurement."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.sender import Scp


class Missing(Exception):
    """Something needed is not on this machine; its name is the message."""


@dataclass
class Server:
    """Where a running server listens, and its process."""

    name: str
    version: str
    process: subprocess.Popen[str]
    plain: Scp
    secure: Scp | None
    base: str  # of DICOMweb: http://host:port/path
    headers: dict[str, str] = field(default_factory=dict)
    others: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def pid(self) -> int:
        """Root of its process tree."""
        return self.process.pid

    def stop(self) -> None:
        """End it."""
        for process in (self.process, *self.others):
            process.send_signal(signal.SIGTERM)
        for process in (self.process, *self.others):
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def free_port() -> int:
    """Return a port nobody listens at."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def client_context(certificates: Path) -> ssl.SSLContext:
    """Trust the CA and show the peer's certificate; who the server is does not matter to its speed."""
    made = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
    return made
