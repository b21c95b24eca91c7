"""Worklist entries and performed steps that a deny hides, or that a token is not bound to: they are as what is not there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from archive.access.grants import Target
from archive.access.permissions import Permission
from archive.access.policy import scope_of
from archive.access.subject import Subject
from archive.db import guard
from archive.db.prepared import Prepared
from archive.dicom import scheduled
from archive.errors import NotFound, StateConflict
from archive.node import Node
from archive.services import worklist_seen
from archive.services.worklist import WorklistRequest
from tests.dimse.test_mpps import begun, ended
from tests.dimse.test_worklist import entry
from tests.services import archives

ALL = {"W1", "W2", "W3"}


@pytest.fixture
def node(engine: dict[str, Any], tmp_path: Path) -> Iterator[Node]:
    """Three entries and steps; of study 1.2.7.1 an instance is held, whose patient is P1 as the archive knows it."""
    with archives.opened(archives.made(tmp_path, **engine)) as opened:
        console = archives.the_console(opened)
        archives.store(opened, archives.instance(1, study="1.2.7.1", PatientID="P1", Modality="CT"))
        opened.accounts.add_user(console, "mia", roles=["technologist", "modality"], password=archives.PASSWORD)
        opened.peers.add(console, "CT1", ["CT1"], networks=["127.0.0.1/32"], roles=["modality"])
        opened.peers.set(console, "CT1", {"modality_without_tls": True})
        for number in (1, 2, 3):
            opened.worklist.add(console, entry(number))
            opened.steps.create(console, "clinical", f"1.2.9.{number}", scheduled.checked(begun(number).to_json_dict()))
        yield opened


def device(node: Node) -> Subject:
    admitted = node.peers.admit(calling_ae_title="CT1", called_ae_title="STRONGROOM", address="127.0.0.1", certificate=None, tls=False)
    return admitted.subject


def seen(node: Node, subject: Subject) -> set[str]:
    """Who is seen on the worklist: the same wherever it is asked, and the same of what was performed."""
    found = {row["patient_id"] for row in node.worklist.list(subject, WorklistRequest(every=True))}
    assert found == {row["patient_id"] for page in node.worklist.find(subject, WorklistRequest()) for row in page}
    assert found == {row["patient_id"] for row in node.steps.list(subject)}
    return found


def deny(node: Node, target: Target, *, to: str = "mia", role: str = "researcher", **more: Any) -> int:
    made = node.accounts.add_grant(archives.the_console(node), to=to, role=role, target=target, deny=True, **more)
    return int(made["id"])


@pytest.mark.parametrize(("target", "more", "left"), [
    (Target("everything"), {}, set()),
    (Target("patient", "W2", expected=True), {}, {"W1", "W3"}),
    (Target("patient", "W2", expected=True, issuer="ELSEWHERE"), {}, {"W1", "W3"}),
    (Target("patient", "P1"), {}, {"W2", "W3"}),
    (Target("study", "1.2.7.1"), {}, {"W2", "W3"}),
    (Target("series", "1.2.7.1.1"), {}, {"W2", "W3"}),
    (Target("everything"), {"modality": "CT"}, {"W2", "W3"}),
    (Target("everything"), {"modality": "MR"}, ALL),
    (Target("patient", "W", expected=True), {}, ALL),
])  # fmt: skip
def test_a_deny_hides_what_is_scheduled_and_what_was_performed(node: Node, target: Target, more: dict[str, Any], left: set[str]) -> None:
    """By patient, by study, or because it covers all there is of the study; of users and of devices, at once and as long as it counts."""
    console = archives.the_console(node)
    mia, modality = archives.user(node, "mia"), device(node)
    node.peers.set(console, "CT1", {"whole_worklist": True})
    for to, subject in (("mia", mia), ("CT1", modality)):
        assert seen(node, subject) == ALL
        made = deny(node, target, to=to, **more)
        assert seen(node, subject) == left
        assert seen(node, console) == ALL
        node.accounts.revoke_grant(console, made)
        assert seen(node, subject) == ALL
    deny(node, target, **more)
    assert seen(node, replace(modality, narrowed_by=mia)) == left, "rule 8 of docs/access.md"
    assert seen(node, modality) == ALL


def test_a_modality_sees_its_own_part_but_for_whom_it_is_denied(node: Node) -> None:
    node.worklist.add(archives.the_console(node), entry(4, step={"ScheduledStationAETitle": "MR1"}))
    modality = device(node)
    deny(node, Target("patient", "W2", expected=True), to="CT1")
    assert {row["patient_id"] for page in node.worklist.find(modality, WorklistRequest()) for row in page} == {"W1", "W3"}


def test_the_issuer_of_an_entry_tells_patients_of_one_id_apart(node: Node) -> None:
    console, mia = archives.the_console(node), archives.user(node, "mia")
    node.worklist.add(console, entry(5, PatientID="W2", IssuerOfPatientID="HERE"))
    other = begun(5, PatientID="W2", IssuerOfPatientID="HERE")
    node.steps.create(console, "clinical", "1.2.9.5", scheduled.checked(other.to_json_dict()))
    for issuer, left in (("HERE", []), ("ELSEWHERE", ["1.2.7.5"])):
        made = deny(node, Target("patient", "W2", expected=True, issuer=issuer))
        assert [row["study_instance_uid"] for row in node.worklist.list(mia, WorklistRequest(patient_id="W2"))] == left
        assert [row["studies"] for row in node.steps.list(mia) if row["patient_id"] == "W2"] == [left][:len(left)]
        node.accounts.revoke_grant(console, made)


def test_what_is_denied_cannot_be_told_from_what_is_not_there(node: Node) -> None:
    console, mia = archives.the_console(node), archives.user(node, "mia")
    waiting = node.worklist.add(console, entry(6))[0]
    begun_one = node.worklist.list(console, WorklistRequest(patient_id="W2"))[0]
    for patient in ("W2", "W6"):
        deny(node, Target("patient", patient, expected=True))
    for ask in (node.worklist.get, node.worklist.cancel):
        refusals = set()
        for number in (waiting["id"], begun_one["id"], 999):
            with pytest.raises(NotFound) as refused:
                ask(mia, number)
            refusals.add((refused.value.message, refused.value.remedy, refused.value.code))
        assert len(refusals) == 1
    assert node.worklist.get(console, waiting["id"])["state"] == "scheduled"
    # That its number is taken is told, as of any UID; not what became of it, and it is not written over.
    refusals = set()
    for number, patient in ((2, "W2"), (6, "W6"), (6, "X")):
        with pytest.raises(StateConflict) as conflict:
            node.worklist.add(mia, entry(number, PatientID=patient))
        refusals.add((conflict.value.message, conflict.value.remedy))
    assert len(refusals) == 1
    assert node.worklist.get(console, waiting["id"])["patient_id"] == "W6"
    assert node.steps.list(mia, study_instance_uid="1.2.7.2") == node.steps.list(mia, study_instance_uid="1.2.404") == []


def test_a_step_that_names_a_denied_series_is_not_there(node: Node) -> None:
    """Of a study of which more is left: the step says more of the series than that it is one."""
    console, mia = archives.the_console(node), archives.user(node, "mia")
    archives.store(node, archives.instance(1, study="1.2.7.1", series="1.2.7.1.2", PatientID="P1"))
    deny(node, Target("series", "1.2.7.1.1"))
    assert seen(node, mia) == ALL
    node.steps.set(console, "clinical", "1.2.9.1", scheduled.checked(ended().to_json_dict()))
    assert {row["patient_id"] for row in node.steps.list(mia)} == {"W2", "W3"}
    assert {row["patient_id"] for row in node.steps.list(console)} == ALL


@pytest.mark.parametrize(("bound", "left"), [
    ({"studies": ["1.2.7.1"]}, {"W1"}), ({"patients": ["P1"]}, {"W1"}), ({"patients": ["W2"]}, {"W2"}), ({"datastores": ["clinical"]}, ALL),
    ({"series": ["1.2.7.1.1"]}, set()),
])  # fmt: skip
def test_a_bounded_token_sees_whom_its_bound_names(node: Node, bound: dict[str, list[str]], left: set[str]) -> None:
    console = archives.the_console(node)
    archives.store(node, archives.instance(1, study="1.2.8", PatientID="W2"))
    node.accounts.add_grant(console, to="mia", role="researcher", target=Target("everything"))
    made = node.accounts.create_token(console, owner="mia", permissions=["worklist"], **bound)
    assert seen(node, node.signin.bearer(made["token"], address="192.0.2.1")) == left


def test_to_see_the_worklist_not_all_patients_are_read(node: Node) -> None:
    if not node.core.database.sqlite:
        return
    scope = scope_of(archives.user(node, "mia"), Permission.SEARCH, node.core.clock())
    with node.core.database.read() as tx:
        asked = Prepared(worklist_seen.visible(scope, device(node), 1)).compile(tx.dialect)
        values = tuple(asked._values({**scope.parameters}))
        plan = tx.exec_driver_sql(f"EXPLAIN QUERY PLAN {asked.text}", values, execution_options={guard.OPTION: scope.token}).all()
    steps = [str(row.detail) for row in plan]
    assert [step for step in steps if "named_patient" in step] == ["SEARCH named_patient USING INTEGER PRIMARY KEY (rowid=?)"]
    assert all("ix_grants" in step for step in steps if "deny_unseen" in step)
