"""What is gone for good."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Create two tables."""
    op.create_table(
        "purged",
        sa.Column("object_id", sa.LargeBinary(16), nullable=False),
        sa.Column("leaf", sa.BigInteger(), nullable=False),
        sa.Column("segment_id", sa.LargeBinary(16), nullable=False),
        sa.Column("record_offset", sa.BigInteger(), nullable=False),
        sa.Column("record_bytes", sa.BigInteger(), nullable=False),
        sa.Column("freed_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("object_id", name=op.f("pk_purged")),
    )
    op.create_index("ix_purged_freed", "purged", ["freed_at"])
    op.create_index("ix_purged_segment", "purged", ["segment_id"])
    op.create_table(
        "purged_key",
        sa.Column("key_id", sa.LargeBinary(16), nullable=False),
        sa.Column("leaf", sa.BigInteger(), nullable=False),
        sa.Column("destroyed_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_purged_key")),
    )
