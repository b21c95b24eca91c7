"""Worklist entries, performed procedure steps, records of associations; what is settled for each peer."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
CODE_POINT_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, CODE_POINT_TEXT, server_default="", nullable=False)


def upgrade() -> None:
    """Create five tables; add what a peer may be set to."""
    op.create_table(
        "worklist_entry",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("datastore_id", BIG_ID, nullable=False),
        *(_text(name) for name in (
            "state", "start_date", "modality", "patient_id", "accession_number", "study_instance_uid", "procedure_step_id",
        )),
        sa.Column("attributes", sa.JSON(), nullable=False),
        _text("source"),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["datastore_id"], ["datastore.id"], name=op.f("fk_worklist_entry_datastore_id_datastore")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_worklist_entry")),
        sa.UniqueConstraint(
            "datastore_id", "study_instance_uid", "procedure_step_id",
            name="uq_worklist_entry_step",
        ),
    )
    op.create_index("ix_worklist_entry_due", "worklist_entry", ["datastore_id", "state", "start_date"])
    op.create_table(
        "worklist_station",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("entry_id", BIG_ID, nullable=False),
        sa.Column("ae_title", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["entry_id"], ["worklist_entry.id"], name=op.f("fk_worklist_station_entry_id_worklist_entry"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_worklist_station")),
        sa.UniqueConstraint("entry_id", "ae_title", name=op.f("uq_worklist_station_entry_id_ae_title")),
    )
    op.create_table(
        "mpps",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("datastore_id", BIG_ID, nullable=False),
        sa.Column("sop_instance_uid", sa.Text(), nullable=False),
        _text("state"),
        sa.Column("principal_id", sa.BigInteger(), nullable=False),
        *(_text(name) for name in ("station_ae_title", "modality", "patient_id")),
        sa.Column("attributes", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["datastore_id"], ["datastore.id"], name=op.f("fk_mpps_datastore_id_datastore")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_mpps")),
        sa.UniqueConstraint("datastore_id", "sop_instance_uid", name=op.f("uq_mpps_datastore_id_sop_instance_uid")),
    )
    op.create_table(
        "mpps_step",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("mpps_id", BIG_ID, nullable=False),
        _text("study_instance_uid"),
        sa.Column("entry_id", BIG_ID, nullable=True),
        sa.ForeignKeyConstraint(["mpps_id"], ["mpps.id"], name=op.f("fk_mpps_step_mpps_id_mpps"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["entry_id"], ["worklist_entry.id"], name=op.f("fk_mpps_step_entry_id_worklist_entry"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_mpps_step")),
    )
    for column in ("mpps_id", "study_instance_uid", "entry_id"):
        op.create_index(op.f(f"ix_mpps_step_{column}"), "mpps_step", [column])
    op.create_table(
        "association_record",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("opened_at", sa.BigInteger(), nullable=False),
        sa.Column("peer_id", sa.BigInteger(), nullable=True),
        *(_text(name) for name in ("peer", "calling_ae_title", "called_ae_title", "address")),
        sa.Column("tls", sa.Boolean(), nullable=False),
        *(_text(name) for name in ("association", "outcome", "reason")),
        sa.Column("failed", sa.Boolean(), nullable=False),
        sa.Column("negotiation", sa.JSON(), nullable=False),
        sa.Column("operations", sa.JSON(), nullable=False),
        sa.Column("repeats", sa.Integer(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_association_record")),
    )
    for column in ("at", "peer_id"):
        op.create_index(op.f(f"ix_association_record_{column}"), "association_record", [column])
    _settings_of_peers()


def _settings_of_peers() -> None:
    op.add_column("peer", _text("character_set"))
    op.add_column("peer", sa.Column("called_ae_strict", sa.Boolean(), nullable=True))
    op.add_column("peer", sa.Column("private_sop_classes", sa.Boolean(), nullable=True))
    for name in ("relational", "commitment_same_association", "modality_without_tls", "whole_worklist"):
        op.add_column("peer", sa.Column(name, sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("peer", _text("transfer_syntaxes"))
