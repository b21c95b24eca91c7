"""What may not be removed: studies on hold. Who said so, and who let go, is in the ledger."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Index, Table

from archive.db.tables.columns import id_column, metadata, text_column
from archive.db.types import Instant

hold = Table(
    "hold",
    metadata,
    id_column(),
    Column("datastore_id", ForeignKey("datastore.id"), nullable=False),
    text_column("study_instance_uid"),  # not a key of the catalog, so that a hold outlives a rebuild of it
    text_column("reason"),
    Column("hold_until", Instant, nullable=True),  # NULL: until it is let go
    Column("principal_id", sa.BigInteger, nullable=True),
    Column("created_at", Instant, nullable=False),
    Index("ix_hold_study", "datastore_id", "study_instance_uid"),
)
