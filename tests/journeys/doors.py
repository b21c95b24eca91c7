"""The doors of a served archive, as its peers use them."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from archive.access.subject import Subject
from archive.config import load
from archive.node import Node, open_node
from archive.services.console import console
from tests.dimse.rawpeer import RawPeer
from tests.journeys.running import RunningArchive

STOW = 'multipart/related; type="application/dicom"; boundary=b'
AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'


def enrol(archive: RunningArchive, title: str = "CT1") -> Path:
    """Make a peer with a certificate of the built-in CA; return the folder of its certificate."""
    folder = archive.folder / f"peer-{title}"
    archive.json("peer", "add", title, "--aet", title, "--issue", str(folder), "--role", "modality")
    return folder


def connect(archive: RunningArchive, certificates: Path, *, handshake: bool = True) -> RawPeer:
    """Open a connection to the DIMSE listener over mutual TLS; without `handshake` just the TCP connection."""
    where = archive.status["dimse_tls"]
    link = socket.create_connection((where["host"], where["port"]), 30)
    if not handshake:
        return RawPeer(link)
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
    return RawPeer(context.wrap_socket(link, server_hostname="127.0.0.1"))


def send(archive: RunningArchive, certificates: Path, paths: Iterable[Path], title: str = "CT1") -> dict[Path, int | None]:
    """Send files with pynetdicom in a process of its own; return the status of each."""
    where = archive.status["dimse_tls"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.journeys.sender", where["host"], str(where["port"]), str(certificates), title],
        input="".join(f"{path}\n" for path in paths), capture_output=True, text=True, timeout=180, check=False,
        env=archive.environment(),
    )
    assert done.returncode == 0, done.stderr
    return {Path(path): status for path, status in json.loads(done.stdout).items()}


def session(archive: RunningArchive, token: str) -> requests.Session:
    """Return an HTTP session that trusts the archive and shows a token."""
    made = requests.Session()
    made.trust_env = False
    made.verify = str(archive.ca)
    if token:
        made.headers["Authorization"] = f"Bearer {token}"
    return made


def multipart(parts: Sequence[bytes]) -> bytes:
    """Return a STOW-RS body."""
    return b"".join(b"\r\n--b\r\nContent-Type: application/dicom\r\n\r\n" + part for part in parts) + b"\r\n--b--"


def stow(archive: RunningArchive, asker: requests.Session, parts: Sequence[bytes]) -> tuple[int, list[str], list[int]]:
    """Store with one request; return the status, the SOP Instance UIDs that were stored, and the failure reasons."""
    answer = asker.post(f"{archive.url}/dicomweb/studies", data=multipart(parts), headers={"Content-Type": STOW}, timeout=120)
    try:
        told = answer.json()
    except ValueError:
        return answer.status_code, [], []
    stored = [item["00081155"]["Value"][0] for item in told.get("00081199", {}).get("Value", [])]
    failed = [item["00081197"]["Value"][0] for item in told.get("00081198", {}).get("Value", [])]
    return answer.status_code, stored, failed


def import_files(archive: RunningArchive, paths: Iterable[Path], report: Path, *options: str) -> list[dict[str, Any]]:
    """Import with the command line; return the report's lines."""
    done = archive.run("--json", "import", *map(str, paths), "--report", str(report), *options)
    assert done.returncode in {0, 1}, done.stderr
    return [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]


@contextmanager
def at_the_console(archive: RunningArchive) -> Iterator[tuple[Node, Subject]]:
    """The archive opened beside the running one, as each command of the command line does it; for many changes at once."""
    node = open_node(load(archive.config), role="cli")
    try:
        yield node, console(node.core, "tester")
    finally:
        node.close()
