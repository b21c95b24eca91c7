"""A procedure step that was answered with success is there, whatever fails while it is kept, and though the index is lost after that."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.db.tables import mpps
from archive.dicom import scheduled
from archive.errors import ArchiveError
from archive.node import Node, open_node
from archive.vault.disk import DISK
from tests.dimse.test_mpps import begun, ended
from tests.services import archives
from tests.services.test_crash import KINDS, Fault, arm
from tests.services.test_rebuild import lose, rebuild


def kept(node: Node) -> dict[str, str]:
    with node.core.database.read() as tx:
        return {row.sop_instance_uid: row.state for row in tx.execute(sa.select(mpps))}


def attempt(node: Node, uid: str) -> ArchiveError | None:
    try:
        perform(node, uid)
    except ArchiveError as error:
        return error
    return None


def perform(node: Node, uid: str) -> None:
    """Begin a step and complete it."""
    console = archives.the_console(node)
    node.steps.create(console, "clinical", uid, scheduled.checked(begun(1).to_json_dict()))
    node.steps.set(console, "clinical", uid, scheduled.checked(ended().to_json_dict()))


@pytest.mark.parametrize(("where", "kind"), [("disk", "error"), ("commit", "unavailable"), ("answer", "no answer")])
def test_a_fault_at_every_operation_of_a_step(tmp_path: Path, where: str, kind: str) -> None:
    config = archives.made(tmp_path)
    promised: dict[str, str] = {}
    node = open_node(config, role="dimse")
    try:
        fault = Fault(-1, KINDS[kind][0])
        arm(fault, where, node)
        for number in itertools.count():
            uid = f"1.2.9.{number}"
            fault.number, fault.seen, fault.struck = number, -1, ""
            failure = attempt(node, uid)
            fault.number = -1
            assert bool(failure) is bool(fault.struck)
            if failure is not None:
                assert isinstance(failure, KINDS[kind][1])
                assert where == "answer" or kept(node).get(uid) != "completed"
                if kept(node).get(uid) != "completed":
                    perform(node, uid)  # who was not answered asks again
            promised[uid] = "completed"
            assert kept(node) == promised
            if failure is None:
                break
    finally:
        DISK.before = lambda _number, _name: None
        node.close()
    assert number >= 2
    with archives.opened(config) as node:
        assert kept(node) == promised
        assert node.verify.run(archives.the_console(node), "standard").findings == []
    lose(config)
    report = rebuild(config)
    assert report.ok, report.problems
    with archives.opened(config) as node:
        assert kept(node) == promised
