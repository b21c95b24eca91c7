"""Forwarding: what rules say goes on to registered destinations, inside the scope of both sides, however often somebody fails."""

from __future__ import annotations

import io
import itertools
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pydicom
import pytest
import sqlalchemy as sa

from archive.access.grants import Target
from archive.db.tables import delivery, delivery_destination, forward_rule, peer
from archive.dimse.forward import Courier, Delivering
from archive.errors import ArchiveError, InvalidRequest, NotFound
from archive.index import arrivals
from archive.ledger.audit import Kind
from archive.services import deliveries as deliveries_module
from archive.services import forward_others
from archive.services import forwarding as forwarding_module
from archive.services.forward_rules import Conditions, closed_until
from archive.services.sending import Leaving
from tests.dimse.clinic import IMPLICIT, Clinic, Receiver, clinic, received
from tests.dimse.fakes import eventually
from tests.dimse.test_scu import listening
from tests.ports import free_port
from tests.services.archives import CT, instance, store, the_console

EVERYTHING = Target("everything")
ONE = "1.2.3.1.1"
NUMBERS = itertools.count(1)


@contextmanager
def forwarding(folder: Path, **options: Any) -> Iterator[Clinic]:
    """An archive with a user on whose behalf rules may send everything."""
    with clinic(folder, **options) as made:
        console = the_console(made.node)
        made.node.accounts.add_role(console, "router", ["search", "send"])
        made.node.accounts.add_user(console, "router", password="violet-otter-94-lantern")
        made.grant("router", EVERYTHING, role="router")
        yield made


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Clinic]:
    with forwarding(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    """Two instances nobody sent and one that CT1 did."""
    with forwarding(tmp_path_factory.mktemp("stocked")) as made:
        made.put(
            instance(1, study="1.2.3", StationName="ROOM 1", StudyDescription="Head"),
            instance(1, study="1.2.4", Modality="MR", StudyDescription="The CHEST [1]"),
        )
        made.node.peers.add(the_console(made.node), "CT1", ["CT1"], networks=["127.0.0.1/32"], roles=["modality"])
        with made.association("CT1", CT) as association:
            assert association.send_c_store(pydicom.dcmread(io.BytesIO(instance(1, study="1.2.5")))).Status == 0
        yield made


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver("DST")
    yield made
    made.close()


def rule(it: Clinic, name: str = "all", to: str = "DST", *, existing: bool = True, **options: Any) -> dict[str, Any]:
    conditions = Conditions(**options.pop("conditions", {}))
    return it.node.forwarding.add(
        the_console(it.node), name, to, on_behalf_of="router", conditions=conditions, existing=existing, **options
    )


def run(it: Clinic) -> None:
    """One turn of every thread that delivers."""
    courier = Courier(it.node)
    while courier.look(lambda: False):
        pass
    while courier.deliver(lambda: False):
        pass


def queue(it: Clinic) -> list[tuple[str, int, str]]:
    found = it.node.forwarding.queue(the_console(it.node))
    return sorted((row["state"], row["attempts"], row["reason"]) for row in found)


def uids(receiver: Receiver) -> list[str]:
    return sorted(uid for uid, _, _ in receiver.received)


def due_now(it: Clinic) -> None:
    with it.node.core.database.begin() as tx:
        tx.execute(sa.update(delivery).values(run_at=it.node.core.clock() - timedelta(seconds=1)))
        tx.execute(sa.update(delivery_destination).values(retry_at=None))


def test_storescp_of_dcmtk(it: Clinic, program: Callable[[str, str], str], tmp_path: Path) -> None:
    """Byte for byte the data set that came, over an association of the archive's."""
    port, folder = free_port(), tmp_path / "got"
    folder.mkdir()
    command = [program("storescp", "dcmtk"), "-aet", "DST", "-od", str(folder), "-uf", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            assert eventually(lambda: listening(port))
            it.plain_peer("DST", port=port, target=EVERYTHING)
            it.put(*(instance(n, study="1.2.3") for n in (1, 2, 3)))
            rule(it)
            run(it)
        finally:
            process.terminate()
            process.wait(60)
    assert queue(it) == [("done", 0, "")] * 3
    found = received(folder)
    for n in (1, 2, 3):
        original = pydicom.dcmread(io.BytesIO(instance(n, study="1.2.3")))
        assert {element.tag: element.value for element in found[f"1.2.3.1.{n}"]} == {element.tag: element.value for element in original}


def test_only_what_comes_after_unless_told(it: Clinic, receiver: Receiver) -> None:
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(instance(1, study="1.2.3"))
    rule(it, existing=False)
    run(it)
    assert receiver.received == []
    it.put(instance(2, study="1.2.3"))
    run(it)
    assert uids(receiver) == ["1.2.3.1.2"]
    rule(it, "again", existing=True)  # two rules to one destination send an instance once
    run(it)
    run(it)
    assert uids(receiver) == [ONE, "1.2.3.1.2"]


def test_both_sides_must_be_allowed_to(it: Clinic, receiver: Receiver) -> None:
    """The rule's user may send, the destination receive; and both still when it goes."""
    it.put(instance(1, study="1.2.3"), instance(1, study="1.2.4"), instance(1, study="1.2.5"))
    it.plain_peer("DST", port=receiver.port, target=Target("study", "1.2.3"))
    it.grant("DST", Target("study", "1.2.5"))
    it.grant("router", Target("study", "1.2.5"), role="router", deny=True)
    rule(it)
    it.node.forwarding.look()
    assert [state for state, _, _ in queue(it)] == ["waiting"]
    it.grant("router", Target("study", "1.2.3"), role="router", deny=True)
    run(it)
    assert receiver.received == []
    assert queue(it)[0][::2] == (
        "failed", "the rule's user may no longer send it, or the destination no longer receive it"
    )
    assert it.events(Kind.SENT) == []


def test_a_right_that_ends_while_it_is_sent(it: Clinic) -> None:
    """At most the one under way still arrives."""
    receiver = Receiver("DST", answers=lambda _event, n: it.grant("DST", Target("study", "1.2.3"), deny=True) and 0 if n == 1 else 0)
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(*(instance(n, study="1.2.3") for n in range(1, 6)))
    rule(it)
    run(it)
    assert len(receiver.received) == 1
    assert [state for state, _, _ in queue(it)] == ["done", "failed", "failed", "failed", "failed"]
    receiver.close()


def test_the_event_is_there_before_the_first_byte(it: Clinic) -> None:
    seen: list[dict[str, Any]] = []

    def looks(_event: Any, _n: int) -> int:
        body = it.events(Kind.SENT)[0].body
        assert body is not None
        seen.append(body)
        return 0

    receiver = Receiver("DST", answers=looks)
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(instance(1, study="1.2.3"), instance(2, study="1.2.3"))
    rule(it)
    run(it)
    assert len(seen) == 2
    assert (seen[0]["subject"]["name"], seen[0]["instances"], seen[0]["objects"]) == ("router", 2, [["study", "1.2.3"]])
    assert seen[0]["detail"] == {
        "what": "forward", "rule": "all", "destination": "DST", "ae_title": "DST", "host": "127.0.0.1", "port": receiver.port
    }
    receiver.close()


def test_no_audit_no_data(it: Clinic, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(instance(1, study="1.2.3"))
    rule(it)
    it.node.forwarding.look()

    def broken(*_: Any, **__: Any) -> int:
        raise sa.exc.OperationalError("INSERT", {}, Exception())

    with monkeypatch.context() as patch:
        patch.setattr(type(it.node.core.ledger), "record", broken)
        with pytest.raises(ArchiveError):
            Courier(it.node).deliver(lambda: False)
    assert receiver.received == []
    assert [state for state, _, _ in queue(it)] == ["waiting"]
    run(it)
    assert uids(receiver) == [ONE]


@pytest.mark.parametrize(("conditions", "expected"), [
    ({"modality": ("MR",)}, ["1.2.4.1.1"]), ({"modality": ("ct", "m?")}, ["1.2.3.1.1", "1.2.4.1.1", "1.2.5.1.1"]),
    ({"station": ("ROOM*",)}, ["1.2.3.1.1"]), ({"attributes": {"StudyDescription": "*chest*"}}, ["1.2.4.1.1"]),
    ({"attributes": {"StudyDescription": "*chest*", "Modality": "CT"}}, []), ({"calling_ae": ("NOBODY",)}, []),
    ({"calling_ae": ("CT*",)}, ["1.2.5.1.1"]), ({"called_ae": ("STRONGROOM",), "calling_ae": ("CT1",)}, ["1.2.5.1.1"]),
])  # fmt: skip
def test_conditions(stocked: Clinic, conditions: dict[str, Any], expected: list[str]) -> None:
    name = f"DST{next(NUMBERS)}"
    receiver = Receiver(name)
    try:
        stocked.plain_peer(name, port=receiver.port, target=EVERYTHING)
        rule(stocked, name, name, conditions=conditions)
        run(stocked)
    finally:
        receiver.close()
    assert uids(receiver) == expected


def test_a_destination_that_only_speaks_implicit(it: Clinic) -> None:
    receiver = Receiver("DST", syntaxes=[IMPLICIT])
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(instance(1, study="1.2.3"))
    rule(it)
    run(it)
    assert [(uid, syntax) for uid, syntax, _ in receiver.received] == [(ONE, IMPLICIT)]
    receiver.close()


def test_answers(it: Clinic) -> None:
    """A warning is a success, so is that it is there already; a full disk passes, a refusal does not."""
    answers = {"1.2.3.1.1": 0xB007, "1.2.3.1.2": 0x0111, "1.2.3.1.3": 0xA700, "1.2.3.1.4": 0xC000, "1.2.3.1.5": 0}
    receiver = Receiver("DST", answers=lambda event, _n: answers[event.request.AffectedSOPInstanceUID])
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(*(instance(n, study="1.2.3") for n in range(1, 6)))
    rule(it)
    run(it)
    assert queue(it) == [
        ("done", 0, ""), ("done", 0, ""), ("done", 0, ""), ("failed", 1, "it answered with status C000"),
        ("waiting", 1, "it answered with status A700"),
    ]
    answers |= dict.fromkeys(answers, 0)
    assert it.node.forwarding.retry(the_console(it.node)) == 2
    run(it)
    assert {state for state, _, _ in queue(it)} == {"done"}
    assert len(receiver.received) == 7
    receiver.close()


def test_a_destination_that_is_away(it: Clinic) -> None:
    """It is asked again later and later; nothing that waits for it has failed; then everything goes."""
    port = free_port()
    it.plain_peer("DST", port=port, target=EVERYTHING)
    it.put(instance(1, study="1.2.3"), instance(2, study="1.2.3"))
    rule(it)
    console = the_console(it.node)
    for failures in (1, 2, 3):
        run(it)
        row, = it.node.forwarding.destinations(console)
        assert (row["state"], row["failures"], row["waiting"]) == ("unreachable", failures, 2)
        wait = row["retry_at"] - it.node.core.clock()
        assert deliveries_module.backoff(failures) - timedelta(seconds=4) < wait <= deliveries_module.backoff(failures)
        assert it.node.deliveries.claim() is None
        due_now(it)
    receiver = Receiver("DST")
    with it.node.core.database.begin() as tx:
        tx.execute(sa.update(peer).where(peer.c.name == "DST").values(port=receiver.port))
    run(it)
    assert queue(it) == [("done", 0, "")] * 2
    row, = it.node.forwarding.destinations(console)
    assert (row["state"], row["failures"], row["done"]) == ("ready", 0, 2)
    receiver.close()
    waits = [deliveries_module.backoff(n) for n in range(1, 40)]
    assert waits == sorted(waits)
    assert waits[0] == timedelta(seconds=5)
    assert waits[-1] == timedelta(hours=1)


def test_one_instance_that_breaks_the_association_does_not_stop_the_rest(it: Clinic) -> None:
    def answer(event: Any, _n: int) -> int:
        if event.request.AffectedSOPInstanceUID == "1.2.3.1.2":
            event.assoc.abort()
        return 0

    receiver = Receiver("DST", answers=answer)
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(*(instance(n, study="1.2.3") for n in (1, 2, 3)))
    rule(it)
    run(it)
    assert queue(it) == [("done", 0, ""), ("done", 0, ""), ("waiting", 1, "the association ended before the answer came")]
    receiver.close()


@pytest.mark.parametrize("where", ["before it leaves", "while it leaves"])
def test_one_instance_that_cannot_be_made_ready_does_not_stop_the_rest(
    it: Clinic, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Whatever is raised for it: it would be the first again each time, and nothing behind it would ever go."""
    opens = it.node.sending.open

    def breaks(leaving: Leaving) -> Iterator[bytes | memoryview]:
        yield next(leaving.pieces)[:10]
        raise MemoryError

    def fails(selection: Any, one: Any, syntax: str) -> Leaving:
        leaving = opens(selection, one, syntax)
        if one.sop_instance_uid != ONE:
            return leaving
        if where == "before it leaves":
            raise MemoryError
        return Leaving(leaving.length, breaks(leaving))

    monkeypatch.setattr(it.node.sending, "open", fails)
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(*(instance(n, study="1.2.3") for n in (1, 2, 3)))
    rule(it)
    run(it)
    assert uids(receiver) == ["1.2.3.1.2", "1.2.3.1.3"]
    assert queue(it) == [("done", 0, "")] * 2 + [("waiting", 1, "it could not be made ready: MemoryError")]


def test_a_destination_that_answers_nothing_holds_nobody_up(it: Clinic) -> None:
    """Each of its instances would cost an association and the whole wait for an answer, for as long as there are any."""
    aborted: list[str] = []

    def answer(event: Any, _n: int) -> int:
        aborted.append(event.request.AffectedSOPInstanceUID)
        event.assoc.abort()
        return 0

    receiver = Receiver("DST", answers=answer)
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(*(instance(n, study="1.2.3") for n in range(1, 7)))
    rule(it)
    run(it)
    assert len(aborted) == 3
    assert queue(it) == [("waiting", 0, "")] * 3 + [("waiting", 1, "the association ended before the answer came")] * 3
    row, = it.node.forwarding.destinations(the_console(it.node))
    assert (row["state"], row["waiting"]) == ("unreachable", 6)
    assert it.node.deliveries.claim() is None
    receiver.close()


@pytest.mark.parametrize("what", ["an address that is none", "whatever it makes go wrong"])
def test_a_destination_that_makes_something_go_wrong_holds_no_other_up(
    it: Clinic, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """It would be the one that waits longest each time."""
    it.plain_peer("BAD", port=free_port(), target=EVERYTHING)
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    if what == "an address that is none":
        with it.node.core.database.begin() as tx:
            tx.execute(sa.update(peer).where(peer.c.name == "BAD").values(host="a..b"))
    else:
        batch = it.node.forwarding.batch

        def fails(due: Any) -> Any:
            if due[0].peer_id == 1:
                raise RuntimeError
            return batch(due)

        monkeypatch.setattr(it.node.forwarding, "batch", fails)
    it.put(instance(1, study="1.2.3"))
    rule(it, "bad", "BAD")
    rule(it, "good", "DST")
    run(it)
    assert uids(receiver) == [ONE]
    assert {row["destination"]: row["state"] for row in it.node.forwarding.destinations(the_console(it.node))} == {
        "BAD": "unreachable", "DST": "ready"}
    assert queue(it) == [("done", 0, ""), ("waiting", 0, "")]


def test_a_crash_loses_nothing(it: Clinic, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the destination took one and before that was noted; the lease of a process that is gone counts no more."""
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(*(instance(n, study="1.2.3") for n in (1, 2, 3)))
    rule(it)

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(deliveries_module.Deliveries, "done", dies)
        patch.setattr(deliveries_module.Deliveries, "release", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            run(it)
    assert it.node.deliveries.claim() is None  # this process runs, so it is taken
    with it.node.core.database.begin() as tx:
        tx.execute(sa.update(delivery_destination).values(leased_by="999999999-1/1"))
    run(it)
    assert sorted(set(uids(receiver))) == [f"1.2.3.1.{n}" for n in (1, 2, 3)]
    assert len(receiver.received) == 4
    assert queue(it) == [("done", 0, "")] * 3


def test_pause_and_resume(it: Clinic) -> None:
    console = the_console(it.node)

    def answer(_event: Any, n: int) -> int:
        if n == 2:
            it.node.forwarding.pause(console, "DST", paused=True)
        return 0

    receiver = Receiver("DST", answers=answer)
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(*(instance(n, study="1.2.3") for n in range(1, 6)))
    rule(it)
    run(it)
    assert len(receiver.received) == 2
    assert it.node.forwarding.destinations(console)[0]["state"] == "paused"
    run(it)
    assert len(receiver.received) == 2
    it.node.forwarding.pause(console, "DST", paused=False)
    run(it)
    assert queue(it) == [("done", 0, "")] * 5
    receiver.close()


def test_a_study_that_is_not_quiet_waits(it: Clinic, receiver: Receiver) -> None:
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(instance(1, study="1.2.3"))
    rule(it, quiet_s=60)
    run(it)
    with it.node.core.database.begin() as tx:
        tx.execute(sa.update(delivery).values(run_at=it.node.core.clock() + timedelta(seconds=1)))
    it.put(instance(2, study="1.2.3"))
    run(it)
    with it.node.core.database.read() as tx:
        times = tx.execute(sa.select(delivery.c.run_at)).scalars().all()
    assert len(times) == 2
    assert all(one > it.node.core.clock() + timedelta(seconds=50) for one in times)  # the first one waits anew
    due_now(it)
    run(it)
    assert uids(receiver) == [ONE, "1.2.3.1.2"]


def test_what_is_rejected_when_a_rule_looks_goes_once_it_is_restored(
    it: Clinic, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the rule has long gone on, and its whole series was rejected; not while it is rejected, and once."""
    console, remove = the_console(it.node), it.node.remove
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(instance(1, study="1.2.3"), instance(2, study="1.2.3"), instance(1, study="1.2.4"), instance(1, study="1.2.5", Modality="MR"))
    remove.reject(console, "clinical", "instance", "1.2.3.1.2", reason="test")
    remove.reject(console, "clinical", "study", "1.2.4", reason="test")
    remove.reject(console, "clinical", "study", "1.2.5", reason="test")
    monkeypatch.setattr(forwarding_module, "SETTLE", timedelta())
    rule(it, conditions={"modality": ("CT",)})
    run(it)
    run(it)
    with it.node.core.database.read() as tx:
        assert tx.execute(sa.select(forward_rule.c.seen)).scalar_one() >= 4
    assert uids(receiver) == [ONE]
    remove.restore(console, "clinical", "study", "1.2.4", reason="test")
    remove.restore(console, "clinical", "study", "1.2.5", reason="test")  # which the rule is not about
    run(it)
    assert uids(receiver) == [ONE, "1.2.4.1.1"]
    remove.restore(console, "clinical", "instance", "1.2.3.1.2", reason="test")
    run(it)
    run(it)
    assert uids(receiver) == [ONE, "1.2.3.1.2", "1.2.4.1.1"]
    assert queue(it) == [("done", 0, "")] * 3


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_what_is_rejected_when_its_turn_comes_goes_once_it_is_restored(
    tmp_path: Path, receiver: Receiver, engine: str, request: pytest.FixtureRequest
) -> None:
    sections = {} if engine == "sqlite" else {"database": {"url": request.getfixturevalue("postgresql_url")}}
    with forwarding(tmp_path, sections=sections) as it:
        console, remove = the_console(it.node), it.node.remove
        it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
        it.put(*(instance(1, study=study) for study in ("1.2.3", "1.2.4", "1.2.5")))
        remove.reject(console, "clinical", "study", "1.2.5", reason="test")
        rule(it)
        it.node.forwarding.look()
        remove.reject(console, "clinical", "study", "1.2.4", reason="test")
        run(it)
        assert uids(receiver) == [ONE]
        assert queue(it) == [("done", 0, ""), ("rejected", 0, ""), ("rejected", 0, "")]
        remove.restore(console, "clinical", "study", "1.2.4", reason="test")
        run(it)
        assert uids(receiver) == [ONE, "1.2.4.1.1"]
        remove.restore(console, "clinical", "study", "1.2.5", reason="test")
        run(it)
        assert uids(receiver) == [ONE, "1.2.4.1.1", "1.2.5.1.1"]


def test_what_is_rejected_while_it_is_sent_goes_once_it_is_restored(it: Clinic) -> None:
    console, remove = the_console(it.node), it.node.remove

    def answer(_event: Any, n: int) -> int:
        if n == 1:
            remove.reject(console, "clinical", "instance", "1.2.3.1.3", reason="test")
        return 0

    receiver = Receiver("DST", answers=answer)
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(*(instance(n, study="1.2.3") for n in (1, 2, 3)))
    rule(it)
    run(it)
    assert queue(it) == [("done", 0, "")] * 2 + [("rejected", 0, "")]
    remove.restore(console, "clinical", "instance", "1.2.3.1.3", reason="test")
    run(it)
    assert uids(receiver) == [ONE, "1.2.3.1.2", "1.2.3.1.3"]
    receiver.close()


@pytest.mark.parametrize("when", ["its turn comes", "it is opened"])
def test_what_is_restored_a_moment_later_has_not_failed(
    it: Clinic, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Between the question what may go and the one what is rejected."""
    console, remove = the_console(it.node), it.node.remove
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(instance(1, study="1.2.3"), instance(1, study="1.2.4"))
    rule(it)
    it.node.forwarding.look()
    asked = arrivals.among if when == "its turn comes" else it.node.sending.open

    def restored(*of: Any) -> Any:
        monkeypatch.setattr(arrivals, "among", among)
        monkeypatch.setattr(it.node.sending, "open", opens)
        remove.reject(console, "clinical", "study", "1.2.3", reason="test")
        try:
            return asked(*of)  # type: ignore[operator]
        finally:
            remove.restore(console, "clinical", "study", "1.2.3", reason="test")

    among, opens = arrivals.among, it.node.sending.open
    if when == "its turn comes":
        monkeypatch.setattr(arrivals, "among", restored)
    else:
        monkeypatch.setattr(it.node.sending, "open", restored)
    run(it)
    assert {state for state, _, _ in queue(it)} <= {"done", "waiting"}
    due_now(it)
    run(it)
    assert uids(receiver) == [ONE, "1.2.4.1.1"]


def test_what_is_let_in_in_the_place_of_what_is_rejected_is_forwarded(it: Clinic, receiver: Receiver) -> None:
    console = the_console(it.node)
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(instance(1, study="1.2.3"), instance(1, study="1.2.4"))
    it.node.remove.reject(console, "clinical", "study", "1.2.3", reason="test")
    rule(it)
    run(it)
    assert queue(it) == [("done", 0, ""), ("rejected", 0, "")]
    assert store(it.node, instance(1, study="1.2.3", rows=32)).status == "conflict"
    (waits,) = it.node.reconcile.list(console)
    it.node.reconcile.accept(console, waits["id"], reason="the right one")
    run(it)
    assert uids(receiver) == [ONE, "1.2.4.1.1"]


def test_what_was_restored_goes_only_where_both_sides_may_still(it: Clinic, receiver: Receiver) -> None:
    console, remove = the_console(it.node), it.node.remove
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(instance(1, study="1.2.3"))
    remove.reject(console, "clinical", "study", "1.2.3", reason="test")
    rule(it)
    run(it)
    it.grant("router", Target("study", "1.2.3"), role="router", deny=True)
    remove.restore(console, "clinical", "study", "1.2.3", reason="test")
    run(it)
    assert receiver.received == []
    assert [state for state, _, _ in queue(it)] == ["failed"]


def test_outside_its_hours_a_rule_sends_nothing(it: Clinic, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(instance(1, study="1.2.3"))
    rule(it, hours="01:00-02:00")
    opening = it.node.core.clock() + timedelta(hours=3)
    with monkeypatch.context() as patch:
        patch.setattr(forwarding_module, "closed_until", lambda _hours, _at: opening)
        run(it)
        assert receiver.received == []
        assert it.node.deliveries.claim() is None
    due_now(it)
    with monkeypatch.context() as patch:
        patch.setattr(forwarding_module, "closed_until", lambda _hours, _at: None)
        run(it)
    assert uids(receiver) == [ONE]


@pytest.mark.parametrize(("hours", "at", "opens"), [
    ("", "12:00", None), ("08:00-18:00", "12:00", None), ("08:00-18:00", "07:59", "08:00"), ("08:00-18:00", "18:00", "08:00"),
    ("20:00-06:00", "23:00", None), ("20:00-06:00", "05:59", None), ("20:00-06:00", "06:00", "20:00"), ("07:00-07:00", "12:00", None),
])
def test_hours(hours: str, at: str, opens: str | None) -> None:
    here = datetime(2026, 3, 4, int(at[:2]), int(at[3:])).astimezone()
    found = closed_until(hours, here.astimezone(UTC))
    assert (None if found is None else found.astimezone().strftime("%H:%M")) == opens
    assert found is None or found > here


def test_removed_rules_and_peers(it: Clinic, receiver: Receiver) -> None:
    console, forwarding = the_console(it.node), it.node.forwarding
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(instance(1, study="1.2.3"))
    rule(it)
    forwarding.look()
    forwarding.remove(console, "all")
    run(it)
    assert (forwarding.list(console), queue(it), receiver.received) == ([], [], [])
    rule(it)
    forwarding.look()
    it.node.peers.remove(console, "DST")
    run(it)
    assert receiver.received == []
    assert [state for state, _, _ in queue(it)] == ["failed"]
    with pytest.raises(NotFound):
        forwarding.remove(console, "nothing")


def test_what_another_rule_sends_too_goes_on_by_it_when_a_rule_is_removed(it: Clinic, receiver: Receiver) -> None:
    console, forwarding = the_console(it.node), it.node.forwarding
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(instance(1, study="1.2.3"))
    rule(it)
    rule(it, "later", existing=False)
    rule(it, "heads", conditions={"attributes": {"StudyDescription": "Head"}}, existing=False)
    forwarding.look()
    it.put(instance(2, study="1.2.3"), instance(1, study="1.2.4"), instance(1, study="1.2.5"))
    forwarding.look()
    it.node.remove.reject(console, "clinical", "study", "1.2.4", reason="test")
    with it.node.core.database.begin() as tx:
        tx.execute(sa.update(delivery).values(state="failed", reason="it answered with status 0110", attempts=12))
    forwarding.remove(console, "all")
    assert queue(it) == [("rejected", 0, ""), ("waiting", 0, ""), ("waiting", 0, "")], "what was there before it is not asked for by any"
    assert {row["rule"] for row in forwarding.queue(console)} == {"later"}
    run(it)
    assert uids(receiver) == ["1.2.3.1.2", "1.2.5.1.1"]
    it.node.remove.restore(console, "clinical", "study", "1.2.4", reason="test")
    run(it)
    assert uids(receiver) == ["1.2.3.1.2", "1.2.4.1.1", "1.2.5.1.1"]


def test_what_went_on_by_another_rule_does_not_fail_for_whoever_was_about_to_send_it_by_the_first(it: Clinic, receiver: Receiver) -> None:
    console, forwarding, queued = the_console(it.node), it.node.forwarding, it.node.deliveries
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(instance(1, study="1.2.3"))
    rule(it)
    rule(it, "later")
    forwarding.look()
    claimed = queued.claim()
    assert claimed is not None
    due = queued.due(claimed, deliveries_module.FORWARD, limit=10)
    forwarding.remove(console, "all")
    assert forwarding.batch(due) is None
    queued.release(claimed)
    assert queue(it) == [("waiting", 0, "")]
    run(it)
    assert uids(receiver) == [ONE]


def test_a_long_queue_goes_on_by_another_rule_a_part_at_a_time(it: Clinic, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one change, a queue of a million kept every store waiting for minutes."""
    console, database = the_console(it.node), it.node.core.database
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(*(instance(n, study="1.2.3" if n % 2 else "1.2.4") for n in range(1, 8)))
    rule(it)
    rule(it, "some", conditions={"attributes": {"StudyInstanceUID": "1.2.3"}})
    it.node.forwarding.look()
    counts: list[int] = []

    def counted(tx: sa.Connection) -> None:
        taken = sa.select(sa.func.count()).where(delivery.c.rule_id == 2)
        counts.append(tx.execute(taken).scalar_one())

    monkeypatch.setattr(forward_others, "AT_ONCE", 2)
    monkeypatch.setattr(database, "before_commit", counted)
    it.node.forwarding.remove(console, "all")
    assert counts == [1, 2, 3, 4, 4, 4, 4]
    monkeypatch.undo()
    run(it)
    assert uids(receiver) == [f"1.2.3.1.{n}" for n in (1, 3, 5, 7)]


def test_what_a_rule_has_sent_is_remembered_by_another_a_part_at_a_time(
    it: Clinic, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    console, database = the_console(it.node), it.node.core.database
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(*(instance(n, study="1.2.3") for n in range(1, 8)))
    rule(it)
    run(it)
    rule(it, "later", existing=False)
    counts: list[int] = []

    def counted(tx: sa.Connection) -> None:
        remembered = sa.select(sa.func.count()).where(delivery.c.rule_id == 2, delivery.c.state == "done")
        counts.append(tx.execute(remembered).scalar_one())

    monkeypatch.setattr(forward_others, "AT_ONCE", 2)
    monkeypatch.setattr(database, "before_commit", counted)
    it.node.forwarding.remove(console, "all")
    assert max(after - before for before, after in zip([0, *counts], counts, strict=False)) == 2
    assert queue(it) == [("done", 0, "")] * 7


@pytest.mark.parametrize("state", ["done", "waiting", "failed"])
def test_what_goes_with_a_rule_is_forgotten_a_part_at_a_time(
    it: Clinic, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    console, database = the_console(it.node), it.node.core.database
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(*(instance(n, study="1.2.3") for n in range(1, 8)))
    rule(it)
    monkeypatch.setattr(forwarding_module, "SETTLE", timedelta())
    it.node.forwarding.look()
    with database.begin() as tx:
        tx.execute(sa.update(delivery).values(state=state))
    counts: list[int] = []

    def counted(tx: sa.Connection) -> None:
        counts.append(tx.execute(sa.select(sa.func.count()).select_from(delivery)).scalar_one())

    monkeypatch.setattr(forward_others, "AT_ONCE", 2)
    monkeypatch.setattr(database, "before_commit", counted)
    it.node.forwarding.remove(console, "all")
    assert counts == [5, 3, 1, 0, 0]


def test_what_another_rule_of_the_destination_may_not_send_goes_with_its_rule(it: Clinic, receiver: Receiver) -> None:
    console, forwarding = the_console(it.node), it.node.forwarding
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(instance(1, study="1.2.3"), instance(1, study="1.2.4"))
    it.node.accounts.add_user(console, "narrow", password="violet-otter-94-lantern")
    it.grant("narrow", Target("study", "1.2.4"), role="router")
    rule(it)
    forwarding.look()
    forwarding.add(console, "some", "DST", on_behalf_of="narrow", conditions=Conditions(), existing=True)
    forwarding.look()
    forwarding.remove(console, "all")
    run(it)
    assert uids(receiver) == ["1.2.4.1.1"]


def two_users(it: Clinic, receiver: Receiver) -> None:
    """Two rules to one destination, each on the right of a user of its own; the first has queued what both would send."""
    console = the_console(it.node)
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.node.accounts.add_user(console, "second", password="violet-otter-94-lantern")
    it.grant("second", EVERYTHING, role="router")
    rule(it, existing=False)
    it.node.forwarding.add(console, "other", "DST", on_behalf_of="second", conditions=Conditions(modality=("CT",)))
    it.put(*(instance(n, study="1.2.3") for n in (1, 2, 3)), instance(1, study="1.2.4", Modality="MR"))


@pytest.mark.parametrize("ends", ["the right", "the user"])
def test_what_another_rule_may_send_goes_by_that_one_when_the_first_may_not_any_more(it: Clinic, receiver: Receiver, ends: str) -> None:
    console, forwarding = the_console(it.node), it.node.forwarding
    two_users(it, receiver)
    forwarding.look()
    assert {row["rule"] for row in forwarding.queue(console)} == {"all"}
    if ends == "the right":
        it.grant("router", EVERYTHING, role="router", deny=True)
    else:
        it.node.accounts.disable_user(console, "router")
    run(it)
    assert uids(receiver) == [ONE, "1.2.3.1.2", "1.2.3.1.3"]
    assert [state for state, _, _ in queue(it)] == ["done", "done", "done", "failed"], "what only the first was about has failed"


def test_what_another_rule_may_send_goes_by_that_one_when_the_right_ends_while_it_is_sent(it: Clinic) -> None:
    receiver = Receiver("DST", answers=lambda _event, n: (it.grant("router", EVERYTHING, role="router", deny=True) and 0) if n == 1 else 0)
    two_users(it, receiver)
    run(it)
    assert uids(receiver) == [ONE, "1.2.3.1.2", "1.2.3.1.3"]
    assert [state for state, _, _ in queue(it)] == ["done", "done", "done", "failed"]
    receiver.close()


def test_what_has_failed_goes_by_a_rule_that_is_added_for_what_is_there(it: Clinic, receiver: Receiver) -> None:
    console = the_console(it.node)
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.put(instance(1, study="1.2.3"), instance(1, study="1.2.4", Modality="MR"))
    rule(it)
    it.node.forwarding.look()
    it.grant("router", EVERYTHING, role="router", deny=True)
    run(it)
    assert [state for state, _, _ in queue(it)] == ["failed", "failed"]
    it.node.accounts.add_user(console, "second", password="violet-otter-94-lantern")
    it.grant("second", EVERYTHING, role="router")
    for name, existing in (("new", False), ("other", True)):
        run(it)
        assert receiver.received == []
        it.node.forwarding.add(console, name, "DST", on_behalf_of="second", conditions=Conditions(modality=("CT",)), existing=existing)
    run(it)
    assert uids(receiver) == [ONE]
    assert [state for state, _, _ in queue(it)] == ["done", "failed"]


def test_what_is_restored_goes_by_another_rule_when_the_first_counts_no_longer(it: Clinic, receiver: Receiver) -> None:
    console = the_console(it.node)
    two_users(it, receiver)
    it.node.remove.reject(console, "clinical", "study", "1.2.3", reason="test")
    it.node.forwarding.look()
    it.node.accounts.disable_user(console, "router")
    run(it)
    assert receiver.received == []
    it.node.remove.restore(console, "clinical", "study", "1.2.3", reason="test")
    run(it)
    assert uids(receiver) == [ONE, "1.2.3.1.2", "1.2.3.1.3"]


def test_what_a_removed_rule_has_sent_is_not_sent_again_by_another(it: Clinic, receiver: Receiver) -> None:
    """However often a rule is removed, while there is one that remembers; a first rule that is added later begins anew."""
    console, forwarding = the_console(it.node), it.node.forwarding
    two_users(it, receiver)
    run(it)
    assert len(receiver.received) == 4
    forwarding.remove(console, "all")
    rule(it, "third")
    run(it)
    forwarding.remove(console, "other")
    run(it)
    assert len(receiver.received) == 4
    forwarding.remove(console, "third")
    assert queue(it) == []
    rule(it, "anew")
    run(it)
    assert len(receiver.received) == 8


def test_what_a_rule_may_not_be(it: Clinic, receiver: Receiver) -> None:
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    it.plain_peer("NOWHERE", target=EVERYTHING)
    for options in (
        {"to": "NOWHERE"}, {"name": "a b"}, {"hours": "8-9"}, {"hours": "25:00-26:00"}, {"quiet_s": -1},
        {"conditions": {"attributes": {"PixelData": "*"}}}, {"conditions": {"attributes": {"Nonsense": "*"}}},
    ):
        with pytest.raises(InvalidRequest):
            rule(it, **options)
    with pytest.raises(NotFound):
        rule(it, to="NOBODY")
    rule(it)
    with pytest.raises(InvalidRequest):
        rule(it)


def test_threads_of_two_processes_send_each_once(it: Clinic, receiver: Receiver) -> None:
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    rule(it)
    running = [Delivering(it.node, pause_s=0.05) for _ in range(2)]
    for one in running:
        one.start()
    try:
        it.put(*(instance(n, study="1.2.3") for n in range(1, 21)))
        assert eventually(lambda: queue(it) == [("done", 0, "")] * 20)
    finally:
        for one in running:
            one.stop()
    assert len(receiver.received) == 20


def rebuilt_and_delivered(tmp_path: Path) -> None:
    """Rebuild the index, start, and deliver what waits."""
    from archive.node import open_node
    from archive.services.rebuild import Rebuild
    from tests.services.archives import configured

    config = configured(tmp_path, dimse={"plain": {"enabled": True, "port": 0, "networks": ["127.0.0.0/8"]}})
    node = open_node(config, role="serve")
    try:
        Rebuild(node.core).run(lost=False)
        assert node.start() == ""
        courier = Courier(node)
        while courier.look(lambda: False) or courier.deliver(lambda: False):
            pass
    finally:
        node.close()


def test_a_rebuild_gives_instances_other_numbers(tmp_path: Path, receiver: Receiver) -> None:
    """The queue is still about the same objects, and what went does not go again."""
    with forwarding(tmp_path) as it:
        console = the_console(it.node)
        it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
        it.put(*(instance(1, study=study) for study in ("1.2.3", "1.2.4", "1.2.5")))
        rule(it, conditions={"attributes": {"StudyInstanceUID": "1.2.4"}})
        run(it)
        it.node.remove.reject(console, "clinical", "study", "1.2.3", reason="test")
        it.node.forwarding.add(console, "later", "DST", on_behalf_of="router", conditions=Conditions(), existing=True)
        it.node.forwarding.look()
        assert sorted(state for state, _, _ in queue(it)) == ["done", "rejected", "waiting"]
    rebuilt_and_delivered(tmp_path)
    assert [uid for uid, _, _ in receiver.received] == ["1.2.4.1.1", "1.2.5.1.1"]


def test_what_arrived_since_a_rules_last_look_is_forwarded_after_a_rebuild(tmp_path: Path, receiver: Receiver) -> None:
    with forwarding(tmp_path) as it:
        it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
        it.put(instance(1, study="1.2.3"))
        rule(it, existing=False)
        run(it)
        it.put(instance(1, study="1.2.4"), instance(1, study="1.2.5"))
    rebuilt_and_delivered(tmp_path)
    assert uids(receiver) == ["1.2.4.1.1", "1.2.5.1.1"], "and what was there before the rule is not"
