"""Why somebody has to do with a patient: from images, orders and rules, and from nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from archive.access import policy, principals
from archive.access.grants import Target
from archive.db.tables import patient
from archive.node import Node
from archive.services import treatment
from archive.services.arrival_admin import NewRule
from archive.services.arrival_terms import Conditions
from tests.services import archives


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path_factory.mktemp("treatment"))) as opened:
        console = archives.the_console(opened)
        people = {"mia": "Dr. Mia Maier", "ole": "Ole Olsen", "eva": "Eva Müller-Lüdenscheidt", "max": "Max Maier", "jo": ""}
        for name, full in people.items():
            opened.accounts.add_user(console, name, full_name=full)
        opened.accounts.add_group(console, "cardiology", full_name="Cardiology West")
        opened.accounts.join_group(console, "cardiology", "jo")
        opened.peers.add(console, "CT1", ae_titles=["CT1"], networks=["10.0.0.1/32"])
        archives.store(opened, archives.instance(
            1, study="1.2.1", PatientID="P1", ReferringPhysicianName="MAIER^Mia^^Dr", PerformingPhysicianName="Müller-Lüdenscheidt^Eva"))
        archives.store(opened, archives.instance(2, study="1.2.2", PatientID="P2", InstitutionalDepartmentName="CARDIOLOGY"))
        archives.store(opened, archives.instance(3, study="1.2.3", PatientID="P3"))
        archives.store(opened, archives.instance(4, study="1.2.4", PatientID=None, ReferringPhysicianName="Maier^Mia"))
        yield opened


def why(node: Node, name: str, patient_id: str) -> list[str]:
    at = node.core.clock()
    with node.core.database.read() as tx:
        pk = policy.run_as(tx, policy.system("verify"), sa.select(patient.c.id).where(patient.c.patient_id == patient_id)).scalar_one()
        who = principals.find(tx, name)["id"]
        return [one.what for one in treatment.related(tx, who, pk, at)]


def test_by_the_images(node: Node) -> None:
    assert why(node, "mia", "P1") == ["referring physician"]
    assert why(node, "eva", "P1") == ["performing physician"]
    assert why(node, "max", "P1") == []  # the same family
    assert why(node, "ole", "P1") == []
    assert why(node, "mia", "P2") == []
    assert why(node, "jo", "P2") == ["department of the images"]


def order(node: Node, patient_id: str, **more: Any) -> None:
    at = node.core.clock()
    node.worklist.add(archives.the_console(node), entry(patient_id, f"{at:%Y%m%d}", **more), source="test")


def entry(
    patient_id: str, date: str, *, requesting: str = "", performing: str = "", station: str = "", service: str = ""
) -> dict[str, Any]:
    def name(text: str) -> dict[str, Any]:
        return {"vr": "PN", "Value": [{"Alphabetic": text}]} if text else {"vr": "PN"}

    step = {
        "00080060": {"vr": "CS", "Value": ["CT"]}, "00400002": {"vr": "DA", "Value": [date]}, "00400003": {"vr": "TM", "Value": ["0800"]},
        "00400001": {"vr": "AE", "Value": [station]} if station else {"vr": "AE"}, "00400006": name(performing),
        "00400009": {"vr": "SH", "Value": [f"{requesting}{performing}{station}{service}"[:16] or "s"]},
    }
    return {
        "00100020": {"vr": "LO", "Value": [patient_id]}, "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Canary^Test"}]},
        "00321032": name(requesting), "00321033": {"vr": "LO", "Value": [service]} if service else {"vr": "LO"},
        "00400100": {"vr": "SQ", "Value": [step]},
    }


def test_by_the_worklist(node: Node) -> None:
    order(node, "P3", requesting="Olsen^Ole")
    order(node, "P3", performing="Maier^Max")
    order(node, "P3", service="Cardiology West")
    order(node, "P2", station="CT1")
    assert why(node, "ole", "P3") == ["requesting physician of an order"]
    assert why(node, "max", "P3") == ["performing physician of a scheduled step"]
    assert why(node, "jo", "P3") == ["requesting service of an order"]
    assert why(node, "CT1", "P2") == ["a step scheduled for this device"]
    assert why(node, "ole", "P2") == why(node, "CT1", "P3") == []


def test_by_a_rule_and_in_explain(node: Node) -> None:
    console = archives.the_console(node)
    node.arrival_rules.add(console, NewRule("night", "jo", "referrer", Conditions(station=("CT9",))))
    archives.store(node, archives.instance(9, study="1.2.9", PatientID="P9", StationName="CT9"))
    assert why(node, "jo", "P9") == ["rule night"]
    node.accounts.add_grant(console, to="jo", role="referrer", target=Target("study", "1.2.3"))
    assert why(node, "jo", "P1") == []  # a grant alone is no reason
    found = node.accounts.explain(console, "mia", "1.2.1")
    assert found["treatment"] == [{"what": "referring physician", "study_instance_uid": "1.2.1"}]
    assert node.accounts.explain(console, "ole", "1.2.1")["treatment"] == []
    assert "treatment" not in node.accounts.explain(console, "ole", "9.9")
    assert node.accounts.explain(console, "mia", "1.2.4.1")["treatment"][0]["what"] == "referring physician"  # whoever the patient is
