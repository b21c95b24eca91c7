"""Roles of the archive's own: changed with all their grants at once, removed when nobody has them, never by who has them."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from archive.access.grants import Target
from archive.access.permissions import BUILTIN_ROLES, OBJECT, Permission
from archive.db import tables
from archive.db.engine import Database
from archive.errors import Forbidden, InvalidRequest, NotFound, StateConflict
from tests.services.office import Office

EVERYTHING = Target("everything")


def sees(office: Office, who: object, need: Permission) -> set[str]:
    return office.place.seen(who, need, at=office.at)  # type: ignore[arg-type]


def test_a_changed_role_changes_every_grant_of_it_in_the_same_moment(office: Office) -> None:
    a = office.accounts
    a.add_role(office.console, "reader", ["search", "metadata"])
    ada, bob = office.user("ada"), office.user("bob")
    a.add_group(office.console, "desk")
    a.join_group(office.console, "desk", "bob")
    a.add_grant(office.console, to="ada", role="reader", target=Target("study", "1.1"))
    a.add_grant(office.console, to="desk", role="reader", target=EVERYTHING)
    later = a.add_grant(office.console, to="ada", role="reader", target=EVERYTHING, until="1h")
    ended = a.add_grant(office.console, to="bob", role="reader", target=EVERYTHING)
    a.revoke_grant(office.console, ended["id"])
    office.at += timedelta(hours=2)
    assert later["state"] == "active"
    made = a.change_role(office.console, "reader", add=["pixels"], remove=["metadata"], reason="pictures, no text")
    assert (made["permissions"], made["grants"]) == (["search", "pixels"], 2)
    assert sees(office, ada, Permission.PIXELS) == {"1.1.1", "1.1.2"}
    assert sees(office, bob, Permission.PIXELS) == {"1.1.1", "1.1.2", "1.2.1", "2.1.1"}
    assert sees(office, ada, Permission.METADATA) == sees(office, bob, Permission.METADATA) == set()
    event = office.events()[0]
    assert event.kind == "role-changed"
    assert event.body is not None
    told = event.body["detail"]
    assert (told["before"], told["permissions"], told["grants"]) == (["search", "metadata"], ["search", "pixels"], 2)
    with office.place.database.read() as tx:
        copies = set(tx.execute(sa.select(tables.grants.c.permissions).where(tables.grants.c.role_id == made["id"])).scalars())
    assert copies == {int(Permission.SEARCH | Permission.PIXELS)}, "ended grants too, as verify asks"


def test_a_deny_of_a_role_hides_what_the_role_holds_now(office: Office) -> None:
    a, ada = office.accounts, office.user("ada")
    a.add_role(office.console, "veil", ["pixels"])
    a.add_grant(office.console, to="ada", role="radiologist", target=EVERYTHING)
    a.add_grant(office.console, to="ada", role="veil", target=Target("study", "1.1"), deny=True)
    assert "1.1.1" in sees(office, ada, Permission.METADATA)
    a.change_role(office.console, "veil", add=["metadata"])
    assert "1.1.1" not in sees(office, ada, Permission.METADATA)


def test_the_roles_from_the_start_stay_as_they_are(office: Office) -> None:
    for name in BUILTIN_ROLES:
        with pytest.raises(StateConflict):
            office.accounts.change_role(office.console, name, add=["verify"])
        with pytest.raises(StateConflict):
            office.accounts.remove_role(office.console, name)
    held = {row["name"]: set(row["permissions"]) for row in office.accounts.list_roles(office.console)}
    assert held.keys() == BUILTIN_ROLES.keys()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("how", ["assigned", "later", "granted", "denied", "group", "group granted"])
def test_nobody_changes_a_role_they_have(office: Office, how: str) -> None:
    a, console = office.accounts, office.console
    eve = office.user("eve", "security-officer")
    a.add_role(console, "mine", ["search", "stats"])
    a.add_group(console, "desk")
    a.join_group(console, "desk", "eve")
    a.change_role(eve, "mine", add=["pixels"])
    if how in ("assigned", "later", "group"):
        a.assign_role(console, "desk" if how == "group" else "eve", "mine", since="1d" if how == "later" else None)
    else:
        a.add_grant(console, to="desk" if "group" in how else "eve", role="mine", target=EVERYTHING, deny=how == "denied")
    for asked in ({"add": ["original"]}, {"remove": ["pixels"]}):
        with pytest.raises(Forbidden, match="themselves"):
            a.change_role(eve, "mine", **asked)
    assert office.events()[0].kind == "denied"
    assert "original" in a.change_role(office.console, "mine", add=["original"])["permissions"]


def test_a_role_is_removed_once_nobody_has_it_and_its_name_stays_its_own(office: Office) -> None:
    a, console = office.accounts, office.console
    office.user("ada")
    a.add_role(console, "once", ["search", "stats"])
    grant = a.add_grant(console, to="ada", role="once", target=EVERYTHING)
    a.assign_role(console, "ada", "once", since="2d", until="3d")
    with pytest.raises(StateConflict, match="in use"):
        a.remove_role(console, "once")
    a.revoke_grant(console, grant["id"])
    with pytest.raises(StateConflict, match="in use"):
        a.remove_role(console, "once")
    a.withdraw_role(console, "ada", "once")
    assert a.remove_role(console, "once")["name"] == "once"
    assert "once" not in {row["name"] for row in a.list_roles(console)}
    for again in (
        lambda: a.show_role(console, "once"), lambda: a.change_role(console, "once", add=["pixels"]),
        lambda: a.assign_role(console, "ada", "once"), lambda: a.add_grant(console, to="ada", role="once", target=EVERYTHING),
    ):
        with pytest.raises(NotFound):
            again()
    a.add_role(console, "Übung", ["search"])
    for taken in ("Once", "Übung", "übung"):
        with pytest.raises(InvalidRequest, match="taken"):
            a.add_role(console, taken, ["search"])
    assert a.list_grants(console, to="ada", ended=True)[0]["role"] == "once"


def test_what_a_change_may_not_come_to(office: Office) -> None:
    a, console = office.accounts, office.console
    office.user("ada")
    a.add_role(console, "odd", ["search", "stats"])
    a.add_grant(console, to="ada", role="odd", target=EVERYTHING)
    for asked in (
        {}, {"add": ["pixels"], "remove": ["pixels"]}, {"add": ["everything"]}, {"remove": ["search", "stats"]}, {"remove": ["search"]},
    ):
        with pytest.raises(InvalidRequest):
            a.change_role(console, "odd", **asked)
    assert a.show_role(console, "odd")["permissions"] == ["search", "stats"]


def test_only_role_manage_changes_roles(office: Office) -> None:
    office.accounts.add_role(office.console, "own", ["search"])
    for name in BUILTIN_ROLES.keys() - {"owner", "security-officer"}:
        who = office.user(f"the-{name}", name)
        with pytest.raises(Forbidden):
            office.accounts.change_role(who, "own", add=["pixels"])
        with pytest.raises(Forbidden):
            office.accounts.remove_role(who, "own")


def test_no_assignment_shows_anything(office: Office) -> None:
    """Not of any role that exists from the start, not of all together: only grants show."""
    everyone = office.user("all", *BUILTIN_ROLES)
    for name in BUILTIN_ROLES:
        office.user(f"the-{name}", name)
    with office.place.database.read() as tx:
        ids = tx.execute(sa.select(tables.principal.c.id).where(tables.principal.c.name.like("the-%"))).scalars().all()
    assert len(ids) == len(BUILTIN_ROLES)
    for subject in [everyone, *(office.place.subject(key) for key in ids)]:
        assert not any(sees(office, subject, bit) for bit in OBJECT)


def test_the_matrix_is_of_the_roles_there_are(office: Office, database: Database) -> None:
    del database
    office.accounts.add_role(office.console, "own", ["search", "stats"])
    rows = {row["permission"]: row for row in office.accounts.matrix(office.console)}
    assert rows["stats"]["roles"] == ["owner", "administrator", "auditor", "own"]
    assert (rows["stats"]["kind"], rows["stats"]["administrative"], rows["search"]["kind"]) == ("function", True, "object")
    with pytest.raises(Forbidden):
        office.accounts.matrix(office.user("ada", "radiologist"))
