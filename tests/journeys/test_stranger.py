"""A stranger's walk through the README: start, sign in with a token, a modality sends, a program reads, grants decide."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pydicom
import pytest

from tests.journeys.running import RunningArchive

PASSWORD = "a walk by the river 7"


@pytest.fixture(scope="module")
def ct_series(corpus: Path) -> list[Path]:
    """A CT series of a GE scanner."""
    files = sorted((corpus / "neurolabusc__dcm_qa_ct").rglob("*.dcm"))
    found: dict[str, list[Path]] = {}
    for path in files:
        head = pydicom.dcmread(path, stop_before_pixels=True)
        if head.Modality == "CT" and str(head.get("Manufacturer", "")).startswith("GE"):
            found.setdefault(head.SeriesInstanceUID, []).append(path)
    if not found:
        pytest.skip("the corpus holds no CT series of a GE scanner")
    return max(found.values(), key=len)


@pytest.fixture(scope="module")
def sent(demo: RunningArchive, ct_series: list[Path], program: Callable[[str, str], str]) -> list[Path]:
    """The series, sent by a modality of its own over mutual TLS."""
    certs = demo.folder / "certs"
    made = demo.json("peer", "add", "CT1", "--aet", "CT1", "--issue", str(certs), "--role", "modality")
    assert made["id"]
    assert {path.name for path in certs.iterdir()} == {"key.pem", "cert.pem", "ca.pem"}
    assert (certs / "key.pem").stat().st_mode & 0o777 == 0o600
    listener = demo.status["dimse_tls"]
    done = subprocess.run(
        [program("storescu", "dcmtk"), "+tls", str(certs / "key.pem"), str(certs / "cert.pem"), "+cf", str(certs / "ca.pem"),
         "-aet", "CT1", "-aec", "STRONGROOM", listener["host"], str(listener["port"]), *map(str, ct_series)],
        capture_output=True, text=True, timeout=120, check=False,
    )
    assert done.returncode == 0, done.stderr
    return ct_series


def dataset_bytes(part10: bytes) -> bytes:
    """Return what follows the file meta information."""
    stream = io.BytesIO(part10)
    pydicom.filereader.read_preamble(stream, force=False)
    pydicom.filereader._read_file_meta_info(stream)
    return part10[stream.tell():]


def test_up_prints_what_one_needs(demo: RunningArchive) -> None:
    text = "\n".join(demo.printed)
    assert demo.status["http"]["public_url"] in text
    assert "admin" in text
    assert str(demo.storage / "first-password") in text
    assert str(demo.ca) in text
    assert f"STRONGROOM@127.0.0.1:{demo.status['dimse_tls']['port']}" in text
    assert (demo.storage / "first-password").stat().st_mode & 0o777 == 0o600


def test_the_demo_studies_are_there(demo: RunningArchive) -> None:
    studies = demo.client(demo.token("admin")).search_for_studies()
    names = {study["00100010"]["Value"][0]["Alphabetic"] for study in studies}
    assert names == {"Demo^Anna", "Demo^Bruno", "Demo^Chiyo"}


def test_what_a_modality_sent_comes_back_unchanged(demo: RunningArchive, sent: list[Path]) -> None:
    client = demo.client(demo.token("admin"))
    first = pydicom.dcmread(sent[0], stop_before_pixels=True)
    rows = client.search_for_instances(first.StudyInstanceUID, first.SeriesInstanceUID)
    assert len(rows) == len(sent)
    for path in sent:
        original = pydicom.dcmread(path, stop_before_pixels=True)
        url = (f"{demo.url}/dicomweb/studies/{original.StudyInstanceUID}/series/{original.SeriesInstanceUID}"
               f"/instances/{original.SOPInstanceUID}")
        answer = client._http_get(url, headers={"Accept": "application/dicom; transfer-syntax=*"})
        assert dataset_bytes(answer.content) == dataset_bytes(path.read_bytes())
        break


def test_grants_decide_what_a_user_sees(demo: RunningArchive, sent: list[Path], tmp_path: Path) -> None:
    first = pydicom.dcmread(sent[0], stop_before_pixels=True)
    (tmp_path / "password").write_text(PASSWORD + "\n")
    demo.json("user", "add", "mia", "--role", "referrer", "--password-file", str(tmp_path / "password"))
    client = demo.client(demo.token("mia"))
    assert client.search_for_studies() == []
    until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    made = demo.json("grant", "add", "--to", "mia", "--role", "referrer", "--series", first.SeriesInstanceUID, "--until", until)
    rows = client.search_for_series()
    assert [row["0020000E"]["Value"][0] for row in rows] == [first.SeriesInstanceUID]
    because = demo.json("explain", "mia", first.SeriesInstanceUID)
    assert because["allowed"]
    assert [one["grant"] for one in because["because"]] == [made["id"]]
    demo.json("grant", "revoke", str(made["id"]))
    assert client.search_for_series() == []
    assert not demo.json("explain", "mia", first.SeriesInstanceUID)["allowed"]


def test_everything_verifies(demo: RunningArchive) -> None:
    report = demo.json("verify", "--full")
    assert report["ok"], report["findings"]
    assert report["checked"] >= 49
    assert demo.json("ledger", "verify")["ok"]


def test_a_proof_checks_elsewhere_with_public_keys_alone(demo: RunningArchive, tmp_path: Path) -> None:
    keys, proof = tmp_path / "keys", tmp_path / "proof"
    keys.write_text("\n".join(demo.json("ledger", "keys")["keys"]) + "\n")
    demo.json("ledger", "prove", "0", "--to", str(proof))
    elsewhere = RunningArchive(tmp_path / "nowhere") if (tmp_path / "nowhere").mkdir() is None else None
    assert elsewhere is not None
    done = elsewhere.run("--json", "ledger", "check-proof", str(proof), "--keys", str(keys))
    assert done.returncode == 0, done.stderr
    proof.write_text(proof.read_text().replace("index 0", "index 1"))
    assert elsewhere.run("ledger", "check-proof", str(proof), "--keys", str(keys)).returncode == 1


def test_doctor_asks_for_a_recovery_kit_and_finds_no_problem(demo: RunningArchive, tmp_path: Path) -> None:
    before = demo.json("doctor")
    assert any(one["name"] == "recovery kit" and one["state"] == "warning" for one in before["checks"])
    demo.json("key", "slot", "add", "--recovery-kit", str(tmp_path / "kit.txt"))
    after = demo.json("doctor")
    assert after["ok"]
    assert any(one["name"] == "recovery kit" and one["state"] == "ok" for one in after["checks"])


def test_keys_rotate_under_a_serving_archive(demo: RunningArchive, sent: list[Path]) -> None:
    client = demo.client(demo.token("admin"))
    first = pydicom.dcmread(sent[0], stop_before_pixels=True)
    assert demo.json("key", "rotate")["destroyed"] == 1
    assert demo.json("status")["ready"]
    assert len(client.retrieve_series(first.StudyInstanceUID, first.SeriesInstanceUID)) == len(sent)
    assert demo.json("verify")["ok"]
