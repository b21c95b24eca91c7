"""What two people decide: one asked, another approves or refuses, and it is done once."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Index, Table

from archive.db.tables.columns import id_column, metadata, text_column
from archive.db.types import Instant

approval = Table(
    "approval",
    metadata,
    id_column(),
    Column("operation", sa.Text, nullable=False),  # a name of services/operations.py
    Column("need", sa.BigInteger, nullable=False),  # the permissions that who decides must hold too
    Column("sealed_arguments", sa.LargeBinary, nullable=False),  # canonical JSON; bound to the other columns of the asking
    Column("arguments_sha256", sa.LargeBinary(32), nullable=False),
    Column("asked_by", ForeignKey("principal.id"), nullable=False),
    Column("asked_at", Instant, nullable=False),
    text_column("reason"),
    Column("expires_at", Instant, nullable=False),
    Column("decided_by", sa.BigInteger, nullable=True),
    Column("decided_at", Instant, nullable=True),
    text_column("decision"),  # approved | refused
    Column("done_at", Instant, nullable=True),
    text_column("outcome"),  # done | failed; empty while it is under way, or nobody knows
    Index("ix_approval_waiting", "decided_at", "expires_at"),
)
