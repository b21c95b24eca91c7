"""A row of access_study that is lost is told, and comes back by itself; on both engines."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.access import policy
from archive.access.grants import Target
from archive.db.tables import access_study
from archive.index import access_study as derived
from archive.node import Node
from archive.services import candidates, upkeep
from tests.services import archives
from tests.services.test_backup import back_up, put_back

TOKEN = policy.system("verify")
STUDIES = ("1.2.3", "1.2.4", "1.2.5")


@pytest.fixture
def folder(tmp_path: Path, engine: dict[str, Any]) -> Path:
    archives.made(tmp_path, **engine)
    return tmp_path


def lived(node: Node) -> None:
    console = archives.the_console(node)
    node.accounts.add_user(console, "bob", password=archives.PASSWORD)
    for number, study in enumerate(STUDIES):
        assert archives.store(node, archives.instance(1, study=study, PatientID=f"P{number}")).status == "stored"
        node.accounts.add_grant(console, to="bob", role="referrer", target=Target("study", study))


def rows(node: Node) -> set[Any]:
    with node.core.database.read() as tx:
        return {tuple(row) for row in policy.run_as(tx, TOKEN, sa.select(access_study))}


def lose(node: Node) -> None:
    with node.core.database.begin() as tx:
        policy.run_as(tx, TOKEN, sa.delete(access_study))


def told(node: Node) -> list[str]:
    return [one.code for one in node.verify.run(archives.the_console(node), "quick").findings]


def warned(node: Node) -> bool:
    return "searches" in {check.name for check in node.health.checks() if check.state == "warning" and check.remedy}


def test_what_is_lost_is_told_and_made_good_at_the_start(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with archives.opened(archives.configured(folder)) as node:
        lived(node)
        whole = rows(node)
        assert (len(whole), told(node)) == (3, [])
        lose(node)
        assert (told(node), warned(node)) == (["V10"], False)
    with archives.opened(archives.configured(folder)) as node, caplog.at_level(logging.WARNING, "archive.services"):
        node.upkeep.tick()
        assert (rows(node), told(node), warned(node)) == (whole, [], True)
        assert [one.getMessage() for one in caplog.records] == ["searches lacked entries of 3 studies; 3 entries were added"]


def test_it_comes_back_in_small_steps_and_is_looked_for_rarely(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "STUDIES_AT_MOST", 2)
    with archives.opened(archives.configured(folder)) as node:
        lived(node)
        whole = rows(node)
        lose(node)
        node.upkeep.tick()
        assert len(rows(node)) == 2
        node.upkeep.tick()
        assert rows(node) == whole
        lose(node)
        node.upkeep.tick()
        assert rows(node) == set()
        node.upkeep._healed_at -= upkeep.HEAL_EVERY
        node.upkeep.tick()
        assert len(rows(node)) == 2


def test_a_warning_ends(folder: Path) -> None:
    with archives.opened(archives.configured(folder)) as node:
        lived(node)
        lose(node)
        assert not candidates.heal(node.core, node.core.clock() - candidates.TOLD_FOR - timedelta(minutes=1))
        assert (len(rows(node)), warned(node)) == (3, False)


def test_a_row_that_outlived_its_grant_is_no_finding(folder: Path) -> None:
    with archives.opened(archives.configured(folder)) as node:
        lived(node)
        console = archives.the_console(node)
        for grant in node.accounts.list_grants(console, to="bob"):
            node.accounts.revoke_grant(console, grant["id"])
        assert (len(rows(node)), told(node)) == (3, [])
        with node.core.database.begin() as tx:
            assert derived.refill(tx, node.core.clock()) == 0


def test_a_backup_with_a_hole_is_whole_when_restored(folder: Path, tmp_path: Path) -> None:
    with archives.opened(archives.configured(folder)) as node:
        lived(node)
        whole = rows(node)
        lose(node)
        back_up(node, tmp_path / "backup", keys=True)
    fresh, report = put_back(tmp_path / "backup", tmp_path / "new")
    assert report.ok, report.findings
    with archives.opened(fresh) as node:
        assert (len(rows(node)), told(node), warned(node)) == (len(whole), [], False)
