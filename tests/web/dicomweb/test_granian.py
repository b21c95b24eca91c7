"""The door on a real socket: granian, TLS, the Python dicomweb-client, and peers that misbehave."""

from __future__ import annotations

import http.client
import io
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pydicom
import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from dicomweb_client.api import DICOMwebClient

from tests.conftest import ROOT
from tests.ports import free_port
from tests.web.dicomweb.test_wado import ANY
from tests.web.peer import LARGE_BYTES, LARGE_COUNT, LARGE_STUDY
from tests.web.samples import STUDY, instance, multipart

TOKEN = {"Authorization": "Bearer mia-token"}
TYPE = 'multipart/related; type="application/dicom"; boundary=b'


@dataclass(frozen=True)
class Peer:
    url: str
    port: int
    certificate: Path | None
    process: subprocess.Popen[bytes]

    @property
    def session(self) -> requests.Session:
        session = requests.Session()
        session.trust_env = False  # REQUESTS_CA_BUNDLE would go before the test's own certificate
        session.headers.update(TOKEN)
        session.verify = str(self.certificate) if self.certificate else False
        return session

    @property
    def client(self) -> DICOMwebClient:
        return DICOMwebClient(f"{self.url}/dicomweb", session=self.session)

    def socket(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 10)

    def resident_kib(self) -> int:
        """Return the memory of the worker: the child that answers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return max(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4 for pid in children)


def certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    at = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(at - timedelta(1)).not_valid_after(at + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(pem)
    return folder / "cert.pem", folder / "key.pem"


def serve(folder: Path, *tls: Path) -> Iterator[Peer]:
    port = free_port()
    argv = [sys.executable, "-m", "tests.web.peer", str(port), *(str(path) for path in tls)]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(argv, cwd=folder, env=environ, stdout=log, stderr=log)
    peer = Peer(f"{'https' if tls else 'http'}://127.0.0.1:{port}", port, tls[0] if tls else None, process)
    try:
        deadline = time.monotonic() + 90
        while True:
            with suppress(requests.RequestException):
                if peer.session.get(f"{peer.url}/healthz", timeout=5).status_code == 200:
                    break
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        yield peer
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    folder = tmp_path_factory.mktemp("secure")
    yield from serve(folder, *certificate(folder))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    yield from serve(tmp_path_factory.mktemp("plain"))


CORPUS = (
    "ImagingDataCommons__highdicom/data/test_files/ct_image.dcm",
    "ImagingDataCommons__highdicom/data/test_files/dx_image.dcm",
    "ImagingDataCommons__highdicom/data/test_files/sm_image_jpegls.dcm",
    "ImagingDataCommons__highdicom/data/test_files/sr_document.dcm",
    "cornerstonejs__dicomParser/encapsulated/single-frame/CT1_UNC.fragmented_bot_jpeg_ls.80.dcm",
    "cornerstonejs__dicomParser/encapsulated/multi-frame/CT0012.not_fragmented_bot_rle.dcm",
)


@pytest.fixture(scope="module")
def held(secure: Peer, corpus: Path) -> dict[str, bytes]:
    """The corpus files in the archive, as the client stored them: SOP Instance UID -> file."""
    files: dict[str, bytes] = {}
    for name in CORPUS:
        data = (corpus / name).read_bytes()
        dataset = pydicom.dcmread(io.BytesIO(data))
        answer = secure.session.post(f"{secure.url}/dicomweb/studies", data=multipart(data), headers={"Content-Type": TYPE}, timeout=30)
        assert answer.status_code in {200, 409}, answer.text
        if answer.status_code == 200:
            files[dataset.SOPInstanceUID] = data
    assert len(files) >= 4
    return files


def test_2a_dicomweb_client_stores_what_it_reads(secure: Peer) -> None:
    dataset = pydicom.dcmread(io.BytesIO(instance(7, study=7)))
    answer = secure.client.store_instances([dataset])
    [item] = answer.ReferencedSOPSequence
    assert item.ReferencedSOPInstanceUID == dataset.SOPInstanceUID
    assert item.RetrieveURL.startswith(f"{secure.url}/dicomweb/studies/{STUDY}.7/")
    assert "FailedSOPSequence" not in answer


def test_2a3_dicomweb_client_sees_failures(secure: Peer) -> None:
    with pytest.raises(requests.HTTPError) as refused:
        secure.client.store_instances([pydicom.dcmread(io.BytesIO(instance(7, study=7, PatientName="Another^Name")))])
    assert refused.value.response.status_code == 409
    one, other = pydicom.dcmread(io.BytesIO(instance(8, study=7))), pydicom.dcmread(io.BytesIO(instance(7, study=7, PatientName="X")))
    answer = secure.client.store_instances([one, other])
    assert [item.FailureReason for item in answer.FailedSOPSequence] == [45070]
    assert len(answer.ReferencedSOPSequence) == 1


def test_2a8_dicomweb_client_searches(secure: Peer, held: dict[str, bytes]) -> None:
    client = secure.client
    found = client.search_for_instances(get_remaining=True, limit=2)
    assert set(held) <= {row["00080018"]["Value"][0] for row in found}
    for data in held.values():
        dataset = pydicom.dcmread(io.BytesIO(data))
        filters = {"StudyInstanceUID": dataset.StudyInstanceUID, "PatientID": dataset.PatientID}
        [study] = client.search_for_studies(search_filters=filters, fields=["StudyDescription", "00080020"], fuzzymatching=False)
        assert study["00081190"]["Value"] == [f"{secure.url}/dicomweb/studies/{dataset.StudyInstanceUID}"]
        assert client.search_for_series(dataset.StudyInstanceUID)
    assert client.search_for_studies(search_filters={"PatientID": "nobody"}) == []


def test_a29_dicomweb_client_retrieves_the_same_bytes(secure: Peer, held: dict[str, bytes]) -> None:
    for sop, data in held.items():
        dataset = pydicom.dcmread(io.BytesIO(data))
        uids = dataset.StudyInstanceUID, dataset.SeriesInstanceUID, sop
        path = f"{secure.url}/dicomweb/studies/{uids[0]}/series/{uids[1]}/instances/{sop}"
        assert secure.session.get(path, headers={"Accept": "application/dicom; transfer-syntax=*"}, timeout=30).content == data
        assert secure.client.retrieve_instance(*uids, media_types=(("application/dicom", "*"),)) == dataset
        streamed = secure.client.iter_series(*uids[:2], media_types=(("application/dicom", "*"),))
        assert sop in [one.SOPInstanceUID for one in streamed]


def test_dicomweb_client_reads_metadata(secure: Peer, held: dict[str, bytes]) -> None:
    for sop, data in held.items():
        dataset = pydicom.dcmread(io.BytesIO(data))
        documents = secure.client.retrieve_series_metadata(dataset.StudyInstanceUID, dataset.SeriesInstanceUID)
        [document] = [one for one in documents if one["00080018"]["Value"] == [sop]]
        if "PixelData" in dataset:
            assert document["7FE00010"]["BulkDataURI"].startswith(secure.url)


def test_d03_2a6_dicomweb_client_reads_frames_and_bulk_data(secure: Peer, held: dict[str, bytes]) -> None:
    framed = 0
    for sop, data in held.items():
        dataset = pydicom.dcmread(io.BytesIO(data))
        uids = dataset.StudyInstanceUID, dataset.SeriesInstanceUID, sop
        if "PixelData" not in dataset:
            with pytest.raises(requests.HTTPError):
                secure.client.retrieve_instance_frames(*uids, [1])
            continue
        [frame] = secure.client.retrieve_instance_frames(*uids, [1])
        array = dataset.pixel_array
        first = array[0] if int(dataset.get("NumberOfFrames") or 1) > 1 else array
        assert frame == first.tobytes()
        [bulk] = secure.client.retrieve_bulkdata(f"{secure.url}/dicomweb/studies/{uids[0]}/series/{uids[1]}/instances/{sop}/bulk/7FE00010")
        assert bulk == dataset.PixelData
        framed += 1
    assert framed >= 4


def test_b14_dicomweb_client_is_told_404(secure: Peer) -> None:
    for ask in (secure.client.retrieve_study_metadata, secure.client.retrieve_study):
        with pytest.raises(requests.HTTPError) as absent:
            ask("1.2.3.4")
        assert absent.value.response.status_code == 404


@pytest.mark.parametrize(
    ("headers", "data", "status"),
    [
        ({"Authorization": "Bearer wrong"}, b"x", 401), ({"Content-Type": "text/plain"}, b"x", 415), ({}, b"x", 400),
        ({"Accept": "text/html"}, b"--b\r\n\r\n", 406), ({}, b"--b\r\n" + b"x" * 17_000, 400),
    ],
)
def test_10_a_client_that_sends_everything_first_reads_why_it_was_refused(
    secure: Peer, headers: dict[str, str], data: bytes, status: int
) -> None:
    answer = secure.session.post(
        f"{secure.url}/dicomweb/studies", data=data + bytes(20 << 20), headers={"Content-Type": TYPE, **headers}, timeout=30
    )
    assert answer.status_code == status


def test_tls_1_3_is_spoken(secure: Peer) -> None:
    context = ssl.create_default_context(cafile=str(secure.certificate))
    with secure.socket() as raw, context.wrap_socket(raw, server_hostname="127.0.0.1") as wrapped:
        assert wrapped.version() == "TLSv1.3"
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with secure.socket() as raw, pytest.raises(ssl.SSLError):
        context.wrap_socket(raw, server_hostname="127.0.0.1")


def send(peer: Peer, head: str, body: bytes) -> bytes:
    with peer.socket() as link:
        link.sendall(head.encode() + body)
        answer = b""
        while b"\r\n\r\n" not in answer:
            more = link.recv(65536)
            if not more:
                break
            answer += more
        return answer


def upload(length: str) -> str:
    return f"POST /dicomweb/studies HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer mia-token\r\nContent-Type: {TYPE}\r\n{length}\r\n\r\n"


def test_a34_chunked_and_a_lying_host_header(plain: Peer) -> None:
    data = multipart(instance(1, study=3))
    body = b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in (data[:100], data[100:])) + b"0\r\n\r\n"
    answer = send(plain, upload("Transfer-Encoding: chunked"), body)
    assert answer.startswith(b"HTTP/1.1 200")
    found = plain.session.get(
        f"{plain.url}/dicomweb/studies", headers={"Host": "127.0.0.1"}, params={"StudyInstanceUID": f"{STUDY}.3"}, timeout=10
    )
    assert found.json()[0]["00081190"]["Value"] == [f"{plain.url}/dicomweb/studies/{STUDY}.3"]


def test_a35_dropped_uploads_leave_nothing(plain: Peer) -> None:
    data = multipart(instance(1, study=4))
    for length, body in ((f"Content-Length: {len(data)}", data[:-30]), ("Transfer-Encoding: chunked", b"200\r\n" + data[:512] + b"\r\n")):
        for _ in range(10):
            with plain.socket() as link:
                link.sendall(upload(length).encode() + body)
    time.sleep(0.5)
    assert plain.session.get(f"{plain.url}/dicomweb/studies/{STUDY}.4", timeout=10).status_code == 404
    assert send(plain, upload(f"Content-Length: {len(data)}"), data).startswith(b"HTTP/1.1 200")


def test_10_refusals_do_not_wait_for_the_body(plain: Peer) -> None:
    started = time.monotonic()
    huge = "Content-Length: 8000000000"
    assert send(plain, upload(huge).replace("mia-token", "wrong"), b"x").startswith(b"HTTP/1.1 401")
    assert send(plain, upload(huge).replace("application/dicom", "text/plain"), b"x").startswith(b"HTTP/1.1 415")
    assert send(plain, upload("Content-Length: 90000000000"), b"x").startswith(b"HTTP/1.1 413")
    assert send(plain, upload(huge) .replace("Host: x", "Host: x\r\nAccept: application/dicom"), b"x").startswith(b"HTTP/1.1 406")
    assert time.monotonic() - started < 10


def test_10_idle_and_half_sent_requests_leave_room_for_others(plain: Peer) -> None:
    links = [plain.socket() for _ in range(200)]
    try:
        for number, link in enumerate(links):
            if number % 2:
                link.sendall(b"GET /healthz HTT")
        assert plain.session.get(f"{plain.url}/healthz", timeout=10).status_code == 200
    finally:
        for link in links:
            link.close()


def test_10_stalled_uploads_leave_room_for_readers(plain: Peer) -> None:
    links = [plain.socket() for _ in range(12)]
    try:
        for link in links:
            link.sendall(upload("Content-Length: 100000").encode() + b"--b\r\n\r\n")
        time.sleep(0.3)
        started = time.monotonic()
        assert plain.session.get(f"{plain.url}/dicomweb/studies", timeout=10).status_code == 200
        assert time.monotonic() - started < 5
    finally:
        for link in links:
            link.close()
    time.sleep(0.3)
    assert send(plain, upload("Content-Length: 5"), b"--b--").startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "rubbish", [b"\x00\x01\x02\x03" * 100, b"GET / HTTP/9.9\r\n\r\n", b"GET /dicomweb/studies?" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
                b"POST /dicomweb/studies HTTP/1.1\r\nContent-Length: -5\r\n\r\n", b"\x16\x03\x01\x02\x00\x01" + bytes(300)],
)
def test_10_rubbish_costs_no_more_than_its_connection(plain: Peer, rubbish: bytes) -> None:
    with plain.socket() as link, suppress(OSError):
        link.sendall(rubbish)
        link.settimeout(1)
        link.recv(1000)
    assert plain.session.get(f"{plain.url}/healthz", timeout=10).status_code == 200


def test_b21_a_large_study_streams_in_flat_memory(plain: Peer) -> None:
    before = plain.resident_kib()
    started = time.monotonic()
    with plain.session.get(f"{plain.url}/dicomweb/studies/{LARGE_STUDY}", headers={"Accept": ANY}, stream=True, timeout=30) as answer:
        assert answer.status_code == 200
        blocks = answer.iter_content(1 << 20)
        first = next(blocks)
        early = time.monotonic() - started
        seen = len(first) + sum(len(block) for block in blocks)
        took = time.monotonic() - started
        assert seen == int(answer.headers["Content-Length"]) > LARGE_COUNT * LARGE_BYTES
    assert early < took / 4
    assert plain.resident_kib() - before < 80_000


def test_a_reused_buffer_is_sent_as_it_was(plain: Peer) -> None:
    with plain.session.get(f"{plain.url}/dicomweb/studies/{LARGE_STUDY}", headers={"Accept": ANY}, stream=True, timeout=30) as answer:
        data = answer.raw.read(3 << 20)
    at = data.index(b"\r\n\r\n") + 4
    for block in range(4):
        piece = data[at + block * (256 << 10) : at + (block + 1) * (256 << 10)]
        assert piece == bytes([0, block]) * (128 << 10)


def test_1_a_large_instance_streams_in_flat_memory(plain: Peer) -> None:
    before = plain.resident_kib()
    block = bytes(1 << 20)
    total = 300

    def body() -> Iterator[bytes]:
        yield b"--b\r\nContent-Type: application/dicom\r\n\r\n" + bytes(128) + b"DICM"
        for _ in range(total):
            yield block
        yield b"\r\n--b--"

    answer = plain.session.post(f"{plain.url}/dicomweb/studies", data=body(), headers={"Content-Type": TYPE}, timeout=120)
    assert answer.status_code == 200, answer.text
    # The fake keeps the first 64 MiB before it gives up on keeping; the door itself holds a few blocks.
    assert plain.resident_kib() - before < (64 << 10) * 2 + 60_000


def test_head_on_the_wire(plain: Peer) -> None:
    link = http.client.HTTPConnection("127.0.0.1", plain.port, timeout=10)
    link.request("HEAD", f"/dicomweb/studies/{LARGE_STUDY}", headers={**TOKEN, "Accept": ANY})
    answer = link.getresponse()
    assert (answer.status, answer.read()) == (200, b"")
    assert int(answer.headers["Content-Length"]) > LARGE_COUNT * LARGE_BYTES
    link.request("GET", "/healthz")
    assert link.getresponse().read() == b"ok\n"
    link.close()
