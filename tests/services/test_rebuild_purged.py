"""What a purge leaves is what a rebuild makes, and what was purged last is not missed."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.access import policy
from archive.access.grants import Target
from archive.db.tables import archive_state, instance, patient, series
from archive.db.tables import study as study_table
from archive.services import purge as purges
from tests.services import archives, catalogs
from tests.services.test_purge import ONE, rows, sound, uids
from tests.services.test_rebuild import lose, rebuild


@pytest.mark.parametrize("whole", [False, True], ids=["a part", "a study with its key"])
def test_what_was_purged_after_the_last_checkpoint_is_not_missed(tmp_path: Path, whole: bool) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config, role="serve") as node:
        console = archives.the_console(node)
        for number in (1, 2):
            archives.store(node, archives.instance(number))
        archives.store(node, archives.instance(1, study="1.2.4", PatientID="P2"))
        node.upkeep.finish()
        gone = ONE if whole else f"{ONE}.1.1"
        node.remove.reject(console, "clinical", "study" if whole else "instance", gone, reason="test")
        node.purge.run(console, study=ONE, reason="test")
    lose(config)
    report = rebuild(config)
    assert report.ok, report.problems
    with archives.opened(config) as node:
        assert uids(node) == (set() if whole else {f"{ONE}.1.2"})
        assert len(rows(node, sa.select(instance.c.id))) == (1 if whole else 2)
        sound(node)


@pytest.mark.parametrize("lost", [False, True])
def test_what_waits_though_what_it_contradicted_is_purged_waits_as_it_did(tmp_path: Path, lost: bool) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config) as node:
        console = archives.the_console(node)
        for number in (1, 2):
            archives.store(node, archives.instance(number))
        assert archives.store(node, archives.instance(1, PatientID="P9")).status == "conflict"
        node.remove.reject(console, "clinical", "instance", f"{ONE}.1.1", reason="test")
        assert node.purge.run(console, study=ONE, reason="test").instances == 1
        node.upkeep.finish()
        before = catalogs.catalog(node, without=("reason",))["held"]
    if lost:
        lose(config)
    assert rebuild(config).ok
    with archives.opened(config) as node:
        assert catalogs.catalog(node, without=("reason",))["held"] == before
        sound(node)


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("rekeyed", [False, True], ids=["", "and re-keyed"])
def test_a_study_stays_the_patients_though_what_named_the_patient_is_purged(tmp_path: Path, rekeyed: bool, lost: bool) -> None:
    """Else a deny of the patient would hide it no more, and a grant on another would show it."""
    config = archives.made(tmp_path)
    with archives.opened(config) as node:
        console = archives.the_console(node)
        for name in ("all", "one", "nine"):
            node.accounts.add_user(console, name, password=archives.PASSWORD)
        archives.store(node, archives.instance(1, PatientID=None))
        archives.store(node, archives.instance(2, IssuerOfPatientID="X"))  # names the patient
        archives.store(node, archives.instance(1, study="1.2.4"))
        archives.store(node, archives.instance(2, study="1.2.4", PatientID="P9"))  # let in to it all the same
        (held,) = node.reconcile.list(console)
        node.reconcile.accept(console, held["id"], reason="seen")
        give = node.accounts.add_grant
        give(console, to="all", role="radiologist", target=Target("everything"))
        for issuer in ("X", ""):
            give(console, to="all", role="radiologist", target=Target("patient", "P1", issuer=issuer), deny=True)
            give(console, to="one", role="radiologist", target=Target("patient", "P1", issuer=issuer))
        give(console, to="nine", role="radiologist", target=Target("patient", "P9", expected=True))
        for gone in (f"{ONE}.1.2", "1.2.4.1.1"):
            node.remove.reject(console, "clinical", "instance", gone, reason="test")
        assert node.purge.run(console, before=node.core.clock(), reason="test").instances == 2
        if rekeyed:
            node.rekey.study(console, ONE)
        before = {name: set(catalogs.visible(node, name, ONE, "1.2.4")) for name in ("admin", "all", "one", "nine")}
        assert before == {"admin": {f"{ONE}.1.1", "1.2.4.1.2"}, "all": set(), "one": {f"{ONE}.1.1", "1.2.4.1.2"}, "nine": set()}
        sound(node)
        node.upkeep.finish()
    if lost:
        lose(config)
    for _ in range(2):
        assert rebuild(config).ok
        with archives.opened(config) as node:
            assert {name: set(catalogs.visible(node, name, ONE, "1.2.4")) for name in before} == before
            sound(node)
            studies = catalogs.catalog(node)["study"]
            assert {uid: owner for uid, (owner, _) in studies.items()} == {ONE: ("X", "P1"), "1.2.4": ("", "P1")}


@pytest.mark.parametrize("lost", [False, True])
def test_whose_a_study_is_that_an_earlier_release_purged_what_named_the_patient_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """Its purge did not say; the next start does, and nothing of another study whose patient none of its instances ever named."""
    config = archives.made(tmp_path)
    with archives.opened(config) as node:
        console = archives.the_console(node)
        node.accounts.add_user(console, "all", password=archives.PASSWORD)
        give = node.accounts.add_grant
        give(console, to="all", role="radiologist", target=Target("everything"))
        give(console, to="all", role="radiologist", target=Target("patient", "P1", expected=True), deny=True)
        for study in (ONE, "1.2.4"):
            archives.store(node, archives.instance(1, study=study, PatientID=None))
            archives.store(node, archives.instance(2, study=study, PatientID=None if study == "1.2.4" else "P1"))
            node.remove.reject(console, "clinical", "instance", f"{study}.1.2", reason="test")
        with monkeypatch.context() as earlier:
            earlier.setattr(purges, "staying", lambda *_args: {})
            assert node.purge.run(console, before=node.core.clock(), reason="test").instances == 2
        with node.core.database.begin() as tx:
            tx.execute(sa.delete(archive_state).where(archive_state.c.name == "patients_said"))
        whose = sa.select(patient.c.id).where(patient.c.patient_id == "P1").scalar_subquery()
        for table, column in ((series, series.c.study_pk), (study_table, study_table.c.id)):
            other = sa.select(study_table.c.id).where(study_table.c.study_instance_uid == "1.2.4").scalar_subquery()
            with node.core.database.begin() as tx:
                policy.run_as(tx, policy.system("verify"), sa.update(table).where(column == other).values(patient_pk=whose))
        assert "V10" in {one.code for one in node.verify.run(console).findings}
    with archives.opened(config) as node:
        findings = node.verify.run(archives.the_console(node), "full").findings
        assert [(one.code, one.sop_instance_uid) for one in findings] == [("V10", "1.2.4.1.1")]
        assert not catalogs.visible(node, "all", ONE)
        node.upkeep.finish()
    if lost:
        lose(config)
    for _ in range(2):
        assert rebuild(config).ok
        with archives.opened(config) as node:
            assert set(catalogs.visible(node, "all", ONE, "1.2.4")) == {"1.2.4.1.1"}
            sound(node)


def test_what_was_restored_and_then_purged_after_the_last_checkpoint_had_been_rejected(tmp_path: Path) -> None:
    """Of what is gone from the index the ledger says whether it was out of sight."""
    config = archives.made(tmp_path)
    with archives.opened(config, role="serve") as node:
        console = archives.the_console(node)
        archives.store(node, archives.instance(1))
        archives.store(node, archives.instance(1, study="1.2.4", PatientID="P2"))
        node.remove.reject(console, "clinical", "study", ONE, reason="test")
        node.upkeep.finish()
        node.remove.restore(console, "clinical", "study", ONE, reason="test")
        node.remove.reject(console, "clinical", "study", ONE, reason="test")
        node.purge.run(console, study=ONE, reason="test")
    lose(config)
    rebuild(config)
    with archives.opened(config) as node:
        assert uids(node) == set()
        sound(node)


def test_what_nobody_let_in_waits_though_the_ledger_knows_neither_of_it_nor_of_the_purge(tmp_path: Path) -> None:
    """It lay in conflict with what is gone: nobody is shown it because of that."""
    config = archives.made(tmp_path)
    with archives.opened(config, role="serve") as node:
        console = archives.the_console(node)
        for number in (1, 2):
            archives.store(node, archives.instance(number))
        node.upkeep.finish()
        assert archives.store(node, archives.instance(1, StudyDescription="else")).status == "conflict"
        node.remove.reject(console, "clinical", "instance", f"{ONE}.1.1", reason="test")
        node.purge.run(console, study=ONE, reason="test")
        (before,) = node.reconcile.list(console)
    lose(config)
    rebuild(config)
    with archives.opened(config) as node:
        assert uids(node) == {f"{ONE}.1.2"}
        (waits,) = node.reconcile.list(archives.the_console(node))
        assert waits["sha256"] == before["sha256"]
        sound(node)
        node.reconcile.accept(archives.the_console(node), waits["id"], reason="seen")
        assert uids(node) == {f"{ONE}.1.1", f"{ONE}.1.2"}
