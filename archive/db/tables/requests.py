"""Creating calls that may be sent again: what was asked under a client's key, and what it was answered."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Table, UniqueConstraint

from archive.db.tables.columns import id_column, metadata
from archive.db.types import Instant

idempotent_request = Table(
    "idempotent_request",
    metadata,
    id_column(),
    Column("principal_id", ForeignKey("principal.id"), nullable=False),
    Column("key_hmac", sa.LargeBinary(32), nullable=False),
    Column("request_sha256", sa.LargeBinary(32), nullable=False),
    Column("sealed_answer", sa.LargeBinary, nullable=True),  # NULL: not done yet, or nobody knows
    Column("created_at", Instant, nullable=False, index=True),
    UniqueConstraint("principal_id", "key_hmac"),
)
