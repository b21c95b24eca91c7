"""Who somebody is in other systems that sign people in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create two tables."""
    op.create_table(
        "external_identity",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("principal_id", BIG_ID, nullable=False),
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("bound_at", sa.BigInteger(), nullable=False),
        sa.Column("last_used_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.id"], name=op.f("fk_external_identity_principal_id_principal")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_external_identity")),
        sa.UniqueConstraint("issuer", "subject", name=op.f("uq_external_identity_issuer_subject")),
    )
    op.create_index(op.f("ix_external_identity_principal_id"), "external_identity", ["principal_id"])
    op.create_table(
        "external_state",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("state_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("not_after", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_external_state")),
        sa.UniqueConstraint("state_sha256", name=op.f("uq_external_state_state_sha256")),
    )
    op.create_index(op.f("ix_external_state_not_after"), "external_state", ["not_after"])
