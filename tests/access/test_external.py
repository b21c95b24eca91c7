"""Who somebody from another system is here: the users a name or an address may stand for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from archive.access import external, principals
from archive.db import tables
from tests.access import rows

ISSUER = "https://login.clinic.example"


def user(place: rows.Place, name: str, *, enabled: bool = True, email: str = "") -> tuple[int, str]:
    """A row as an older version may have left it, beside others whose names differ in case alone."""
    with place.database.begin() as tx:
        key = rows.insert(
            tx, tables.principal, kind="user", name=name, full_name="", email=email, enabled=enabled, created_at=place.at, security_epoch=0
        )
    return key, name


def found(place: rows.Place, **by: str) -> tuple[int, str] | None:
    with place.database.begin(durable=False) as tx:
        return external.unbound_user(tx, ISSUER, **by)


@pytest.mark.parametrize("name", ["nora", "Özge", "ŁUCJA"])
def test_a_name_is_known_however_it_is_written(place: rows.Place, name: str) -> None:
    one = user(place, name)
    for written in (name, name.upper(), name.lower()):
        assert found(place, name=written) == one
    assert found(place, name=name + "x") is None
    with place.database.begin() as tx:
        external.bind(tx, one[0], ISSUER, "s1", at=place.at)
    assert found(place, name=name) is None


@pytest.mark.parametrize(("name", "alike"), [("Nora", "nora"), ("Özge", "özge")])
def test_of_names_alike_none_is_taken_for_the_other(place: rows.Place, name: str, alike: str) -> None:
    """Some systems let people write their names in any case: whose the other account is, nobody can say."""
    users = [user(place, name), user(place, alike)]
    assert found(place, name=name) is found(place, name=alike) is None
    with place.database.begin() as tx:
        principals.set_enabled(tx, users[0][0], enabled=False, at=place.at)
    assert found(place, name=name) is found(place, name=alike) is None, "an account switched off is still somebody's"
    with place.database.begin() as tx:
        principals.remove(tx, *users[0], by=place.console.principal_id, at=place.at)
    assert found(place, name=name) == users[1]


def test_an_address_stands_for_one_enabled_user(place: rows.Place) -> None:
    user(place, "before", enabled=False, email="Jörg@clinic.example")
    one = user(place, "joerg", email="Jörg@clinic.example")
    assert found(place, email="JÖRG@clinic.example") == one
    assert found(place) is None
    user(place, "other", email="jörg@clinic.example")
    assert found(place, email="Jörg@clinic.example") is None


def test_of_two_who_come_at_once_one_is_the_user(place: rows.Place) -> None:
    """Two people of another system may have shown one address, one after the other."""
    one = user(place, "rosa", email="rosa@clinic.example")

    def comes(subject: str) -> tuple[int, str] | None:
        with place.database.begin() as tx:
            known = external.unbound_user(tx, ISSUER, email="rosa@clinic.example")
            if known is not None:
                external.bind(tx, known[0], ISSUER, subject, at=place.at)
        return known

    with ThreadPoolExecutor(1) as pool:
        if place.database.sqlite:
            assert comes("first") == one
            assert pool.submit(comes, "second").result() is None
            return
        with place.database.begin() as tx:
            assert external.unbound_user(tx, ISSUER, email="rosa@clinic.example") == one
            second = pool.submit(comes, "second")
            assert not wait([second], 1).done, "who comes second waits"
            external.bind(tx, one[0], ISSUER, "first", at=place.at)
        assert second.result() is None
