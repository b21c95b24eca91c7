"""C-ECHO and C-STORE with real peers: dcmtk and pynetdicom, plain and over mutual TLS."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pynetdicom
import pytest
from pynetdicom import AE

from archive.dimse import contexts
from archive.dimse.contexts import STORAGE_CLASSES, TRANSFER_SYNTAXES, VERIFICATION
from archive.dimse.turns import settle
from archive.errors import InvalidInstance
from tests.conftest import ROOT
from tests.dimse import rawpeer
from tests.dimse.conftest import Running, StartNode
from tests.dimse.fakes import eventually
from tests.dimse.part10 import Sendable, sendable
from tests.dimse.rawpeer import AC, CT, EXPLICIT, IMPLICIT, RawPeer

Program = Callable[[str, str], str]


def run(*argv: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False, cwd=ROOT)


def tls_options(node: Running) -> list[str]:
    return ["+tls", str(node.pki.ct1.key), str(node.pki.ct1.certificate), "+cf", str(node.pki.files.authority)]


@pytest.fixture(scope="session")
def images(corpus: Path) -> list[Sendable]:
    """Every file of the corpus that a sender could send, hostile ones included."""
    found = [sendable(path) for path in sorted(corpus.rglob("*")) if path.is_file()]
    return [image for image in found if image is not None]


def test_dcmtk_echo_plain(node: Running, program: Program) -> None:
    done = run(program("echoscu", "dcmtk"), "-aet", "CT1", "-aec", "STRONGROOM", "127.0.0.1", str(node.plain_port))
    assert done.returncode == 0, done.stderr


def test_dcmtk_echo_tls(node: Running, program: Program) -> None:
    done = run(program("echoscu", "dcmtk"), *tls_options(node), "-aet", "CT1", "127.0.0.1", str(node.tls_port))
    assert done.returncode == 0, done.stderr


def test_pynetdicom_echo_and_release(node: Running) -> None:
    ae = AE(ae_title="CT1")
    ae.add_requested_context(VERIFICATION)
    association = ae.associate("127.0.0.1", node.plain_port)
    assert association.is_established
    assert association.acceptor.maximum_length == 131072
    settle(association)
    for _ in range(3):
        assert association.send_c_echo().Status == 0
    association.release()
    assert association.is_released
    assert eventually(lambda: node.listener.associations == 0)
    assert eventually(lambda: node.peers.slots == {2: 0})


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
def test_dcmtk_stores_a_series(node: Running, program: Program, corpus: Path, secured: bool) -> None:
    files = sorted((corpus / "neurolabusc__dcm_qa_ct" / "GE").rglob("*.dcm"))
    assert len(files) > 3
    options = tls_options(node) if secured else []
    port = node.tls_port if secured else node.plain_port
    done = run(program("storescu", "dcmtk"), *options, "-aet", "CT1", "127.0.0.1", str(port), *map(str, files))
    assert done.returncode == 0, done.stderr
    assert sorted(k.sop_instance_uid for k in node.store.kept) == sorted(s.sop_instance_uid for f in files if (s := sendable(f)))
    source = node.store.kept[0].source
    assert source.calling_ae_title == "CT1"  # type: ignore[attr-defined]
    assert source.certificate_sha256 == (node.pki.ct1.sha256 if secured else "")  # type: ignore[attr-defined]
    assert node.store.kept[0].subject.association


def test_dcmsend_scans_a_folder(node: Running, program: Program, corpus: Path) -> None:
    folder = corpus / "neurolabusc__dcm_qa_enh"
    done = run(program("dcmsend", "dcmtk"), "-aet", "CT1", "-v", "+sd", "+r", "127.0.0.1", str(node.plain_port), str(folder))
    assert done.returncode == 0, done.stderr
    assert len(node.store.kept) == len(list(folder.rglob("*.dcm")))


def test_every_file_of_the_corpus_comes_in_unchanged(start_node: StartNode, images: list[Sendable]) -> None:
    """Each on a context of its own transfer syntax, over mutual TLS, its data set bytes exactly equal."""
    node = start_node(private_sop_classes=True)
    taken = [image for image in images if image.transfer_syntax_uid in TRANSFER_SYNTAXES
             and contexts.is_storage(image.sop_class_uid, private=True)]
    assert len(taken) > 240
    kinds = sorted({(image.sop_class_uid, image.transfer_syntax_uid) for image in taken})
    assert len(kinds) <= 128
    with RawPeer(node.connect_tls(node.pki.ct1)) as peer:
        assert peer.associate([(abstract, [transfer]) for abstract, transfer in kinds]) == AC
        assert peer.max_pdu == 131072
        for number, (_, transfer) in enumerate(kinds):
            assert peer.results[2 * number + 1] == (0, transfer)
        for image in taken:
            context_id = 2 * kinds.index((image.sop_class_uid, image.transfer_syntax_uid)) + 1
            assert peer.store(context_id, image.sop_class_uid, image.sop_instance_uid, image.data_set) == 0, image.path
        peer.release()
    for image, kept in zip(taken, node.store.kept, strict=True):
        assert kept.data == image.data_set, image.path
        assert (kept.sop_class_uid, kept.sop_instance_uid, kept.transfer_syntax_uid) == (
            image.sop_class_uid, image.sop_instance_uid, image.transfer_syntax_uid,
        )


def test_pynetdicom_stores_files_unchanged(
    node: Running, images: list[Sendable], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own sender, proposing only each file's own transfer syntax."""
    monkeypatch.setattr(pynetdicom._config, "STORE_SEND_CHUNKED_DATASET", True)
    chosen: dict[tuple[str, str], Sendable] = {}
    for image in images:
        if "hostile" not in str(image.path) and image.sop_class_uid in STORAGE_CLASSES:
            chosen.setdefault((image.sop_class_uid, image.transfer_syntax_uid), image)
    assert len({transfer for _, transfer in chosen}) >= 12
    ae = AE(ae_title="CT1")
    for abstract, transfer in chosen:
        ae.add_requested_context(abstract, transfer)
    association = ae.associate("127.0.0.1", node.plain_port)
    assert association.is_established
    for image in chosen.values():
        assert association.send_c_store(image.path).Status == 0, image.path
    association.release()
    assert [kept.data for kept in node.store.kept] == [image.data_set for image in chosen.values()]


def test_the_application_storescu_with_required_contexts(node: Running, corpus: Path) -> None:
    files = sorted((corpus / "neurolabusc__dcm_qa_nih").rglob("*.dcm"))[:3]
    program = [sys.executable, "-m", "tests.dimse.library", "storescu"]
    done = run(*program, "127.0.0.1", str(node.plain_port), *map(str, files), "-cx", "-aet", "CT1")
    assert done.returncode == 0, done.stderr
    assert [kept.data for kept in node.store.kept] == [image.data_set for f in files if (image := sendable(f))]


# --- what may be proposed ------------------------------------------------------------------------------------------------------------


def test_contexts_are_answered_one_by_one(node: Running) -> None:
    proposed = [
        (CT, ["1.2.840.10008.1.2.4.70", EXPLICIT]),  # the proposer's order decides
        (CT, [IMPLICIT]),
        (CT, ["1.2.840.99999.1.2.1"]),  # nobody's transfer syntax
        ("1.3.46.670589.5.0.1.1", [IMPLICIT]),  # private
        ("1.2.840.10008.5.1.4.1.2.2.1", [IMPLICIT]),  # Study Root FIND
        (VERIFICATION, [IMPLICIT]),
        ("1.2.840.10008.5.1.4.1.1.6", [EXPLICIT]),  # retired
        (CT, []),
    ]
    with RawPeer(node.connect()) as peer:
        assert peer.associate(proposed) == AC
        assert peer.results[1] == (0, "1.2.840.10008.1.2.4.70")
        assert [peer.results[2 * n + 1][0] for n in range(8)] == [0, 0, 4, 3, 1, 0, 0, 4]
        peer.release()


def test_a_peer_that_may_not_store_gets_verification_alone(node: Running) -> None:
    with RawPeer(node.connect()) as peer:
        assert peer.associate([(CT, [IMPLICIT]), (VERIFICATION, [IMPLICIT])], calling="ECHO") == AC
        assert [peer.results[n][0] for n in (1, 3)] == [1, 0]
        assert peer.echo(3) == 0
        peer.send(rawpeer.p_data(1, 3, rawpeer.store_command(CT.encode(), b"1.2.3")))
        assert peer.read_pdu()[0] == rawpeer.ABORT
    assert node.store.opened == 0


def test_an_association_without_any_accepted_context_is_accepted(node: Running) -> None:
    with RawPeer(node.connect()) as peer:
        assert peer.associate([("1.2.3.4", [IMPLICIT])]) == AC
        assert peer.results == {1: (3, IMPLICIT)}
        peer.release()


def test_role_selection(node: Running) -> None:
    with RawPeer(node.connect()) as peer:
        roles = [(CT, 1, 1), ("1.2.840.10008.5.1.4.1.1.4", 0, 1)]
        assert peer.associate([(CT, [IMPLICIT]), ("1.2.840.10008.5.1.4.1.1.4", [IMPLICIT])], roles=roles) == AC
        assert peer.results[1][0] == 0
        assert peer.results[3][0] == 1
        assert peer.roles == {CT: (1, 0)}
        peer.release()


def test_one_hundred_and_twenty_eight_contexts(node: Running) -> None:
    transfers = sorted(TRANSFER_SYNTAXES)
    with RawPeer(node.connect()) as peer:
        assert peer.associate([(uid, transfers) for uid in sorted(STORAGE_CLASSES)[:128]]) == AC
        assert {result for result, _ in peer.results.values()} == {0}
        assert len(peer.results) == 128
        peer.release()


# --- silence in the logs -------------------------------------------------------------------------------------------------------------


def test_nothing_of_an_instance_reaches_a_log(
    node: Running, peer: RawPeer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG):
        assert peer.store(1, CT, "1.2.826.777.888", b"CANARY^PATIENT") == 0
        node.store.on_finish = InvalidInstance("CANARY", reason="bad-uid")
        assert peer.store(1, CT, "1.2.826.777.abc", b"CANARY^PATIENT") == 0xC000
        assert peer.echo(3) == 0
        peer.release()
    out, err = capfd.readouterr()
    for text in (caplog.text, out, err):
        assert "CANARY" not in text
        assert "1.2.826.777" not in text
    assert logging.getLogger("pynetdicom").handlers[0].__class__ is logging.NullHandler
