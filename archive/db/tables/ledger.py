"""What happened: leaves, tree nodes, audit events, statements, checkpoints."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Table

from archive.db.tables.columns import metadata
from archive.db.types import BigId, Instant

ledger_leaf = Table(
    "ledger_leaf",
    metadata,
    Column("n", BigId, primary_key=True, autoincrement=False),  # 0, 1, 2 … without a gap
    Column("data", sa.LargeBinary, nullable=False),  # canonical JSON, no patient data (docs/format.md 6)
    Column("hash", sa.LargeBinary(32), nullable=False),
)

ledger_node = Table(
    "ledger_node",
    metadata,
    Column("level", sa.Integer, primary_key=True, autoincrement=False),  # 1 up; complete subtrees only
    Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
    Column("hash", sa.LargeBinary(32), nullable=False),
)

audit_event = Table(
    "audit_event",
    metadata,
    Column("n", ForeignKey("ledger_leaf.n"), primary_key=True, autoincrement=False),
    Column("at", Instant, nullable=False, index=True),
    Column("kind", sa.Text, nullable=False),
    Column("action", sa.Text, nullable=False),  # C R U D E
    Column("outcome", sa.Integer, nullable=False),  # 0 success, 4 minor, 8 serious, 12 major failure (PS3.15 A.5)
    Column("principal_id", sa.BigInteger, nullable=True, index=True),
    Column("peer_id", sa.BigInteger, nullable=True),
    Column("instances", sa.BigInteger, nullable=False, server_default="0"),
    Column("body", sa.LargeBinary, nullable=True),  # salt and canonical JSON, sealed; NULL: gone, which verify finds
)

audit_object = Table(
    "audit_object",
    metadata,
    Column("n", ForeignKey("audit_event.n"), primary_key=True, autoincrement=False),
    Column("position", sa.Integer, primary_key=True, autoincrement=False),  # as the leaf names them: 0, 1, 2 …
    Column("ref", sa.LargeBinary(32), nullable=False, index=True),  # keyed pseudonym of a patient, study or series
    sqlite_with_rowid=False,
)

statement = Table(
    "statement",
    metadata,
    Column("leaf", BigId, primary_key=True, autoincrement=False),
    Column("object_id", sa.LargeBinary(16), nullable=False, unique=True),
    Column("envelope", sa.LargeBinary, nullable=False),  # DSSE
)

checkpoint = Table(
    "checkpoint",
    metadata,
    Column("size", sa.BigInteger, primary_key=True, autoincrement=False),
    Column("root", sa.LargeBinary(32), nullable=False),
    Column("at", Instant, nullable=False),
    Column("note", sa.LargeBinary, nullable=False),
)
