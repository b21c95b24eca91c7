"""The unified worklist, its subscribers and events, and webhooks."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def text(name: str) -> sa.Column:
    """Return a text that is empty, never NULL."""
    return sa.Column(name, TEXT, server_default="", nullable=False)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "workitem",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("datastore_id", BIG_ID, nullable=False),
        text("sop_instance_uid"),
        text("state"),
        text("transaction_uid"),
        text("patient_id"),
        text("issuer_of_patient_id"),
        sa.Column("dataset", sa.JSON(), nullable=False),
        sa.Column("deletable_at", sa.BigInteger(), nullable=True),
        sa.Column("created_by", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["datastore_id"], ["datastore.id"], name=op.f("fk_workitem_datastore_id_datastore")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workitem")),
        sa.UniqueConstraint("datastore_id", "sop_instance_uid", name=op.f("uq_workitem_datastore_id_sop_instance_uid")),
    )
    op.create_index("ix_workitem_patient_id", "workitem", ["datastore_id", "patient_id"])
    op.create_table(
        "workitem_study",
        sa.Column("workitem_pk", BIG_ID, autoincrement=False, nullable=False),
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["workitem_pk"], ["workitem.id"], name=op.f("fk_workitem_study_workitem_pk_workitem"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("workitem_pk", "study_instance_uid", name=op.f("pk_workitem_study")),
    )
    op.create_table(
        "ups_subscriber",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("datastore_id", BIG_ID, nullable=False),
        sa.Column("principal_id", BIG_ID, nullable=False),
        text("ae_title"),
        sa.Column("told_until", sa.BigInteger(), server_default="-1", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["datastore_id"], ["datastore.id"], name=op.f("fk_ups_subscriber_datastore_id_datastore")),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.id"], name=op.f("fk_ups_subscriber_principal_id_principal")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ups_subscriber")),
        sa.UniqueConstraint("datastore_id", "principal_id", "ae_title", name=op.f("uq_ups_subscriber_datastore_id_principal_id_ae_title")),
    )
    op.create_table(
        "ups_subscription",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("subscriber_pk", BIG_ID, nullable=False),
        sa.Column("workitem_pk", sa.BigInteger(), nullable=False),
        sa.Column("wanted", sa.Boolean(), nullable=False),
        sa.Column("deletion_lock", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("filter", sa.JSON(), nullable=True),
        sa.Column("until_workitem", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["subscriber_pk"], ["ups_subscriber.id"], name=op.f("fk_ups_subscription_subscriber_pk_ups_subscriber"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ups_subscription")),
        sa.UniqueConstraint("subscriber_pk", "workitem_pk", name=op.f("uq_ups_subscription_subscriber_pk_workitem_pk")),
    )
    op.create_table(
        "ups_event",
        sa.Column("leaf", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("workitem_pk", BIG_ID, nullable=False),
        sa.Column("subscriber_pk", sa.BigInteger(), nullable=True),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["workitem_pk"], ["workitem.id"], name=op.f("fk_ups_event_workitem_pk_workitem"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("leaf", "position", name=op.f("pk_ups_event")),
    )
    op.create_index(op.f("ix_ups_event_at"), "ups_event", ["at"])
    op.create_table(
        "webhook",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("datastore_id", BIG_ID, nullable=False),
        sa.Column("principal_id", BIG_ID, nullable=False),
        text("url"),
        sa.Column("salt", sa.LargeBinary(length=16), nullable=False),
        sa.Column("leaf", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.Column("delivered_at", sa.BigInteger(), nullable=True),
        text("problem"),
        sa.Column("created_by", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("removed_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["datastore_id"], ["datastore.id"], name=op.f("fk_webhook_datastore_id_datastore")),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.id"], name=op.f("fk_webhook_principal_id_principal")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook")),
    )
