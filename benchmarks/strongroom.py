"""Strongroom, started from the package that is installed, never from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from benchmarks.sender import Scp
from benchmarks.server import Missing, Server, client_context

READY_S = 90
SETTINGS = """
[http]
port = 0
tls = "off"
[dimse.tls]
port = 0
[dimse.plain]
enabled = true
port = 0
"""


class Archive:
    """An archive in a folder of its own."""

    def __init__(self, folder: Path, python: str, settings: str = "") -> None:
        """Write its configuration; it speaks plain HTTP, as Orthanc does."""
        self.folder, self.python = folder, python
        self.config = folder / "config.toml"
        self.probed: Path | None = None
        folder.mkdir(parents=True)
        self.config.write_text(SETTINGS + settings, encoding="utf-8")

    def probe(self) -> None:
        """Have each process write what its allocators hold into a folder."""
        self.probed = self.folder / "probed"
        self.probed.mkdir()

    def environment(self) -> dict[str, str]:
        """Nothing of the checkout, but for the probe."""
        kept = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "ARCHIVE_CONFIG"}}
        if self.probed is not None:
            kept |= {"PYTHONPATH": str(Path(__file__).parent / "probe"), "STRONGROOM_PROBE": str(self.probed)}
        return kept

    def command(self, *arguments: str) -> Any:
        """Run a command and return its JSON answer."""
        done = subprocess.run(
            [self.python, "-m", "archive", "--config", str(self.config), "--json", *arguments],
            capture_output=True, text=True, cwd=self.folder, env=self.environment(), check=False,
        )
        if done.returncode:
            message = f"archive {arguments[0]} failed: {done.stderr.strip()[-300:]}"
            raise Missing(message)
        return json.loads(done.stdout)

    def start(self) -> Server:
        """Serve; returns once it is ready."""
        probe = "import archive, importlib.metadata as m; print(m.version('strongroom'), archive.__file__)"
        found = subprocess.run(
            [self.python, "-c", probe], capture_output=True, text=True, cwd=self.folder, env=self.environment(), check=False
        )
        if found.returncode:
            message = f"strongroom (not installed for {Path(self.python).name}; see --python)"
            raise Missing(message)
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [self.python, "-m", "archive", "--config", str(self.config), "up"],
                stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, text=True, cwd=self.folder, env=self.environment(),
            )
        watchdog = threading.Timer(READY_S, process.kill)
        watchdog.start()
        assert process.stdout is not None
        ready = any(line == "READY\n" for line in process.stdout)
        watchdog.cancel()
        if not ready:
            message = "strongroom (did not start; see its log)"
            raise Missing(message)
        try:
            return self._known(process, found.stdout.split()[0])
        except BaseException:
            process.terminate()
            raise

    def _known(self, process: subprocess.Popen[str], version: str) -> Server:
        status = self.command("status")
        certificates = self.folder / "peer"
        self.command("peer", "add", "BENCH", "--aet", "BENCH", "--issue", str(certificates), "--role", "modality")
        self.command("peer", "add", "PLAIN", "--aet", "BENCH", "--aet", "DCMSEND", "--network", "127.0.0.0/8", "--role", "modality")
        self.command("peer", "add", "ASKER", "--aet", "BENCHQR", "--network", "127.0.0.0/8", "--role", "workstation")
        self.command("grant", "add", "--to", "ASKER", "--role", "workstation", "--everything")
        token = self.command("token", "create", "--for", "admin")["token"]
        plain, secure = status["dimse_plain"], status["dimse_tls"]
        return Server(
            "Strongroom", version, process,
            Scp(plain["host"], plain["port"], "STRONGROOM"),
            Scp(secure["host"], secure["port"], "STRONGROOM", client_context(certificates)),
            f"{status['http']['url']}/dicomweb", {"Authorization": f"Bearer {token}"},
        )


def default_python() -> str:
    """Return the interpreter whose installed package is measured."""
    return sys.executable
