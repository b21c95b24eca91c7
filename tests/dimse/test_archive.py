"""The whole way in: real peers, the real table of peers, the real store, over real sockets."""

from __future__ import annotations

import dataclasses
import re
import socket
import ssl
import subprocess
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest

from archive.dimse import contexts, scu
from archive.dimse.listener import Endpoint
from archive.dimse.worker import run_worker
from archive.ledger.audit import Kind
from archive.ledger.log import AuditFilter
from archive.node import Node
from tests.dimse.part10 import Sendable, sendable
from tests.dimse.rawpeer import AC, RJ, RawPeer
from tests.services.archives import made, opened, the_console

WARNED = 0xB000


@dataclass
class Served:
    """An archive with a DIMSE worker."""

    node: Node
    tls_port: int
    plain_port: int
    folder: Path

    def enrol(self, name: str) -> Path:
        """Add a peer by `--issue`, and return where its certificate lies."""
        self.node.peers.add(the_console(self.node), name, [name], issue=self.folder / name)
        return self.folder / name

    def connect(self, certificate: Path) -> RawPeer:
        """Connect over mutual TLS."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(certificate / "ca.pem")
        context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
        return RawPeer(context.wrap_socket(socket.create_connection(("127.0.0.1", self.tls_port)), server_hostname="127.0.0.1"))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """An initialised archive that accepts associations on both listeners."""
    config = made(tmp_path, dimse={"private_sop_classes": True, "plain": {"enabled": True, "port": 0, "networks": ["127.0.0.0/8"]}})
    stop, ready = threading.Event(), threading.Event()
    listening = [socket.create_server(("127.0.0.1", 0), backlog=64) for _ in range(2)]
    with opened(config) as node:
        endpoints = [Endpoint(listening[0], tls=True), Endpoint(listening[1], tls=False)]
        worker = threading.Thread(target=run_worker, args=(node, endpoints, stop), kwargs={"ready": ready.set})
        worker.start()
        assert ready.wait(60)
        yield Served(node, listening[0].getsockname()[1], listening[1].getsockname()[1], tmp_path)
        stop.set()
        worker.join(60)
        assert not worker.is_alive()
    for one in listening:
        one.close()


def store_all(peer: RawPeer, images: list[Sendable]) -> list[int]:
    kinds = sorted({(image.sop_class_uid, image.transfer_syntax_uid) for image in images})
    assert peer.associate([(abstract, [transfer]) for abstract, transfer in kinds]) == AC
    statuses = []
    for image in images:
        context_id = 2 * kinds.index((image.sop_class_uid, image.transfer_syntax_uid)) + 1
        statuses.append(peer.store(context_id, image.sop_class_uid, image.sop_instance_uid, image.data_set))
    peer.release()
    return statuses


def test_a_modality_is_added_and_stores_its_series_with_dcmtk(
    served: Served, corpus: Path, program: Callable[[str, str], str]
) -> None:
    certificate = served.enrol("CT1")
    files = sorted(map(str, (corpus / "neurolabusc__dcm_qa_ct" / "GE").rglob("*.dcm")))
    options = ["+tls", str(certificate / "key.pem"), str(certificate / "cert.pem"), "+cf", str(certificate / "ca.pem")]
    command = [program("storescu", "dcmtk"), *options, "-aet", "CT1", "-aec", "STRONGROOM", "127.0.0.1", str(served.tls_port), *files]
    for _ in range(2):  # the second time every instance is a duplicate, and that is a success
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
    core = served.node.core
    with core.database.read() as tx:
        stored = core.ledger.search(tx, AuditFilter(kinds=(Kind.STORED,), limit=1000))
        duplicates = core.ledger.search(tx, AuditFilter(kinds=(Kind.DUPLICATE,), limit=1000))
    assert (len(stored), len(duplicates)) == (len(files), len(files))
    body = stored[0].body
    assert body is not None
    assert (body["subject"]["name"], body["subject"]["via"]) == ("CT1", "dimse")
    assert body["subject"]["association"]
    served.node.peers.remove(the_console(served.node), "CT1")
    assert subprocess.run(command, capture_output=True, timeout=120, check=False).returncode != 0


def as_senders_do(image: Sendable) -> tuple[Sendable, bool]:
    """Take the UIDs of the command from the data set, which file meta contradicts in some files; and say whether all UIDs are good."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the files, not of ours
        dataset = pydicom.dcmread(image.path, stop_before_pixels=True)
    uids = [str(dataset.get(word, "")) for word in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")]
    good = all(re.fullmatch(r"[0-9]+(\.[0-9]+)*", uid) for uid in uids)
    return dataclasses.replace(image, sop_class_uid=uids[0], sop_instance_uid=uids[1]), good


def test_the_real_files_of_the_corpus(served: Served, corpus: Path) -> None:
    """Every whole instance with its four UIDs comes in; some share a SOP Instance UID with another."""
    paths = [path for path in sorted(corpus.rglob("*")) if path.is_file() and "hostile" not in str(path)]
    sent = [as_senders_do(image) for path in paths if (image := sendable(path))]
    sent = [(image, good) for image, good in sent if contexts.is_storage(image.sop_class_uid, private=True)]
    assert len(sent) > 180
    with served.connect(served.enrol("CT1")) as peer:
        statuses = store_all(peer, [image for image, _ in sent])
    cut_short = {"GH179B.dcm"}
    for (image, good), status in zip(sent, statuses, strict=True):
        expected = (0, WARNED, 0x0111) if good and image.path.name not in cut_short else (0xC000,)
        assert status in expected, f"{image.path.name}: {status:04X}"
    assert statuses.count(0) > len(sent) * 0.7


def test_the_hostile_files_cost_no_more_than_an_answer(served: Served, corpus: Path) -> None:
    rows = [line.split("\t") for line in (corpus / "own__hostile" / "MANIFEST.tsv").read_text().splitlines()[1:]]
    wanted = {row[0]: row[3] for row in rows}
    images = [image for name in wanted if (image := sendable(corpus / "own__hostile" / name))]
    images = [image for image in images if image.transfer_syntax_uid in contexts.TRANSFER_SYNTAXES]
    with served.connect(served.enrol("CT1")) as peer:
        statuses = dict(zip([image.path.name for image in images], store_all(peer, images), strict=True))
    for name, status in statuses.items():
        assert status >> 12 in (0x0, 0xA, 0xB, 0xC), name
    assert statuses["00-good.dcm"] == 0
    stored_though_bad = [
        name for name, status in statuses.items() if status == 0 and wanted[name].startswith("reject") and " or " not in wanted[name]
        and "/" not in wanted[name]
    ]
    assert stored_though_bad == []
    for name in ("studyuid-traversal.dcm", "uid-alpha.dcm", "missing-StudyInstanceUID.dcm", "nested-3000.dcm", "px-length-4G.dcm"):
        assert statuses[name] in (0xC000, 0xA900), (name, statuses[name])
    assert statuses["dup-1.dcm"] == 0
    assert statuses["dup-2-other-patient.dcm"] == 0x0111


def test_a_plain_modality(served: Served, corpus: Path) -> None:
    image = sendable(corpus / "own__hostile" / "00-good.dcm")
    assert image is not None
    wanted = [(image.sop_class_uid, [image.transfer_syntax_uid])]
    with RawPeer(socket.create_connection(("127.0.0.1", served.plain_port))) as peer:
        assert peer.associate(wanted, calling="US1") == RJ
    console = the_console(served.node)
    waiting = served.node.peers.pending(console)
    assert [(row["calling_ae_title"], row["address"]) for row in waiting] == [("US1", "127.0.0.1")]
    served.node.peers.enrol(console, waiting[0]["id"], "US1")
    with RawPeer(socket.create_connection(("127.0.0.1", served.plain_port))) as peer:
        assert peer.associate(wanted, calling="US1") == AC
        assert peer.store(1, image.sop_class_uid, image.sop_instance_uid, image.data_set) == 0
        peer.release()


def test_the_archive_calls_a_peer(served: Served) -> None:
    """`archive peer test`, to itself: its own certificate is of the built-in CA, and it knows itself once it is enrolled."""
    console = the_console(served.node)
    added = served.node.peers.add(
        console, "SELF", ["STRONGROOM"], certificate=(served.node.config.tls_dir / "server.pem").read_bytes(),
        address=f"127.0.0.1:{served.tls_port}",
    )
    result = scu.echo(served.node, served.node.peers.get(console, added["id"]))
    assert result == {
        "ok": True, "peer": "SELF",
        "text": f"STRONGROOM at 127.0.0.1:{served.tls_port} answered C-ECHO over TLSv1.3 with the certificate bound to it",
    }


def test_nothing_of_it_lies_in_clear(served: Served) -> None:
    canary = bytes.fromhex("10001000504e0e00") + b"CANARY^PATIENT"
    with served.connect(served.enrol("CT1")) as peer:
        assert peer.associate([("1.2.840.10008.5.1.4.1.1.2", ["1.2.840.10008.1.2.1"])]) == AC
        assert peer.store(1, "1.2.840.10008.5.1.4.1.1.2", "1.2.826.0.777", canary) >> 12 in (0xA, 0xC)
        peer.release()
    for path in served.folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            assert b"CANARY" not in data, path
            assert b"1.2.826.0.777" not in data, path
