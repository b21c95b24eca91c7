"""Access for a time: what grants were passed on from, requests, break-glass."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
CODE_POINT_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Create three tables and an index."""
    op.create_index("ix_grants_parent", "grants", ["parent_id"])
    op.create_table(
        "grant_lineage",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("grant_id", BIG_ID, nullable=False),
        sa.Column("ancestor_id", BIG_ID, nullable=False),
        sa.Column("giver_id", BIG_ID, nullable=False),
        sa.ForeignKeyConstraint(["grant_id"], ["grants.id"], name=op.f("fk_grant_lineage_grant_id_grants")),
        sa.ForeignKeyConstraint(["ancestor_id"], ["grants.id"], name=op.f("fk_grant_lineage_ancestor_id_grants")),
        sa.ForeignKeyConstraint(["giver_id"], ["principal.id"], name=op.f("fk_grant_lineage_giver_id_principal")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_grant_lineage")),
        sa.UniqueConstraint("grant_id", "ancestor_id", name=op.f("uq_grant_lineage_grant_id_ancestor_id")),
    )
    op.create_table(
        "access_request",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("requester_id", BIG_ID, nullable=False),
        sa.Column("datastore", sa.Text(), nullable=False),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("object", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("issuer", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("permissions", sa.BigInteger(), nullable=False),
        sa.Column("asked_until", sa.BigInteger(), nullable=False),
        sa.Column("reason", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("state", sa.Text(), server_default="open", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("decided_at", sa.BigInteger(), nullable=True),
        sa.Column("decided_by", sa.BigInteger(), nullable=True),
        sa.Column("note", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("grant_id", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["requester_id"], ["principal.id"], name=op.f("fk_access_request_requester_id_principal")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_request")),
    )
    op.create_index("ix_access_request_open", "access_request", ["state", "expires_at"])
    op.create_index("ix_access_request_requester", "access_request", ["requester_id", "id"])
    op.create_table(
        "break_glass",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("principal_id", BIG_ID, nullable=False),
        sa.Column("session_id", sa.BigInteger(), nullable=True),
        sa.Column("datastore", sa.Text(), nullable=False),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("object", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("issuer", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("grant_ids", sa.JSON(), nullable=False),
        sa.Column("reason_code", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("reason", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("ends_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("reviewed_at", sa.BigInteger(), nullable=True),
        sa.Column("reviewed_by", sa.BigInteger(), nullable=True),
        sa.Column("verdict", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("note", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.id"], name=op.f("fk_break_glass_principal_id_principal")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_break_glass")),
    )
    op.create_index("ix_break_glass_review", "break_glass", ["reviewed_at", "started_at"])
    op.create_index("ix_break_glass_principal", "break_glass", ["principal_id", "ended_at"])
