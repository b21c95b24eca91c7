"""Orthanc queries the archive and has a study sent to itself."""

from __future__ import annotations

import io
import json
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom

from archive.access.grants import Target
from tests.dimse.clinic import clinic
from tests.dimse.fakes import eventually
from tests.dimse.test_scu import listening
from tests.ports import free_port
from tests.services.archives import instance


def test_orthanc_queries_and_retrieves(tmp_path: Path, program: Callable[[str, str], str]) -> None:
    dicom, http = free_port(), free_port()
    files = {f"1.2.3.1.{n}": instance(n, study="1.2.3") for n in range(1, 4)}

    def ask(path: str, body: Any = None) -> Any:
        data = None if body is None else body.encode() if isinstance(body, str) else json.dumps(body).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{http}{path}", data=data, timeout=30) as answer:
            found = answer.read()
        return found if path.endswith("/file") else json.loads(found)

    folder = tmp_path / "archive"
    folder.mkdir()
    with clinic(folder) as it:
        it.put(*files.values(), instance(1, study="1.2.4", PatientID="P2"))
        it.plain_peer("ORTHANC", port=dicom, target=Target("study", "1.2.3"))
        (tmp_path / "orthanc.json").write_text(json.dumps({
            "Name": "peer", "StorageDirectory": str(tmp_path / "orthanc"), "IndexDirectory": str(tmp_path / "orthanc"), "HttpPort": http,
            "DicomPort": dicom, "DicomAet": "ORTHANC", "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "Plugins": [],
            "DicomModalities": {"ours": ["STRONGROOM", "127.0.0.1", it.plain_port]},
        }))
        command = [program("Orthanc", "orthanc"), str(tmp_path / "orthanc.json")]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                assert eventually(lambda: listening(http) and listening(dicom))
                asked = ask("/modalities/ours/query", {"Level": "Study", "Query": {"PatientName": "canary*", "ModalitiesInStudy": "CT"}})
                answers = ask(f"{asked['Path']}/answers?expand&simplify")
                assert [one["StudyInstanceUID"] for one in answers] == ["1.2.3"]
                ask(f"{asked['Path']}/answers/0/retrieve", "ORTHANC")
                kept = ask("/instances")
                assert len(kept) == 3
                for key in kept:
                    found = pydicom.dcmread(io.BytesIO(ask(f"/instances/{key}/file")))
                    original = pydicom.dcmread(io.BytesIO(files[str(found.SOPInstanceUID)]))
                    assert {element.tag: element.value for element in found} == {element.tag: element.value for element in original}
            finally:
                process.terminate()
                process.wait(20)
