"""A webhook slipped in, made another or taken away behind the archive's back is found; one made in order is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.db.tables import principal, webhook
from archive.node import Node
from tests.services import archives
from tests.services.test_rebuild import lose, rebuild

A, B = "https://example.com/a", "https://example.com/b"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path)) as opened:
        console = archives.the_console(opened)
        opened.accounts.add_user(console, "mia")
        for url in (A, B):
            opened.webhooks.add(console, url=url, owner="mia")
        opened.webhooks.remove(console, 2)
        yield opened


def found(node: Node) -> list[tuple[str, str]]:
    return [(one.code, one.detail) for one in node.verify.run(archives.the_console(node), "quick").findings]


def _added(tx: sa.Connection) -> None:
    row = dict(tx.execute(sa.select(webhook).where(webhook.c.id == 1)).mappings().one()) | {"id": 3, "url": "https://example.org/"}
    tx.execute(sa.insert(webhook).values(row))


def _given(tx: sa.Connection) -> None:
    other = sa.select(principal.c.id).where(principal.c.name == "admin").scalar_subquery()
    tx.execute(sa.update(webhook).where(webhook.c.id == 1).values(principal_id=other))


@pytest.mark.parametrize(("edit", "said"), [
    (_added, "the webhook 3 was added by no event"),
    (_given, "the webhook 1 is not the one that was added"),
    (lambda tx: tx.execute(sa.update(webhook).where(webhook.c.id == 1).values(url=B)), "the webhook 1 is not the one that was added"),
    (lambda tx: tx.execute(sa.update(webhook).values(removed_at=None)), "the webhook 2 counts, or ended, and no event says so"),
    (lambda tx: tx.execute(sa.delete(webhook).where(webhook.c.id == 1)), "the webhook 1 is gone"),
])
def test_a_webhook_edited_behind_our_back(node: Node, edit: Callable[[sa.Connection], Any], said: str) -> None:
    assert found(node) == []
    with node.core.database.begin() as tx:
        edit(tx)
    assert found(node) == [("V12", said)]


def test_one_whose_owner_was_removed_is_the_one_that_was_added(node: Node) -> None:
    node.accounts.remove_user(archives.the_console(node), "mia")
    assert found(node) == []


def test_one_that_a_lost_index_has_lost_is_not_said_to_be_gone(tmp_path: Path) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config, role="serve") as node:
        console = archives.the_console(node)
        node.webhooks.add(console, url=A, owner="admin")
        node.upkeep.finish()
        node.webhooks.add(console, url=B, owner="admin")
        node.upkeep.checkpoint()
    lose(config)
    rebuild(config)
    with archives.opened(config) as node:
        assert [row["url"] for row in node.webhooks.list(archives.the_console(node))] == [A]
        assert [detail for _code, detail in found(node) if "webhook" in detail] == []
