"""Storage commitments, rules of forwarding, the queue of deliveries."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
CODE_POINT_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def _id() -> sa.Column[int]:
    return sa.Column("id", BIG_ID, autoincrement=True, nullable=False)


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, CODE_POINT_TEXT, server_default="", nullable=False)


def _big(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=nullable)


def _of(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, BIG_ID, nullable=nullable)


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer(), server_default="0", nullable=False)


def upgrade() -> None:
    """Create five tables."""
    op.create_table(
        "commitment", _id(), _of("datastore_id"), _text("transaction_uid"), _big("principal_id"), _big("peer_id"), _text("peer"),
        _text("calling_ae_title"), _text("state"), sa.Column("n_references", sa.Integer(), nullable=False), _count("n_failed"),
        sa.Column("same_association", sa.Boolean(), server_default=sa.false(), nullable=False), _count("attempts"), _big("run_at"),
        _text("leased_by"), _big("leased_until", nullable=True), _big("leaf", nullable=True), _big("created_at"),
        _big("checked_at", nullable=True), _big("reported_at", nullable=True),
        sa.ForeignKeyConstraint(["datastore_id"], ["datastore.id"], name=op.f("fk_commitment_datastore_id_datastore")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_commitment")),
    )
    op.create_index("ix_commitment_transaction", "commitment", ["principal_id", "transaction_uid"])
    op.create_index("ix_commitment_due", "commitment", ["state", "run_at"])
    op.create_table(
        "commitment_item", _id(), _of("commitment_id"), _text("sop_class_uid"), _text("sop_instance_uid"),
        sa.Column("reason", sa.Integer(), nullable=True), _text("study_instance_uid"),
        sa.Column("sha256", sa.LargeBinary(32), nullable=True),
        sa.ForeignKeyConstraint(
            ["commitment_id"], ["commitment.id"], name=op.f("fk_commitment_item_commitment_id_commitment"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_commitment_item")),
    )
    op.create_index(op.f("ix_commitment_item_commitment_id"), "commitment_item", ["commitment_id"])
    op.create_table(
        "forward_rule", _id(), sa.Column("name", sa.Text(), nullable=False), _of("datastore_id"), _big("peer_id"), _big("principal_id"),
        sa.Column("conditions", sa.JSON(), nullable=False), _text("hours"), _count("quiet_s"),
        sa.Column("enabled", sa.Boolean(), server_default=sa.true(), nullable=False), _big("seen"), _big("created_at"),
        sa.ForeignKeyConstraint(["datastore_id"], ["datastore.id"], name=op.f("fk_forward_rule_datastore_id_datastore")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_forward_rule")),
        sa.UniqueConstraint("name", name=op.f("uq_forward_rule_name")),
    )
    op.create_table(
        "delivery", _id(), sa.Column("kind", sa.Text(), nullable=False), _big("peer_id"), _text("ae_title"), _text("state"),
        _of("commitment_id", nullable=True), _of("rule_id", nullable=True), _big("instance_pk", nullable=True),
        _big("study_pk", nullable=True), _count("attempts"), _big("run_at"), _text("reason"), _big("created_at"),
        _big("finished_at", nullable=True),
        sa.ForeignKeyConstraint(
            ["commitment_id"], ["commitment.id"], name=op.f("fk_delivery_commitment_id_commitment"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["rule_id"], ["forward_rule.id"], name=op.f("fk_delivery_rule_id_forward_rule"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_delivery")),
        sa.UniqueConstraint("peer_id", "instance_pk", name=op.f("uq_delivery_peer_id_instance_pk")),
    )
    op.create_index(op.f("ix_delivery_commitment_id"), "delivery", ["commitment_id"])
    op.create_index("ix_delivery_due", "delivery", ["state", "run_at"])
    op.create_index("ix_delivery_rule", "delivery", ["rule_id", "state", "study_pk"])
    op.create_table(
        "delivery_destination", sa.Column("peer_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("paused", sa.Boolean(), server_default=sa.false(), nullable=False),
        _count("failures"), _big("retry_at", nullable=True), _text("reason"), _text("leased_by"), _big("leased_until", nullable=True),
        _big("reached_at", nullable=True),
        sa.PrimaryKeyConstraint("peer_id", name=op.f("pk_delivery_destination")),
    )
