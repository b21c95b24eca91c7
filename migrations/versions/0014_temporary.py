"""Temporary access."""

from __future__ import annotations

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Change nothing."""
