"""A small archive to ask about: two datastores, patients, studies and series as rows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access import bootstrap, policy
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db import tables
from archive.db.engine import Database

PASSWORD = "four otters row upstream"
TOKEN = policy.system("access")
SE, ST, PT = tables.series.alias("se"), tables.study.alias("st"), tables.patient.alias("pt")


def insert(tx: sa.Connection, table: sa.Table, **values: Any) -> int:
    """Insert a row and return its id."""
    key = policy.run_as(tx, TOKEN, sa.insert(table), values).inserted_primary_key
    assert key is not None
    return int(key[0])


@dataclass
class Place:
    """The archive of a test."""

    database: Database
    first: bootstrap.First
    at: datetime

    def subject(self, principal_id: int, **more: Any) -> Subject:
        """Return a user as it comes in."""
        return Subject(principal_id, "someone", "user", "web", **more)

    @property
    def owner(self) -> Subject:
        """The first owner."""
        return Subject(self.first.owner_id, "admin", "user", "web")

    @property
    def console(self) -> Subject:
        """The command line."""
        return Subject(self.first.console_id, "console", "console", "console", operator="root")

    def seen(self, subject: Subject, need: Permission = Permission.SEARCH, at: datetime | None = None) -> set[str]:
        """Return the SeriesInstanceUIDs a subject sees."""
        scope = policy.scope_of(subject, need, at or self.at)
        with self.database.read() as tx:
            return set(scope.run(tx, sa.select(SE.c.series_instance_uid).where(scope.series(SE))).scalars())


def build(database: Database, at: datetime) -> Place:
    """Make the archive: patient P1 with study 1.1 (series 1.1.1 CT, 1.1.2 MR) and 1.2 (1.2.1 CT), patient P2 with 2.1 (2.1.1 US)."""
    with database.begin() as tx:
        first = bootstrap.bootstrap(tx, at=at, admin="admin", password=PASSWORD)
        for patient, studies in (("P1", {"1.1": ["CT", "MR"], "1.2": ["CT"]}), ("P2", {"2.1": ["US"]})):
            pt = insert(tx, tables.patient, datastore_id=first.datastore_id, patient_id=patient, created_at=at)
            for uid, modalities in studies.items():
                st = insert(
                    tx, tables.study, datastore_id=first.datastore_id, patient_pk=pt, study_instance_uid=uid, key_id=bytes(16),
                    study_date="20240102", attributes={}, created_at=at, updated_at=at, n_series=len(modalities), n_instances=1,
                )
                for number, modality in enumerate(modalities, 1):
                    insert(
                        tx, tables.series, datastore_id=first.datastore_id, patient_pk=pt, study_pk=st, study_date="20240102",
                        series_instance_uid=f"{uid}.{number}", modality=modality, attributes={}, n_instances=1, created_at=at,
                        updated_at=at,
                    )
    return Place(database, first, at)
