"""An archive with two patients, people who may pass access on, decide or review, and a clock that is set by hand."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from archive.access import policy
from archive.access.grants import Target
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.tables import series
from archive.ledger.audit import Kind
from archive.ledger.log import AuditFilter
from archive.node import Node
from archive.services.clock import utc_now
from tests.services import archives

FIRST, SECOND, ABSENT = "1.2.3", "1.2.4", "1.2.5"
SE = series.alias("se")


@dataclass
class Clock:
    """Stands until it is moved."""

    at: datetime = field(default_factory=utc_now)

    def __call__(self) -> datetime:
        return self.at


@dataclass
class Ward:
    """Study 1.2.3 of P1.2.3 with two series, study 1.2.4 of P1.2.4; mia is a radiologist who may pass P1.2.3 on, twice."""

    node: Node
    clock: Clock

    @property
    def console(self) -> Subject:
        return archives.the_console(self.node)

    def by_session(self, name: str) -> Subject:
        """A user who has just signed in with the browser."""
        begun: Any = self.node.signin.password(name, archives.PASSWORD, address="192.0.2.7", user_agent="test")
        return self.node.signin.session(begun.token, address="192.0.2.7")

    def seen(self, who: Subject, need: Permission = Permission.SEARCH, *, at: datetime | None = None) -> set[str]:
        """The SeriesInstanceUIDs somebody sees, by whatever they came."""
        them = Subject(who.principal_id, who.name, "user", "internal")
        scope = policy.scope_of(them, need, at or self.clock.at)
        with self.node.core.database.read() as tx:
            return set(scope.run(tx, sa.select(SE.c.series_instance_uid).where(scope.series(SE))).scalars())

    def events(self, *kinds: Kind) -> list[dict[str, Any]]:
        """What was recorded, the newest first."""
        with self.node.core.database.read() as tx:
            found = self.node.core.ledger.search(tx, AuditFilter(kinds=kinds))
        return [{**row.body["detail"], "objects": row.body["objects"], "who": row.principal_id} for row in found if row.body is not None]

    def findings(self) -> list[str]:
        """What verify says of the tables."""
        self.node.upkeep.checkpoint()
        found = [f"{one.code} {one.detail}" for one in self.node.verify.run(self.console, "quick").findings]
        return [one for one in found if "configuration" not in one]  # which only a server records


@contextmanager
def opened(folder: Path, **sections: Any) -> Iterator[Ward]:
    clock = Clock()
    with archives.opened(archives.made(folder, **sections), role="serve", clock=clock) as node:
        ward = Ward(node, clock)
        for number, uid in enumerate((f"{FIRST}.1", f"{FIRST}.2"), 1):
            archives.store(node, archives.instance(number, study=FIRST, series=uid, PatientID=f"P{FIRST}", PatientName="Canary^One"))
        archives.store(node, archives.instance(1, study=SECOND, PatientID=f"P{SECOND}", PatientName="Canary^Two"))
        roles = {"mia": "radiologist", "ole": "radiologist", "kim": "radiologist", "olga": "security-officer", "rita": "auditor"}
        for name, role in roles.items():
            node.accounts.add_user(ward.console, name, roles=[role], password=archives.PASSWORD)
        node.accounts.add_grant(ward.console, to="mia", role="radiologist", target=Target("patient", f"P{FIRST}"), delegable=2)
        yield ward


def sections(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Where the index of a parametrised fixture of a module lies."""
    if request.param == "sqlite":
        return {}
    server: str = request.getfixturevalue("postgresql_server")
    name = f"ward_{secrets.token_hex(6)}"
    with psycopg.connect(server.replace("+psycopg", "") + "postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[call-overload]
    return {"database": {"url": server + name}}
