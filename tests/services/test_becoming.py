"""Whoever could come in as somebody needs what it takes to give that one's grants away: those of now, of later, and those that rest."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from archive.access.grants import Target
from archive.access.subject import Subject
from archive.errors import Forbidden
from archive.services.arrival_admin import NewRule
from archive.services.arrival_terms import Conditions
from archive.services.identities import Identities
from tests.services import archives, ward
from tests.services.ward import FIRST, Ward

STUDY = Target("study", FIRST)
ISSUER = "https://idp.example"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    """A ward with a clerk who manages users and peers, a peer, and people and groups that have nothing yet."""
    folder = tmp_path_factory.mktemp("becoming")
    with ward.opened(folder / "archive") as opened:
        accounts, console = opened.node.accounts, opened.console
        accounts.add_user(console, "clerk", roles=["administrator"], password=archives.PASSWORD)
        for name in ("pal", "ida", "jon"):
            accounts.add_user(console, name, password=archives.PASSWORD)
        accounts.add_group(console, "night")
        opened.node.peers.add(console, "WS1", ["WS1"], issue=folder / "ws1", roles=["workstation"])
        yield opened


@pytest.fixture(autouse=True)
def _as_it_began(place: Ward) -> Iterator[None]:
    """Whatever a test gives is taken away behind it."""
    yield
    accounts, console = place.node.accounts, place.console
    for rule in place.node.arrival_rules.list(console):
        place.node.arrival_rules.remove(console, rule["id"])
    for name in ("ida", "night", "WS1"):
        for row in accounts.list_grants(console, to=name, ended=True):
            accounts.revoke_grant(console, row["id"])
    for member in next(row for row in accounts.list_groups(console) if row["name"] == "night")["members"]:
        accounts.leave_group(console, "night", member["name"])
    accounts.enable_user(console, "mia")


def tried(place: Ward, clerk: Subject, name: str, folder: Path) -> list[bool]:
    """Whether a clerk may set a password, take second factors, bind an identity, put somebody into the group, renew the peer."""
    node, done = place.node, []
    for work in (
        lambda: node.accounts.reset_password(clerk, name), lambda: node.accounts.reset_mfa(clerk, name),
        lambda: node.identities.bind(clerk, name, issuer=ISSUER, external_subject=name),
        lambda: node.accounts.join_group(clerk, "night", "pal"), lambda: node.peers.renew(clerk, "WS1", issue=folder),
    ):
        try:
            work()
            done.append(True)
        except Forbidden:
            done.append(False)
    for identity in node.identities.listed(place.console):
        node.identities.unbind(place.console, identity["id"])
    return done


@pytest.mark.parametrize("how", ["a grant that begins later", "a grant that rests", "a rule"])
def test_what_somebody_will_have_guards_as_what_they_have(place: Ward, tmp_path: Path, how: str) -> None:
    node, accounts, console = place.node, place.node.accounts, place.console
    clerk, mia = place.by_session("clerk"), place.by_session("mia")
    assert tried(place, clerk, "ida", tmp_path) == [True] * 5
    given: list[int] = []
    for to in ("ida", "night", "WS1"):
        if how == "a rule":
            given.append(node.arrival_rules.add(console, NewRule(f"{to}-s", to, "referrer", Conditions(modality=("MR",))))["id"])
        elif how == "a grant that rests" and to == "WS1":
            accounts.join_group(console, "night", to)  # nobody passes anything on to a peer itself
        elif how == "a grant that rests":
            given.append(node.delegation.delegate(mia, to=to, target=STUDY)["id"])
        else:
            given.append(accounts.add_grant(console, to=to, role="referrer", target=STUDY, since="1d")["id"])
    if how == "a grant that rests":
        accounts.disable_user(console, "mia")
    assert tried(place, clerk, "ida", tmp_path) == [False] * 5
    accounts.join_group(console, "night", "jon", since="2d")
    assert tried(place, clerk, "jon", tmp_path)[:3] == [False] * 3, "through a group, later"
    for number in given:
        if how == "a rule":
            node.arrival_rules.remove(console, number)
        else:
            accounts.revoke_grant(console, number)
    assert tried(place, clerk, "ida", tmp_path) == tried(place, clerk, "jon", tmp_path) == [True] * 5


def test_what_is_over_guards_nobody(place: Ward, tmp_path: Path) -> None:
    accounts, console, start = place.node.accounts, place.console, place.clock.at
    for to in ("ida", "night", "WS1"):
        accounts.add_grant(console, to=to, role="referrer", target=STUDY, until="1h")
        accounts.add_grant(console, to=to, role="referrer", target=Target("study", ward.SECOND), deny=True, until="1h")
    place.clock.at = start + timedelta(hours=1)
    assert tried(place, place.by_session("clerk"), "ida", tmp_path) == [True] * 5


def test_the_identity_of_who_is_denied_something_is_not_freed_for_another_user(place: Ward) -> None:
    node, console, clerk = place.node, place.console, place.by_session("clerk")
    bound = node.identities.bind(console, "ida", issuer=ISSUER, external_subject="ida")
    deny = node.accounts.add_grant(console, to="ida", role="referrer", target=STUDY, deny=True)
    with pytest.raises(Forbidden):
        node.identities.unbind(clerk, bound["id"])
    with pytest.raises(Forbidden):
        node.accounts.remove_user(clerk, "ida")
    assert [row["user"] for row in node.identities.listed(console)] == ["ida"]
    node.accounts.revoke_grant(console, deny["id"])
    assert node.identities.unbind(clerk, bound["id"])["user"] == "ida"


def test_who_is_denied_something_is_not_let_into_groups_as_another_user(place: Ward) -> None:
    """What another system says of them would show in a fresh account what is hidden in theirs."""
    node, console, clerk = place.node, place.console, place.by_session("clerk")
    oidc = replace(node.config.oidc, issuer=ISSUER, groups_claim="groups", groups={"rad": "night"})
    identities = Identities(node.core.database, node.core.ledger, replace(node.config, oidc=oidc), node.core.clock)
    deny = node.accounts.add_grant(console, to="clerk", role="referrer", target=STUDY, deny=True)
    try:
        node.accounts.add_user(clerk, "fresh", password=archives.PASSWORD)
        with pytest.raises(Forbidden):
            identities.bind(clerk, "fresh", external_subject="the clerk")
        assert node.identities.listed(console) == []
        assert identities.bind(clerk, "clerk", external_subject="the clerk")["user"] == "clerk", "their own account is theirs"
    finally:
        node.accounts.revoke_grant(console, deny["id"])
        for identity in node.identities.listed(console):
            node.identities.unbind(console, identity["id"])
    assert identities.bind(place.by_session("clerk"), "fresh", external_subject="somebody")["user"] == "fresh"
    node.identities.unbind(console, node.identities.listed(console)[0]["id"])


def test_who_is_denied_something_adds_nobody_whom_a_name_lets_into_groups(tmp_path: Path) -> None:
    oidc = {
        "issuer": ISSUER, "client_id": "archive", "client_secret_file": "secret", "bind_by": "preferred_username",
        "groups_claim": "groups", "groups": {"rad": "night"},
    }
    with ward.opened(tmp_path / "archive", oidc=oidc) as opened:
        accounts, console = opened.node.accounts, opened.console
        accounts.add_user(console, "clerk", roles=["administrator"], password=archives.PASSWORD)
        clerk = opened.by_session("clerk")
        assert accounts.add_user(clerk, "another")["name"] == "another"
        deny = accounts.add_grant(console, to="clerk", role="referrer", target=STUDY, deny=True)
        with pytest.raises(Forbidden):
            accounts.add_user(clerk, "clerk.there")
        assert accounts.add_user(clerk, "robot", service=True)["name"] == "robot"
        accounts.revoke_grant(console, deny["id"])
        assert accounts.add_user(clerk, "clerk.there")["name"] == "clerk.there"
