"""MPPS: pynetdicom reports steps from begin to end; states, links to worklist and study, hostile input."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from pydicom.dataset import Dataset

from archive.access.grants import Target
from archive.dimse import mpps
from archive.errors import DatabaseUnavailable
from archive.ledger.audit import Kind
from archive.ledger.log import Ledger
from archive.services.worklist import WorklistRequest
from tests.dimse.clinic import Clinic, clinic
from tests.dimse.test_find import sequence
from tests.dimse.test_worklist import WORKLIST, asking, entry
from tests.services.archives import instance, the_console, user

MPPS = mpps.SOP_CLASS


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    with clinic(tmp_path_factory.mktemp("mpps")) as it:
        console = the_console(it.node)
        for number in range(1, 10):
            it.node.worklist.add(console, entry(number))
        for name in ("CT1", "CT2"):
            it.node.peers.add(console, name, [name], issue=it.folder / name, roles=["modality"])
        yield it


def begun(number: int, **keys: Any) -> Dataset:
    step = Dataset()
    step.PatientID, step.PatientName, step.PatientSex, step.PatientBirthDate = f"W{number}", f"Worklist^Number{number}", "F", ""
    step.Modality, step.PerformedStationAETitle, step.PerformedProcedureStepID = "CT", "CT1", f"PPS{number}"
    step.PerformedProcedureStepStartDate, step.PerformedProcedureStepStartTime = "20270110", "090500"
    step.PerformedProcedureStepStatus = "IN PROGRESS"
    step.ScheduledStepAttributesSequence = sequence(
        StudyInstanceUID=f"1.2.7.{number}", ScheduledProcedureStepID=f"SPS{number}", AccessionNumber=f"ACC{number}",
        RequestedProcedureID="",
    )
    step.PerformedSeriesSequence = []
    for keyword, value in keys.items():
        if value is None:
            delattr(step, keyword)
        else:
            setattr(step, keyword, value)
    return step


def ended(status: str = "COMPLETED", **keys: Any) -> Dataset:
    step = Dataset()
    step.PerformedProcedureStepStatus = status
    step.PerformedProcedureStepEndDate, step.PerformedProcedureStepEndTime = "20270110", "093000"
    images = [sequence(ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.2", ReferencedSOPInstanceUID=f"1.2.7.1.1.{n}")[0] for n in range(3)]
    step.PerformedSeriesSequence = sequence(SeriesInstanceUID="1.2.7.1.1", ProtocolName="Thorax", ReferencedImageSequence=images)
    for keyword, value in keys.items():
        setattr(step, keyword, value)
    return step


def create(made: Clinic, uid: str | None, dataset: Dataset, *, name: str = "CT1") -> Any:
    with made.association(name, MPPS, tls=made.folder / name) as association:
        return association.send_n_create(dataset, MPPS, uid)[0]


def change(made: Clinic, uid: str, dataset: Dataset, *, name: str = "CT1") -> Any:
    with made.association(name, MPPS, tls=made.folder / name) as association:
        return association.send_n_set(dataset, MPPS, uid)[0]


def states(made: Clinic) -> dict[str, str]:
    found = made.node.worklist.list(the_console(made.node), WorklistRequest(every=True))
    return {row["procedure_step_id"]: row["state"] for row in found}


def test_from_begin_to_end(made: Clinic) -> None:
    uid = "1.2.9.1"
    assert create(made, uid, begun(1)).Status == 0
    assert states(made)["SPS1"] == "in-progress"
    with made.association("CT1", WORKLIST, tls=made.folder / "CT1") as association:
        found = [one for _, one in association.send_c_find(asking(PatientID="W1"), WORKLIST) if one is not None]
    assert found[0].ScheduledProcedureStepSequence[0].ScheduledProcedureStepStatus == "STARTED"
    middle = Dataset()
    middle.PerformedProcedureStepDescription = "Thorax nativ"
    assert change(made, uid, middle).Status == 0
    assert change(made, uid, ended()).Status == 0
    assert states(made)["SPS1"] == "completed"
    late = change(made, uid, ended("DISCONTINUED"))
    assert (late.Status, late.ErrorID) == (0x0110, 0xA710), "PS3.4 F.7.2.2.2"
    assert change(made, uid, ended()).Status == 0, "the same again, when the first answer was lost"
    row = made.node.steps.list(the_console(made.node))[0]
    assert (row["state"], row["description"], row["series"], row["instances"]) == ("completed", "Thorax nativ", ["1.2.7.1.1"], 3)
    assert (row["started"], row["ended"], row["patient_name"]) == ("20270110 090500", "20270110 093000", "Worklist^Number1")
    with made.association("CT1", WORKLIST, tls=made.folder / "CT1") as association:
        assert [one for _, one in association.send_c_find(asking(PatientID="W1"), WORKLIST) if one is not None] == []
    said = [event.body["detail"]["what"] for event in made.events(Kind.PROCEDURE_STEP) if event.body is not None]
    assert said == ["completed", "changed", "begun"]
    changed = [event.body["detail"]["what"] for event in made.events(Kind.WORKLIST_CHANGED) if event.body is not None]
    assert changed[:2] == ["completed", "in-progress"]


def test_the_archive_names_a_step_that_has_no_uid(made: Clinic) -> None:
    with made.association("CT1", MPPS, tls=made.folder / "CT1") as association:
        status, _ = association.send_n_create(begun(2), MPPS, None)
    assert status.Status == 0
    uid = made.node.steps.list(the_console(made.node))[0]["sop_instance_uid"]
    assert uid.startswith("2.25.")
    assert change(made, uid, ended("DISCONTINUED", PerformedSeriesSequence=[])).Status == 0
    assert states(made)["SPS2"] == "discontinued"


def test_the_wrong_entry_comes_back(made: Clinic) -> None:
    assert create(made, "1.2.9.3", begun(3)).Status == 0
    assert create(made, "1.2.9.33", begun(3, PerformedProcedureStepID="other")).Status == 0
    reason = sequence(CodeValue="110514", CodingSchemeDesignator="DCM", CodeMeaning="Incorrect worklist entry selected")
    wrong = ended("DISCONTINUED", PerformedProcedureStepDiscontinuationReasonCodeSequence=reason)
    assert change(made, "1.2.9.3", wrong).Status == 0
    assert states(made)["SPS3"] == "in-progress", "another step of it goes on"
    assert change(made, "1.2.9.33", wrong).Status == 0
    assert states(made)["SPS3"] == "scheduled"


@pytest.mark.parametrize("wrong", [False, True])
def test_an_entry_of_which_a_step_was_completed_is_not_done_again(made: Clinic, wrong: bool) -> None:
    number = 11 + wrong
    made.node.worklist.add(the_console(made.node), entry(number))
    for step in ("1", "2"):
        assert create(made, f"1.2.9.{number}.{step}", begun(number, PerformedProcedureStepID=step)).Status == 0
    assert change(made, f"1.2.9.{number}.1", ended()).Status == 0
    assert states(made)[f"SPS{number}"] == "in-progress", "another step of it goes on"
    code = "110514" if wrong else "110501"
    reason = sequence(CodeValue=code, CodingSchemeDesignator="DCM", CodeMeaning="Incorrect worklist entry, or equipment failure")
    last = ended("DISCONTINUED", PerformedProcedureStepDiscontinuationReasonCodeSequence=reason)
    assert change(made, f"1.2.9.{number}.2", last).Status == 0
    assert states(made)[f"SPS{number}"] == "completed"


def test_another_device_than_was_scheduled_takes_an_entry_over(made: Clinic) -> None:
    """A scanner is down, the patient is in the other one; the event names who did it."""
    assert create(made, "1.2.9.90", begun(9, PerformedStationAETitle="CT2"), name="CT2").Status == 0
    assert states(made)["SPS9"] == "in-progress"
    told = made.events(Kind.WORKLIST_CHANGED)[0].body
    assert told is not None
    assert (told["subject"]["name"], told["detail"]["what"], told["detail"]["step"]) == ("CT2", "in-progress", "SPS9")
    assert told["objects"] == [["patient", "W9"], ["study", "1.2.7.9"]]


def test_only_who_began_it_may_change_it(made: Clinic) -> None:
    assert create(made, "1.2.9.4", begun(4)).Status == 0
    assert change(made, "1.2.9.4", ended(), name="CT2").Status == 0x0112
    assert change(made, "1.2.9.404", ended(), name="CT2").Status == 0x0112
    assert create(made, "1.2.9.4", begun(4)).Status == 0, "the same again from the same device"
    assert create(made, "1.2.9.4", begun(4), name="CT2").Status == 0x0111
    assert create(made, "1.2.9.4", begun(4, PatientSex="M")).Status == 0x0111
    fixed = ended(PatientID="SOMEBODY", Modality="MR")
    assert change(made, "1.2.9.4", fixed).Status == 0x0107, "a warning: who the patient is stays"
    row = made.node.steps.list(the_console(made.node))[0]
    assert (row["patient_id"], row["modality"], row["state"]) == ("W4", "CT", "completed")


@pytest.mark.parametrize(("keys", "status"), [
    ({"PerformedProcedureStepStatus": "COMPLETED"}, 0x0106), ({"PerformedProcedureStepStatus": None}, 0x0120), ({"Modality": ""}, 0x0121),
    ({"ScheduledStepAttributesSequence": None}, 0x0120), ({"ScheduledStepAttributesSequence": []}, 0x0121),
    ({"ScheduledStepAttributesSequence": sequence(ScheduledProcedureStepID="SPS5")}, 0x0120), ({"PerformedStationAETitle": None}, 0x0120),
    ({"PerformedProcedureStepID": ""}, 0x0121), ({"PerformedProcedureStepStartDate": None}, 0x0120),
])  # fmt: skip
def test_what_a_step_must_say(made: Clinic, keys: dict[str, Any], status: int) -> None:
    assert create(made, "1.2.9.50", begun(5, **keys)).Status == status
    assert states(made)["SPS5"] == "scheduled"


def test_a_change_that_is_none(made: Clinic) -> None:
    assert create(made, "1.2.9.6", begun(6)).Status == 0
    assert change(made, "1.2.9.6", ended("FINISHED")).Status == 0x0106
    assert change(made, "1.2.9.6", ended(PerformedSeriesSequence=[])).Status == 0x0120
    assert states(made)["SPS6"] == "in-progress"


def test_a_step_without_an_entry_is_kept_and_shown_with_its_study(made: Clinic) -> None:
    made.put(instance(1, study="1.2.50"), instance(1, study="1.2.51"))
    node = made.node
    for study in ("1.2.50", "1.2.51"):
        named = sequence(StudyInstanceUID=study, ScheduledProcedureStepID="")
        assert create(made, f"{study}.9", begun(99, ScheduledStepAttributesSequence=named)).Status == 0
    node.accounts.add_user(the_console(node), "mia", roles=["technologist"], password="violet-otter-94-lantern")
    node.accounts.add_grant(the_console(node), to="mia", role="researcher", target=Target("study", "1.2.50"))
    mia = user(node, "mia")
    assert [row["sop_instance_uid"] for row in node.steps.of_study(mia, "clinical", "1.2.50")] == ["1.2.50.9"]
    last = made.events(Kind.READ)[0]
    assert last.body is not None
    assert last.body["objects"] == [["patient", "W99"], ["study", "1.2.50"]]
    assert node.steps.of_study(mia, "clinical", "1.2.51") == node.steps.of_study(mia, "clinical", "1.2.52") == []


def test_hostile_data_sets_end_in_a_status(made: Clinic) -> None:
    random.seed(7)
    deep = b"\x40\x00\x70\x02" + struct.pack("<I", 0xFFFFFFFF) + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    bodies = [b"", b"\0", b"\xff" * 4000, deep * 5000, deep * 40 + b"\x20\x00\x0d\x00\x04\x00\x00\x001.2\0"]
    bodies += [random.randbytes(random.randrange(1, 3000)) for _ in range(40)]
    before = len(made.node.steps.list(the_console(made.node)))
    for body in bodies:
        request = mpps.NormalRequest(0x0140, 1, MPPS.encode(), b"1.2.9.77")
        subject = user(made.node, "CT1")
        for syntax in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1"):
            answer = mpps.answer(made.node.steps, subject, "clinical", request, body, transfer_syntax_uid=syntax)
            assert answer.status in (0x0110, 0x0120, 0x0121, 0x0106)
    assert len(made.node.steps.list(the_console(made.node))) == before


def test_nothing_is_kept_that_is_not_recorded(made: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> int:
        raise DatabaseUnavailable("the database is busy")

    with monkeypatch.context() as deaf:
        deaf.setattr(Ledger, "record", refuse)
        assert create(made, "1.2.9.8", begun(8)).Status == 0x0213
    assert states(made)["SPS8"] == "scheduled"
    assert create(made, "1.2.9.8", begun(8)).Status == 0
