"""Outside witnesses: what each is known to remember, and the cosignatures it gave."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column, Table

from archive.db.tables.columns import metadata, text_column
from archive.db.types import CodePointText, Instant

witness = Table(
    "witness",
    metadata,
    Column("name", CodePointText, primary_key=True),
    Column("verifier_key", sa.Text, nullable=False),
    Column("size", sa.BigInteger, nullable=False, server_default="0"),  # what it said last to remember of this log
    Column("since", Instant, nullable=False),  # when it was asked for the first time
    Column("agreed_at", Instant, nullable=True),  # by its own clock
    text_column("problem"),  # why it did not cosign the last time; empty when it did
    Column("told_silent_at", Instant, nullable=True),  # NULL: its silence was not told, or is over
)

witness_cosignature = Table(
    "witness_cosignature",
    metadata,
    Column("witness", CodePointText, primary_key=True),
    Column("size", sa.BigInteger, primary_key=True, autoincrement=False),
    Column("root", sa.LargeBinary(32), nullable=False),
    Column("at", Instant, nullable=False),  # by the witness's clock
    Column("line", sa.Text, nullable=False),  # as it stands in the note
)
