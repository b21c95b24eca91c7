"""Access for a time: what grants were passed on from, what was asked for, and what was opened in an emergency."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Index, Table, UniqueConstraint

from archive.db.tables.columns import id_column, metadata, text_column
from archive.db.types import Instant

grant_lineage = Table(
    "grant_lineage",
    metadata,
    id_column(),
    Column("grant_id", ForeignKey("grants.id"), nullable=False),  # one that was passed on
    Column("ancestor_id", ForeignKey("grants.id"), nullable=False),  # each it stands on, up to the one nobody passed on
    Column("giver_id", ForeignKey("principal.id"), nullable=False),  # who passed that one on
    UniqueConstraint("grant_id", "ancestor_id"),
)

access_request = Table(
    "access_request",
    metadata,
    id_column(),
    Column("requester_id", ForeignKey("principal.id"), nullable=False),
    Column("datastore", sa.Text, nullable=False),  # as it was named; nothing is looked up before the decision
    Column("level", sa.Text, nullable=False),  # patient | study
    text_column("object"),
    text_column("issuer"),
    Column("permissions", sa.BigInteger, nullable=False),
    Column("asked_until", Instant, nullable=False),
    text_column("reason"),
    Column("state", sa.Text, nullable=False, server_default="open"),  # open | granted | refused | withdrawn; open ends at expires_at
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False),
    Column("decided_at", Instant, nullable=True),
    Column("decided_by", sa.BigInteger, nullable=True),
    text_column("note"),
    Column("grant_id", sa.BigInteger, nullable=True),
    Index("ix_access_request_open", "state", "expires_at"),
    Index("ix_access_request_requester", "requester_id", "id"),
)

break_glass = Table(
    "break_glass",
    metadata,
    id_column(),
    Column("principal_id", ForeignKey("principal.id"), nullable=False),
    Column("session_id", sa.BigInteger, nullable=True),
    Column("datastore", sa.Text, nullable=False),
    Column("level", sa.Text, nullable=False),  # patient | study
    text_column("object"),  # as it was named, whether there is such a one or not
    text_column("issuer"),
    Column("grant_ids", sa.JSON, nullable=False),  # what it opened; empty where there was nothing
    text_column("reason_code"),
    text_column("reason"),
    Column("started_at", Instant, nullable=False),
    Column("ends_at", Instant, nullable=False),
    Column("ended_at", Instant, nullable=True),
    Column("reviewed_at", Instant, nullable=True),
    Column("reviewed_by", sa.BigInteger, nullable=True),
    text_column("verdict"),  # justified | unjustified
    text_column("note"),
    Index("ix_break_glass_review", "reviewed_at", "started_at"),
    Index("ix_break_glass_principal", "principal_id", "ended_at"),
)
