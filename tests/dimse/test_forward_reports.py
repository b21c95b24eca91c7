"""Reports of storage commitment that a destination does not get keep nothing else from it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.access.subject import Subject
from archive.db.tables import delivery
from archive.services.commitments import Reference
from archive.services.deliveries import FIRST_WAIT, LONGEST_WAIT
from tests.dimse.clinic import Clinic, Receiver
from tests.dimse.test_forward import EVERYTHING, ONE, due_now, forwarding, queue, rule, run, uids
from tests.services.archives import CT, instance, the_console


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Of one title, and of no other."""
    made = Receiver("DST")
    made._server.ae.require_called_aet = True
    yield made
    made.close()


@pytest.fixture
def it(tmp_path: Path, receiver: Receiver) -> Iterator[Clinic]:
    """One instance that goes to a destination, and was asked about from there under another title."""
    with forwarding(tmp_path) as made:
        console = the_console(made.node)
        peer = made.node.peers.add(
            console, "DST", ["DST", "CT1"], networks=["127.0.0.1/32"], address=f"127.0.0.1:{receiver.port}",
            roles=["modality", "workstation"],
        )
        made.grant("DST", EVERYTHING)
        made.put(instance(1, study="1.2.3"))
        them = Subject(peer["id"], "DST", "device", "dimse", peer_id=peer["peer_id"])
        for transaction in ("1.9.1", "1.9.2"):
            made.node.commitments.request(them, "clinical", transaction, [Reference(CT, ONE)], calling_ae_title="CT1")
        yield made


def times(it: Clinic) -> list[Any]:
    with it.node.core.database.read() as tx:
        return list(tx.execute(sa.select(delivery.c.run_at).where(delivery.c.kind == "report")).scalars())


def test_who_answers_under_one_title_alone_gets_what_goes_there(it: Clinic, receiver: Receiver) -> None:
    """A destination whose reports are rejected waited with everything else, up to an hour each time."""
    run(it)
    assert queue(it) == [("waiting", 0, "the association was rejected")] * 2
    rule(it)
    run(it)
    assert uids(receiver) == [ONE]
    state, = it.node.deliveries.destinations()
    assert (state["state"], state["failures"]) == ("ready", 0)
    it.put(instance(2, study="1.2.3"))
    due_now(it)
    run(it)
    assert uids(receiver) == [ONE, "1.2.3.1.2"]
    assert queue(it) == [("done", 0, "")] * 2 + [("waiting", 0, "the association was rejected")] * 2


def test_what_was_rejected_is_asked_again_later_and_later(it: Clinic) -> None:
    run(it)
    at = it.node.core.clock()
    assert all(at < one <= at + 2 * FIRST_WAIT for one in times(it))
    for age, least in ((timedelta(minutes=10), timedelta(minutes=9)), (timedelta(days=3), LONGEST_WAIT - timedelta(minutes=1))):
        with it.node.core.database.begin() as tx:
            tx.execute(sa.update(delivery).values(created_at=at - age, run_at=at - timedelta(seconds=1)))
        run(it)
        assert all(at + least < one <= at + LONGEST_WAIT + timedelta(minutes=1) for one in times(it))
    assert [state for state, _, _ in queue(it)] == ["waiting"] * 2


def test_a_report_that_cannot_be_made_ready_keeps_nothing_else(it: Clinic, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_number: int) -> Any:
        raise MemoryError

    rule(it)
    while it.node.commitments.check_next():
        pass
    monkeypatch.setattr(it.node.commitments, "report", fails)
    run(it)
    assert uids(receiver) == [ONE]
    assert queue(it) == [("done", 0, "")] + [("waiting", 1, "it could not be made ready: MemoryError")] * 2
