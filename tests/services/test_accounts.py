"""Users, groups, roles, grants and tokens as the command line and the web use them."""

from __future__ import annotations

import dataclasses
import json
from datetime import timedelta

import msgspec
import pytest
import sqlalchemy as sa

from archive.access.grants import Target
from archive.db import tables
from archive.errors import Forbidden, InvalidRequest, NotFound
from tests.access import rows
from tests.services.office import Office

GOOD = "kq7vw mh3xz pp2ra tn8bd"


def test_a_grant_for_one_series_until_its_end(office: Office) -> None:
    ada = office.user("ada", "radiologist")
    assert office.seen(ada) == set()
    row = office.accounts.add_grant(office.console, to="ada", role="radiologist", target=Target("series", "1.1.2"), until="8h")
    assert json.loads(msgspec.json.encode(row))["id"] == row["id"]
    assert office.seen(ada) == {"1.1.2"}
    answer = office.accounts.explain(office.console, "ada", "1.1.2")
    assert answer["allowed"]
    assert answer["because"][0]["grant"] == row["id"]
    assert office.accounts.list_grants(office.console, to="ada") == [row]
    office.at += timedelta(hours=8)
    assert office.seen(ada) == set()
    assert not office.accounts.explain(office.console, "ada", "1.1.2")["allowed"]
    assert office.accounts.list_grants(office.console, to="ada") == []
    assert [found["state"] for found in office.accounts.list_grants(office.console, to="ada", ended=True)] == ["expired"]


def test_revoke_and_deny(office: Office) -> None:
    ada = office.user("ada")
    allow = office.accounts.add_grant(office.owner, to=ada.principal_id, role="referrer", target=Target("everything"), reason="staff")
    deny = office.accounts.add_grant(office.owner, to="ada", role="referrer", target=Target("patient", "P1"), deny=True, modality="ct")
    assert deny["effect"] == "deny"
    assert office.seen(ada) == {"1.1.2", "2.1.1"}
    assert office.accounts.revoke_grant(office.owner, str(deny["id"]))["state"] == "revoked"
    assert len(office.seen(ada)) == 4
    office.accounts.revoke_grant(office.owner, allow["id"])
    office.accounts.revoke_grant(office.owner, allow["id"])
    assert office.seen(ada) == set()
    assert [event.kind for event in office.events()][:4] == ["revoked", "revoked", "granted", "granted"]
    for wrong in ("x", 999, "9" * 40):
        with pytest.raises((NotFound, InvalidRequest)):
            office.accounts.revoke_grant(office.owner, wrong)


def test_each_change_is_an_event_with_its_object_in_the_sealed_body(office: Office) -> None:
    office.user("zoe")
    office.accounts.add_grant(office.console, to="zoe", role="referrer", target=Target("study", "1.1"))
    event = office.events()[0]
    assert event.kind == "granted"
    assert event.body is not None
    assert event.body["objects"] == [["study", "1.1"]]
    assert event.body["detail"]["to"] == "zoe"
    assert event.body["subject"]["operator"] == "root"
    with office.place.database.read() as tx:
        leaves = b"".join(tx.execute(sa.select(tables.ledger_leaf.c.data)).scalars())
    assert b"1.1" not in leaves
    assert b"zoe" not in leaves


def test_a_change_without_its_event_does_not_happen(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> int:
        raise RuntimeError

    monkeypatch.setattr(office.ledger, "record", broken)
    with pytest.raises(RuntimeError):
        office.accounts.add_user(office.console, "ada")
    monkeypatch.undo()
    assert [row["name"] for row in office.accounts.list_users(office.console)] == ["admin"]


@pytest.mark.parametrize(("role", "may"), [
    ("administrator", {"users"}), ("security-officer", {"roles"}), ("auditor", {"explain"}), ("radiologist", set()),
    ("owner", {"users", "roles", "explain"}),
])
def test_who_may_do_what(office: Office, role: str, may: set[str]) -> None:
    office.user("eve", role)
    me = dataclasses.replace(office.user("other"), principal_id=office.accounts.show_user(office.console, "eve")["id"], name="eve")
    office.user("ada")

    def allowed(*calls: object) -> bool:
        done = 0
        for call in calls:
            try:
                call()  # type: ignore[operator]
                done += 1
            except Forbidden:
                pass
        assert done in (0, len(calls))
        return done > 0

    a, everything = office.accounts, Target("everything")
    assert allowed(
        lambda: a.add_user(me, "new"), lambda: a.add_group(me, "desk"), lambda: a.join_group(me, "desk", "ada"),
        lambda: a.disable_user(me, "ada"), lambda: a.enable_user(me, "ada"), lambda: a.reset_password(me, "ada"),
        lambda: a.leave_group(me, "desk", "ada"),
        lambda: a.remove_group(me, "desk"), lambda: a.remove_user(me, "new"),
    ) == ("users" in may)
    assert allowed(
        lambda: a.add_role(me, "mine", ["search"]), lambda: a.assign_role(me, "ada", "referrer"),
        lambda: a.withdraw_role(me, "ada", "referrer"),
        lambda: a.revoke_grant(me, a.add_grant(me, to="ada", role="referrer", target=everything)["id"]),
    ) == ("roles" in may)
    assert allowed(lambda: a.explain(me, "ada", "1.1")) == bool({"roles", "explain"} & may)
    assert allowed(lambda: a.list_users(me)) == bool({"roles", "users"} & may)
    refused = [event for event in office.events() if event.kind == "denied"]
    assert bool(refused) == (role != "owner")


def test_nobody_widens_their_own_rights(office: Office) -> None:
    eve = office.user("eve", "owner")
    a = office.accounts
    a.add_group(office.console, "desk")
    a.join_group(office.console, "desk", "eve")
    deny = a.add_grant(office.console, to="desk", role="referrer", target=Target("everything"), deny=True)
    for attempt in (
        lambda: a.add_grant(eve, to="eve", role="referrer", target=Target("everything")),
        lambda: a.add_grant(eve, to="desk", role="referrer", target=Target("everything")),
        lambda: a.assign_role(eve, "eve", "auditor"), lambda: a.assign_role(eve, "desk", "auditor"),
        lambda: a.join_group(eve, "desk", "eve"), lambda: a.leave_group(eve, "desk", "eve"), lambda: a.revoke_grant(eve, deny["id"]),
    ):
        with pytest.raises(Forbidden):
            attempt()
    a.add_grant(office.console, to="eve", role="referrer", target=Target("everything"))
    assert office.seen(eve) == set()
    a.leave_group(office.console, "desk", "eve")
    assert office.seen(eve)


def test_an_administrator_does_not_become_the_owner(office: Office) -> None:
    eve, a = office.user("eve", "administrator"), office.accounts
    for attempt in (
        lambda: a.reset_password(eve, "admin"), lambda: a.disable_user(eve, "admin"), lambda: a.remove_user(eve, "admin"),
        lambda: a.add_user(eve, "puppet", roles=["owner"]),
    ):
        with pytest.raises(Forbidden):
            attempt()
    assert "puppet" not in [row["name"] for row in a.list_users(office.console)]
    a.add_group(eve, "readers")
    a.add_user(eve, "puppet")
    a.join_group(eve, "readers", "puppet")
    a.leave_group(eve, "readers", "puppet")
    a.add_grant(office.console, to="readers", role="radiologist", target=Target("everything"))
    with pytest.raises(Forbidden):
        a.join_group(eve, "readers", "puppet")


def test_who_is_denied_something_is_removed_by_who_may_lift_it(office: Office) -> None:
    """Made anew and let into their groups by another system's word, they would be denied nothing."""
    clerk, boss, a = office.user("clerk", "administrator"), office.user("boss", "owner"), office.accounts
    hidden = Target("patient", "P1")
    a.add_group(office.console, "kept out")
    a.add_grant(office.console, to="kept out", role="referrer", target=hidden, deny=True)
    for name in ("own", "later", "member", "joins", "over", "left"):
        office.user(name)
    a.add_grant(office.console, to="own", role="referrer", target=hidden, deny=True)
    a.add_grant(office.console, to="later", role="referrer", target=hidden, deny=True, since="3h")
    a.join_group(office.console, "kept out", "member")
    a.join_group(office.console, "kept out", "joins", since="3h")
    a.add_grant(office.console, to="over", role="referrer", target=hidden, deny=True, until="1h")
    a.join_group(office.console, "kept out", "left", until="1h")
    office.at += timedelta(hours=2)
    for name in ("own", "later", "member", "joins"):
        with pytest.raises(Forbidden):
            a.remove_user(clerk, name)
        assert not a.disable_user(clerk, name)["enabled"]
        a.remove_user(boss, name)
    for name in ("over", "left"):
        a.remove_user(clerk, name)
    a.add_grant(office.console, to="boss", role="referrer", target=hidden, deny=True)
    with pytest.raises(Forbidden):
        a.remove_user(boss, "boss")


def test_who_is_switched_off_or_begins_later_is_guarded_the_same(office: Office) -> None:
    eve, a = office.user("eve", "administrator"), office.accounts
    a.add_group(office.console, "chiefs")
    a.assign_role(office.console, "chiefs", "owner", since="1h")
    for name in ("off", "soon", "member", "joins"):
        office.user(name, password=GOOD)
    a.assign_role(office.console, "off", "owner")
    a.disable_user(office.console, "off")
    a.assign_role(office.console, "soon", "owner", since="1h")
    a.join_group(office.console, "chiefs", "member")
    a.join_group(office.console, "chiefs", "joins", since="2h")
    for name in ("off", "soon", "member", "joins"):
        for attempt in (a.reset_password, a.reset_mfa, a.disable_user, a.enable_user, a.remove_user, office.sessions.end_of):
            with pytest.raises(Forbidden):
                attempt(eve, name)
    a.remove_group(office.console, "chiefs")
    a.withdraw_role(office.console, "off", "owner")
    for name in ("off", "member"):
        a.reset_password(eve, name)
        a.enable_user(eve, name)


@pytest.mark.parametrize(("name", "alike"), [("Ann", "ann"), ("Ärzte", "ärzte"), ("ÖZGE", "Özge"), ("İpek", "İpek"), ("Ωmega", "ωMEGA")])
def test_names_that_differ_in_case_alone_are_one_name(office: Office, name: str, alike: str) -> None:
    office.user(name)
    for again in (name, alike):
        for add in (office.accounts.add_user, office.accounts.add_group):
            with pytest.raises(InvalidRequest, match="taken"):
                add(office.console, again)


def test_users_and_groups_by_name_or_id(office: Office) -> None:
    a = office.accounts
    row = a.add_user(office.console, "ada", roles=["radiologist", "technologist"], full_name="Ada L.", email="ada@example.org")
    a.add_group(office.console, "desk")
    a.join_group(office.console, "desk", "ada", until="30d")
    shown = a.show_user(office.console, row["id"])
    assert (shown["roles"], shown["groups"]) == (["radiologist", "technologist"], ["desk"])
    assert (shown["enabled"], shown["password"]) == (True, False)
    assert a.show_user(office.console, "ada") == shown
    assert [group["members"][0]["name"] for group in a.list_groups(office.console)] == ["ada"]
    assert not a.disable_user(office.console, str(row["id"]))["enabled"]
    assert a.enable_user(office.console, "ada")["enabled"]
    drawn = a.reset_password(office.console, "ada")
    assert len(drawn["password"]) == 23
    assert "password" not in a.reset_password(office.console, "ada", GOOD)
    assert a.remove_user(office.console, "ada") == {"id": row["id"], "name": "ada"}
    with pytest.raises(NotFound):
        a.show_user(office.console, row["id"])
    for name, password in (("bob", "short"), ("admin", None), ("a:b", None)):
        with pytest.raises(InvalidRequest):
            a.add_user(office.console, name, password=password)
    with pytest.raises(NotFound):
        a.add_user(office.console, "bob", roles=["wizard"])
    assert [found["name"] for found in a.list_users(office.console)] == ["admin"]


def test_a_grant_for_a_patient_still_to_come(office: Office) -> None:
    row = office.accounts.add_grant(office.console, to="admin", role="referrer", target=Target("patient", "NEW", expected=True))
    assert (row["level"], row["object"]) == ("patient", "NEW")
    with office.place.database.read() as tx:
        scoped = sa.select(tables.patient.c.issuer).where(tables.patient.c.patient_id == "NEW")
        assert tx.execute(scoped, execution_options={"authorised": rows.TOKEN}).scalar() == "CLINIC"


def test_tokens(office: Office) -> None:
    ada, a = office.user("ada", "technologist"), office.accounts
    a.add_grant(office.console, to="ada", role="technologist", target=Target("study", "1.1"))
    made = a.create_token(office.console, owner="ada", series=["1.1.2"], until="8h")
    assert "store" not in made["permissions"]
    bearer = office.signin.bearer(made["token"], address="192.0.2.7")
    assert office.seen(bearer) == {"1.1.2"}
    whole = a.create_token(office.console, owner="ada")
    assert office.seen(office.signin.bearer(whole["token"], address="")) == {"1.1.1", "1.1.2"}
    assert "store" in whole["permissions"]
    assert "user-manage" not in whole["permissions"]
    with pytest.raises(NotFound):
        a.create_token(office.console, owner="ada", studies=["2.1"])
    with pytest.raises(InvalidRequest):
        a.create_token(office.console, owner="ada", permissions=["fly"])
    assert [row["id"] for row in a.list_tokens(office.console, owner="ada")] == [whole["id"], made["id"]]
    assert "token" not in a.list_tokens(office.console)[0]
    assert a.revoke_token(office.console, made["prefix"])["state"] == "revoked"
    assert office.seen(bearer) == set()
    # nobody makes another's, and none without a session or a token that counts
    for subject in (office.owner, ada, bearer):
        with pytest.raises(Forbidden):
            a.create_token(subject, owner="ada")


def test_users_manage_their_own_tokens_only(office: Office) -> None:
    office.user("ada", password=GOOD)
    office.user("bob", password=GOOD)
    a = office.accounts
    ada, bob = (office.signin.password(name, GOOD, address="", user_agent="").subject for name in ("ada", "bob"))
    mine = a.create_token(ada, owner="ada")
    assert [row["id"] for row in a.list_tokens(ada)] == [mine["id"]]
    assert a.list_tokens(bob) == a.list_tokens(bob, owner="ada") == []
    with pytest.raises(NotFound):
        a.revoke_token(bob, mine["id"])
    with pytest.raises(Forbidden):
        a.create_token(bob, owner="ada")
    assert a.revoke_token(ada, mine["id"])["state"] == "revoked"
    office.at += timedelta(minutes=15)
    with pytest.raises(Forbidden):
        a.list_tokens(ada)


def test_user_manage_alone_opens_no_images_through_somebody_else(office: Office) -> None:
    eve, a = office.user("eve", "administrator"), office.accounts
    office.user("rita", password=GOOD)
    a.reset_password(eve, "rita")
    a.add_grant(office.console, to="rita", role="radiologist", target=Target("everything"))
    with pytest.raises(Forbidden):
        a.reset_password(eve, "rita")
    a.add_group(office.console, "readers")
    a.add_grant(office.console, to="readers", role="radiologist", target=Target("everything"))
    office.user("ruth", password=GOOD)
    a.join_group(office.console, "readers", "ruth")
    with pytest.raises(Forbidden):
        a.reset_password(eve, "ruth")
    assert a.reset_password(office.console, "ruth")["name"] == "ruth"
    assert a.reset_password(office.owner, "rita")["name"] == "rita"  # may give images away as well


def test_a_deny_does_not_go_with_its_group(office: Office) -> None:
    eve, a = office.user("eve", "administrator"), office.accounts
    a.add_group(office.console, "staff")
    a.join_group(office.console, "staff", "eve")
    a.add_grant(office.console, to="eve", role="referrer", target=Target("everything"))
    a.add_grant(office.console, to="staff", role="referrer", target=Target("everything"), deny=True)
    assert office.seen(eve) == set()
    with pytest.raises(Forbidden):
        a.remove_group(eve, "staff")
    a.assign_role(office.console, "eve", "security-officer")
    with pytest.raises(Forbidden):  # still for oneself
        a.remove_group(eve, "staff")
    assert office.seen(eve) == set()
    a.remove_group(office.console, "staff")
    assert office.seen(eve)


@pytest.mark.parametrize("what", ["a role", "a role for later", "a grant", "a grant for later", "a deny", "a deny for later"])
def test_who_is_in_a_group_that_gives_or_hides_is_for_who_gives(office: Office, what: str) -> None:
    eve, olga, a = office.user("eve", "administrator"), office.user("olga", "administrator", "security-officer"), office.accounts
    office.user("pal")
    for name in ("ward", "bare"):
        a.add_group(eve, name)
        a.join_group(eve, name, "pal")
    since = "1h" if "later" in what else None
    if "role" in what:
        a.assign_role(office.console, "ward", "technologist", since=since)
    else:
        a.add_grant(office.console, to="ward", role="referrer", target=Target("everything"), deny="deny" in what, since=since)
    before = a.list_groups(office.console)
    for attempt in (
        lambda: a.join_group(eve, "ward", "pal"), lambda: a.leave_group(eve, "ward", "pal"), lambda: a.remove_group(eve, "ward"),
    ):
        with pytest.raises(Forbidden):
            attempt()
    assert a.list_groups(office.console) == before
    a.leave_group(eve, "bare", "pal")
    a.remove_group(eve, "bare")
    a.leave_group(olga, "ward", "pal")
    a.remove_group(olga, "ward")


def test_grants_name_patients_so_who_looks_may_and_is_recorded(office: Office) -> None:
    eve, a = office.user("eve", "administrator"), office.accounts
    auditor = office.user("ole", "auditor")
    office.user("ada")
    a.add_grant(office.console, to="ada", role="referrer", target=Target("patient", "P1"))
    assert "grants" not in a.show_user(eve, "ada")
    assert "P1" not in str(a.show_user(eve, "ada"))
    assert [grant["object"] for grant in a.show_user(office.console, "ada")["grants"]] == ["P1"]
    before = len(office.events())
    a.list_grants(auditor)
    a.explain(auditor, "ada", "1.1")
    looked = office.events()[: len(office.events()) - before]
    assert [(event.kind, event.principal_id) for event in looked] == [("audit-read", auditor.principal_id)] * 2


def test_a_token_ends_and_lists_nothing_but_itself(office: Office) -> None:
    ada, a = office.user("ada"), office.accounts
    handed_out, other = (a.create_token(office.console, owner="ada") for _ in range(2))
    bearer = office.signin.bearer(handed_out["token"], address="")
    assert [row["id"] for row in a.list_tokens(bearer)] == [handed_out["id"]]
    with pytest.raises(NotFound):
        a.revoke_token(bearer, other["id"])
    assert a.revoke_token(bearer, handed_out["id"])["state"] == "revoked"
    assert {row["id"] for row in a.list_tokens(ada)} == {handed_out["id"], other["id"]}
