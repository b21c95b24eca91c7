"""An older index put back: what came after it, in segments of several processes, is done again as it was, also by a clock set back."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import pytest
import sqlalchemy as sa

from archive.access.grants import Target
from archive.config import Config
from archive.db.tables import datastore, instance
from archive.dicom import scheduled
from archive.node import Node, open_node
from archive.services import state_events
from tests.dimse.test_mpps import begun, ended
from tests.dimse.test_worklist import entry
from tests.services import archives, crowd
from tests.services.everything import device, rows
from tests.services.test_nothing_lost import left
from tests.services.test_rebuild import rebuild
from tests.services.test_rebuild_work import CLAIM, modality, router
from tests.services.ward import Clock
from tests.web.dicomweb.test_ups import LOCK, el, item

HOUR = timedelta(hours=1)
DONE = {"00081195": el("UI", LOCK), "00741000": el("CS", "COMPLETED")}
ONE = "1.2.3"


class World:
    """Two processes of one archive and a clock that they share; `kept` copies their index."""

    def __init__(self, config: Config, kept: Path) -> None:
        self.config, self._kept, self.clock = config, kept, Clock()
        self.first, self.second = (open_node(config, role=role, clock=self.clock) for role in ("dimse", "web"))  # type: ignore[arg-type]

    def keep(self) -> None:
        self.clock.at += HOUR
        self.first.upkeep.checkpoint()
        self.first.core.database.checkpoint()
        shutil.copy(self.config.index_path, self._kept)
        self.clock.at += 2 * HOUR

    def set_back(self) -> None:
        self.clock.at -= HOUR

    @contextmanager
    def put_back(self) -> Iterator[Node]:
        """The archive after its older index was put back by hand."""
        for node in (self.first, self.second):
            left(node)
        self.clock.at += 3 * HOUR
        for path in self.config.storage_dir.glob("index.db*"):
            path.unlink()
        shutil.copy(self._kept, self.config.index_path)
        node = open_node(self.config, clock=self.clock)
        node.oversight.acknowledge(archives.the_console(node), reason="put back")
        node.close()
        with archives.opened(self.config, role="background", clock=self.clock) as node:
            yield node


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(archives.made(tmp_path), tmp_path / "kept.db")


def made(world: World, uid: str = "1.2.77") -> Any:
    """A workitem that the older index knows, and who may work with it."""
    who = router(world.first)
    world.first.workitems.create(who, "clinical", uid, item(patient="P1", study=ONE))
    return who


def test_a_workitem_that_another_process_completed_stays_so(world: World) -> None:
    who = made(world)
    world.keep()
    world.first.workitems.change_state(who, "clinical", "1.2.77", CLAIM)
    world.set_back()
    world.second.workitems.update(who, "clinical", "1.2.77", LOCK, {"00741204": el("LO", "said last")})
    before = rows(world.first, "workitem")
    with world.put_back() as node:
        assert rows(node, "workitem") == before


def test_a_workitem_that_two_processes_changed_at_once_has_both_changes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that came second was asked for first, and planned again."""
    who = made(world)
    world.first.workitems.change_state(who, "clinical", "1.2.77", CLAIM)
    world.keep()
    commit, due = state_events.commit_change, [True]

    def late(*args: Any, **options: Any) -> None:
        if due:
            due.clear()
            world.clock.at += timedelta(seconds=1)
            world.second.workitems.update(who, "clinical", "1.2.77", LOCK, {"00741204": el("LO", "one")})
            world.clock.at += timedelta(seconds=1)
        commit(*args, **options)

    monkeypatch.setattr(state_events, "commit_change", late)
    world.first.workitems.update(who, "clinical", "1.2.77", LOCK, {"00741202": el("LO", "two")})
    monkeypatch.undo()
    before = rows(world.first, "workitem")
    assert {"00741202", "00741204"} <= before["workitem"][0]["dataset"].keys()
    with world.put_back() as node:
        assert rows(node, "workitem") == before


def killed(*_args: Any, **_options: Any) -> NoReturn:
    raise Killed


class Killed(BaseException):
    """The process ends here."""


@contextmanager
def dies(node: Node, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever is sealed in this is not committed."""
    with monkeypatch.context() as patch:
        patch.setattr(node.core.database, "group", killed)
        with pytest.raises(Killed):
            yield


@pytest.mark.parametrize("earlier", [True, False])
def test_what_was_never_committed_takes_no_place_of_what_was(world: World, monkeypatch: pytest.MonkeyPatch, earlier: bool) -> None:
    """Of two changes of one state one at most was, whichever was asked for first: what came after that one says which."""
    who = made(world)
    world.keep()

    def never() -> None:
        with dies(world.second, monkeypatch):
            world.second.workitems.request_cancel(who, "clinical", "1.2.77", {})

    if earlier:
        never()
    else:  # planned before and sealed after
        commit, due = state_events.commit_change, [True]

        def late(*args: Any, **options: Any) -> None:
            if due:
                due.clear()
                world.first.workitems.change_state(who, "clinical", "1.2.77", CLAIM)
                world.clock.at += timedelta(seconds=1)
                options["at"] = world.clock.at
            commit(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(state_events, "commit_change", late)
            with dies(world.second, monkeypatch):
                world.second.workitems.request_cancel(who, "clinical", "1.2.77", {})
    world.clock.at += timedelta(minutes=1)
    if earlier:
        world.first.workitems.change_state(who, "clinical", "1.2.77", CLAIM)
    world.first.workitems.update(who, "clinical", "1.2.77", LOCK, {"00741204": el("LO", "after it")})
    before = rows(world.first, "workitem")
    with world.put_back() as node:
        assert rows(node, "workitem") == before


def test_workitems_of_one_uid_in_two_datastores_are_two(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    who = made(world)
    world.first.keyring.add_kek(b"o" * 16, at=world.clock())
    world.second.keyring.stay_current()
    with world.first.core.database.begin() as tx:
        tx.execute(sa.insert(datastore), {"uid": b"o" * 16, "name": "other", "created_at": world.clock()})
    console = archives.the_console(world.first)
    world.first.accounts.add_grant(console, to="router", role="router", target=Target("everything"), datastore="other")
    world.first.workitems.create(who, "other", "1.2.77", item(patient="P1", study=ONE))
    world.clock.at += 12 * HOUR
    with dies(world.first, monkeypatch):
        world.first.workitems.request_cancel(who, "other", "1.2.77", {})
    world.clock.at += HOUR
    world.first.workitems.change_state(who, "other", "1.2.77", CLAIM)
    world.keep()
    world.clock.at -= 6 * HOUR
    world.second.workitems.change_state(who, "clinical", "1.2.77", CLAIM)
    world.clock.at += 6 * HOUR
    before = rows(world.first, "workitem")
    with world.put_back() as node:
        assert rows(node, "workitem") == before


def test_a_workitem_under_the_uid_of_one_that_was_swept_is_a_new_one(world: World) -> None:
    """Not a finished one, which would be swept too."""
    who = made(world)
    world.first.workitems.request_cancel(who, "clinical", "1.2.77", {})
    world.keep()
    world.clock.at += timedelta(days=91)
    world.first.workitem_watch.sweep(world.clock())
    world.first.workitems.create(who, "clinical", "1.2.77", item(patient="P2", study="1.2.4"))
    before = rows(world.first, "workitem", "workitem_study")
    with world.put_back() as node:
        assert rows(node, "workitem", "workitem_study") == before


def test_a_step_that_was_completed_over_another_association_is_completed(world: World) -> None:
    ct = modality(world.first)
    world.first.worklist.add(archives.the_console(world.first), entry(1))
    world.keep()
    world.first.steps.create(ct, "clinical", "1.2.9.1", scheduled.checked(begun(1).to_json_dict()))
    world.set_back()
    world.second.steps.set(device(world.second), "clinical", "1.2.9.1", scheduled.checked(ended().to_json_dict()))
    assert [row["state"] for row in rows(world.first, "mpps")["mpps"]] == ["completed"]
    with world.put_back() as node:
        assert [row["state"] for row in rows(node, "mpps")["mpps"]] == ["completed"]
        assert [row["state"] for row in rows(node, "worklist_entry")["worklist_entry"]] == ["completed"]


def test_an_entry_that_was_cancelled_is_off_the_worklist(world: World) -> None:
    console = archives.the_console(world.first)
    world.keep()
    (row,) = world.first.worklist.add(console, entry(1))
    world.set_back()
    world.second.worklist.cancel(console, row["id"])
    with world.put_back() as node:
        assert [row["state"] for row in rows(node, "worklist_entry")["worklist_entry"]] == ["cancelled"]


def _deleted(world: World) -> None:
    world.second.remove.reject(archives.the_console(world.second), "clinical", "instance", f"{ONE}.1.2", reason="wrong patient")


def _purged(world: World) -> None:
    _deleted(world)
    world.set_back()
    world.second.core.vault.segments.roll()  # as of another process
    world.second.purge.run(archives.the_console(world.second), "clinical", study=ONE, reason="for good")


@pytest.mark.parametrize("then", [_deleted, _purged])
def test_what_was_deleted_is_out_of_sight(world: World, then: Callable[[World], None]) -> None:
    archives.store(world.first, archives.instance(1))
    world.keep()
    archives.store(world.first, archives.instance(2))
    world.set_back()
    then(world)
    with world.put_back() as node:
        assert set(crowd.part10(node, ONE)) == {f"{ONE}.1.1"}
        crowd.check_sound(node)


def test_what_was_restored_by_another_process_is_in_sight(world: World) -> None:
    archives.store(world.first, archives.instance(1))
    world.keep()
    world.first.remove.reject(archives.the_console(world.first), "clinical", "study", ONE, reason="wrong patient")
    world.set_back()
    world.second.remove.restore(archives.the_console(world.second), "clinical", "study", ONE, reason="right one")
    with world.put_back() as node:
        assert set(crowd.part10(node, ONE)) == {f"{ONE}.1.1"}
        crowd.check_sound(node)


def test_what_was_deleted_again_by_another_process_is_out_of_sight(world: World) -> None:
    for number in (1, 2):
        archives.store(world.first, archives.instance(number))
    world.first.remove.reject(archives.the_console(world.first), "clinical", "instance", f"{ONE}.1.2", reason="wrong patient")
    world.keep()
    world.first.remove.restore(archives.the_console(world.first), "clinical", "instance", f"{ONE}.1.2", reason="right one")
    world.set_back()
    world.second.remove.reject(archives.the_console(world.second), "clinical", "instance", f"{ONE}.1.2", reason="wrong after all")
    with world.put_back() as node:
        assert set(crowd.part10(node, ONE)) == {f"{ONE}.1.1"}
        crowd.check_sound(node)


def test_what_was_let_in_and_then_deleted_is_out_of_sight(world: World) -> None:
    archives.store(world.first, archives.instance(1))
    assert archives.store(world.first, archives.instance(2, PatientID="P9")).status == "held"
    world.keep()
    console = archives.the_console(world.first)
    (row,) = world.first.reconcile.list(console)
    world.first.reconcile.accept(console, row["id"], reason="seen")
    world.set_back()
    world.second.remove.reject(archives.the_console(world.second), "clinical", "instance", f"{ONE}.1.2", reason="wrong after all")
    with world.put_back() as node:
        assert set(crowd.part10(node, ONE)) == {f"{ONE}.1.1"}
        crowd.check_sound(node)


def test_a_deletion_that_was_never_committed_changes_no_order(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    archives.store(world.first, archives.instance(1))
    world.keep()
    console = archives.the_console(world.first)
    with dies(world.second, monkeypatch):
        world.second.remove.reject(console, "clinical", "study", ONE, reason="wrong patient")
    world.clock.at += timedelta(minutes=1)
    world.first.remove.reject(console, "clinical", "study", ONE, reason="wrong patient")
    world.clock.at += timedelta(minutes=1)
    world.first.remove.restore(console, "clinical", "study", ONE, reason="right one")
    with world.put_back() as node:
        assert set(crowd.part10(node, ONE)) == {f"{ONE}.1.1"}


def test_an_instance_sent_again_after_a_part_was_purged_is_not_lost(world: World) -> None:
    """By its time it came before: whether it was ever promised nobody can tell, so it stays, and a rebuild takes it in."""
    for number in (1, 2):
        archives.store(world.first, archives.instance(number))
    world.keep()
    console = archives.the_console(world.second)
    world.second.remove.reject(console, "clinical", "instance", f"{ONE}.1.2", reason="sent by mistake")
    world.second.purge.run(console, "clinical", study=ONE, reason="for good")
    world.set_back()
    assert archives.store(world.first, archives.instance(2)).status == "stored"
    with world.put_back() as node:
        assert set(crowd.part10(node, ONE)) == {f"{ONE}.1.1"}
        assert "V15" in {one.code for one in node.verify.run(archives.the_console(node)).findings}
    rebuild(world.config)
    with archives.opened(world.config, clock=world.clock) as node:
        assert set(crowd.part10(node, ONE)) == {f"{ONE}.1.1", f"{ONE}.1.2"}
        assert not {one.code for one in node.verify.run(archives.the_console(node)).findings} - {"V16"}


@pytest.mark.parametrize("whole", [False, True])
def test_what_was_sealed_anew_and_then_purged_does_not_come_back(world: World, whole: bool) -> None:
    """What took its place is gone too: the older index names the records that were replaced, and nothing says what by."""
    console = archives.the_console(world.first)
    for number in (1, 2):
        archives.store(world.first, archives.instance(number))
    world.keep()
    world.first.rekey.study(console, ONE)
    if whole:
        world.first.shred.run(console, ONE, reason="for good")
    else:
        world.first.remove.reject(console, "clinical", "instance", f"{ONE}.1.2", reason="sent by mistake")
        world.first.purge.run(console, "clinical", study=ONE, reason="for good")
    with world.put_back() as node:
        there = {row.sop_instance_uid for row in crowd.every(node, sa.select(instance.c.sop_instance_uid))}
        assert there == (set() if whole else {f"{ONE}.1.1"})
        crowd.check_sound(node)


def test_what_was_sent_again_after_it_was_purged_is_there(world: World) -> None:
    """By its time it came before: it is no duplicate of what is about to go."""
    archives.store(world.first, archives.instance(1))
    world.keep()
    console = archives.the_console(world.second)
    world.second.remove.reject(console, "clinical", "study", ONE, reason="sent by mistake")
    world.second.purge.run(console, "clinical", study=ONE, reason="for good")
    world.set_back()
    for number in (1, 2):
        assert archives.store(world.first, archives.instance(number)).status == "stored"
    with world.put_back() as node:
        assert set(crowd.part10(node, ONE)) == {f"{ONE}.1.1", f"{ONE}.1.2"}
        crowd.check_sound(node)


def test_a_record_in_a_form_that_is_not_known_stops_no_start(world: World) -> None:
    """A release after this one may have sealed it; what else there is, is done again."""
    console = archives.the_console(world.first)
    world.keep()
    for what in (state_events.STEP, state_events.ENTRY, state_events.WORKITEM, state_events.COMMITMENT):
        with suppress(Killed):
            state_events.commit_change(
                world.first.core, what, datastore=_home(world), study_instance_uid="", objects=(), reason="", at=world.clock(), work=killed,
                more={"what": "else"},
            )
    world.first.worklist.add(console, entry(1))
    with world.put_back() as node:
        assert [row["state"] for row in rows(node, "worklist_entry")["worklist_entry"]] == ["scheduled"]


def _home(world: World) -> bytes:
    with world.first.core.database.read() as tx:
        return bytes(tx.execute(sa.select(datastore.c.uid)).scalar_one())
