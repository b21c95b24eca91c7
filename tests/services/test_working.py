"""Worklist, procedure steps, workitems, commitments, rules and queues: a backup has them all, and a lost index loses none of them."""

from __future__ import annotations

import base64
import json
import tracemalloc
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from archive.access import policy
from archive.db.tables import audit_event, datastore, delivery, forward_rule, instance, peer
from archive.dicom import scheduled
from archive.errors import DigestMismatch, SealBroken
from archive.keys import sealing
from archive.node import Node, open_node
from archive.services import work_snapshot, working
from archive.services.commitments import Reference
from archive.services.forward_rules import Conditions
from archive.services.history import History
from archive.services.restore import restore
from archive.services.worklist import WorklistRequest
from tests.dimse.test_mpps import begun, ended
from tests.dimse.test_worklist import entry
from tests.services import archives
from tests.services.everything import CLINICAL, EVERY, ORDERS, device, filled, rows
from tests.services.test_backup import back_up, put_back, way
from tests.services.test_rebuild import lose, rebuild
from tests.services.ward import Clock
from tests.vectors.make_working import FILE, told


@pytest.fixture
def folder(tmp_path: Path, engine: dict[str, Any]) -> Path:
    archives.made(tmp_path, **engine)
    return tmp_path


def waiting(node: Node) -> list[tuple[str, str]]:
    """What is still to be delivered, by whom and what."""
    with node.core.database.read() as tx:
        query = sa.select(delivery.c.kind, delivery.c.commitment_id, instance.c.sop_instance_uid).outerjoin(
            instance, instance.c.id == delivery.c.instance_pk
        ).where(delivery.c.state == "waiting")
        found = policy.run_as(tx, policy.system("verify"), query).all()
    return sorted((row.kind, row.sop_instance_uid or str(row.commitment_id)) for row in found)


def test_a_backup_has_every_row_and_a_restored_archive_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    config, target = archives.configured(folder), tmp_path / "backup"
    with archives.opened(config) as node:
        filled(node)
        before, queued = rows(node, *EVERY), waiting(node)
        assert all(before.values()), [name for name, found in before.items() if not found]
        assert len(queued) == 3
        back_up(node, target, keys=True)
    if config.database.url:  # onto a server again, into an empty database
        lose(config)
        (tmp_path / "server").mkdir()
        (tmp_path / "server" / "database-url").write_text(config.database.url)
        config = archives.configured(tmp_path / "server")
        assert restore(target, config, way()).ok
    else:
        config, report = put_back(target, tmp_path / "new")
        assert report.ok, report.findings
    with archives.opened(config) as node:
        assert rows(node, *EVERY) == before
        assert waiting(node) == queued
        assert node.forwarding.look() == 0  # what was sent or waits is not queued again
        assert node.commitments.check_next()  # what was asked is answered
        console = archives.the_console(node)
        node.worklist.add(console, before["worklist_entry"][0]["attributes"] | {"0020000D": scheduled.element("UI", ["1.2.7.99"])})
        node.steps.set(device(node), "clinical", "1.2.9.3", scheduled.checked(ended().to_json_dict()))


def test_a_lost_index_loses_nothing_that_was_acknowledged(folder: Path) -> None:
    config = archives.configured(folder)
    with archives.opened(config) as node:
        filled(node)
        before, queued = rows(node, *CLINICAL, *ORDERS), waiting(node)
        node.upkeep.finish()
        archives.store(node, archives.instance(4))  # later than the last snapshot and checkpoint, as the next two
        step = scheduled.checked(begun(4).to_json_dict())
        node.steps.create(device(node), "clinical", "1.2.9.4", step)
        last = rows(node, "mpps")["mpps"][-1]
    lose(config)
    report = rebuild(config)
    assert report.ok, report.problems
    with archives.opened(config) as node:
        after = rows(node, *CLINICAL, *ORDERS)
        assert rows(node, "mpps")["mpps"][-1] == last
        began = {row["id"] for row in after["worklist_entry"] if row["procedure_step_id"] == "SPS4"}
        assert [row["state"] for row in after["worklist_entry"] if row["id"] in began] == ["in-progress"]
        _forget(after, "mpps", lambda row: row["sop_instance_uid"] == "1.2.9.4")
        _forget(after, "mpps_step", lambda row: row["mpps_id"] == last["id"])
        for row in (*after["worklist_entry"], *before["worklist_entry"]):
            if row["id"] in began:
                row["state"] = row["updated_at"] = None
        assert after == before
        assert waiting(node) == queued
        assert node.forwarding.look() == 1  # the one that arrived since
        assert node.commitments.check_next()
        console = archives.the_console(node)
        assert node.commitments.receipt(console, "1.2.8.1")["results_sha256"]
        assert node.verify.run(console, "full").findings == []
    again = rebuild(config)  # where the index opens, these tables stay as they are
    assert again.ok, again.problems
    with archives.opened(config) as node:
        assert rows(node, "mpps")["mpps"][-1] == last


def test_a_rebuild_holds_neither_what_waits_nor_what_was_entered_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be a delivery of every instance to every destination, and a change of state for every day's worklist."""
    held, run = [], History.run

    def measured(history: History, progress: Any) -> None:
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        run(history, progress)

    monkeypatch.setattr(History, "run", measured)
    config = archives.made(tmp_path)
    with archives.opened(config) as node:
        filled(node)
    for more in (0, 100):
        with archives.opened(config) as node:
            for number in range(more):
                dataset = entry(100 + number, step={"ScheduledProcedureStepStartTime": "090000"}, PatientComments="x" * 10_000)
                node.worklist.add(archives.the_console(node), dataset)
            with node.core.database.begin() as tx:
                row = tx.execute(sa.select(delivery).where(delivery.c.kind == "forward").limit(1)).mappings().one()
                made = [{**row, "id": 1000 + number, "peer_id": 1000 + number} for number in range(100 * more)]
                if made:
                    tx.execute(sa.insert(delivery), made)
            before, known = waiting(node), rows(node, "worklist_entry")
        tracemalloc.start()
        assert rebuild(config).ok
    assert held[1] < held[0] + (1 << 20)
    with archives.opened(config) as node:
        assert waiting(node) == before
        assert rows(node, "worklist_entry") == known
        assert node.verify.run(archives.the_console(node), "quick").findings == []


def test_what_waits_to_be_restored_is_forwarded_after_a_lost_index(tmp_path: Path) -> None:
    archives.made(tmp_path)
    config = archives.configured(tmp_path)
    with archives.opened(config) as node:
        filled(node)
        archives.store(node, archives.instance(1, study="1.2.6"))
        node.remove.reject(archives.the_console(node), "clinical", "study", "1.2.6", reason="test")
        assert node.forwarding.look() == 1
        assert ("forward", "1.2.6.1.1") not in waiting(node)
        node.upkeep.finish()
    lose(config)
    assert rebuild(config).ok
    with archives.opened(config) as node:
        console = archives.the_console(node)
        assert len(node.forwarding.queue(console, state="rejected")) == 1
        assert node.forwarding.look() == 0
        node.remove.restore(console, "clinical", "study", "1.2.6", reason="test")
        assert node.forwarding.look() == 1
        assert ("forward", "1.2.6.1.1") in waiting(node)


def test_what_was_asked_again_has_each_look_after_a_lost_index(tmp_path: Path) -> None:
    archives.made(tmp_path)
    config = archives.configured(tmp_path)
    with archives.opened(config) as node:
        filled(node)
        first, waits = (rows(node, "commitment")["commitment"][n] for n in (0, 2))
        for row in (first, waits):
            found = [one for one in rows(node, "commitment_item")["commitment_item"] if one["commitment_id"] == row["id"]]
            references = [Reference(one["sop_class_uid"], one["sop_instance_uid"]) for one in found]
            node.commitments.request(device(node), "clinical", row["transaction_uid"], references, calling_ae_title="CT1")
        assert node.commitments.check(4) is not None
        before = rows(node, "commitment", "commitment_item")
        assert [row["state"] for row in before["commitment"]] == ["checked", "checked", "checking", "checked"]
        node.upkeep.finish()
    lose(config)
    assert rebuild(config).ok
    with archives.opened(config) as node:
        assert rows(node, "commitment", "commitment_item") == before


def _forget(found: dict[str, list[dict[str, Any]]], table: str, which: Any) -> None:
    found[table] = [row for row in found[table] if not which(row)]


def test_what_was_removed_after_the_last_snapshot_stays_removed(tmp_path: Path) -> None:
    archives.made(tmp_path)
    config = archives.configured(tmp_path)
    with archives.opened(config) as node:
        filled(node)
        node.upkeep.finish()
        console = archives.the_console(node)
        node.forwarding.remove(console, "all")
        node.webhooks.remove(console, 1)
        node.upkeep.checkpoint()
    lose(config)
    assert rebuild(config).ok
    with archives.opened(config) as node:
        assert node.forwarding.list(archives.the_console(node)) == []
        assert node.webhooks.list(archives.the_console(node)) == []
        assert [kind for kind, _ in waiting(node)] == ["report"]


def test_what_another_rule_sends_too_waits_for_that_one_after_a_lost_index(tmp_path: Path) -> None:
    """As it did when the rule was removed, after the last snapshot; and what that one had sent is remembered."""
    archives.made(tmp_path)
    config = archives.configured(tmp_path)
    with archives.opened(config) as node:
        filled(node)
        console = archives.the_console(node)
        node.forwarding.add(console, "other", "DST", on_behalf_of="router", conditions=Conditions(), existing=True)
        before = sorted((row["state"], row["kind"]) for row in node.forwarding.queue(console))
        node.upkeep.finish()
        node.forwarding.remove(console, "all")
        assert sorted((row["state"], row["kind"]) for row in node.forwarding.queue(console)) == before
        node.upkeep.checkpoint()
    lose(config)
    assert rebuild(config).ok
    with archives.opened(config) as node:
        found = node.forwarding.queue(archives.the_console(node))
        assert sorted((row["state"], row["kind"]) for row in found) == before
        assert {row["rule"] for row in found if row["kind"] == "forward"} == {"other"}


def test_an_event_that_was_changed_keeps_no_rule_from_being_removed(tmp_path: Path) -> None:
    """It says from when on another rule was to look; verify tells that it was changed."""
    archives.made(tmp_path)
    with archives.opened(archives.configured(tmp_path)) as node:
        filled(node)
        console = archives.the_console(node)
        node.forwarding.add(console, "other", "DST", on_behalf_of="router", conditions=Conditions())
        with node.core.database.begin() as tx:
            last = sa.select(sa.func.max(audit_event.c.n)).where(audit_event.c.kind == "configured").scalar_subquery()
            tx.execute(sa.update(audit_event).where(audit_event.c.n == last).values(body=bytes(60)))
        node.forwarding.remove(console, "all")
        assert [row["name"] for row in node.forwarding.list(console)] == ["other"]
        assert len([row for row in node.forwarding.queue(console) if row["rule"] == "other"]) == 3
        assert "V12" in {one.code for one in node.verify.run(console, "quick").findings}


@pytest.mark.parametrize("edit", ["added", "conditions", "to", "on behalf of", "back", "disabled"])
def test_a_rule_of_forwarding_that_is_slipped_in_or_made_another_is_found(tmp_path: Path, edit: str) -> None:
    """By it images would leave."""
    config = archives.made(tmp_path)
    with archives.opened(config) as node:
        filled(node)
        console = archives.the_console(node)
        node.forwarding.add(console, "gone", "DST", on_behalf_of="router", conditions=Conditions())
        (kept, once) = rows(node, "forward_rule")["forward_rule"]
        node.forwarding.remove(console, "gone")
        assert node.verify.run(console, "quick").findings == []
        this = sa.update(forward_rule).where(forward_rule.c.id == kept["id"])
        with node.core.database.begin() as tx:
            tx.execute({
                "added": sa.insert(forward_rule).values(kept | {"id": 77, "name": "slipped in"}),
                "conditions": this.values(conditions=kept["conditions"] | {"modality": []}),
                "to": this.values(peer_id=sa.select(peer.c.id).where(peer.c.name == "CT1").scalar_subquery()),
                "on behalf of": this.values(principal_id=archives.user(node).principal_id),
                "back": sa.insert(forward_rule).values(once),
                "disabled": this.values(enabled=False),
            }[edit])
        assert [one.code for one in node.verify.run(console, "quick").findings] == ["V12"]


def test_a_rule_whose_user_and_destination_are_gone_is_as_it_was_added(tmp_path: Path) -> None:
    with archives.opened(archives.made(tmp_path)) as node:
        filled(node)
        console = archives.the_console(node)
        node.accounts.remove_user(console, "router")
        node.peers.remove(console, "DST")
        assert node.verify.run(console, "quick").findings == []


VECTORS = json.loads(FILE.read_text())


def test_records_of_earlier_releases_make_the_same_rows(tmp_path: Path) -> None:
    """Frozen when they were first written; the reports that were taken are not among them."""
    config = archives.made(tmp_path)
    with archives.opened(config) as node:
        with node.core.database.begin() as tx:
            here = bytes(tx.execute(sa.select(datastore.c.uid)).scalar_one()).hex()
            for leaf, change in VECTORS["records"]:
                working.redo(tx, change | {"datastore": here}, leaf)
        found = told(rows(node, *CLINICAL))
        for row in (*found["commitment"], *VECTORS["rows"]["commitment"]):
            row["reported_at"] = None
        assert found == VECTORS["rows"]
        with node.core.database.begin() as tx, pytest.raises(DigestMismatch):
            working.redo(tx, VECTORS["records"][0][1] | {"datastore": "00" * 16}, 1)


def test_looking_at_a_long_queue_takes_a_small_part_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, clock, tables = archives.made(tmp_path), Clock(), work_snapshot._tables
    looked: list[float] = []

    def slow(tx: sa.Connection) -> dict[str, list[dict[str, Any]]]:
        looked.append(10.0)
        return tables(tx)

    monkeypatch.setattr(work_snapshot, "_tables", slow)
    monkeypatch.setattr(work_snapshot, "monotonic", lambda: sum(looked))
    with archives.opened(config, clock=clock, role="background") as node:
        snapshots = work_snapshot.WorkSnapshots(node.core)
        for seconds, count in ((0, 1), (60, 1), (139, 1), (1, 2)):
            clock.at += timedelta(seconds=seconds)
            snapshots.tick()
            assert len(looked) == count
        snapshots.tick(now=True)
        assert len(looked) == 3


def test_a_command_that_only_reads_does_not_look_at_what_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a hundred thousand that wait each command took seconds more."""
    config, tables = archives.made(tmp_path), work_snapshot._tables
    looked: list[int] = []

    def watched(tx: sa.Connection) -> dict[str, list[dict[str, Any]]]:
        looked.append(1)
        return tables(tx)

    def paused() -> list[bool]:
        newest = work_snapshot.files(config.ledger_dir)[0]
        with closing(open_node(config, role="background")) as node:
            kept = work_snapshot.read(node.core.keyring, newest)
        return [row["paused"] for row in kept.tables["delivery_destination"]]

    with closing(open_node(config, role="cli")) as node:
        node.peers.add(archives.the_console(node), "DST", ["DST"], networks=["127.0.0.1/32"], address="127.0.0.1:1")
        node.forwarding.pause(archives.the_console(node), "DST", paused=True)
    assert paused() == [True]
    monkeypatch.setattr(work_snapshot, "_tables", watched)
    for _ in range(2):
        with closing(open_node(config, role="cli")) as node:
            assert node.worklist.list(archives.the_console(node), WorklistRequest()) == []
    assert looked == []
    with closing(open_node(config, role="cli")) as node:
        node.forwarding.pause(archives.the_console(node), "DST", paused=False)
    assert (looked, paused()) == ([1], [False])


def test_a_work_snapshot_of_an_earlier_release_opens_and_a_changed_one_does_not(tmp_path: Path) -> None:
    said = VECTORS["snapshot"]
    keys = {"work-snapshot": bytes.fromhex(said["key"])}
    keyring: Any = SimpleNamespace(archive_uuid=said["archive"], unseal=lambda label, data, aad: sealing.unseal(keys[label], data, aad))
    path, sealed = tmp_path / said["name"], base64.b64decode(said["sealed"])
    path.write_bytes(sealed)
    assert work_snapshot.read(keyring, path).tables == said["tables"]
    for at in (0, 10, len(sealed) // 2, len(sealed) - 1):
        path.write_bytes(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :])
        with pytest.raises(SealBroken):
            work_snapshot.read(keyring, path)
    other = path.with_name(f"{int(path.name) + 1:020d}")
    other.write_bytes(sealed)
    with pytest.raises(SealBroken):
        work_snapshot.read(keyring, other)
