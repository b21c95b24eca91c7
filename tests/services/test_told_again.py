"""After an index was lost the ledger alone knows of alerts, and of reviews that were closed since the last snapshot."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from archive.db.tables import archive_state
from archive.ledger.audit import Event, Kind
from archive.node import Node
from archive.services.alert_look import Found
from archive.services.alerts import SEEN
from archive.services.clock import utc_now
from archive.services.review_rows import Chosen
from archive.services.snapshot import Snapshots
from tests.services import archives, crowd
from tests.services.test_rebuild import lose, rebuild


def alerts(node: Node) -> list[tuple[Any, ...]]:
    return [
        (row["id"], row["rule"], row["severity"], row["who"], row["detail"]) for row in node.alerts.list(archives.the_console(node))
    ]


def raise_(node: Node, rule: str, **detail: Any) -> None:
    who = archives.user(node, "mia").principal_id
    with node.core.database.begin() as tx:
        n = node.core.ledger.record(tx, Event(Kind.READ, subject=archives.user(node, "mia")), at=node.core.clock())
        node.alerts.raise_at_once(tx, Found(rule, n, str(who), detail, None if rule == "spraying" else who), node.core.clock())


def test_open_alerts_and_closed_reviews_come_back(tmp_path: Path, usually: dict[str, Any]) -> None:
    config = archives.made(tmp_path, **usually)
    with archives.opened(config) as node:
        console = archives.the_console(node)
        node.accounts.add_user(console, "mia", roles=["auditor"])
        first = node.reviews.start(console, "first", due=utc_now() + timedelta(days=7), chosen=Chosen())["id"]
        open_ = node.reviews.start(console, "open", due=utc_now() + timedelta(days=7), chosen=Chosen(grants=False))["id"]
        node.upkeep.checkpoint()
        Snapshots(node.core).write()
        for rule in ("watched-record", "spraying", "enumeration", "mass-look-up"):
            raise_(node, rule, count=3)
        ended = {row["rule"]: row["id"] for row in node.alerts.list(console)}
        node.alerts.acknowledge(console, ended["enumeration"], note="asked")
        node.alerts.acknowledge(console, ended["mass-look-up"], note="asked")
        second = node.reviews.start(console, "second", due=utc_now() + timedelta(days=7), chosen=Chosen(roles=False))["id"]
        node.reviews.close(console, first, undecided="keep")
        node.reviews.close(console, second, undecided="keep")
        node.upkeep.checkpoint()
        before, told = alerts(node), max(row["last_event"] for row in node.alerts.list(console, every=True))
        closed = {number: node.reviews.show(console, number) for number in (first, second)}
    assert len(before) == 2
    lose(config)
    rebuild(config)
    with archives.opened(config) as node:
        console = archives.the_console(node)
        assert alerts(node) == before
        with node.core.database.read() as tx:
            assert tx.execute(sa.select(archive_state.c.value).where(archive_state.c.name == SEEN)).scalar() == str(told + 1)
        for number, was in closed.items():
            now = node.reviews.show(console, number)
            assert {name: now[name] for name in ("title", "state", "closed_at", "leaf", "items")} == {
                name: was[name] for name in ("title", "state", "closed_at", "leaf", "items")
            }
        assert node.reviews.show(console, open_)["state"] == "open"
        raise_(node, "export-volume")
        assert len({row[0] for row in alerts(node)}) == 3
        assert node.reviews.start(console, "next", due=utc_now() + timedelta(days=7), chosen=Chosen())["id"] > second
        crowd.check_sound(node)
