"""An alert that is taken away or closed in the database is found by verify; one that was acknowledged in order is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.db.tables import alert, archive_state
from archive.ledger.audit import Event, Kind
from archive.node import Node
from archive.services.alert_check import AT_ONCE
from archive.services.alert_look import Found
from archive.services.alerts import SEEN
from tests.services import archives
from tests.services.test_rebuild import lose, rebuild


def raised(node: Node) -> list[int]:
    """Two alerts, the second of which is acknowledged."""
    console = archives.the_console(node)
    node.alerts.tick()
    for _ in range(2):
        with node.core.database.begin() as tx:
            found = Event(Kind.VERIFIED, outcome=8, detail={"mode": "quick", "checked": 1, "findings": ["V01:1"]})
            node.core.ledger.record(tx, found, at=node.core.clock())
        node.alerts.tick()
        first = [row["id"] for row in node.alerts.list(console)]
        if len(first) == 1 and _ == 0:
            node.alerts.acknowledge(console, first[0], note="a disk was exchanged")
    return [row["id"] for row in node.alerts.list(console, every=True)]


def found(node: Node) -> list[str]:
    checked = node.verify.run(archives.the_console(node), "quick").findings
    return [one.detail for one in checked if "alert" in one.detail]


@pytest.mark.parametrize(("edit", "said"), [
    (lambda: sa.delete(alert).where(alert.c.acknowledged_at.is_(None)), "is gone"),
    (lambda: sa.update(alert).where(alert.c.acknowledged_at.is_(None)).values(acknowledged_at=alert.c.raised_at), "closed by no event"),
    (lambda: sa.update(alert).where(alert.c.acknowledged_at.is_(None)).values(rule="spraying"), "closed by no event"),
])
def test_an_alert_edited_behind_our_back(tmp_path: Path, edit: Callable[[], Any], said: str) -> None:
    with archives.opened(archives.made(tmp_path)) as node:
        assert len(raised(node)) == 2
        assert found(node) == []
        with node.core.database.begin() as tx:
            tx.execute(edit())
        (one,) = found(node)
    assert said in one


def _looked(value: str | None) -> Callable[[], Any]:
    row = archive_state.c.name == SEEN
    return lambda: sa.delete(archive_state).where(row) if value is None else sa.update(archive_state).where(row).values(value=value)


@pytest.mark.parametrize(("edit", "said"), [
    (_looked(None), "up to where alerts were looked for is gone"),
    (_looked("100000"), "alerts were looked for further than the log goes"),
    (_looked("x"), "alerts were looked for further than the log goes"),
    (_looked("0"), ""),
])  # fmt: skip
def test_a_look_moved_behind_our_back(tmp_path: Path, edit: Callable[[], Any], said: str) -> None:
    """Back, it finds the same again; that it was moved ahead within the log no event says."""
    with archives.opened(archives.made(tmp_path)) as node:
        node.alerts.tick()
        assert found(node) == []
        raised(node)
        with node.core.database.begin() as tx:
            assert tx.execute(edit()).rowcount
        details = found(node)
        assert len(details) == bool(said)
        assert all(one.startswith(said) for one in details)
        with node.core.database.begin() as tx:
            event = Event(Kind.VERIFIED, outcome=8, detail={"mode": "full", "checked": 1, "findings": ["V01:1"]})
            n = node.core.ledger.record(tx, event, at=node.core.clock())
        node.alerts.tick()
        assert n in {row["last_event"] for row in node.alerts.list(archives.the_console(node))}, "what came meanwhile is told"
        assert found(node) == [], "the next look notes it anew"


def test_who_never_looked_has_no_look_taken_away(tmp_path: Path) -> None:
    with archives.opened(archives.made(tmp_path)) as node:
        with node.core.database.begin() as tx:
            node.alerts.raise_at_once(tx, Found(AT_ONCE, 1, "somebody"), node.core.clock())
        assert found(node) == []


def test_after_a_lost_index_those_that_wait_are_there(tmp_path: Path) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config, role="serve") as node:
        raised(node)
        node.upkeep.finish()
    lose(config)
    rebuild(config)
    with archives.opened(config) as node:
        assert len(node.alerts.list(archives.the_console(node))) == 1
        assert found(node) == []
