"""Taking a rule of forwarding away: of however much, a part at a time, and nothing is added to it meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest
import sqlalchemy as sa

from archive.db.tables import delivery, forward_rule
from archive.services import forward_check, forward_others
from archive.services import forwarding as forwarding_module
from archive.services.forwarding import Forwarding
from tests.dimse.clinic import Clinic, Receiver
from tests.dimse.test_forward import EVERYTHING, it, queue, receiver, rule, run, uids  # noqa: F401 # fixtures
from tests.services.archives import instance, the_console


def removed(it: Clinic, monkeypatch: pytest.MonkeyPatch, between: Callable[[], object]) -> list[int]:  # noqa: F811
    """Take a rule away and return how many deliveries of it there are after each part; something is done between them."""
    counts: list[int] = []
    change = Forwarding._change

    def parts(self: Forwarding, subject: Any, work: Callable[[sa.Connection, datetime], Any]) -> Any:
        with self._core.database.read() as tx:
            counts.append(tx.execute(sa.select(sa.func.count()).where(delivery.c.rule_id == 1)).scalar_one())
        done = change(self, subject, work)
        between()
        return done

    monkeypatch.setattr(forward_others, "AT_ONCE", 2)
    monkeypatch.setattr(Forwarding, "_change", parts)
    it.node.forwarding.remove(the_console(it.node), "all")
    monkeypatch.undo()
    return [*counts, 0]


def test_what_arrived_a_moment_ago_goes_in_parts_too(
    it: Clinic, receiver: Receiver, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(*(instance(n, study="1.2.3") for n in range(1, 8)))
    rule(it)
    it.node.forwarding.look()
    counts = removed(it, monkeypatch, lambda: None)
    assert max(before - after for before, after in pairwise(counts)) == 2
    assert (queue(it), it.node.forwarding.list(the_console(it.node))) == ([], [])


@pytest.mark.parametrize("another", [False, True])
def test_a_rule_that_is_taken_away_looks_at_nothing_more(
    it: Clinic, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, another: bool  # noqa: F811
) -> None:
    """One that was far behind queued on faster than its queue was forgotten, and at its end all of that went at once."""
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(*(instance(n, study="1.2.3") for n in range(1, 21)))
    rule(it)
    if another:
        rule(it, "other", conditions={"attributes": {"StudyInstanceUID": "1.2.3"}})
    monkeypatch.setattr(forwarding_module, "BATCH", 4)
    it.node.forwarding.look()
    counts = removed(it, monkeypatch, it.node.forwarding.look)
    assert max(before - after for before, after in pairwise(counts)) <= 2
    run(it)
    assert len(uids(receiver)) == (20 if another else 0)


class _CutOff(Exception):
    pass


def test_a_rule_whose_end_was_cut_off_sends_nothing_and_is_taken_away_anew(
    it: Clinic, receiver: Receiver, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    def wrong() -> list[Any]:
        with it.node.core.database.read() as tx:
            return list(forward_check.sent_by(it.node.core, tx))

    def cut_off() -> None:
        assert wrong() == []
        raise _CutOff

    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(*(instance(n, study="1.2.3") for n in range(1, 8)))
    rule(it)
    it.node.forwarding.look()
    with pytest.raises(_CutOff):
        removed(it, monkeypatch, cut_off)
    monkeypatch.undo()
    run(it)
    assert (uids(receiver), wrong()) == ([], [])
    assert [one["enabled"] for one in it.node.forwarding.list(the_console(it.node))] == [False]
    it.node.forwarding.remove(the_console(it.node), "all")
    assert (queue(it), wrong()) == ([], [])
    rule(it)
    assert wrong() == []
    with it.node.core.database.begin() as tx:
        tx.execute(sa.update(forward_rule).values(enabled=False))
    assert [finding[0] for finding in wrong()] == ["V12"], "no event said so"
