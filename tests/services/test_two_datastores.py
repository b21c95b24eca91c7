"""Two datastores with the same UIDs: what was decided in one says nothing of the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.access import policy
from archive.db.tables import datastore, patient, series, study
from archive.node import Node
from archive.services.store import Source
from tests.services import archives

ONE, UID = "1.2.3", b"o" * 16


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path)) as opened:
        opened.keyring.add_kek(UID, at=opened.core.clock())
        with opened.core.database.begin() as tx:
            tx.execute(sa.insert(datastore), {"uid": UID, "name": "other", "created_at": opened.core.clock()})
        yield opened


def put(node: Node, place: str, data: bytes) -> str:
    incoming = node.store.open(archives.the_console(node), place, Source("stow"))
    incoming.write(data)
    return incoming.finish().status


def found(node: Node) -> list[tuple[str, str]]:
    return [(one.code, one.detail) for one in node.verify.run(archives.the_console(node)).findings if one.code in ("V10", "V12")]


def test_what_was_let_in_to_both_is_as_it_was_decided(node: Node) -> None:
    console = archives.the_console(node)
    for place in ("clinical", "other"):
        put(node, place, archives.instance(1))
        assert put(node, place, archives.instance(1, StudyDescription="else")) == "conflict"
    for row in node.reconcile.list(console):
        node.reconcile.accept(console, row["id"], reason="better")
    assert found(node) == []


def test_whose_a_study_stays_in_one_is_not_said_of_the_other(node: Node) -> None:
    console = archives.the_console(node)
    put(node, "other", archives.instance(1, PatientID=None))
    put(node, "other", archives.instance(2))  # names the patient
    node.remove.reject(console, "other", "instance", f"{ONE}.1.2", reason="test")
    node.purge.run(console, "other", study=ONE, reason="test")
    put(node, "clinical", archives.instance(1, PatientID=None))
    put(node, "clinical", archives.instance(1, study="1.2.9"))
    assert found(node) == []
    token = policy.system("verify")
    with node.core.database.begin() as tx:
        here = sa.select(datastore.c.id).where(datastore.c.name == "clinical").scalar_subquery()
        ids = (
            sa.select(patient.c.id).where(patient.c.patient_id == "P1", patient.c.datastore_id == here),
            sa.select(study.c.id).where(study.c.study_instance_uid == ONE, study.c.datastore_id == here),
        )
        whose, mine = (policy.run_as(tx, token, one).scalar() for one in ids)
        policy.run_as(tx, token, sa.update(study).where(study.c.id == mine).values(patient_pk=whose))
        policy.run_as(tx, token, sa.update(series).where(series.c.study_pk == mine).values(patient_pk=whose))
    assert "no record names the patient whose its study is" in [detail for _code, detail in found(node)]
