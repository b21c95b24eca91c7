"""Storing: what is kept, what is refused, what happens to duplicates, conflicts and contradictions."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
import sqlalchemy as sa

from archive.access import policy
from archive.db.tables import held, instance, ledger_leaf
from archive.errors import ArchiveError, DatabaseUnavailable, Forbidden, InvalidInstance, OutOfSpace, ReadOnly
from archive.index import columns
from archive.keys.keyring import Keyring
from archive.node import Node
from archive.serve import start
from archive.services.store import Incoming, Source
from tests.services import archives


@pytest.fixture
def node(tmp_path: Path, engine: dict[str, Any]) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path, **engine)) as node:
        yield node


def part10(node: Node, study: str = "1.2.3") -> list[bytes]:
    """Everything of a study as it comes out again, by the owner."""
    admin = archives.user(node)
    found = node.retrieve.instances(admin, "clinical", study)
    return [b"".join(bytes(view) for view in node.retrieve.open(admin, one)) for one in found]


def rows(node: Node, table: sa.Table) -> int:
    with node.core.database.read() as tx:
        return int(policy.run_as(tx, policy.system("verify"), sa.select(sa.func.count()).select_from(table)).scalar_one())


@pytest.mark.parametrize("pieces", [1, 7, 1000, 1 << 20])
def test_bytes_come_out_as_they_came_in_however_they_are_cut(node: Node, pieces: int) -> None:
    data = archives.instance()
    outcome = archives.store(node, data, pieces=pieces)
    assert outcome.status == "stored"
    assert part10(node) == [data]


def test_a_large_instance_is_streamed_and_kept_exactly(node: Node) -> None:
    data = archives.instance(rows=2048)  # 8 MiB of pixels: past the buffer
    assert len(data) > 8 << 20
    assert archives.store(node, data, pieces=300_000).status == "stored"
    assert part10(node) == [data]
    before = rows(node, ledger_leaf)
    assert archives.store(node, data).status == "duplicate"
    assert rows(node, ledger_leaf) == before + 1
    assert node.verify.run(archives.the_console(node), "full").findings == []


def test_what_a_long_header_says_is_made_before_the_turn_to_write(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header of 5 MB takes seconds, in which nobody else could store."""
    named = "\\".join(f"Doe^{n}" for n in range(5_000))
    files = [
        archives.instance(OtherPatientNames=named, PatientComments="x" * 40_000),
        archives.instance(number=2, OtherPatientNames=named + "\\Poe", PatientComments="y" * 40_000),
    ]
    row = columns._row
    made: list[int] = []

    def watched(sources: Any, elements: Any) -> dict[str, Any]:
        node.core.database._turns.require_outside()
        made.append(len(sources))
        return row(sources, elements)

    monkeypatch.setattr(columns, "_row", watched)
    assert [archives.store(node, data).status for data in files] == ["stored", "stored"]
    assert len(made) == 6  # once each


def test_a_data_set_is_kept_byte_for_byte_and_meta_is_the_same_from_any_peer(node: Node) -> None:
    file = archives.instance()
    dataset = pydicom.dcmread(io.BytesIO(file))
    start = file.index(b"\x08\x00\x16\x00UI")

    def send(aet: str) -> str:
        incoming = node.store.open_dataset(
            archives.the_console(node), "clinical", Source("dimse", calling_ae_title=aet), sop_class_uid=dataset.SOPClassUID,
            sop_instance_uid=dataset.SOPInstanceUID, transfer_syntax_uid="1.2.840.10008.1.2.1",
        )
        incoming.write(file[start:])
        return incoming.finish().status

    assert send("CT1") == "stored"
    (kept,) = part10(node)
    assert kept.endswith(file[start:])
    assert b"CT1" not in kept
    assert send("CT2") == "duplicate"


def test_a_request_that_names_no_instance_makes_no_file_that_names_none(node: Node) -> None:
    """What is kept has file meta information made of the request; without a SOP Instance UID there it is no Part 10 file."""
    with pytest.raises(InvalidInstance) as refusal:
        node.store.open_dataset(
            archives.the_console(node), "clinical", Source("dimse"), sop_class_uid=archives.CT, sop_instance_uid="",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
        )
    assert refusal.value.reason == "uid-mismatch"


def test_same_data_set_under_other_file_meta_is_a_duplicate(node: Node) -> None:
    data = archives.instance()
    archives.store(node, data)
    other = data.replace(b"1.2.3.4\0", b"1.2.3.9\0", 1)
    assert other != data
    assert archives.store(node, other).status == "duplicate"
    assert part10(node) == [data]


def test_other_bytes_under_a_stored_uid_are_quarantined_once_and_the_first_stays(node: Node) -> None:
    first, second = archives.instance(), archives.instance(StudyDescription="other")
    archives.store(node, first)
    for _ in range(2):
        assert archives.store(node, second).status == "conflict"
    assert part10(node) == [first]
    assert rows(node, held) == 1
    assert node.verify.run(archives.the_console(node), "full").findings == []


def test_a_study_of_another_patient_is_held_and_nobody_sees_it(node: Node) -> None:
    archives.store(node, archives.instance(1))
    outcome = archives.store(node, archives.instance(2, PatientID="P2", PatientName="Canary^Other"))
    assert outcome.status == "held"
    assert len(part10(node)) == 1
    console = archives.the_console(node)
    (waiting,) = node.reconcile.list(console)
    assert (waiting["kind"], waiting["reason"]) == ("held", "patient")
    node.reconcile.accept(console, waiting["id"], reason="same person, typing error")
    assert len(part10(node)) == 2
    assert node.reconcile.list(console) == []
    assert node.verify.run(console, "full").findings == []


def test_a_held_instance_can_be_turned_away_for_good(node: Node) -> None:
    archives.store(node, archives.instance(1))
    archives.store(node, archives.instance(2, PatientID="P2"))
    console = archives.the_console(node)
    (waiting,) = node.reconcile.list(console)
    node.reconcile.reject(console, waiting["id"], reason="wrong patient")
    assert len(part10(node)) == 1
    assert node.reconcile.list(console) == []
    again = archives.store(node, archives.instance(2, PatientID="P2"))
    assert (again.status, again.decided) == ("held", True)
    other = archives.store(node, archives.instance(3, PatientID="P2"))
    assert (other.status, other.decided) == ("held", False)


def test_an_instance_in_conflict_can_take_the_stored_ones_place(node: Node) -> None:
    first, second = archives.instance(), archives.instance(StudyDescription="corrected")
    archives.store(node, first)
    archives.store(node, second)
    console = archives.the_console(node)
    (waiting,) = node.reconcile.list(console)
    assert "00081030" in node.reconcile.show(console, waiting["id"])["differing"]
    node.reconcile.accept(console, waiting["id"], reason="the modality corrected it")
    assert part10(node) == [second]
    assert node.verify.run(console, "full").findings == []


def test_an_instance_accepted_over_a_rejected_one_is_seen(node: Node) -> None:
    first, second = archives.instance(), archives.instance(StudyDescription="corrected")
    archives.store(node, first)
    archives.store(node, second)
    console = archives.the_console(node)
    node.remove.reject(console, "clinical", "instance", "1.2.3.1.1", reason="wrong")
    (waiting,) = node.reconcile.list(console)
    node.reconcile.accept(console, waiting["id"], reason="the modality corrected it")
    assert part10(node) == [second]
    assert node.verify.run(console, "full").findings == []


def test_without_a_patient_id_each_study_has_a_patient_of_its_own_until_one_is_named(node: Node) -> None:
    archives.store(node, archives.instance(1, study="1.2.3", PatientID=""))
    archives.store(node, archives.instance(1, study="1.2.4", PatientID=None))
    with node.core.database.read() as tx:
        from archive.db.tables import study

        found = policy.run_as(tx, policy.system("verify"), sa.select(study.c.patient_pk)).scalars().all()
    assert len(set(found)) == 2
    assert archives.store(node, archives.instance(2, study="1.2.3", PatientID="P9")).status == "stored"


def test_a_preamble_that_could_be_another_format_is_cleared_and_recorded(node: Node) -> None:
    data = archives.instance()
    polyglot = b"MZ".ljust(128, b"\x90") + data[128:]
    outcome = archives.store(node, polyglot, pieces=50)
    assert outcome.status == "stored"
    assert any("preamble" in finding.text for finding in outcome.findings)
    assert part10(node) == [data]
    found = node.retrieve.instances(archives.user(node), "clinical", "1.2.3")[0]
    from archive.ledger import statements

    said = statements.verify(node.core.vault.sections(found.row.ref).statement, node.keyring.public_keys())
    assert said["orig"] == {"sha256": hashlib.sha256(polyglot).hexdigest(), "size": len(polyglot)}
    assert said["sha256"] == hashlib.sha256(data).hexdigest()


def test_a_tiff_preamble_is_kept(node: Node) -> None:
    data = b"II*\0".ljust(128, b"\x01") + archives.instance()[128:]
    assert archives.store(node, data).status == "stored"
    assert part10(node) == [data]


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "no-meta"), (b"hello " * 100, "no-meta"), (archives.instance()[:400], "cannot-understand"),
     (archives.instance(SOPInstanceUID="../../etc/passwd"), "bad-uid"), (archives.instance(StudyInstanceUID=None), "missing-uid")],
)
def test_what_is_no_instance_is_refused_and_leaves_nothing(node: Node, data: bytes, reason: str) -> None:
    leaves = rows(node, ledger_leaf)
    with pytest.raises(InvalidInstance) as refusal:
        archives.store(node, data)
    assert refusal.value.reason in {reason, "cannot-understand"}
    assert rows(node, instance) == 0
    assert rows(node, ledger_leaf) == leaves


def test_another_study_than_the_one_addressed_is_refused(node: Node) -> None:
    with pytest.raises(InvalidInstance) as refusal:
        archives.store(node, archives.instance(), study="9.9.9")
    assert refusal.value.reason == "wrong-study"
    assert archives.store(node, archives.instance(), study="1.2.3").status == "stored"


def test_who_may_not_store_stores_nothing(node: Node) -> None:
    console = archives.the_console(node)
    node.accounts.add_user(console, "reader", roles=["referrer"], password=archives.PASSWORD)
    with pytest.raises(Forbidden):
        archives.store(node, archives.instance(), subject=archives.user(node, "reader"))
    assert rows(node, instance) == 0


def test_a_radiologist_may_store_reports_but_no_images(node: Node) -> None:
    node.accounts.add_user(archives.the_console(node), "rad", roles=["radiologist"], password=archives.PASSWORD)
    rad = archives.user(node, "rad")
    with pytest.raises(Forbidden):
        archives.store(node, archives.instance(), subject=rad)
    report = archives.instance(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Modality="SR")
    assert archives.store(node, report, subject=rad).status == "stored"


def test_below_the_reserve_stores_are_refused_and_reads_go_on(tmp_path: Path) -> None:
    config = archives.made(tmp_path)
    data = archives.instance()
    with archives.opened(config) as node:
        archives.store(node, data)
    full = archives.configured(tmp_path, storage={"reserve": "99.999%"})
    with archives.opened(full) as node:
        with pytest.raises(OutOfSpace):
            archives.store(node, archives.instance(2))
        assert part10(node) == [data]
        assert archives.store(node, data).status == "duplicate"


@pytest.mark.parametrize(("reserve", "said"), [("9000TiB", "larger than the storage disk"), ("99.999%", "reserve is reached")])
def test_a_reserve_that_keeps_everything_out_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, reserve: str, said: str) -> None:
    config = archives.made(tmp_path, storage={"reserve": reserve})
    with caplog.at_level("ERROR"):
        start.prepare(config, Keyring.open(config), lambda _node: None)
    assert said in caplog.text
    with archives.opened(config) as node:
        [check] = [one for one in node.health.checks() if one.name == "space"]
        assert check.state == "problem"
        assert said in check.detail
        with pytest.raises(OutOfSpace, match=said):
            archives.store(node, archives.instance())


def test_a_read_only_archive_stores_nothing(tmp_path: Path) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config) as node:
        archives.store(node, archives.instance())
    from archive.node import open_node

    node = open_node(config, read_only="the ledger was rolled back")
    try:
        with pytest.raises(ReadOnly):
            archives.store(node, archives.instance(2))
    finally:
        node.close()


def test_memory_stays_small_while_a_large_instance_arrives(tmp_path: Path) -> None:
    archives.made(tmp_path)
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from tests.services import archives
        from archive.services.store import Incoming, Source
        from tests.memory import peak_bytes
        config = archives.configured(Path(sys.argv[1]))
        with archives.opened(config) as node:
            small = archives.instance()
            archives.store(node, archives.instance(7, study="1.2.9"))
            before = peak_bytes()
            at = small.index(b"\\xe0\\x7f\\x10\\x00OW")
            length = 512 << 20
            head = small[:at + 8] + length.to_bytes(4, "little")
            incoming = node.store.open(archives.the_console(node), "clinical", Source("stow"))
            incoming.write(head)
            block = bytes(range(256)) * 4096
            for _ in range(length // len(block)):
                incoming.write(block)
            assert incoming.finish().status == "stored"
            print((peak_bytes() - before) >> 20)
    """)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < 100


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("became", ["rejected", "shredded"])
def test_nobody_is_told_that_something_is_kept_which_went_while_it_came_again(
    node: Node, monkeypatch: pytest.MonkeyPatch, became: str, *, large: bool
) -> None:
    """A large one is compared with what is there when its head has come, any other before its commit."""
    data = archives.instance(1, rows=1700) if large else archives.instance(1)
    console = archives.the_console(node)
    assert archives.store(node, data).status == "stored"

    def away() -> None:
        if became == "shredded":
            node.shred.run(console, "1.2.3", reason="gone")
        else:
            node.remove.reject(console, "clinical", "study", "1.2.3", reason="wrong")

    again = node.store.open(console, "clinical", Source("stow"))
    again.write(data[:-100])
    if large:
        away()
    else:
        sections = type(node.core.vault).sections

        def looked_at(self: Any, ref: Any) -> Any:
            found = sections(self, ref)
            away()
            return found

        monkeypatch.setattr(type(node.core.vault), "sections", looked_at)
    again.write(data[-100:])
    with pytest.raises(ArchiveError, match=r"while it arrived|key was destroyed|destroyed"):
        again.finish()
    monkeypatch.undo()
    assert archives.store(node, data).status == ("duplicate" if became == "rejected" else "stored")


def test_what_is_stored_is_told_so_when_nobody_can_say_what_else_may_be_told(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    archives.store(node, archives.instance(1, StudyDescription="one"))

    def broken(_self: Any, _arrival: Any) -> bool:
        raise DatabaseUnavailable("gone", remedy="")

    monkeypatch.setattr(Incoming, "_sees", broken)
    found = archives.store(node, archives.instance(2, StudyDescription="other"), subject=archives.user(node))
    assert found.status == "stored"
    assert not [one for one in found.findings if "differs" in one.text]
    monkeypatch.undo()
    found = archives.store(node, archives.instance(3, StudyDescription="other"), subject=archives.user(node))
    assert [one for one in found.findings if "differs" in one.text]
