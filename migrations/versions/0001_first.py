"""The index: catalog, access, ledger and jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
CODE_POINT_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
NAME_INDEX = {
    "sqlite": (
        "CREATE VIRTUAL TABLE study_name_fts USING fts5(folded, tokenize='trigram')",
        "INSERT INTO study_name_fts(study_name_fts, rank) VALUES ('secure-delete', 1)",
    ),
    "postgresql": (
        "CREATE EXTENSION IF NOT EXISTS pg_trgm",
        "CREATE INDEX ix_study_name_trgm ON study USING gin (patient_name_folded gin_trgm_ops)",
    ),
}


def upgrade() -> None:  # noqa: PLR0915 # one statement a table
    """Create every table."""
    op.create_table(
        "archive_state",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_archive_state")),
    )
    op.create_table(
        "association_slot",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("peer_id", sa.BigInteger(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("opened_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_association_slot")),
    )
    op.create_index(op.f("ix_association_slot_peer_id"), "association_slot", ["peer_id"], unique=False)
    op.create_index(op.f("ix_association_slot_worker"), "association_slot", ["worker"], unique=False)
    op.create_table(
        "checkpoint",
        sa.Column("size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("root", sa.LargeBinary(length=32), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("note", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("size", name=op.f("pk_checkpoint")),
    )
    op.create_table(
        "datastore",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("uid", sa.LargeBinary(length=16), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datastore")),
        sa.UniqueConstraint("name", name=op.f("uq_datastore_name")),
        sa.UniqueConstraint("uid", name=op.f("uq_datastore_uid")),
    )
    op.create_table(
        "job",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("subject_id", sa.BigInteger(), nullable=True),
        sa.Column("arguments", sa.JSON(), nullable=False),
        sa.Column("progress", sa.JSON(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("run_at", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.Column("worker", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job")),
    )
    op.create_index("ix_job_queue", "job", ["state", "run_at"], unique=False)
    op.create_table(
        "ledger_leaf",
        sa.Column("n", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.PrimaryKeyConstraint("n", name=op.f("pk_ledger_leaf")),
    )
    op.create_table(
        "ledger_node",
        sa.Column("level", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.PrimaryKeyConstraint("level", "position", name=op.f("pk_ledger_node")),
    )
    op.create_table(
        "login_attempt",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("account_hmac", sa.LargeBinary(length=32), nullable=False),
        sa.Column("network_hmac", sa.LargeBinary(length=32), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("succeeded", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_login_attempt")),
    )
    op.create_index("ix_login_attempt_account", "login_attempt", ["account_hmac", "at"], unique=False)
    op.create_index("ix_login_attempt_network", "login_attempt", ["network_hmac", "at"], unique=False)
    op.create_table(
        "pending_peer",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("calling_ae_title", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("certificate_sha256", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("certificate_pem", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("called_ae_title", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("reason", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="1", nullable=False),
        sa.Column("first_seen_at", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pending_peer")),
        sa.UniqueConstraint(
            "calling_ae_title", "address", "certificate_sha256", name=op.f("uq_pending_peer_calling_ae_title_address_certificate_sha256")
        ),
    )
    op.create_table(
        "principal",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("full_name", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("email", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("enabled", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("disabled_at", sa.BigInteger(), nullable=True),
        sa.Column("removed_at", sa.BigInteger(), nullable=True),
        sa.Column("security_epoch", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_principal")),
        sa.UniqueConstraint("name", name=op.f("uq_principal_name")),
    )
    op.create_table(
        "role",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("permissions", sa.BigInteger(), nullable=False),
        sa.Column("builtin", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_role")),
        sa.UniqueConstraint("name", name=op.f("uq_role_name")),
    )
    op.create_table(
        "segment",
        sa.Column("id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("replay_from", sa.BigInteger(), nullable=False),
        sa.Column("used", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("sha256", sa.LargeBinary(length=32), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("closed_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_segment")),
        sa.UniqueConstraint("name", name=op.f("uq_segment_name")),
    )
    op.create_table(
        "statement",
        sa.Column("object_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("leaf", sa.BigInteger(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("object_id", name=op.f("pk_statement")),
    )
    op.create_index(op.f("ix_statement_leaf"), "statement", ["leaf"], unique=False)
    op.create_table(
        "audit_event",
        sa.Column("n", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Integer(), nullable=False),
        sa.Column("principal_id", sa.BigInteger(), nullable=True),
        sa.Column("peer_id", sa.BigInteger(), nullable=True),
        sa.Column("instances", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["n"], ["ledger_leaf.n"], name=op.f("fk_audit_event_n_ledger_leaf")),
        sa.PrimaryKeyConstraint("n", name=op.f("pk_audit_event")),
    )
    op.create_index(op.f("ix_audit_event_at"), "audit_event", ["at"], unique=False)
    op.create_index(op.f("ix_audit_event_principal_id"), "audit_event", ["principal_id"], unique=False)
    op.create_table(
        "boundary",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("owner_id", BIG_ID, nullable=False),
        sa.Column("label", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("not_after", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["principal.id"], name=op.f("fk_boundary_owner_id_principal")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_boundary")),
    )
    op.create_table(
        "credential",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("principal_id", BIG_ID, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("must_change", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.id"], name=op.f("fk_credential_principal_id_principal")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_credential")),
        sa.UniqueConstraint("principal_id", "kind", name=op.f("uq_credential_principal_id_kind")),
    )
    op.create_index(op.f("ix_credential_principal_id"), "credential", ["principal_id"], unique=False)
    op.create_table(
        "grants",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("datastore_id", BIG_ID, nullable=False),
        sa.Column("subject_id", BIG_ID, nullable=False),
        sa.Column("effect", sa.SmallInteger(), nullable=False),
        sa.Column("hard", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("role_id", BIG_ID, nullable=True),
        sa.Column("permissions", sa.BigInteger(), nullable=False),
        sa.Column("scope_key", sa.BigInteger(), nullable=False),
        sa.Column("modality", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("department_id", sa.BigInteger(), nullable=True),
        sa.Column("study_date_from", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("study_date_to", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("not_before", sa.BigInteger(), nullable=False),
        sa.Column("not_after", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_by", sa.BigInteger(), nullable=True),
        sa.Column("need_context", sa.Integer(), server_default="0", nullable=False),
        sa.Column("kind", sa.Text(), server_default="standing", nullable=False),
        sa.Column("parent_id", sa.BigInteger(), nullable=True),
        sa.Column("depth_left", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("granted_by", sa.BigInteger(), nullable=True),
        sa.Column("approved_by", sa.BigInteger(), nullable=True),
        sa.Column("reason", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["datastore_id"], ["datastore.id"], name=op.f("fk_grants_datastore_id_datastore")),
        sa.ForeignKeyConstraint(["role_id"], ["role.id"], name=op.f("fk_grants_role_id_role")),
        sa.ForeignKeyConstraint(["subject_id"], ["principal.id"], name=op.f("fk_grants_subject_id_principal")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_grants")),
    )
    op.create_index("ix_grants_scope", "grants", ["scope_key", "subject_id"], unique=False)
    op.create_index("ix_grants_subject", "grants", ["subject_id", "scope_key"], unique=False)
    op.create_table(
        "held",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("datastore_id", BIG_ID, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("reason", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("study_instance_uid", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("series_instance_uid", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("sop_instance_uid", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("sop_class_uid", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("transfer_syntax_uid", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("patient_id", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("issuer_of_patient_id", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("patient_name", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("object_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("key_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("segment_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("record_offset", sa.BigInteger(), nullable=False),
        sa.Column("record_bytes", sa.BigInteger(), nullable=False),
        sa.Column("record_kind", sa.SmallInteger(), server_default="1", nullable=False),
        sa.Column("plaintext_bytes", sa.BigInteger(), nullable=False),
        sa.Column("part10_bytes", sa.BigInteger(), nullable=False),
        sa.Column("dataset_offset", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("leaf", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), server_default="open", nullable=False),
        sa.Column("decided_by", sa.BigInteger(), nullable=True),
        sa.Column("decided_at", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["datastore_id"], ["datastore.id"], name=op.f("fk_held_datastore_id_datastore")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_held")),
        sa.UniqueConstraint("datastore_id", "sop_instance_uid", "sha256", name=op.f("uq_held_datastore_id_sop_instance_uid_sha256")),
        sa.UniqueConstraint("object_id", name=op.f("uq_held_object_id")),
    )
    op.create_table(
        "job_item",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("job_id", BIG_ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("reason", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_job_item_job_id_job")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_item")),
        sa.UniqueConstraint("job_id", "name", name=op.f("uq_job_item_job_id_name")),
    )
    op.create_table(
        "membership",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("principal_id", BIG_ID, nullable=False),
        sa.Column("group_id", BIG_ID, nullable=False),
        sa.Column("not_before", sa.BigInteger(), nullable=False),
        sa.Column("not_after", sa.BigInteger(), nullable=False),
        sa.Column("granted_by", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["group_id"], ["principal.id"], name=op.f("fk_membership_group_id_principal")),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.id"], name=op.f("fk_membership_principal_id_principal")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_membership")),
        sa.UniqueConstraint("principal_id", "group_id", name=op.f("uq_membership_principal_id_group_id")),
    )
    op.create_index(op.f("ix_membership_group_id"), "membership", ["group_id"], unique=False)
    op.create_table(
        "patient",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("datastore_id", BIG_ID, nullable=False),
        sa.Column("issuer", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("patient_id", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("synthetic", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("patient_name", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("patient_birth_date", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("patient_sex", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["datastore_id"], ["datastore.id"], name=op.f("fk_patient_datastore_id_datastore")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_patient")),
        sa.UniqueConstraint(
            "datastore_id", "issuer", "patient_id", "synthetic", name=op.f("uq_patient_datastore_id_issuer_patient_id_synthetic")
        ),
    )
    op.create_table(
        "peer",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("principal_id", BIG_ID, nullable=False),
        sa.Column("datastore_id", BIG_ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("certificate_sha256", sa.LargeBinary(length=32), nullable=True),
        sa.Column("certificate_not_after", sa.BigInteger(), nullable=True),
        sa.Column("issuer_of_patient_id", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("host", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("port", sa.Integer(), nullable=True),
        sa.Column("tls", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("max_associations", sa.Integer(), nullable=True),
        sa.Column("enabled", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["datastore_id"], ["datastore.id"], name=op.f("fk_peer_datastore_id_datastore")),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.id"], name=op.f("fk_peer_principal_id_principal")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_peer")),
        sa.UniqueConstraint("certificate_sha256", name=op.f("uq_peer_certificate_sha256")),
        sa.UniqueConstraint("name", name=op.f("uq_peer_name")),
        sa.UniqueConstraint("principal_id", name=op.f("uq_peer_principal_id")),
    )
    op.create_table(
        "role_assignment",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("principal_id", BIG_ID, nullable=False),
        sa.Column("role_id", BIG_ID, nullable=False),
        sa.Column("not_before", sa.BigInteger(), nullable=False),
        sa.Column("not_after", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.Column("granted_by", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.id"], name=op.f("fk_role_assignment_principal_id_principal")),
        sa.ForeignKeyConstraint(["role_id"], ["role.id"], name=op.f("fk_role_assignment_role_id_role")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_role_assignment")),
    )
    op.create_index(op.f("ix_role_assignment_principal_id"), "role_assignment", ["principal_id"], unique=False)
    op.create_table(
        "session",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("token_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("principal_id", BIG_ID, nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_at", sa.BigInteger(), nullable=False),
        sa.Column("idle_until", sa.BigInteger(), nullable=False),
        sa.Column("absolute_until", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.Column("address", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("user_agent", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.id"], name=op.f("fk_session_principal_id_principal")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_session")),
        sa.UniqueConstraint("token_sha256", name=op.f("uq_session_token_sha256")),
    )
    op.create_index(op.f("ix_session_principal_id"), "session", ["principal_id"], unique=False)
    op.create_table(
        "api_token",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("secret_hmac", sa.LargeBinary(length=32), nullable=False),
        sa.Column("principal_id", BIG_ID, nullable=False),
        sa.Column("boundary_id", BIG_ID, nullable=True),
        sa.Column("permissions", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("not_after", sa.BigInteger(), nullable=False),
        sa.Column("last_used_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.Column("created_by", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["boundary_id"], ["boundary.id"], name=op.f("fk_api_token_boundary_id_boundary")),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.id"], name=op.f("fk_api_token_principal_id_principal")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_token")),
        sa.UniqueConstraint("prefix", name=op.f("uq_api_token_prefix")),
    )
    op.create_index(op.f("ix_api_token_principal_id"), "api_token", ["principal_id"], unique=False)
    op.create_table(
        "audit_object",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("ref", sa.LargeBinary(length=32), nullable=False),
        sa.ForeignKeyConstraint(["n"], ["audit_event.n"], name=op.f("fk_audit_object_n_audit_event")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_object")),
    )
    op.create_index(op.f("ix_audit_object_n"), "audit_object", ["n"], unique=False)
    op.create_index(op.f("ix_audit_object_ref"), "audit_object", ["ref"], unique=False)
    op.create_table(
        "boundary_item",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("boundary_id", BIG_ID, nullable=False),
        sa.Column("permissions", sa.BigInteger(), nullable=False),
        sa.Column("scope_key", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["boundary_id"], ["boundary.id"], name=op.f("fk_boundary_item_boundary_id_boundary")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_boundary_item")),
    )
    op.create_index("ix_boundary_item_scope", "boundary_item", ["boundary_id", "scope_key"], unique=False)
    op.create_table(
        "peer_ae_title",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("peer_id", BIG_ID, nullable=False),
        sa.Column("ae_title", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["peer_id"], ["peer.id"], name=op.f("fk_peer_ae_title_peer_id_peer"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_peer_ae_title")),
        sa.UniqueConstraint("peer_id", "ae_title", name=op.f("uq_peer_ae_title_peer_id_ae_title")),
    )
    op.create_index(op.f("ix_peer_ae_title_peer_id"), "peer_ae_title", ["peer_id"], unique=False)
    op.create_table(
        "peer_network",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("peer_id", BIG_ID, nullable=False),
        sa.Column("network", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["peer_id"], ["peer.id"], name=op.f("fk_peer_network_peer_id_peer"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_peer_network")),
        sa.UniqueConstraint("peer_id", "network", name=op.f("uq_peer_network_peer_id_network")),
    )
    op.create_index(op.f("ix_peer_network_peer_id"), "peer_network", ["peer_id"], unique=False)
    op.create_table(
        "study",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("datastore_id", BIG_ID, nullable=False),
        sa.Column("patient_pk", BIG_ID, nullable=False),
        sa.Column("study_instance_uid", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("key_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("patient_name", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("patient_name_folded", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("patient_id", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("issuer_of_patient_id", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("patient_birth_date", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("patient_sex", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("study_date", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("study_time", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("accession_number", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("study_id", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("study_description", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("study_description_folded", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("referring_physician_name", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("referring_physician_name_folded", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("attributes", sa.JSON(), nullable=False),
        sa.Column("normalised", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("n_series", sa.Integer(), server_default="0", nullable=False),
        sa.Column("n_instances", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["datastore_id"], ["datastore.id"], name=op.f("fk_study_datastore_id_datastore")),
        sa.ForeignKeyConstraint(["patient_pk"], ["patient.id"], name=op.f("fk_study_patient_pk_patient")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_study")),
        sa.UniqueConstraint("datastore_id", "study_instance_uid", name=op.f("uq_study_datastore_id_study_instance_uid")),
    )
    op.create_index("ix_study_accession", "study", ["datastore_id", "accession_number"], unique=False)
    op.create_index("ix_study_date", "study", ["datastore_id", "study_date", "id"], unique=False)
    op.create_index("ix_study_name", "study", ["datastore_id", "patient_name_folded"], unique=False)
    op.create_index("ix_study_patient_id", "study", ["datastore_id", "patient_id"], unique=False)
    op.create_index(op.f("ix_study_patient_pk"), "study", ["patient_pk"], unique=False)
    op.create_table(
        "series",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("datastore_id", BIG_ID, nullable=False),
        sa.Column("patient_pk", BIG_ID, nullable=False),
        sa.Column("study_pk", BIG_ID, nullable=False),
        sa.Column("study_date", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("department_id", sa.BigInteger(), nullable=True),
        sa.Column("restricted", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("series_instance_uid", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("modality", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("series_number", sa.BigInteger(), nullable=True),
        sa.Column("series_description", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("series_description_folded", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("body_part_examined", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("performed_procedure_step_start_date", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("performed_procedure_step_start_time", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("attributes", sa.JSON(), nullable=False),
        sa.Column("normalised", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("n_instances", sa.Integer(), server_default="0", nullable=False),
        sa.Column("generation", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["datastore_id"], ["datastore.id"], name=op.f("fk_series_datastore_id_datastore")),
        sa.ForeignKeyConstraint(["patient_pk"], ["patient.id"], name=op.f("fk_series_patient_pk_patient")),
        sa.ForeignKeyConstraint(["study_pk"], ["study.id"], name=op.f("fk_series_study_pk_study")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_series")),
        sa.UniqueConstraint("datastore_id", "series_instance_uid", name=op.f("uq_series_datastore_id_series_instance_uid")),
    )
    op.create_index("ix_series_modality", "series", ["datastore_id", "modality", "study_date"], unique=False)
    op.create_index(op.f("ix_series_patient_pk"), "series", ["patient_pk"], unique=False)
    op.create_index(op.f("ix_series_study_pk"), "series", ["study_pk"], unique=False)
    op.create_table(
        "instance",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("datastore_id", BIG_ID, nullable=False),
        sa.Column("study_pk", BIG_ID, nullable=False),
        sa.Column("series_pk", BIG_ID, nullable=False),
        sa.Column("sop_instance_uid", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("sop_class_uid", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("transfer_syntax_uid", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("instance_number", sa.BigInteger(), nullable=True),
        sa.Column("rows", sa.Integer(), nullable=True),
        sa.Column("columns", sa.Integer(), nullable=True),
        sa.Column("bits_allocated", sa.Integer(), nullable=True),
        sa.Column("number_of_frames", sa.Integer(), nullable=True),
        sa.Column("attributes", sa.JSON(), nullable=False),
        sa.Column("normalised", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("object_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("key_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("segment_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("record_offset", sa.BigInteger(), nullable=False),
        sa.Column("record_bytes", sa.BigInteger(), nullable=False),
        sa.Column("record_kind", sa.SmallInteger(), server_default="1", nullable=False),
        sa.Column("plaintext_bytes", sa.BigInteger(), nullable=False),
        sa.Column("part10_bytes", sa.BigInteger(), nullable=False),
        sa.Column("dataset_offset", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("leaf", sa.BigInteger(), nullable=False),
        sa.Column("rejected_at", sa.BigInteger(), nullable=True),
        sa.Column("rejected_by", sa.BigInteger(), nullable=True),
        sa.Column("rejected_reason", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("stored_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["datastore_id"], ["datastore.id"], name=op.f("fk_instance_datastore_id_datastore")),
        sa.ForeignKeyConstraint(["series_pk"], ["series.id"], name=op.f("fk_instance_series_pk_series")),
        sa.ForeignKeyConstraint(["study_pk"], ["study.id"], name=op.f("fk_instance_study_pk_study")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instance")),
        sa.UniqueConstraint("datastore_id", "sop_instance_uid", name=op.f("uq_instance_datastore_id_sop_instance_uid")),
        sa.UniqueConstraint("object_id", name=op.f("uq_instance_object_id")),
    )
    op.create_index("ix_instance_segment", "instance", ["segment_id", "record_offset"], unique=False)
    op.create_index(op.f("ix_instance_series_pk"), "instance", ["series_pk"], unique=False)
    op.create_index(op.f("ix_instance_study_pk"), "instance", ["study_pk"], unique=False)
    op.create_table(
        "series_pack",
        sa.Column("series_pk", BIG_ID, nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("object_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("key_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("length", sa.BigInteger(), nullable=False),
        sa.Column("etag", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["series_pk"], ["series.id"], name=op.f("fk_series_pack_series_pk_series"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("series_pk", name=op.f("pk_series_pack")),
    )
    for statement in NAME_INDEX[op.get_context().dialect.name]:
        op.execute(statement)
