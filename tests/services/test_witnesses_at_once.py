"""Two who ask one witness at once, the background and a command, say: the further agreement stays, and no alarm is false."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.config import Config, WitnessAt
from archive.db.tables import witness
from archive.ledger import notes, witnessed
from archive.node import Node, open_node
from archive.services import witness_calls
from archive.witness import memory
from archive.witness.__main__ import forget
from tests.services import archives
from tests.services.test_witnesses import Clock, Witness, ask, clock, config, grow, kept, node, outside, said
from tests.services.witnessing import NAME

__all__ = ["Clock", "clock", "config", "node", "outside"]


@pytest.fixture
def another(node: Node, config: Config) -> Iterator[Node]:
    with closing(open_node(config, role="serve", clock=node.core.clock)) as opened:
        yield opened


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Let something happen once, after the witness has cosigned and before that is kept."""
    genuine, waiting = witness_calls.Line.add_checkpoint, []

    def add_checkpoint(self: witness_calls.Line, body: bytes) -> witness_calls.Said:
        answer = genuine(self, body)
        if answer.status == 200 and waiting:
            waiting.pop()()
        return answer

    monkeypatch.setattr(witness_calls.Line, "add_checkpoint", add_checkpoint)
    return waiting.append


def newest(node: Node) -> int:
    note = witnessed.agreed(node.config.ledger_dir, "nas")
    assert note is not None
    return notes.parse(note).size


def test_the_further_agreement_stays(
    node: Node, another: Node, outside: Witness, between: Callable[[Callable[[], object]], None]
) -> None:
    grow(node)
    with outside.running():
        assert ask(node) == ""
        grow(node, 2)

        def meanwhile() -> None:
            grow(node, 3)
            assert ask(another) == ""

        between(meanwhile)
        assert ask(node) == ""
        sizes = [size for size, _at in kept(node)]
        [shown] = node.witnesses.show(archives.the_console(node))
        assert len(sizes) == 2
        assert sizes[-1] == shown["size"] == newest(node)
        assert said(node) == []
        grow(node, 4)
        assert ask(node) == ""
        assert kept(node)[-1][0] == newest(node) > sizes[-1]


def test_a_witness_that_begins_anew_is_told_once(
    node: Node, another: Node, outside: Witness, between: Callable[[Callable[[], object]], None]
) -> None:
    grow(node)
    with outside.running():
        assert ask(node) == ""
        grow(node, 2)
    assert forget(outside.folder, notes.origin_of(node.keyring.archive_uuid)) > 0
    with outside.running():

        def meanwhile() -> None:
            grow(node, 3)
            assert ask(another) == ""

        between(meanwhile)
        assert ask(node) == ""
    assert said(node) == [("begins anew", 4)]
    assert [size for size, _at in kept(node)] == [newest(node)], "of what it forgot nothing is kept"


def test_a_witness_that_is_removed_while_it_is_asked(
    node: Node, outside: Witness, between: Callable[[Callable[[], object]], None]
) -> None:
    grow(node)

    def remove() -> None:
        with node.core.database.begin() as tx:
            tx.execute(sa.delete(witness))

    with outside.running():
        between(remove)
        assert "removed" in ask(node)
    assert kept(node) == []
    assert witnessed.agreed(node.config.ledger_dir, "nas") is None


def test_two_who_ask_a_new_witness_at_once_on_a_server(tmp_path: Path, postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = WitnessAt(name="nas", url="http://127.0.0.1:1", key=str(memory.make(tmp_path / "outside", NAME)))
    (tmp_path / "server").mkdir()
    with archives.opened(archives.made(tmp_path / "server", database={"url": postgresql_url})) as node:
        waiting, known = [True], []

        def at() -> datetime:
            if waiting:
                waiting.clear()
                thread = threading.Thread(target=lambda: known.append(node.witnesses._known(one)))
                thread.start()
                thread.join()
            return node.core.clock()

        monkeypatch.setattr(node.witnesses, "_clock", at)
        known.append(node.witnesses._known(one))
        assert known == [(0, 0), (0, 0)]
        with node.core.database.read() as tx:
            assert tx.execute(sa.select(witness.c.name)).scalars().all() == ["nas"]
