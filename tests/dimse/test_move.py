"""C-MOVE: to registered destinations both sides may see, on one association, with the right certificate or not at all."""

from __future__ import annotations

import io
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pynetdicom import evt

from archive.access.grants import Target
from archive.dicom.transcode import ENCODERS, JPEG_2000, JPEG_LOSSLESS, JPEG_LS, RLE
from archive.dimse import move as move_module
from archive.dimse.requestor import MAXIMUM_CONTEXTS
from archive.ledger.audit import Kind
from archive.services import sending as sending_module
from archive.services.sending import Selected
from archive.services.signin import SignedIn
from tests.dimse.clinic import (
    EXPLICIT,
    IMPLICIT,
    MOVE,
    PATIENT_MOVE,
    Clinic,
    Receiver,
    clinic,
    final_counts,
    identifier,
    received,
)  # fmt: skip
from tests.dimse.fakes import eventually
from tests.dimse.test_scu import listening
from tests.ports import free_port
from tests.services.archives import PASSWORD, instance, the_console
from tests.services.ward import Clock

EVERYTHING = Target("everything")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    """Two patients; WS sees and may send all."""
    with clinic(tmp_path_factory.mktemp("move")) as it:
        it.put(
            *(instance(n, study="1.2.3") for n in range(1, 6)),
            *(instance(n, study="1.2.3", series="1.2.3.9", SeriesNumber=2) for n in (1, 2)),
            instance(1, study="1.2.4", PatientID="P2"), instance(1, study="1.2.5", PatientID="P2"),
            instance(1, study="1.2.6", PatientID="P3", IssuerOfPatientID="NORTH"),
            instance(1, study="1.2.7", PatientID="P3", IssuerOfPatientID="SOUTH"),
        )
        it.node.accounts.add_role(the_console(it.node), "router", ["search", "metadata", "original", "send"])
        it.plain_peer("WS", target=EVERYTHING, role="router")
        yield it


@pytest.fixture
def destination(made: Clinic, request: pytest.FixtureRequest) -> Iterator[Callable[..., Receiver]]:
    """`destination("DST", target=..., syntaxes=..., answers=...)`: a receiver that is a registered peer."""
    running: list[tuple[str, Receiver]] = []

    def start(name: str, *, target: Target | None = EVERYTHING, **options: Any) -> Receiver:
        receiver = Receiver(name, **options)
        running.append((name, receiver))
        made.plain_peer(name, port=receiver.port, target=target)
        return receiver

    yield start
    for name, receiver in running:
        receiver.close()
        made.node.peers.remove(the_console(made.node), name)


def move(it: Clinic, name: str, to: str, level: str, *, root: str = MOVE, **keys: Any) -> tuple[Dataset, Dataset | None]:
    """The final response and its data set."""
    with it.association(name, root) as association:
        *_, (status, found) = association.send_c_move(identifier(level, **keys), to, root)
    return status, found


def counts(status: Dataset) -> tuple[int, int, int]:
    return (
        status.NumberOfCompletedSuboperations, status.NumberOfFailedSuboperations, status.NumberOfWarningSuboperations,
    )


def test_movescu_of_dcmtk_to_itself(made: Clinic, program: Callable[[str, str], str], tmp_path: Path) -> None:
    """What every workstation does; the role `workstation` is enough to have instances sent to oneself."""
    port = free_port()
    made.plain_peer("STATION", port=port, target=EVERYTHING)
    keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=1.2.3"]
    done = made.dcmtk(program("movescu", "dcmtk"), "STATION", "-S", "-v", "-aem", "STATION", "+P", str(port), *keys, "-od", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert final_counts(done.stdout + done.stderr).get("Completed", 7) == 7
    found = received(tmp_path)
    assert len(found) == 7
    assert found["1.2.3.1.2"].PixelData == pydicom.dcmread(io.BytesIO(instance(2, study="1.2.3"))).PixelData
    assert move(made, "STATION", "WS", "STUDY", StudyInstanceUID="1.2.3")[0].Status == 0xA801  # which has no address


@pytest.mark.parametrize(("root", "level", "keys", "expected"), [
    (PATIENT_MOVE, "PATIENT", {"PatientID": "P2"}, 2), (PATIENT_MOVE, "PATIENT", {"PatientID": "P3", "IssuerOfPatientID": "NORTH"}, 1),
    (PATIENT_MOVE, "PATIENT", {"PatientID": "P3"}, 2), (MOVE, "STUDY", {"StudyInstanceUID": ["1.2.3", "1.2.4"]}, 8),
    (MOVE, "SERIES", {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.9"}, 2),
    (MOVE, "IMAGE", {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.1", "SOPInstanceUID": ["1.2.3.1.5", "1.2.3.1.1"]}, 2),
    (MOVE, "STUDY", {"StudyInstanceUID": "1.2.77"}, 0),
])  # fmt: skip
def test_every_level(
    made: Clinic, destination: Callable[..., Receiver], root: str, level: str, keys: dict[str, Any], expected: int
) -> None:
    receiver = destination("DST")
    status, found = move(made, "WS", "DST", level, root=root, **keys)
    assert (status.Status, counts(status), found) == (0, (expected, 0, 0), None)
    assert len(receiver.received) == expected
    assert receiver.associations == (1 if expected else 0)
    assert set(receiver.originators) <= {("WS", 1)}
    assert {syntax for _, syntax, _ in receiver.received} <= {EXPLICIT}


def test_an_empty_unique_key_and_an_unknown_destination(made: Clinic, destination: Callable[..., Receiver]) -> None:
    receiver = destination("DST")
    for keys in ({}, {"StudyInstanceUID": ""}, {"StudyInstanceUID": "*"}):
        assert move(made, "WS", "DST", "STUDY", **keys)[0].Status == 0xA900
    for title in ("NOBODY", "WS", "dst"):
        assert move(made, "WS", title, "STUDY", StudyInstanceUID="1.2.3")[0].Status == 0xA801
    body = made.events(Kind.DENIED)[0].body
    assert body is not None
    assert body["detail"]["what"] == "C-MOVE"
    assert receiver.received == []


def test_both_sides_must_be_allowed_to(made: Clinic, destination: Callable[..., Receiver]) -> None:
    """The requester may send, the destination may receive; what either may not looks like nothing."""
    destination("DST")
    nothing = move(made, "WS", "DST", "STUDY", StudyInstanceUID="1.2.77")[0].to_json()
    blind = destination("BLIND", target=None)
    narrow = destination("NARROW", target=Target("series", "1.2.3.9"))
    assert move(made, "WS", "BLIND", "STUDY", StudyInstanceUID="1.2.3")[0].to_json() == nothing
    assert blind.associations == 0
    status, _ = move(made, "WS", "NARROW", "STUDY", StudyInstanceUID="1.2.3")
    assert (status.Status, counts(status)) == (0, (2, 0, 0))
    assert sorted(uid for uid, _, _ in narrow.received) == ["1.2.3.9.1", "1.2.3.9.2"]
    made.plain_peer("READER", target=EVERYTHING)  # a workstation may not send to others
    assert move(made, "READER", "DST", "STUDY", StudyInstanceUID="1.2.3")[0].to_json() == nothing
    assert move(made, "NARROW", "DST", "STUDY", StudyInstanceUID="1.2.4")[0].to_json() == nothing


def test_the_event_names_the_destination_before_the_first_instance(made: Clinic, destination: Callable[..., Receiver]) -> None:
    seen: list[dict[str, Any]] = []

    def looks(_event: Any, _n: int) -> int:
        body = made.events(Kind.SENT)[0].body
        assert body is not None
        seen.append(body)
        return 0

    receiver = destination("DST", answers=looks)
    assert move(made, "WS", "DST", "SERIES", StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.3.9")[0].Status == 0
    assert len(seen) == 2
    assert seen[0]["detail"] == {
        "what": "C-MOVE", "datastore": "clinical", "destination": "DST", "ae_title": "DST", "host": "127.0.0.1", "port": receiver.port,
    }
    assert (seen[0]["objects"], seen[0]["instances"], seen[0]["subject"]["name"]) == ([["study", "1.2.3"]], 2, "WS")


def test_failures_warnings_and_a_destination_that_only_speaks_implicit(made: Clinic, destination: Callable[..., Receiver]) -> None:
    receiver = destination("DST", syntaxes=[IMPLICIT], answers=lambda _event, n: {1: 0xA700, 2: 0xB007}.get(n, 0))
    status, found = move(made, "WS", "DST", "SERIES", StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.3.1")
    assert (status.Status, counts(status)) == (0xB000, (3, 1, 1))
    assert found is not None
    assert found.FailedSOPInstanceUIDList == receiver.received[0][0]
    for uid, syntax, data in receiver.received:
        assert syntax == IMPLICIT
        dataset = pydicom.filereader.read_dataset(io.BytesIO(data), is_implicit_VR=True, is_little_endian=True)
        assert dataset.SOPInstanceUID == uid


@pytest.mark.parametrize("syntax", [JPEG_LS, JPEG_LOSSLESS, RLE])
def test_a_destination_that_only_takes_compressed_images(made: Clinic, destination: Callable[..., Receiver], syntax: str) -> None:
    receiver = destination("DST", syntaxes=[syntax])
    status, _ = move(made, "WS", "DST", "SERIES", StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.3.1")
    assert (status.Status, counts(status)[0]) == (0x0000, len(receiver.received))
    assert len(receiver.received) > 1
    for uid, taken, data in receiver.received:
        assert taken == syntax
        dataset = pydicom.filereader.read_dataset(io.BytesIO(data), is_implicit_VR=False, is_little_endian=True)
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntax
        assert dataset.SOPInstanceUID == uid
        assert dataset.pixel_array.size == dataset.Rows * dataset.Columns


def test_a_destination_that_is_not_there(made: Clinic) -> None:
    made.plain_peer("GONE", port=free_port(), target=EVERYTHING)
    status, found = move(made, "WS", "GONE", "STUDY", StudyInstanceUID="1.2.3")
    assert (status.Status, counts(status)) == (0xA702, (0, 7, 0))
    assert found is not None
    assert len(found.FailedSOPInstanceUIDList) == 7


def test_a_destination_that_hangs_up(made: Clinic, destination: Callable[..., Receiver]) -> None:
    def hangs_up(event: Any, n: int) -> int:
        if n == 2:
            event.assoc.abort()
        return 0

    receiver = destination("DST", answers=hangs_up)
    status, _ = move(made, "WS", "DST", "STUDY", StudyInstanceUID="1.2.3")
    assert (status.Status, counts(status)) == (0xB000, (6, 1, 0))
    assert receiver.associations == 2


def test_a_destination_that_never_answers(made: Clinic) -> None:
    """Two tries, and then the rest is given up."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        made.plain_peer("SILENT", port=silent.getsockname()[1], target=EVERYTHING)
        closing = threading.Timer(0.5, silent.close)
        closing.start()
        status, _ = move(made, "WS", "SILENT", "STUDY", StudyInstanceUID="1.2.3")
        closing.join()
    assert (status.Status, counts(status)) == (0xA702, (0, 7, 0))


def test_cancel(made: Clinic, destination: Callable[..., Receiver]) -> None:
    stopping, go_on = threading.Event(), threading.Event()
    receiver = destination("DST", answers=lambda _event, n: 0 if n > 1 else 0 * go_on.wait(60))
    handlers = [(evt.EVT_PDU_SENT, lambda _event: go_on.set() if stopping.is_set() else None)]
    with made.association("WS", MOVE, evt_handlers=handlers) as association:
        answers = association.send_c_move(identifier("STUDY", StudyInstanceUID="1.2.3"), "DST", MOVE, msg_id=9)
        assert eventually(lambda: receiver.received)
        stopping.set()
        association.send_c_cancel(9, query_model=MOVE)
        *_, (status, _) = answers
    assert status.Status == 0xFE00
    assert status.NumberOfCompletedSuboperations + status.NumberOfRemainingSuboperations == 7
    assert len(receiver.received) < 7


def test_a_revocation_of_the_destination_in_the_middle(made: Clinic, destination: Callable[..., Receiver]) -> None:
    grants: list[dict[str, Any]] = []

    def revokes(_event: Any, n: int) -> int:
        if n == 3:
            made.node.accounts.revoke_grant(the_console(made.node), grants[0]["id"])
        return 0

    receiver = destination("DST", target=None, answers=revokes)
    grants.append(made.grant("DST", EVERYTHING))
    status, _ = move(made, "WS", "DST", "STUDY", StudyInstanceUID="1.2.3")
    assert len(receiver.received) in (3, 4)
    assert (status.Status, status.NumberOfFailedSuboperations) == (0xB000, 7 - len(receiver.received))


@dataclass
class Passing:
    """A study of 200 instances, WS and DST in a group of their own each, mia who passes on what she is granted, and a clock set by hand.

    The devices get the right by their groups, since people pass access on to people and groups.
    """

    clinic: Clinic
    clock: Clock
    receiver: Receiver
    halfway: list[Callable[[], object]]
    """What is done once 100 have come."""

    def give(self, to: str, end: str = "") -> Callable[[], object]:
        """Give a group the right, and return what ends it."""
        node, console, study = self.clinic.node, the_console(self.clinic.node), Target("study", "1.2.3")
        if not end.startswith("what"):
            window = end.startswith("its window")
            given = node.accounts.add_grant(console, to=to, role="both", target=study, until="5m" if window else None)
            if window:
                return lambda: setattr(self.clock, "at", given["until"])
            return lambda: node.accounts.revoke_grant(console, given["id"])
        begun = node.signin.password("mia", PASSWORD, address="192.0.2.7", user_agent="test")
        assert isinstance(begun, SignedIn)
        mia = node.signin.session(begun.token, address="192.0.2.7")
        above = node.accounts.add_grant(console, to="mia", role="both", target=study, delegable=1)
        node.delegation.delegate(mia, to=to, target=study, permissions=["send", "receive"], parent=above["id"])
        return lambda: node.accounts.revoke_grant(console, above["id"])


@pytest.fixture(scope="module")
def passing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Passing]:
    clock, halfway = Clock(), list[Callable[[], object]]()
    receiver = Receiver("DST", answers=lambda _event, n: 0 * bool(halfway[0]()) if n == 100 else 0)
    with clinic(tmp_path_factory.mktemp("many"), clock=clock) as it:
        console, accounts = the_console(it.node), it.node.accounts
        it.put(*(instance(n, study="1.2.3", rows=1) for n in range(1, 201)), instance(1, study="1.2.4", PatientID="P2"))
        accounts.add_role(console, "both", ["send", "receive", "delegate"])
        accounts.add_user(console, "mia", roles=["radiologist"], password=PASSWORD)
        for name, port in (("WS", None), ("DST", receiver.port)):
            it.plain_peer(name, port=port, target=Target("study", "1.2.4"))  # without a grant of its own nothing is offered to it
            accounts.add_group(console, f"of-{name}")
            accounts.join_group(console, f"of-{name}", name)
        yield Passing(it, clock, receiver, halfway)
    receiver.close()


@pytest.mark.parametrize("side", ["WS", "DST"])
@pytest.mark.parametrize("end", ["it is revoked", "its window closes", "what it was passed on from is revoked"])
def test_at_most_one_more_of_200_leaves_once_the_right_has_ended(passing: Passing, side: str, end: str) -> None:
    other = passing.give("of-DST" if side == "WS" else "of-WS")
    passing.halfway[:] = [passing.give(f"of-{side}", end)]
    passing.receiver.received.clear()
    status, _ = move(passing.clinic, "WS", "DST", "STUDY", StudyInstanceUID="1.2.3")
    went = len(passing.receiver.received)
    assert went in (100, 101)
    assert (status.Status, counts(status)) == (0xB000, (went, 200 - went, 0))
    other()


def test_more_than_can_be_counted(made: Clinic, destination: Callable[..., Receiver], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending_module, "MAXIMUM_INSTANCES", 6)
    destination("DST")
    assert move(made, "WS", "DST", "STUDY", StudyInstanceUID="1.2.3")[0].Status == 0xA702


def test_over_tls_only_to_the_holder_of_the_certificate(made: Clinic, program: Callable[[str, str], str], tmp_path: Path) -> None:
    """A certificate of the built-in CA that is another peer's is not enough."""
    port = free_port()
    bound = made.tls_peer("SECURE", port=port, target=EVERYTHING)
    other = made.tls_peer("OTHER")
    for certificate, expected in ((bound, (0, (7, 0, 0))), (other, (0xA702, (0, 7, 0)))):
        out = tmp_path / certificate.name
        out.mkdir()
        command = [
            program("storescp", "dcmtk"), "-aet", "SECURE", "-od", str(out), "+tls", str(certificate / "key.pem"),
            str(certificate / "cert.pem"), "+cf", str(certificate / "ca.pem"), str(port),
        ]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                assert eventually(lambda: listening(port))
                status, _ = move(made, "WS", "SECURE", "STUDY", StudyInstanceUID="1.2.3")
            finally:
                process.kill()
        assert (status.Status, counts(status)) == expected
        assert len(list(out.iterdir())) == expected[1][0]


def test_contexts_of_a_mixed_study() -> None:
    """Each class uncompressed, and each kind as stored, within the 128 that an association has."""
    def one(sop_class: str, syntax: str) -> Selected:
        return Selected(1, "1", "1", "1", sop_class, syntax, 1)

    few = move_module.needed([one("1.2", EXPLICIT), one("1.2", "1.2.840.10008.1.2.4.90"), one("1.3", IMPLICIT)])
    assert [(context.abstract_syntax, context.transfer_syntaxes) for context in few] == [
        ("1.2", (EXPLICIT, IMPLICIT)), ("1.3", (EXPLICIT, IMPLICIT)), ("1.2", (EXPLICIT,)), ("1.2", ("1.2.840.10008.1.2.4.90",)),
        ("1.3", (IMPLICIT,)), ("1.2", (IMPLICIT,)),
        *(("1.2", (syntax,)) for syntax in ENCODERS if syntax != JPEG_2000), *(("1.3", (syntax,)) for syntax in ENCODERS),
    ]
    assert [context.context_id for context in few] == [2 * n + 1 for n in range(len(few))]
    many = move_module.needed([one(f"1.2.{n}", EXPLICIT) for n in range(200)])
    assert len(many) == MAXIMUM_CONTEXTS
    assert max(context.context_id for context in many) == 255
