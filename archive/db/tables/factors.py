"""How else than by a password somebody proves who it is: one-time codes, passkeys, recovery codes."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Table, UniqueConstraint

from archive.db.tables.columns import id_column, metadata, text_column
from archive.db.types import Instant

factor = Table(
    "factor",
    metadata,
    id_column(),
    Column("principal_id", ForeignKey("principal.id"), nullable=False, index=True),
    Column("kind", sa.Text, nullable=False),  # totp | passkey
    text_column("label"),
    Column("sealed", sa.LargeBinary, nullable=False),  # the secret of a totp, the public key of a passkey, with its principal
    Column("credential_sha256", sa.LargeBinary(32), nullable=True, unique=True),  # of a passkey's credential id
    Column("last_step", sa.BigInteger, nullable=False, server_default="-1"),  # of the last code taken; none counts twice
    Column("sign_count", sa.BigInteger, nullable=False, server_default="0"),
    Column("created_at", Instant, nullable=False),
    Column("confirmed_at", Instant, nullable=True),  # NULL: not shown to work yet, and counts for nothing
    Column("last_used_at", Instant, nullable=True),
)

recovery_code = Table(
    "recovery_code",
    metadata,
    id_column(),
    Column("principal_id", ForeignKey("principal.id"), nullable=False, index=True),
    Column("code_hmac", sa.LargeBinary(32), nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("used_at", Instant, nullable=True),
    UniqueConstraint("principal_id", "code_hmac"),
)

passkey_challenge = Table(
    "passkey_challenge",
    metadata,
    id_column(),
    Column("challenge_sha256", sa.LargeBinary(32), nullable=False, unique=True),
    Column("session_id", sa.BigInteger, nullable=True),  # NULL: for signing in
    Column("not_after", Instant, nullable=False, index=True),
)
