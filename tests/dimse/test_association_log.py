"""Records of associations: each way one can end, refusals that repeat, no patient data, nothing on the way of a store."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pydicom
import pytest
import sqlalchemy as sa
from pynetdicom import AE

from archive.access.grants import Target
from archive.cli.main import run
from archive.cli.session import Session
from archive.db.tables import association_record
from archive.errors import Forbidden
from archive.services import association_log
from archive.services.association_log import AssociationRecord
from tests.dimse.clinic import FIND, Clinic, Receiver, clinic
from tests.dimse.fakes import eventually
from tests.services import archives
from tests.services.archives import CT, instance, the_console

VERIFICATION = "1.2.840.10008.1.1"


@pytest.fixture
def made(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Clinic]:
    """A served archive; its parameter is how long an association may be idle."""
    with clinic(tmp_path, idle_timeout_s=getattr(request, "param", 60)) as it:
        it.put(instance(1))
        it.plain_peer("WS", target=Target("everything"))
        yield it


def records(made: Clinic, count: int, **asked: Any) -> list[dict[str, Any]]:
    """The newest records, once there are so many."""
    log = made.node.association_log
    found: list[dict[str, Any]] = []

    def there() -> bool:
        log.flush()
        found[:] = log.search(the_console(made.node), **asked)
        return len(found) >= count

    assert eventually(there), found
    return found


def test_what_was_agreed_and_done(made: Clinic) -> None:
    made.node.peers.add(the_console(made.node), "CT1", ["CT1"], networks=["127.0.0.1/32"])
    with made.association("CT1", VERIFICATION, CT, "1.2.840.10008.1.20.9", FIND) as association:
        assert association.send_c_echo().Status == 0
        whole = pydicom.dcmread(io.BytesIO(instance(2)))
        assert association.send_c_store(whole).Status == 0
        whole.SOPInstanceUID = "not a uid"
        assert association.send_c_store(whole).Status != 0
    row = records(made, 1)[0]
    assert (row["peer"], row["calling_ae_title"], row["called_ae_title"], row["address"], row["tls"]) == (
        "CT1", "CT1", "STRONGROOM", "127.0.0.1", False)
    assert (row["outcome"], row["reason"], row["failed"]) == ("released", "the peer released it", True)
    assert row["operations"] == {"C-ECHO": {"done": 1, "failed": 0}, "C-STORE": {"done": 2, "failed": 1}}
    assert row["negotiation"]["taken"] == {
        "Verification SOP Class": ["Explicit VR Little Endian"], "CT Image Storage": ["Explicit VR Little Endian"]}
    assert set(row["negotiation"]["refused"].values()) == {"not offered here", "not granted to this peer"}
    said = repr(row)
    assert not any(word in said for word in ("Canary", "P1", "1.2.3", "A1")), "no patient data"
    assert row["opened_at"] <= row["at"]


@pytest.mark.parametrize("made", [3], indirect=True)
def test_every_end(made: Clinic) -> None:
    for name in ("abort", "lost", "idle", "rubbish"):
        ae = AE(ae_title="WS")
        ae.add_requested_context(VERIFICATION)
        association = ae.associate("127.0.0.1", made.plain_port, ae_title="STRONGROOM")
        assert association.is_established
        connection = association.dul.socket.socket
        if name == "abort":
            association.abort()
        elif name == "idle":
            assert eventually(lambda: not association.is_established)  # noqa: B023 # called at once
        else:
            if name == "lost":
                connection.shutdown(socket.SHUT_RDWR)
            else:
                connection.sendall(b"\x0f\0\0\0\0\4abcd")
            assert eventually(lambda: not association.is_established)  # noqa: B023
        association.kill()
        connection.close()
    found = records(made, 4)
    assert sorted(row["outcome"] for row in found) == ["aborted", "failed", "lost", "timed-out"]
    assert all(row["failed"] for row in found)


def test_refusals_that_repeat_are_one_row_and_strangers_cannot_fill_the_table(made: Clinic) -> None:
    for _ in range(5):
        ae = AE(ae_title="NOBODY")
        ae.add_requested_context(VERIFICATION)
        # That it was a rejection is what the records say below: pynetdicom may take it for an abort when it is slow to read.
        assert not ae.associate("127.0.0.1", made.plain_port, ae_title="STRONGROOM").is_established
    with socket.create_connection(("127.0.0.1", made.plain_port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert stranger.recv(100)
    assert eventually(lambda: sorted(row["repeats"] for row in records(made, 2)) == [1, 5])
    found = records(made, 1, name="NOBODY")
    assert [(row["reason"], row["peer"], row["repeats"]) for row in found] == [("peer not recognised", "", 5)]
    log = made.node.association_log
    at = datetime.now(UTC)
    for number in range(5000):
        log.note(AssociationRecord(at, at, "refused", "peer not recognised", True, f"X{number}", "Y", "198.51.100.7"))
    log.flush()
    rows = log.search(the_console(made.node), limit=10_000)
    assert len(rows) <= association_log.REFUSED_ROWS + 1
    assert max(row["repeats"] for row in rows if row["reason"] == association_log.OTHERS) > 4900


def test_a_log_that_cannot_be_written_costs_nothing_but_itself(made: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    log = made.node.association_log
    monkeypatch.setattr(log, "_write", lambda _tx, _waiting: (_ for _ in ()).throw(sa.exc.OperationalError("x", {}, ValueError())))
    with made.association("WS", VERIFICATION) as association:
        assert association.send_c_echo().Status == 0
    log.flush()
    monkeypatch.undo()
    with made.association("WS", VERIFICATION) as association:
        assert association.send_c_echo().Status == 0
    assert records(made, 1)


def test_old_ones_and_too_many_are_forgotten(made: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    log, at = made.node.association_log, datetime.now(UTC)
    for days in (100, 91, 89, 1, 0):
        then = at - timedelta(days=days)
        log.note(AssociationRecord(then, then, "released", f"{days}", False))
    log.flush()
    database = made.node.core.database
    with database.begin() as tx:
        association_log.sweep(tx, at)
    assert [row["reason"] for row in records(made, 3)] == ["0", "1", "89"]
    monkeypatch.setattr(association_log, "KEEP_ROWS", 2)
    with database.begin() as tx:
        association_log.sweep(tx, at)
        assert tx.execute(sa.select(sa.func.count()).select_from(association_record)).scalar() == 2


def test_who_may_read_it(made: Clinic) -> None:
    console = the_console(made.node)
    made.node.accounts.add_user(console, "mia", roles=["technologist"], password=archives.PASSWORD)
    with pytest.raises(Forbidden):
        made.node.association_log.search(archives.user(made.node, "mia"))
    assert made.node.association_log.search(archives.user(made.node)) == []


def test_peer_log_and_peer_test_both_ways(made: Clinic, capsys: Any, program: Callable[[str, str], str]) -> None:
    class Here(Session):
        @property
        def node(self) -> Any:
            return made.node

        @property
        def config(self) -> Any:
            return made.node.config

        def close(self) -> None:
            """The clinic closes it."""

    receiver = Receiver("SCP1")
    try:
        made.plain_peer("SCP1", port=receiver.port)
        assert run(["peer", "test", "SCP1"], Here()) == 0
        told = capsys.readouterr().out
        assert "answered C-ECHO" in told
        assert "SCP1 has not called yet; it calls STRONGROOM@" in told
        assert run(["peer", "test", "SCP1", "--wait", "1"], Here()) == 1
        assert "did not call" in capsys.readouterr().out
        done = made.dcmtk(program("echoscu", "dcmtk"), "SCP1")
        assert done.returncode == 0
        records(made, 1, name="SCP1")
        assert run(["peer", "test", "SCP1"], Here()) == 0
        assert "1 C-ECHO; the peer released it" in capsys.readouterr().out
        assert run(["peer", "log", "SCP1", "--since", "1h"], Here()) == 0
        assert "1 C-ECHO" in capsys.readouterr().out
        assert run(["peer", "log", "--failed"], Here()) == 0
        assert "nothing to show" in capsys.readouterr().out
        assert run(["peer", "log", "--json"], Here()) == 0
        assert '"outcome":"released"' in capsys.readouterr().out
    finally:
        receiver.close()
