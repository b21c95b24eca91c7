"""An archive as its users meet it: started from the command line, on real sockets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Self, TextIO

from tests.journeys import warm

ROOT = Path(__file__).resolve().parents[2]
READY_S = 90


class RunningArchive:
    """`archive up` in a folder of its own, every port free; use it as a context."""

    def __init__(self, folder: Path, *arguments: str, settings: str = "", fresh: bool = False) -> None:
        """`arguments` go to `archive up`; `settings` are further lines of config.toml; `fresh`: begun by an interpreter of its own."""
        self.folder = folder
        self.fresh = fresh
        self.arguments = arguments
        self.config = folder / "config.toml"
        self.storage = folder / "storage"
        if not self.config.exists():
            self.config.write_text(
                "[http]\nport = 0\nworkers = 1\n[dimse]\nworkers = 1\n[dimse.tls]\nport = 0\n" + settings, encoding="utf-8"
            )
        self.process: subprocess.Popen[str] | warm.Process | None = None
        self._out: TextIO | None = None
        self.printed: list[str] = []
        self.status: dict[str, Any] = {}

    def __enter__(self) -> Self:
        """Start it and wait until it is ready."""
        self.start()
        return self

    def __exit__(self, *_args: object) -> None:
        """Stop it."""
        self.stop()

    def start(self, command: str = "up") -> None:
        """Start it and wait for READY."""
        arguments = ["--config", str(self.config), command, *(self.arguments if command == "up" else [])]
        reading, writing = os.pipe()
        with (self.folder / "log").open("ab") as log, open(os.devnull, "rb") as nothing, os.fdopen(writing, "wb") as out:
            if self.fresh:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "archive", *arguments], stdout=out, stderr=log, stdin=nothing, text=True, env=self.environment(),
                )
            else:
                self.process = warm.Process(arguments, env=self.environment(), files=(nothing.fileno(), out.fileno(), log.fileno()))
        self._out = os.fdopen(reading, encoding="utf-8")
        watchdog = threading.Timer(READY_S, self.process.kill)
        watchdog.start()
        self.printed = []
        for line in self._out:
            self.printed.append(line.rstrip("\n"))
            if line == "READY\n":
                break
        watchdog.cancel()
        assert self.printed[-1:] == ["READY"], self.printed + self.log().splitlines()[-20:]
        self.status = self.json("status")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it and return its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            if self._out is not None:
                self._out.close()
            if isinstance(self.process, warm.Process):
                self.process.forget()
        return code

    def environment(self) -> dict[str, str]:
        """The environment of its processes."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        return {**os.environ, "NO_PROXY": "127.0.0.1,localhost", "PYTHONPATH": path}

    def log(self) -> str:
        """Return what it logged."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command beside it."""
        return warm.run(["--config", str(self.config), *arguments], stdin=stdin, env=self.environment())

    def json(self, *arguments: str) -> Any:
        """Run a command that must succeed and return its JSON answer."""
        done = self.run("--json", *arguments)
        assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
        return json.loads(done.stdout)

    @property
    def ca(self) -> Path:
        """The certificate to trust."""
        return self.storage / "tls" / "ca.pem"

    @property
    def url(self) -> str:
        """Where the web listener answers."""
        return str(self.status["http"]["url"])

    def token(self, user: str, *bounds: str) -> str:
        """Return a new token of a user."""
        return str(self.json("token", "create", "--for", user, *bounds)["token"])

    def client(self, token: str) -> Any:
        """Return a DICOMweb client that signs in with a token."""
        import requests
        from dicomweb_client import DICOMwebClient

        session = requests.Session()
        session.verify = str(self.ca)
        session.trust_env = False
        session.headers["Authorization"] = f"Bearer {token}"
        return DICOMwebClient(f"{self.url}/dicomweb", session=session)
