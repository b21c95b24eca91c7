"""What may not be removed, studies on hold, and what is gone for good. Who said so is in the ledger."""

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

purged = Table(
    "purged",
    metadata,
    Column("object_id", sa.LargeBinary(16), primary_key=True),  # never adopted again, wherever its record turns up
    Column("leaf", sa.BigInteger, nullable=False),  # the event that says so
    Column("segment_id", sa.LargeBinary(16), nullable=False),
    Column("record_offset", sa.BigInteger, nullable=False),
    Column("record_bytes", sa.BigInteger, nullable=False),
    Column("freed_at", Instant, nullable=True),  # NULL: the bytes are still to go
    Index("ix_purged_freed", "freed_at"),
    Index("ix_purged_segment", "segment_id"),
)

purged_key = Table(
    "purged_key",
    metadata,
    Column("key_id", sa.LargeBinary(16), primary_key=True),
    Column("leaf", sa.BigInteger, nullable=False),
    Column("destroyed_at", Instant, nullable=True),  # NULL: still to be overwritten in the keystore
)
