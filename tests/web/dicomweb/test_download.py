"""A study and a series as a zip with a DICOMDIR, over a whole archive."""

from __future__ import annotations

import io
import subprocess
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
import pytest
from pydicom.fileset import FileSet

from archive.access.grants import Target
from archive.access.subject import Subject
from archive.errors import NotFound
from archive.ledger.audit import Kind
from archive.ledger.log import AuditFilter
from archive.services import download
from tests.services import archives
from tests.web import real
from tests.web.real import ABSENT, HIDDEN, SEEN, Place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with archives.opened(real.config(tmp_path_factory.mktemp("zip"))) as node:
        archives.store(node, archives.instance(
            1, study=SEEN, series=f"{SEEN}.2", PatientID=f"P{SEEN}", PatientName="Canary^Hidden", SeriesNumber=2,
            SeriesDescription="Äther", SpecificCharacterSet="ISO_IR 100",
        ))
        yield real.place(node)


def opened(place: Place, path: str, **headers: str) -> zipfile.ZipFile:
    answer = place.ask("GET", path, headers=headers)
    assert (answer.status_code, answer.content_type) == (200, "application/zip"), answer.data[:200]
    found = zipfile.ZipFile(io.BytesIO(answer.data))
    assert found.testzip() is None
    return found


def sent(*more: tuple[int, str]) -> set[bytes]:
    return {archives.instance(n, study=SEEN, PatientID=f"P{SEEN}", PatientName="Canary^Hidden") for n in (1, 2)}


@pytest.mark.parametrize(("path", "headers"), [
    (f"/dicomweb/studies/{SEEN}/zip", {}), (f"/dicomweb/studies/{SEEN}", {"Accept": "application/zip"}),
    (f"/datastores/clinical/dicomweb/studies/{SEEN}/zip", {"Accept": "text/html,*/*;q=0.8"}),
])
def test_the_bytes_that_were_stored(place: Place, path: str, headers: dict[str, str]) -> None:
    with opened(place, path, **headers) as found:
        files = {name: found.read(name) for name in found.namelist()}
    directory = files.pop("DICOMDIR")
    assert len(files) == 3
    assert sent() <= set(files.values())
    assert directory[128:132] == b"DICM"
    for name in [*files, "DICOMDIR"]:
        assert all(len(part) <= 8 and part.isascii() and part.isalnum() and part.upper() == part for part in name.split("/"))
        assert "CANARY" not in name


def test_one_series(place: Place) -> None:
    for path, headers in ((f"/dicomweb/studies/{SEEN}/series/{SEEN}.1/zip", {}),
                          (f"/dicomweb/studies/{SEEN}/series/{SEEN}.1", {"Accept": "application/zip"})):
        with opened(place, path, **headers) as found:
            assert {found.read(name) for name in found.namelist() if name != "DICOMDIR"} == sent()


def test_pydicom_and_dcmtk_read_the_directory(place: Place, tmp_path: Path, program: Callable[[str, str], str]) -> None:
    with opened(place, f"/dicomweb/studies/{SEEN}/zip") as found:
        found.extractall(tmp_path)
    there = FileSet(tmp_path / "DICOMDIR")
    assert sorted(one.SOPInstanceUID for one in there) == [f"{SEEN}.1.1", f"{SEEN}.1.2", f"{SEEN}.2.1"]
    for one in there:
        assert Path(one.path).is_file()
        assert one.load().SOPInstanceUID == one.SOPInstanceUID
    assert there.find_values("PatientName") == ["Canary^Hidden"]
    assert "Äther" in there.find_values("SeriesDescription")
    there._stage["t"].cleanup()
    records = pydicom.dcmread(tmp_path / "DICOMDIR").DirectoryRecordSequence
    assert [one.DirectoryRecordType for one in records] == ["PATIENT", "STUDY", "SERIES", "IMAGE", "IMAGE", "SERIES", "IMAGE"]
    done = subprocess.run([program("dcmdump", "dcmtk"), "+L", str(tmp_path / "DICOMDIR")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_it_is_in_the_ledger_as_an_export(place: Place) -> None:
    core = place.node.core

    def exports() -> int:
        with core.database.read() as tx:
            return len(core.ledger.search(tx, AuditFilter(kinds=(Kind.EXPORTED,), limit=1000)))

    before = exports()
    opened(place, f"/dicomweb/studies/{SEEN}/zip").close()
    assert exports() == before + 1


def test_hidden_is_absent_and_so_is_what_may_only_be_looked_at(place: Place) -> None:
    for tail in ("/zip", "/series/{}.1/zip"):
        hidden, absent = (place.ask("GET", f"/dicomweb/studies/{uid}{tail.replace('{}', uid)}") for uid in (HIDDEN, ABSENT))
        assert (hidden.status_code, hidden.data) == (404, absent.data)
        assert sorted(hidden.headers.keys()) == sorted(absent.headers.keys())
    assert place.ask("GET", "/dicomweb/studies/x/zip").status_code == 400
    assert place.ask("GET", f"/dicomweb/studies/{SEEN}/zip", headers={"Accept": "image/png"}).status_code == 406
    console = archives.the_console(place.node)
    place.node.accounts.add_user(console, "rob", roles=["technologist"], password=archives.PASSWORD)
    place.node.accounts.add_grant(console, to="rob", role="researcher", target=Target("study", SEEN))
    token = place.node.accounts.create_token(console, owner="rob")["token"]
    as_rob = {"Authorization": f"Bearer {token}"}
    assert place.ask("GET", f"/dicomweb/studies/{SEEN}", headers=as_rob).status_code == 200
    assert place.ask("GET", f"/dicomweb/studies/{SEEN}/zip", headers=as_rob).status_code == 404


def test_a_hidden_series_is_neither_in_the_zip_nor_in_its_directory(place: Place) -> None:
    console = archives.the_console(place.node)
    place.node.accounts.add_user(console, "eva", roles=[], password=archives.PASSWORD)
    place.node.accounts.add_grant(console, to="eva", role="radiologist", target=Target("series", f"{SEEN}.2"))
    token = place.node.accounts.create_token(console, owner="eva")["token"]
    with opened(place, f"/dicomweb/studies/{SEEN}/zip", Authorization=f"Bearer {token}") as found:
        assert len(found.namelist()) == 2
        assert f"{SEEN}.1.1".encode() not in found.read("DICOMDIR")


def test_a_right_that_ends_meanwhile_cuts_it_short(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = place.node.download.zip(_subject(place), "clinical", SEEN)
    next(chunks)
    monkeypatch.setattr(download.locate, "still", lambda *_: False)
    with pytest.raises(NotFound):
        for _ in chunks:
            pass


def test_memory_does_not_grow_with_the_study(place: Place) -> None:
    for number in range(6):
        archives.store(place.node, archives.instance(number + 1, study="1.2.66", rows=1000))
    place.node.accounts.add_grant(
        archives.the_console(place.node), to="mia", role="radiologist", target=Target("study", "1.2.66")
    )
    tracemalloc.start()
    taken = sum(len(chunk) for chunk in place.node.download.zip(_subject(place), "clinical", "1.2.66"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken > 12_000_000
    assert peak < 6_000_000


def _subject(place: Place) -> Subject:
    return archives.user(place.node, "mia")
