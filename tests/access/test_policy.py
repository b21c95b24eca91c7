"""Scopes, function permissions and tokens of the guard."""

from __future__ import annotations

import dataclasses
import re
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.access import grants, policy, principals, roles
from archive.access.grants import Target, Terms
from archive.access.permissions import FUNCTION, OBJECT, Permission
from archive.access.subject import Subject
from archive.db import guard, tables
from archive.db.prepared import Prepared
from archive.errors import Forbidden, NotFound
from tests.access import rows
from tests.access.rows import PT, SE, ST, Place

P = Permission


def user(place: Place, name: str = "ada") -> Subject:
    with place.database.begin() as tx:
        return place.subject(principals.add(tx, "user", name, at=place.at))


def give(place: Place, to: Subject, role: str, target: Target, **terms: object) -> int:
    with place.database.begin() as tx:
        return grants.give(
            tx, to=to.principal_id, role_row=roles.find(tx, role), datastore_id=place.first.datastore_id,
            scope_key=grants.scope_key(tx, place.first.datastore_id, target, at=place.at),
            terms=Terms(**{"not_before": place.at, **terms}), by=place.first.console_id, at=place.at,
        )


def test_the_three_levels_follow_the_series(place: Place) -> None:
    ada = user(place)
    give(place, ada, "referrer", Target("series", "1.1.2"))
    scope = policy.scope_of(ada, P.SEARCH, place.at)
    with place.database.read() as tx:
        assert scope.run(tx, sa.select(SE.c.series_instance_uid).where(scope.series(SE))).scalars().all() == ["1.1.2"]
        assert scope.run(tx, sa.select(ST.c.study_instance_uid).where(scope.study(ST))).scalars().all() == ["1.1"]
        assert scope.run(tx, sa.select(PT.c.patient_id).where(scope.patient(PT))).scalars().all() == ["P1"]


@pytest.mark.parametrize(("target", "seen"), [
    (Target("everything"), {"1.1.1", "1.1.2", "1.2.1", "2.1.1"}), (Target("patient", "P1"), {"1.1.1", "1.1.2", "1.2.1"}),
    (Target("study", "1.1"), {"1.1.1", "1.1.2"}), (Target("series", "2.1.1"), {"2.1.1"}),
])
def test_a_grant_covers_its_level(place: Place, target: Target, seen: set[str]) -> None:
    ada = user(place)
    assert place.seen(ada) == set()
    give(place, ada, "referrer", target)
    assert place.seen(ada) == seen
    assert place.seen(ada, P.PIXELS | P.METADATA) == seen
    assert place.seen(ada, P.ORIGINAL) == set()
    assert place.seen(ada, P.SEARCH | P.ORIGINAL) == set()


def test_a_deny_wins_at_every_level(place: Place) -> None:
    ada = user(place)
    give(place, ada, "radiologist", Target("series", "1.1.1"))
    give(place, ada, "radiologist", Target("everything"))
    give(place, ada, "referrer", Target("patient", "P1"), deny=True, modality="CT")
    assert place.seen(ada) == {"1.1.2", "2.1.1"}
    assert place.seen(ada, P.ORIGINAL) == {"1.1.1", "1.1.2", "1.2.1", "2.1.1"}  # referrer holds no original: the deny does not speak of it
    give(place, ada, "referrer", Target("everything"), deny=True)
    assert place.seen(ada) == set()


def test_a_change_takes_effect_on_the_next_statement(place: Place) -> None:
    ada = user(place)
    key = give(place, ada, "referrer", Target("study", "1.1"), not_after=place.at + timedelta(hours=8))
    scope = policy.scope_of(ada, P.SEARCH, place.at)
    query = sa.select(sa.func.count()).select_from(SE).where(scope.series(SE))
    with place.database.begin() as tx:
        assert scope.run(tx, query).scalar() == 2
        grants.revoke(tx, key, by=place.first.console_id, at=place.at)
        assert scope.run(tx, query).scalar() == 0
    key = give(place, ada, "referrer", Target("study", "1.1"), not_after=place.at + timedelta(hours=8))
    micro = timedelta(microseconds=1)
    assert place.seen(ada, at=place.at + timedelta(hours=8) - micro) == {"1.1.1", "1.1.2"}
    assert place.seen(ada, at=place.at + timedelta(hours=8)) == set()
    assert place.seen(ada, at=place.at - micro) == set()
    with place.database.begin() as tx:
        principals.set_enabled(tx, ada.principal_id, enabled=False, at=place.at)
    assert place.seen(ada) == set()


def test_the_console_sees_nothing_and_may_everything_else(place: Place) -> None:
    give(place, place.console, "radiologist", Target("everything"))
    assert place.seen(place.console) == set()
    with place.database.read() as tx:
        policy.require(tx, place.console, FUNCTION, place.at)
        policy.require_live(tx, place.console, place.at)


def test_function_permissions_come_from_roles_alone(place: Place) -> None:
    ada = user(place)
    give(place, ada, "owner", Target("everything"))
    with place.database.begin() as tx:
        assert policy.functions_of(tx, ada, place.at) == P.NONE
        with pytest.raises(Forbidden, match="user-manage"):
            policy.require(tx, ada, P.USER_MANAGE, place.at)
        group = principals.add(tx, "group", "desk", at=place.at)
        end = place.at + timedelta(days=1)
        principals.join(tx, ada.principal_id, group, by=1, not_before=place.at, not_after=end)
        role = roles.find(tx, "administrator")
        roles.assign(tx, group, role["id"], by=1, at=place.at, not_after=place.at + timedelta(days=2))
        policy.require(tx, ada, P.USER_MANAGE | P.PEER_MANAGE, place.at)
        with pytest.raises(Forbidden):
            policy.require(tx, ada, P.USER_MANAGE | P.KEY_MANAGE, place.at)
        with pytest.raises(Forbidden):
            policy.require(tx, ada, P.USER_MANAGE, end)
        limited = dataclasses.replace(ada, limit=P.STORE)
        assert policy.functions_of(tx, limited, place.at) == P.NONE
        assert not policy.functions_of(tx, dataclasses.replace(ada, session_id=99), place.at)
        roles.withdraw(tx, group, role["id"], at=place.at)
        with pytest.raises(Forbidden):
            policy.require(tx, ada, P.USER_MANAGE, place.at)
    assert place.seen(ada, P.ORIGINAL) == {"1.1.1", "1.1.2", "1.2.1", "2.1.1"}


def test_a_role_alone_shows_no_image(place: Place) -> None:
    ada = user(place)
    with place.database.begin() as tx:
        roles.assign(tx, ada.principal_id, roles.find(tx, "radiologist")["id"], by=1, at=place.at)
        policy.require(tx, ada, P.STORE_DERIVED, place.at)
    assert place.seen(ada) == set()


def test_questions_that_make_no_sense_are_faults(place: Place) -> None:
    for need in (P.NONE, P.STORE, P.SEARCH | P.AUDIT):
        with pytest.raises(ValueError, match="object permissions"):
            policy.scope_of(place.owner, need, place.at)
    with place.database.read() as tx:
        for need in (P.NONE, P.SEARCH, P.AUDIT | P.SEARCH):
            with pytest.raises(ValueError, match="function permissions"):
                policy.require(tx, place.owner, need, place.at)
    with pytest.raises(ValueError, match="'fun' is not"):
        policy.system("fun")
    assert OBJECT & FUNCTION == P.NONE


def test_only_policy_makes_a_scope_and_its_values_never_go_missing(place: Place) -> None:
    scope = policy.scope_of(place.owner, P.SEARCH, place.at)
    with pytest.raises(TypeError, match=r"policy\.scope_of"):
        policy.Scope(scope.token, scope.need, scope.parameters, scope.shape)
    with place.database.read() as tx, pytest.raises(sa.exc.StatementError, match="scope_"):
        policy.run_as(tx, scope.token, sa.select(SE.c.id).where(scope.series(SE)))


def test_two_scopes_in_one_statement(place: Place) -> None:
    ada, bob = user(place), user(place, "bob")
    give(place, ada, "referrer", Target("patient", "P1"))
    give(place, bob, "workstation", Target("study", "1.1"))
    one, two = policy.scope_of(ada, P.SEARCH, place.at), policy.scope_of(bob, P.RECEIVE, place.at, prefix="to")
    query = sa.select(SE.c.series_instance_uid).where(one.series(SE), two.series(SE)).order_by(SE.c.id)
    with place.database.read() as tx:
        assert one.run(tx, query, also=two).scalars().all() == ["1.1.1", "1.1.2"]


def test_an_update_inside_a_scope(place: Place) -> None:
    ada = user(place)
    give(place, ada, "referrer", Target("study", "1.1"))
    scope = policy.scope_of(ada, P.SEARCH, place.at)
    table = tables.series
    with place.database.begin() as tx:
        assert scope.run(tx, sa.update(table).values(generation=table.c.generation + 1).where(scope.series(table))).rowcount == 2


def test_whole_is_told_only_of_an_unconditional_view(place: Place) -> None:
    ada = user(place)

    def whole() -> bool:
        with place.database.read() as tx:
            return policy.scope_of(ada, P.SEARCH, place.at).measured(tx).whole

    give(place, ada, "referrer", Target("patient", "P1"))
    give(place, ada, "referrer", Target("everything"), modality="CT")
    assert not whole()
    give(place, ada, "referrer", Target("everything"))
    assert whole()
    give(place, ada, "referrer", Target("series", "1.1.1"), deny=True)
    assert not whole()


def test_datastores_by_name(place: Place) -> None:
    with place.database.read() as tx:
        assert policy.datastore_id(tx, "clinical") == place.first.datastore_id
        with pytest.raises(NotFound):
            policy.datastore_id(tx, "elsewhere")


def test_tokens_of_the_guard_are_made_in_one_place() -> None:
    package = Path(policy.__file__).parents[1]
    makers = {
        str(path.relative_to(package)) for path in package.rglob("*.py")
        if re.search(r"\bToken\(\"|guard\.Token\(|\bToken\(f\"", path.read_text(encoding="utf-8"))
    }
    assert makers <= {"access/policy.py", "db/migrate.py", "db/guard.py"}


def test_the_same_question_is_the_same_statement(place: Place, now: datetime) -> None:
    made = [
        str(sa.select(SE.c.id).where(policy.scope_of(place.subject(n), need, now + timedelta(n)).series(SE)))
        for n, need in ((1, P.SEARCH), (2, P.PIXELS | P.METADATA))
    ]
    assert made[0] == made[1]
    assert rows.TOKEN.reason == "system:access"


def test_reaching_a_datastore_is_asked_afresh_each_time(place: Place) -> None:
    ada, bob = user(place), user(place, "bob")
    give(place, ada, "radiologist", Target("everything"))
    with place.database.begin() as tx:
        other = tx.execute(sa.insert(tables.datastore).values(uid=b"o" * 16, name="other", created_at=place.at)).inserted_primary_key
        assert other is not None
        here = policy.datastore_id(tx, "clinical")
        for _ in range(2):  # the second time with the same statements
            for subject, sees in ((ada, True), (bob, False)):
                assert [policy.reaches(tx, subject, place_id, place.at) for place_id in (here, None, other[0])] == [sees, sees, False]
            assert not policy.reaches(tx, ada, here, place.at - timedelta(days=1))
        tx.execute(sa.update(tables.grants).values(revoked_at=place.at))
        assert not policy.reaches(tx, ada, here, place.at)


def test_a_prepared_statement_of_a_scope_needs_that_scope(place: Place) -> None:
    ada, bob = user(place), user(place, "bob")
    give(place, ada, "radiologist", Target("everything"))
    scope, empty = (policy.scope_of(subject, P.SEARCH, place.at) for subject in (ada, bob))
    found = Prepared(sa.select(SE.c.series_instance_uid).where(scope.series(SE)).order_by(SE.c.id))
    with place.database.read() as tx:
        assert [row[0] for row in scope.all(tx, found, {})] == ["1.1.1", "1.1.2", "1.2.1", "2.1.1"]
        assert scope.first(tx, found, {}) == ("1.1.1",)
        assert empty.all(tx, found, {}) == []
        assert empty.first(tx, found, {}) is None
        with pytest.raises(sa.exc.InvalidRequestError):
            found.all(tx, {}, scope.token)  # its conditions have no values of their own
        with pytest.raises(guard.NakedQuery):
            found.all(tx, dict(scope.parameters))
