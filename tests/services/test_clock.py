"""The clock of a running archive against a plain one that knows all it was told."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from archive.services.clock import STANDS, SteadyClock, machine_now, utc_now

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
STEPS = st.one_of(
    st.timedeltas(min_value=timedelta(hours=-60), max_value=timedelta(hours=60)),
    st.sampled_from([
        timedelta(0), -STANDS, STANDS, -STANDS - timedelta(microseconds=1), -STANDS + timedelta(microseconds=1), timedelta(microseconds=-1),
        timedelta(days=-20000), timedelta(days=20000),
    ]),
)


class Plain:
    """The rule in one line, over all that was seen since the machine's clock was last believed."""

    def __init__(self) -> None:
        self.seen: list[datetime] = []

    def at(self, now: datetime) -> datetime:
        if any(one - now > STANDS for one in self.seen):
            self.seen.clear()
        self.seen.append(now)
        return max(self.seen)

    def heard(self, at: datetime, now: datetime) -> None:
        if at - now <= STANDS:
            self.seen.append(at)


@given(st.lists(st.tuples(st.sampled_from(["asked", "heard"]), STEPS), max_size=30))
def test_it_is_the_plain_one(steps: list[tuple[str, timedelta]]) -> None:
    now, plain = [NOON], Plain()
    clock = SteadyClock(lambda: now[0])
    for what, by in steps:
        if what == "heard":
            clock.heard(now[0] + by)
            plain.heard(now[0] + by, now[0])
            continue
        if abs(now[0] + by - NOON) < timedelta(days=200_000):
            now[0] += by
        assert clock() == plain.at(now[0])
        assert machine_now(clock) == now[0]


@given(st.lists(st.timedeltas(min_value=-STANDS, max_value=STANDS), max_size=30))
def test_within_the_bound_it_never_goes_back(offs: list[timedelta]) -> None:
    """Offs of one right time, as a machine's clock wanders that is half the bound off at most."""
    now = [NOON]
    clock = SteadyClock(lambda: now[0])
    last = clock()
    for number, off in enumerate(offs):
        now[0] = NOON + timedelta(seconds=number) + off / 2
        at = clock()
        assert at >= max(last, now[0])
        last = at


def test_a_thread_that_read_the_machine_early_takes_nothing_back() -> None:
    second, found = timedelta(seconds=1), []
    other = threading.Thread(target=lambda: found.append(clock()))
    times = iter([NOON, NOON + second, NOON - second])

    def machine() -> datetime:
        at = next(times)
        if at == NOON:
            other.start()
            other.join(0.2)  # it comes between, if it can
        return at

    clock = SteadyClock(machine)
    assert clock() == NOON
    other.join()
    assert found == [clock()] == [NOON + second]


def test_a_plain_clock_is_its_own_machine() -> None:
    assert machine_now(lambda: NOON) == NOON
    before = utc_now()
    assert before <= SteadyClock()() <= utc_now()
