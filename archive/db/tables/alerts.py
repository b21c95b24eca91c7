"""What the rules found in the audit log, and who has looked at it."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column, Index, Table

from archive.db.tables.columns import id_column, metadata, text_column
from archive.db.types import Instant

alert = Table(
    "alert",
    metadata,
    id_column(),
    Column("rule", sa.Text, nullable=False),
    text_column("about"),  # whom or what: findings of one rule about the same go into one alert while it is open
    Column("severity", sa.Text, nullable=False),  # warning | urgent
    Column("principal_id", sa.BigInteger, nullable=True),
    Column("detail", sa.JSON, nullable=False),  # counts and names of accounts, nothing of patients
    Column("first_event", sa.BigInteger, nullable=False),
    Column("last_event", sa.BigInteger, nullable=False),
    Column("times", sa.Integer, nullable=False, server_default="1"),
    Column("raised_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("told_at", Instant, nullable=True),  # by mail
    Column("attempts", sa.Integer, nullable=False, server_default="0"),
    Column("due_at", Instant, nullable=True),  # NULL: nobody is to be told, or has been
    Column("hook_told_at", Instant, nullable=True),  # by webhook
    Column("hook_attempts", sa.Integer, nullable=False, server_default="0"),
    Column("hook_due_at", Instant, nullable=True),
    Column("acknowledged_at", Instant, nullable=True),
    Column("acknowledged_by", sa.BigInteger, nullable=True),
    text_column("note"),
    Index("ix_alert_open", "acknowledged_at", "rule"),
)
