"""Storage commitment from a peer's side: asked, really checked, reported on an association of the archive's or on the peer's own."""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from archive.access.grants import Target
from archive.db.tables import commitment, delivery
from archive.dimse import commitment as commitment_module
from archive.dimse.forward import Courier, Delivering
from archive.dimse.identifiers import MAXIMUM_BYTES
from archive.errors import NotFound
from archive.ledger import proofs, seals
from archive.ledger.audit import Kind
from archive.ledger.bodies import commitment as opened_by
from archive.services import commitment_check, deliveries
from archive.services import commitments as commitments_module
from archive.services.commitments import Reference, Report
from tests.dimse.clinic import EXPLICIT, IMPLICIT, Clinic, clinic, listen
from tests.dimse.fakes import eventually
from tests.dimse.test_scu import listening
from tests.ports import free_port
from tests.services.archives import CT, instance, the_console

SOP_CLASS, WELL_KNOWN = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
ONE, TWO = "1.2.3.1.1", "1.2.3.1.2"


class Listener:
    """Where a modality takes reports: a pynetdicom acceptor that is the SCU of the class."""

    def __init__(
        self, title: str, port: int = 0, *, answers: list[int] | None = None, syntaxes: list[str] | None = None,
        takes: Callable[[Dataset], None] = lambda _report: None,
    ) -> None:
        self.reports: list[tuple[int, Dataset]] = []
        self.roles: list[Any] = []
        self._takes = takes
        self._answers = answers or []
        ae = AE(ae_title=title)
        ae.add_supported_context(SOP_CLASS, syntaxes or [EXPLICIT, IMPLICIT], scu_role=False, scp_role=True)
        handlers = [(evt.EVT_N_EVENT_REPORT, self._take), (evt.EVT_REQUESTED, self._asked)]
        self._server = listen(ae, port, handlers)
        self.port: int = self._server.socket.getsockname()[1]

    def _asked(self, event: Any) -> None:
        self.roles += [(uid, one.scu_role, one.scp_role) for uid, one in event.assoc.requestor.role_selection.items()]

    def _take(self, event: Any) -> tuple[int, None]:
        self.reports.append((event.request.EventTypeID, event.event_information))
        self._takes(event.event_information)
        return (self._answers.pop(0) if self._answers else 0), None

    def close(self) -> None:
        self._server.shutdown()


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Clinic]:
    with clinic(tmp_path) as made:
        yield made


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener("CT1")
    yield made
    made.close()


def receipts(it: Clinic) -> list[Any]:
    """The events that say what was found, not those of requests and reports."""
    found = [event for event in it.events(Kind.COMMITTED) if event.body is not None]
    return [event for event in found if event.body["detail"]["what"] == "storage-commitment"]


def modality(it: Clinic, name: str = "CT1", port: int | None = None, *, same: bool = False) -> None:
    """A plain peer that may ask for commitment and sees nothing."""
    address = None if port is None else f"127.0.0.1:{port}"
    console = the_console(it.node)
    it.node.peers.add(console, name, [name], networks=["127.0.0.1/32"], address=address, roles=["modality"])
    it.node.peers.set(console, name, {"modality_without_tls": True, "commitment_same_association": same})


def send(it: Clinic, name: str, *files: bytes) -> None:
    """C-STORE as that peer."""
    import io

    import pydicom

    with it.association(name, CT) as association:
        for data in files:
            assert association.send_c_store(pydicom.dcmread(io.BytesIO(data))).Status in (0, 0x0111, 0xB000)


def asked(transaction: str | None, *references: str, sop_class: str = CT) -> Dataset:
    made = Dataset()
    if transaction is not None:
        made.TransactionUID = transaction
    made.ReferencedSOPSequence = []
    for uid in references:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
        made.ReferencedSOPSequence.append(item)
    return made


def large(transaction: str, *references: str) -> Dataset:
    """More bytes than are read, in few elements."""
    made = asked(transaction, *references)
    made.EncapsulatedDocument = bytes(MAXIMUM_BYTES + 1)
    return made


def action(it: Clinic, name: str, request: Dataset, *, instance_uid: str = WELL_KNOWN, kind: int = 1, **options: Any) -> int:
    with it.association(name, SOP_CLASS, **options) as association:
        status, _ = association.send_n_action(request, kind, SOP_CLASS, instance_uid)
        return int(status.Status)


def run(it: Clinic) -> None:
    """One turn of every thread that delivers."""
    courier = Courier(it.node)
    while courier.look(lambda: False):
        pass
    while courier.deliver(lambda: False):
        pass


def told(report: Dataset) -> tuple[set[str], dict[str, int]]:
    good = {str(item.ReferencedSOPInstanceUID) for item in report.get("ReferencedSOPSequence", [])}
    return good, {str(item.ReferencedSOPInstanceUID): item.FailureReason for item in report.get("FailedSOPSequence", [])}


def states(it: Clinic) -> list[tuple[str, int]]:
    return [(row["state"], row["n_failed"]) for row in it.node.commitments.list(the_console(it.node))]


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_what_a_modality_stored_is_committed_and_reported(it: Clinic, syntax: str) -> None:
    listener = Listener("CT1", syntaxes=[syntax])
    modality(it, port=listener.port)
    send(it, "CT1", instance(1, study="1.2.3"), instance(2, study="1.2.3"))
    assert action(it, "CT1", asked("1.9.1", ONE, TWO), syntaxes=[syntax]) == 0
    assert states(it) == [("checking", 0)]
    assert listener.reports == []
    run(it)
    (kind, report), = listener.reports
    assert (kind, report.TransactionUID, told(report)) == (1, "1.9.1", ({ONE, TWO}, {}))
    assert listener.roles == [(SOP_CLASS, False, True)]
    assert states(it) == [("reported", 0)]
    run(it)
    assert len(listener.reports) == 1
    body = receipts(it)[0].body
    assert body is not None
    assert (body["subject"]["name"], body["objects"], body["instances"]) == ("CT1", [["study", "1.2.3"]], 2)
    listener.close()


def test_what_a_peer_may_not_see_is_not_there(it: Clinic, listener: Listener) -> None:
    """The same answer for what is not there, what another peer stored, and a class that is not that of an unseen instance."""
    modality(it, port=listener.port)
    modality(it, "CT2")
    send(it, "CT1", instance(1, study="1.2.3"))
    send(it, "CT2", instance(2, study="1.2.3"))
    action(it, "CT1", asked("1.9.1", ONE, TWO, "1.2.77"))
    action(it, "CT1", asked("1.9.2", ONE, TWO, "1.2.77", sop_class="1.2.840.10008.5.1.4.1.1.4"))
    run(it)
    (kind, first), (_, second) = listener.reports
    assert kind == 2
    assert told(first) == ({ONE}, {TWO: 0x0112, "1.2.77": 0x0112})
    assert told(second) == (set(), {ONE: 0x0119, TWO: 0x0112, "1.2.77": 0x0112})
    send(it, "CT1", instance(2, study="1.2.3"))  # the same bytes: it has them too
    it.grant("CT2", Target("study", "1.2.3"))
    action(it, "CT1", asked("1.9.3", TWO))
    action(it, "CT2", asked("1.9.4", ONE))
    run(it)
    assert told(listener.reports[2][1]) == ({TWO}, {})
    assert [row["n_failed"] for row in it.node.commitments.list(the_console(it.node), peer_name="CT2")] == [0]


def test_bytes_that_changed_are_not_committed(it: Clinic, listener: Listener) -> None:
    """Found by reading: one byte of the sealed record, and one of the digest that the index keeps."""
    modality(it, port=listener.port)
    send(it, "CT1", *(instance(n, study=f"1.2.{n}") for n in (3, 4, 5)))
    uids = {n: f"1.2.{n}.1.{n}" for n in (3, 4, 5)}
    core = it.node.core
    from archive.access import policy
    from archive.db.tables import instance as table

    token = policy.system("verify")
    with core.database.begin() as tx:
        row = policy.run_as(tx, token, sa.select(table).where(table.c.sop_instance_uid == uids[3])).mappings().one()
        policy.run_as(tx, token, sa.update(table).where(table.c.sop_instance_uid == uids[4]).values(sha256=bytes(32)))
    path = core.config.segments_dir / f"{bytes(row['segment_id']).hex()}.seg"
    with path.open("r+b") as file:
        file.seek(row["record_offset"] + 400)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes((byte[0] ^ 1,)))
    action(it, "CT1", asked("1.9.1", *uids.values()))
    run(it)
    assert told(listener.reports[0][1]) == ({uids[5]}, {uids[3]: 0x0110, uids[4]: 0x0110})


def test_other_bytes_under_a_uid_are_not_what_is_kept(it: Clinic, listener: Listener) -> None:
    modality(it, port=listener.port)
    send(it, "CT1", instance(1, study="1.2.3"), instance(1, study="1.2.3", ImageComments="again"))
    action(it, "CT1", asked("1.9.1", ONE))
    run(it)
    assert told(listener.reports[0][1]) == (set(), {ONE: 0x0110})


@pytest.mark.parametrize(("request_", "options", "status"), [
    (asked("1.9.1"), {}, 0x0115), (asked(None, ONE), {}, 0x0115), (asked("", ONE), {}, 0x0115), (asked("not a uid", ONE), {}, 0x0115),
    (asked("1.9.1", "1.2.a"), {}, 0x0115), (asked("1.9.1", ""), {}, 0x0115), (asked("1.9.1", ONE, ONE), {}, 0x0115),
    (asked("1.9.1", "1." * 60 + "1"), {}, 0x0115), (asked("1.9.1", ONE, sop_class=""), {}, 0x0115),
    (asked("1.9.1", ONE), {"kind": 2}, 0x0123), (asked("1.9.1", ONE), {"instance_uid": "1.2.3"}, 0x0112),
    (asked("1.9.1", *(f"1.2.3.{n}" for n in range(10_001))), {}, 0x0213),
    (large("1.9.1", ONE), {}, 0x0213),
])  # fmt: skip
def test_hostile_requests(module: Clinic, request_: Dataset, options: dict[str, Any], status: int) -> None:
    assert action(module, "CT1", request_, **options) == status
    assert states(module) == []


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    with clinic(tmp_path_factory.mktemp("hostile")) as made:
        modality(made)
        yield made


def test_without_the_right_there_is_no_context(it: Clinic) -> None:
    it.node.peers.add(the_console(it.node), "PLAIN", ["PLAIN"], networks=["127.0.0.1/32"], roles=["modality"])
    ae = AE(ae_title="PLAIN")
    ae.add_requested_context(SOP_CLASS)
    ae.add_requested_context("1.2.840.10008.1.1")
    association = ae.associate("127.0.0.1", it.plain_port, ae_title="STRONGROOM")
    assert [context.abstract_syntax for context in association.accepted_contexts] == ["1.2.840.10008.1.1"]
    association.release()


def test_the_same_request_again_and_another_under_its_uid(it: Clinic, listener: Listener) -> None:
    modality(it, port=listener.port)
    send(it, "CT1", instance(1, study="1.2.3"), instance(2, study="1.2.3"))
    for references in ((ONE,), (ONE,)):
        assert action(it, "CT1", asked("1.9.1", *references)) == 0
        run(it)
    assert [told(report) for _, report in listener.reports] == [({ONE}, {}), ({ONE}, {})]
    assert len(receipts(it)) == 2  # it was looked at again
    assert action(it, "CT1", asked("1.9.1", TWO)) == 0
    run(it)
    assert told(listener.reports[2][1]) == (set(), {TWO: 0x0131})


def test_the_same_request_again_after_its_report_was_forgotten(it: Clinic, listener: Listener) -> None:
    modality(it, port=listener.port)
    send(it, "CT1", instance(1, study="1.2.3"))
    assert action(it, "CT1", asked("1.9.1", ONE)) == 0
    run(it)
    with it.node.core.database.begin() as tx:
        deliveries.forget_delivered(tx, it.node.core.clock() + deliveries.KEEP_DONE + timedelta(minutes=1))
    assert action(it, "CT1", asked("1.9.1", ONE)) == 0
    run(it)
    assert [told(report) for _, report in listener.reports] == [({ONE}, {}), ({ONE}, {})]


def test_asked_again_it_is_looked_at_again(it: Clinic, listener: Listener) -> None:
    """What was deleted since is committed no more; what arrived since is."""
    modality(it, port=listener.port)
    send(it, "CT1", instance(1, study="1.2.3"))
    action(it, "CT1", asked("1.9.1", ONE, TWO))
    run(it)
    console = the_console(it.node)
    assert it.node.remove.reject(console, "clinical", "instance", ONE, reason="test") == 1
    send(it, "CT1", instance(2, study="1.2.3"))
    action(it, "CT1", asked("1.9.1", ONE, TWO))
    assert [one["state"] for one in it.node.commitments.list(console)] == ["checking", "reported"]
    action(it, "CT1", asked("1.9.1", TWO, ONE))
    assert len(states(it)) == 2  # one that waits to be checked is the same one
    run(it)
    assert [told(report) for _, report in listener.reports] == [({ONE}, {TWO: 0x0112}), ({TWO}, {ONE: 0x0112})]
    it.node.upkeep.checkpoint()
    found = {one["sop_instance_uid"]: one["reason"] for one in it.node.commitments.receipt(console, "1.9.1")["results"]}
    assert found == {ONE: 0x0112, TWO: 0}


def test_a_report_that_waited_is_not_sent_when_something_of_it_is_gone(it: Clinic) -> None:
    """The peer was away when it was checked; what was deleted meanwhile is not reported as committed."""
    port = free_port()
    modality(it, port=port)
    send(it, "CT1", instance(1, study="1.2.3"), instance(2, study="1.2.3"))
    action(it, "CT1", asked("1.9.1", ONE, TWO))
    run(it)
    console = the_console(it.node)
    assert it.node.remove.reject(console, "clinical", "instance", ONE, reason="test") == 1
    listener = Listener("CT1", port)
    it.node.forwarding.retry(console)
    run(it)
    assert listener.reports == []
    run(it)
    assert [told(report) for _, report in listener.reports] == [({TWO}, {ONE: 0x0112})]
    assert [one["state"] for one in it.node.commitments.list(console)] == ["reported", "replaced"]
    listener.close()


def test_one_that_lost_its_lease_closes_nothing(it: Clinic, listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    modality(it, port=listener.port)
    send(it, "CT1", instance(1, study="1.2.3"))
    action(it, "CT1", asked("1.9.1", ONE))
    key, service = it.node.commitments.list(the_console(it.node))[0]["id"], it.node.commitments
    real, others = commitments_module.Commitments._close, []

    def slow(self: Any, *args: Any) -> None:
        if not others:
            others.append(None)
            with it.node.core.database.begin() as tx:
                tx.execute(sa.update(commitment).values(leased_until=it.node.core.clock() - timedelta(seconds=1)))
            thread = threading.Thread(target=lambda: others.append(service.check(key)))
            thread.start()
            thread.join()
        real(self, *args)

    monkeypatch.setattr(commitments_module.Commitments, "_close", slow)
    assert service.check(key) is None
    assert others[1] is not None
    assert len(receipts(it)) == 1


def test_a_check_that_fails_is_given_back(it: Clinic, listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    modality(it, port=listener.port)
    send(it, "CT1", instance(1, study="1.2.3"))
    action(it, "CT1", asked("1.9.1", ONE))

    def fails(*_: Any) -> None:
        message = "of no kind that is known"
        raise RuntimeError(message)

    with monkeypatch.context() as patch:
        patch.setattr(commitment_check.Checker, "check", fails)
        with pytest.raises(RuntimeError):
            run(it)
    assert not it.node.commitments.check_next()  # later
    with it.node.core.database.begin() as tx:
        tx.execute(sa.update(commitment).values(run_at=it.node.core.clock() - timedelta(seconds=1)))
    run(it)
    assert [told(report) for _, report in listener.reports] == [({ONE}, {})]


def test_a_report_waits_for_its_peer(it: Clinic) -> None:
    """Not listening, then refusing, then taking it; the queue is in the index, whoever delivers."""
    port = free_port()
    modality(it, port=port)
    send(it, "CT1", instance(1, study="1.2.3"))
    action(it, "CT1", asked("1.9.1", ONE))
    run(it)
    forwarding, console = it.node.forwarding, the_console(it.node)
    row, = forwarding.destinations(console)
    assert (row["state"], row["waiting"], row["failures"], row["reason"]) == ("unreachable", 1, 1, "nothing accepts connections there")
    assert it.node.deliveries.claim() is None  # backs off
    assert states(it) == [("waiting", 0)]
    listener = Listener("CT1", port, answers=[0x0110])
    assert forwarding.retry(console, destination="CT1") == 1
    run(it)
    queued, = forwarding.queue(console)
    assert (queued["state"], queued["attempts"], queued["reason"]) == ("waiting", 1, "it answered the report with status 0110")
    forwarding.retry(console)
    run(it)
    assert len(listener.reports) == 2
    assert states(it) == [("reported", 0)]
    listener.close()


def test_a_crash_between_check_and_report_loses_nothing(it: Clinic, listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    modality(it, port=listener.port)
    send(it, "CT1", instance(1, study="1.2.3"))
    action(it, "CT1", asked("1.9.1", ONE))

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # in the midst of the check
        patch.setattr(commitments_module.Commitments, "_close", dies)
        with pytest.raises(KeyboardInterrupt):
            run(it)
        # the process that had it is gone: its lease names one that does not run
        with it.node.core.database.begin() as tx:
            tx.execute(sa.update(commitment).values(leased_by="999999999-1"))
    with monkeypatch.context() as patch:  # after the peer took it, before that was noted
        patch.setattr(commitments_module.Commitments, "reported", dies)
        with pytest.raises(KeyboardInterrupt):
            run(it)
    run(it)
    assert [told(report) for _, report in listener.reports] == [({ONE}, {})] * 2  # twice rather than never
    assert len(receipts(it)) == 1
    assert states(it) == [("reported", 0)]


def test_what_was_confirmed_meanwhile_is_not_told_again(it: Clinic) -> None:
    """The peer takes the second on the association it asked on, while the first goes to it on another."""
    taken: list[str] = []

    def take(report: Dataset) -> None:
        taken.append(report.TransactionUID)
        with it.node.core.database.read() as tx:
            other = tx.execute(sa.select(commitment.c.id).where(commitment.c.transaction_uid != report.TransactionUID)).scalar_one()
        it.node.commitments.reported(other)

    listener = Listener("CT1", takes=take)
    modality(it, port=listener.port)
    send(it, "CT1", instance(1, study="1.2.3"))
    for transaction in ("1.9.1", "1.9.2"):
        action(it, "CT1", asked(transaction, ONE))
    run(it)
    run(it)
    assert taken == ["1.9.1"]
    assert states(it) == [("reported", 0)] * 2
    listener.close()


def test_two_processes_do_not_send_at_once(it: Clinic, listener: Listener) -> None:
    modality(it, port=listener.port)
    send(it, "CT1", instance(1, study="1.2.3"))
    for n in range(5):
        action(it, "CT1", asked(f"1.9.{n}", ONE))
    threads = [Delivering(it.node, pause_s=0.05, senders=3) for _ in range(2)]
    for one in threads:
        one.start()
    try:
        assert eventually(lambda: states(it) == [("reported", 0)] * 5)
    finally:
        for one in threads:
            one.stop()
    assert sorted(report.TransactionUID for _, report in listener.reports) == [f"1.9.{n}" for n in range(5)]


def test_a_removed_peer_is_told_nothing(it: Clinic, listener: Listener) -> None:
    modality(it, port=listener.port)
    send(it, "CT1", instance(1, study="1.2.3"))
    action(it, "CT1", asked("1.9.1", ONE))
    it.node.peers.remove(the_console(it.node), "CT1")
    run(it)
    assert listener.reports == []
    assert states(it) == [("waiting", 1)]


def test_on_the_same_association(it: Clinic) -> None:
    modality(it, same=True)
    send(it, "CT1", instance(1, study="1.2.3"))
    reports: list[tuple[int, Dataset]] = []
    came = threading.Event()

    def take(event: Any) -> tuple[int, None]:
        reports.append((event.request.EventTypeID, event.event_information))
        came.set()
        return 0, None

    with it.association("CT1", SOP_CLASS, evt_handlers=[(evt.EVT_N_EVENT_REPORT, take)]) as association:
        status, _ = association.send_n_action(asked("1.9.1", ONE, "1.2.77"), 1, SOP_CLASS, WELL_KNOWN)
        assert status.Status == 0
        assert came.wait(60)
        assert eventually(lambda: states(it) == [("reported", 1)])
        status, _ = association.send_n_action(asked("1.9.2", ONE), 1, SOP_CLASS, WELL_KNOWN)
        assert eventually(lambda: len(reports) == 2)
    assert [(kind, told(report)) for kind, report in reports] == [(2, ({ONE}, {"1.2.77": 0x0112})), (1, ({ONE}, {}))]


def test_on_the_same_association_when_the_peer_leaves_at_once(it: Clinic, listener: Listener) -> None:
    """The queue reports on an association of its own instead."""
    modality(it, port=listener.port, same=True)
    send(it, "CT1", instance(1, study="1.2.3"))
    ae = AE(ae_title="CT1")
    ae.add_requested_context(SOP_CLASS)
    refuses = [(evt.EVT_N_EVENT_REPORT, lambda _event: (0x0110, None))]
    association = ae.associate("127.0.0.1", it.plain_port, ae_title="STRONGROOM", evt_handlers=refuses)  # type: ignore[arg-type]
    association.send_n_action(asked("1.9.1", ONE), 1, SOP_CLASS, WELL_KNOWN)
    association.abort()
    assert eventually(lambda: states(it) == [("waiting", 0)])
    run(it)
    assert listener.reports == []  # the association it came on has a head start
    clock = it.node.core.clock
    with it.node.core.database.begin() as tx:
        tx.execute(sa.update(delivery).values(run_at=clock() - timedelta(seconds=1)))
    run(it)
    assert told(listener.reports[0][1]) == ({ONE}, {})


def test_the_receipt_is_proved_by_public_keys_alone(it: Clinic, listener: Listener) -> None:
    modality(it, port=listener.port)
    files = {ONE: instance(1, study="1.2.3"), TWO: instance(2, study="1.2.3")}
    send(it, "CT1", *files.values())
    action(it, "CT1", asked("1.9.1", ONE, TWO, "1.2.77"))
    run(it)
    it.node.upkeep.checkpoint()
    console = the_console(it.node)
    receipt = it.node.commitments.receipt(console, "1.9.1")
    checked = proofs.check(receipt["proof"])
    assert checked.leaf["k"] == "committed"
    # the leaf commits to the body, the body to results and seals
    assert opened_by(bytes.fromhex(receipt["salt"]), receipt["body"].encode()).hex() == checked.leaf["c"]
    detail = json.loads(receipt["body"])["detail"]
    assert (detail["transaction_uid"], detail["references"], detail["failed"]) == ("1.9.1", 3, 1)
    rows = [[one["sop_class_uid"], one["sop_instance_uid"], one["reason"], one["study_instance_uid"], one["sha256"]]
            for one in receipt["results"]]
    assert hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest() == detail["results_sha256"]
    stored = [(one["sop_instance_uid"], bytes.fromhex(one["sha256"])) for one in receipt["results"] if one["reason"] == 0]
    assert detail["seals"] == {"1.2.3": seals.seal(stored).hex()}
    assert it.node.oversight.prove(console, "1.9.1").splitlines()[:3] == receipt["proof"].splitlines()[:3]
    with pytest.raises(NotFound):
        it.node.commitments.receipt(console, "1.9.2")


def test_event_information_is_what_pydicom_reads() -> None:
    import io

    from pydicom.filereader import read_dataset

    report = Report(1, "1.9", tuple(Reference(CT, f"1.2.{n}") for n in range(3)), ((Reference(CT, "1.2.9"), 0x0112),))
    for explicit in (True, False):
        found = read_dataset(io.BytesIO(commitment_module.data_set(report, explicit=explicit)), not explicit, True)
        assert told(found) == ({"1.2.0", "1.2.1", "1.2.2"}, {"1.2.9": 0x0112})


def test_orthanc_asks_for_commitment(tmp_path: Path, program: Callable[[str, str], str]) -> None:
    dicom, http = free_port(), free_port()

    def ask(path: str, body: Any = None) -> Any:
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{http}{path}", data=data, timeout=30) as answer:
            return json.loads(answer.read())

    folder = tmp_path / "archive"
    folder.mkdir()
    with clinic(folder) as it:
        modality(it, "ORTHANC", port=dicom)
        (tmp_path / "orthanc.json").write_text(json.dumps({
            "Name": "peer", "StorageDirectory": str(tmp_path / "orthanc"), "IndexDirectory": str(tmp_path / "orthanc"), "HttpPort": http,
            "DicomPort": dicom, "DicomAet": "ORTHANC", "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "Plugins": [],
            "DicomModalities": {"ours": {"AET": "STRONGROOM", "Host": "127.0.0.1", "Port": it.plain_port, "AllowStorageCommitment": True}},
        }))
        command = [program("Orthanc", "orthanc"), str(tmp_path / "orthanc.json")]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                assert eventually(lambda: listening(http) and listening(dicom))
                key = ask("/instances", instance(1, study="1.2.3"))["ID"]
                other = ask("/instances", instance(2, study="1.2.3"))["ID"]
                ask("/modalities/ours/store", [key])
                found = []
                for keys in ([key], [key, other]):
                    transaction = ask("/modalities/ours/storage-commitment", {"Resources": keys})["ID"]
                    run(it)
                    path = f"/storage-commitment/{transaction}"
                    assert eventually(lambda path=path: ask(path)["Status"] != "Pending")
                    found.append(ask(path))
            finally:
                process.terminate()
                process.wait(60)
    assert [one["Status"] for one in found] == ["Success", "Failure"]
    assert [len(found[1]["Success"]), [one["FailureReason"] for one in found[1]["Failures"]]] == [1, [0x0112]]
