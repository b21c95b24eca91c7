"""Bad input never costs more than a clear error: hostile files, broken requests, silent and dropped connections."""

from __future__ import annotations

import http.client
import json
import resource
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
import requests

from tests.dimse.part10 import sendable
from tests.dimse.rawpeer import AC, CT, EXPLICIT, VERIFICATION, associate_rq, p_data, pdu, store_command
from tests.journeys import doors
from tests.journeys.instances import dataset_bytes
from tests.journeys.running import RunningArchive
from tests.web.samples import STUDY, instance

BOUND_S = 15
"""A legitimate peer is answered within this, whatever the others do."""

KEPT, REFUSED, CONFLICT, HELD = "kept", "refused", "conflict", "held"

AGREED = {
    # Stripped, or kept with a warning: docs/conformance.md.
    "uid-lead0.dcm": KEPT, "studyuid-lead0.dcm": KEPT, "uid-space.dcm": KEPT, "studyuid-space.dcm": KEPT,
    # One byte short of what its own length says.
    "invalid-utf8.dcm": REFUSED,
    "dup-2-other-patient.dcm": CONFLICT, "study-two-patients.dcm": HELD, "series-two-studies.dcm": HELD,
    "deflate-bomb-128M.dcm": KEPT, "frames-lie.dcm": KEPT, "dims-lie.dcm": KEPT, "private-sop.dcm": "",
}
"""Where the manifest leaves a choice, or means something else than store or reject; "" is either."""


@dataclass(frozen=True)
class Hostile:
    """A hostile file and what should become of it; "" is either."""

    name: str
    data: bytes
    wanted: str


@dataclass
class Attacked:
    """A served archive with a peer and an owner's session."""

    archive: RunningArchive
    certificates: Path
    asker: requests.Session

    def pids(self) -> dict[str, int]:
        """The processes."""
        return {one["role"]: one["pid"] for one in self.archive.json("status")["processes"]}

    def works(self) -> float:
        """Ask C-ECHO and QIDO, and return how long both took."""
        started = time.monotonic()
        with doors.connect(self.archive, self.certificates) as peer:
            assert peer.associate([(VERIFICATION, [EXPLICIT])]) == AC
            assert peer.echo() == 0
            peer.release()
        assert self.asker.get(f"{self.archive.url}/dicomweb/studies?limit=1", timeout=30).status_code == 200
        return time.monotonic() - started

    def has(self, sop: str) -> bool:
        """Whether a search finds an instance."""
        return bool(self.asker.get(f"{self.archive.url}/dicomweb/instances?SOPInstanceUID={sop}", timeout=30).json())

    def raw_http(self) -> ssl.SSLSocket:
        """A TLS connection to the web listener."""
        context = ssl.create_default_context(cafile=str(self.archive.ca))
        link = socket.create_connection(("127.0.0.1", self.archive.status["http"]["port"]), 30)
        return context.wrap_socket(link, server_hostname="127.0.0.1")

    def upload_head(self, length: str) -> bytes:
        """The head of a STOW-RS request."""
        credential = str(self.asker.headers["Authorization"])
        return (f"POST /dicomweb/studies HTTP/1.1\r\nHost: x\r\nAuthorization: {credential}\r\n"
                f"Content-Type: {doors.STOW}\r\n{length}\r\n\r\n").encode()


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    with RunningArchive(tmp_path_factory.mktemp("attacked")) as archive:
        yield Attacked(archive, doors.enrol(archive), doors.session(archive, archive.token("admin")))


@pytest.fixture(scope="module")
def hostile(corpus: Path) -> list[Hostile]:
    """The hostile files; those made from one good file get a SOP Instance UID each, so that each is judged by itself."""
    folder = corpus / "own__hostile"
    rows = [line.split("\t") for line in (folder / "MANIFEST.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    good = sendable(folder / "00-good.dcm")
    assert good is not None
    uid = good.sop_instance_uid
    found, before = [], ""
    for number, (name, _size, _what, want) in enumerate(rows):
        before = want = before if want == "as above" else want
        data = (folder / name).read_bytes().replace(uid.encode(), f"{uid[:-3]}{number:03d}".encode())
        found.append(Hostile(name, data, AGREED.get(name, judged(want))))
    assert len(found) > 70
    return found


def judged(want: str) -> str:
    """Read the manifest's last column."""
    either = any(choice in want for choice in ("reject or", "or reject", "reject, or", "reject/flag", "quarantine"))
    if either and not want.startswith("reject 0x"):
        return ""
    return REFUSED if want.startswith("reject") else KEPT


def by_dimse(attacked: Attacked, files: list[Hostile], _folder: Path) -> dict[str, str]:
    """Send what a sender could send: files with a file meta, each in an association of its own."""
    found = {}
    for one in files:
        path = _folder / one.name
        path.write_bytes(one.data)
        image = sendable(path)
        if image is None:
            continue
        with doors.connect(attacked.archive, attacked.certificates) as peer:
            assert peer.associate([(image.sop_class_uid, [image.transfer_syntax_uid])]) == AC
            if peer.results[1][0] != 0:
                found[one.name] = REFUSED
            else:
                status = peer.store(1, image.sop_class_uid, image.sop_instance_uid, image.data_set)
                assert status >> 12 in {0x0, 0xA, 0xB, 0xC}, (one.name, hex(status))
                found[one.name] = {0: KEPT, 0xB000: HELD, 0x0111: CONFLICT}.get(status, REFUSED)
            peer.release()
    return found


def by_stow(attacked: Attacked, files: list[Hostile], _folder: Path) -> dict[str, str]:
    """Store each in a request of its own."""
    found = {}
    for one in files:
        status, stored, failed = doors.stow(attacked.archive, attacked.asker, [one.data])
        assert (status in {200, 202}, len(stored), len(failed)) in {(True, 1, 0), (False, 0, 1)}, (one.name, status, failed)
        assert stored or status == 409, (one.name, status)
        found[one.name] = KEPT if stored else (CONFLICT if failed == [45070] else REFUSED)
        assert failed in ([], [45070], [49152], [43264], [290]), (one.name, failed)
    return found


def by_import(attacked: Attacked, files: list[Hostile], folder: Path) -> dict[str, str]:
    """Import them one after the other, since what comes first decides what the second contradicts."""
    found = {}
    ordered = folder / "ordered"
    ordered.mkdir()
    for one in files:
        (ordered / one.name).write_bytes(one.data)
    for line in doors.import_files(attacked.archive, [ordered], folder / "report"):
        found[Path(line["file"]).name] = {"stored": KEPT, "duplicate": KEPT, "rejected": REFUSED}.get(line["outcome"], line["outcome"])
        assert line["outcome"] != "rejected" or line["reason"]
    assert set(found) == {one.name for one in files}
    return found


DOORS = {"dimse": by_dimse, "stow": by_stow, "import": by_import}


@pytest.mark.parametrize("door", DOORS)
def test_hostile_files(attacked: Attacked, hostile: list[Hostile], door: str, tmp_path: Path) -> None:
    before = attacked.pids()
    found = DOORS[door](attacked, hostile, tmp_path)
    wanted = {one.name: one.wanted for one in hostile if one.wanted and one.name in found}
    if door == "stow":  # stored, and told to wait: STOW-RS has no word of its own for it
        wanted = {name: KEPT if want == HELD else want for name, want in wanted.items()}
    assert {name: found[name] for name in wanted if found[name] != wanted[name]} == {}
    assert len(found) > 60
    assert attacked.pids() == before
    assert attacked.works() < BOUND_S


def test_what_was_kept_is_served_safely(attacked: Attacked, hostile: list[Hostile]) -> None:
    """Metadata is JSON without NaN, frames and pictures are answered or refused, bytes come back, pages hold no markup of theirs."""
    base = f"{attacked.archive.url}/dicomweb"
    rows = attacked.asker.get(f"{base}/instances?includefield=all", timeout=30).json()
    assert len(rows) > 25
    kept = {one.data[128:] for one in hostile}

    def refuse(word: str) -> None:
        raise AssertionError(word)

    for row in rows:
        place = row["00081190"]["Value"][0].replace(attacked.archive.status["http"]["public_url"], attacked.archive.url)
        metadata = attacked.asker.get(f"{place}/metadata", timeout=30)
        assert metadata.status_code == 200
        assert len(json.loads(metadata.content.decode("utf-8"), parse_constant=refuse)) == 1
        for path in ("/frames/1", "/frames/2", "/frames/999999", "/rendered", "/thumbnail", "/frames/2/rendered?viewport=32,32"):
            assert attacked.asker.get(place + path, timeout=30).status_code in {200, 404, 406}
        whole = attacked.asker.get(place, headers={"Accept": "application/dicom; transfer-syntax=*"}, timeout=30)
        assert whole.status_code == 200
        assert whole.headers["X-Content-Type-Options"] == "nosniff"
        assert whole.content[:128] == bytes(128)
        same = whole.content[128:] in kept
        assert same or dataset_bytes(whole.content) in {dataset_bytes_or_none(one.data) for one in hostile}
    for query in ("StudyDate=20200101-20201231", "PatientName=*DROP*", "PatientName=*%3Cscript%3E*", "StudyDescription=a*", "PatientID=H*"):
        assert attacked.asker.get(f"{base}/studies?{query}", timeout=30).status_code == 200
    assert attacked.archive.json("verify", "--full")["ok"]


def dataset_bytes_or_none(data: bytes) -> bytes | None:
    try:
        return dataset_bytes(data)
    except (pydicom.errors.InvalidDicomError, ValueError, OSError, struct.error):
        return None


def test_malformed_pdus(attacked: Attacked) -> None:
    before = attacked.pids()
    contexts = [(CT, [EXPLICIT])]
    opening = associate_rq(contexts)
    rubbish = [
        b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100, b"\xff" * 5000, pdu(9, b"x" * 20), b"\x01\0\xff\xff\xff\xff" + b"x" * 1000, opening[:40],
        opening[:-20], opening[:74] + b"\x10\0\xff\xff" + opening[78:], pdu(4, b"\0\0\0\x02\x01\x03"), pdu(1, b""), opening + opening,
    ]
    for data in rubbish:
        with doors.connect(attacked.archive, attacked.certificates) as peer, suppress(OSError, EOFError):
            peer.connection.settimeout(0.3)
            peer.send(data)
            peer.read(1)
        with doors.connect(attacked.archive, attacked.certificates, handshake=False) as peer, suppress(OSError, EOFError):
            peer.connection.settimeout(0.3)
            peer.send(data)
            peer.read(1)
    inside = [
        pdu(4, b""), pdu(4, b"\xff\xff\xff\xff\x01\x03x"), p_data(1, 3, b"not a command"), p_data(99, 3, b"x"), p_data(1, 2, b"data first"),
        p_data(1, 3, store_command(b"1.2.3", b"x" * 300)), pdu(77, b""), b"\x04\0\x7f\xff\xff\xff" + b"x" * 70000, opening,
        p_data(1, 3, b"\0\0\0\0\x04\0\0\0\xff\xff\xff\xff" * 1000),
    ]
    for data in inside:
        with doors.connect(attacked.archive, attacked.certificates) as peer, suppress(OSError, EOFError):
            assert peer.associate(contexts) == AC
            peer.connection.settimeout(1)
            peer.send(data)
            peer.read(1)
    assert attacked.works() < BOUND_S
    assert attacked.pids() == before


def test_half_and_malformed_requests(attacked: Attacked) -> None:
    before = attacked.pids()
    rubbish = [
        b"\0" * 100, b"GET", b"GET / HTTP/9.9\r\n\r\n", b"GET /dicomweb/studies?" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        attacked.upload_head("Content-Length: -5"), attacked.upload_head("Content-Length: 10") + b"--b",
        attacked.upload_head("Transfer-Encoding: chunked") + b"zz\r\n",
        attacked.upload_head("Transfer-Encoding: chunked") + b"ffffffffffffffffff\r\n",
        b"GET /%00%ff%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /static/../../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    ]
    for data in rubbish:
        with attacked.raw_http() as link, suppress(OSError):
            link.settimeout(0.5)
            link.sendall(data)
            answer = link.recv(65536)
            assert b" 200 " not in answer[:20]
            assert b"root:" not in answer
    assert attacked.works() < BOUND_S
    assert attacked.pids() == before


def test_a_thousand_idle_sockets_on_each_listener(attacked: Attacked) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("this machine allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    before = attacked.pids()
    ports = attacked.archive.status["dimse_tls"]["port"], attacked.archive.status["http"]["port"]
    with ExitStack() as stack:
        for number in range(1000):
            for port in ports:
                link = stack.enter_context(socket.create_connection(("127.0.0.1", port), 30))
                if number % 3 == 1:
                    link.sendall(b"\x16\x03\x01\x02\x00\x01\x00")  # the beginning of a ClientHello
        for _ in range(3):
            assert attacked.works() < BOUND_S
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert attacked.pids() == before
    assert attacked.works() < BOUND_S


def test_dropped_connections_leave_nothing(attacked: Attacked) -> None:
    """However much of an instance had come, small or large, by either door."""
    segments = sorted(path.name for path in attacked.archive.storage.rglob("*.seg"))
    waiting = len(attacked.archive.json("reconcile", "list"))
    small = instance(1, study=41)
    large = instance(2, study=41, Rows=2048, Columns=2048, PixelData=bytes(8 << 20))
    for data in (small, large):
        body = doors.multipart([data])
        for length in (f"Content-Length: {len(body)}", "Transfer-Encoding: chunked"):
            for part in (0.1, 0.6, 0.999):
                piece = body[: int(len(body) * part)]
                with attacked.raw_http() as link:
                    chunk = f"{len(body):x}\r\n".encode() if "chunked" in length else b""
                    link.sendall(attacked.upload_head(length) + chunk + piece)
        sop, dataset = f"{STUDY}.41.1.{1 if data is small else 2}", dataset_bytes(data)
        for part in (0.1, 0.6, 0.999):
            with doors.connect(attacked.archive, attacked.certificates) as peer:
                assert peer.associate([(CT, [EXPLICIT])]) == AC
                peer.send(p_data(1, 3, store_command(CT.encode(), sop.encode())))
                for at in range(0, int(len(dataset) * part), 16000):
                    peer.send(p_data(1, 0, dataset[at : min(at + 16000, int(len(dataset) * part))]))
    end = time.monotonic() + 60
    while time.monotonic() < end:
        left = sorted(path.name for path in attacked.archive.storage.rglob("*.seg"))
        if len(left) <= len(segments) + 1:  # another process may have opened its first
            break
        time.sleep(0.2)
    else:
        pytest.fail("segments of dropped instances remain")
    assert attacked.asker.get(f"{attacked.archive.url}/dicomweb/studies/{STUDY}.41/series", timeout=30).json() == []
    assert len(attacked.archive.json("reconcile", "list")) == waiting
    report = attacked.archive.json("verify")
    assert report["ok"], report["findings"]
    status, stored, _failed = doors.stow(attacked.archive, attacked.asker, [small, large])
    assert (status, len(stored)) == (200, 2)


def test_too_much_is_refused_before_it_is_read(attacked: Attacked) -> None:
    with attacked.raw_http() as link:
        link.sendall(attacked.upload_head("Content-Length: 90000000000"))
        answer = http.client.HTTPResponse(link)
        answer.begin()
        assert answer.status == 413
    assert attacked.works() < BOUND_S


def test_nothing_of_it_was_a_fault_of_ours(attacked: Attacked) -> None:
    """The log tells of what was refused, never of an unexpected error."""
    lines = [json.loads(line) for line in attacked.archive.log().splitlines() if line.startswith("{")]
    assert lines
    assert [line for line in lines if "exception" in line or "unexpected" in line["message"] or line["level"] == "critical"] == []
    assert [line for line in attacked.archive.log().splitlines() if not line.startswith("{")] == []
