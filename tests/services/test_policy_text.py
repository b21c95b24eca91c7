"""Policy as text: what was exported applies as no change and elsewhere shows everybody the same; expectations ask the real rule."""

from __future__ import annotations

import os
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from archive.access.grants import Target
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.engine import Database
from archive.errors import AwaitsApproval, Forbidden, InvalidRequest, StateConflict
from archive.keys.keyring import Keyring
from archive.services import policy_document
from archive.services.policy_text import PolicyText
from tests import databases
from tests.access import rows
from tests.services.office import Office

EVERYTHING = Target("everything")
BITS = (Permission.SEARCH, Permission.METADATA, Permission.ORIGINAL, Permission.VERIFY)
PEOPLE = ("ada", "bob", "eve")
WORLDS = int(os.environ.get("ARCHIVE_TEST_POLICIES", "2"))


one_engine = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
"""The statements are the same on both; the tests without this mark try them there."""


def policy(office: Office) -> PolicyText:
    """The same archive, its policy as text."""
    a = office.accounts
    return PolicyText(office.place.database, office.ledger, a._keyring, lambda: office.at, default_issuer="CLINIC")


def may(office: Office, who: Subject) -> dict[str, set[str]]:
    """What one may do on which series."""
    return {str(bit): office.place.seen(who, bit, at=office.at) for bit in BITS}


def staffed(office: Office) -> dict[str, Subject]:
    return {name: office.user(name) for name in PEOPLE}


def test_what_was_exported_changes_nothing(office: Office) -> None:
    a, console = office.accounts, office.console
    staffed(office)
    a.add_role(console, "reader", ["search", "metadata", "stats"])
    a.role_signs_in(console, "reader", second_factor=True, idle_minutes=5)
    a.role_signs_in(console, "owner", absolute_hours=2)
    a.add_group(console, 'desk "1"', full_name="The\tdesk")
    a.join_group(console, 'desk "1"', "ada", until="3d")
    a.assign_role(console, "bob", "auditor", since="1h", until="2d")
    a.assign_role(console, "bob", "auditor")
    a.add_grant(console, to='desk "1"', role="reader", target=Target("patient", "P1"), modality="ct", reason="why\nnot\\ \x7f")
    a.add_grant(console, to="bob", role="reader", target=Target("study", "1.2"), deny=True, since="1d")
    a.add_grant(console, to="bob", role="reader", target=Target("patient", "P9", issuer="X", expected=True))
    a.add_grant(console, to="bob", role="radiologist", target=EVERYTHING, delegable=2)
    text = policy(office).export(console)
    assert policy_document.write(policy_document.parse(text)) == text
    before = len(office.events())
    office.at += timedelta(seconds=1)
    done = policy(office).apply(console, text)
    assert (done["changes"], done["effects"], done["applied"]) == ([], [], False)
    assert len(office.events()) == before, "nothing is recorded of nothing"
    assert policy(office).export(console) == text


@one_engine
def test_an_empty_text_leaves_everything_and_an_empty_section_ends_it(office: Office) -> None:
    a, console = office.accounts, office.console
    ada = staffed(office)["ada"]
    a.add_grant(console, to="ada", role="referrer", target=EVERYTHING)
    assert policy(office).apply(console, "format = 1\n")["changes"] == []
    done = policy(office).apply(console, "format = 1\ngrant = []\n")
    assert len(done["changes"]) == 2, "ada's and the owner's"
    gone = [one for one in done["effects"] if one["subject"] == "ada"]
    assert gone == [{"subject": "ada", "change": "loses", "permissions": ["search", "metadata", "pixels"], "series": 4}]
    assert office.seen(ada) == set()


TEXT = """
format = 1
[[role]]
name = "reader"
permissions = ["search", "pixels"]
[[group]]
name = "desk"
[[group.member]]
name = "ada"
[[assignment]]
to = "admin"
role = "owner"
[[assignment]]
to = "bob"
role = "auditor"
until = 2027-01-01T00:00:00Z
[[grant]]
to = "admin"
role = "owner"
everything = true
[[grant]]
to = "desk"
role = "reader"
patient = "P1"
[[grant]]
to = "desk"
role = "reader"
effect = "deny"
series = "1.1.2"
[[expect]]
subject = "ada"
permission = ["search", "pixels"]
study = "1.1"
decision = "allow"
[[expect]]
subject = "ada"
series = "1.1.2"
decision = "deny"
[[expect]]
subject = "ada"
permission = "metadata"
patient = "P1"
decision = "deny"
[[expect]]
subject = "bob"
permission = "audit"
decision = "allow"
[[expect]]
subject = "bob"
permission = "audit"
decision = "deny"
at = 2027-01-01T00:00:00Z
"""


def test_a_text_makes_roles_groups_and_grants_and_says_who_gains(office: Office) -> None:
    office.at = office.at.replace(year=2026, month=6)
    ada = staffed(office)["ada"]
    found = policy(office).test(office.console, TEXT)
    assert found["failed"] == []
    assert found["expectations"] == 5
    assert office.seen(ada) == set(), "a trial changes nothing"
    kinds = [row.kind for row in office.events()]
    assert (kinds[0], "granted" not in kinds[:5]) == ("audit-read", True)
    done = policy(office).apply(office.console, TEXT, reason="from the book", difference=found["difference"])
    assert done["effects"] == [
        {"subject": "ada", "change": "gains", "permissions": ["search", "pixels"], "series": 2},
        {"subject": "bob", "change": "gains", "permissions": ["audit", "stats"], "series": 0},
    ]
    assert office.seen(ada) == {"1.1.1", "1.2.1"}
    kinds = [row.kind for row in office.events()]
    assert len(done["changes"]) == 6
    assert kinds[:7] == ["role-changed", "granted", "granted", "role-changed", "user-changed", "user-changed", "role-changed"]
    body = office.events()[0].body
    assert body is not None
    assert (body["detail"]["what"], body["detail"]["changes"], body["detail"]["reason"]) == ("policy applied", 6, "from the book")
    assert policy(office).apply(office.console, TEXT)["changes"] == []


@one_engine
def test_nothing_applies_when_one_expectation_would_not_hold(office: Office) -> None:
    office.at = office.at.replace(year=2026, month=6)
    ada = staffed(office)["ada"]
    for was, now, number in (
        ('decision = "allow"\n[[expect]]\nsubject = "ada"\nseries', 'decision = "deny"\n[[expect]]\nsubject = "ada"\nseries', 1),
        ('series = "1.1.2"\n[[expect]]', 'series = "1.1.1"\n[[expect]]', 2),
        ('series = "1.1.2"\ndecision', 'series = "1.1.9"\ndecision', 2),
        ("at = 2027-01-01T00:00:00Z", "at = 2026-12-31T23:59:59.999999Z", 5),
    ):
        assert TEXT.count(was) == 1
        text = TEXT.replace(was, now)
        assert number in [one["number"] for one in policy(office).test(office.console, text)["failed"]]
        with pytest.raises(StateConflict, match="would not hold"):
            policy(office).apply(office.console, text)
    assert office.seen(ada) == set()
    assert "reader" not in {row["name"] for row in office.accounts.list_roles(office.console)}


@one_engine
def test_what_was_looked_at_is_what_applies(office: Office) -> None:
    staffed(office)
    found = policy(office).test(office.console, "format = 1\ngrant = []\n")
    office.accounts.add_grant(office.console, to="ada", role="referrer", target=EVERYTHING)
    with pytest.raises(StateConflict, match="changed since"):
        policy(office).apply(office.console, "format = 1\ngrant = []\n", difference=found["difference"])


SELFISH = (
    "format = 1\n[[grant]]\nto = 'eve'\nrole = 'referrer'\neverything = true\n",
    "format = 1\n[[grant]]\nto = 'desk'\nrole = 'referrer'\neverything = true\n",
    "format = 1\n[[assignment]]\nto = 'eve'\nrole = 'owner'\n[[assignment]]\nto = 'eve'\nrole = 'security-officer'\n",
    "format = 1\n[[group]]\nname = 'desk'\n[[group.member]]\nname = 'eve'\n[[group]]\nname = 'other'\n[[group.member]]\nname = 'eve'\n",
    "format = 1\n[[role]]\nname = 'hers'\npermissions = ['search', 'original']\n[[role]]\nname = 'asks'\npermissions = ['stats']\n",
    "format = 1\ngrant = []\n",
    "format = 1\ngroup = []\n",
)


@one_engine
def test_nobody_gives_to_themselves_by_a_text(office: Office) -> None:
    a, console = office.accounts, office.console
    eve = office.user("eve", "security-officer", "administrator")
    a.add_group(console, "desk")
    a.join_group(console, "desk", "eve")
    a.add_role(console, "hers", ["search"])
    a.add_role(console, "asks", ["stats"])
    a.add_grant(console, to="eve", role="hers", target=Target("series", "1.1.1"))
    a.add_grant(console, to="desk", role="referrer", target=Target("study", "1.1"), deny=True)
    before = may(office, eve)
    for text in SELFISH:
        for work in (policy(office).test, policy(office).apply):
            with pytest.raises(Forbidden):
                work(eve, text)
            assert office.events()[0].kind == "denied"
    assert may(office, eve) == before


@one_engine
def test_two_people_decide_where_a_text_shortens_what_hides(office: Office) -> None:
    a, console = office.accounts, office.console
    office.user("ada")
    for name in ("hides", "shows"):
        a.add_group(console, name)
        a.join_group(console, name, "ada", until="3w")
    a.add_grant(console, to="hides", role="referrer", target=EVERYTHING, deny=True)
    found = policy(office)
    found._two_person = True
    office.at += timedelta(hours=1)
    once, later, sooner = (
        f"from = {(office.at + timedelta(weeks=start)).isoformat()}\nuntil = {(office.at + timedelta(weeks=end)).isoformat()}\n"
        for start, end in ((0, 4), (1, 4), (0, 1))
    )
    one = '[[group]]\nname = "{}"\n[[group.member]]\nname = "ada"\n'
    text = "format = 1\n" + one.format("hides") + "{}" + one.format("shows") + "{}"
    for window in (later, sooner):
        with pytest.raises(AwaitsApproval):
            found.apply(console, text.format(window, once))
    assert found.apply(console, text.format(once, sooner))["applied"]


def test_who_may(office: Office) -> None:
    staffed(office)
    officer, auditor = office.user("officer", "security-officer"), office.user("book", "auditor")
    giving = "format = 1\n[[grant]]\nto = 'ada'\nrole = 'referrer'\neverything = true\n"
    giving += "[[grant]]\nto = 'admin'\nrole = 'owner'\neverything = true\n"
    policy(office).export(auditor)
    policy(office).apply(officer, giving)
    ann = office.user("ann", "administrator")
    for work in (
        lambda: policy(office).apply(auditor, giving), lambda: policy(office).export(ann), lambda: policy(office).test(ann, giving),
        lambda: policy(office).apply(officer, "format = 1\n[[group]]\nname = 'new'\n"),
    ):
        with pytest.raises(Forbidden):
            work()


NO_POLICY = (
    "", "format = 2", "format = 1\nx = 1", "format = 1\n[[grant]]\nto = 'nobody'\nrole = 'owner'\neverything = true",
    "format = 1\n[[grant]]\nto = 'ada'\nrole = 'nothing'\neverything = true", "format = 1\n[[grant]]\nto = 'ada'\nrole = 'owner'",
    "format = 1\n[[grant]]\nto = 'ada'\nrole = 'owner'\neverything = true\nstudy = '1.1'",
    "format = 1\n[[grant]]\nto = 'ada'\nrole = 'owner'\nstudy = '9.9'", "format = 1\n[[grant]]\nto = 'ada'\nrole = 'owner'\npatient = 'P9'",
    "format = 1\n[[grant]]\nto = 'ada'\nrole = 'owner'\neverything = true\ndatastore = 'other'",
    "format = 1\n[[grant]]\nto = 'ada'\nrole = 'modality'\neverything = true",
    "format = 1\n[[grant]]\nto = 'ada'\nrole = 'referrer'\neverything = true\ndelegable = 1",
    "format = 1\n[[role]]\nname = 'mine'", "format = 1\n[[role]]\nname = 'mine'\npermissions = []",
    "format = 1\n[[role]]\nname = 'owner'\npermissions = ['search']", "format = 1\n[[role]]\nname = 'a'\npermissions = ['fly']",
    "format = 1\n[[group]]\nname = 'ada'", "format = 1\n[[group]]\nname = 'g'\n[[group]]\nname = 'G'",
    "format = 1\n[[group]]\nname = 'g'\n[[group.member]]\nname = 'nobody'",
    "format = 1\n[[expect]]\nsubject = 'nobody'\nstudy = '1.1'\ndecision = 'deny'",
    "format = 1\n[[expect]]\nsubject = 'ada'\ndecision = 'deny'",
    "format = 1\n[[expect]]\nsubject = 'ada'\npermission = ['search', 'stats']\nstudy = '1.1'\ndecision = 'deny'",
    "format = 1\n[[expect]]\nsubject = 'ada'\nstudy = '1.1'\ndecision = 'deny'\nat = 2026-01-01T00:00:00",
    "a = " + "[" * 3000,
)


@one_engine
def test_what_is_no_policy_is_refused_and_changes_nothing(office: Office) -> None:
    staffed(office)
    before = policy(office).export(office.console)
    for text in NO_POLICY:
        with pytest.raises((InvalidRequest, StateConflict)):
            policy(office).apply(office.console, text)
    assert policy(office).export(office.console) == before


@one_engine
@pytest.mark.parametrize("seed", range(WORLDS))
def test_exported_and_applied_elsewhere_everybody_sees_the_same(
    database: Database, access_keyring: Keyring, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    at = datetime(2026, 6, 1, 12, tzinfo=UTC)
    first = Office(rows.build(database, at), access_keyring, tmp_path)
    people = staffed(first)
    console, a = first.console, first.accounts
    groups = [a.add_group(console, name)["name"] for name in ("g1", "g2")]
    own = ["r0", "r1"]
    for name in own:
        a.add_role(console, name, ["search", *chance.sample(["metadata", "pixels", "original", "stats"], 2)])
    for _ in range(3):
        a.join_group(console, chance.choice(groups), chance.choice(PEOPLE), until=chance.choice([None, "1d", "1m"]))
    for _ in range(3):
        a.assign_role(console, chance.choice([*PEOPLE, *groups]), chance.choice([*own, "auditor"]), since=chance.choice([None, "1d"]))
    for _ in range(9):
        role = chance.choice([*own, "referrer", "radiologist"])
        level, value = chance.choice([("everything", ""), ("patient", "P1"), ("study", "1.2"), ("study", "1.1"), ("series", "1.1.1")])
        a.add_grant(
            console, to=chance.choice([*PEOPLE, *groups]), role=role, target=Target(level, value), deny=chance.random() < 0.3,  # type: ignore[arg-type]
            modality=chance.choice(["", "", "CT"]), since=chance.choice([None, None, "1d"]), until=chance.choice([None, "2d", "36h"]),
        )
    for number in chance.sample(range(2, 10), 2):
        a.revoke_grant(console, number)
    a.change_role(console, own[0], add=["verify"])
    first.at += timedelta(minutes=5)
    text = policy(first).export(console)
    second = _elsewhere(tmp_path / "second", at, access_keyring)
    same = staffed(second)
    second.at = first.at
    policy(second).apply(second.console, text)
    assert policy(second).export(second.console).splitlines() == text.splitlines()
    shown: set[str] = set()
    for ahead in (timedelta(), timedelta(days=1), timedelta(days=3)):
        first.at = second.at = at + timedelta(minutes=5) + ahead
        for name in PEOPLE:
            assert may(first, people[name]) == may(second, same[name]), (name, ahead)
            shown |= set().union(*may(first, people[name]).values())
    assert shown, "a world in which nobody sees anything shows nothing"


def _elsewhere(folder: Path, at: datetime, keyring: Keyring) -> Office:
    folder.mkdir()
    return Office(rows.build(databases.embedded(folder), at), keyring, folder)


def test_the_example_of_the_page_is_a_policy() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "access.md").read_text(encoding="utf-8")
    found = policy_document.parse(page.split("```toml\n")[1].split("```")[0])
    assert (len(found.role or ()), len(found.group or ()), len(found.grant or ()), len(found.expect)) == (1, 1, 1, 1)


@one_engine
def test_effects_beyond_the_number_compared_one_by_one_are_counted(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    from archive.services import policy_effect

    staffed(office)
    monkeypatch.setattr(policy_effect, "MOST", 1)
    office.accounts.add_grant(office.console, to="ada", role="referrer", target=Target("patient", "P1"))
    found = policy(office).test(office.console, "format = 1\n[[grant]]\nto = 'ada'\nrole = 'referrer'\neverything = true\n")
    assert {"subject": "ada", "change": "gains", "permissions": ["search", "metadata", "pixels"], "series": 1} in found["effects"]
