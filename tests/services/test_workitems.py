"""The worklist and the change feed on both engines: who is told what, what is forgotten, and that no reader passes over a change."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.access.grants import Target
from archive.access.permissions import Permission
from archive.access.policy import scope_of
from archive.access.subject import Subject
from archive.db import guard
from archive.db.prepared import Prepared
from archive.db.tables import ups_event, workitem
from archive.dicom import workitem as rules
from archive.dicom.workitem import State
from archive.dicom.workitem_keys import key
from archive.errors import Forbidden, InvalidRequest, NotFound, StateConflict
from archive.index.workitems import W, visible
from archive.node import Node
from archive.services.clock import utc_now
from archive.services.workitem_watch import KEEP_EVENTS, KEEP_FINISHED, WorkitemWatch
from tests.services import archives
from tests.web.dicomweb.test_ups import LOCK, el, item

SEEN, HIDDEN = "1.2.3", "1.2.4"


@pytest.fixture
def node(engine: dict[str, Any], tmp_path: Path) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path, **engine)) as opened:
        for study in (SEEN, HIDDEN):
            archives.store(opened, archives.instance(1, study=study, PatientID=f"P{study}"))
        console = archives.the_console(opened)
        for name in ("mia", "ole"):
            opened.accounts.add_user(console, name, roles=["technologist"], password=archives.PASSWORD)
        opened.accounts.add_grant(console, to="mia", role="researcher", target=Target("study", SEEN))
        opened.accounts.add_grant(console, to="ole", role="researcher", target=Target("everything"))
        yield opened


@pytest.fixture
def mia(node: Node) -> Subject:
    return archives.user(node, "mia")


@pytest.fixture
def ole(node: Node) -> Subject:
    return archives.user(node, "ole")


def kinds(due: Any) -> list[tuple[str, int]]:
    return [(body["00001000"]["Value"][0], body["00001002"]["Value"][0]) for body in due.bodies]


def test_who_sees_and_is_told_of_what(node: Node, mia: Subject, ole: Subject) -> None:
    for who in (mia, ole):
        node.workitem_watch.subscribe(who, "clinical", rules.GLOBAL, "SAME", deletion_lock=False)
    made = {study: node.workitems.create(ole, "clinical", None, item(patient=f"P{study}", study=study)).uid for study in (SEEN, HIDDEN)}
    made["free"] = node.workitems.create(mia, "clinical", None, item(patient="NOBODY")).uid
    assert {uid for uid, _ in kinds(node.workitem_watch.due(ole, "clinical", "SAME"))} == set(made.values())
    mias = node.workitem_watch.due(mia, "clinical", "SAME")
    assert {uid for uid, _ in kinds(mias)} == {made[SEEN], made["free"]}
    found = node.workitems.search(mia, "clinical", (), limit=10, offset=0)
    assert {rules.text_of(one, rules.SOP_INSTANCE_UID) for one in found.found} == {made[SEEN], made["free"]}
    node.workitem_watch.told(mia, "clinical", "SAME", mias.told_until)
    assert node.workitem_watch.due(mia, "clinical", "SAME").bodies == []
    with pytest.raises(NotFound):
        node.workitems.retrieve(mia, "clinical", made[HIDDEN])
    # That the archive learns of the patient is told to nobody by it.
    archives.store(node, archives.instance(1, study="1.2.9", PatientID="NOBODY"))
    for who in (mia, ole):
        assert node.workitems.retrieve(who, "clinical", made["free"])
        node.workitem_watch.subscribe(who, "clinical", rules.GLOBAL, "LATE", deletion_lock=False)
    node.workitems.request_cancel(ole, "clinical", made["free"], {})
    assert kinds(node.workitem_watch.due(mia, "clinical", "LATE")) == kinds(node.workitem_watch.due(ole, "clinical", "LATE")) != []


def test_a_grant_that_ends_silences_what_was_queued(node: Node, mia: Subject, ole: Subject) -> None:
    console = archives.the_console(node)
    grant = node.accounts.add_grant(console, to="mia", role="researcher", target=Target("study", HIDDEN))
    node.workitem_watch.subscribe(mia, "clinical", rules.GLOBAL, "W", deletion_lock=False)
    node.workitems.create(ole, "clinical", "1.2.50", item(patient=f"P{HIDDEN}", study=HIDDEN))
    assert kinds(node.workitem_watch.due(mia, "clinical", "W"))
    node.accounts.revoke_grant(console, grant["id"])
    assert kinds(node.workitem_watch.due(mia, "clinical", "W")) == []
    node.accounts.disable_user(console, "mia")
    with pytest.raises(Forbidden):
        node.workitem_watch.due(mia, "clinical", "W")


def test_a_deny_of_a_patient_still_to_come_hides_the_worklist(node: Node, ole: Subject) -> None:
    console = archives.the_console(node)
    uid = node.workitems.create(ole, "clinical", None, item(patient="LATER")).uid
    grant = node.accounts.add_grant(
        console, to="ole", role="researcher", target=Target("patient", "LATER", expected=True), deny=True
    )
    with pytest.raises(NotFound):
        node.workitems.retrieve(ole, "clinical", uid)
    assert node.workitems.retrieve(archives.user(node, "mia"), "clinical", uid)
    node.accounts.revoke_grant(console, grant["id"])
    assert node.workitems.retrieve(ole, "clinical", uid)


def test_to_see_a_workitem_neither_all_grants_nor_all_patients_are_read(node: Node, ole: Subject) -> None:
    """Of 50,000 grants and 100,000 patients 100 workitems took SQLite four seconds."""
    if not node.core.database.sqlite:
        return
    scope = scope_of(ole, Permission.SEARCH, node.core.clock())
    with node.core.database.read() as tx:
        asked = Prepared(sa.select(W.c.id).where(visible(scope.shape))).compile(tx.dialect)
        values = tuple(asked._values(scope.parameters))
        plan = tx.exec_driver_sql(f"EXPLAIN QUERY PLAN {asked.text}", values, execution_options={guard.OPTION: scope.token}).all()
    steps = [str(row.detail) for row in plan]
    assert [step for step in steps if "named_patient" in step] == ["SEARCH named_patient USING INTEGER PRIMARY KEY (rowid=?)"]
    assert [step.split()[4] for step in steps if "allow_all" in step] == ["ix_grants_subject"]


def test_a_device_sees_what_the_user_it_speaks_for_may_see_too(node: Node, mia: Subject, ole: Subject) -> None:
    """Rule 8 of docs/access.md, for a deny that hides what the archive does not hold yet and for a bounded token."""
    console = archives.the_console(node)
    of_study = node.workitems.create(ole, "clinical", None, item(patient=f"P{SEEN}", study=SEEN)).uid
    free = node.workitems.create(ole, "clinical", None, item(patient="LATER")).uid
    for_mia = replace(ole, narrowed_by=mia)
    assert node.workitems.retrieve(for_mia, "clinical", free)
    deny = node.accounts.add_grant(
        console, to="mia", role="researcher", target=Target("patient", "LATER", expected=True), deny=True
    )
    made = node.accounts.create_token(console, owner="ole", studies=[SEEN], permissions=["search", "worklist"])
    bounded = replace(ole, narrowed_by=node.signin.bearer(made["token"], address="192.0.2.1"))
    for device in (for_mia, bounded):
        assert node.workitems.retrieve(device, "clinical", of_study)
        with pytest.raises(NotFound):
            node.workitems.retrieve(device, "clinical", free)
        found = node.workitems.search(device, "clinical", (), limit=10, offset=0)
        assert {rules.text_of(one, rules.SOP_INSTANCE_UID) for one in found.found} == {of_study}
    node.accounts.revoke_grant(console, deny["id"])
    assert node.workitems.retrieve(for_mia, "clinical", free)


def test_many_events_come_in_order_and_none_twice(node: Node, ole: Subject) -> None:
    node.workitem_watch.subscribe(ole, "clinical", rules.GLOBAL, "W", deletion_lock=False)
    uids = [node.workitems.create(ole, "clinical", f"1.2.60.{n}", item()).uid for n in range(1, 76)]
    heard: list[tuple[str, int]] = []
    while True:
        due = node.workitem_watch.due(ole, "clinical", "W")
        heard += kinds(due)
        node.workitem_watch.told(ole, "clinical", "W", due.told_until)
        if not due.more:
            break
    assert heard == [(uid, kind) for uid in uids for kind in (1, 5)]


def test_filters_and_exceptions(node: Node, ole: Subject) -> None:
    wanted = (key("00741202", "liver*"),)
    node.workitem_watch.subscribe(ole, "clinical", rules.FILTERED, "W", deletion_lock=False, filters=wanted)
    heart = node.workitems.create(ole, "clinical", None, item(x00741202=el("LO", "heart"))).uid
    liver = node.workitems.create(ole, "clinical", None, item(x00741202=el("LO", "liver"))).uid
    assert {uid for uid, _ in kinds(node.workitem_watch.due(ole, "clinical", "W"))} == {liver}
    node.workitem_watch.subscribe(ole, "clinical", heart, "W", deletion_lock=False)
    assert {uid for uid, _ in kinds(node.workitem_watch.due(ole, "clinical", "W"))} == {liver, heart}
    node.workitem_watch.unsubscribe(ole, "clinical", rules.GLOBAL, "W")
    node.workitems.request_cancel(ole, "clinical", liver, {})
    assert (liver, 1) not in kinds(node.workitem_watch.due(ole, "clinical", "W"))[2:]
    for call in (node.workitem_watch.unsubscribe, node.workitem_watch.suspend):
        with pytest.raises(NotFound):
            call(ole, "clinical", rules.GLOBAL, "NOBODY")
    with pytest.raises(NotFound):
        node.workitem_watch.subscribe(ole, "clinical", "1.2.404", "W", deletion_lock=False)


def test_what_is_forgotten_and_what_a_deletion_lock_keeps(node: Node, ole: Subject) -> None:
    uids = [node.workitems.create(ole, "clinical", f"1.2.70.{n}", item()).uid for n in (1, 2, 3)]
    for uid in uids[:2]:
        node.workitems.request_cancel(ole, "clinical", uid, {})
    node.workitem_watch.subscribe(ole, "clinical", uids[1], "KEEP", deletion_lock=True)

    def left() -> set[str]:
        with node.core.database.read() as tx:
            return set(tx.execute(sa.select(workitem.c.sop_instance_uid)).scalars())

    watch = WorkitemWatch(node.core)
    watch.sweep(utc_now() + KEEP_FINISHED - timedelta(hours=1))
    assert left() == set(uids)
    watch.sweep(utc_now() + KEEP_FINISHED + timedelta(hours=1))
    assert left() == set(uids[1:])
    node.workitem_watch.unsubscribe(ole, "clinical", uids[1], "KEEP")
    watch.sweep(utc_now() + KEEP_FINISHED + timedelta(hours=1))
    assert left() == {uids[2]}
    watch.sweep(utc_now() + KEEP_EVENTS + timedelta(hours=1))
    with node.core.database.read() as tx:
        assert tx.execute(sa.select(sa.func.count()).select_from(ups_event)).scalar_one() == 0


def test_one_of_many_who_claim_at_once_gets_it(node: Node, ole: Subject) -> None:
    node.workitems.create(ole, "clinical", "1.2.80", item())
    outcomes: list[object] = []

    def claim(number: int) -> None:
        try:
            asked = {"00741000": el("CS", "IN PROGRESS"), "00081195": el("UI", f"2.25.{number}")}
            outcomes.append(node.workitems.change_state(ole, "clinical", "1.2.80", asked))
        except StateConflict as refused:
            outcomes.append(refused.status)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(map(str, outcomes)) == ["0"] + [str(0xC302)] * 7


def test_a_reader_beside_many_writers_passes_over_nothing(node: Node, ole: Subject) -> None:
    """Each page begins where the last one ended while others commit: in the end every instance was told, each once."""
    start = node.changefeed.read(ole, "clinical", "latest", limit=1).next
    writers = [
        threading.Thread(target=lambda w=w: [archives.store(node, archives.instance(n, study=f"1.2.9{w}", PatientID="X"), subject=None)
                                             for n in range(1, 13)])
        for w in range(3)
    ]
    for one in writers:
        one.start()
    told: list[str] = []
    cursor, quiet = start, 0
    while quiet < 2:
        alive = any(one.is_alive() for one in writers)
        feed = node.changefeed.read(ole, "clinical", cursor, limit=5)
        told += [change.sop_instance_uid for change, _ in feed.changes]
        cursor = feed.next
        quiet = 0 if alive or feed.changes else quiet + 1
    for one in writers:
        one.join()
    assert sorted(told) == sorted(f"1.2.9{w}.1.{n}" for w in range(3) for n in range(1, 13))


# --- the table of states (PS3.4 CC.1.1-2) against a plain list of what must happen ---

OK, WARN_DONE, WARN_CANCELED = 0, 0xB306, 0xB304
EXPECTED = {
    ("SCHEDULED", "IN PROGRESS"): (OK, OK), ("SCHEDULED", "SCHEDULED"): (0xC303, 0xC303), ("SCHEDULED", "COMPLETED"): (0xC310, 0xC310),
    ("SCHEDULED", "CANCELED"): (0xC310, 0xC310), ("IN PROGRESS", "IN PROGRESS"): (0xC302, 0xC302),
    ("IN PROGRESS", "SCHEDULED"): (0xC303, 0xC303), ("IN PROGRESS", "COMPLETED"): (0xC304, 0xC301),
    ("IN PROGRESS", "CANCELED"): (OK, 0xC301), ("COMPLETED", "IN PROGRESS"): (0xC300, 0xC300),
    ("COMPLETED", "SCHEDULED"): (0xC303, 0xC303), ("COMPLETED", "COMPLETED"): (WARN_DONE, 0xC301),
    ("COMPLETED", "CANCELED"): (0xC300, 0xC301), ("CANCELED", "IN PROGRESS"): (0xC300, 0xC300), ("CANCELED", "SCHEDULED"): (0xC303, 0xC303),
    ("CANCELED", "COMPLETED"): (0xC300, 0xC301), ("CANCELED", "CANCELED"): (WARN_CANCELED, 0xC301),
}


@pytest.mark.parametrize(("state", "target"), EXPECTED)
def test_every_change_of_state_with_the_right_and_a_wrong_lock(state: str, target: str) -> None:
    at = datetime.fromisoformat("2026-08-01T10:00:00+00:00")
    present, _ = rules.created(item(), "1.2.3", at)
    for sent, expected in zip((LOCK, "2.25.99"), EXPECTED[state, target], strict=True):
        lock = "" if state == "SCHEDULED" else LOCK
        try:
            _, status = rules.moved(present, State(state), State(target), lock, sent, at)
        except StateConflict as refused:
            status = refused.status
        assert status == expected, sent


def test_a_data_set_that_is_deeper_than_any_workitem() -> None:
    body: dict[str, Any] = {}
    for _ in range(40):
        body = {"00404021": el("SQ", body)}
    with pytest.raises(InvalidRequest):
        rules.checked(body)
