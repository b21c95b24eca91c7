"""What is due for one destination is found by an index: many deliveries may wait for others, or of the other kind."""

from __future__ import annotations

from alembic import op

revision = "0024"
down_revision = "0023"


def upgrade() -> None:
    """Add an index."""
    op.create_index("ix_delivery_next", "delivery", ["peer_id", "kind", "state", "run_at"])
