"""Who asks and what they may touch: principals, roles, grants, sessions, tokens, peers."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Index, Table, UniqueConstraint

from archive.db.tables.columns import id_column, metadata, text_column
from archive.db.types import Instant

principal = Table(
    "principal",
    metadata,
    id_column(),
    Column("kind", sa.Text, nullable=False),  # user | service | device | group | console
    Column("name", sa.Text, nullable=False, unique=True),
    text_column("full_name"),
    text_column("email"),
    Column("enabled", sa.Boolean, nullable=False, server_default=sa.true()),
    Column("created_at", Instant, nullable=False),
    Column("disabled_at", Instant, nullable=True),
    Column("removed_at", Instant, nullable=True),  # a removed principal's name is freed by renaming; its id stays in the ledger
    Column("security_epoch", sa.Integer, nullable=False, server_default="0"),  # raised to end every session at once
)

membership = Table(
    "membership",
    metadata,
    id_column(),
    Column("principal_id", ForeignKey("principal.id"), nullable=False),
    Column("group_id", ForeignKey("principal.id"), nullable=False, index=True),
    Column("not_before", Instant, nullable=False),
    Column("not_after", Instant, nullable=False),
    Column("granted_by", sa.BigInteger, nullable=True),
    UniqueConstraint("principal_id", "group_id"),
)

role = Table(
    "role",
    metadata,
    id_column(),
    Column("name", sa.Text, nullable=False, unique=True),
    Column("permissions", sa.BigInteger, nullable=False),
    Column("builtin", sa.Boolean, nullable=False, server_default=sa.false()),
    Column("created_at", Instant, nullable=False),
    Column("mfa_level", sa.SmallInteger, nullable=False, server_default="0"),  # 1: who has it signs in with a second factor
    Column("idle_s", sa.Integer, nullable=False, server_default="0"),  # of sessions, when stricter than configured; 0: as configured
    Column("max_session_s", sa.Integer, nullable=False, server_default="0"),
    Column("removed_at", Instant, nullable=True),  # a removed role keeps its name, which ended grants and the ledger tell
)

role_assignment = Table(
    "role_assignment",
    metadata,
    id_column(),
    Column("principal_id", ForeignKey("principal.id"), nullable=False, index=True),
    Column("role_id", ForeignKey("role.id"), nullable=False),
    Column("not_before", Instant, nullable=False),
    Column("not_after", Instant, nullable=False),
    Column("revoked_at", Instant, nullable=True),
    Column("granted_by", sa.BigInteger, nullable=True),
    Column("created_at", Instant, nullable=False),
)

grants = Table(
    "grants",
    metadata,
    id_column(),
    Column("datastore_id", ForeignKey("datastore.id"), nullable=False),
    Column("subject_id", ForeignKey("principal.id"), nullable=False),
    Column("effect", sa.SmallInteger, nullable=False),  # 1 allow, 0 deny
    Column("hard", sa.Boolean, nullable=False, server_default=sa.false()),
    Column("role_id", ForeignKey("role.id"), nullable=True),
    Column("permissions", sa.BigInteger, nullable=False),  # resolved copy of role.permissions
    Column("scope_key", sa.BigInteger, nullable=False),  # 0 archive; id*4+1 patient; id*4+2 study; id*4+3 series
    text_column("modality"),  # empty: any
    Column("department_id", sa.BigInteger, nullable=True),
    text_column("study_date_from"),  # inclusive, YYYYMMDD; empty: open
    text_column("study_date_to"),
    Column("not_before", Instant, nullable=False),
    Column("not_after", Instant, nullable=False),
    Column("revoked_at", Instant, nullable=True),
    Column("revoked_by", sa.BigInteger, nullable=True),
    Column("need_context", sa.Integer, nullable=False, server_default="0"),
    Column("kind", sa.Text, nullable=False, server_default="standing"),
    Column("parent_id", sa.BigInteger, nullable=True),
    Column("depth_left", sa.SmallInteger, nullable=False, server_default="0"),
    Column("granted_by", sa.BigInteger, nullable=True),
    Column("approved_by", sa.BigInteger, nullable=True),
    text_column("reason"),
    Column("created_at", Instant, nullable=False),
    Index("ix_grants_subject", "subject_id", "effect", "scope_key"),
    Index("ix_grants_scope", "scope_key", "subject_id"),
    Index("ix_grants_parent", "parent_id"),
)

boundary = Table(
    "boundary",
    metadata,
    id_column(),
    Column("owner_id", ForeignKey("principal.id"), nullable=False),
    text_column("label"),
    Column("not_after", Instant, nullable=False),
)

boundary_item = Table(
    "boundary_item",
    metadata,
    id_column(),
    Column("boundary_id", ForeignKey("boundary.id"), nullable=False),
    Column("permissions", sa.BigInteger, nullable=False),
    Column("scope_key", sa.BigInteger, nullable=False),  # as of grants; or id*4 datastore
    Index("ix_boundary_item_scope", "boundary_id", "scope_key"),
)

session = Table(
    "session",
    metadata,
    id_column(),
    Column("token_sha256", sa.LargeBinary(32), nullable=False, unique=True),
    Column("principal_id", ForeignKey("principal.id"), nullable=False, index=True),
    Column("epoch", sa.Integer, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("last_seen_at", Instant, nullable=False),
    Column("idle_until", Instant, nullable=False),
    Column("absolute_until", Instant, nullable=False),
    Column("revoked_at", Instant, nullable=True),
    text_column("address"),
    text_column("user_agent"),
    Column("auth_level", sa.SmallInteger, nullable=False, server_default="1"),  # 1 password; 2 with a second factor, or a passkey
    Column("authn_at", Instant, nullable=False, server_default="0"),  # when its user last proved who it is
    Column("idle_s", sa.Integer, nullable=False, server_default="900"),
)

api_token = Table(
    "api_token",
    metadata,
    id_column(),
    Column("prefix", sa.Text, nullable=False, unique=True),
    Column("secret_hmac", sa.LargeBinary(32), nullable=False),
    Column("principal_id", ForeignKey("principal.id"), nullable=False, index=True),
    Column("boundary_id", ForeignKey("boundary.id"), nullable=True),
    Column("permissions", sa.BigInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("not_after", Instant, nullable=False),
    Column("last_used_at", Instant, nullable=True),
    Column("revoked_at", Instant, nullable=True),
    Column("created_by", sa.BigInteger, nullable=True),
    Column("parent_id", sa.BigInteger, nullable=True, index=True),  # the token it was made with
    text_column("label"),
    text_column("networks"),  # it is taken from, CIDR, spaces between; empty: any
    text_column("last_address"),
)

credential = Table(
    "credential",
    metadata,
    id_column(),
    Column("principal_id", ForeignKey("principal.id"), nullable=False, index=True),
    Column("kind", sa.Text, nullable=False),  # password
    Column("data", sa.Text, nullable=False),  # PHC string
    Column("must_change", sa.Boolean, nullable=False, server_default=sa.false()),
    Column("created_at", Instant, nullable=False),
    UniqueConstraint("principal_id", "kind"),
)

login_attempt = Table(
    "login_attempt",
    metadata,
    id_column(),
    Column("account_hmac", sa.LargeBinary(32), nullable=False),
    Column("network_hmac", sa.LargeBinary(32), nullable=False),
    Column("at", Instant, nullable=False),
    Column("succeeded", sa.Boolean, nullable=False),
    Index("ix_login_attempt_account", "account_hmac", "at"),
    Index("ix_login_attempt_network", "network_hmac", "at"),
)

peer = Table(
    "peer",
    metadata,
    id_column(),
    Column("principal_id", ForeignKey("principal.id"), nullable=False, unique=True),
    Column("datastore_id", ForeignKey("datastore.id"), nullable=False),
    Column("name", sa.Text, nullable=False, unique=True),
    Column("certificate_sha256", sa.LargeBinary(32), nullable=True, unique=True),  # NULL: plain, by network and AE title
    Column("certificate_not_after", Instant, nullable=True),
    text_column("issuer_of_patient_id"),
    text_column("host"),
    Column("port", sa.Integer, nullable=True),
    Column("tls", sa.Boolean, nullable=False, server_default=sa.true()),
    Column("max_associations", sa.Integer, nullable=True),
    Column("enabled", sa.Boolean, nullable=False, server_default=sa.true()),
    Column("created_at", Instant, nullable=False),
    Column("last_seen_at", Instant, nullable=True),
    text_column("character_set"),  # of what it sends or asks without (0008,0005); empty: the standard's
    Column("called_ae_strict", sa.Boolean, nullable=True),  # NULL: as configured
    Column("private_sop_classes", sa.Boolean, nullable=True),  # NULL: as configured
    Column("relational", sa.Boolean, nullable=False, server_default=sa.false()),
    Column("commitment_same_association", sa.Boolean, nullable=False, server_default=sa.false()),
    Column("modality_without_tls", sa.Boolean, nullable=False, server_default=sa.false()),
    Column("whole_worklist", sa.Boolean, nullable=False, server_default=sa.false()),
    text_column("transfer_syntaxes"),  # taken from it, the preferred first, backslashes between; empty: every one, in its own order
)

peer_ae_title = Table(
    "peer_ae_title",
    metadata,
    id_column(),
    Column("peer_id", ForeignKey("peer.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("ae_title", sa.Text, nullable=False),
    UniqueConstraint("peer_id", "ae_title"),
)

peer_network = Table(
    "peer_network",
    metadata,
    id_column(),
    Column("peer_id", ForeignKey("peer.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("network", sa.Text, nullable=False),  # CIDR
    UniqueConstraint("peer_id", "network"),
)

pending_peer = Table(
    "pending_peer",
    metadata,
    id_column(),
    Column("calling_ae_title", sa.Text, nullable=False),
    Column("address", sa.Text, nullable=False),
    text_column("certificate_sha256"),  # hex; empty on the plain listener
    text_column("certificate_pem"),
    text_column("called_ae_title"),
    text_column("reason"),
    Column("attempts", sa.Integer, nullable=False, server_default="1"),
    Column("first_seen_at", Instant, nullable=False),
    Column("last_seen_at", Instant, nullable=False),
    UniqueConstraint("calling_ae_title", "address", "certificate_sha256"),
)

association_slot = Table(
    "association_slot",
    metadata,
    id_column(),
    Column("peer_id", sa.BigInteger, nullable=False, index=True),
    Column("worker", sa.Text, nullable=False, index=True),  # "<pid>-<start time>" of the process that holds it
    Column("opened_at", Instant, nullable=False),
)
