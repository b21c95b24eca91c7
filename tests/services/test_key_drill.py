"""The drill finds what does not open before it is needed, and says what it did not try."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.config import Config
from archive.db.tables import data_key
from archive.keys import passphrase
from archive.keys.keyring import Keyring
from archive.ledger.audit import Kind
from archive.ledger.log import AuditFilter
from archive.node import Node
from archive.services import index_key
from archive.services.backup import Backup
from archive.services.clock import utc_now
from archive.services.key_drill import Drilled, Ways
from tests.services import archives

GOOD = "kq7vw mh3xz pp2ra tn8bd"


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passphrase, "MEMORY_KIB", 19456)
    monkeypatch.setattr(passphrase, "ITERATIONS", 2)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return archives.made(tmp_path / "archive")


def states(done: Drilled) -> list[str]:
    return [one.state for one in done.tried]


def doctor(node: Node) -> dict[str, str]:
    return {one.name: one.state for one in node.health.checks() if one.name == "key drill"}


def test_every_way_in_a_sample_of_studies_and_the_backup(config: Config, tmp_path: Path) -> None:
    with archives.opened(config) as node:
        console = archives.the_console(node)
        for number in range(3):
            archives.store(node, archives.instance(study=f"1.2.{number}"))
        node.keys.slot_add(console, recovery_kit=tmp_path / "kit.txt")
        node.keys.slot_add(console, passphrase=GOOD)
        assert doctor(node) == {}
        Backup(node.core).run(console, tmp_path / "backup")
        some = node.key_drill.run(console, Ways(key_files=(config.key_file,)))
        assert some.ok
        assert states(some) == ["opens", "not tried", "not tried", "opens", "opens"]
        whole = Ways(key_files=(config.key_file,), recovery_kits=(tmp_path / "kit.txt",), passphrase=lambda: GOOD)
        done = node.key_drill.run(console, whole)
        assert (done.ok, done.studies, set(states(done))) == (True, 3, {"opens"})
        assert doctor(node) == {"key drill": "ok"}
        with node.core.database.read() as tx:
            (row,) = node.core.ledger.search(tx, AuditFilter(kinds=(Kind.VERIFIED,), limit=1))
        assert row.body is not None
        assert row.body["detail"]["mode"] == "key drill"
        assert GOOD not in json.dumps(row.body)
        assert not list(config.run_dir.glob(".key-drill-*"))


def test_a_backup_from_before_the_index_had_its_key_opens(config: Config, tmp_path: Path) -> None:
    with archives.opened(config) as node:
        Backup(node.core).run(archives.the_console(node), tmp_path / "backup")
    index_key.replace(config, Keyring.open(config), at=utc_now())
    with archives.opened(config) as node:
        done = node.key_drill.run(archives.the_console(node), Ways(key_files=(config.key_file,)))
        assert [(one.what, one.state) for one in done.tried][-1] == ("keyring of the last backup", "opens")
        assert done.ok


def test_what_does_not_open(config: Config, tmp_path: Path) -> None:
    other = archives.made(tmp_path / "other", own_keys=True)
    with archives.opened(config) as node:
        console = archives.the_console(node)
        archives.store(node, archives.instance(study="1.2.1"))
        node.keys.slot_add(console, recovery_kit=tmp_path / "kit.txt")
        node.keys.slot_add(console, passphrase=GOOD)
        Keyring.open(other).slot_add(at=node.core.clock(), recovery_kit=tmp_path / "other.txt")
        wrong = Ways(key_files=(other.key_file,), recovery_kits=(tmp_path / "other.txt",), passphrase=lambda: "not the one it opens with")
        done = node.key_drill.run(console, wrong)
        assert not done.ok
        assert states(done)[:3] == ["fails"] * 3
        assert doctor(node) == {"key drill": "problem"}
        with node.core.keystore._database.begin() as tx:
            tx.execute(sa.update(data_key).values(wrapped=bytes(77)))
        done = node.key_drill.run(console, Ways(key_files=(config.key_file,)))
        assert [one.detail[:3] for one in done.tried if one.what == "study key"] == ["V05"]
        assert not done.ok


def test_the_doctor_reminds(config: Config) -> None:
    with archives.opened(config) as node:
        console = archives.the_console(node)
        now = node.core.clock()
        node.key_drill.run(console, Ways(key_files=(config.key_file,)))
    with archives.opened(config, clock=lambda: now + timedelta(days=89)) as node:
        assert doctor(node) == {"key drill": "ok"}
    with archives.opened(config, clock=lambda: now + timedelta(days=91)) as node:
        assert doctor(node) == {"key drill": "warning"}
