"""A machine's clock that is ahead: what is due by time alone and cannot be undone waits a day, what a person asks for does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.db.tables import association_record, instance
from archive.node import Node, open_node
from archive.services.clock import SteadyClock, utc_now
from archive.services.clock_doubt import SILENT, WAITS, ClockDoubt
from archive.services.health import Health
from tests.services import archives, crowd

DAY, HOUR, YEARS = timedelta(days=1), timedelta(hours=1), timedelta(days=2000)
STORAGE: dict[str, Any] = {"segment_bytes": 4 << 20, "reserve": "0%", "purge_after": 30}


class Machine:
    """Two clocks: one that can be set, one that cannot."""

    def __init__(self) -> None:
        self.at, self.running = utc_now(), 1000.0

    def __call__(self) -> datetime:
        return self.at

    def runs(self, by: timedelta) -> None:
        self.at += by
        self.running += by.total_seconds()


@contextmanager
def opened(folder: Path, machine: Machine) -> Iterator[Node]:
    """The archive as its background worker has it."""
    config = archives.configured(folder, storage=STORAGE)
    with archives.opened(config, role="background", clock=SteadyClock(machine)) as node:
        node.upkeep.doubt = ClockDoubt(node.core, lambda: machine.running)
        yield node


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def folder(tmp_path: Path, machine: Machine) -> Path:
    """An archive with two instances, one rejected, and a line in the log of associations, of two days."""
    archives.made(tmp_path, storage=STORAGE)
    with opened(tmp_path, machine) as node:
        for number in (1, 2):
            archives.store(node, archives.instance(number))
        node.remove.reject(archives.the_console(node), "clinical", "instance", "1.2.3.1.1", reason="test")
        with node.core.database.begin() as tx:
            tx.execute(sa.insert(association_record).values(
                at=machine.at, opened_at=machine.at, peer="", calling_ae_title="A", called_ae_title="B", address="192.0.2.1", tls=False,
                association="1", outcome="released", reason="", failed=0, negotiation={}, operations={}, repeats=1,
            ))
        for number in range(8):
            node.accounts.add_group(archives.the_console(node), f"g{number}")
            machine.runs(6 * HOUR)
            node.upkeep.tick()
    return tmp_path


def there(node: Node) -> tuple[int, int]:
    """How many instances and lines there are after a tick."""
    node.upkeep.tick()
    return len(crowd.every(node, sa.select(instance.c.id))), len(crowd.every(node, sa.select(association_record.c.id)))


def told(node: Node) -> list[str]:
    return [one.detail for one in Health(node.core).checks() if one.name == "clock"]


def test_at_a_start_years_ahead_all_that_cannot_be_undone_waits_a_day(folder: Path, machine: Machine) -> None:
    machine.at += YEARS
    with opened(folder, machine) as node:
        assert there(node) == (2, 1)
        assert "the ledger knows nothing from" in told(node)[0]
        machine.runs(WAITS - HOUR)
        assert there(node) == (2, 1)
        machine.runs(HOUR)
        assert there(node) == (1, 0)
        assert told(node) == []


def test_a_restart_neither_ends_nor_prolongs_it(folder: Path, machine: Machine) -> None:
    machine.at += YEARS
    for _ in range(4):
        with opened(folder, machine) as node:
            assert there(node) == (2, 1)
            assert told(node)
        machine.runs(WAITS / 4)
    with opened(folder, machine) as node:
        assert there(node) == (1, 0)
        machine.runs(HOUR)
    with opened(folder, machine) as node:
        assert there(node) == (1, 0)
        assert told(node) == []


def test_set_right_meanwhile_nothing_has_gone_and_nothing_waits(folder: Path, machine: Machine) -> None:
    before = machine.at
    machine.at += YEARS
    with opened(folder, machine) as node:
        assert there(node) == (2, 1)
        machine.runs(HOUR)
        assert there(node) == (2, 1)
        machine.at = before + HOUR
        assert there(node) == (2, 1)
        assert told(node) == []
        assert not node.upkeep.doubt.waits()
        machine.runs(HOUR)
    with opened(folder, machine) as node:
        assert there(node) == (2, 1)
        assert not node.upkeep.doubt.waits()


def test_set_back_by_too_little_it_waits_anew(folder: Path, machine: Machine) -> None:
    machine.at += YEARS
    with opened(folder, machine) as node:
        assert there(node) == (2, 1)
        machine.runs(HOUR)
        machine.at -= 3 * DAY
        assert there(node) == (2, 1)
        machine.runs(WAITS - HOUR)
        assert there(node) == (2, 1)
        machine.runs(HOUR)
        assert there(node) == (1, 0)


def test_a_clock_that_is_set_ahead_while_the_archive_runs_is_seen(folder: Path, machine: Machine) -> None:
    with opened(folder, machine) as node:
        assert there(node) == (2, 1)
        machine.runs(DAY)
        machine.at += HOUR / 2
        assert there(node) == (2, 1)
        assert told(node) == []
        machine.at += YEARS
        assert there(node) == (2, 1)
        assert "set ahead by 48" in told(node)[0]
        machine.runs(WAITS / 2)
        assert there(node) == (2, 1)
    with opened(folder, machine) as node:
        assert there(node) == (2, 1)
        machine.runs(WAITS / 2)
        assert there(node) == (1, 0)


def test_hours_that_went_by_are_no_jump(folder: Path, machine: Machine) -> None:
    with opened(folder, machine) as node:
        for _ in range(31):
            machine.runs(DAY)
            node.upkeep.tick()
        assert there(node)[0] == 1


def test_what_a_person_asks_for_is_done_at_once(folder: Path, machine: Machine) -> None:
    machine.at += YEARS
    with opened(folder, machine) as node:
        assert there(node) == (2, 1)
        done = node.purge.run(archives.the_console(node), before=machine.at - 30 * DAY, reason="test")
        assert (done.instances, there(node)) == (1, (1, 1))


def test_an_archive_that_was_quiet_and_ran_is_not_doubted(folder: Path, machine: Machine) -> None:
    with opened(folder, machine) as node:
        for _ in range(31):
            machine.runs(DAY)
            node.upkeep.checkpoint()
    with opened(folder, machine) as node:
        assert there(node)[0] == 1


def test_off_for_less_than_two_days_nothing_waits(folder: Path, machine: Machine) -> None:
    machine.runs(SILENT - HOUR)
    with opened(folder, machine) as node:
        node.upkeep.tick()
        assert not node.upkeep.doubt.waits()


def test_doctor_tells_that_the_archives_clock_stands(folder: Path, machine: Machine) -> None:
    with opened(folder, machine) as node:
        node.upkeep.tick()
        assert told(node) == []
        machine.at -= 2 * HOUR
        assert "was set back" in told(node)[0]
        machine.at += 2 * HOUR
        assert told(node) == []


def test_a_command_given_meanwhile_hides_nothing(folder: Path, machine: Machine) -> None:
    machine.at += YEARS
    command = open_node(archives.configured(folder, storage=STORAGE), clock=SteadyClock(machine))
    Health(command.core).checks()
    command.close()
    with opened(folder, machine) as node:
        assert there(node) == (2, 1)
