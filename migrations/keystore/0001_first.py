"""The keystore: data keys and anchors."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "anchor",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("note", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_anchor")),
    )
    op.create_table(
        "data_key",
        sa.Column("key_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("datastore", sa.LargeBinary(length=16), nullable=False),
        sa.Column("study_ref", sa.LargeBinary(length=32), nullable=False),
        sa.Column("wrapped", sa.LargeBinary(), nullable=False),
        sa.Column("kek_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("kcv", sa.LargeBinary(length=8), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("shredded_at", sa.BigInteger(), nullable=True),
        sa.Column("shred_reason", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_data_key")),
    )
    op.create_index(op.f("ix_data_key_kek_id"), "data_key", ["kek_id"], unique=False)
    op.create_index(
        "uq_data_key_active",
        "data_key",
        ["datastore", "study_ref"],
        unique=True,
        sqlite_where=sa.text("state = 'active'"),
        postgresql_where=sa.text("state = 'active'"),
    )
