"""Grants, bootstrap, principals, roles, explain and the page that documents them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.access import bootstrap, credentials, explain, grants, passwords, policy, principals, roles
from archive.access.grants import Target, Terms
from archive.access.permissions import BUILTIN_ROLES, FUNCTION, OBJECT, Permission
from archive.db import tables
from archive.db.types import FOREVER
from archive.errors import Forbidden, InvalidRequest, NotFound
from tests.access import rows
from tests.access.rows import Place

P = Permission


def give(tx: sa.Connection, place: Place, to: int, target: Target, role: str = "referrer", **terms: object) -> int:
    store = place.first.datastore_id
    return grants.give(
        tx, to=to, role_row=roles.find(tx, role), datastore_id=store, scope_key=grants.scope_key(tx, store, target, at=place.at),
        terms=Terms(**{"not_before": place.at, **terms}), by=place.first.console_id, at=place.at,
    )


# --- bootstrap ---


def test_the_first_owner_sees_through_one_visible_grant(place: Place) -> None:
    with place.database.begin() as tx:
        found = grants.listed(tx, at=place.at)
        told = [(row["subject"], row["level"], row["effect"], row["state"]) for row in found]
        assert told == [("admin", "everything", "allow", "active")]
        assert found[0]["until"] == FOREVER
        assert found[0]["endless"]
        policy.require(tx, place.owner, FUNCTION, place.at)
        account = credentials.account(tx, "admin")
        assert account is not None
        passwords.verify(rows.PASSWORD, account.phc)
        assert tx.execute(sa.select(tables.datastore.c.name)).scalars().all() == ["clinical"]
        assert len(place.first.datastore_uid) == 16
        assert bootstrap.console_id(tx) == place.first.console_id
        with pytest.raises(InvalidRequest):
            bootstrap.bootstrap(tx, at=place.at, admin="other", password=rows.PASSWORD)
    assert place.seen(place.owner, P.SEARCH | P.METADATA | P.PIXELS | P.ORIGINAL | P.DELETE)
    assert not place.seen(place.owner, P.RESTRICTED)


def test_the_builtin_roles_are_made_once(place: Place) -> None:
    with place.database.begin() as tx:
        roles.add_builtin(tx, at=place.at)
        assert {row["name"]: roles.parse(row["permissions"]) for row in roles.listed(tx)} == BUILTIN_ROLES


# --- targets and terms ---


def test_what_is_not_there_cannot_be_granted(place: Place) -> None:
    with place.database.begin() as tx:
        for level, value in (("study", "1.1.1"), ("series", "1.1"), ("patient", "1.1"), ("study", "9"), ("patient", "")):
            with pytest.raises(NotFound):
                grants.scope_key(tx, place.first.datastore_id, Target(level, value), at=place.at)
        with pytest.raises(NotFound):
            grants.scope_key(tx, place.first.datastore_id + 1, Target("study", "1.1"), at=place.at)
        assert grants.scope_key(tx, place.first.datastore_id, Target("everything"), at=place.at) == 0


def test_a_patient_still_to_come(place: Place) -> None:
    with place.database.begin() as tx:
        store = place.first.datastore_id
        key = grants.scope_key(tx, store, Target("patient", " NEW1 ", expected=True), at=place.at, default_issuer="CLINIC")
        assert key % 4 == 1
        row = policy.run_as(tx, rows.TOKEN, sa.select(tables.patient).where(tables.patient.c.id == key // 4)).mappings().one()
        assert (row["patient_id"], row["issuer"], row["synthetic"]) == ("NEW1", "CLINIC", False)
        assert grants.scope_key(tx, store, Target("patient", "NEW1", expected=True), at=place.at) == key
        assert grants.scope_key(tx, store, Target("patient", "NEW1"), at=place.at) == key


def test_one_patient_id_of_two_issuers_asks_for_the_issuer(place: Place) -> None:
    with place.database.begin() as tx:
        store = place.first.datastore_id
        other = rows.insert(tx, tables.patient, datastore_id=store, patient_id="P1", issuer="B", created_at=place.at)
        rows.insert(tx, tables.patient, datastore_id=store, patient_id="P2", synthetic=True, created_at=place.at)
        with pytest.raises(InvalidRequest, match="several"):
            grants.scope_key(tx, store, Target("patient", "P1"), at=place.at)
        assert grants.scope_key(tx, store, Target("patient", "P1", issuer="B"), at=place.at) == other * 4 + 1
        grants.scope_key(tx, store, Target("patient", "P2"), at=place.at)


def test_terms_that_could_never_count_are_refused(place: Place) -> None:
    with place.database.begin() as tx:
        ada = principals.add(tx, "user", "ada", at=place.at)
        for wrong in (
            {"not_after": place.at}, {"modality": "ct"}, {"modality": "C;T"}, {"study_date_from": "2024-01-01"}, {"study_date_to": "x"},
        ):
            with pytest.raises(InvalidRequest):
                give(tx, place, ada, Target("everything"), **wrong)
        with pytest.raises(InvalidRequest, match="no permission on images"):
            give(tx, place, ada, Target("everything"), role="auditor")


def test_a_grant_ends_once_and_keeps_its_row(place: Place) -> None:
    with place.database.begin() as tx:
        ada = principals.add(tx, "user", "ada", at=place.at)
        key = give(tx, place, ada, Target("study", "1.1"), modality="CT", reason="referral", not_after=place.at + timedelta(hours=8))
        row = grants.listed(tx, at=place.at, to=ada)[0]
        assert (row["id"], row["level"], row["object"], row["role"]) == (key, "study", "1.1", "referrer")
        assert row["conditions"] == {"modality": "CT"}
        states = [grants.listed(tx, at=place.at + timedelta(hours=n), to=ada)[0]["state"] for n in (-1, 0, 7, 8)]
        assert states == ["not yet", "active", "active", "expired"]
        assert grants.revoke(tx, key, by=1, at=place.at)
        assert not grants.revoke(tx, key, by=2, at=place.at + timedelta(days=1))
        assert grants.find(tx, key)["revoked_by"] == 1
        assert grants.listed(tx, at=place.at, to=ada)[0]["state"] == "revoked"
        with pytest.raises(NotFound):
            grants.find(tx, key + 100)


def test_nobody_gives_to_themselves(place: Place) -> None:
    with place.database.begin() as tx:
        group = principals.add(tx, "group", "desk", at=place.at)
        grants.refuse_self(tx, place.owner, group)
        principals.join(tx, place.first.owner_id, group, by=1, not_before=place.at + timedelta(days=1))
        for target in (place.first.owner_id, group):
            with pytest.raises(Forbidden):
                grants.refuse_self(tx, place.owner, target)
            grants.refuse_self(tx, place.console, target)


# --- principals and roles ---


def test_names(place: Place) -> None:
    with place.database.begin() as tx:
        key = principals.add(tx, "user", "  Zoe\u0301 Ōta ", at=place.at)
        assert principals.find(tx, "Zo\u00e9 Ōta")["id"] == key
        assert principals.find(tx, str(key))["name"] == "Zo\u00e9 Ōta"
        for wrong in ("", " ", "a:b", "a/b", "a\nb", "a\u202eb", "17", "x" * 65, "ADMIN", "console", "Console"):
            with pytest.raises(InvalidRequest):
                principals.add(tx, "group", wrong, at=place.at)
        for absent in ("nobody", "999", "9" * 30, "a\0b", "console"):
            with pytest.raises(NotFound):
                principals.find(tx, absent)


def test_a_removed_user_leaves_nothing_but_its_id(place: Place) -> None:
    with place.database.begin() as tx:
        ada = principals.add(tx, "user", "ada", at=place.at)
        desk = principals.add(tx, "group", "desk", at=place.at)
        credentials.set_password(tx, ada, rows.PASSWORD, name="ada", must_change=False, at=place.at)
        principals.join(tx, ada, desk, by=1, not_before=place.at)
        roles.assign(tx, ada, roles.find(tx, "owner")["id"], by=1, at=place.at)
        give(tx, place, ada, Target("everything"))
        assert roles.of(tx, ada, at=place.at) == ["owner"]
        assert [row["name"] for row in principals.members_of(tx, desk)] == ["ada"]
        principals.remove(tx, ada, "ada", by=1, at=place.at)
        assert not roles.of(tx, ada, at=place.at)
        assert not principals.groups_of(tx, ada)
        assert grants.listed(tx, at=place.at, to=ada)[0]["state"] == "revoked"
        assert credentials.account(tx, "ada") is None
        again = principals.add(tx, "user", "ada", at=place.at)
        assert again != ada
        assert [row["name"] for row in principals.listed(tx, ("user",))] == ["ada", "admin"]
    assert place.seen(place.subject(ada)) == place.seen(place.subject(again)) == set()


def test_own_roles(place: Place) -> None:
    with place.database.begin() as tx:
        key = roles.add(tx, "reader", P.SEARCH | P.AUDIT, at=place.at)
        assert roles.shown(roles.find(tx, key)) == {
            "id": key, "name": "reader", "builtin": False, "permissions": ["search", "audit"], "functions": ["audit"],
            "objects": ["search"], "second_factor": False, "idle_minutes": 0, "absolute_hours": 0,
        }
        for name, bits in (("Reader", P.SEARCH), ("empty", P.NONE), ("a:b", P.SEARCH)):
            with pytest.raises(InvalidRequest):
                roles.add(tx, name, bits, at=place.at)
        with pytest.raises(NotFound):
            roles.find(tx, "nothing")
    with pytest.raises(InvalidRequest) as wrong:
        roles.parse(["search", "fly"])
    assert "user-manage" in wrong.value.remedy
    assert roles.parse(roles.names(FUNCTION | OBJECT)) == FUNCTION | OBJECT


# --- explain ---


def test_explain_names_every_grant_that_had_a_say(place: Place) -> None:
    at, day = place.at, timedelta(days=1)
    with place.database.begin() as tx:
        store = place.first.datastore_id
        ada, desk = principals.add(tx, "user", "ada", at=at), principals.add(tx, "group", "desk", at=at)
        principals.join(tx, ada, desk, by=1, not_before=at)
        kept = {
            give(tx, place, desk, Target("patient", "P1")): ("allow", "active"),
            give(tx, place, ada, Target("study", "1.1"), not_before=at - 2 * day, not_after=at - day): ("allow", "expired"),
            give(tx, place, ada, Target("series", "1.1.2"), not_before=at + day): ("allow", "not yet"),
        }
        gone = give(tx, place, ada, Target("everything"))
        grants.revoke(tx, gone, by=1, at=at)
        give(tx, place, ada, Target("study", "2.1"))
        who = principals.find(tx, "ada")
        answer = explain.explain(tx, who, store, "1.1", at=at)
        assert answer["allowed"]
        assert answer["permissions"] == ["search", "metadata", "pixels"]
        told = {row["grant"]: (row["effect"], row["state"]) for row in answer["because"]}
        assert told == {**kept, gone: ("allow", "revoked")}
        assert {"role", "level", "subject", "from", "until"} <= set(answer["because"][0])
        series = explain.explain(tx, who, store, "1.1.1", at=at)
        assert series["allowed"]
        assert len(series["because"]) == 3  # not the grant of its sister series
        deny = give(tx, place, desk, Target("everything"), deny=True)
        answer = explain.explain(tx, who, store, "1.1", at=at)
        assert not answer["allowed"]
        assert (deny, "deny") in [(row["grant"], row["effect"]) for row in answer["because"]]


def test_explain_of_what_is_not_there_says_nothing(place: Place) -> None:
    with place.database.begin() as tx:
        who = principals.find(tx, "admin")
        for uid in ("9.9", "", "P1"):
            assert explain.explain(tx, who, place.first.datastore_id, uid, at=place.at) == {"allowed": False, "known": False, "because": []}
        principals.set_enabled(tx, who["id"], enabled=False, at=place.at)
        answer = explain.explain(tx, principals.find(tx, "admin"), place.first.datastore_id, "1.1", at=place.at)
        assert not answer["allowed"]
        assert not answer["enabled"]


# --- docs/access.md ---


def test_the_page_shows_the_matrix_of_the_code() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "access.md").read_text(encoding="utf-8")
    matrix = roles.matrix([{"name": name, "permissions": roles.names(held)} for name, held in BUILTIN_ROLES.items()])
    lines = ["| permission | kind | " + " | ".join(BUILTIN_ROLES) + " |", "|---|---|" + "---|" * len(BUILTIN_ROLES)]
    for row in matrix:
        kind = row["kind"] + (", administrative" if row["administrative"] else "")
        held = " | ".join("x" if name in row["roles"] else "" for name in BUILTIN_ROLES)
        lines.append(f"| `{row['permission']}` | {kind} | {held} |")
    assert "\n".join(lines) in page
    assert {row["permission"] for row in matrix} == set(roles.names(FUNCTION | OBJECT))
