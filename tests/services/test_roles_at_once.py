"""Roles that are changed while they are granted, changed otherwise or removed: what one took away no other brings back."""

from __future__ import annotations

from datetime import timedelta
from time import sleep

import pytest

from archive.access import roles
from archive.access.grants import Target
from archive.access.permissions import Permission
from archive.errors import ArchiveError, StateConflict
from archive.services.review_rows import Chosen
from archive.services.reviews import Reviews
from tests.services.office import Office
from tests.services.shares_world import World
from tests.services.together import LOOKS_S, at_once, slowly

EVERYTHING = Target("everything")


def test_what_is_taken_from_a_role_is_not_granted_meanwhile(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    a, console, pal = office.accounts, office.console, office.user("pal")
    a.add_role(console, "ours", ["search", "original"])
    slowly(monkeypatch, roles, "find")
    came = at_once(
        lambda: a.add_grant(console, to="pal", role="ours", target=EVERYTHING), lambda: a.change_role(console, "ours", remove=["original"]),
    )
    assert not any(isinstance(one, Exception) for one in came)
    assert [row["permissions"] for row in a.list_grants(console, to="pal")] == [["search"]]
    assert office.place.seen(pal, at=office.at)
    assert office.place.seen(pal, Permission.ORIGINAL, office.at) == set()


def test_what_one_takes_from_a_role_another_does_not_bring_back(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    a, console = office.accounts, office.console
    a.add_role(console, "ours", ["search", "original"])
    slowly(monkeypatch, roles, "find")
    at_once(lambda: a.change_role(console, "ours", remove=["original"]), lambda: a.change_role(console, "ours", add=["metadata"]))
    assert a.show_role(console, "ours")["permissions"] == ["search", "metadata"]


def test_a_role_is_removed_or_given_and_not_both(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    a, console = office.accounts, office.console
    office.user("pal")
    gives = (
        lambda: a.assign_role(console, "pal", "ours 1"), lambda: a.add_grant(console, to="pal", role="ours 2", target=EVERYTHING),
    )
    slowly(monkeypatch, roles, "find")
    for number, give in enumerate(gives, 1):
        a.add_role(console, f"ours {number}", ["search", "store"])
        came = at_once(give, lambda number=number: a.remove_role(console, f"ours {number}"))  # type: ignore[misc]
        assert sum(isinstance(one, ArchiveError) for one in came) == 1, number


def test_a_row_of_a_review_is_decided_before_it_is_closed_or_not_at_all(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(office)
    reviews, console = Reviews(world.core), office.console
    number = reviews.start(console, "Who still needs this?", due=office.at + timedelta(days=9), chosen=Chosen(roles=False))["id"]
    rows = [row["id"] for row in reviews.show(console, number)["items"]]
    reviews.decide(console, number, rows, "keep")
    slowly(monkeypatch, Reviews, "_carry_out")
    closed, decided = at_once(
        lambda: reviews.close(console, number), lambda: sleep(LOOKS_S / 2) or reviews.decide(console, number, rows, "revoke"),
    )
    assert isinstance(closed, dict)
    assert isinstance(decided, StateConflict), "else somebody was told that it is revoked"
    assert {row["decision"] for row in reviews.show(console, number)["items"]} == {"keep"}
