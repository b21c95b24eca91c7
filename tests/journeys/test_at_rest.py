"""At rest nothing is in clear: no file under storage, no log and no temporary file holds a patient's name or a UID."""

from __future__ import annotations

import base64
import os
import signal
import socket
import sqlite3
import ssl
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.dimse.rawpeer import AC, store_command
from tests.journeys import doors
from tests.journeys.instances import dataset_bytes
from tests.journeys.running import RunningArchive
from tests.web.samples import STUDY, instance

WORD = "CANARY"
SECRETS = (WORD, STUDY)
PASSWORD = "a walk by the river 7"
EXPLICIT = "1.2.840.10008.1.2.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
VERBOSE = """
import logging
from archive.serve import logs
logs.configure.__defaults__ = (logging.DEBUG,)
"""


def forms(text: str) -> set[bytes]:
    """The ways a word may lie in a file: as it is, in UTF-16, in base64 at each of its three offsets, in hexadecimal."""
    found = {text.encode(), text.lower().encode(), text.encode("utf-16-le"), text.encode("utf-16-be")}
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + text.encode())
        # The characters at both ends also hold bits of what is beside the word.
        found.add(encoded[(0, 2, 3)[offset] : len(encoded) - (0 if (offset + len(text)) % 3 == 0 else 4)])
    return found | {text.encode().hex().encode(), text.encode().hex().upper().encode()}


FORMS = {form: text for text in SECRETS for form in forms(text)}
PICTURES = (b"\x89PNG\r\n\x1a\n", b"\x00\x10JFIF\x00\x01")


def in_clear(folder: Path) -> list[str]:
    """Name the files under a folder that hold a secret, or have one in their name."""
    found = []
    for path in sorted(Path(base) / name for base, folders, files in os.walk(folder) for name in (*folders, *files)):
        if any(text in str(path.relative_to(folder)) for text in SECRETS):
            found.append(f"{path} in its name")
        if path.is_file() and not path.is_symlink():
            try:
                data = path.read_bytes()
            except FileNotFoundError:  # of a process at work, which has removed it since
                continue
            found += [f"{path}: {text} as {form!r}" for form, text in FORMS.items() if form in data]
            found += [f"{path}: a picture" for start in PICTURES if start in data]
    return found


class Watched(RunningArchive):
    """An archive whose processes log everything they can, and have a temporary folder of their own."""

    def __init__(self, folder: Path) -> None:
        """Prepare the folders."""
        super().__init__(folder, fresh=True)
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        (folder / "verbose").mkdir()
        (folder / "verbose" / "sitecustomize.py").write_text(VERBOSE, encoding="utf-8")

    def environment(self) -> dict[str, str]:
        """Add both."""
        whole = super().environment()
        return {
            **whole, "TMPDIR": str(self.temporary), "PYTHONPATH": os.pathsep.join([str(self.folder / "verbose"), whole["PYTHONPATH"]]),
        }


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """An archive that has seen everything: patients through all doors, searches, refusals, conflicts, broken input, killed workers."""
    folder = tmp_path_factory.mktemp("rest")
    with Watched(folder) as archive:
        live(archive, tmp_path_factory.mktemp("canaries"))
        yield archive


def live(archive: Watched, outside: Path) -> None:
    """Do what must leave no trace in clear."""
    asker = doors.session(archive, archive.token("admin"))
    through_dimse(archive)
    through_stow(archive, asker)
    through_import(archive, outside)
    read_everything(archive, asker)
    sign_in_badly(archive)
    archive.run("user", "add", "mia", "--password-file", str(password_file(outside)))
    archive.run("grant", "add", "--to", "mia", "--role", "referrer", "--patient", f"{WORD}1")
    archive.run("grant", "add", "--to", "mia", "--role", "referrer", "--study", f"{STUDY}.1", "--reason", f"{WORD} asked for it")
    archive.run("explain", "mia", f"{STUDY}.1")
    archive.run("reconcile", "list")
    archive.run("delete", "--study", f"{STUDY}.3", "--reason", f"{WORD} was sent by mistake")
    assert archive.json("verify", "--full")["ok"]
    kill_in_the_middle(archive, asker)


def password_file(folder: Path) -> Path:
    path = folder / "password"
    path.write_text(PASSWORD + "\n", encoding="utf-8")
    return path


def samples(study: int) -> list[bytes]:
    """Instances whose every text says who it is."""
    texts = {"PatientID": f"{WORD}{study}", "AccessionNumber": f"{WORD}-A"}
    texts |= {"StudyDescription": f"{WORD} study", "SeriesDescription": f"{WORD} series"}
    return [instance(number, study=study, **texts) for number in range(1, 5)]


def through_dimse(archive: Watched) -> None:
    """Send instances, one again with other bytes, one cut short, one nested wrongly, one announced wrongly; and drop one."""
    certificates = doors.enrol(archive)
    files = [dataset_bytes(data) for data in samples(1)]
    with doors.connect(archive, certificates) as peer:
        assert peer.associate([(CT, [EXPLICIT])]) == AC
        for number, data in enumerate(files, 1):
            assert peer.store(1, CT, f"{STUDY}.1.1.{number}", data) == 0
        assert peer.store(1, CT, f"{STUDY}.1.1.1", files[0].replace(b"CANARY^One", b"CANARY^Two")) == 0x0111
        broken = [(f"{STUDY}.1.1.9", files[0][:-300]), (f"{STUDY}.1.1.2", files[0]), (f"{STUDY}.x", files[0]), ("9", b"CANARY" * 99)]
        for announced, data in broken:
            assert peer.store(1, CT, announced, data) >> 12 in {0xA, 0xC}
        peer.release()
    with doors.connect(archive, certificates) as peer:
        assert peer.associate([(CT, [EXPLICIT])]) == AC
        peer.message(1, store_command(CT.encode(), f"{STUDY}.1.1.8".encode()))
        peer.send(b"\x04\0\0\0\x01\0" + files[0][:200])
    with doors.connect(archive, certificates) as peer:
        peer.send(b"\x01\0\0\0\0\xff" + b"CANARY" * 40 + bytes(20))
        peer.read(1)
    with doors.connect(archive, certificates) as peer:
        assert peer.associate([(CT, [EXPLICIT])], calling="STRANGER") != AC


def through_stow(archive: Watched, asker: requests.Session) -> None:
    """Store instances, conflicts, contradictions, rubbish; and half a request."""
    files = samples(2)
    assert doors.stow(archive, asker, files)[0] == 200
    other = files[0].replace(b"CANARY^One", b"CANARY^Two")
    assert doors.stow(archive, asker, [other]) == (409, [], [45070])
    assert doors.stow(archive, asker, [instance(7, study=2, PatientID=f"{WORD}-other")])[0] == 202
    assert doors.stow(archive, asker, [files[0][:-100], files[1].replace(b"DICM", b"MCID"), b"CANARY" * 100])[0] == 409
    assert asker.post(
        f"{archive.url}/dicomweb/studies/{STUDY}.5", data=doors.multipart(files), headers={"Content-Type": doors.STOW}, timeout=30
    ).status_code == 409
    rubbish = b"--b\r\nCANARY: CANARY"
    answer = asker.post(f"{archive.url}/dicomweb/studies", data=rubbish, headers={"Content-Type": doors.STOW}, timeout=30)
    assert answer.status_code == 400
    half_a_request(archive, asker, doors.multipart(files)[:-700])


def half_a_request(archive: Watched, asker: requests.Session, body: bytes) -> None:
    """Send part of a request and hang up."""
    context = ssl.create_default_context(cafile=str(archive.ca))
    raw = socket.create_connection(("127.0.0.1", archive.status["http"]["port"]), 30)
    with context.wrap_socket(raw, server_hostname="127.0.0.1") as link, suppress(OSError):
        head = f"POST /dicomweb/studies HTTP/1.1\r\nHost: x\r\nAuthorization: {asker.headers['Authorization']}\r\n"
        link.sendall(f"{head}Content-Type: {doors.STOW}\r\nContent-Length: {len(body) + 5000}\r\n\r\n".encode() + body)


def through_import(archive: Watched, outside: Path) -> None:
    """Import files, broken ones too."""
    folder = outside / "media"
    folder.mkdir()
    for number, data in enumerate(samples(3)):
        (folder / f"{number}.dcm").write_bytes(data)
    (folder / "cut.dcm").write_bytes(samples(3)[0][:-100])
    (folder / "bare.dcm").write_bytes(samples(3)[0][400:])
    lines = doors.import_files(archive, [folder], outside / "report")
    assert sorted(line["outcome"] for line in lines) == ["rejected", "rejected", "stored", "stored", "stored", "stored"]


def read_everything(archive: Watched, asker: requests.Session) -> None:
    """Search, retrieve, look; rightly and wrongly."""
    base = f"{archive.url}/dicomweb"
    place = f"/studies/{STUDY}.1/series/{STUDY}.1.1"
    wanted = {
        f"/studies?PatientName={WORD}*": 200, f"/studies?PatientID={WORD}1&includefield=all": 200,
        f"/instances?StudyInstanceUID={STUDY}.1": 200,
        f"/studies?PatientNam={WORD}": 400, f"/studies?StudyDate={WORD}": 400, f"/studies?{WORD}=1": 400, f"/{WORD}/{STUDY}": 404,
        f"{place}/metadata": 200, f"/studies/{STUDY}.1/metadata": 200, place: 200, f"{place}/instances/{STUDY}.1.1.1/frames/1": 200,
        f"{place}/instances/{STUDY}.1.1.1/rendered?accept=image/png": 200, f"{place}/thumbnail": 200,
        f"{place}/instances/{STUDY}.1.1.1/frames/77": 404, f"{place}/instances/{STUDY}.1.1.1/bulk/7FE00010": 200,
        f"{place}/instances/{STUDY}.1.1.99": 404, f"/studies/{WORD}": 400, f"{place}/instances/{STUDY}.1.1.1/frames/{WORD}": 400,
    }
    assert {path: asker.get(base + path, timeout=30).status_code for path in wanted} == wanted
    assert asker.get(f"{base}{place}", headers={"Accept": f"text/{WORD}"}, timeout=30).status_code == 406


def sign_in_badly(archive: Watched) -> None:
    """Names, passwords and tokens that are none; and pages."""
    browser = doors.session(archive, "")
    browser.headers["Sec-Fetch-Site"] = "same-origin"
    for name, password in ((WORD, WORD), ("admin", f"{WORD}-password-1")):
        form = {"name": name, "password": password, "next": f"/studies?name={WORD}"}
        answer = browser.post(f"{archive.url}/login", data=form, timeout=30)
        assert answer.status_code == 401
    for credential in (f"Bearer {WORD}", "Basic " + base64.b64encode(f"{WORD}:{WORD}".encode()).decode(), WORD):
        assert browser.get(f"{archive.url}/dicomweb/studies", headers={"Authorization": credential}, timeout=30).status_code == 401
    first = (archive.storage / "first-password").read_text().strip()
    assert browser.post(f"{archive.url}/login", data={"name": "admin", "password": first, "next": "/studies"}, timeout=30).ok
    form = {"old": first, "new": PASSWORD, "again": PASSWORD, "first": "1"}
    assert browser.post(f"{archive.url}/me/password", data=form, timeout=30).ok
    for path in (f"/studies?name={WORD}", f"/studies/{STUDY}.1", f"/studies/{STUDY}.1/series/{STUDY}.1.1"):
        answer = browser.get(f"{archive.url}{path}", timeout=30)
        assert answer.status_code == 200
        assert "CANARY" in answer.text
    picture = f"/studies/{STUDY}.1/series/{STUDY}.1.1/instances/{STUDY}.1.1.1/frames/1/picture"
    assert browser.get(f"{archive.url}{picture}", timeout=30).headers["Content-Type"] == "image/png"


def kill_in_the_middle(archive: Watched, asker: requests.Session) -> None:
    """Kill the DIMSE and background workers while a large instance comes in, and wait until they are back."""
    large = instance(1, study=4, Rows=2048, Columns=2048, PixelData=WORD.encode() * (1 << 20))
    half_a_request(archive, asker, doors.multipart([large])[: 5 << 20])
    before = {one["role"]: one["pid"] for one in archive.json("status")["processes"]}
    with doors.connect(archive, archive.folder / "peer-CT1") as peer:
        assert peer.associate([(CT, [EXPLICIT])]) == AC
        peer.message(1, store_command(CT.encode(), f"{STUDY}.4.1.1".encode()))
        dataset = dataset_bytes(large)
        for at in range(0, 5 << 20, 16000):
            piece = dataset[at : at + 16000]
            peer.send(b"\x04\0" + (len(piece) + 6).to_bytes(4, "big") + (len(piece) + 2).to_bytes(4, "big") + b"\x01\0" + piece)
        for role in ("dimse", "background"):
            os.kill(before[role], signal.SIGKILL)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        now: dict[str, Any] = {one["role"]: one["pid"] for one in archive.json("status")["processes"]}
        if set(now) == set(before) and all(now[role] != before[role] for role in ("dimse", "background")):
            return
        time.sleep(0.2)
    pytest.fail("a killed worker did not come back")


def test_the_search_finds_what_is_in_clear(tmp_path: Path) -> None:
    """Each form, so that finding nothing below means something."""
    planted = [
        f"name {WORD}^One".encode(), f"xx{WORD.lower()}".encode(), f"x{STUDY}.1".encode("utf-16-le"), f"{WORD}".encode("utf-16-be"),
        *(base64.b64encode(b"y" * offset + f"{WORD}^Two".encode()) for offset in range(4)), f"{STUDY}.7".encode().hex().encode(),
    ]
    for number, data in enumerate(planted):
        (tmp_path / f"{number}").write_bytes(b"\xff" * 50 + data + b"\xff" * 50)
        assert in_clear(tmp_path), data
        (tmp_path / f"{number}").unlink()
    (tmp_path / f"{STUDY}.dcm").write_bytes(b"")
    assert in_clear(tmp_path)


def test_nothing_is_in_clear_while_it_runs(lived: Watched) -> None:
    assert [path.suffix for path in lived.storage.rglob("*.seg")], "nothing was stored"
    assert in_clear(lived.storage) == []
    assert in_clear(lived.temporary) == []


def test_the_log_was_verbose_and_says_nothing_of_patients(lived: Watched) -> None:
    text = lived.log()
    assert '"level":"debug"' in text
    assert "an instance was not stored" in text
    assert '"status":409' in text
    printed = "\n".join(lived.printed)
    assert [form for form in FORMS if form in text.encode() or form in printed.encode()] == []


def test_the_databases_do_not_open_without_their_keys(lived: Watched) -> None:
    for name in ("index.db", "keystore.db"):
        database = sqlite3.connect(f"file:{lived.storage / name}?mode=ro", uri=True)
        with pytest.raises(sqlite3.DatabaseError, match="not a database"):
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        database.close()
        assert not (lived.storage / name).read_bytes()[:16].startswith(b"SQLite")


def test_keys_and_data_are_their_users_alone(lived: Watched) -> None:
    keys = lived.storage / "keys"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    assert {"keyring.json", "root.key"} <= {path.name for path in keys.iterdir()}
    for path in [*keys.rglob("*"), *lived.storage.rglob("*.seg"), *lived.storage.glob("*.db*"), *lived.storage.glob("tls/*.key")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in keys.iterdir() if path.is_file())


def test_nothing_is_in_clear_after_the_end(lived: Watched) -> None:
    """What a process keeps in memory until it ends lies on the disk afterwards; so again, and after a second start."""
    assert lived.stop() == 0
    assert in_clear(lived.storage) == []
    assert in_clear(lived.temporary) == []
    lived.start("serve")
    report = lived.json("verify", "--full")
    assert report["ok"], report["findings"]
    assert in_clear(lived.storage) == []
    assert [form for form in FORMS if form in lived.log().encode()] == []
