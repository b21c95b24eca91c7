"""Worklist, procedure steps and records of associations on both engines: entered, followed, forgotten in time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.db.tables import mpps_step, worklist_entry
from archive.dicom import scheduled
from archive.node import Node
from archive.services import worklist
from archive.services.association_log import AssociationRecord
from archive.services.worklist import WorklistRequest
from tests.dimse.test_mpps import begun, ended
from tests.dimse.test_worklist import entry
from tests.services import archives


@pytest.fixture(params=["sqlite", "postgresql"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    sections = {} if request.param == "sqlite" else {"database": {"url": request.getfixturevalue("postgresql_url")}}
    with archives.opened(archives.made(tmp_path, **sections)) as opened:
        yield opened


def test_on_both_engines(node: Node) -> None:
    console = archives.the_console(node)
    peer = node.peers.add(console, "CT1", ["CT1"], networks=["127.0.0.1/32"])
    node.peers.set(console, "CT1", {"modality_without_tls": True})
    admitted = node.peers.admit(calling_ae_title="CT1", called_ae_title="STRONGROOM", address="127.0.0.1", certificate=None, tls=False)
    device = admitted.subject
    assert device.principal_id == peer["id"]
    for number in range(1, 4):
        node.worklist.add(console, entry(number, step={"ScheduledStationAETitle": "CT1" if number < 3 else "MR1"}))
    assert [row["patient_id"] for page in node.worklist.find(device, WorklistRequest()) for row in page] == ["W1", "W2"]
    node.worklist.cancel(console, node.worklist.list(console, WorklistRequest(patient_id="W2"))[0]["id"])
    step = scheduled.checked(begun(1).to_json_dict())
    node.steps.create(device, "clinical", "1.2.9.1", step)
    node.steps.set(device, "clinical", "1.2.9.1", scheduled.checked(ended().to_json_dict()))
    found = {row["patient_id"]: row["state"] for row in node.worklist.list(console, WorklistRequest(every=True))}
    assert found == {"W1": "completed", "W2": "cancelled", "W3": "scheduled"}
    assert [row["state"] for row in node.steps.list(console, study_instance_uid="1.2.7.1")] == ["completed"]
    at = datetime.now(UTC)
    for _ in range(3):
        node.association_log.note(AssociationRecord(at, at, "refused", "peer not recognised", True, "X", "Y", "192.0.2.1"))
    node.association_log.flush()
    assert [row["repeats"] for row in node.association_log.search(console, failed=True)] == [3]


def test_old_entries_are_forgotten_and_what_was_performed_is_kept(node: Node) -> None:
    console = archives.the_console(node)
    node.worklist.add(console, entry(1))
    node.steps.create(console, "clinical", "1.2.9.1", scheduled.checked(begun(1).to_json_dict()))
    late = datetime(2027, 1, 10, tzinfo=UTC) + worklist.KEEP
    for at, left in ((late, 1), (late + timedelta(days=2), 0)):
        with node.core.database.begin() as tx:
            worklist.sweep(tx, at)
            assert tx.execute(sa.select(sa.func.count()).select_from(worklist_entry)).scalar() == left
    with node.core.database.read() as tx:
        assert tx.execute(sa.select(mpps_step.c.entry_id)).scalar() is None
    assert len(node.steps.list(console)) == 1


def test_a_data_set_of_several_steps_is_as_many_entries(node: Node) -> None:
    console = archives.the_console(node)
    one, two = entry(1), entry(2)
    one["00400100"]["Value"] += two["00400100"]["Value"]
    made = node.worklist.add(console, one)
    assert [row["procedure_step_id"] for row in made] == ["SPS1", "SPS2"]
    assert {row["study_instance_uid"] for row in made} == {"1.2.7.1"}
