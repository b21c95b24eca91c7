"""Work that went on after the last snapshot, or under a clock that was set back, is after a lost index as it was answered."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import pytest

from archive.access.grants import Target
from archive.access.subject import Subject
from archive.dicom import scheduled
from archive.node import Node
from archive.services import forwarding
from archive.services.clock import utc_now
from archive.services.commitments import Reference
from archive.services.deliveries import REPORT
from archive.services.forward_rules import Conditions
from archive.services.snapshot import Snapshots
from archive.services.work_snapshot import WorkSnapshots
from archive.services.workitem_watch import KEEP_FINISHED
from archive.services.worklist import KEEP, sweep
from tests.dimse.test_mpps import begun, ended
from tests.dimse.test_worklist import entry
from tests.services import archives
from tests.services.everything import device, rows
from tests.services.test_rebuild import lose, rebuild
from tests.services.ward import Clock
from tests.web.dicomweb.test_ups import LOCK, el, item

LONG_AGO = {"ScheduledProcedureStepStartDate": "20250110"}
CLAIM = {"00081195": el("UI", LOCK), "00741000": el("CS", "IN PROGRESS")}


def router(node: Node) -> Subject:
    console = archives.the_console(node)
    node.accounts.add_user(console, "router", password=archives.PASSWORD, roles=["technologist"])
    node.accounts.add_role(console, "router", ["search", "send"])
    node.accounts.add_grant(console, to="router", role="router", target=Target("everything"))
    return archives.user(node, "router")


def modality(node: Node) -> Subject:
    node.peers.add(archives.the_console(node), "CT1", ["CT1"], networks=["127.0.0.1/32"], address="127.0.0.1:1", roles=["modality"])
    node.peers.set(archives.the_console(node), "CT1", {"modality_without_tls": True})
    return device(node)


@pytest.mark.parametrize(("known", "signed"), [(True, True), (False, False), (True, False)],
                         ids=["which the ledger knows", "after the last checkpoint", "of which the ledger knows the beginning"])
def test_a_workitem_of_which_the_clock_was_set_back_is_what_it_became(tmp_path: Path, known: bool, signed: bool) -> None:
    config, clock = archives.made(tmp_path), Clock()
    with archives.opened(config, role="serve", clock=clock) as node:
        who = router(node)
        clock.at += timedelta(hours=2)
        made = node.workitems.create(who, "clinical", None, item(patient="P1", study="1.2.3")).uid
        node.upkeep.finish()
        if not known:
            made = node.workitems.create(who, "clinical", "1.2.77", item(patient="P1", study="1.2.3")).uid
        clock.at -= timedelta(hours=1)
        node.workitems.change_state(who, "clinical", made, CLAIM)
        before = rows(node, "workitem")
        if signed:
            node.upkeep.checkpoint()
    lose(config)
    assert rebuild(config).ok
    with archives.opened(config) as node:
        assert rows(node, "workitem") == before


def test_what_became_of_no_workitem_stays_so_after_a_lost_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two changes at once the first to commit counts: the record of the other is of a workitem that there is no more."""
    config, clock = archives.made(tmp_path), Clock()
    with archives.opened(config, role="serve", clock=clock) as node:
        who = router(node)
        made = node.workitems.create(who, "clinical", None, item(patient="P1", study="1.2.3")).uid
        clock.at += timedelta(minutes=1)
        with monkeypatch.context() as patch:  # as a process that is killed before its transaction
            patch.setattr(node.core.database, "group", _killed)
            with pytest.raises(Killed):
                node.workitems.request_cancel(who, "clinical", made, {})
        clock.at += timedelta(minutes=1)
        node.workitems.change_state(who, "clinical", made, CLAIM)
        before = rows(node, "workitem")
        node.upkeep.finish()
    lose(config)
    assert rebuild(config).ok
    with archives.opened(config) as node:
        assert rows(node, "workitem") == before


class Killed(BaseException):
    """The process ends here."""


def _killed(*_arguments: Any, **_options: Any) -> NoReturn:
    raise Killed


def test_what_has_the_uid_of_a_workitem_that_was_swept_is_no_finished_one(tmp_path: Path) -> None:
    config, clock = archives.made(tmp_path), Clock()
    clock.at = utc_now() - 2 * KEEP_FINISHED
    with archives.opened(config, clock=clock) as node:
        who = router(node)
        made = node.workitems.create(who, "clinical", "1.2.77", item(patient="P1", study="1.2.3")).uid
        node.workitems.change_state(who, "clinical", made, CLAIM)
        node.workitems.request_cancel(who, "clinical", made, {})
        second = node.workitems.create(who, "clinical", "1.2.78", item(patient="P1", study="1.2.3")).uid
        node.workitems.request_cancel(who, "clinical", second, {})
        clock.at += KEEP_FINISHED + timedelta(hours=1)
        node.workitem_watch.sweep(clock.at)
        node.workitems.create(who, "clinical", second, item(patient="P2", study="1.2.4"))
        before = rows(node, "workitem", "workitem_study")
        assert [row["state"] for row in before["workitem"]] == ["IN PROGRESS", "SCHEDULED"]
        node.upkeep.finish()
    lose(config)
    assert rebuild(config).ok
    with archives.opened(config) as node:
        assert rows(node, "workitem", "workitem_study") == before
        node.workitem_watch.sweep(utc_now() + KEEP_FINISHED)
        assert rows(node, "workitem") == {"workitem": before["workitem"]}


def test_what_was_entered_under_the_step_of_an_entry_that_was_forgotten_is_there(tmp_path: Path) -> None:
    config, clock = archives.made(tmp_path), Clock()
    clock.at = utc_now() - 2 * KEEP
    with archives.opened(config, clock=clock) as node:
        console, ct = archives.the_console(node), modality(node)
        for number in (1, 2):
            node.worklist.add(console, entry(number, step=LONG_AGO))
        node.steps.create(ct, "clinical", "1.2.9.1", scheduled.checked(begun(1).to_json_dict()))
        node.steps.set(ct, "clinical", "1.2.9.1", scheduled.checked(ended().to_json_dict()))
        node.worklist.cancel(console, 2)
        clock.at += KEEP + timedelta(days=1)
        with node.core.database.begin() as tx:
            sweep(tx, clock.at)
        for number in (1, 2):
            node.worklist.add(console, entry(number))
        before = told(node)
        assert {row["state"] for row in before["worklist_entry"]} == {"scheduled"}
        node.upkeep.finish()
    lose(config)
    assert rebuild(config).ok
    with archives.opened(config) as node:
        assert told(node) == before


def told(node: Node) -> dict[str, list[dict[str, Any]]]:
    """What is to be done, without numbers."""
    found = rows(node, "worklist_entry", "mpps")
    return {name: [{key: value for key, value in row.items() if key != "id"} for row in some] for name, some in found.items()}


def test_the_report_to_a_peer_that_asked_for_the_first_time_after_the_last_snapshot_is_delivered(tmp_path: Path) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config, role="serve") as node:
        console, ct = archives.the_console(node), modality(node)
        router(node)
        node.peers.add(console, "DST", ["DST"], networks=["192.0.2.0/24"], address="192.0.2.7:104")
        node.forwarding.add(console, "all", "DST", on_behalf_of="router", conditions=Conditions(modality=("CT",)))
        node.upkeep.finish()
        archives.store(node, archives.instance(1), subject=ct)
        node.commitments.request(ct, "clinical", "1.2.8.1", [Reference(archives.CT, "1.2.3.1.1")], calling_ae_title="CT1")
        assert node.commitments.check(1) is not None
        node.upkeep.checkpoint()
    lose(config)
    assert rebuild(config).ok
    with archives.opened(config) as node:
        claimed = node.deliveries.claim()
        assert claimed is not None
        assert [one.commitment_id for one in node.deliveries.due(claimed, REPORT, limit=10)] == [1]


def test_a_destination_that_was_paused_after_the_last_snapshot_waits(tmp_path: Path) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config, role="serve") as node:
        console = archives.the_console(node)
        router(node)
        for name in ("DST", "OTHER"):
            node.peers.add(console, name, [name], networks=["192.0.2.0/24"], address="192.0.2.7:104")
            node.forwarding.add(console, name, name, on_behalf_of="router", conditions=Conditions(modality=("CT",)))
        node.forwarding.pause(console, "OTHER", paused=True)
        node.upkeep.finish()
        node.forwarding.pause(console, "DST", paused=True)
        node.forwarding.pause(console, "OTHER", paused=False)
        node.upkeep.checkpoint()
    lose(config)
    assert rebuild(config).ok
    with archives.opened(config) as node:
        states = {row["destination"]: row["state"] for row in node.forwarding.destinations(archives.the_console(node))}
        assert states == {"DST": "paused", "OTHER": "ready"}


def test_what_went_on_by_another_rule_after_the_last_snapshot_does_so_after_a_rebuild(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "SETTLE", timedelta())
    config = archives.made(tmp_path)
    with archives.opened(config, role="serve") as node:
        console = archives.the_console(node)
        router(node)
        node.peers.add(console, "DST", ["DST"], networks=["192.0.2.0/24"], address="192.0.2.7:104")
        node.accounts.add_role(console, "taker", ["receive"])
        node.accounts.add_grant(console, to="DST", role="taker", target=Target("everything"))
        for name in ("one", "two"):
            node.forwarding.add(console, name, "DST", on_behalf_of="router", conditions=Conditions(modality=("CT",)))
        archives.store(node, archives.instance(1))
        while node.forwarding.look():
            pass
        node.upkeep.finish()
        node.forwarding.remove(console, "one")
        assert [row["rule"] for row in node.forwarding.queue(console)] == ["two"]
        node.upkeep.checkpoint()
    lose(config)
    assert rebuild(config).ok
    with archives.opened(config, role="serve") as node:
        node.forwarding.look()
        assert [row["rule"] for row in node.forwarding.queue(archives.the_console(node))] == ["two"]


def test_a_rule_of_a_history_that_was_given_up_forwards_nothing(tmp_path: Path) -> None:
    """Though the rebuild itself has made the log as long again."""
    config = archives.made(tmp_path)
    with archives.opened(config, role="serve") as node:
        console = archives.the_console(node)
        router(node)
        node.peers.add(console, "DST", ["DST"], networks=["192.0.2.0/24"], address="192.0.2.7:104")
        Snapshots(node.core).write()
        for name in ("ann", "ben", "cleo"):  # whom a rebuild takes away, with an event for each
            node.accounts.add_user(console, name, password=archives.PASSWORD)
        node.upkeep.checkpoint()
        node.forwarding.add(console, "all", "DST", on_behalf_of="router", conditions=Conditions(modality=("CT",)))
        WorkSnapshots(node.core).tick(now=True)
    lose(config)
    assert rebuild(config).ok
    with archives.opened(config) as node:
        assert node.forwarding.list(archives.the_console(node)) == []
