"""The index made again from what is sealed says what it said; a lost one comes back with no right that was not there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.access import policy
from archive.access.grants import Target
from archive.config import Config
from archive.db.tables import instance, metadata, statement, study
from archive.errors import DatabaseUnavailable, LedgerBroken, NotFound, Unavailable
from archive.keys.keyring import Keyring
from archive.node import Node, open_node
from archive.services import lost, survey
from archive.services.clock import utc_now
from archive.services.rebuild import Rebuild
from archive.services.rebuilt import Rebuilt
from archive.services.snapshot import Snapshots
from tests.services import archives, catalogs
from tests.services.test_replay import abandon

STUDIES = ("1.2.3", "1.2.4", "1.2.5", "1.2.6")


def rebuild(config: Config, **options: Any) -> Rebuilt:
    """What the command does."""
    keyring = Keyring.open(config)
    standing = lost.prepare(config, keyring, at=utc_now())
    node = open_node(config, keyring=keyring, role="serve")
    try:
        return Rebuild(node.core).run(lost=standing.lost, damaged=standing.damaged, **options)
    finally:
        node.close()
        if standing.damaged is not None:
            standing.damaged.close()


def lived(node: Node) -> None:
    """A small archive to which everything happened that an index knows of."""
    console = archives.the_console(node)
    for name in ("reader", "ward", "gone"):
        node.accounts.add_user(console, name, password=archives.PASSWORD)
    for number in range(1, 4):
        archives.store(node, archives.instance(number))
    archives.store(node, archives.instance(1, series="1.2.3.2", PatientName="Yamada^Tarou", SeriesDescription="other"))
    archives.store(node, archives.instance(1, study="1.2.4", PatientID=None))  # nameless
    archives.store(node, archives.instance(1, study="1.2.5", PatientID=None))
    archives.store(node, archives.instance(2, study="1.2.5", PatientID="P7"))  # finds its patient
    archives.store(node, archives.instance(1, study="1.2.6", rows=1600))  # a segment of its own
    archives.store(node, archives.instance(4, PatientID="P9"))  # held
    archives.store(node, archives.instance(5, PatientID="P9"))  # held, let in
    archives.store(node, archives.instance(6, PatientID="P8"))  # held, rejected
    archives.store(node, archives.instance(2, StudyDescription="else"))  # in conflict, let in
    archives.store(node, archives.instance(3, StudyDescription="else"))  # in conflict
    waiting = {(row["sop_instance_uid"], row["kind"]): row["id"] for row in node.reconcile.list(console)}
    node.reconcile.accept(console, waiting["1.2.3.1.5", "held"], reason="seen")
    node.reconcile.reject(console, waiting["1.2.3.1.6", "held"], reason="not ours")
    node.reconcile.accept(console, waiting["1.2.3.1.2", "conflict"], reason="better")
    node.remove.reject(console, "clinical", "instance", "1.2.3.1.1", reason="twice")
    node.remove.reject(console, "clinical", "series", "1.2.3.2", reason="wrong")
    node.remove.restore(console, "clinical", "series", "1.2.3.2", reason="right")
    archives.store(node, archives.instance(1))  # sent again: back
    node.remove.reject(console, "clinical", "study", "1.2.6", reason="test")
    give = node.accounts.add_grant
    give(console, to="reader", role="radiologist", target=Target("study", "1.2.3"))
    give(console, to="reader", role="radiologist", target=Target("series", "1.2.3.2"), deny=True)
    give(console, to="ward", role="radiologist", target=Target("patient", "P7"))
    give(console, to="ward", role="radiologist", target=Target("patient", "P100", expected=True))
    give(console, to="ward", role="radiologist", target=Target("study", "1.2.4"))
    ended = give(console, to="gone", role="radiologist", target=Target("everything", ""))
    node.accounts.revoke_grant(console, ended["id"])


def state(node: Node) -> dict[str, Any]:
    return {"catalog": catalogs.catalog(node), "access": catalogs.access(node)}


def seen(node: Node) -> dict[str, dict[str, bytes]]:
    return {name: catalogs.visible(node, name, *STUDIES) for name in ("admin", "reader", "ward", "gone")}


@pytest.fixture
def folder(tmp_path: Path, engine: dict[str, Any]) -> Path:
    archives.made(tmp_path, **engine)
    return tmp_path


def test_the_rebuilt_index_says_what_it_said(folder: Path) -> None:
    config = archives.configured(folder)
    with archives.opened(config) as node:
        lived(node)
        node.upkeep.tick()
    with archives.opened(config) as node:  # segments are closed and told
        before, saw, files = state(node), seen(node), catalogs.segments(node)
    report = rebuild(config)
    assert report.ok, report.problems
    assert (report.instances, report.held) == (8, 5)
    with archives.opened(config) as node:
        assert state(node) == before
        assert seen(node) == saw
        assert catalogs.segments(node) == files
        assert node.verify.run(archives.the_console(node), "full").findings == []
        assert archives.store(node, archives.instance(9)).status == "stored"
        assert archives.store(node, archives.instance(3)).status == "duplicate"
    again = rebuild(config)
    assert again.ok
    assert again.instances == report.instances + 1


def test_what_was_edited_behind_the_archives_back_is_put_right(folder: Path) -> None:
    config = archives.configured(folder)
    with archives.opened(config) as node:
        lived(node)
    with archives.opened(config) as node:
        before = state(node)
        token = policy.system("verify")
        with node.core.database.begin() as tx:
            policy.run_as(tx, token, sa.update(study).where(study.c.study_instance_uid == "1.2.3").values(study_date="19000101"))
            policy.run_as(tx, token, sa.update(instance).values(rejected_at=None))
            policy.run_as(tx, token, sa.delete(instance).where(instance.c.sop_instance_uid == "1.2.3.1.3"))
            tx.execute(sa.delete(statement))
        assert node.verify.run(archives.the_console(node)).findings
    assert rebuild(config).ok
    with archives.opened(config) as node:
        assert state(node)["catalog"] == before["catalog"]
        assert node.verify.run(archives.the_console(node), "full").findings == []


def test_a_grant_on_a_study_whose_row_is_gone_is_found_in_the_ledger(folder: Path) -> None:
    config = archives.configured(folder)
    with archives.opened(config) as node:
        lived(node)
        before = seen(node)
        token = policy.system("verify")
        with node.core.database.begin() as tx:
            for table in ("instance", "series", "study"):
                policy.run_as(tx, token, sa.delete(metadata.tables[table]))
    assert rebuild(config).ok
    with archives.opened(config) as node:
        assert seen(node) == before


def test_a_missing_segment_is_told_and_its_grants_wait(folder: Path) -> None:
    config = archives.configured(folder)
    with archives.opened(config) as node:
        lived(node)
        one = next(row for row in node.retrieve.instances(archives.user(node), "clinical", "1.2.4"))
        path = config.segments_dir / f"{one.row.ref.location.segment_id.hex()}.seg"
    with archives.opened(config) as node:
        before = state(node)
    path.rename(folder / "away")
    report = rebuild(config)
    assert not report.ok
    with archives.opened(config) as node:
        assert catalogs.visible(node, "ward", *STUDIES) == {}
        assert {found.code for found in node.verify.run(archives.the_console(node)).findings} >= {"V01", "V12"}
    (folder / "away").rename(path)
    assert rebuild(config).ok
    with archives.opened(config) as node:
        assert state(node) == before


def test_a_rebuild_that_is_cut_short_changed_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from archive.index import access_study

    config = archives.configured(folder)
    with archives.opened(config) as node:
        lived(node)
    with archives.opened(config) as node:
        before = state(node)

    def die(*_args: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(access_study, "refill", die)
        with pytest.raises(KeyboardInterrupt):
            rebuild(config)
    with archives.opened(config) as node:
        assert state(node) == before


def lose(config: Config) -> None:
    """Take the index away with everything in it."""
    if not config.database.url:
        for path in config.storage_dir.glob("index.db*"):
            path.unlink()
        return
    import sqlalchemy

    engine = sqlalchemy.create_engine(config.database.url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("DROP SCHEMA public CASCADE"))
        connection.execute(sqlalchemy.text("CREATE SCHEMA public"))
    engine.dispose()


def test_a_lost_index_comes_back_with_ledger_and_access(folder: Path) -> None:
    config = archives.configured(folder)
    with archives.opened(config, role="serve") as node:
        lived(node)
        node.upkeep.tick()
        console = archives.the_console(node)
        node.upkeep.tick()
        node.accounts.add_group(console, "team")
        node.accounts.join_group(console, "team", "ward")
        for name in ("narrowed", "over"):
            node.accounts.add_role(console, name, ["search", "metadata"])
        node.accounts.add_grant(console, to="team", role="narrowed", target=Target("study", "1.2.4"))
        peer = node.peers.add(console, "CT1", ae_titles=["CT1"], networks=["10.0.0.0/24"], roles=["modality"])
        root = node.accounts.create_token(console, owner="admin", datastores=["clinical"], networks=["10.0.0.0/8"], label="tool")
        left, right = (node.accounts.create_token(console, owner="admin", parent=root["id"], studies=["1.2.3"]) for _ in range(2))
        ended = node.accounts.create_token(console, owner="admin", parent=left["id"])
        Snapshots(node.core).write()
        node.accounts.revoke_token(console, left["id"])
        # Later than the snapshot: what takes away holds all the same, what gives does not.
        node.accounts.add_grant(console, to="gone", role="radiologist", target=Target("everything"))
        node.accounts.add_grant(console, to="ward", role="radiologist", target=Target("study", "1.2.4"), deny=True)
        node.accounts.change_role(console, "narrowed", add=["pixels"], remove=["metadata"])
        node.accounts.remove_role(console, "over")
        node.accounts.disable_user(console, "reader")
        node.accounts.reset_password(console, "ward")
        node.accounts.leave_group(console, "team", "ward")
        node.accounts.join_group(console, "team", "gone")
        node.accounts.assign_role(console, "gone", "auditor")
        node.accounts.add_user(console, "late", roles=["owner"], password=archives.PASSWORD)
        lost = node.accounts.create_token(console, owner="gone")
        node.accounts.revoke_token(console, lost["id"])
        node.peers.remove(console, "CT1")
        node.peers.add(console, "CT2", ae_titles=["CT2"], networks=["10.0.1.0/24"], roles=["modality"])
        node.upkeep.checkpoint()
        # Later than the last checkpoint: what is sealed holds.
        archives.store(node, archives.instance(7))
        node.remove.reject(console, "clinical", "instance", "1.2.3.1.3", reason="late")
        before, saw = state(node), seen(node)
    lose(config)
    report = rebuild(config)
    assert report.lost
    assert report.ok, report.problems
    assert report.adopted == 1
    late = ("leaf", "rejected_by")
    with archives.opened(config) as node:
        told = state(node)
        kept = {number: row for number, row in told["access"]["grants"].items() if row["revoked_at"] is None}
        was = {number: row for number, row in before["access"]["grants"].items() if row["revoked_at"] is None}
        assert set(kept) == {number for number, row in was.items() if row["subject_id"] != archives.user(node, "gone").principal_id}
        assert set(catalogs.catalog(node, without=late)["instance"]) == set(before["catalog"]["instance"])
        assert seen(node) == saw | {"gone": {}}
        assert "1.2.3.1.3" not in seen(node)["admin"]
        assert node.accounts.show_role(archives.the_console(node), "narrowed")["permissions"] == ["search", "pixels"]
        assert "over" not in {one["name"] for one in node.accounts.list_roles(archives.the_console(node))}
        assert node.verify.run(archives.the_console(node), "full").findings == []
        assert node.oversight.verify_ledger(archives.the_console(node))["ok"]
        assert not node.accounts.show_user(archives.the_console(node), "reader")["enabled"]
        tokens = {one["id"]: one for one in node.accounts.list_tokens(archives.the_console(node))}
        assert {key: one["state"] for key, one in tokens.items()} == {
            root["id"]: "active", left["id"]: "revoked", right["id"]: "active", ended["id"]: "revoked",
        }
        assert tokens[right["id"]] == {name: value for name, value in right.items() if name != "token"}
        handed = node.signin.bearer(right["token"], address="10.0.0.1")
        assert set(node.retrieve.instances(handed, "clinical", "1.2.3")) == set(
            node.retrieve.instances(archives.user(node), "clinical", "1.2.3")
        )
        with pytest.raises(NotFound):
            node.retrieve.instances(handed, "clinical", "1.2.4")
        new = node.accounts.create_token(archives.the_console(node), owner="admin", parent=root["id"])
        assert new["id"] == lost["id"]  # the ledger tells of that one too, and keeps them apart
        assert node.verify.run(archives.the_console(node), "quick").findings == []
        assert node.peers.list(archives.the_console(node)) == []
        assert "late" not in {one["name"] for one in node.accounts.list_users(archives.the_console(node))}
        assert node.peers.add(archives.the_console(node), "CT3", ae_titles=["CT3"], networks=["10.0.2.0/24"])["id"] > peer["id"] + 2
        assert archives.store(node, archives.instance(9)).status == "stored"


def test_a_lost_index_without_a_snapshot_keeps_every_image_from_everyone(folder: Path) -> None:
    config = archives.configured(folder)
    with archives.opened(config) as node:
        lived(node)
        node.upkeep.checkpoint()
        before = catalogs.catalog(node)
    shutil.rmtree(config.ledger_dir / "access", ignore_errors=True)
    lose(config)
    report = rebuild(config)
    assert "users, grants and peers are lost" in report.problems[0]
    with archives.opened(config) as node:
        console = archives.the_console(node)
        assert catalogs.catalog(node) == before
        added = node.accounts.add_user(console, "chief", roles=["owner"], password=archives.PASSWORD)
        assert added["id"] > 4  # nobody in the ledger is taken for somebody new
        assert catalogs.visible(node, "chief", *STUDIES) == {}
        node.accounts.add_grant(console, to="chief", role="owner", target=Target("everything"))
        assert len(catalogs.visible(node, "chief", *STUDIES)) == 8
        assert node.verify.run(archives.the_console(node)).findings == []


def test_changed_files_of_a_lost_ledger_are_refused(folder: Path) -> None:
    config = archives.configured(folder)
    with archives.opened(config) as node:
        lived(node)
        node.upkeep.checkpoint()
    lose(config)
    for kind in ("bodies", "tile/entries"):
        path = next(path for path in (config.ledger_dir / kind).rglob("*") if path.is_file())
        data = path.read_bytes()
        path.write_bytes(data[:400] + bytes([data[400] ^ 1]) + data[401:])
        with pytest.raises(LedgerBroken):
            rebuild(config)
        path.write_bytes(data)
    assert rebuild(config).lost


def test_a_damaged_index_is_moved_aside_and_read_as_far_as_it_goes(tmp_path: Path) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config) as node:
        lived(node)
        node.upkeep.checkpoint()
        node.core.database.checkpoint()
        before, saw = state(node), seen(node)
    data = bytearray(config.index_path.read_bytes())
    for at in range(len(data) - 4096, len(data)):
        data[at] ^= 0x55
    config.index_path.write_bytes(data)
    report = rebuild(config)
    assert report.lost
    assert len(list(config.storage_dir.glob("index-damaged-*.db"))) == 1
    with archives.opened(config) as node:
        assert catalogs.catalog(node)["instance"] == before["catalog"]["instance"]
        if not any("lost" in one for one in report.problems):
            assert seen(node) == saw


def test_a_lost_keystore_is_told_before_anything_is_done(tmp_path: Path) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config) as node:
        lived(node)
    for path in config.storage_dir.glob("keystore.db*"):
        path.unlink()
    before = config.index_path.read_bytes()
    with pytest.raises(DatabaseUnavailable) as refused:
        rebuild(config)
    assert "keys of the studies" in refused.value.remedy
    assert config.index_path.read_bytes() == before


def test_nothing_is_rebuilt_while_somebody_stores(tmp_path: Path) -> None:
    config = archives.made(tmp_path)
    node = archives.open_node(config)
    node.start()
    archives.store(node, archives.instance(1))
    other = open_node(config, role="serve")
    with pytest.raises(Exception, match="something is storing"):
        Rebuild(other.core).run(lost=False)
    other.close()
    abandon(node)



@pytest.mark.parametrize("ended", [True, False], ids=["ended", "going on"])
@pytest.mark.parametrize("what", ["import", "delete"])
def test_what_a_command_beside_it_did_is_not_taken_out_of_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, ended: bool
) -> None:
    """Looking through the segments may take hours, and an import may begin meanwhile."""
    config = archives.made(tmp_path)
    with archives.opened(config) as node:
        archives.store(node, archives.instance(1))
    beside: list[Node] = []

    def surveyed(core: Any, progress: Any) -> Any:
        found = survey.survey(core, progress)
        beside.append(open_node(config))
        if what == "import":
            archives.store(beside[0], archives.instance(2))
        else:
            beside[0].remove.reject(archives.the_console(beside[0]), "clinical", "study", "1.2.3", reason="wrong")
        if ended:
            beside[0].close()
        return found

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr("archive.services.rebuild.survey", surveyed)
        with pytest.raises(Unavailable, match="storing"):
            rebuild(config)
    with archives.opened(config) as node, node.core.database.read() as tx:
        rows = policy.run_as(tx, policy.system("verify"), sa.select(instance.c.rejected_at)).scalars().all()
        assert (len(rows), sum(one is not None for one in rows)) == ((2, 0) if what == "import" else (1, 1))
    if not ended:
        beside[0].close()
    assert rebuild(config).problems == []
