"""The unified worklist, who watches it, what they are told; and where webhooks have got to."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Index, Table, UniqueConstraint

from archive.db.tables.columns import id_column, metadata, text_column
from archive.db.types import Instant

workitem = Table(
    "workitem",
    metadata,
    id_column(),
    Column("datastore_id", ForeignKey("datastore.id"), nullable=False),
    text_column("sop_instance_uid"),
    text_column("state"),  # SCHEDULED | IN PROGRESS | COMPLETED | CANCELED
    text_column("transaction_uid"),  # the lock of who performs it; never shown
    text_column("patient_id"),
    text_column("issuer_of_patient_id"),
    Column("dataset", sa.JSON, nullable=False),  # DICOM JSON Model
    Column("deletable_at", Instant, nullable=True),  # set in a final state
    Column("created_by", sa.BigInteger, nullable=True),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    UniqueConstraint("datastore_id", "sop_instance_uid"),
    Index("ix_workitem_patient_id", "datastore_id", "patient_id"),
)

workitem_study = Table(
    "workitem_study",
    metadata,
    Column("workitem_pk", ForeignKey("workitem.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("study_instance_uid", sa.Text, primary_key=True),  # of what it takes in
)

ups_subscriber = Table(
    "ups_subscriber",
    metadata,
    id_column(),
    Column("datastore_id", ForeignKey("datastore.id"), nullable=False),
    Column("principal_id", ForeignKey("principal.id"), nullable=False),
    text_column("ae_title"),
    Column("told_until", sa.BigInteger, nullable=False, server_default="-1"),  # leaf of the last event handed over
    Column("created_at", Instant, nullable=False),
    UniqueConstraint("datastore_id", "principal_id", "ae_title"),
)

ups_subscription = Table(
    "ups_subscription",
    metadata,
    id_column(),
    Column("subscriber_pk", ForeignKey("ups_subscriber.id", ondelete="CASCADE"), nullable=False),
    Column("workitem_pk", sa.BigInteger, nullable=False),  # 0: every workitem that `filter` lets through
    Column("wanted", sa.Boolean, nullable=False),  # false: not told of this one although of all others
    Column("deletion_lock", sa.Boolean, nullable=False, server_default=sa.false()),
    Column("filter", sa.JSON, nullable=True),  # [[tag, text], …]
    Column("until_workitem", sa.BigInteger, nullable=True),  # suspended: none newer than this
    UniqueConstraint("subscriber_pk", "workitem_pk"),
)

ups_event = Table(
    "ups_event",
    metadata,
    Column("leaf", sa.BigInteger, primary_key=True, autoincrement=False),  # of the ledger: its order is that of commits
    Column("position", sa.Integer, primary_key=True, autoincrement=False),
    Column("workitem_pk", ForeignKey("workitem.id", ondelete="CASCADE"), nullable=False),
    Column("subscriber_pk", sa.BigInteger, nullable=True),  # told to this one alone
    Column("body", sa.JSON, nullable=False),
    Column("at", Instant, nullable=False, index=True),
)

webhook = Table(
    "webhook",
    metadata,
    id_column(),
    Column("datastore_id", ForeignKey("datastore.id"), nullable=False),
    Column("principal_id", ForeignKey("principal.id"), nullable=False),  # what it sees is told, nothing else
    text_column("url"),
    Column("salt", sa.LargeBinary(16), nullable=False),  # of the signing key, which is derived
    Column("leaf", sa.BigInteger, nullable=False),  # told up to here
    Column("position", sa.BigInteger, nullable=False),
    Column("attempts", sa.Integer, nullable=False, server_default="0"),  # failed in a row
    Column("due_at", Instant, nullable=False),
    Column("delivered_at", Instant, nullable=True),
    text_column("problem"),
    Column("created_by", sa.BigInteger, nullable=True),
    Column("created_at", Instant, nullable=False),
    Column("removed_at", Instant, nullable=True),
)
