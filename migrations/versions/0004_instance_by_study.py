"""No instance is looked for by its study's id: they are reached through their series, so that index is one page less to write."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Drop an index; nothing is lost or changed."""
    op.drop_index("ix_instance_study_pk", table_name="instance")
