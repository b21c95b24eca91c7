"""A backup that is put onto a server's database: what that does not take costs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from archive.access.grants import Target
from archive.node import Node
from archive.services import restore as restore_module
from archive.services.restore import restore
from tests.services import archives, crowd
from tests.services.test_backup import back_up, way
from tests.services.test_rebuild_server import LONG


def backed_up(tmp_path: Path) -> Path:
    """Two instances of a study, a patient with a grant, one rejected, and some that no index of PostgreSQL takes."""
    with archives.opened(archives.made(tmp_path)) as node:
        console = archives.the_console(node)
        archives.store(node, archives.instance(1))
        archives.store(node, archives.instance(1, study="1.7", PatientID=LONG))
        archives.store(node, archives.instance(2, PatientID=LONG))  # held
        archives.store(node, archives.instance(2))
        archives.store(node, archives.instance(3))
        node.remove.reject(console, "clinical", "instance", "1.2.3.1.3", reason="test")
        node.accounts.add_user(console, "doc", password=archives.PASSWORD)
        node.accounts.add_grant(console, to="doc", role="radiologist", target=Target("study", "1.2.3"))
        back_up(node, tmp_path / "backup", keys=True)
    return tmp_path / "backup"


def onto(tmp_path: Path, url: str) -> Any:
    (tmp_path / "server").mkdir(exist_ok=True)
    (tmp_path / "server" / "database-url").write_text(url)
    return archives.configured(tmp_path / "server")


def seen(node: Node) -> set[str]:
    found = set(crowd.part10(node, "1.2.3"))
    assert {one.sop_instance_uid for one in node.retrieve.instances(archives.user(node, "doc"), "clinical", "1.2.3")} == found
    return found


def test_a_value_no_index_takes_ends_no_restore(tmp_path: Path, postgresql_url: str) -> None:
    target, server = backed_up(tmp_path), onto(tmp_path, postgresql_url)
    report = restore(target, server, way(mode="full"))
    (told,) = report.findings
    assert (told["code"], "longer than this database's index takes" in told["detail"]) == ("V12", True)
    kept = {path: path.read_bytes() for path in server.segments_dir.iterdir()}
    for _ in range(2):
        with archives.opened(server) as node:
            assert seen(node) == {"1.2.3.1.1", "1.2.3.1.2"}
            assert len(node.verify.run(archives.the_console(node), "full").findings) == 1, "what was named, and nothing else"
            node.remove.restore(archives.the_console(node), "clinical", "instance", "1.2.3.1.3", reason="test")
            assert seen(node) == {"1.2.3.1.1", "1.2.3.1.2", "1.2.3.1.3"}
            node.remove.reject(archives.the_console(node), "clinical", "instance", "1.2.3.1.3", reason="test")
    for path, data in kept.items():
        assert path.read_bytes()[:len(data)] == data, "what it does not take is kept"


def test_one_that_was_cut_short_then_is_made_anew(tmp_path: Path, postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, server = backed_up(tmp_path), onto(tmp_path, postgresql_url)
    write = restore_module.private_files.write

    def cut_short(path: Path, *given: Any, **options: Any) -> None:
        if path == server.keys_dir / "keyring.json":
            raise KeyboardInterrupt  # the server is filled, and it is no archive yet
        write(path, *given, **options)

    monkeypatch.setattr(restore_module.private_files, "write", cut_short)
    monkeypatch.setattr(restore_module, "_forget", lambda *_: None)  # a kill leaves it all
    with pytest.raises(KeyboardInterrupt):
        restore(target, server, way())
    monkeypatch.undo()
    assert len(restore(target, server, way(mode="full")).findings) == 1
    with archives.opened(server) as node:
        assert seen(node) == {"1.2.3.1.1", "1.2.3.1.2"}
