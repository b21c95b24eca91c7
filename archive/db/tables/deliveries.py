"""Commitments that were asked for, rules of forwarding, and the queue of what is to be delivered: working state, no part of an object."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Index, Table, UniqueConstraint

from archive.db.tables.columns import id_column, metadata, text_column
from archive.db.types import Instant

commitment = Table(
    "commitment",
    metadata,
    id_column(),
    Column("datastore_id", ForeignKey("datastore.id"), nullable=False),
    text_column("transaction_uid"),
    Column("principal_id", sa.BigInteger, nullable=False),  # who asked: nobody else's transaction is the same one
    Column("peer_id", sa.BigInteger, nullable=False),
    text_column("peer"),
    text_column("calling_ae_title"),  # where the report goes
    text_column("state"),  # checking, checked
    Column("n_references", sa.Integer, nullable=False),
    Column("n_failed", sa.Integer, nullable=False, server_default="0"),
    Column("same_association", sa.Boolean, nullable=False, server_default=sa.false()),
    Column("attempts", sa.Integer, nullable=False, server_default="0"),
    Column("run_at", Instant, nullable=False),
    text_column("leased_by"),
    Column("leased_until", Instant, nullable=True),
    Column("leaf", sa.BigInteger, nullable=True),  # the event that is the receipt
    Column("created_at", Instant, nullable=False),
    Column("checked_at", Instant, nullable=True),
    Column("reported_at", Instant, nullable=True),
    Index("ix_commitment_transaction", "principal_id", "transaction_uid"),
    Index("ix_commitment_due", "state", "run_at"),
)

commitment_item = Table(
    "commitment_item",
    metadata,
    id_column(),
    Column("commitment_id", ForeignKey("commitment.id", ondelete="CASCADE"), nullable=False, index=True),
    text_column("sop_class_uid"),
    text_column("sop_instance_uid"),
    Column("reason", sa.Integer, nullable=True),  # NULL: not checked; 0: committed; else Failure Reason (0008,1197)
    text_column("study_instance_uid"),
    Column("sha256", sa.LargeBinary(32), nullable=True),
)

forward_rule = Table(
    "forward_rule",
    metadata,
    id_column(),
    Column("name", sa.Text, nullable=False, unique=True),
    Column("datastore_id", ForeignKey("datastore.id"), nullable=False),
    Column("peer_id", sa.BigInteger, nullable=False),
    Column("principal_id", sa.BigInteger, nullable=False),  # on whose right it sends
    Column("conditions", sa.JSON, nullable=False),
    text_column("hours"),
    Column("quiet_s", sa.Integer, nullable=False, server_default="0"),
    Column("enabled", sa.Boolean, nullable=False, server_default=sa.true()),
    Column("seen", sa.BigInteger, nullable=False),  # instances up to this id were looked at
    Column("created_at", Instant, nullable=False),
)

delivery = Table(
    "delivery",
    metadata,
    id_column(),
    Column("kind", sa.Text, nullable=False),  # report, forward
    Column("peer_id", sa.BigInteger, nullable=False),
    text_column("ae_title"),  # of the peer's; empty: its first
    text_column("state"),  # waiting, done, failed
    Column("commitment_id", ForeignKey("commitment.id", ondelete="CASCADE"), nullable=True, index=True),
    Column("rule_id", ForeignKey("forward_rule.id", ondelete="CASCADE"), nullable=True),
    Column("instance_pk", sa.BigInteger, nullable=True),
    Column("study_pk", sa.BigInteger, nullable=True),
    Column("attempts", sa.Integer, nullable=False, server_default="0"),
    Column("run_at", Instant, nullable=False),
    text_column("reason"),
    Column("created_at", Instant, nullable=False),
    Column("finished_at", Instant, nullable=True),
    UniqueConstraint("peer_id", "instance_pk"),
    Index("ix_delivery_due", "state", "run_at"),
    Index("ix_delivery_next", "peer_id", "kind", "state", "run_at"),
    Index("ix_delivery_rule", "rule_id", "state", "study_pk"),
)

delivery_destination = Table(
    "delivery_destination",
    metadata,
    Column("peer_id", sa.BigInteger, primary_key=True, autoincrement=False),
    Column("paused", sa.Boolean, nullable=False, server_default=sa.false()),
    Column("failures", sa.Integer, nullable=False, server_default="0"),  # in a row, of reaching it
    Column("retry_at", Instant, nullable=True),
    text_column("reason"),
    text_column("leased_by"),
    Column("leased_until", Instant, nullable=True),
    Column("reached_at", Instant, nullable=True),
)
