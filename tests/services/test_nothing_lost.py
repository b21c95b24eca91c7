"""Two things at once, or one thing cut short at a bad moment: what was acknowledged is there afterwards, whole and in sight."""

from __future__ import annotations

import shutil
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import pytest
import sqlalchemy as sa

from archive.config import Config
from archive.db.tables import segment
from archive.errors import CommitUncertain, NotFound, SealBroken
from archive.ledger.audit import Event, Kind
from archive.node import Node, open_node
from archive.services import backup as backups
from archive.services import purge as purges
from archive.services import rekey as rekeys
from archive.services import snapshot
from archive.services import store as stores
from archive.services import upkeep as upkeeps
from archive.services.clock import utc_now
from archive.services.rekey import Rekey
from archive.services.restore import restore
from archive.services.snapshot import Snapshots
from tests.services import archives, crowd
from tests.services.test_backup import back_up, elsewhere, way
from tests.services.test_rebuild import lose, rebuild
from tests.services.test_rekey import ONE, fill


class Gone(BaseException):
    """The process ends here."""


def gone(*_args: Any, **_options: Any) -> NoReturn:
    raise Gone


def unsure(*_args: Any, **_options: Any) -> NoReturn:
    raise CommitUncertain("the database did not answer a commit", remedy="wait")


def left(node: Node) -> None:
    """Close what a process that ended holds, without what it does at its end."""
    node.core.vault.close()
    node.core.database.close()
    node.core.keystore.close()


def brought_back(target: Path, folder: Path) -> Config:
    """A backup on another machine, in which nothing is found wrong."""
    other = elsewhere(folder)
    assert restore(target, other, way(mode="full")).findings == []
    return other


# --- re-keying ---------------------------------------------------------------------------------------------------------------------


def test_a_start_beside_a_rekeying_leaves_what_it_has_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config, role="background") as node:
        before = fill(node)
        commit = Rekey._commit

        def late(rekey: Rekey, *args: Any) -> None:
            node.core.vault.segments.roll()  # as of a large study: nobody has them open any more
            with archives.opened(config, role="serve"):
                pass
            commit(rekey, *args)

        monkeypatch.setattr(Rekey, "_commit", late)
        node.rekey.study(archives.the_console(node), ONE)
        monkeypatch.undo()
        assert crowd.part10(node, ONE) == before
    with archives.opened(config, role="background") as node:
        assert crowd.part10(node, ONE) == before
        crowd.check_sound(node)


def test_a_rekeying_whose_commit_was_not_answered_keeps_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config, role="background") as node:
        before, change = fill(node), rekeys.commit_change

        def done_and_unsure(*args: Any, **options: Any) -> None:
            change(*args, **options)
            unsure()

        monkeypatch.setattr(rekeys, "commit_change", done_and_unsure)
        with pytest.raises(CommitUncertain):
            node.rekey.study(archives.the_console(node), ONE)
        monkeypatch.undo()
    with archives.opened(config, role="background") as node:
        assert crowd.part10(node, ONE) == before
        crowd.check_sound(node)


def test_a_study_is_rekeyed_while_a_backup_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice, and with instances that came before and after: the index in the backup knows of none of it."""
    config, target, copied = archives.made(tmp_path), tmp_path / "backup", backups._Run._index
    with archives.opened(config, role="background") as node:
        fill(node)
        console = archives.the_console(node)
        node.remove.reject(console, "clinical", "study", ONE, reason="x")

        def late(run: Any) -> int:
            leaves = copied(run)
            node.remove.restore(console, "clinical", "study", ONE, reason="x")
            archives.store(node, archives.instance(20, series=f"{ONE}.1"))
            for _ in range(2):
                node.rekey.study(console, ONE)
            archives.store(node, archives.instance(21, series=f"{ONE}.1"))
            return leaves

        monkeypatch.setattr(backups._Run, "_index", late)
        back_up(node, target, keys=True)
        saw = crowd.part10(node, ONE)
    assert len(saw) == 5
    with archives.opened(brought_back(target, tmp_path / "other")) as node:
        assert crowd.part10(node, ONE) == saw
        crowd.check_sound(node)


@pytest.mark.parametrize("how", ["rekey", "purge"])
def test_what_was_never_acknowledged_does_not_stop_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """It lies under a key that is to be destroyed, and the power went before it was."""
    config = archives.made(tmp_path)
    node = open_node(config, role="background")
    fill(node)
    with monkeypatch.context() as patched:
        patched.setattr(stores, "adopt", gone)
        with pytest.raises(Gone):
            archives.store(node, archives.instance(9, series=f"{ONE}.1"))
    console = archives.the_console(node)
    if how == "purge":
        node.remove.reject(console, "clinical", "study", ONE, reason="x")
    commit = Rekey._commit

    def then_gone(*arguments: Any) -> None:
        commit(*arguments)
        gone()

    with monkeypatch.context() as patched:
        patched.setattr(Rekey, "_commit", then_gone)
        patched.setattr(purges, "finish", gone)
        with pytest.raises(Gone):
            node.rekey.study(console, ONE) if how == "rekey" else node.purge.run(console, "clinical", study=ONE, reason="x")
    left(node)
    with archives.opened(config, role="background") as node:
        crowd.check_sound(node)
        assert archives.store(node, archives.instance(9, series=f"{ONE}.1")).status == "stored"


# --- purge and backup --------------------------------------------------------------------------------------------------------------


def test_a_purge_between_the_segments_of_a_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy that would hold its event was made before, the one that lacks its record afterwards."""
    config, target, copied = archives.made(tmp_path), tmp_path / "backup", backups._Run._segment
    with archives.opened(config, role="background") as node:
        console = archives.the_console(node)
        archives.store(node, archives.instance(1, study="1.2.8"))
        node.core.vault.segments.roll()
        for number in (1, 2, 3):
            archives.store(node, archives.instance(number))
        node.core.vault.segments.roll()
        node.remove.reject(console, "clinical", "instance", "1.2.3.1.3", reason="x")
        node.remove.reject(console, "clinical", "study", "1.2.8", reason="x")
        being_written = node.core.vault.segments.open_segment()
        assert being_written is not None
        files = node.core.vault.segments.files
        monkeypatch.setattr(
            node.core.vault.segments, "files", lambda: sorted(files(), key=lambda one: one.segment_id != being_written.segment_id)
        )
        due, indexed = [ONE], backups._Run._index

        def later(run: Any) -> int:
            leaves = indexed(run)
            node.purge.run(console, "clinical", study="1.2.8", reason="x")  # the segment goes with it
            return leaves

        def late(run: Any, *args: Any) -> None:
            copied(run, *args)
            while due:
                node.purge.run(console, "clinical", study=due.pop(), reason="x")

        monkeypatch.setattr(backups._Run, "_index", later)
        monkeypatch.setattr(backups._Run, "_segment", late)
        back_up(node, target, keys=True)
        monkeypatch.undo()
        saw = crowd.part10(node, ONE)
        back_up(node, tmp_path / "second", keys=True)  # a closed segment ends in a hole, and is not hashed again yet
    for backup in (target, tmp_path / "second"):
        with archives.opened(brought_back(backup, tmp_path / f"of-{backup.name}")) as node:
            assert crowd.part10(node, ONE) == saw
            crowd.check_sound(node)


def test_keys_are_replaced_while_a_backup_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event that says which key follows which is in the index, and the old key that signed it is gone."""
    config, target, copied = archives.made(tmp_path), tmp_path / "backup", backups._Run._index
    with archives.opened(config, role="background") as node:
        console, due = archives.the_console(node), ["signing", "log"]
        archives.store(node, archives.instance(1))

        def late(run: Any) -> int:
            leaves = copied(run)
            while due:
                node.keys.replace(console, due.pop())  # type: ignore[arg-type]
                archives.store(node, archives.instance(2 + len(due)))
            return leaves

        monkeypatch.setattr(backups._Run, "_index", late)
        back_up(node, target, keys=True)
        saw = crowd.part10(node, ONE)
    with archives.opened(brought_back(target, tmp_path / "other")) as node:
        assert crowd.part10(node, ONE) == saw
        crowd.check_sound(node)


# --- segments ----------------------------------------------------------------------------------------------------------------------


def test_a_segment_in_which_something_is_unsettled_is_not_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next start takes a copy out that was sent again meanwhile: the hash would speak of a segment that was changed."""
    config, at = archives.made(tmp_path), [utc_now()]
    with archives.opened(config, role="background", clock=lambda: at[0]) as node:
        with monkeypatch.context() as patched:
            patched.setattr(stores, "adopt", unsure)
            with pytest.raises(CommitUncertain):
                archives.store(node, archives.instance(1))
        assert archives.store(node, archives.instance(1)).status == "stored"
        node.core.vault.segments.roll()
        at[0] += upkeeps.UNSETTLED_AT_MOST * 2
        for _ in range(2):
            node.upkeep.tick()
    with archives.opened(config, role="background", clock=lambda: at[0]) as node:
        node.upkeep.tick()
        assert len(crowd.every(node, sa.select(segment.c.id).where(segment.c.sha256.is_not(None)))) == 1
        assert node.verify.run(archives.the_console(node), "keyless").findings == []


def test_a_lost_segment_does_not_keep_the_others_from_being_hashed(tmp_path: Path) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config, role="background") as node:
        archives.store(node, archives.instance(1))
        node.core.vault.segments.roll()
        next(config.segments_dir.iterdir()).unlink()
        archives.store(node, archives.instance(1, study="1.2.9"))
        node.core.vault.segments.roll()
        for _ in range(4):
            with suppress(SealBroken):  # its metadata cannot be prepared either
                node.upkeep.tick()
        assert len(crowd.every(node, sa.select(segment.c.id).where(segment.c.sha256.is_not(None)))) == 1


def test_what_is_sent_again_is_no_duplicate_of_a_record_that_is_gone(tmp_path: Path) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config, role="background") as node:
        archives.store(node, archives.instance(1))
        node.core.vault.close()
    (path,) = config.segments_dir.iterdir()
    path.rename(tmp_path / "elsewhere")
    with archives.opened(config, role="background") as node:
        with pytest.raises(SealBroken):
            archives.store(node, archives.instance(1))
        (tmp_path / "elsewhere").rename(path)
        assert archives.store(node, archives.instance(1)).status == "duplicate"


def test_a_clock_that_is_set_back_stops_no_checkpoint_and_no_snapshot(tmp_path: Path) -> None:
    config, at = archives.made(tmp_path), [utc_now()]
    with archives.opened(config, role="background", clock=lambda: at[0]) as node:
        node.upkeep.tick()
        there = len(snapshot.files(config.ledger_dir))
        at[0] -= timedelta(days=1)
        node.accounts.add_user(archives.the_console(node), "mia")
        node.upkeep.tick()
        assert not node.upkeep.checkpoint(), "what is due every second waited for a day"
        assert len(snapshot.files(config.ledger_dir)) > there


def test_who_was_first_is_first_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes' records without rows: what came second is in conflict with the first, in whichever segment it lies."""
    config = archives.made(tmp_path)
    nodes = [open_node(config, role="dimse"), open_node(config, role="web")]
    for number, node in enumerate(nodes):
        archives.store(node, archives.instance(1, study=f"1.2.1{number}"))  # the first one's segment is the older
    arrivals = [(1, archives.instance(1, StudyDescription="first")), (0, archives.instance(1, StudyDescription="second")),
                (1, archives.instance(1, study="1.2.5")), (0, archives.instance(2, study="1.2.5", PatientID="P9"))]
    with monkeypatch.context() as patched:
        patched.setattr(stores, "adopt", gone)
        for which, data in arrivals:
            with pytest.raises(Gone):
                archives.store(nodes[which], data)
    for node in nodes:
        left(node)
    with archives.opened(config, role="background") as node:
        assert b"first" in crowd.part10(node, ONE)[f"{ONE}.1.1"]
        assert set(crowd.part10(node, "1.2.5")) == {"1.2.5.1.1"}
        crowd.check_sound(node)


@pytest.mark.parametrize("put_back", [False, True])
def test_who_was_first_is_first_again_though_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, put_back: bool
) -> None:
    """In one segment their places say it: the first was acknowledged, the second is in conflict with it."""
    config, at = archives.made(tmp_path), [utc_now()]
    node = open_node(config, role="dimse", clock=lambda: at[0])
    archives.store(node, archives.instance(1, study="1.2.9"))
    node.upkeep.checkpoint()
    node.core.database.checkpoint()
    shutil.copy(config.index_path, tmp_path / "old.db")
    for number, said in enumerate(("first", "second", "third")):
        with monkeypatch.context() as patched:
            if not put_back:
                patched.setattr(stores, "adopt", gone)
            with suppress(Gone):
                assert archives.store(node, archives.instance(1, StudyDescription=said)).status == ("conflict" if number else "stored")
        at[0] -= timedelta(hours=1)
    left(node)
    at[0] += timedelta(hours=4)
    if put_back:
        for path in config.storage_dir.glob("index.db*"):
            path.unlink()
        shutil.copy(tmp_path / "old.db", config.index_path)
        node = open_node(config, clock=lambda: at[0])
        node.oversight.acknowledge(archives.the_console(node), reason="put back")
        node.close()
    with archives.opened(config, role="background", clock=lambda: at[0]) as node:
        assert b"first" in crowd.part10(node, ONE)[f"{ONE}.1.1"]
        assert len(node.reconcile.list(archives.the_console(node))) == 2


# --- a database put back by hand ---------------------------------------------------------------------------------------------------


def test_after_an_index_was_put_back_by_hand_its_records_are_taken_in_again(tmp_path: Path) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config, role="background") as node:
        console = archives.the_console(node)
        for number in (1, 2):
            archives.store(node, archives.instance(number))
        for study in ("1.2.4", "1.2.7"):
            archives.store(node, archives.instance(1, study=study))
        node.upkeep.checkpoint()
        node.core.database.checkpoint()
        shutil.copy(config.index_path, tmp_path / "old.db")
        node.rekey.study(console, "1.2.7")
        node.remove.reject(console, "clinical", "instance", f"{ONE}.1.1", reason="x")
        node.core.vault.segments.roll()
        archives.store(node, archives.instance(3))
        node.remove.reject(console, "clinical", "study", "1.2.4", reason="x")
        node.purge.run(console, "clinical", study="1.2.4", reason="x")
        node.accounts.add_user(console, "given-up")
        with node.core.database.begin() as tx:
            for _ in range(60):
                node.core.ledger.record(tx, Event(Kind.STOPPED), at=node.core.clock())
        node.upkeep.checkpoint()
        for number in range(snapshot.KEPT):  # all that are kept know more than the log that is put back
            node.accounts.add_role(console, f"r{number}", ["stats"])
            Snapshots(node.core).write()
        saw = {study: crowd.part10(node, study) for study in (ONE, "1.2.7")}
    assert len(saw[ONE]) == 2
    for path in config.storage_dir.glob("index.db*"):
        path.unlink()
    shutil.copy(tmp_path / "old.db", config.index_path)
    node = open_node(config)
    assert node.start() != ""
    node.oversight.acknowledge(archives.the_console(node), reason="put back")
    node.close()
    with archives.opened(config, role="background") as node:
        assert {study: crowd.part10(node, study) for study in saw} == saw
        with pytest.raises(NotFound):
            crowd.part10(node, "1.2.4")
        node.upkeep.tick()
        crowd.check_sound(node)
        node.accounts.add_user(archives.the_console(node), "mia")
        Snapshots(node.core).write()
        node.upkeep.checkpoint()
    lose(config)
    assert not [one for one in rebuild(config).problems if "lost" in one]
    with archives.opened(config, role="background") as node:
        names = {row["name"] for row in node.accounts.list_users(archives.the_console(node))}
        assert {"admin", "mia"} <= names
        assert "given-up" not in names
