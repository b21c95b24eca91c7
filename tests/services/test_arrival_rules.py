"""Rules on arrival: who is to see a study sees it when the sender is told it is stored, and not longer than the rule says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.access.grants import Target
from archive.access.permissions import Permission
from archive.access.policy import run_as, scope_of, system
from archive.db import tables
from archive.db.tables import access_study, auto_rule, grants, rule_grant, study
from archive.dicom.attributes import BY_KEYWORD
from archive.errors import Forbidden, InvalidRequest, NotFound
from archive.keys.keyring import Keyring
from archive.node import Node, open_node
from archive.services import lost, snapshot
from archive.services.arrival_admin import NewRule
from archive.services.arrival_terms import Conditions, Facts, lifetime
from archive.services.clock import utc_now
from archive.services.rebuild import Rebuild
from archive.services.replay import Replay
from archive.services.snapshot import Snapshots
from tests.services import archives


class Clock:
    def __init__(self) -> None:
        self.now = utc_now()

    def __call__(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def node(tmp_path: Path, clock: Clock, usually: dict[str, Any]) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path, **usually), clock=clock) as opened:
        console = archives.the_console(opened)
        for name in ("mia", "ole"):
            opened.accounts.add_user(console, name)
        opened.accounts.add_group(console, "cardiology")
        opened.accounts.join_group(console, "cardiology", "ole")
        yield opened


def add(node: Node, name: str = "mia-s", to: str = "mia", **more: Any) -> dict[str, Any]:
    given = {one: more.pop(one) for one in list(more) if one in Conditions.__slots__}
    conditions = Conditions(**{one: (value,) if isinstance(value, str) else value for one, value in given.items()})
    conditions = conditions if given else Conditions(referring=("Maier^Mia",))
    return node.arrival_rules.add(archives.the_console(node), NewRule(name, to, more.pop("role", "referrer"), conditions, **more))


def seen(node: Node, name: str) -> set[str]:
    """What somebody's search finds: by the grants, and by what leads a search."""
    with node.core.database.read() as tx:
        scope = scope_of(archives.user(node, name), Permission.SEARCH, node.core.clock())
        found = set(scope.run(tx, sa.select(study.c.study_instance_uid).where(scope.study(study))).scalars())
        led = scope.run(tx, sa.select(study.c.study_instance_uid).join(access_study, access_study.c.study_pk == study.c.id).where(
            scope.study(study))).scalars()
        assert found == set(led)
    return found


def put(node: Node, uid: str = "1.2.1", number: int = 1, **attributes: Any) -> None:
    archives.store(node, archives.instance(number, study=uid, **attributes))


def of_rule(node: Node) -> list[Any]:
    with node.core.database.read() as tx:
        return list(tx.execute(sa.select(grants, rule_grant.c.rule_id).join(rule_grant, rule_grant.c.grant_id == grants.c.id).order_by(
            grants.c.id)))


@pytest.mark.parametrize("usually", ["sqlite", "postgresql"], indirect=True)
def test_the_referring_physician_sees_it_at_once_and_not_for_ever(node: Node, clock: Clock) -> None:
    add(node)
    put(node, ReferringPhysicianName="MAIER^mía")
    put(node, "1.2.2", ReferringPhysicianName="Maier^Max")
    assert seen(node, "mia") == {"1.2.1"}
    assert seen(node, "ole") == set()
    [one] = of_rule(node)
    assert (one.kind, one.effect, one.not_after - one.not_before) == ("rule", 1, timedelta(days=90))
    told = node.oversight.search(archives.the_console(node), kinds=["granted"], study="1.2.1")
    assert [(row["body"]["detail"]["rule"], row["body"]["detail"]["reason"], "subject" in row["body"]) for row in told] == [
        (1, "rule mia-s", False)]
    clock.now += timedelta(days=91)
    assert seen(node, "mia") == set()


def test_the_grant_is_of_the_transaction_that_stores(node: Node) -> None:
    add(node)
    real = node.core.database.before_commit

    def fail(_tx: sa.Connection) -> None:
        raise OSError(5, "no")

    node.core.database.before_commit = fail
    with pytest.raises(Exception):  # noqa: B017, PT011 # whatever the store makes of it
        put(node, ReferringPhysicianName="Maier^Mia")
    node.core.database.before_commit = real
    assert of_rule(node) == []
    put(node, ReferringPhysicianName="Maier^Mia")
    assert len(of_rule(node)) == 1


@pytest.mark.parametrize("usually", ["sqlite", "postgresql"], indirect=True)
def test_one_grant_for_each_rule_and_target(node: Node) -> None:
    add(node)
    add(node, "by-patient", level="patient")
    add(node, "by-series", level="series", role="radiologist")
    for number in range(3):
        put(node, "1.2.1", number, ReferringPhysicianName="Maier^Mia")
    put(node, "1.2.1", 9, series="1.2.1.9", ReferringPhysicianName="Maier^Mia")
    put(node, "1.2.2", ReferringPhysicianName="Maier^Mia")
    # study: two studies; patient: one; series: three
    assert sorted(one.rule_id for one in of_rule(node)) == [1, 1, 2, 3, 3, 3]


def test_of_rules_that_would_give_the_same_the_first_gives(node: Node) -> None:
    add(node, "low", modality="CT", lifetime_s=lifetime("30d"))
    add(node, "high", modality="*", priority=5, lifetime_s=lifetime("8h"))
    put(node)
    [one] = of_rule(node)
    assert (one.reason, one.not_after - one.not_before) == ("rule high", timedelta(hours=8))


def test_a_later_series_renews_only_where_the_rule_says_so(node: Node, clock: Clock) -> None:
    add(node, "still", modality="CT")
    add(node, "renewing", to="cardiology", modality="CT", renew=True)
    put(node)
    clock.now += timedelta(minutes=5)
    put(node, number=2, series="1.2.1.2")
    assert len(of_rule(node)) == 2  # five minutes later makes no other
    clock.now += timedelta(days=60)
    put(node, number=3, series="1.2.1.3")
    told = [(one.reason, one.revoked_at is None) for one in of_rule(node)]
    assert told == [("rule still", True), ("rule renewing", False), ("rule renewing", True)]
    clock.now += timedelta(days=60)
    assert (seen(node, "mia"), seen(node, "ole")) == (set(), {"1.2.1"})
    console = archives.the_console(node)
    node.accounts.revoke_grant(console, of_rule(node)[-1].id)
    clock.now += timedelta(days=60)
    put(node, number=4, series="1.2.1.4")
    assert seen(node, "ole") == set()  # what somebody revoked is not given again
    assert node.verify.run(console, "quick").findings == []


@pytest.mark.parametrize(("conditions", "values", "holds"), [
    ({"referring": ("müller*",)}, {"ReferringPhysicianName": "MULLER^Eva"}, True),
    ({"referring": ("*",)}, {}, False),
    ({"referring": ("*",)}, {"ReferringPhysicianName": "A^B"}, True),
    ({"referring": ("山田^太郎",)}, {"ReferringPhysicianName": "Yamada^Tarou=山田^太郎=やまだ^たろう"}, True),
    ({"department": ("cardio*",)}, {"InstitutionalDepartmentName": "CARDIOLOGY"}, True),
    ({"department": ("cardio*",)}, {}, False),
    ({"station": ("CT1", "CT2")}, {"StationName": "ct2"}, True),
    ({"modality": ("CT",), "station": ("CT1",)}, {"Modality": "CT", "StationName": "CT9"}, False),
    ({"performing": ("Roe^J?",)}, {"PerformingPhysicianName": "Roe^Jo"}, True),
    ({"calling_ae": ("ward*",)}, {}, True),
    ({"calling_ae": ("ward",)}, {}, False),
])
def test_conditions(conditions: dict[str, tuple[str, ...]], values: dict[str, str], holds: bool) -> None:
    elements = {}
    for keyword, value in values.items():
        attribute = BY_KEYWORD[keyword]
        groups = dict(zip(("Alphabetic", "Ideographic", "Phonetic"), value.split("="), strict=False))
        elements[attribute.tag_hex] = {"vr": attribute.vr, "Value": [groups if attribute.vr == "PN" else value]}
    terms = Conditions(**conditions)
    terms.check()
    assert Conditions.of(terms.kept()) == terms
    assert terms.hold(Facts(elements, lambda: "WARD7")) is holds


def test_what_is_no_rule(node: Node) -> None:
    console = archives.the_console(node)
    for bad in (Conditions(), Conditions(modality=("",)), Conditions(station=("x" * 300,)), Conditions(referring=("x",) * 51)):
        with pytest.raises(InvalidRequest):
            node.arrival_rules.add(console, NewRule("r", "mia", "referrer", bad))
    for text in ("", "0d", "99999w", "forever", "-1d"):
        with pytest.raises(InvalidRequest):
            lifetime(text)
    for more in ({"level": "everything"}, {"priority": 5000}, {"role": "auditor"}, {"name": "a:b"}):
        with pytest.raises(InvalidRequest):
            add(node, **more)
    with pytest.raises(NotFound):
        add(node, to="nobody")
    add(node)
    add(node, "Ärzte")
    for taken in ("MIA-S", "Ärzte", "ärzte"):
        with pytest.raises(InvalidRequest, match="of that name"):
            add(node, taken)


def test_nobody_makes_a_rule_for_themselves(node: Node) -> None:
    console = archives.the_console(node)
    node.accounts.add_user(console, "boss", roles=["security-officer", "administrator"])
    node.accounts.join_group(console, "cardiology", "boss")
    boss, terms = archives.user(node, "boss"), Conditions(modality=("*",))
    for to in ("boss", "cardiology"):
        with pytest.raises(Forbidden):
            node.arrival_rules.add(boss, NewRule("r", to, "referrer", terms))
    node.arrival_rules.add(boss, NewRule("r", "mia", "referrer", terms))
    with pytest.raises(Forbidden):
        node.arrival_rules.list(archives.user(node, "mia"))
    # Who manages users alone puts nobody into a group that a rule gives to, nor sets the password of whom one gives to.
    node.accounts.add_group(console, "later")
    node.arrival_rules.add(console, NewRule("r2", "later", "referrer", terms))
    node.accounts.add_user(console, "clerk", roles=["administrator"])
    clerk = archives.user(node, "clerk")
    with pytest.raises(Forbidden):
        node.accounts.join_group(clerk, "later", "ole")
    with pytest.raises(Forbidden):
        node.accounts.reset_password(clerk, "mia")


def test_removed_with_what_it_gave_or_without(node: Node) -> None:
    console = archives.the_console(node)
    add(node)
    add(node, "other", to="ole")
    put(node, ReferringPhysicianName="Maier^Mia")
    assert node.arrival_rules.remove(console, "mia-s") == {"id": 1, "name": "mia-s", "revoked": 1, "kept": 0}
    assert node.arrival_rules.remove(console, "other", keep_grants=True)["kept"] == 1
    assert (seen(node, "mia"), seen(node, "ole")) == (set(), {"1.2.1"})
    put(node, "1.2.2", ReferringPhysicianName="Maier^Mia")
    assert len(of_rule(node)) == 2
    with pytest.raises(NotFound):
        node.arrival_rules.remove(console, "mia-s")
    add(node)  # the name is free
    assert [row["name"] for row in node.arrival_rules.list(console)] == ["mia-s"]
    assert node.verify.run(console, "quick").findings == []


def test_switched_off_and_on(node: Node) -> None:
    console = archives.the_console(node)
    add(node)
    node.arrival_rules.switch(console, "mia-s", enabled=False)
    put(node, ReferringPhysicianName="Maier^Mia")
    assert seen(node, "mia") == set()
    assert node.arrival_rules.switch(console, 1, enabled=True)["enabled"]
    put(node, "1.2.2", ReferringPhysicianName="Maier^Mia")
    assert seen(node, "mia") == {"1.2.2"}
    assert node.verify.run(console, "quick").findings == []


def test_tried_on_a_study_and_applied_to_the_past(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archive.services.arrival_admin.AT_ONCE", 2)
    console, begun = archives.the_console(node), node.core.clock()
    for number in range(5):
        put(node, f"1.2.{number}", ReferringPhysicianName="Maier^Mia" if number % 2 == 0 else "Roe^Jo")
    add(node)
    add(node, "everybody", to="ole", modality="*")
    assert seen(node, "mia") == set()
    assert [row["rule"] for row in node.arrival_rules.test(console, "1.2.0")] == ["mia-s", "everybody"]
    assert [row["rule"] for row in node.arrival_rules.test(console, "1.2.1")] == ["everybody"]
    with pytest.raises(NotFound):
        node.arrival_rules.test(console, "9.9")
    preview = node.arrival_rules.apply(console, since=begun, rule="mia-s")
    assert (preview["done"], preview["grants"], [row["object"] for row in preview["shown"]]) == (False, 3, ["1.2.0", "1.2.2", "1.2.4"])
    assert seen(node, "mia") == set()
    assert node.arrival_rules.apply(console, since=node.core.clock(), rule="mia-s", confirm=True)["grants"] == 0
    done = node.arrival_rules.apply(console, since=begun, rule="mia-s", confirm=True)
    assert done["grants"] == 3
    assert seen(node, "mia") == {"1.2.0", "1.2.2", "1.2.4"}
    assert node.arrival_rules.apply(console, since=begun, rule="mia-s", confirm=True)["grants"] == 0
    assert seen(node, "ole") == set()
    assert node.verify.run(console, "quick").findings == []


def test_a_nameless_study_that_finds_its_patient(node: Node) -> None:
    add(node, level="patient")
    put(node, PatientID=None, ReferringPhysicianName="Maier^Mia")
    put(node, "1.2.9", PatientID="P1", ReferringPhysicianName="Roe^Jo")
    assert seen(node, "mia") == {"1.2.1"}  # its images, not a patient nobody knows
    put(node, number=2, PatientID="P1", ReferringPhysicianName="Maier^Mia")
    assert seen(node, "mia") == {"1.2.1", "1.2.9"}  # by the patient, who is known now
    assert node.verify.run(archives.the_console(node), "quick").findings == []


def test_the_patient_is_known_by_one_series_and_the_rule_is_about_another(node: Node) -> None:
    add(node, station="CT7", level="patient")
    put(node, PatientID=None, StationName="CT7")
    put(node, "1.2.9", PatientID="P1")
    put(node, number=2, series="1.2.1.2", PatientID="P1", StationName="CT8")
    assert seen(node, "mia") == {"1.2.1", "1.2.9"}


def test_an_instance_that_waited_gives_when_it_is_let_in(node: Node) -> None:
    console = archives.the_console(node)
    add(node, station="CT7")
    put(node)
    put(node, number=5, series="1.2.1.5", PatientID="P2", StationName="CT7")
    assert seen(node, "mia") == set()
    [row] = node.reconcile.list(console)
    node.reconcile.accept(console, row["id"], reason="same person")
    assert seen(node, "mia") == {"1.2.1"}
    assert node.verify.run(console, "quick").findings == []


def test_a_rule_slipped_in_or_changed_is_found(node: Node) -> None:
    console = archives.the_console(node)
    add(node)
    put(node, ReferringPhysicianName="Maier^Mia")
    assert node.verify.run(console, "quick").findings == []
    edits: list[tuple[sa.Table, dict[str, Any]]] = [
        (auto_rule, {"name": "x"}), (auto_rule, {"priority": 7}), (auto_rule, {"conditions": {"modality": ["*"]}}),
        (auto_rule, {"subject_id": archives.user(node, "ole").principal_id}), (auto_rule, {"role_id": 1}),
        (auto_rule, {"level": "patient"}), (auto_rule, {"lifetime_s": 10**9}), (auto_rule, {"renew": True}),
        (auto_rule, {"enabled": False}),
        (auto_rule, {"removed_at": node.core.clock()}), (rule_grant, {"rule_id": 2}), (rule_grant, {"grant_id": 1}),
        (auto_rule, {"id": 77}), (auto_rule, {"datastore_id": 77}),
    ]
    for table, values in edits:
        with node.core.database.begin() as tx:
            before = dict(tx.execute(sa.select(table)).mappings().one())
            if "datastore_id" in values:
                tx.execute(sa.insert(tables.datastore), {"id": 77, "uid": b"x" * 16, "name": "other", "created_at": node.core.clock()})
            tx.execute(sa.update(table).values(**values))
        codes = {(one.code, "rule" in one.detail) for one in node.verify.run(console, "quick").findings}
        assert ("V12", True) in codes, values
        with node.core.database.begin() as tx:
            tx.execute(sa.update(table).values(**before))
            if "datastore_id" in values:
                tx.execute(sa.delete(tables.datastore).where(tables.datastore.c.id == 77))
    with node.core.database.begin() as tx:
        tx.execute(sa.delete(rule_grant))
        tx.execute(sa.delete(auto_rule))
    assert {one.detail for one in node.verify.run(console, "quick").findings} >= {"the rule 1 is gone"}


def test_explain_names_the_rule(node: Node) -> None:
    add(node)
    put(node, ReferringPhysicianName="Maier^Mia")
    console = archives.the_console(node)
    node.accounts.add_grant(console, to="mia", role="radiologist", target=Target("study", "1.2.1"))
    found = node.accounts.explain(console, "mia", "1.2.1")
    assert [one["reason"] for one in found["because"]] == ["rule mia-s", ""]


def test_replay_gives_it_too(node: Node) -> None:
    """A store whose rows were lost with the power, and the grant with them: the start gives both again."""
    add(node)
    put(node, ReferringPhysicianName="Maier^Mia")
    node.core.vault.close()
    with node.core.database.begin() as tx:
        token = system("verify")
        tx.execute(sa.delete(rule_grant))
        tx.execute(sa.delete(grants).where(grants.c.kind == "rule"))
        for table in (access_study, tables.instance, tables.series, tables.study, tables.patient):
            run_as(tx, token, sa.delete(table))
        if tx.dialect.name == "sqlite":
            run_as(tx, token, sa.delete(tables.study_name_fts))
        tx.execute(sa.delete(tables.statement))
        tx.execute(sa.update(tables.segment).values(replay_from=4096))
    assert Replay(node.core).run().adopted == 1
    assert seen(node, "mia") == {"1.2.1"}


def test_rules_and_their_grants_survive_the_index(tmp_path: Path) -> None:
    """The access snapshot holds them; what a rule gave after it stands as ended, and applying the rule gives it again."""
    config = archives.made(tmp_path)
    with archives.opened(config) as node:
        console, begun = archives.the_console(node), node.core.clock()
        node.accounts.add_user(console, "mia")
        add(node)
        add(node, "gone", to="mia", modality="*", role="radiologist")
        put(node, ReferringPhysicianName="Maier^Mia")
        kept = Snapshots(node.core).write()
        node.arrival_rules.remove(console, "gone")
        put(node, "1.2.2", ReferringPhysicianName="Maier^Mia")
        node.upkeep.checkpoint()
    later = [path for path in snapshot.files(config.ledger_dir) if path != kept]
    for path in [*config.storage_dir.glob("index.db*"), *later]:
        path.unlink()
    keyring = Keyring.open(config)
    standing = lost.prepare(config, keyring, at=utc_now())
    with closing(open_node(config, keyring=keyring)) as node:
        assert Rebuild(node.core).run(lost=standing.lost).problems == []
    with archives.opened(config) as node:
        console = archives.the_console(node)
        assert [row["name"] for row in node.arrival_rules.list(console)] == ["mia-s"]
        assert seen(node, "mia") == {"1.2.1"}
        assert node.arrival_rules.apply(console, since=begun, confirm=True)["grants"] == 1
        assert seen(node, "mia") == {"1.2.1", "1.2.2"}
        assert node.verify.run(console, "quick").findings == []
