"""Orthanc as Debian packages it, with the settings that were found fastest, and TCP_NODELAY without which every C-STORE stalls."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.sender import Scp
from benchmarks.server import Missing, Server, client_context, free_port

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
TUNED: dict[str, Any] = {
    "StorageCompression": False, "StoreMD5ForAttachments": False, "MaximumPduLength": 131072, "LoadPrivateDictionary": False,
    "MetricsEnabled": False, "DicomThreadsCount": 4, "DicomAet": "ORTHANC", "DicomCheckCalledAet": False, "DicomAlwaysAllowStore": True,
    "DicomAlwaysAllowFind": True, "DicomAlwaysAllowGet": True, "DicomCheckModalityHost": False,
    "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "HttpServerEnabled": True, "SslEnabled": False,
    "OverwriteInstances": False, "ConcurrentJobs": 1, "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
}
READY_S = 30


def start(folder: Path, certificates: Path | None) -> Server:
    """Start it, and a second one for DIMSE over TLS when there are certificates (one Orthanc speaks one of both).

    Raises:
        Missing: not installed.
    """
    program = shutil.which("Orthanc")
    if program is None:
        message = "Orthanc (Debian's package orthanc)"
        raise Missing(message)
    if not PLUGIN.exists():
        message = "the DICOMweb plugin (Debian's package orthanc-dicomweb)"
        raise Missing(message)
    process, dimse, http = _run(program, folder / "orthanc", {})
    server = Server(
        "Orthanc", _version(program), process, Scp("127.0.0.1", dimse, "ORTHANC"), None, f"http://127.0.0.1:{http}/dicom-web",
    )
    if certificates is not None:
        tls = {
            "DicomTlsEnabled": True, "DicomTlsCertificate": str(certificates / "cert.pem"),
            "DicomTlsPrivateKey": str(certificates / "key.pem"), "DicomTlsTrustedCertificates": str(certificates / "ca.pem"),
        }
        second, port, _http = _run(program, folder / "orthanc-tls", tls)
        server.others.append(second)
        server.secure = Scp("127.0.0.1", port, "ORTHANC", client_context(certificates))
    return server


def _run(program: str, folder: Path, settings: dict[str, Any]) -> tuple[subprocess.Popen[str], int, int]:
    folder.mkdir(parents=True)
    dimse, http = free_port(), free_port()
    whole = {
        **TUNED, **settings, "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
        "DicomPort": dimse, "HttpPort": http, "Plugins": [str(PLUGIN)],
    }
    (folder / "orthanc.json").write_text(json.dumps(whole), encoding="utf-8")
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [program, str(folder / "orthanc.json")], stdout=log, stderr=log, stdin=subprocess.DEVNULL, text=True,
            env={**os.environ, "TCP_NODELAY": "1"},
        )
    end = time.monotonic() + READY_S
    for port in (http, dimse):
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > end or process.poll() is not None:
                    process.kill()
                    message = "Orthanc (did not start; see its log)"
                    raise Missing(message) from None
                time.sleep(0.1)
    return process, dimse, http


def _version(program: str) -> str:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    return said.split()[1] if len(said.split()) > 1 else ""
