"""Rules that give grants as studies arrive, and reviews of who may still see what."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Index, Table

from archive.db.tables.columns import id_column, metadata, text_column
from archive.db.types import Instant

auto_rule = Table(
    "auto_rule",
    metadata,
    id_column(),
    Column("name", sa.Text, nullable=False, unique=True),  # of a removed one: name/id, so that the name is free again
    Column("datastore_id", ForeignKey("datastore.id"), nullable=False),
    Column("priority", sa.Integer, nullable=False, server_default="0"),  # the highest is asked first
    Column("conditions", sa.JSON, nullable=False),
    Column("subject_id", ForeignKey("principal.id"), nullable=False),
    Column("role_id", ForeignKey("role.id"), nullable=False),
    text_column("level"),  # patient, study, series
    Column("lifetime_s", sa.BigInteger, nullable=False),
    Column("renew", sa.Boolean, nullable=False, server_default=sa.false()),
    Column("enabled", sa.Boolean, nullable=False, server_default=sa.true()),
    Column("created_by", sa.BigInteger, nullable=True),
    Column("created_at", Instant, nullable=False),
    Column("removed_at", Instant, nullable=True),
)

rule_grant = Table(
    "rule_grant",
    metadata,
    Column("grant_id", sa.BigInteger, primary_key=True, autoincrement=False),
    Column("rule_id", sa.BigInteger, nullable=False, index=True),
)

access_review = Table(
    "access_review",
    metadata,
    id_column(),
    text_column("title"),
    Column("chosen", sa.JSON, nullable=False),  # which rows it asks about
    Column("started_by", sa.BigInteger, nullable=False),
    Column("started_at", Instant, nullable=False),
    Column("due_at", Instant, nullable=False),
    Column("closed_by", sa.BigInteger, nullable=True),
    Column("closed_at", Instant, nullable=True),
    Column("leaf", sa.BigInteger, nullable=True),  # of the signed record
)

access_review_item = Table(
    "access_review_item",
    metadata,
    id_column(),
    Column("review_id", ForeignKey("access_review.id", ondelete="CASCADE"), nullable=False),
    Column("kind", sa.Text, nullable=False),  # grant, role
    Column("number", sa.BigInteger, nullable=False),  # of the grant or role assignment
    Column("subject_id", sa.BigInteger, nullable=False),
    Column("shown", sa.JSON, nullable=False),  # as it stood when the review began
    Column("last_used_at", Instant, nullable=True),
    text_column("decision"),  # empty, keep, revoke
    Column("decided_by", sa.BigInteger, nullable=True),
    Column("decided_at", Instant, nullable=True),
    text_column("note"),
    Index("ix_access_review_item_review", "review_id", "id"),
)
