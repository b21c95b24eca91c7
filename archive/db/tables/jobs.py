"""Long work and what became of each piece of it."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Index, Table, UniqueConstraint

from archive.db.tables.columns import id_column, metadata, text_column
from archive.db.types import Instant

job = Table(
    "job",
    metadata,
    id_column(),
    Column("kind", sa.Text, nullable=False),
    Column("state", sa.Text, nullable=False),  # queued | running | done | failed | interrupted
    Column("subject_id", sa.BigInteger, nullable=True),
    Column("arguments", sa.JSON, nullable=False),
    Column("progress", sa.JSON, nullable=False),
    Column("attempts", sa.Integer, nullable=False, server_default="0"),
    Column("run_at", Instant, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("finished_at", Instant, nullable=True),
    text_column("worker"),
    Index("ix_job_queue", "state", "run_at"),
)

job_item = Table(
    "job_item",
    metadata,
    id_column(),
    Column("job_id", ForeignKey("job.id"), nullable=False),
    Column("name", sa.Text, nullable=False),  # for an import: path, or "zip path!member"
    Column("outcome", sa.Text, nullable=False),
    text_column("reason"),
    UniqueConstraint("job_id", "name"),
)
