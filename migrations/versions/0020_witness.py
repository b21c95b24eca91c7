"""Outside witnesses."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"

CODE_POINT_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Create two tables."""
    op.create_table(
        "witness",
        sa.Column("name", CODE_POINT_TEXT, nullable=False),
        sa.Column("verifier_key", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("agreed_at", sa.BigInteger(), nullable=True),
        sa.Column("problem", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("told_silent_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_witness")),
    )
    op.create_table(
        "witness_cosignature",
        sa.Column("witness", CODE_POINT_TEXT, nullable=False),
        sa.Column("size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("root", sa.LargeBinary(32), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("line", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("witness", "size", name=op.f("pk_witness_cosignature")),
    )
