"""Orthanc with its DICOMweb plugin as a client of a served archive: it searches, fetches a study and sends one, over HTTPS with a token."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
import requests

from archive.access.grants import Target
from archive.config import load
from archive.services import setup
from tests.conftest import absent
from tests.dimse.fakes import eventually
from tests.dimse.test_scu import listening
from tests.journeys.running import RunningArchive
from tests.ports import free_port
from tests.services import archives

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
SEEN, HIDDEN, SENT = "1.2.3", "1.2.4", "1.2.9"
FILES = {f"{study}.1.{n}": archives.instance(n, study=study, PatientName="Canary^Jérôme", SpecificCharacterSet="ISO_IR 192")
         for study in (SEEN, HIDDEN, SENT) for n in (1, 2)}
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningArchive, str]]:
    """A served archive with two studies, and the token of ORTHANC's user, who sees one of them and may store."""
    running = RunningArchive(tmp_path_factory.mktemp("archive"))
    config = load(running.config)
    setup.initialise(config, password=archives.PASSWORD)
    with archives.opened(config) as node:
        for uid, data in FILES.items():
            if not uid.startswith(SENT):
                archives.store(node, data)
        console = archives.the_console(node)
        node.accounts.add_user(console, "orthanc", roles=["technologist"])
        node.accounts.add_grant(console, to="orthanc", role="radiologist", target=Target("study", SEEN))
        token = str(node.accounts.create_token(console, owner="orthanc")["token"])
    running.start("serve")
    try:
        yield running, token
    finally:
        running.stop()


@pytest.fixture(scope="module")
def orthanc(
    served: tuple[RunningArchive, str], tmp_path_factory: pytest.TempPathFactory, program: Callable[[str, str], str]
) -> Iterator[Ask]:
    """`orthanc(path, body)`: its REST API, knowing the archive as the server `ours`."""
    archive, token = served
    command = program("Orthanc", "orthanc")
    if not PLUGIN.exists():
        absent("orthanc-dicomweb")
    http, dicom, folder = free_port(), free_port(), tmp_path_factory.mktemp("orthanc")
    (folder / "orthanc.json").write_text(json.dumps({
        "StorageDirectory": str(folder), "IndexDirectory": str(folder), "HttpPort": http, "DicomPort": dicom, "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False, "Plugins": [str(PLUGIN)], "HttpsCACertificates": str(archive.ca), "HttpsVerifyPeers": True,
        "DicomWeb": {"Enable": True, "Servers": {"ours": {
            "Url": f"{archive.url}/dicomweb/", "HttpHeaders": {"Authorization": f"Bearer {token}"}, "HasDelete": False,
        }}},
    }))

    def ask(path: str, body: Any = None) -> Any:
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{http}{path}", data=data, timeout=60) as answer:
            found = answer.read()
        return found if path.endswith("/file") else json.loads(found)

    def knows() -> bool:  # it listens before its plugin has read which servers there are
        with contextlib.suppress(urllib.error.URLError):
            return "ours" in ask("/dicom-web/servers")
        return False

    with subprocess.Popen([command, str(folder / "orthanc.json")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            assert eventually(lambda: listening(http))
            assert eventually(knows)
            yield ask
        finally:
            process.terminate()
            process.wait(20)


def test_it_searches_what_its_user_sees(orthanc: Ask) -> None:
    found = orthanc("/dicom-web/servers/ours/qido", {"Uri": "/studies", "Arguments": {"PatientName": "canary*"}})
    assert [one["0020000D"]["Value"] for one in found] == [SEEN]
    series = orthanc("/dicom-web/servers/ours/qido", {"Uri": f"/studies/{SEEN}/series"})
    assert len(series) == 1


def test_it_fetches_a_study_whole(orthanc: Ask) -> None:
    done = orthanc("/dicom-web/servers/ours/retrieve", {"Resources": [{"Study": SEEN}], "Synchronous": True})
    assert done["ReceivedInstancesCount"] == "2"
    kept = orthanc("/instances")
    assert len(kept) == 2
    for key in kept:
        found = pydicom.dcmread(io.BytesIO(orthanc(f"/instances/{key}/file")))
        original = pydicom.dcmread(io.BytesIO(FILES[str(found.SOPInstanceUID)]))
        assert {element.tag: element.value for element in found} == {element.tag: element.value for element in original}


def test_it_sends_a_study(orthanc: Ask, served: tuple[RunningArchive, str]) -> None:
    archive, token = served
    mine = [orthanc("/instances", data) for uid, data in FILES.items() if uid.startswith(SENT)]
    orthanc("/dicom-web/servers/ours/stow", {"Resources": [one["ID"] for one in mine], "Synchronous": True})
    archive.json("grant", "add", "--to", "orthanc", "--role", "radiologist", "--study", SENT)
    for uid in (one for one in FILES if one.startswith(SENT)):
        answer = requests.get(
            f"{archive.url}/dicomweb/studies/{SENT}/series/{SENT}.1/instances/{uid}/metadata", timeout=30, verify=str(archive.ca),
            headers={"Authorization": f"Bearer {token}"},
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()[0]["00080018"]["Value"] == [uid]
