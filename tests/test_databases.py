"""A database that was given out before is as one that never was."""

from __future__ import annotations

import psycopg
import pytest

from tests import databases


def test_what_one_test_left_no_other_finds(postgresql_server: str) -> None:
    pool = databases.Emptied(postgresql_server)

    def connect(url: str) -> psycopg.Connection:
        return psycopg.connect(url.replace("+psycopg", ""))

    with pool.one() as first, pool.one() as second:
        assert first != second
        with connect(first) as tx:
            tx.execute("INSERT INTO principal (kind, name, enabled, created_at) VALUES ('user', 'left', true, 0)")
    with pool.one() as again, pool.one() as other:
        assert {again, other} == {first, second}
        with connect(first) as tx:
            added = tx.execute("INSERT INTO principal (kind, name, enabled, created_at) VALUES ('user', 'x', true, 0) RETURNING id")
            assert added.fetchall() == [(1,)]
        left = connect(again)
        left.execute("LOCK TABLE principal")
        with connect(other) as tx:
            tx.execute("ALTER TABLE principal ADD another integer")
    with pool.one() as again_, pool.one() as made:
        assert again_ == again
        assert made != other
        with pytest.raises(psycopg.Error):
            left.execute("SELECT 1")
        left.close()
        for url in (again_, made):
            with connect(url) as tx:
                assert tx.execute("SELECT count(*) FROM principal").fetchall() == [(0,)]
