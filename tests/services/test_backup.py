"""A backup is whole, copied once, and refused once anyone has changed it; what was there counts until the next one is whole."""

from __future__ import annotations

import json
import shutil
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from archive.config import Config
from archive.db.tables import instance, segment
from archive.errors import ArchiveError, ConfigurationError, InvalidRequest, KeysUnavailable, OutOfSpace, Unavailable
from archive.keys import private_files
from archive.keys.keyring import Keyring
from archive.node import Node, open_node
from archive.services import backup as backups
from archive.services import drill_folder, manifest, restoring, snapshot
from archive.services import restore as restores
from archive.services.backup import BackedUp, Backup
from archive.services.clock import utc_now
from archive.services.drill import Drill
from archive.services.last_backup import check as backup_check
from archive.services.restore import Restored, Way, restore
from archive.vault.vault import Vault
from tests.services import archives, catalogs, crowd
from tests.services.test_rebuild import STUDIES, lived, lose, seen, state


def back_up(node: Node, folder: Path, **options: Any) -> BackedUp:
    made = Backup(node.core).run(archives.the_console(node), folder, **options)
    assert made.ok, made.problems
    return made


def way(**options: Any) -> Way:
    return Way(opening=lambda config, keyring: open_node(config, keyring=keyring, role="serve"), clock=utc_now, **options)


def elsewhere(folder: Path) -> Config:
    """An empty machine."""
    folder.mkdir()
    return archives.configured(folder)


def put_back(folder: Path, to: Path, **options: Any) -> tuple[Config, Restored]:
    config = elsewhere(to)
    return config, restore(folder, config, way(mode="full", **options))


@pytest.fixture
def folder(tmp_path: Path, engine: dict[str, Any]) -> Path:
    archives.made(tmp_path, **engine)
    return tmp_path


def names(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.seg")}


def test_what_was_backed_up_comes_back_on_an_empty_machine(folder: Path, tmp_path: Path) -> None:
    config, target = archives.configured(folder), tmp_path / "backup"
    with archives.opened(config) as node:
        lived(node)
        before, saw = state(node), seen(node)
        back_up(node, target, keys=True)
        node.accounts.revoke_grant(archives.the_console(node), 2)  # later than the backup
    before["catalog"].pop("names", None)
    if config.database.url:  # onto a server again
        lose(config)
        (tmp_path / "server").mkdir()
        (tmp_path / "server" / "database-url").write_text(config.database.url)
        server = archives.configured(tmp_path / "server")
        assert restore(target, server, way(mode="full")).ok
        with archives.opened(server) as node:
            assert state(node) == before
            assert archives.store(node, archives.instance(9)).status == "stored"
            node.accounts.add_user(archives.the_console(node), "newcomer", password=archives.PASSWORD)
    fresh, report = put_back(target, tmp_path / "new")
    assert report.ok, report.findings
    with archives.opened(fresh) as node:
        found = state(node)
        assert set(found["catalog"].pop("names")) == set(found["catalog"]["study"])
        assert found == before
        assert seen(node) == saw
        assert node.verify.run(archives.the_console(node), "full").findings == []
        assert archives.store(node, archives.instance(9)).status == "stored"
        assert archives.store(node, archives.instance(3)).status == "duplicate"
        node.upkeep.tick()
    with archives.opened(fresh) as node:
        assert node.oversight.rolled_back() == ""


def test_a_second_run_copies_what_is_new(tmp_path: Path) -> None:
    config, target = archives.made(tmp_path), tmp_path / "backup"
    with archives.opened(config, role="serve") as node:
        lived(node)
        node.core.vault.segments.roll()
        for _ in range(8):
            node.upkeep.tick()
        first = back_up(node, target)
        shared = names(target / "segments")
        assert len(shared) >= 2
        archives.store(node, archives.instance(20, rows=64))
        second = back_up(node, target)
        assert {name: at for name, at in names(target / "segments").items() if name in shared} == shared
        assert second.copied_bytes < first.copied_bytes
        assert len(list((target / "sets").iterdir())) == 1
    _, report = put_back(target, tmp_path / "new", key_file=config.key_file)
    assert report.ok


@pytest.mark.parametrize("moment", range(0, 60, 5))
def test_a_run_that_is_cut_short_leaves_the_backup_before_it(tmp_path: Path, moment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config, target = archives.made(tmp_path), tmp_path / "backup"
    with archives.opened(config) as node:
        archives.store(node, archives.instance(1))
        back_up(node, target)
        archives.store(node, archives.instance(2))
        calls = iter(range(10_000))

        class Cut(BaseException):
            pass

        def cut(original: Any) -> Any:
            def call(*args: Any, **options: Any) -> Any:
                if next(calls) == moment:
                    raise Cut
                return original(*args, **options)

            return call

        with monkeypatch.context() as patch:
            for module, name in ((manifest, "copy"), (manifest, "hashed"), (backups, "copy_file"), (manifest, "write")):
                patch.setattr(module, name, cut(getattr(module, name)))
            for name in ("write", "make_directory", "sync_directory"):
                patch.setattr(backups.private_files, name, cut(getattr(backups.private_files, name)))
            try:
                back_up(node, target)
                whole = True
            except Cut:
                whole = False
        found = manifest.verified(manifest.current(target), node.keyring)[0]
        for file in found.files:
            manifest.require(file, manifest.hashed(manifest.current(target) / file.path))
    fresh, report = put_back(target, tmp_path / "new", key_file=config.key_file)
    assert report.ok
    with archives.opened(fresh) as node:
        assert set(catalogs.visible(node, "admin", "1.2.3")) >= {"1.2.3.1.1"}
        if whole:
            assert set(catalogs.visible(node, "admin", "1.2.3")) == {"1.2.3.1.1", "1.2.3.1.2"}
    with archives.opened(config) as node:
        back_up(node, target)
        assert len(list((target / "sets").iterdir())) == 1


@pytest.mark.parametrize("kind", [
    "index.db", "keystore.db", "keyring.json", "root.key", "manifest.json", "manifest.note", "config.toml", "tls/ca.pem",
    "ledger/checkpoint", "ledger/tile/entries", "ledger/tile/0", "ledger/bodies", "ledger/access",
    "segments", "../../segments", "../../current",
])
@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_a_changed_file_is_refused_with_its_reason(tmp_path: Path, whole: tuple[Config, Path], kind: str, how: str) -> None:
    _config, kept = whole
    target = tmp_path / "backup"
    shutil.copytree(kept, target)
    chosen = manifest.current(target)
    path = chosen / kind if (chosen / kind).is_file() else next(path for path in sorted((chosen / kind).rglob("*")) if path.is_file())
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        at = len(data) // 2
        path.write_bytes(data[: at + 1] if how == "cut" else data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    fresh = elsewhere(tmp_path / "new")
    with pytest.raises(ArchiveError) as refused:
        restore(target, fresh, way())
    assert refused.value.remedy
    assert refused.value.code in {"digest-mismatch", "keys-unavailable", "not-found", "invalid-request"}
    assert not (fresh.keys_dir / "keyring.json").exists()
    assert not list(fresh.storage_dir.glob("*.db"))
    assert not (fresh.storage_dir / ".restoring").exists()


class Cut(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("moment", range(5))
def test_a_restore_that_is_cut_short_while_it_names_files_is_given_again(
    tmp_path: Path, whole: tuple[Config, Path], monkeypatch: pytest.MonkeyPatch, moment: int, *, killed: bool
) -> None:
    fresh, calls = elsewhere(tmp_path / "new"), iter(range(100))
    original = Path.replace

    def cut(path: Path, target: Path) -> Path:
        if path.parent.name == restoring.STAGE and next(calls) == moment:
            if killed:
                monkeypatch.setattr(restores, "_forget", lambda *_args, **_options: None)
            raise Cut
        return original(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", cut)
        with pytest.raises(Cut):
            restore(whole[1], fresh, way())
    monkeypatch.undo()
    assert not (fresh.keys_dir / "keyring.json").exists()
    if not killed:
        assert [path.name for path in fresh.storage_dir.iterdir()] == []
    assert restore(whole[1], fresh, way()).ok
    with archives.opened(fresh) as node:
        assert node.verify.run(archives.the_console(node), "full").findings == []
    assert not (fresh.storage_dir / restoring.STAGE).exists()
    with pytest.raises(ConfigurationError, match="not empty"):
        restore(whole[1], fresh, way())


@pytest.mark.parametrize("where", ["_settle", "keyring"])
def test_a_restore_onto_a_server_that_fails_is_given_again(
    tmp_path: Path, whole: tuple[Config, Path], monkeypatch: pytest.MonkeyPatch, postgresql_url: str, where: str
) -> None:
    (tmp_path / "server").mkdir()
    fresh = archives.configured(tmp_path / "server", database={"url": postgresql_url})
    settle, write = restores._settle, private_files.write

    def fails(*args: Any) -> None:
        settle(*args)
        message = "the disk is full"
        raise OutOfSpace(message)

    def fails_to_write(path: Path, data: bytes, **options: Any) -> None:
        if path == fresh.keys_dir / "keyring.json":
            message = "the disk is full"
            raise OutOfSpace(message)
        write(path, data, **options)

    with monkeypatch.context() as patch:
        if where == "_settle":
            patch.setattr(restores, "_settle", fails)
        else:
            patch.setattr(private_files, "write", fails_to_write)
        with pytest.raises(OutOfSpace):
            restore(whole[1], fresh, way())
    assert restore(whole[1], fresh, way()).ok
    with archives.opened(fresh) as node:
        assert node.verify.run(archives.the_console(node), "full").findings == []
        assert archives.store(node, archives.instance(9)).status == "stored"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """An archive and its backup, with closed and open segments."""
    place = tmp_path_factory.mktemp("whole")
    (place / "config.toml").write_text("# how it was set\n", encoding="utf-8")
    config = archives.made(place)
    with archives.opened(config, role="serve") as node:
        archives.store(node, archives.instance(1))
        node.core.vault.segments.roll()
        for _ in range(4):
            node.upkeep.tick()
        archives.store(node, archives.instance(2))
        back_up(node, place / "backup", keys=True)
    return config, place / "backup"


def test_nothing_is_put_over_an_archive(tmp_path: Path, whole: tuple[Config, Path]) -> None:
    config = archives.made(tmp_path, own_keys=True)
    with pytest.raises(ConfigurationError):
        restore(whole[1], config, way())
    with archives.opened(config) as node:
        assert node.verify.run(archives.the_console(node)).findings == []
    with archives.opened(config) as node, pytest.raises(ArchiveError, match="another archive"):
        Backup(node.core).run(archives.the_console(node), whole[1])


def test_keys_are_in_it_only_when_asked_for(tmp_path: Path) -> None:
    config, target = archives.made(tmp_path), tmp_path / "backup"
    kit = tmp_path / "kit.txt"
    with archives.opened(config) as node:
        node.keys.slot_add(archives.the_console(node), recovery_kit=kit)
        archives.store(node, archives.instance(1))
        back_up(node, target)
        key = config.key_file.read_bytes().split(b"strongroom-key-v1:")[1].strip()
    assert not list(target.rglob("root.key"))
    assert all(key not in path.read_bytes() for path in target.rglob("*") if path.is_file())
    assert all(path.stat().st_mode & 0o077 == 0 for path in target.rglob("*") if path.is_file())
    with pytest.raises(KeysUnavailable, match="made without keys"):
        put_back(target, tmp_path / "none")
    for number, given in enumerate(({"recovery_kit": kit}, {"key_file": config.key_file})):
        fresh, report = put_back(target, tmp_path / f"new{number}", **given)
        assert report.ok
        with archives.opened(fresh) as node:
            assert len(catalogs.visible(node, "admin", "1.2.3")) == 1
            rows = node.oversight.search(archives.the_console(node), kinds=["key-changed"])
            found = [row for row in rows if row["body"]["detail"]["what"] == "found-changed"]
            assert [row["outcome"] for row in found] == ([0] if "recovery_kit" in given else [])  # the new key file's slot


def test_no_word_of_a_patient_is_in_a_backup(tmp_path: Path, engine: dict[str, Any]) -> None:
    config, target = archives.made(tmp_path, **engine), tmp_path / "backup"
    with archives.opened(config) as node:
        lived(node)
        back_up(node, target, keys=True)
    for path in target.rglob("*"):
        if path.is_file():
            data = path.read_bytes().upper()
            assert b"CANARY" not in data, path
            assert b"YAMADA" not in data, path
            assert b"1.2.3.1.2" not in data, path


def test_a_lost_segment_does_not_cost_the_copy_of_it(tmp_path: Path) -> None:
    config, target = archives.made(tmp_path), tmp_path / "backup"
    with archives.opened(config, role="serve") as node:
        archives.store(node, archives.instance(1))
        node.core.vault.segments.roll()
        for _ in range(4):
            node.upkeep.tick()
        back_up(node, target)
        with node.core.database.read() as tx:
            name = tx.execute(sa.select(segment.c.name)).scalar_one()
    (config.segments_dir / name).unlink()
    with archives.opened(config) as node:
        made = Backup(node.core).run(archives.the_console(node), target)
        assert made.problems == [f"segment {name} is missing (V01); the backup has it"]
    fresh, report = put_back(target, tmp_path / "new", key_file=config.key_file)
    assert report.ok
    with archives.opened(fresh) as node:
        assert len(catalogs.visible(node, "admin", "1.2.3")) == 1


def test_what_comes_while_a_backup_runs_is_in_it_or_not_but_never_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between index and segments: stored, rejected, a key of a study that the index does not know."""
    config, target = archives.made(tmp_path), tmp_path / "backup"
    with archives.opened(config) as node:
        lived(node)
        original = backups.copy_file
        calls = []

        def meanwhile(database: Any, path: Path) -> None:
            original(database, path)
            if not calls:
                calls.append(path)
                archives.store(node, archives.instance(1, study="1.2.9"))
                archives.store(node, archives.instance(30))
                node.remove.reject(archives.the_console(node), "clinical", "instance", "1.2.3.1.3", reason="late")
                node.upkeep.checkpoint()

        monkeypatch.setattr(backups, "copy_file", meanwhile)
        back_up(node, target)
        saw = catalogs.visible(node, "admin", *STUDIES, "1.2.9")
    fresh, report = put_back(target, tmp_path / "new", key_file=config.key_file)
    assert report.ok, report.findings
    assert (report.adopted, report.changes) == (2, 1)
    with archives.opened(fresh) as node:
        assert catalogs.visible(node, "admin", *STUDIES, "1.2.9") == saw
        assert node.verify.run(archives.the_console(node), "full").findings == []


def test_a_drill_says_whether_the_backup_can_be_relied_on(tmp_path: Path) -> None:
    config, target = archives.made(tmp_path), tmp_path / "backup"
    with archives.opened(config, role="serve") as node:
        console = archives.the_console(node)
        with pytest.raises(ArchiveError, match="no backup has been made"):
            Drill(node.core).run(console, None, way())
        archives.store(node, archives.instance(1))
        node.core.vault.segments.roll()
        for _ in range(4):
            node.upkeep.tick()
        archives.store(node, archives.instance(2))
        back_up(node, target)
        contents = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
        report = Drill(node.core).run(console, None, way(mode="full"))
        assert report.ok
        assert report.checked == 2
        assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == contents
        assert not [check for check in node.health.checks() if check.name == "backup drill"]
        one = next((target / "segments").glob("*.seg"))
        one.write_bytes(one.read_bytes()[:-1] + b"x")
        with pytest.raises(ArchiveError) as refused:
            Drill(node.core).run(console, target, way())
        assert refused.value.verdict == "V03"
        assert [check.state for check in node.health.checks() if check.name == "backup drill"] == ["problem"]
        told = node.oversight.search(console, kinds=["verified"])
        assert [row["outcome"] for row in told] == [8, 0]
        assert "V03" in json.dumps(told[0]["body"])
    assert not list(target.glob(".drill-*"))


def test_what_a_killed_drill_left_is_swept_by_the_next_backup_and_drill(tmp_path: Path) -> None:
    config, target = archives.made(tmp_path), tmp_path / "backup"
    with archives.opened(config) as node:
        archives.store(node, archives.instance(1))
        back_up(node, target)
        for sweeps in (lambda: back_up(node, target), lambda: Drill(node.core).run(archives.the_console(node), target, way())):
            left, other = target / ".drill-left", tmp_path / "other"
            (left / "storage" / "keys").mkdir(parents=True)
            (left / "storage" / "keys" / "root.key").write_bytes(b"key")
            with drill_folder.made(target) as living:
                (living / "storage").mkdir()
                sweeps()
                assert not left.exists()
                assert (living / "storage").is_dir()
            assert not living.exists()
        other.mkdir()
        (other / ".drill-bits").mkdir()
        (other / ".drill-bits" / "holes").write_bytes(b"")
        drill_folder.sweep(other)
        assert (other / ".drill-bits" / "holes").exists()


def test_a_snapshot_or_witness_file_that_goes_while_it_is_copied_fails_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, target = archives.made(tmp_path), tmp_path / "backup"
    with archives.opened(config) as node:
        archives.store(node, archives.instance(1))
        node.upkeep.finish()
        [path] = snapshot.files(config.ledger_dir)
        later = path.with_name(f"{int(path.name) + 1:020d}")
        (config.ledger_dir / "witness").mkdir()
        (config.ledger_dir / "witness" / "nas").write_bytes(b"agreed")
        copy = manifest.copy

        def meanwhile(source: Path, *args: Any, **options: Any) -> Any:
            if source == path:
                path.rename(later)
            if source.parent.name == "witness":
                source.unlink()
            return copy(source, *args, **options)

        monkeypatch.setattr(manifest, "copy", meanwhile)
        back_up(node, target)
        ledger = manifest.current(target) / "ledger"
        assert [one.name for one in (ledger / "access").iterdir()] == [later.name]
        assert not list(ledger.glob("witness/*"))


def test_an_old_backup_is_told(tmp_path: Path) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config) as node:
        assert [check.state for check in node.health.banners() if check.name == "backup"] == ["warning"]
        back_up(node, tmp_path / "backup")
        assert not [check for check in node.health.banners() if check.name == "backup"]
    later = msgspec.structs.replace(config, backup=msgspec.structs.replace(config.backup, warn_days=7))
    with archives.opened(later, clock=lambda: utc_now() + timedelta(days=8)) as node:
        assert [check.state for check in node.health.banners() if check.name == "backup"] == ["warning"]
    at = utc_now()
    assert backup_check(at.isoformat(), at + timedelta(days=7), 7).state == "ok"
    assert backup_check(at.isoformat(), at + timedelta(days=7, seconds=1), 7).state == "warning"


def test_paths_in_a_list_that_lead_elsewhere_are_refused(tmp_path: Path, whole: tuple[Config, Path]) -> None:
    config, kept = whole
    keyring = Keyring.open(config)
    said = manifest.glance(manifest.current(kept))
    for path in ("../x", "/etc/passwd", "ledger/../../x", "../../segments/../x", "../../../x", "..", "", "a\\b", "../../segments/a/b"):
        manifest.write(tmp_path, msgspec.structs.replace(said, files=[manifest.File(path, 0, "")]), keyring, utc_now())
        with pytest.raises(ArchiveError, match="leads elsewhere"):
            manifest.verified(tmp_path, keyring)


def test_a_passphrase_opens_a_backup(tmp_path: Path) -> None:
    config = archives.made(tmp_path / "archive")
    with archives.opened(config) as node:
        console = archives.the_console(node)
        archives.store(node, archives.instance())
        node.keys.slot_add(console, passphrase="kq7vw mh3xz pp2ra tn8bd")
        node.keys.slot_remove(console, next(slot["id"] for slot in node.keyring.slots() if slot["kind"] == "key-file"))
        config.key_file.unlink()
        with pytest.raises(InvalidRequest, match="no key file"):
            back_up(node, tmp_path / "backup", keys=True)
        back_up(node, tmp_path / "backup")
    with pytest.raises(KeysUnavailable, match="nothing was given"):
        put_back(tmp_path / "backup", tmp_path / "first")
    with pytest.raises(KeysUnavailable, match="wrong passphrase"):
        put_back(tmp_path / "backup", tmp_path / "second", passphrase=lambda: "not the one it opens with")
    put_there, report = put_back(tmp_path / "backup", tmp_path / "third", passphrase=lambda: "kq7vw mh3xz pp2ra tn8bd")
    assert report.ok
    assert not put_there.key_file.exists()
    assert Keyring.open(put_there, passphrase="kq7vw mh3xz pp2ra tn8bd").archive_uuid == Keyring.open(
        config, passphrase="kq7vw mh3xz pp2ra tn8bd").archive_uuid


@pytest.mark.parametrize("times", [1, 100])
@pytest.mark.parametrize("how", ["rekey", "purge", "shred"])
def test_what_is_destroyed_after_the_segments_were_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, times: int) -> None:
    """Its key is gone from the keystore that is copied last: all is copied again, or the backup says that it could not be made."""
    (tmp_path / "archive").mkdir()
    config = archives.made(tmp_path / "archive")
    studies = [f"1.2.{number}" for number in range(1, 2 + min(times, backups.PASSES))]
    with archives.opened(config) as node:
        console = archives.the_console(node)
        for uid in studies:
            archives.store(node, archives.instance(1, study=uid))
        copied, left = backups._Run._keystore, studies[1:][:times]

        def keystore(self: backups._Run) -> None:
            if left:
                uid = left.pop()
                if how == "rekey":
                    node.rekey.study(console, uid)
                elif how == "shred":
                    node.shred.run(console, uid, reason="asked for")
                else:
                    node.remove.reject(console, "clinical", "study", uid, reason="wrong")
                    node.purge.run(console, "clinical", study=uid, reason="wrong")
            copied(self)

        monkeypatch.setattr(backups._Run, "_keystore", keystore)
        if times > 1:
            with pytest.raises(Unavailable, match="destroyed again and again"):
                Backup(node.core).run(console, tmp_path / "backup", keys=True)
            return
        back_up(node, tmp_path / "backup", keys=True)
        before = {uid: crowd.part10(node, uid) for uid in studies if how == "rekey" or uid == studies[0]}
    fresh, report = put_back(tmp_path / "backup", tmp_path / "new")
    assert report.ok, report.findings
    with archives.opened(fresh) as node:
        assert {uid: crowd.part10(node, uid) for uid in before} == before
        assert len(crowd.every(node, sa.select(instance))) == len(before)


@pytest.mark.parametrize("held", [False, True])
def test_a_purge_that_a_hold_refused_is_no_restores_to_carry_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, held: bool) -> None:
    """Its record is written before the transaction that refuses it, and a backup may hold just that; a committed one is done again."""
    (tmp_path / "archive").mkdir()
    config = archives.made(tmp_path / "archive")
    with archives.opened(config) as node:
        console = archives.the_console(node)
        archives.store(node, archives.instance(1))
        node.remove.reject(console, "clinical", "study", "1.2.3", reason="maybe")
        written, once = Vault.put_event, [True]

        def put_event(self: Vault, *arguments: Any, **named: Any) -> Any:
            ref = written(self, *arguments, **named)
            if once:
                once.clear()
                if held:
                    node.holds.add(console, "clinical", "1.2.3", reason="court")
                back_up(node, tmp_path / "backup", keys=True)
            return ref

        monkeypatch.setattr(Vault, "put_event", put_event)
        node.purge.run(console, "clinical", study="1.2.3", reason="old")
        assert len(crowd.every(node, sa.select(instance))) == held
    fresh, _report = put_back(tmp_path / "backup", tmp_path / "new")
    with archives.opened(fresh) as node:
        assert len(crowd.every(node, sa.select(instance))) == held
        if held:
            node.remove.restore(archives.the_console(node), "clinical", "study", "1.2.3", reason="it was right")
            assert set(crowd.part10(node, "1.2.3")) == {"1.2.3.1.1"}


@pytest.mark.parametrize("address", [
    "postgresql+psycopg://archive:archive@host/archive", "postgresql+psycopg://user:vi%40let%2F7@host:5433/base?sslmode=require",
    "postgresql+psycopg://user@host/base?password=violet7", "postgresql+psycopg://user@host/base",
])
@pytest.mark.parametrize("written", ['url = "{}"', "url = '{}'", 'url = "\\u0070{}"'], ids=["basic", "literal", "escaped"])
def test_a_configuration_is_kept_without_the_password_and_with_all_else(address: str, written: str) -> None:
    shown = written.format(address.removeprefix("p") if "\\u" in written else address)
    text = f'[archive]\nname = "archive"\n\n[database]\n{shown}   # archive\n'
    kept = backups.without_password(text, address)
    for word in ("vi%40let", "vi@let", "violet7", ":archive@"):
        assert word not in kept
    before, after = tomllib.loads(text), tomllib.loads(kept)
    assert after.keys() == before.keys()
    assert after["archive"] == before["archive"]
    if "PASSWORD" not in kept:
        assert kept == text
    elif "\\u" not in written:
        assert after["database"]["url"].partition("?")[0].rpartition("@")[2] == address.partition("?")[0].rpartition("@")[2]
