"""What is shared: links for people without an account, and albums."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Table, UniqueConstraint

from archive.db.tables.columns import id_column, metadata, text_column
from archive.db.types import Instant

share_link = Table(
    "share_link",
    metadata,
    id_column(),
    Column("token_hmac", sa.LargeBinary(32), nullable=False, unique=True),
    Column("owner_id", ForeignKey("principal.id"), nullable=False, index=True),  # in whose right it opens
    Column("datastore_id", ForeignKey("datastore.id"), nullable=False),
    Column("boundary_id", ForeignKey("boundary.id"), nullable=False, unique=True),
    Column("token_id", sa.BigInteger, nullable=True),  # the API token it was made with, and ends with
    Column("permissions", sa.BigInteger, nullable=False),
    text_column("recipient_name"),
    text_column("recipient_email"),
    Column("code_by", sa.Text, nullable=False),  # mail | apart
    Column("max_views", sa.Integer, nullable=True),  # NULL: as often as wanted
    Column("views", sa.Integer, nullable=False, server_default="0"),
    text_column("label"),
    Column("created_at", Instant, nullable=False),
    Column("not_after", Instant, nullable=False),
    Column("last_opened_at", Instant, nullable=True),
    Column("revoked_at", Instant, nullable=True),
    Column("revoked_by", sa.BigInteger, nullable=True),
)

share_code = Table(
    "share_code",
    metadata,
    id_column(),
    Column("share_id", ForeignKey("share_link.id"), nullable=False, index=True),
    Column("code_hmac", sa.LargeBinary(32), nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("not_after", Instant, nullable=False),
    Column("tries", sa.Integer, nullable=False, server_default="0"),
    Column("ended_at", Instant, nullable=True),  # used, or followed by another
)

share_session = Table(
    "share_session",
    metadata,
    id_column(),
    Column("share_id", ForeignKey("share_link.id"), nullable=False, index=True),
    Column("token_sha256", sa.LargeBinary(32), nullable=False, unique=True),
    Column("created_at", Instant, nullable=False),
    Column("last_seen_at", Instant, nullable=False),
    Column("idle_until", Instant, nullable=False),
    Column("absolute_until", Instant, nullable=False),
    Column("revoked_at", Instant, nullable=True),
    text_column("address"),
    text_column("user_agent"),
)

album = Table(
    "album",
    metadata,
    id_column(),
    Column("owner_id", ForeignKey("principal.id"), nullable=False, index=True),
    Column("datastore_id", ForeignKey("datastore.id"), nullable=False),
    text_column("name"),
    Column("created_at", Instant, nullable=False),
    Column("not_after", Instant, nullable=False),
    Column("ended_at", Instant, nullable=True),
)

album_item = Table(
    "album_item",
    metadata,
    id_column(),
    Column("album_id", ForeignKey("album.id"), nullable=False, index=True),
    Column("scope_key", sa.BigInteger, nullable=False),  # as of grants: a study or a series
    Column("added_by", sa.BigInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("removed_at", Instant, nullable=True),
)

album_share = Table(
    "album_share",
    metadata,
    id_column(),
    Column("album_id", ForeignKey("album.id"), nullable=False, index=True),
    Column("principal_id", ForeignKey("principal.id"), nullable=False, index=True),
    Column("rights", sa.Text, nullable=False),  # view | add | manage
    Column("permissions", sa.BigInteger, nullable=False),
    Column("not_before", Instant, nullable=False),
    Column("not_after", Instant, nullable=False),
    Column("shared_by", sa.BigInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("revoked_at", Instant, nullable=True),
)

album_grant = Table(
    "album_grant",
    metadata,
    id_column(),
    Column("grant_id", ForeignKey("grants.id"), nullable=False, unique=True),  # of kind "shared"
    Column("album_share_id", ForeignKey("album_share.id"), nullable=False),
    Column("album_item_id", ForeignKey("album_item.id"), nullable=False),
    UniqueConstraint("album_share_id", "album_item_id", "grant_id"),
)
