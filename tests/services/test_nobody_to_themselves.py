"""Nobody gives to themselves: eve has every role there is, and each way there is to give, tried on herself, gives her nothing more."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from archive.access import policy
from archive.access.grants import Target
from archive.access.permissions import BUILTIN_ROLES, OBJECT, Permission
from archive.access.subject import Subject
from archive.db.tables import series
from archive.errors import ArchiveError, Forbidden
from archive.node import Node
from archive.services.arrival_admin import NewRule
from archive.services.arrival_terms import Conditions
from tests.services import archives

EVERYTHING = Target("everything")
SEEN, HIDDEN = "1.2.3", "1.2.4"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """An archive with eve, who has every role, in a group, with a grant on one study and a deny on another."""
    with archives.opened(archives.made(tmp_path_factory.mktemp("self"))) as node:
        a, console = node.accounts, archives.the_console(node)
        for study in (SEEN, HIDDEN):
            archives.store(node, archives.instance(1, study=study, PatientID=f"P{study}"))
        a.add_role(console, "own", ["search", "stats", "share"])
        a.add_role(console, "ruled", ["search"])
        a.add_group(console, "desk")
        a.add_group(console, "other")
        a.add_grant(console, to="other", role="owner", target=EVERYTHING)
        a.add_user(console, "eve", roles=[*BUILTIN_ROLES], password=archives.PASSWORD)
        a.add_user(console, "bob", password=archives.PASSWORD)
        a.join_group(console, "desk", "eve")
        a.add_grant(console, to="eve", role="own", target=Target("study", SEEN))
        a.add_grant(console, to="eve", role="radiologist", target=Target("study", SEEN), delegable=2)
        a.add_grant(console, to="desk", role="referrer", target=EVERYTHING, deny=True, modality="US")
        a.add_grant(console, to="eve", role="referrer", target=Target("study", HIDDEN), deny=True)
        node.arrival_rules.add(console, rule("given", "desk", "ruled"))
        yield node


@pytest.fixture(scope="module")
def eve(node: Node) -> Subject:
    """Signed in with the browser, a moment ago."""
    return node.signin.password("eve", archives.PASSWORD, address="192.0.2.7", user_agent="test").subject  # type: ignore[union-attr]


def rule(name: str, to: str, role: str) -> NewRule:
    return NewRule(name=name, to=to, role=role, conditions=Conditions(modality=("CT",)))


def may(node: Node, who: Subject) -> dict[Permission, set[str]]:
    at, found = node.core.clock(), {}
    with node.core.database.read() as tx:
        for bit in OBJECT:
            scope = policy.scope_of(who, bit, at)
            found[bit] = set(scope.run(tx, sa.select(series.c.series_instance_uid).where(scope.series(series))).scalars())
        functions = policy.functions_of(tx, who, at)
    return found | {functions: set()}


def denies(node: Node, to: str) -> list[int]:
    return [row["id"] for row in node.accounts.list_grants(archives.the_console(node), to=to) if row["effect"] == "deny"]


Way = Callable[[Node, Subject], object]
WAYS: dict[str, Way] = {
    "a grant": lambda n, eve: n.accounts.add_grant(eve, to="eve", role="owner", target=EVERYTHING),
    "a grant by number": lambda n, eve: n.accounts.add_grant(eve, to=eve.principal_id, role="owner", target=EVERYTHING),
    "a grant to one's group": lambda n, eve: n.accounts.add_grant(eve, to="desk", role="owner", target=EVERYTHING),
    "a grant for later": lambda n, eve: n.accounts.add_grant(eve, to="eve", role="owner", target=EVERYTHING, since="1d"),
    "the end of one's deny": lambda n, eve: n.accounts.revoke_grant(eve, denies(n, "eve")[0]),
    "the end of one's group's deny": lambda n, eve: n.accounts.revoke_grant(eve, denies(n, "desk")[0]),
    "leaving a group that hides": lambda n, eve: n.accounts.leave_group(eve, "desk", "eve"),
    "removing it": lambda n, eve: n.accounts.remove_group(eve, "desk"),
    "joining a group that shows": lambda n, eve: n.accounts.join_group(eve, "other", "eve"),
    "a role": lambda n, eve: n.accounts.assign_role(eve, "eve", "own"),
    "a role of one's group": lambda n, eve: n.accounts.assign_role(eve, "desk", "own"),
    "a wider role": lambda n, eve: n.accounts.change_role(eve, "own", add=["original", "purge"]),
    "a narrower role of one's deny": lambda n, eve: n.accounts.change_role(eve, "own", remove=["share"]),
    "a wider role of a rule": lambda n, eve: n.accounts.change_role(eve, "ruled", add=["original"]),
    "a rule": lambda n, eve: n.arrival_rules.add(eve, rule("mine", "eve", "owner")),
    "a rule for one's group": lambda n, eve: n.arrival_rules.add(eve, rule("ours", "desk", "owner")),
    "delegation": lambda n, eve: n.delegation.delegate(eve, to="eve", target=Target("study", SEEN)),
    "delegation to one's group": lambda n, eve: n.delegation.delegate(eve, to="desk", target=Target("study", SEEN)),
    "a request decided by oneself": lambda n, eve: n.access_requests.decide(
        eve, n.access_requests.ask(eve, level="study", value=HIDDEN, reason="out of curiosity")["id"], approve=True
    ),
    "an album": lambda n, eve: n.albums.share(eve, n.albums.create(eve, "mine")["id"], "eve"),
    "a policy": lambda n, eve: n.policy.apply(eve, n.policy.export(eve) + '\n[[grant]]\nto = "eve"\nrole = "owner"\neverything = true\n'),
    "a policy for one's group": lambda n, eve: n.policy.apply(
        eve, n.policy.export(eve) + '\n[[assignment]]\nto = "desk"\nrole = "own"\n'
    ),
    "a policy without one's deny": lambda n, eve: n.policy.apply(eve, "format = 1\ngrant = []\n"),
}


@pytest.mark.parametrize("way", WAYS)
def test_no_way_gives_to_oneself(node: Node, eve: Subject, way: str) -> None:
    before = may(node, eve)
    assert before[Permission.ORIGINAL] == {f"{SEEN}.1"}
    with pytest.raises(Forbidden):
        WAYS[way](node, eve)
    archives.store(node, archives.instance(2, study=HIDDEN, PatientID=f"P{HIDDEN}"))  # what a rule would give with
    assert may(node, eve) == before


def test_each_way_gives_to_another(node: Node, eve: Subject) -> None:
    """So it is who is given that is refused, not the asking."""
    a = node.accounts
    a.add_grant(eve, to="bob", role="referrer", target=EVERYTHING)
    a.assign_role(eve, "bob", "own")
    a.join_group(eve, "other", "bob")
    a.add_role(eve, "free", ["search"])
    a.change_role(eve, "free", add=["pixels"])
    node.delegation.delegate(eve, to="bob", target=Target("study", SEEN))
    node.arrival_rules.add(eve, rule("theirs", "bob", "referrer"))
    node.albums.share(eve, node.albums.create(eve, "shown")["id"], "bob")
    node.policy.apply(eve, node.policy.export(eve) + '\n[[grant]]\nto = "bob"\nrole = "referrer"\nstudy = "1.2.4"\nmodality = "MR"\n')


def test_what_is_refused_is_in_the_ledger(node: Node, eve: Subject) -> None:
    with pytest.raises(ArchiveError):
        node.accounts.add_grant(eve, to="eve", role="owner", target=EVERYTHING)
    with node.core.database.read() as tx:
        from archive.ledger.log import AuditFilter

        last = node.core.ledger.search(tx, AuditFilter(limit=1))[0]
    assert (last.kind, last.outcome, last.principal_id) == ("denied", 8, eve.principal_id)
