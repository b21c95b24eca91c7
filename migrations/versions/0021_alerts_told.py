"""Alerts told by webhook."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    """Add columns."""
    op.add_column("alert", sa.Column("hook_told_at", sa.BigInteger(), nullable=True))
    op.add_column("alert", sa.Column("hook_attempts", sa.Integer(), server_default="0", nullable=False))
    op.add_column("alert", sa.Column("hook_due_at", sa.BigInteger(), nullable=True))
