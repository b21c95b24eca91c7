"""Approvals, and roles that can be removed."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
CODE_POINT_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Add a column to a table and create another."""
    op.add_column("role", sa.Column("removed_at", sa.BigInteger(), nullable=True))
    op.create_table(
        "approval",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("operation", sa.Text(), nullable=False),
        sa.Column("need", sa.BigInteger(), nullable=False),
        sa.Column("sealed_arguments", sa.LargeBinary(), nullable=False),
        sa.Column("arguments_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("asked_by", BIG_ID, nullable=False),
        sa.Column("asked_at", sa.BigInteger(), nullable=False),
        sa.Column("reason", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("decided_by", sa.BigInteger(), nullable=True),
        sa.Column("decided_at", sa.BigInteger(), nullable=True),
        sa.Column("decision", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("done_at", sa.BigInteger(), nullable=True),
        sa.Column("outcome", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.ForeignKeyConstraint(["asked_by"], ["principal.id"], name=op.f("fk_approval_asked_by_principal")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_approval")),
    )
    op.create_index("ix_approval_waiting", "approval", ["decided_at", "expires_at"])
