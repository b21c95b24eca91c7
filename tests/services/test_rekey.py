"""Re-keying: the same images under a new key, provably the same; a crash at every step leaves the old or the new, whole."""

from __future__ import annotations

import os
import shutil
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.db.tables import data_key, instance, purged, purged_key, series, study
from archive.errors import DatabaseUnavailable, Forbidden, NotFound, SealBroken, StateConflict, Unavailable
from archive.ledger import statements
from archive.node import Node, open_node
from archive.services import datastores
from archive.services import rekey as rekeys
from archive.services.clock import utc_now
from archive.services.left_open import LeftOpen
from archive.services.purge_finish import Finished
from archive.services.rebuild import Rebuild
from archive.services.rekey import Rekey
from tests.services import archives, crowd
from tests.services.test_backup import back_up, put_back
from tests.services.test_shred import Cut, Interrupted

ONE = "1.2.3"
STRIDE = 1 if os.environ.get("ARCHIVE_TEST_EVERY_STEP") == "1" else 11


def fill(node: Node) -> dict[str, bytes]:
    for number in (1, 2, 3):
        archives.store(node, archives.instance(number, series=f"{ONE}.{number % 2}"))
    archives.store(node, archives.instance(1, study="1.2.4"))
    return crowd.part10(node, ONE)


def states(node: Node) -> list[str]:
    with node.core.keystore.reading() as tx:
        return sorted(tx.execute(sa.select(data_key.c.state)).scalars())


def key_of(node: Node, uid: str = ONE) -> bytes:
    (row,) = crowd.every(node, sa.select(study.c.key_id).where(study.c.study_instance_uid == uid))
    return bytes(row.key_id)


def test_the_same_images_under_another_key(tmp_path: Path, engine: dict[str, Any]) -> None:
    with archives.opened(archives.made(tmp_path, **engine)) as node:
        before, old, console = fill(node), key_of(node), archives.the_console(node)
        was = {row.sop_instance_uid: row for row in crowd.every(node, sa.select(instance))}
        done = node.rekey.study(console, ONE)
        assert (done.studies, done.instances, done.keys, done.left) == (1, 3, 1, 0)
        assert crowd.part10(node, ONE) == before
        assert key_of(node) != old
        assert node.core.keystore.state(old) == "shredded"
        assert node.core.keystore.state(key_of(node)) == "active"
        for row in crowd.every(node, sa.select(instance).join(series, series.c.id == instance.c.series_pk)):
            one = was[row.sop_instance_uid]
            if row.study_pk != was[f"{ONE}.1.1"].study_pk:
                assert row == one
                continue
            assert (row.id, row.sha256) == (one.id, one.sha256)
            assert bytes(row.key_id) == key_of(node)
            assert row.object_id != one.object_id
            with node.core.database.read() as tx:
                sealed = node.core.vault.sections(_ref(tx, row)).statement
            said = statements.verify(sealed, node.keyring.public_keys())
            assert said["ver"] == 2
            assert len(said["prev"]) == 64
        crowd.check_sound(node)
        assert archives.store(node, archives.instance(4, series=f"{ONE}.1")).status == "stored"  # goes on under the new key
        assert archives.store(node, archives.instance(1, series=f"{ONE}.1")).status == "duplicate"
        node.rekey.study(console, ONE)
        crowd.check_sound(node)
        assert len(crowd.part10(node, ONE)) == 4


def _ref(tx: sa.Connection, row: Any) -> Any:
    from archive.db.tables import datastore
    from archive.index import catalog

    return catalog.ref_of(row, bytes(tx.execute(sa.select(datastore.c.uid)).scalar_one()))


def test_all_that_are_older(tmp_path: Path) -> None:
    with archives.opened(archives.made(tmp_path)) as node:
        fill(node)
        console, now = archives.the_console(node), node.core.clock()
        assert node.rekey.older_than(console, now - timedelta(days=1)).studies == 0
        archives.store(node, archives.instance(1, study="1.2.5"))
        node.remove.reject(console, "clinical", "study", "1.2.5", reason="x")
        done = node.rekey.older_than(console, node.core.clock())
        assert (done.studies, done.instances, done.keys, done.left) == (2, 4, 2, 1)
        crowd.check_sound(node)


def test_a_damaged_study_keeps_no_other_from_its_new_key(tmp_path: Path) -> None:
    with archives.opened(archives.made(tmp_path)) as node:
        fill(node)
        console, before = archives.the_console(node), (key_of(node), key_of(node, "1.2.4"))
        path = next(node.config.segments_dir.iterdir())
        (row,) = crowd.every(node, sa.select(instance).where(instance.c.sop_instance_uid == f"{ONE}.1.1"))
        whole = bytearray(path.read_bytes())
        whole[row.record_offset + 300] ^= 1
        path.write_bytes(whole)
        with pytest.raises(SealBroken):  # told in the end
            node.rekey.older_than(console, node.core.clock())
        assert key_of(node) == before[0]
        assert key_of(node, "1.2.4") != before[1]
        assert node.core.keystore.state(before[1]) == "shredded"


def test_what_refuses(tmp_path: Path) -> None:
    with archives.opened(archives.made(tmp_path)) as node:
        fill(node)
        console = archives.the_console(node)
        with pytest.raises(NotFound):
            node.rekey.study(console, "9.9.9")
        node.accounts.add_user(console, "mia", password=archives.PASSWORD)
        with pytest.raises(Forbidden):
            node.rekey.study(archives.user(node, "mia"), ONE)
        assert archives.store(node, archives.instance(9, PatientID="P9")).status == "held"
        with pytest.raises(StateConflict):
            node.rekey.study(console, ONE)
        path = next(node.config.segments_dir.iterdir())
        (row,) = crowd.every(node, sa.select(instance).where(instance.c.sop_instance_uid == "1.2.4.1.1"))
        whole = bytearray(path.read_bytes())
        whole[row.record_offset + 300] ^= 1
        path.write_bytes(whole)
        with pytest.raises(SealBroken):
            node.rekey.study(console, "1.2.4")
        whole[row.record_offset + 300] ^= 1
        path.write_bytes(whole)
        crowd.check_sound(node)


def test_cut_short_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with archives.opened(archives.made(tmp_path / "made")) as node:
        before = fill(node)
    step, cut_short, after = 0, True, 0
    while cut_short:
        folder = tmp_path / str(step)
        shutil.copytree(tmp_path / "made", folder)
        config = archives.configured(folder)
        node = open_node(config, role="background")
        with monkeypatch.context() as patched:
            Cut(node, patched, step)
            try:
                node.rekey.study(archives.the_console(node), ONE)
                cut_short = False
            except Interrupted:
                pass
        for database in (node.core.database, node.core.keystore._database):
            database.before_commit = lambda _tx: None
            database.close()
        with archives.opened(config, role="background") as node:
            console = archives.the_console(node)
            after += bool(crowd.every(node, sa.select(purged_key.c.key_id)))
            assert crowd.part10(node, ONE) == before
            assert crowd.every(node, sa.select(purged.c.object_id).where(purged.c.freed_at.is_(None))) == []
            assert archives.store(node, archives.instance(7, series=f"{ONE}.1")).status == "stored"
            node.rekey.study(console, ONE)
            assert "coming" not in states(node)
            assert len(crowd.part10(node, ONE)) == 4
            crowd.check_sound(node)
        shutil.rmtree(folder)
        step += STRIDE
    assert after > 0


def unended(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Re-key, and lose the database once that is committed: what it gave the study is still to come."""
    commit = Rekey._commit

    def lost(*_arguments: Any) -> None:
        raise DatabaseUnavailable("the connection to the database was lost")

    with monkeypatch.context() as patched:
        def then_lost(*arguments: Any) -> None:
            commit(*arguments)
            patched.setattr(rekeys, "finish", lost)

        patched.setattr(Rekey, "_commit", then_lost)
        with pytest.raises(DatabaseUnavailable):
            node.rekey.study(archives.the_console(node), ONE)
    assert node.core.keystore.state(key_of(node)) == "coming"


def test_one_that_has_not_come_to_its_end_is_brought_there_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: dict[str, Any]
) -> None:
    """Else the key that is to come is the old and the new one at once, and goes as the old one does: with every image."""
    with archives.opened(archives.made(tmp_path, **engine)) as node:
        before = fill(node)
        unended(node, monkeypatch)
        given = key_of(node)
        with monkeypatch.context() as patched:
            patched.setattr(rekeys, "finish", lambda _core: Finished(refused=1))
            with pytest.raises(StateConflict):
                node.rekey.study(archives.the_console(node), ONE)
        assert key_of(node) == given
        assert node.rekey.study(archives.the_console(node), ONE).instances == 3
        assert key_of(node) != given
        assert crowd.part10(node, ONE) == before
        assert "coming" not in states(node)
        crowd.check_sound(node)


def test_what_one_left_undone_keeps_stores_from_its_study_for_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, at = archives.made(tmp_path), [utc_now()]
    with archives.opened(config, role="background", clock=lambda: at[0]) as node:
        before, more = fill(node), archives.instance(7, series=f"{ONE}.1")
        node.upkeep.tick()
        unended(node, monkeypatch)
        with pytest.raises(Unavailable, match="key changed"):
            archives.store(node, more)
        at[0] += timedelta(minutes=1)
        with rekeys.rekeying(node.core):  # somebody may be about to do it
            node.upkeep.tick()
        assert node.core.keystore.state(key_of(node)) == "coming"
        at[0] += timedelta(minutes=1)
        node.upkeep.tick()
        assert archives.store(node, more).status == "stored"
        assert crowd.part10(node, ONE) == before | {f"{ONE}.1.7": more}


@pytest.mark.parametrize("noted", [False, True])
def test_no_event_destroys_the_key_it_gave_the_study(tmp_path: Path, noted: bool) -> None:
    """As an earlier release wrote it; `noted`: by that release, which did not come to destroy it."""
    config = archives.made(tmp_path)
    with archives.opened(config) as node:
        core, before, key = node.core, fill(node), key_of(node)
        with core.database.read() as tx:
            place = datastores.find(tx, "clinical")
            rows = rekeys._rows(tx, place, ONE)
        fresh = core.keystore.open(key)
        again = [node.rekey._sealed(row, place, fresh) for row in rows]
        node.rekey._commit(archives.the_console(node), place, ONE, again, fresh, "twice at once")
        if noted:
            with core.database.begin() as tx:
                tx.execute(sa.insert(purged_key).values(key_id=key, leaf=sa.select(sa.func.max(purged.c.leaf)).scalar_subquery()))
    with archives.opened(config) as node:
        assert crowd.part10(node, ONE) == before
        assert crowd.every(node, sa.select(purged_key)) == []
        crowd.check_sound(node)
        assert archives.store(node, archives.instance(7, series=f"{ONE}.1")).status == "stored"


def test_a_rebuild_finds_the_new_records(tmp_path: Path) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config) as node:
        before = fill(node)
        node.rekey.study(archives.the_console(node), ONE)
        archives.store(node, archives.instance(8, series=f"{ONE}.1"))
        node.core.vault.close()
    with archives.opened(config) as node:
        done = Rebuild(node.core).run(lost=False)
        assert done.problems == []
    with archives.opened(config) as node:
        found = crowd.part10(node, ONE)
        assert {uid: found[uid] for uid in before} == before
        assert len(found) == 4
        crowd.check_sound(node)
        assert archives.store(node, archives.instance(9, series=f"{ONE}.1")).status == "stored"


@pytest.mark.parametrize("then", ["started", "served", "restored"])
def test_a_killed_rekeying_brings_nothing_back_that_was_purged_since(tmp_path: Path, then: str) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config) as node:
        for number in (1, 2, 3):
            archives.store(node, archives.instance(number))
        node.core.vault.segments.roll()
    child = os.fork()
    if not child:
        node = open_node(config)
        Rekey._commit = lambda *_arguments, **_named: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment,method-assign]
        node.rekey.study(archives.the_console(node), "1.2.3")
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    node = open_node(config, role="background")  # beside what was there already: nothing is replayed
    console = archives.the_console(node)
    node.remove.reject(console, "clinical", "study", "1.2.3", reason="another patient")
    assert node.purge.run(console, "clinical", study="1.2.3", reason="another patient").instances == 3
    if then == "restored":
        back_up(node, tmp_path / "backup", keys=True)
        config, report = put_back(tmp_path / "backup", tmp_path / "new")
        assert report.ok, report.findings
    if then == "served":
        left = LeftOpen(node.core)
        for _ in range(4):
            left.tick()
        assert crowd.every(node, sa.select(instance)) == []
    node.close()
    with archives.opened(config) as node:
        assert crowd.every(node, sa.select(instance)) == []
        assert archives.store(node, archives.instance(9)).status == "stored"
        assert set(crowd.part10(node, "1.2.3")) == {"1.2.3.1.9"}
        assert node.verify.run(archives.the_console(node), "full").findings == []
