"""Modality Worklist: dcmtk and pynetdicom ask for what is scheduled; keys, ranges, character sets, who may see what."""

from __future__ import annotations

import io
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
import sqlalchemy as sa
from pydicom.dataset import Dataset
from pydicom.filebase import DicomFileLike
from pynetdicom import AE, evt

from archive.access.grants import Target
from archive.cli.main import run
from archive.cli.session import Session
from archive.db.tables import peer, role_assignment
from archive.db.types import FOREVER
from archive.dicom import scheduled
from archive.dimse import query_lane
from archive.dimse import worklist as worklist_module
from archive.errors import DatabaseUnavailable
from archive.ledger.audit import Kind
from archive.ledger.log import Ledger
from archive.services import worklist as worklist_service
from archive.services.worklist import WorklistRequest
from tests.dimse.clinic import IMPLICIT, Clinic, clinic
from tests.dimse.test_find import sequence
from tests.services.archives import the_console

WORKLIST = worklist_module.SOP_CLASS


def entry(number: int, *, step: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    """A data set of one scheduled step, as DICOM JSON."""
    made = Dataset()
    made.PatientID, made.PatientName = f"W{number}", f"Worklist^Number{number}"
    made.StudyInstanceUID, made.AccessionNumber, made.RequestedProcedureID = f"1.2.7.{number}", f"ACC{number}", f"RP{number}"
    item = {"Modality": "CT", "ScheduledStationAETitle": "CT1", "ScheduledProcedureStepStartDate": "20270110",
            "ScheduledProcedureStepStartTime": f"{8 + number:02}0000", "ScheduledProcedureStepID": f"SPS{number}",
            "ScheduledPerformingPhysicianName": "House^Gregory", "ScheduledProcedureStepDescription": "Thorax", **(step or {})}
    made.ScheduledProcedureStepSequence = sequence(**item)
    for keyword, value in keys.items():
        setattr(made, keyword, value)
    return scheduled.checked(made.to_json_dict())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    """CT1 and MR1 have entries; ANY sees every one, STORE-ONLY has no right to any."""
    with clinic(tmp_path_factory.mktemp("worklist")) as it:
        console, worklist = the_console(it.node), it.node.worklist
        for number in (1, 2, 3):
            worklist.add(console, entry(number))
        magnet = {"Modality": "MR", "ScheduledStationAETitle": "MR1", "ScheduledProcedureStepStartDate": "20270111"}
        worklist.add(console, entry(4, step=magnet))
        worklist.add(console, entry(5, step={"ScheduledStationAETitle": None, "ScheduledProcedureStepStartDate": "20270112",
                                             "ScheduledPerformingPhysicianName": "Grey^Meredith"}, PatientName="Müller^Jürgen"))
        late = {"ScheduledProcedureStepStartDate": "20270113"}
        worklist.add(console, entry(6, step=late, PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう"))
        gone = worklist.add(console, entry(7))[0]
        worklist.cancel(console, gone["id"])
        for name in ("CT1", "MR1", "ANY"):
            it.node.peers.add(console, name, [name], issue=it.folder / name, roles=["modality"])
        it.node.peers.set(console, "ANY", {"whole_worklist": True})
        it.node.peers.add(console, "STOREONLY", ["STOREONLY"], networks=["127.0.0.1/32"], roles=["modality"])
        yield it


def asking(step: dict[str, Any] | None = None, **keys: Any) -> Dataset:
    made = Dataset()
    if "CharacterSet" in keys:
        made.SpecificCharacterSet = keys.pop("CharacterSet")
    for keyword in ("PatientName", "PatientID", "AccessionNumber", "StudyInstanceUID", "RequestedProcedureID"):
        setattr(made, keyword, "")
    item = dict.fromkeys(("Modality", "ScheduledStationAETitle", "ScheduledProcedureStepStartDate", "ScheduledProcedureStepStartTime",
                          "ScheduledProcedureStepID", "ScheduledPerformingPhysicianName", "ScheduledProcedureStepStatus"), "")
    made.ScheduledProcedureStepSequence = sequence(**{**item, **(step or {})})
    for keyword, value in keys.items():
        setattr(made, keyword, value)
    return made


def ask(made: Clinic, name: str, query: Dataset, *, syntaxes: list[str] | None = None) -> tuple[int, list[Dataset]]:
    with made.association(name, WORKLIST, tls=made.folder / name, syntaxes=syntaxes) as association:
        answers = [(int(status.Status), found) for status, found in association.send_c_find(query, WORKLIST)]
    return answers[-1][0], [found for _, found in answers[:-1] if found is not None]


def numbers(found: list[Dataset]) -> list[int]:
    return [int(str(one.PatientID)[1:]) for one in found]


@pytest.mark.parametrize(("name", "step", "keys", "expected"), [
    ("CT1", {}, {}, [1, 2, 3, 5, 6]), ("MR1", {}, {}, [4, 5]), ("ANY", {}, {}, [1, 2, 3, 4, 5, 6]),
    ("ANY", {"ScheduledStationAETitle": "MR1"}, {}, [4]), ("ANY", {"ScheduledStationAETitle": "CT*"}, {}, [1, 2, 3, 6]),
    ("CT1", {"ScheduledStationAETitle": "MR1"}, {}, []), ("ANY", {"Modality": "MR"}, {}, [4]),
    ("ANY", {"ScheduledProcedureStepStartDate": "20270110"}, {}, [1, 2, 3]),
    ("ANY", {"ScheduledProcedureStepStartDate": "20270111-20270112"}, {}, [4, 5]),
    ("ANY", {"ScheduledProcedureStepStartDate": "20270112-"}, {}, [5, 6]),
    ("ANY", {"ScheduledProcedureStepStartDate": "-20270110"}, {}, [1, 2, 3]),
    ("ANY", {"ScheduledProcedureStepStartDate": "20270110", "ScheduledProcedureStepStartTime": "0930-1030"}, {}, [2]),
    ("ANY", {"ScheduledProcedureStepStartDate": "20270110-20270111", "ScheduledProcedureStepStartTime": "103000-115900"}, {}, [3]),
    ("ANY", {"ScheduledProcedureStepStartDate": "20270110-20270111", "ScheduledProcedureStepStartTime": "103000-130000"}, {}, [3, 4]),
    ("ANY", {"ScheduledProcedureStepStartTime": "090000"}, {}, [1]),
    ("ANY", {"ScheduledPerformingPhysicianName": "grey*"}, {}, [5]), ("ANY", {"ScheduledProcedureStepID": "SPS3"}, {}, [3]),
    ("ANY", {"ScheduledProcedureStepStatus": "SCHEDULED"}, {}, [1, 2, 3, 4, 5, 6]),
    ("ANY", {"ScheduledProcedureStepStatus": "STARTED"}, {}, []),
    ("ANY", {}, {"PatientName": "WORKLIST^NUMBER2"}, [2]), ("ANY", {}, {"PatientName": "Work*"}, [1, 2, 3, 4]),
    ("ANY", {}, {"PatientName": "mull*", "CharacterSet": "ISO_IR 100"}, [5]), ("ANY", {}, {"PatientID": "W3"}, [3]),
    ("ANY", {}, {"PatientName": "山田*", "CharacterSet": "ISO_IR 192"}, [6]),
    ("ANY", {}, {"PatientID": "W?"}, [1, 2, 3, 4, 5, 6]), ("ANY", {}, {"AccessionNumber": "ACC4"}, [4]),
    ("ANY", {}, {"RequestedProcedureID": "RP2"}, [2]),
    ("ANY", {}, {"StudyInstanceUID": ["1.2.7.1", "1.2.7.6"]}, [1, 6]), ("ANY", {}, {"PatientID": "W7"}, []),
    ("ANY", {"Modality": "CT"}, {"PatientName": "*Number3*", "AccessionNumber": "ACC3"}, [3]),
])  # fmt: skip
def test_matching_keys(made: Clinic, name: str, step: dict[str, Any], keys: dict[str, Any], expected: list[int]) -> None:
    status, found = ask(made, name, asking(step, **keys))
    assert (status, numbers(found)) == (0, expected)


@pytest.mark.parametrize(("step", "keys"), [
    ({"ScheduledProcedureStepStartDate": "2027-01*"}, {}), ({"ScheduledProcedureStepStartTime": "9 o'clock"}, {}),
    ({}, {"StudyInstanceUID": "1.2.x"}),
])  # fmt: skip
def test_what_cannot_be_matched_is_refused(made: Clinic, step: dict[str, Any], keys: dict[str, Any]) -> None:
    assert ask(made, "ANY", asking(step, **keys)) == (0xA900, [])


def test_a_binary_zero_asks_for_nothing(made: Clinic) -> None:
    """dcmjs-dimse writes an empty Pregnancy Status as the number 0, which no entry has."""
    status, found = ask(made, "CT1", asking(PregnancyStatus=0, PatientID="W1"))
    assert (status, [one.PatientID for one in found]) == (0, ["W1"])
    assert found[0].PregnancyStatus is None
    assert ask(made, "CT1", asking(PregnancyStatus=3)) == (0, [])


def test_what_an_answer_holds(made: Clinic) -> None:
    query = asking({"CommentsOnTheScheduledProcedureStep": ""}, PatientID="W1", MedicalAlerts="", ReferencedStudySequence=[])
    for syntaxes in (None, [IMPLICIT]):
        _, found = ask(made, "CT1", query, syntaxes=syntaxes)
        assert len(found) == 1
        one = found[0]
        assert {element.keyword for element in one} == {element.keyword for element in query} | {"SpecificCharacterSet"}
        assert one.SpecificCharacterSet == "ISO_IR 100"
        assert one.MedicalAlerts == ""
        assert len(one.ReferencedStudySequence) == 0
        step = one.ScheduledProcedureStepSequence[0]
        asked = query.ScheduledProcedureStepSequence[0]
        assert {element.keyword for element in step} == {element.keyword for element in asked}
        assert (step.Modality, step.ScheduledStationAETitle, step.ScheduledProcedureStepStatus) == ("CT", "CT1", "SCHEDULED")
        assert step.CommentsOnTheScheduledProcedureStep == ""
        assert [int(element.tag) for element in one] == sorted(int(element.tag) for element in one)
    empty = Dataset()
    empty.PatientID, empty.ScheduledProcedureStepSequence = "W1", []
    whole = ask(made, "CT1", empty)[1][0].ScheduledProcedureStepSequence[0]
    assert whole.ScheduledProcedureStepDescription == "Thorax", "an empty sequence asks for all of it"


def test_answers_are_in_the_character_set_of_the_question_or_in_utf_8(made: Clinic) -> None:
    for declared, patient, expected in (("ISO_IR 100", "W5", "ISO_IR 100"), ("ISO_IR 144", "W5", "ISO_IR 192"), (None, "W5", "ISO_IR 192"),
                                        ("\\ISO 2022 IR 87", "W6", ["", "ISO 2022 IR 87"]), ("ISO_IR 100", "W6", "ISO_IR 192")):
        keys = {"CharacterSet": declared.split("\\") if "\\" in declared else declared} if declared else {}
        _, found = ask(made, "ANY", asking(PatientID=patient, **keys))
        assert found[0].SpecificCharacterSet == expected
        name = str(found[0].PatientName)
        assert ("Müller" if patient == "W5" else "山田") in name


def test_the_default_character_set_of_a_peer(made: Clinic) -> None:
    console = the_console(made.node)
    made.node.peers.add(console, "OLD", ["OLD"], issue=made.folder / "OLD", roles=["modality"])
    made.node.peers.set(console, "OLD", {"character_set": "ISO_IR 100", "whole_worklist": True})
    query = asking(PatientID="W5")
    with made.association("OLD", WORKLIST, tls=made.folder / "OLD") as association:
        found = next(one for _, one in association.send_c_find(query, WORKLIST))
    assert (found.SpecificCharacterSet, str(found.PatientName)) == ("ISO_IR 100", "Müller^Jürgen")


def test_findscu_of_dcmtk(made: Clinic, program: Callable[[str, str], str]) -> None:
    findscu = program("findscu", "dcmtk")
    keys = ["0008,0050", "0010,0010", "0010,0020=W?", "0040,0100[0].0040,0001=CT1", "0040,0100[0].0040,0002=20270110-20270111",
            "0040,0100[0].0008,0060=CT", "0040,0100[0].0040,0003"]
    options = [word for key in keys for word in ("-k", key)]
    done = made.dcmtk(findscu, "CT1", "-W", "-v", *options, tls=made.folder / "CT1")
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert output.count("(Pending)") == 3, output
    assert "Worklist^Number3" in output
    done = made.dcmtk(findscu, "CT1", "-W", "-v", "--cancel", "1", *options, tls=made.folder / "CT1")
    assert done.returncode == 0


def test_cancel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of four; the second is ready only when the cancel has left the peer."""
    monkeypatch.setattr(worklist_service, "PAGE_ROWS", 4)
    stopping, left, find = threading.Event(), threading.Event(), worklist_service.Worklist.find

    def paused(*given: Any) -> Iterator[Any]:
        for number, page in enumerate(find(*given)):
            assert number != 1 or left.wait(20)
            yield page

    monkeypatch.setattr(worklist_service.Worklist, "find", paused)
    monkeypatch.setattr(query_lane, "_BATCH_BYTES", 1)
    handlers = [(evt.EVT_PDU_SENT, lambda _event: left.set() if stopping.is_set() else None)]
    with clinic(tmp_path) as it:
        console = the_console(it.node)
        for number in range(10):
            it.node.worklist.add(console, entry(number))
        it.node.peers.add(console, "CT1", ["CT1"], issue=it.folder / "CT1", roles=["modality"])
        with it.association("CT1", WORKLIST, tls=it.folder / "CT1", evt_handlers=handlers) as association:
            statuses = []
            for status, _ in association.send_c_find(asking(), WORKLIST, msg_id=7):
                statuses.append(int(status.Status))
                if len(statuses) == 2:
                    stopping.set()
                    association.send_c_cancel(7, query_model=WORKLIST)
            assert statuses[-1] == 0xFE00
            assert len(statuses) <= 4 + 1 + 1, "no more than the answer under way"
            whole = list(association.send_c_find(asking(), WORKLIST))
            assert len(whole) == 10 + 1, "every page comes"


def test_who_may_not_see_the_worklist(made: Clinic) -> None:
    ae = AE(ae_title="STOREONLY")
    ae.add_requested_context(WORKLIST)
    ae.add_requested_context("1.2.840.10008.1.1")
    association = ae.associate("127.0.0.1", made.plain_port, ae_title="STRONGROOM")
    assert [context.result for context in association.rejected_contexts] == [1]
    association.release()
    console = the_console(made.node)
    made.node.peers.set(console, "STOREONLY", {"modality_without_tls": True})
    with made.association("STOREONLY", WORKLIST) as association:
        found = [one for _, one in association.send_c_find(asking(), WORKLIST) if one is not None]
        assert numbers(found) == [5], "what is for no station in particular"
    with made.association("CT1", WORKLIST, tls=made.folder / "CT1") as association:
        _take_role(made, "CT1")
        try:
            answers = list(association.send_c_find(asking(), WORKLIST))
            assert [int(status.Status) for status, _ in answers] == [0], "a right that was taken away counts at once"
        finally:
            _give_role(made, "CT1")


def test_whom_a_device_is_denied_it_does_not_find(made: Clinic) -> None:
    console, accounts = the_console(made.node), made.node.accounts
    deny = accounts.add_grant(console, to="CT1", role="researcher", target=Target("patient", "W1", expected=True), deny=True)
    assert ask(made, "CT1", asking(PatientID="W1")) == ask(made, "CT1", asking(PatientID="NOBODY")) == (0, [])
    assert numbers(ask(made, "CT1", asking())[1]) == [2, 3, 5, 6]
    assert numbers(ask(made, "ANY", asking(PatientID="W1"))[1]) == [1]
    accounts.revoke_grant(console, deny["id"])
    assert numbers(ask(made, "CT1", asking(PatientID="W1"))[1]) == [1]


def _take_role(made: Clinic, name: str) -> None:
    with made.node.core.database.begin() as tx:
        who = sa.select(peer.c.principal_id).where(peer.c.name == name).scalar_subquery()
        tx.execute(sa.update(role_assignment).where(role_assignment.c.principal_id == who).values(not_after=made.node.core.clock()))


def _give_role(made: Clinic, name: str) -> None:
    with made.node.core.database.begin() as tx:
        who = sa.select(peer.c.principal_id).where(peer.c.name == name).scalar_subquery()
        tx.execute(sa.update(role_assignment).where(role_assignment.c.principal_id == who).values(not_after=FOREVER))


def test_every_search_is_in_the_ledger_with_its_keys_sealed(made: Clinic) -> None:
    ask(made, "CT1", asking(PatientName="Worklist^Number1"))
    last = made.events(Kind.SEARCHED)[0]
    assert last.body is not None
    assert last.body["detail"] == {"what": "worklist", "datastore": "clinical", "keys": {"00100010": "Worklist^Number1"}, "found": 1}
    assert last.body["objects"] == [["patient", "W1"]]


def test_no_audit_no_data(made: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> int:
        raise DatabaseUnavailable("the database is busy")

    monkeypatch.setattr(Ledger, "record", refuse)
    assert ask(made, "CT1", asking()) == (0xA700, [])


def test_files_of_dcmtk_and_json_by_the_command_line(tmp_path: Path, program: Callable[[str, str], str], capsys: Any) -> None:
    """The worklist files of dcmtk's own package, and what dump2dcm makes of its dumps."""
    dump2dcm = program("dump2dcm", "dcmtk")
    with clinic(tmp_path) as it:
        dump = tmp_path / "one.dump"
        dump.write_text(
            "(0008,0005) CS ISO_IR 100\n(0008,0050) SH 00007\n(0010,0010) PN [VIVALDI^ANTONIO]\n(0010,0020) LO AV35674\n"
            "(0020,000d) UI 1.2.276.0.7230010.3.2.102\n(0040,1001) SH RP488M9439\n(0040,0100) SQ\n(fffe,e000) na\n(0008,0060) CS MR\n"
            "(0040,0001) AE AA32\\AA33\n(0040,0002) DA 20270801\n(0040,0003) TM 113500\n(0040,0006) PN SMITH^J\n(0040,0009) SH SPD1342\n"
            "(fffe,e00d) na\n(fffe,e0dd) na\n"
        )
        subprocess.run([dump2dcm, str(dump), str(tmp_path / "one.wl")], check=True, capture_output=True)
        bare = Dataset()
        bare.PatientID, bare.PatientName, bare.StudyInstanceUID = "B1", "Bare^File", "1.2.99"
        bare.ScheduledProcedureStepSequence = sequence(
            Modality="CT", ScheduledProcedureStepStartDate="20270802", ScheduledProcedureStepID="B"
        )
        raw = io.BytesIO()
        pydicom.filewriter.write_dataset(_bare(raw), bare)
        (tmp_path / "bare.wl").write_bytes(raw.getvalue())
        (tmp_path / "two.json").write_text(json.dumps([entry(1), entry(2)]))
        (tmp_path / "bad.wl").write_bytes(b"\x00" * 400)

        class Here(Session):
            @property
            def node(self) -> Any:
                return it.node

            def close(self) -> None:
                """The clinic closes it."""

        names = [str(tmp_path / name) for name in ("one.wl", "bare.wl", "two.json")]
        assert run(["worklist", "import", "--json", *names], Here()) == 0
        assert '"entered":4' in capsys.readouterr().out
        assert run(["worklist", "import", *names], Here()) == 0, "again: nothing changes"
        assert run(["worklist", "import", str(tmp_path / "bad.wl")], Here()) == 1
        found = it.node.worklist.list(the_console(it.node), WorklistRequest(every=True))
        assert [(row["patient_id"], row["station"]) for row in found] == [
            ("W1", ["CT1"]), ("W2", ["CT1"]), ("AV35674", ["AA32", "AA33"]), ("B1", []),
        ]
        arguments = ["worklist", "add", "--patient-id", "N1", "--patient-name", "Neu^Ä", "--modality", "US", "--date", "20270101"]
        assert run([*arguments, "--station", "US1"], Here()) == 0
        assert run(["worklist", "add", "--patient-id", "N1", "--patient-name", "x", "--modality", "US", "--date", "tomorrow"], Here()) == 2
        assert run(["worklist", "list", "--station", "US1"], Here()) == 0
        assert "Neu^Ä" in capsys.readouterr().out
        assert run(["worklist", "cancel", "1"], Here()) == 0
        assert run(["worklist", "show", "1", "--json"], Here()) == 0
        assert run(["worklist", "show", "77"], Here()) == 1


def _bare(stream: io.BytesIO) -> Any:
    file = DicomFileLike(stream)
    file.is_little_endian, file.is_implicit_VR = True, True
    return file

