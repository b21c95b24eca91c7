"""JavaScript clients as their makers release them, under node: dicomweb-client over HTTPS and dcmjs-dimse over mutual TLS.

`npm ci` in tests/js installs them; versions and hashes stand in its package-lock.json.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pydicom
import pytest
from PIL import Image
from pydicom.uid import CTImageStorage

from archive.access.grants import Target
from tests.conftest import absent
from tests.dimse.test_worklist import entry
from tests.journeys import doors
from tests.journeys.running import ROOT, RunningArchive
from tests.ports import free_port
from tests.web.samples import STUDY, instance

SCRIPTS = ROOT / "tests" / "js"


@pytest.fixture(scope="module")
def run(program: Callable[[str, str], str]) -> Callable[..., Any]:
    """`run("dimse.js", argument…, NAME=value…)`: what a script of tests/js prints."""
    node = os.environ.get("ARCHIVE_TEST_NODE") or program("node", "nodejs")
    for package in ("dicomweb-client", "dcmjs-dimse", "xhr2"):
        if not (SCRIPTS / "node_modules" / package).is_dir():
            absent(f"{package} (npm ci in tests/js)")

    def done(script: str, *arguments: str, **environment: str) -> Any:
        ran = subprocess.run(
            [node, str(SCRIPTS / script), *arguments], capture_output=True, text=True, timeout=120, check=False,
            env={"PATH": os.environ.get("PATH", ""), **environment},
        )
        assert ran.returncode == 0, ran.stderr[-4000:]
        return json.loads(ran.stdout)

    return done


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningArchive]:
    """A served archive, empty."""
    with RunningArchive(tmp_path_factory.mktemp("javascript")) as running:
        yield running


def files(folder: Path, study: int) -> dict[str, bytes]:
    """Three instances of one series, as files; by SOP Instance UID."""
    found = {}
    for number in (1, 2, 3):
        data = instance(number, study=study, PatientName="Canary^Jérôme", PatientID=f"J{study}", SpecificCharacterSet="ISO_IR 192")
        (folder / f"{number}.dcm").write_bytes(data)
        found[f"{STUDY}.{study}.1.{number}"] = data
    return found


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_dicomweb_client(archive: RunningArchive, run: Callable[..., Any], tmp_path: Path) -> None:
    """Search, retrieve, frames, bulk data, rendered, store: what it is given is what was stored (checklist D03, E02)."""
    stored = files(tmp_path, 1)
    with doors.at_the_console(archive) as (node, console):
        node.accounts.add_user(console, "js", password="a walk by the river 7", roles=["technologist"])
        node.accounts.add_grant(console, to="js", role="radiologist", target=Target("everything"))
        token = node.accounts.create_token(console, owner="js")["token"]
    told = run(
        "dicomweb.js", *sorted(map(str, tmp_path.glob("*.dcm"))),
        URL=f"{archive.url}/dicomweb", TOKEN=token, NODE_EXTRA_CA_CERTS=str(archive.ca),
    )
    uids, first = sorted(stored), stored[f"{STUDY}.1.1.1"]
    assert sorted(item["00081155"]["Value"][0] for item in told["stored"]["00081199"]["Value"]) == uids
    assert "00081198" not in told["stored"]
    assert told["again"]["00081199"]["Value"][0]["00081155"]["Value"] == uids[:1]
    assert (told["studies"], told["none"], told["series"], told["instances"]) == ([f"{STUDY}.1"], [], [f"{STUDY}.1.1"], uids)
    assert (told["everySeries"], told["everyInstance"]) == (1, 3)
    assert told["metadata"] == {"study": 3, "series": 3, "instance": uids[0], "name": {"Alphabetic": "Canary^Jérôme"}}
    assert told["instance"] == sha256(first)
    assert told["ofSeries"] == told["ofStudy"] == sorted(map(sha256, stored.values()))
    pixels = pydicom.dcmread(io.BytesIO(first)).PixelData
    assert told["frame"] == told["frameAsked"] == sha256(pixels)
    assert told["bulk"] == [sha256(pixels)]
    assert told["bulkRange"] == [sha256(pixels[4:20])]
    for form, pictures in told["rendered"].items():
        opened = [Image.open(io.BytesIO(base64.b64decode(one))) for one in pictures]
        assert {one.get_format_mimetype() for one in opened} == {form}
        assert (opened[0].size, opened[1].size, opened[2].size) == ((16, 12), (8, 6), (16, 12))
    assert told["missing"] == 404
    answer = doors.session(archive, token).get(told["uri"], timeout=30)
    assert (answer.status_code, answer.content) == (200, first)


def test_dcmjs_dimse(archive: RunningArchive, run: Callable[..., Any], tmp_path: Path) -> None:
    """C-ECHO, C-STORE, C-FIND, C-GET, C-MOVE, storage commitment, worklist and procedure step, with a certificate."""
    stored, own = files(tmp_path, 2), free_port()
    certificates = archive.folder / "peer-JS1"
    with doors.at_the_console(archive) as (node, console):
        node.peers.add(console, "JS1", ["JS1"], issue=certificates, address=f"127.0.0.1:{own}", roles=["modality"])
        node.accounts.add_grant(console, to="JS1", role="workstation", target=Target("patient", "J2", expected=True))
        today = f"{datetime.now(UTC):%Y%m%d}"
        node.worklist.add(console, entry(9, step={"ScheduledStationAETitle": "JS1", "ScheduledProcedureStepStartDate": today}))
    told = run("dimse.js", json.dumps({
        **{name: archive.status["dimse_tls"][name] for name in ("host", "port")}, "own": own, "certificates": str(certificates),
        "title": "JS1", "files": sorted(map(str, tmp_path.glob("*.dcm"))), "missing": "1.2.3.4.5", "sopClass": str(CTImageStorage),
    }))
    uids = sorted(stored)
    assert told["trouble"] == []
    assert (told["echo"], told["stores"]) == (0, [0, 0, 0])
    [study] = told["find"]["studies"]
    assert (study["StudyInstanceUID"], study["PatientID"], int(study["NumberOfStudyRelatedInstances"])) == (f"{STUDY}.2", "J2", 3)
    assert (told["find"]["status"], told["find"]["series"], told["find"]["images"]) == (0, [f"{STUDY}.2.1"], uids)
    assert told["find"]["withoutKey"] == 0xA900
    for way in ("got", "moved"):
        assert {level: one["came"] for level, one in told[way].items() if level != "unknown"} == {
            "study": uids, "series": uids, "image": uids[:1],
        }
        assert {one["status"] for level, one in told[way].items() if level != "unknown"} == {0}
    assert told["moved"]["unknown"] == {"status": 0xA801, "came": []}
    assert told["action"] == 0
    assert told["reports"] == [{"type": 2, "transaction": "2.25.4711", "kept": uids, "failed": ["1.2.3.4.5"]}]
    [found] = told["worklist"]["entries"]
    assert (told["worklist"]["status"], found["PatientID"], found["AccessionNumber"]) == (0, "W9", "ACC9")
    assert told["performed"] == [0, 0]
    assert told["called"] == ["STRONGROOM"]
