"""Tampering, exhaustively enough: whatever is flipped, cut, swapped, edited or rolled back is found, and no wrong byte is served."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.access import policy
from archive.access.grants import Target
from archive.db.tables import (
    audit_event,
    checkpoint,
    data_key,
    grants,
    instance,
    ledger_leaf,
    patient,
    role,
    segment,
    series,
    series_pack,
    statement,
    study,
)
from archive.errors import ArchiveError, IntegrityError, ReadOnly
from archive.node import Node, open_node
from archive.services import oversight
from archive.services.core import Core
from archive.services.verify import Mode
from tests.services import archives


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = archives.made(tmp_path)
    with archives.opened(config) as node:
        for number in (1, 2):
            archives.store(node, archives.instance(number))
        archives.store(node, archives.instance(1, study="1.2.4", PatientID="P2"))
    return tmp_path


@pytest.fixture
def node(folder: Path) -> Iterator[Node]:
    with archives.opened(archives.configured(folder)) as node:
        yield node


def codes(node: Node, mode: Mode = "full") -> set[str]:
    report = node.verify.run(archives.the_console(node), mode)
    assert report.ok == (not report.findings)
    return {finding.code for finding in report.findings}


def serve(node: Node, study: str = "1.2.3") -> list[bytes]:
    admin = archives.user(node)
    return [b"".join(bytes(view) for view in node.retrieve.open(admin, one)) for one in node.retrieve.instances(admin, "clinical", study)]


def place(node: Node, study: str = "1.2.3") -> tuple[Path, int, int]:
    ref = node.retrieve.instances(archives.user(node), "clinical", study)[0].row.ref
    return node.config.segments_dir / f"{ref.location.segment_id.hex()}.seg", ref.location.offset, ref.location.record_bytes


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 0x20]))


@pytest.mark.parametrize("mode", ["quick", "standard", "full", "keyless"])
def test_an_untouched_archive_is_sound(node: Node, mode: Mode) -> None:
    report = node.verify.run(archives.the_console(node), mode)
    assert report.findings == []
    assert report.checked >= (3 if mode != "keyless" else 1)


def test_every_header_byte_matters(node: Node) -> None:
    path, offset, _ = place(node)
    original = path.read_bytes()
    for at in range(0, 160, 3):
        flip(path, offset + at)
        assert codes(node, "standard") & {"V04", "V05", "V06"}, at
        with pytest.raises(IntegrityError):
            serve(node)
        path.write_bytes(original)
    assert codes(node) == set()


def test_a_flip_anywhere_in_the_body_is_found_and_never_served(node: Node) -> None:
    path, offset, length = place(node)
    original = path.read_bytes()
    for at in range(160, length, max(1, length // 40)):
        flip(path, offset + at)
        assert "V07" in codes(node), at
        with pytest.raises(IntegrityError):
            serve(node)
        path.write_bytes(original)


def test_who_sends_again_what_has_rotted_is_not_told_that_it_is_kept(node: Node) -> None:
    """It was answered as a duplicate by the record's header alone, and the sender's good copy was thrown away."""
    path, offset, length = place(node)
    original = path.read_bytes()
    data = serve(node)[0]
    for at in range(160, length, length // 20):
        flip(path, offset + at)
        with pytest.raises(ArchiveError):
            archives.store(node, data)
        path.write_bytes(original)
    assert archives.store(node, data).status == "duplicate"


def test_a_cut_segment_and_a_missing_one(node: Node, folder: Path) -> None:
    path, offset, length = place(node)
    original = path.read_bytes()
    path.write_bytes(original[: offset + length - 10])
    assert codes(node) & {"V02", "V07"}
    with pytest.raises(ArchiveError):
        serve(node)
    path.unlink()
    assert "V01" in codes(node)
    with pytest.raises(ArchiveError):
        serve(node)


def test_two_records_swapped(node: Node) -> None:
    path, first, length = place(node)
    other_path, second, other_length = place(node, "1.2.4")
    assert path == other_path
    data = bytearray(path.read_bytes())
    a, b = bytes(data[first : first + length]), bytes(data[second : second + other_length])
    span = max(len(a), len(b))
    data[first : first + span], data[second : second + span] = b.ljust(span, b"\0"), a.ljust(span, b"\0")
    path.write_bytes(data)
    assert codes(node) & {"V04", "V05", "V06"}
    with pytest.raises(IntegrityError):
        serve(node)


def test_a_row_edited_behind_our_back(node: Node) -> None:
    with node.core.database.begin() as tx:
        edit = sa.update(study).where(study.c.study_instance_uid == "1.2.4").values(study_instance_uid="1.2.5")
        policy.run_as(tx, policy.system("verify"), edit)
    assert "V10" in codes(node, "standard")


def test_a_study_that_names_nobody_given_to_a_patient_behind_our_back(node: Node) -> None:
    archives.store(node, archives.instance(1, study="1.2.6", PatientID=""))
    assert codes(node, "standard") == set()
    whose = sa.select(patient.c.id).where(patient.c.patient_id == "P2").scalar_subquery()
    of_study = sa.select(study.c.id).where(study.c.study_instance_uid == "1.2.6").scalar_subquery()
    rewrite(node, sa.update(series).where(series.c.study_pk == of_study).values(patient_pk=whose))
    rewrite(node, sa.update(study).where(study.c.study_instance_uid == "1.2.6").values(patient_pk=whose))
    assert codes(node, "standard") == {"V10"}


def test_a_row_removed_behind_our_back(node: Node) -> None:
    with node.core.database.begin() as tx:
        policy.run_as(tx, policy.system("verify"), sa.delete(instance).where(instance.c.sop_instance_uid == "1.2.4.1.1"))
    assert "V12" in codes(node, "standard")


def test_a_digest_and_a_statement_edited_together(node: Node) -> None:
    with node.core.database.begin() as tx:
        edit = sa.update(instance).where(instance.c.sop_instance_uid == "1.2.4.1.1").values(sha256=bytes(32))
        policy.run_as(tx, policy.system("verify"), edit)
    assert codes(node) & {"V08", "V10"}


def test_a_statement_removed(node: Node) -> None:
    with node.core.database.begin() as tx:
        tx.execute(sa.delete(statement).where(statement.c.leaf == sa.select(sa.func.max(statement.c.leaf)).scalar_subquery()))
    assert codes(node, "standard") & {"V10", "V11", "V12"}


@pytest.mark.parametrize("edit", ["changed", "removed", "body"])
def test_an_event_changed_removed_or_rewritten(node: Node, edit: str) -> None:
    with node.core.database.begin() as tx:
        if edit == "changed":
            data = tx.execute(sa.select(ledger_leaf.c.data).where(ledger_leaf.c.n == 1)).scalar_one()
            tx.execute(sa.update(ledger_leaf).where(ledger_leaf.c.n == 1).values(data=bytes(data).replace(b'"o":0', b'"o":4')))
        elif edit == "removed":
            tx.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
            tx.execute(sa.update(audit_event).where(audit_event.c.n == 1).values(n=10**9))
            tx.execute(sa.update(ledger_leaf).where(ledger_leaf.c.n == 1).values(n=10**9))
        else:
            tx.execute(sa.update(audit_event).where(audit_event.c.n == 1).values(body=bytes(60)))
    assert codes(node, "quick") & {"V11", "V12", "V13"}


def test_a_data_key_lost_or_changed(node: Node) -> None:
    with node.core.keystore._database.begin() as tx:
        tx.execute(sa.update(data_key).values(wrapped=bytes(61)))
    node.core.keystore._by_id.clear()
    node.core.keystore._by_study.clear()
    assert "V05" in codes(node, "standard")
    with pytest.raises(IntegrityError):
        serve(node)


def test_a_checkpoint_forged(node: Node) -> None:
    node.upkeep.checkpoint()
    with node.core.database.begin() as tx:
        tx.execute(sa.update(checkpoint).values(root=bytes(32)))
    assert "V13" in codes(node, "quick")


def test_an_index_rolled_back_starts_read_only_until_it_is_acknowledged(folder: Path) -> None:
    config = archives.configured(folder)
    shutil.copy(config.index_path, folder / "yesterday")
    with archives.opened(config) as node:
        archives.store(node, archives.instance(3))
    for path in config.storage_dir.glob("index.db*"):
        path.unlink()
    shutil.copy(folder / "yesterday", config.index_path)

    node = open_node(config)
    why = node.start()
    node.close()
    assert "V14" in why

    node = open_node(config, read_only=why)
    try:
        assert "V14" in {finding.code for finding in node.verify.run(archives.the_console(node), "quick").findings}
        assert serve(node)
        with pytest.raises(ArchiveError):
            archives.store(node, archives.instance(4))
        node.oversight.acknowledge(archives.the_console(node), reason="restored on purpose")
    finally:
        node.close()
    with archives.opened(config) as node:
        assert archives.store(node, archives.instance(3)).status in {"stored", "duplicate"}


def test_what_is_signed_while_one_looks_is_no_rollback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each start and each command looks, beside a server that signs what comes every second."""
    looking, coming = oversight._anchors, [3]
    with archives.opened(archives.configured(folder)) as node:
        def late(core: Core) -> list[bytes | None]:
            if coming:
                archives.store(node, archives.instance(coming.pop()))
                node.upkeep.checkpoint()
            return looking(core)

        monkeypatch.setattr(oversight, "_anchors", late)
        assert node.oversight.rolled_back() == ""
        coming.append(4)
        assert not {finding.code for finding in oversight.verify_ledger(node.core).findings}
        assert coming == []


def test_anchors_rolled_back_alone_do_no_harm(folder: Path) -> None:
    config = archives.configured(folder)
    shutil.copytree(config.ledger_dir, folder / "yesterday")
    with archives.opened(config) as node:
        archives.store(node, archives.instance(3))
    shutil.rmtree(config.ledger_dir)
    shutil.copytree(folder / "yesterday", config.ledger_dir)
    with archives.opened(config) as node:
        assert len(serve(node)) == 3


def test_keyless_needs_no_keys_to_find_a_changed_segment(folder: Path) -> None:
    config = archives.configured(folder)
    with archives.opened(config) as node:
        for _ in range(4):
            node.upkeep._hash_segments()
        path, offset, _ = place(node)
        assert codes(node, "keyless") == set()
        flip(path, offset + 200)
        assert "V03" in codes(node, "keyless")


def test_a_rolled_back_archive_changes_nobodys_rights(folder: Path) -> None:
    config = archives.configured(folder)
    shutil.copy(config.index_path, folder / "yesterday")
    with archives.opened(config) as node:
        archives.store(node, archives.instance(3))
    for path in config.storage_dir.glob("index.db*"):
        path.unlink()
    shutil.copy(folder / "yesterday", config.index_path)
    node = open_node(config)  # as a command without a server does
    try:
        console = archives.the_console(node)
        with pytest.raises(ReadOnly):
            node.accounts.add_user(console, "eve", password=archives.PASSWORD)
        with pytest.raises(ReadOnly):
            node.peers.add(console, "CT9", ae_titles=["CT9"], networks=["127.0.0.1/32"])
    finally:
        node.close()


def rewrite(node: Node, change: sa.Executable) -> None:
    """Edit the index as one does who holds its key."""
    with node.core.database.begin() as tx:
        policy.run_as(tx, policy.system("verify"), change)


def test_an_instance_hidden_or_brought_back_behind_our_back(node: Node) -> None:
    console = archives.the_console(node)
    node.remove.reject(console, "clinical", "instance", "1.2.3.1.1", reason="test")
    node.remove.reject(console, "clinical", "instance", "1.2.3.1.2", reason="test")
    node.remove.restore(console, "clinical", "instance", "1.2.3.1.2", reason="test")
    assert codes(node, "quick") == set()
    one = sa.update(instance).where(instance.c.sop_instance_uid == "1.2.3.1.1")
    rejected_at = node.core.clock()
    rewrite(node, one.values(rejected_at=None))
    assert codes(node, "quick") == {"V10", "V12"}  # the counts, too
    rewrite(node, one.values(rejected_at=rejected_at))
    assert codes(node, "quick") == set()
    rewrite(node, sa.update(instance).where(instance.c.sop_instance_uid == "1.2.3.1.2").values(rejected_at=rejected_at))
    assert codes(node, "quick") == {"V10", "V12"}  # the counts, too


@pytest.mark.parametrize("edit", ["given", "back", "longer", "wider", "other subject", "other target", "role"])
def test_a_grant_edited_behind_our_back(node: Node, edit: str) -> None:
    console, a = archives.the_console(node), node.accounts
    eve = a.add_user(console, "eve")["id"]
    ada = a.add_user(console, "ada")["id"]
    a.add_role(console, "reader", ["search", "metadata"])
    kept = a.add_grant(console, to="eve", role="reader", target=Target("study", "1.2.3"), until="8h", modality="CT")["id"]
    gone = a.add_grant(console, to="eve", role="referrer", target=Target("everything"), deny=False)["id"]
    a.revoke_grant(console, gone)
    assert codes(node, "quick") == set()
    this = sa.update(grants).where(grants.c.id == kept)
    with node.core.database.read() as tx:
        row = dict(tx.execute(sa.select(grants).where(grants.c.id == kept)).mappings().one())
    row.pop("id")
    rewrite(node, {
        "given": sa.insert(grants).values(**row | {"scope_key": 0}),
        "back": sa.update(grants).where(grants.c.id == gone).values(revoked_at=None),
        "longer": this.values(not_after=row["not_after"] + timedelta(days=1)),
        "wider": this.values(permissions=(1 << 31) - 1),
        "other subject": this.values(subject_id=ada),
        "other target": this.values(scope_key=0),
        "role": sa.update(role).where(role.c.name == "reader").values(permissions=(1 << 31) - 1),
    }[edit])
    assert eve != ada
    # Who had no other grant leaves entries behind that lead searches by nothing.
    assert codes(node, "quick") == ({"V10", "V12"} if edit in ("other subject", "other target") else {"V12"})


def test_a_segment_changed_with_its_hash(folder: Path) -> None:
    config = archives.configured(folder)
    with archives.opened(config) as node:
        for _ in range(4):
            node.upkeep._hash_segments()
        path, offset, _ = place(node)
        assert codes(node, "keyless") == set()
        flip(path, offset + 200)
        rewrite(node, sa.update(segment).values(sha256=None))
        assert "V03" in codes(node, "keyless")
        for _ in range(4):
            node.upkeep._hash_segments()
        assert "V03" in codes(node, "keyless")


@pytest.mark.parametrize("edit", ["patient", "modality", "date"])
def test_what_decides_access_edited_behind_our_back(node: Node, edit: str) -> None:
    one = series.c.series_instance_uid == "1.2.4.1"
    other = sa.select(study.c.patient_pk).where(study.c.study_instance_uid == "1.2.3").scalar_subquery()
    assert codes(node, "standard") == set()
    if edit == "patient":
        rewrite(node, sa.update(study).where(study.c.study_instance_uid == "1.2.4").values(patient_pk=other))
        rewrite(node, sa.update(series).where(one).values(patient_pk=other))
    elif edit == "modality":
        rewrite(node, sa.update(series).where(one).values(modality="US"))
    else:
        rewrite(node, sa.update(series).where(one).values(study_date="19990101"))
    assert "V10" in codes(node, "standard")


def test_a_pack_of_another_series_or_an_older_one_is_not_served(node: Node) -> None:
    console, admin = archives.the_console(node), archives.user(node)

    def told(uid: str) -> bytes:
        return gzip.decompress(b"".join(node.retrieve.metadata(admin, "clinical", uid, f"{uid}.1").gzip()))

    both = told("1.2.3")
    assert b"P2" in told("1.2.4")
    with node.core.database.read() as tx:
        packs = {row.series_pk: row for row in policy.run_as(tx, policy.system("packs"), sa.select(series_pack))}
    first, second = sorted(packs)
    rewrite(node, sa.update(series_pack).where(series_pack.c.series_pk == first).values(
        object_id=packs[second].object_id, key_id=packs[second].key_id))
    assert told("1.2.3") == both
    with node.core.database.read() as tx:
        older = policy.run_as(tx, policy.system("packs"), sa.select(series_pack).where(series_pack.c.series_pk == first)).one()
    blob = node.config.cache_dir / older.object_id.hex()[:2] / older.object_id.hex()
    kept = blob.read_bytes()
    node.remove.reject(console, "clinical", "instance", "1.2.3.1.2", reason="test")
    one = told("1.2.3")
    assert len(one) < len(both)
    blob.write_bytes(kept)
    rewrite(node, sa.update(series_pack).where(series_pack.c.series_pk == first).values(object_id=older.object_id))
    assert told("1.2.3") == one


def test_what_was_changed_in_order_is_no_finding(node: Node) -> None:
    console, a = archives.the_console(node), node.accounts
    assert archives.store(node, archives.instance(5, PatientID="OTHER")).status == "held"
    assert archives.store(node, archives.instance(1, PatientName="Other^Bytes", Modality="MR")).status == "conflict"
    assert archives.store(node, archives.instance(2, PatientName="Third^Bytes")).status == "conflict"
    held, conflict, third = (row["id"] for row in node.reconcile.list(console))
    node.reconcile.accept(console, held, reason="the same patient")
    node.reconcile.accept(console, conflict, reason="the better one")
    node.reconcile.reject(console, third, reason="a copy")
    archives.store(node, archives.instance(1, study="1.2.7", PatientID=None))
    archives.store(node, archives.instance(2, study="1.2.7", PatientID="LATE"))
    node.remove.reject(console, "clinical", "study", "1.2.4", reason="sent by mistake")
    assert archives.store(node, archives.instance(1, study="1.2.4", PatientID="P2")).status == "duplicate"
    a.add_group(console, "desk")
    a.add_user(console, "ada")
    a.join_group(console, "desk", "ada")
    for target in (Target("everything"), Target("patient", "P2"), Target("patient", "NEW", expected=True), Target("series", "1.2.3.1")):
        a.add_grant(console, to="desk", role="referrer", target=target, modality="CT", since="1d")
    a.add_grant(console, to="ada", role="referrer", target=Target("study", "1.2.3"), deny=True)
    a.remove_user(console, "ada")
    a.remove_group(console, "desk")
    for mode in ("quick", "standard", "full"):
        report = node.verify.run(console, mode)
        assert report.findings == [], mode
