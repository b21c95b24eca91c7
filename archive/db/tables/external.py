"""Who somebody is in other systems that sign people in: an OpenID provider, a directory."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Table, UniqueConstraint

from archive.db.tables.columns import id_column, metadata
from archive.db.types import Instant

external_identity = Table(
    "external_identity",
    metadata,
    id_column(),
    Column("principal_id", ForeignKey("principal.id"), nullable=False, index=True),
    Column("issuer", sa.Text, nullable=False),  # of an OpenID provider; of a directory its address
    Column("subject", sa.Text, nullable=False),  # what never changes there: `sub`; of a directory the distinguished name
    Column("bound_at", Instant, nullable=False),
    Column("last_used_at", Instant, nullable=True),
    UniqueConstraint("issuer", "subject"),
)

external_state = Table(
    "external_state",
    metadata,
    id_column(),
    Column("state_sha256", sa.LargeBinary(32), nullable=False, unique=True),  # of a return from a provider: it counts once
    Column("not_after", Instant, nullable=False, index=True),
)
