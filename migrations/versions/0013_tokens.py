"""Tokens by tokens."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

CODE_POINT_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Add columns to one table."""
    op.add_column("api_token", sa.Column("parent_id", sa.BigInteger(), nullable=True))
    op.add_column("api_token", sa.Column("label", CODE_POINT_TEXT, server_default="", nullable=False))
    op.add_column("api_token", sa.Column("networks", CODE_POINT_TEXT, server_default="", nullable=False))
    op.add_column("api_token", sa.Column("last_address", CODE_POINT_TEXT, server_default="", nullable=False))
    op.create_index(op.f("ix_api_token_parent_id"), "api_token", ["parent_id"])
