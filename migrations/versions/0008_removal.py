"""Studies on hold."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
CODE_POINT_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Create a table."""
    op.create_table(
        "hold",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("datastore_id", BIG_ID, nullable=False),
        sa.Column("study_instance_uid", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("reason", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("hold_until", sa.BigInteger(), nullable=True),
        sa.Column("principal_id", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["datastore_id"], ["datastore.id"], name=op.f("fk_hold_datastore_id_datastore")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hold")),
    )
    op.create_index("ix_hold_study", "hold", ["datastore_id", "study_instance_uid"])
