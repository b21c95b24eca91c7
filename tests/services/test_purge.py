"""Purging: what was rejected goes for good, nothing else; it stays gone through crash, replay, rebuild, backup and restore."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.access import policy
from archive.access.grants import Target
from archive.access.subject import Subject
from archive.db.tables import data_key, held, instance, patient, purged, purged_key, segment, series, statement, study
from archive.errors import DatabaseUnavailable, InvalidRequest, NotFound, StateConflict
from archive.node import Node
from archive.services.clock_doubt import ClockDoubt
from archive.services.purge_finish import finish
from tests.services import archives

ONE = "1.2.3"
embedded = pytest.mark.parametrize("engine", [{}], ids=["sqlite"])
"""Of tests whose SQL others run on both engines."""


@pytest.fixture
def node(tmp_path: Path, engine: dict[str, Any]) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path, **engine)) as node:
        for number in (1, 2, 3):
            archives.store(node, archives.instance(number, StudyDescription=f"number {number}"))
        archives.store(node, archives.instance(1, study="1.2.4", PatientID="P2"))
        yield node


@pytest.fixture
def console(node: Node) -> Subject:
    return archives.the_console(node)


def uids(node: Node, uid: str = ONE) -> set[str]:
    try:
        return {one.sop_instance_uid for one in node.retrieve.instances(archives.user(node), "clinical", uid)}
    except NotFound:
        return set()


def rows(node: Node, query: sa.Select[Any]) -> list[Any]:
    with node.core.database.read() as tx:
        return list(policy.run_as(tx, policy.system("verify"), query).all())


def sound(node: Node) -> None:
    for mode in ("quick", "full", "keyless"):
        assert node.verify.run(archives.the_console(node), mode).findings == []  # type: ignore[arg-type]


def bytes_of(node: Node) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(node.config.segments_dir.glob("*.seg")))


def record_of(node: Node, sop: str) -> bytes:
    """The middle of a record as it lies on the disk."""
    (row,) = rows(node, sa.select(instance).where(instance.c.sop_instance_uid == sop))
    whole = (node.config.segments_dir / f"{bytes(row.segment_id).hex()}.seg").read_bytes()
    return whole[row.record_offset + 200 : row.record_offset + 300]


def test_a_part_of_a_study_goes(node: Node, console: Subject) -> None:
    lies = record_of(node, f"{ONE}.1.1")
    assert lies in bytes_of(node)
    node.remove.reject(console, "clinical", "instance", f"{ONE}.1.1", reason="wrong side")
    would = node.purge.run(console, study=ONE, reason="test", dry_run=True)
    assert (would.instances, would.studies, lies in bytes_of(node)) == (1, 1, True)
    done = node.purge.run(console, study=ONE, reason="test")
    assert (done.instances, done.studies, done.keys, done.ok) == (1, 1, 0, True)
    assert lies not in bytes_of(node)
    assert uids(node) == {f"{ONE}.1.2", f"{ONE}.1.3"}
    assert rows(node, sa.select(study.c.study_description).where(study.c.study_instance_uid == ONE)) == [("number 2",)]
    sound(node)
    with pytest.raises(NotFound):
        node.remove.restore(console, "clinical", "instance", f"{ONE}.1.1", reason="back")
    with pytest.raises(NotFound):
        node.purge.run(console, study=ONE, reason="again")
    assert archives.store(node, archives.instance(1)).status == "stored"
    assert len(uids(node)) == 3
    sound(node)


def test_the_rows_of_what_went_do_not_stay_in_the_log(node: Node, console: Subject) -> None:
    """It is cut only where it is long, and holds what the pages held before."""
    node.remove.reject(console, "clinical", "study", ONE, reason="wrong patient")
    assert (node.core.database.log_bytes() > 0) is node.core.database.sqlite
    node.purge.run(console, study=ONE, reason="test")
    assert node.core.database.log_bytes() == 0


def test_a_whole_study_goes_with_its_key(node: Node, console: Subject) -> None:
    node.remove.reject(console, "clinical", "study", ONE, reason="test")
    done = node.purge.run(console, study=ONE, reason="test")
    assert (done.instances, done.keys) == (3, 1)
    with node.core.keystore._database.read() as tx:
        assert tx.execute(sa.select(sa.func.count()).select_from(data_key).where(data_key.c.state == "shredded")).scalar() == 1
    (row,) = rows(node, sa.select(study).where(study.c.study_instance_uid == ONE))
    assert (row.patient_name, row.study_date, row.study_description, row.attributes) == ("", "", "", {})
    assert {row.patient_id for row in rows(node, sa.select(patient)) if not row.synthetic} == {"P2"}
    assert rows(node, sa.select(series.c.series_instance_uid)) == [("1.2.4.1",)]
    sound(node)
    # Sent again it is new: another key, another object, every word of it there.
    assert archives.store(node, archives.instance(1)).status == "stored"
    assert uids(node) == {f"{ONE}.1.1"}
    (row,) = rows(node, sa.select(study).where(study.c.study_instance_uid == ONE))
    assert (row.patient_id, row.study_date, row.accession_number) == ("P1", "20260102", "A1")
    sound(node)


@embedded
def test_an_open_segment_is_hashed_after_it_and_a_closed_one_again(node: Node, console: Subject) -> None:
    node.core.vault.segments.roll()
    node.upkeep.tick()
    archives.store(node, archives.instance(9))
    (before,) = rows(node, sa.select(segment.c.sha256).where(segment.c.sha256.is_not(None)))
    node.remove.reject(console, "clinical", "instance", f"{ONE}.1.1", reason="test")
    node.purge.run(console, study=ONE, reason="test")
    assert rows(node, sa.select(segment.c.id).where(segment.c.sha256.is_not(None))) == []
    sound(node)
    node.upkeep.tick()
    (after,) = rows(node, sa.select(segment.c.sha256).where(segment.c.sha256.is_not(None)))
    assert after != before
    sound(node)


@embedded
def test_a_closed_segment_of_which_nothing_is_left_goes(node: Node, console: Subject) -> None:
    node.core.vault.segments.roll()
    for uid in (ONE, "1.2.4"):
        node.remove.reject(console, "clinical", "study", uid, reason="test")
    files = set(node.config.segments_dir.glob("*.seg"))
    done = node.purge.run(console, before=node.core.clock(), reason="test")
    assert (done.instances, done.studies, done.keys) == (4, 2, 2)
    assert len(files - set(node.config.segments_dir.glob("*.seg"))) == 1
    sound(node)


@embedded
def test_only_what_was_rejected_before(node: Node, console: Subject) -> None:
    node.remove.reject(console, "clinical", "instance", f"{ONE}.1.1", reason="test")
    between = node.core.clock()
    node.remove.reject(console, "clinical", "instance", f"{ONE}.1.2", reason="test")
    node.remove.reject(console, "clinical", "instance", f"{ONE}.1.3", reason="test")
    node.remove.restore(console, "clinical", "instance", f"{ONE}.1.3", reason="test")
    assert node.purge.run(console, before=between, reason="test").instances == 1
    assert node.purge.run(console, before=between, reason="test").instances == 0
    assert node.purge.run(console, before=node.core.clock(), reason="test").instances == 1
    assert uids(node) == {f"{ONE}.1.3"}
    for wrong in ({"study": ONE, "reason": " "}, {"reason": "test"}):
        with pytest.raises(InvalidRequest):
            node.purge.run(console, **wrong)  # type: ignore[arg-type]
    sound(node)


@embedded
def test_a_study_on_hold_stays(node: Node, console: Subject) -> None:
    for uid in (ONE, "1.2.4"):
        node.remove.reject(console, "clinical", "study", uid, reason="test")
    number = node.holds.add(console, "clinical", ONE, reason="case")
    with pytest.raises(StateConflict):
        node.purge.run(console, study=ONE, reason="test")
    done = node.purge.run(console, before=node.core.clock(), reason="test")
    assert (done.instances, done.held) == (1, 1)
    node.holds.remove(console, number, reason="closed")
    assert node.purge.run(console, study=ONE, reason="test").instances == 3
    sound(node)


def test_a_hold_set_while_a_purge_is_under_way_counts(node: Node, console: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    node.remove.reject(console, "clinical", "study", ONE, reason="test")
    put_event = node.core.vault.put_event

    def late(*given: Any, **named: Any) -> Any:
        node.holds.add(console, "clinical", ONE, reason="just now")
        return put_event(*given, **named)

    monkeypatch.setattr(node.core.vault, "put_event", late)
    done = node.purge.run(console, study=ONE, reason="test")
    assert (done.instances, done.changed, done.ok) == (0, 1, False)
    monkeypatch.undo()
    assert node.remove.restore(console, "clinical", "study", ONE, reason="test") == 3
    sound(node)


@embedded
def test_a_restore_while_a_purge_is_under_way_wins(node: Node, console: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    node.remove.reject(console, "clinical", "study", ONE, reason="test")
    put_event, first = node.core.vault.put_event, [True]

    def late(*given: Any, **named: Any) -> Any:
        if first.pop() if first else False:
            node.remove.restore(console, "clinical", "study", ONE, reason="just now")
        return put_event(*given, **named)

    monkeypatch.setattr(node.core.vault, "put_event", late)
    assert node.purge.run(console, study=ONE, reason="test").changed == 1
    assert len(uids(node)) == 3
    sound(node)


def test_who_may(node: Node, console: Subject) -> None:
    node.accounts.add_role(console, "cleaner", ["purge"])
    for name, role, target in (("mia", "cleaner", Target("study", ONE)), ("ned", "researcher", Target("everything"))):
        node.accounts.add_user(console, name, roles=["technologist"], password=archives.PASSWORD)
        node.accounts.add_grant(console, to=name, role=role, target=target)
    for uid in (ONE, "1.2.4"):
        node.remove.reject(console, "clinical", "study", uid, reason="test")
    for who, uid in (("ned", ONE), ("mia", "1.2.4"), ("mia", "9.9")):
        with pytest.raises(NotFound):
            node.purge.run(archives.user(node, who), "clinical", study=uid, reason="test")
    assert node.purge.run(archives.user(node, "mia"), "clinical", before=node.core.clock(), reason="test").instances == 3
    # The grant counts again for what is sent again.
    archives.store(node, archives.instance(1))
    node.remove.reject(console, "clinical", "study", ONE, reason="test")
    assert node.purge.run(archives.user(node, "mia"), "clinical", study=ONE, reason="test").instances == 1
    sound(node)


def test_what_a_data_manager_rejected_and_replaced_goes(node: Node, console: Subject) -> None:
    """One that waited and was let in takes the stored one's place; when it goes, what it replaced goes with it, and never comes back."""
    assert archives.store(node, archives.instance(1, StudyDescription="other")).status == "conflict"
    assert archives.store(node, archives.instance(2, StudyDescription="other")).status == "conflict"
    first, second = (row["id"] for row in node.reconcile.list(console))
    node.reconcile.accept(console, first, reason="right")
    node.reconcile.reject(console, second, reason="wrong")
    node.remove.reject(console, "clinical", "instance", f"{ONE}.1.1", reason="test")
    assert node.purge.run(console, study=ONE, reason="test").instances == 3
    assert rows(node, sa.select(held.c.id)) == []
    assert uids(node) == {f"{ONE}.1.2", f"{ONE}.1.3"}
    sound(node)


def test_upkeep_purges_what_is_past_its_time(tmp_path: Path) -> None:
    with archives.opened(archives.made(tmp_path, storage={"segment_bytes": 4 << 20, "reserve": "0%", "purge_after": 30})) as node:
        console = archives.the_console(node)
        for number in (1, 2):
            archives.store(node, archives.instance(number))
        node.remove.reject(console, "clinical", "instance", f"{ONE}.1.1", reason="test")
        node.upkeep.doubt = ClockDoubt(node.core, lambda: node.core.clock().timestamp())  # a month goes by; nobody sets the clock
        node.upkeep.tick()
        assert len(rows(node, sa.select(instance.c.id))) == 2
        late = node.core.clock() + timedelta(days=31)
        object.__setattr__(node.core, "clock", lambda: late)
        node.upkeep.tick()
        assert rows(node, sa.select(instance.c.sop_instance_uid)) == [(f"{ONE}.1.2",)]
        assert rows(node, sa.select(purged.c.object_id).where(purged.c.freed_at.is_(None))) == []


def test_a_record_comes_in_under_a_key_that_is_going(node: Node, console: Subject) -> None:
    """Sealed before the purge, its rows after: nothing is acknowledged under a key that is destroyed."""
    from archive.errors import Unavailable

    data = archives.instance(7)
    incoming = node.store.open(console, "clinical", archives.Source("stow"))
    for start in range(0, len(data), 512):
        incoming.write(data[start : start + 512])
    incoming._open_record(incoming._intake.finish())  # the key is chosen
    node.remove.reject(console, "clinical", "study", ONE, reason="test")
    node.purge.run(console, study=ONE, reason="test")
    with pytest.raises(Unavailable):
        incoming.finish()
    assert archives.store(node, data).status == "stored"
    sound(node)


@embedded
def test_nothing_is_destroyed_twice_or_for_a_row_alone(node: Node, console: Subject) -> None:
    """Rows slipped into the tables of purges destroy nothing: the sealed body of the event is asked."""
    (row,) = rows(node, sa.select(instance).where(instance.c.sop_instance_uid == f"{ONE}.1.1"))
    with node.core.database.begin() as tx:
        place = {"segment_id": row.segment_id, "record_offset": row.record_offset, "record_bytes": row.record_bytes}
        tx.execute(sa.insert(purged).values(object_id=bytes(16), leaf=row.leaf, **place))
        tx.execute(sa.insert(purged_key).values(key_id=row.key_id, leaf=row.leaf))
    assert finish(node.core).refused == 1
    assert len(uids(node)) == 3
    assert {one.code for one in node.verify.run(console, "full").findings} == {"V12"}


@embedded
def test_a_rule_looks_at_what_gets_the_number_of_what_went(node: Node, console: Subject) -> None:
    """SQLite gives the last row's number again."""
    from archive.db.tables import forward_rule

    with node.core.database.begin() as tx:
        newest = policy.run_as(tx, policy.system("verify"), sa.select(sa.func.max(instance.c.id))).scalar_one()
        tx.execute(sa.insert(forward_rule).values(
            name="r", datastore_id=1, peer_id=1, principal_id=1, conditions={}, enabled=False, seen=newest, created_at=node.core.clock()))
    node.remove.reject(console, "clinical", "study", "1.2.4", reason="test")
    node.purge.run(console, study="1.2.4", reason="test")
    archives.store(node, archives.instance(5))
    (rule,), (found,) = rows(node, sa.select(forward_rule.c.seen)), rows(node, sa.select(sa.func.max(instance.c.id)))
    assert rule[0] < found[0] == newest


@embedded
def test_statements_of_what_went_are_gone(node: Node, console: Subject) -> None:
    (row,) = rows(node, sa.select(instance.c.object_id).where(instance.c.sop_instance_uid == f"{ONE}.1.1"))
    node.remove.reject(console, "clinical", "instance", f"{ONE}.1.1", reason="test")
    node.purge.run(console, study=ONE, reason="test")
    assert rows(node, sa.select(statement.c.leaf).where(statement.c.object_id == row.object_id)) == []


@embedded
def test_a_series_that_an_album_names_is_no_other_one_afterwards(node: Node, console: Subject) -> None:
    """SQLite gives the last row's number again, and an album that was shared with nobody yet names it too."""
    for name in ("doc", "ann"):
        node.accounts.add_user(console, name, password=archives.PASSWORD)
    node.accounts.add_grant(console, to="doc", role="radiologist", target=Target("everything"))
    archives.store(node, archives.instance(1, series=f"{ONE}.9"))
    doc = archives.user(node, "doc")
    board = node.albums.create(doc, "board")["id"]
    node.albums.add(doc, board, series=[f"{ONE}.9"])
    node.remove.reject(console, "clinical", "series", f"{ONE}.9", reason="test")
    node.purge.run(console, study=ONE, reason="test")
    archives.store(node, archives.instance(1, study="1.2.5", PatientID="P5"))
    assert node.albums.show(doc, board)["items"] == []
    node.albums.share(doc, board, "ann")
    with pytest.raises(NotFound):
        node.retrieve.instances(archives.user(node, "ann"), "clinical", "1.2.5")
    archives.store(node, archives.instance(2, series=f"{ONE}.9"))
    assert [one["uid"] for one in node.albums.show(doc, board)["items"]] == [f"{ONE}.9"]
    sound(node)


@pytest.mark.parametrize("known", [True, False])
def test_a_segment_whose_row_could_not_be_taken_out_is_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    """The database was away just then, or did not answer: what was purged is gone, and nothing says that more is."""
    config = archives.made(tmp_path)
    with archives.opened(config) as node:
        console, segments = archives.the_console(node), node.core.vault.segments
        archives.store(node, archives.instance(1, rows=1700))  # in a segment of its own
        node.remove.reject(console, "clinical", "study", ONE, reason="x")
        dropped = segments._on_drop  # type: ignore[attr-defined]

        def lost(segment_id: bytes) -> None:
            if not known:
                dropped(segment_id)
            raise DatabaseUnavailable("the connection to the database was lost")

        with monkeypatch.context() as patched:
            patched.setattr(segments, "_on_drop", lost)
            assert node.purge.run(console, "clinical", study=ONE, reason="x").instances == 1
        assert b"Canary" not in bytes_of(node)
        if known:
            sound(node)
    with archives.opened(config) as node:
        sound(node)
        assert archives.store(node, archives.instance(2)).status == "stored"
