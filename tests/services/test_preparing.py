"""Which series get their pack and thumbnail before anybody asks, and when."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.access import policy
from archive.db.tables import series, series_pack
from archive.errors import SealBroken
from archive.node import Node
from archive.services import preparing
from archive.services.clock import utc_now
from archive.services.preparing import PATIENCE, SETTLED_AFTER, SURVEY_EVERY, Preparing
from tests.services import archives

LATER = SETTLED_AFTER * 2


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path)) as node:
        yield node


def prepared(node: Node) -> set[str]:
    """The series that have a pack as they are now."""
    kept = sa.select(series.c.series_instance_uid).join(series_pack, series_pack.c.series_pk == series.c.id)
    with node.core.database.read() as tx:
        return set(policy.run_as(tx, policy.system("verify"), kept.where(series_pack.c.generation == series.c.generation)).scalars())


def test_what_was_there_at_the_start_and_what_comes_later(node: Node) -> None:
    made, at = Preparing(node.core), utc_now()
    archives.store(node, archives.instance(1, series="1.5.1"))
    made.tick(at)
    assert prepared(node) == set()  # it may go on
    made.tick(at + LATER)
    assert prepared(node) == {"1.5.1"}
    archives.store(node, archives.instance(2, series="1.5.1"))
    archives.store(node, archives.instance(1, series="1.5.2"))
    assert prepared(node) == set()
    made.tick(at + LATER * 2)
    assert prepared(node) == {"1.5.1", "1.5.2"}


def test_while_others_want_the_processors_it_waits_but_not_for_ever(node: Node) -> None:
    made, at = Preparing(node.core), utc_now()
    archives.store(node, archives.instance(1))
    made.tick(at + LATER, busy=True)
    assert prepared(node) == set()
    made.tick(at + PATIENCE + LATER, busy=True)
    assert len(prepared(node)) == 1
    archives.store(node, archives.instance(2))
    made.tick(at + PATIENCE + LATER * 2)
    assert len(prepared(node)) == 1


def test_a_few_at_once_and_none_forgotten(node: Node) -> None:
    made, at, most = Preparing(node.core), utc_now() + LATER, preparing.PACKS_PER_TICK
    for number in range(most * 2 + 1):
        archives.store(node, archives.instance(1, series=f"1.5.{number + 1}"))
    for done in (most, most * 2, most * 2 + 1):
        made.tick(at)
        assert len(prepared(node)) == done


def test_one_that_cannot_be_read_stands_in_nobodys_way(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    made, at = Preparing(node.core), utc_now() + LATER
    for number in (1, 2):
        archives.store(node, archives.instance(1, series=f"1.5.{number}"))
    build = made._packs.build

    def failing(rows: list[preparing.locate.InstanceRow], datastore: str) -> None:
        if rows[0].series_instance_uid == "1.5.1":
            raise SealBroken("x", verdict="V07")
        build(rows, datastore)

    monkeypatch.setattr(made._packs, "build", failing)
    with pytest.raises(SealBroken):
        made.tick(at)
    made.tick(at + timedelta(seconds=1))
    assert prepared(node) == {"1.5.2"}


def test_after_the_clock_was_set_back(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits until it is as late again as it was."""
    ahead = timedelta(hours=30)
    made, at = Preparing(node.core), utc_now() + LATER
    made.tick(at + ahead)
    archives.store(node, archives.instance(1, series="1.5.1"))
    archives.store(node, archives.instance(1, series="1.5.2"))
    with node.core.database.begin() as tx:
        token = policy.system("verify")
        policy.run_as(tx, token, sa.update(series).where(series.c.series_instance_uid == "1.5.2").values(updated_at=at + ahead))
    made.tick(at)
    assert prepared(node) == {"1.5.1", "1.5.2"}


def test_what_was_not_seen_coming_is_found_by_the_survey(node: Node) -> None:
    made, at = Preparing(node.core), utc_now() + LATER
    console = archives.the_console(node)
    for number in (1, 2):
        archives.store(node, archives.instance(number, series="1.5.1"))
    made.tick(at)
    node.remove.reject(console, "clinical", "instance", "1.5.1.2", reason="x")
    made.tick(at + LATER)
    assert prepared(node) == set()
    made.tick(at + SURVEY_EVERY)
    assert prepared(node) == {"1.5.1"}
