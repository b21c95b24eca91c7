"""What is to be acquired, what is being acquired, and who associated: working state, none of it part of an acquired object."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Index, Table, UniqueConstraint

from archive.db.tables.columns import id_column, metadata, text_column
from archive.db.types import Instant

worklist_entry = Table(
    "worklist_entry",
    metadata,
    id_column(),
    Column("datastore_id", ForeignKey("datastore.id"), nullable=False),
    text_column("state"),  # scheduled, in-progress, completed, discontinued, cancelled
    text_column("start_date"),  # YYYYMMDD; what follows narrows a search, the attributes decide
    text_column("modality"),
    text_column("patient_id"),
    text_column("accession_number"),
    text_column("study_instance_uid"),
    text_column("procedure_step_id"),
    Column("attributes", sa.JSON, nullable=False),  # DICOM JSON Model, one item of ScheduledProcedureStepSequence
    text_column("source"),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Index("ix_worklist_entry_due", "datastore_id", "state", "start_date"),
    UniqueConstraint("datastore_id", "study_instance_uid", "procedure_step_id", name="uq_worklist_entry_step"),
)

worklist_station = Table(
    "worklist_station",
    metadata,
    id_column(),
    Column("entry_id", ForeignKey("worklist_entry.id", ondelete="CASCADE"), nullable=False),
    Column("ae_title", sa.Text, nullable=False),
    UniqueConstraint("entry_id", "ae_title"),
)

mpps = Table(
    "mpps",
    metadata,
    id_column(),
    Column("datastore_id", ForeignKey("datastore.id"), nullable=False),
    Column("sop_instance_uid", sa.Text, nullable=False),
    text_column("state"),  # in-progress, completed, discontinued
    Column("principal_id", sa.BigInteger, nullable=False),  # who made it: nobody else may change it
    text_column("station_ae_title"),
    text_column("modality"),
    text_column("patient_id"),
    Column("attributes", sa.JSON, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    UniqueConstraint("datastore_id", "sop_instance_uid"),
)

mpps_step = Table(
    "mpps_step",
    metadata,
    id_column(),
    Column("mpps_id", ForeignKey("mpps.id", ondelete="CASCADE"), nullable=False, index=True),
    text_column("study_instance_uid", index=True),
    Column("entry_id", ForeignKey("worklist_entry.id", ondelete="SET NULL"), nullable=True, index=True),
)

association_record = Table(
    "association_record",
    metadata,
    id_column(),
    Column("at", Instant, nullable=False, index=True),  # when it ended; of several alike, when the last did
    Column("opened_at", Instant, nullable=False),
    Column("peer_id", sa.BigInteger, nullable=True, index=True),
    text_column("peer"),
    text_column("calling_ae_title"),
    text_column("called_ae_title"),
    text_column("address"),
    Column("tls", sa.Boolean, nullable=False),
    text_column("association"),
    text_column("outcome"),  # released, aborted, lost, timed-out, failed, refused
    text_column("reason"),
    Column("failed", sa.Boolean, nullable=False),
    Column("negotiation", sa.JSON, nullable=False),  # what was proposed and what was taken, by name
    Column("operations", sa.JSON, nullable=False),  # how many of each, and how many of those failed
    Column("repeats", sa.Integer, nullable=False, server_default="1"),
)
