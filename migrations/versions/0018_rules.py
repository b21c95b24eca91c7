"""Rules on arrival and access reviews."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
CODE_POINT_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Create four tables."""
    op.create_table(
        "auto_rule",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("datastore_id", BIG_ID, nullable=False),
        sa.Column("priority", sa.Integer(), server_default="0", nullable=False),
        sa.Column("conditions", sa.JSON(), nullable=False),
        sa.Column("subject_id", BIG_ID, nullable=False),
        sa.Column("role_id", BIG_ID, nullable=False),
        sa.Column("level", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("lifetime_s", sa.BigInteger(), nullable=False),
        sa.Column("renew", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("enabled", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("created_by", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("removed_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["datastore_id"], ["datastore.id"], name=op.f("fk_auto_rule_datastore_id_datastore")),
        sa.ForeignKeyConstraint(["role_id"], ["role.id"], name=op.f("fk_auto_rule_role_id_role")),
        sa.ForeignKeyConstraint(["subject_id"], ["principal.id"], name=op.f("fk_auto_rule_subject_id_principal")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_auto_rule")),
        sa.UniqueConstraint("name", name=op.f("uq_auto_rule_name")),
    )
    op.create_table(
        "rule_grant",
        sa.Column("grant_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("rule_id", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("grant_id", name=op.f("pk_rule_grant")),
    )
    op.create_index("ix_rule_grant_rule_id", "rule_grant", ["rule_id"])
    op.create_table(
        "access_review",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("title", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("chosen", sa.JSON(), nullable=False),
        sa.Column("started_by", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.Column("closed_by", sa.BigInteger(), nullable=True),
        sa.Column("closed_at", sa.BigInteger(), nullable=True),
        sa.Column("leaf", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_review")),
    )
    op.create_table(
        "access_review_item",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("review_id", BIG_ID, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("subject_id", sa.BigInteger(), nullable=False),
        sa.Column("shown", sa.JSON(), nullable=False),
        sa.Column("last_used_at", sa.BigInteger(), nullable=True),
        sa.Column("decision", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("decided_by", sa.BigInteger(), nullable=True),
        sa.Column("decided_at", sa.BigInteger(), nullable=True),
        sa.Column("note", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.ForeignKeyConstraint(
            ["review_id"], ["access_review.id"], name=op.f("fk_access_review_item_review_id_access_review"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_review_item")),
    )
    op.create_index("ix_access_review_item_review", "access_review_item", ["review_id", "id"])
