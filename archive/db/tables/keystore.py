"""The keystore database: data keys and anchors."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column, Index, Table

from archive.db.tables.columns import keystore_metadata
from archive.db.types import Instant

data_key = Table(
    "data_key",
    keystore_metadata,
    Column("key_id", sa.LargeBinary(16), primary_key=True),
    Column("datastore", sa.LargeBinary(16), nullable=False),
    Column("study_ref", sa.LargeBinary(32), nullable=False),  # keyed pseudonym of the StudyInstanceUID
    Column("wrapped", sa.LargeBinary, nullable=False),  # overwritten when shredded
    Column("kek_id", sa.LargeBinary(16), nullable=False, index=True),
    Column("kcv", sa.LargeBinary(8), nullable=False),
    Column("state", sa.Text, nullable=False),  # active | retiring | shredded
    Column("created_at", Instant, nullable=False),
    Column("shredded_at", Instant, nullable=True),
    Column("shred_reason", sa.Text, nullable=False, server_default=""),
    Index(
        "uq_data_key_active",
        "datastore",
        "study_ref",
        unique=True,
        sqlite_where=sa.text("state = 'active'"),  # a keystore is always embedded; the migration says it for PostgreSQL too
    ),
)

anchor = Table(
    "anchor",
    keystore_metadata,
    Column("name", sa.Text, primary_key=True),  # checkpoint
    Column("size", sa.BigInteger, nullable=False),
    Column("note", sa.LargeBinary, nullable=False),
)
