"""Webhooks whose world changes meanwhile: one that is removed gets nothing more, and a clock that is set back holds none up."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from archive.node import Node
from archive.services import outgoing
from tests.services import archives

A, B = "https://example.com/a", "https://example.com/b"


class Clock:
    by = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.by


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def node(tmp_path: Path, clock: Clock) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path), clock=clock) as opened:
        yield opened


def test_one_that_is_removed_while_another_is_slow_gets_nothing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    console, sent = archives.the_console(node), []
    node.webhooks.add(console, url=A, owner="admin")
    second = node.webhooks.add(console, url=B, owner="admin")

    def post(url: str, *_more: Any) -> int:
        sent.append(url)
        if url == A:
            node.webhooks.remove(console, second["id"])
        return 200

    monkeypatch.setattr(outgoing, "post", post)
    archives.store(node, archives.instance(1))
    node.webhooks.tick()
    assert sent == [A]


def test_a_clock_that_is_set_back_holds_nothing_up(node: Node, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    monkeypatch.setattr(outgoing, "post", lambda url, *_more: sent.append(url) or 200)
    clock.by = timedelta(days=1)
    node.webhooks.add(archives.the_console(node), url=A, owner="admin")
    archives.store(node, archives.instance(1))
    assert node.webhooks.tick() == 1
    clock.by = timedelta(0)
    archives.store(node, archives.instance(2))
    assert node.webhooks.tick() == 1
    assert sent == [A, A]
