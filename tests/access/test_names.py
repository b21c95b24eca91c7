"""Names that differ in case alone are one name, whatever the script and whatever the locale of the server that keeps them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime

import psycopg
import pytest

from archive.access import external, principals, roles
from archive.access.permissions import Permission
from archive.db.engine import Database
from archive.db.migrate import create_all
from archive.errors import InvalidRequest
from tests.access import rows

ALIKE = [("Ann", "ANN"), ("Ärzte", "ÄRZTE"), ("łucja", "ŁUCJA"), ("Ωμέγας", "ΩΜΈΓΑΣ"), ("Großmann", "GROSSMANN")]


@pytest.fixture
def elsewhere(postgresql_server: str, now: datetime) -> Iterator[rows.Place]:
    """The archive in a PostgreSQL database of locale C, which knows no case beyond ASCII."""
    name, admin = "c" + secrets.token_hex(6), postgresql_server.replace("+psycopg", "") + "postgres"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE \"{name}\" TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'")  # type: ignore[call-overload]
    try:
        with closing(Database(postgresql_server + name)) as database:
            create_all(database)
            yield rows.build(database, now)
    finally:
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')  # type: ignore[call-overload]


def all_of_it(place: rows.Place) -> None:
    for name, alike in ALIKE:
        with place.database.begin() as tx:
            principals.add(tx, "user", name, at=place.at, email=f"{name}@clinic.example")
            roles.add(tx, name, Permission.SEARCH, at=place.at)
        with place.database.begin() as tx:
            for written in (name, alike):
                with pytest.raises(InvalidRequest, match="taken"):
                    principals.add(tx, "group", written, at=place.at)
                with pytest.raises(InvalidRequest, match="taken"):
                    roles.add(tx, written, Permission.SEARCH, at=place.at)
                found = external.unbound_user(tx, "https://login.clinic.example", name=written)
                assert found == external.unbound_user(tx, "https://login.clinic.example", email=f"{written}@clinic.example")
                assert found is not None
                assert found[1] == name


def test_case_does_not_tell_names_apart(place: rows.Place) -> None:
    all_of_it(place)


def test_nor_where_the_server_knows_the_case_of_ascii_alone(elsewhere: rows.Place) -> None:
    all_of_it(elsewhere)
