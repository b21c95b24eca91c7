"""Deliveries on PostgreSQL and over mutual TLS: the same guarantees as elsewhere, and a lease that lasts as long as it is needed."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pynetdicom import AE, evt

from archive.access.grants import Target
from archive.db.tables import delivery, delivery_destination
from archive.dimse.forward import Courier
from archive.services import deliveries
from archive.services.commitments import Reference
from archive.services.deliveries import LEASE, Claimed, Deliveries, LeaseLost
from tests.dimse.clinic import EXPLICIT, IMPLICIT, Clinic, Receiver, received
from tests.dimse.fakes import eventually
from tests.dimse.test_commitment import (  # noqa: F401 # fixture, and tests that run here on PostgreSQL
    ONE,
    SOP_CLASS,
    listener,
    test_a_crash_between_check_and_report_loses_nothing,
    test_two_processes_do_not_send_at_once,
    told,
)
from tests.dimse.test_forward import (  # noqa: F401 # fixture, and tests that run here on PostgreSQL
    EVERYTHING,
    forwarding,
    queue,
    receiver,
    rule,
    run,
    test_a_crash_loses_nothing,
    test_threads_of_two_processes_send_each_once,
)
from tests.dimse.test_scu import listening
from tests.ports import free_port
from tests.services.archives import CT, instance, the_console


@pytest.fixture
def it(tmp_path: Path, postgresql_url: str) -> Iterator[Clinic]:
    with forwarding(tmp_path, sections={"database": {"url": postgresql_url}}) as made:
        yield made


def test_over_mutual_tls_to_the_holder_of_the_certificate(it: Clinic, program: Callable[[str, str], str], tmp_path: Path) -> None:
    """Instances to dcmtk's storescp, which wants a certificate of us; to whoever else listens there nothing goes."""
    port = free_port()
    bound, other = it.tls_peer("SECURE", port=port, target=EVERYTHING), it.tls_peer("OTHER")
    it.put(*(instance(n, study="1.2.3") for n in (1, 2)))
    rule(it, to="SECURE")
    for certificate, expected, files in ((other, [("waiting", 0, "")] * 2, 0), (bound, [("done", 0, "")] * 2, 2)):
        out = tmp_path / f"{certificate.name}-out"
        out.mkdir()
        command = [
            program("storescp", "dcmtk"), "-aet", "SECURE", "-od", str(out), "-uf", "+tls", str(certificate / "key.pem"),
            str(certificate / "cert.pem"), "+cf", str(certificate / "ca.pem"), "-rc", str(port),
        ]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                assert eventually(lambda: listening(port))
                run(it)
            finally:
                process.terminate()
                process.wait(60)
        assert (queue(it), len(received(out))) == (expected, files)
        state, = [row for row in it.node.deliveries.destinations() if row["destination"] == "SECURE"]
        assert bool(state["failures"]) is (certificate is other)
        with it.node.core.database.begin() as tx:
            tx.execute(sa.update(delivery_destination).values(retry_at=None))


def test_a_report_over_mutual_tls(it: Clinic) -> None:
    """N-EVENT-REPORT to a modality that listens with its certificate and wants ours."""
    files = it.tls_peer("CT7")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files / "cert.pem", files / "key.pem")
    context.load_verify_locations(files / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    reports: list[Any] = []
    ours: list[Any] = []

    def take(event: Any) -> tuple[int, None]:
        reports.append(event.event_information)
        ours.append(event.assoc.dul.socket.socket.getpeercert())
        return 0, None

    ae = AE(ae_title="CT7")
    ae.add_supported_context(SOP_CLASS, [EXPLICIT, IMPLICIT], scu_role=False, scp_role=True)
    server: Any = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, take)], ssl_context=context)
    try:
        console = the_console(it.node)
        peers = it.node.peers
        made = next(row for row in peers.list(console) if row["name"] == "CT7")
        with it.node.core.database.begin() as tx:
            from archive.db.tables import peer

            tx.execute(sa.update(peer).where(peer.c.name == "CT7").values(host="127.0.0.1", port=server.socket.getsockname()[1]))
        it.grant("CT7", Target("everything"), role="radiologist")
        it.node.accounts.assign_role(console, "CT7", "modality")
        it.put(instance(1, study="1.2.3"))
        from archive.access.subject import Subject

        them = Subject(made["id"], "CT7", "device", "dimse", peer_id=made.get("peer_id", 1))
        it.node.commitments.request(them, "clinical", "1.9.1", [Reference(CT, ONE)], calling_ae_title="CT7")
        run(it)
    finally:
        server.shutdown()
    assert [told(one) for one in reports] == [({ONE}, {})]
    assert ours[0]["subject"]


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    with forwarding(tmp_path_factory.mktemp("quiet")) as made:
        yield made


def elsewhere(of: Deliveries) -> Claimed | None:
    """What another thread may deliver to; its holder is another one."""
    found: list[Claimed | None] = []
    thread = threading.Thread(target=lambda: found.append(of.claim()))
    thread.start()
    thread.join(60)
    return found[0]


def test_a_lease_lasts_as_long_as_one_delivery_goes_on(quiet: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    away = Receiver("SLOW")
    quiet.plain_peer("SLOW", port=away.port, target=EVERYTHING)
    quiet.put(instance(1, study="1.2.3", rows=512))
    rule(quiet, to="SLOW")
    quiet.node.forwarding.look()
    now = quiet.node.core.clock() + timedelta(seconds=1)
    both = Deliveries(replace(quiet.node.core, clock=lambda: now))
    claimed = both.claim()
    assert claimed is not None
    holding = both.holding(claimed)
    for _ in range(10):  # fifty minutes of one C-STORE
        now += timedelta(minutes=5)
        holding()
        assert elsewhere(both) is None
    both_paused = quiet.node.forwarding
    both_paused.pause(the_console(quiet.node), "SLOW", paused=True)
    now += timedelta(minutes=6)
    holding()  # the instance under way goes to its end,
    assert not both.keep(claimed)  # and nothing else
    both_paused.pause(the_console(quiet.node), "SLOW", paused=False)
    now += LEASE + timedelta(seconds=1)
    assert elsewhere(both) is not None
    with pytest.raises(LeaseLost):
        holding()
    # So does a sender: it asks between the pieces, and goes no further once it has lost the destination.
    asked = []

    def lost(*_: object) -> Callable[[], None]:
        def hold() -> None:
            asked.append(1)
            if len(asked) == 3:
                raise LeaseLost("another process delivers to this destination")
        return hold

    with quiet.node.core.database.begin() as tx:
        tx.execute(sa.update(delivery_destination).values(leased_by="", leased_until=None))
        tx.execute(sa.update(delivery).values(run_at=quiet.node.core.clock() - timedelta(seconds=1)))
    monkeypatch.setattr(deliveries.Deliveries, "holding", lost)
    assert Courier(quiet.node).deliver(lambda: False)
    assert (len(asked), away.received) == (3, [])
    assert [state for state, _, _ in queue(quiet)] == ["waiting"]
    away.close()
