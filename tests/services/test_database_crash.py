"""The database server dies and comes back while the archive goes on: what was acknowledged has its rows."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from archive.db.tables import instance
from archive.errors import ArchiveError
from archive.node import Node
from tests.conftest import own_postgresql
from tests.services import archives, crowd


@pytest.fixture
def server() -> Iterator[str]:
    with own_postgresql() as url:  # of its own: the whole server goes down with one of its processes
        yield url + "postgres"


def patiently(node: Node, number: int) -> str:
    for _ in range(600):
        try:
            return archives.store(node, archives.instance(number)).status
        except ArchiveError:
            time.sleep(0.1)
    return "never"


def test_what_was_acknowledged_before_a_backend_was_killed(server: str, tmp_path: Path) -> None:
    config = archives.made(tmp_path, own_keys=True, database={"url": server})
    url = server.replace("+psycopg", "")
    with archives.opened(config, role="serve") as node:
        assert archives.store(node, archives.instance(1)).status == "stored"
        with psycopg.connect(url, autocommit=True) as connection:
            (backend,) = connection.execute("SELECT pg_backend_pid()").fetchone() or (0,)
            told = [archives.store(node, archives.instance(number)).status for number in range(2, 6)]
            os.kill(int(backend), signal.SIGKILL)  # the server ends every other one and recovers from its log
        assert told == ["stored"] * 4
        assert patiently(node, 50) == "stored"
        rows = crowd.every(node, sa.select(instance.c.sop_instance_uid))
        assert sorted(row.sop_instance_uid for row in rows) == [f"1.2.3.1.{number}" for number in (1, 2, 3, 4, 5, 50)]
