"""Every table of the index database and of the keystore database.

Two MetaData: `metadata` (catalog, access, ledger, jobs) and `keystore_metadata` (data keys and anchors, in a database of its own so
that a backup of the index never holds a data key). Names: `id` is an internal key, `*_pk` refers to one, DICOM attributes carry their
standard name. Instants are aware UTC (types.Instant). Tables in PROTECTED are read and written only under a token (db/guard.py).
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Index, Table, UniqueConstraint

from archive.db.types import BigId, CodePointText, Instant

CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
metadata = sa.MetaData(naming_convention=CONVENTION)
keystore_metadata = sa.MetaData(naming_convention=CONVENTION)

PROTECTED = frozenset({"patient", "study", "series", "instance", "held", "series_pack", "study_name_fts"})
"""Tables that hold what patients' images say; no statement touches them without a token."""


def _id() -> Column[int]:
    return Column("id", BigId, primary_key=True, autoincrement=True)


def _text(name: str, **options: object) -> Column[str]:
    return Column(name, CodePointText, nullable=False, server_default="", **options)  # type: ignore[arg-type]


def _attributes() -> list[Column]:  # type: ignore[type-arg] # mixed column types
    """The level's attributes, and the normal form (dicom.matching.normal) of those whose column or JSON cannot be compared as it is."""
    return [
        Column("attributes", sa.JSON, nullable=False),  # {"GGGGEEEE": element of the DICOM JSON Model}
        Column("normalised", sa.JSON(none_as_null=True), nullable=True),  # {"GGGGEEEE": [text, …]}
    ]


def _location() -> list[Column]:  # type: ignore[type-arg] # mixed column types
    """Where a sealed record lies and what opens it (docs/format.md 2)."""
    return [
        Column("object_id", sa.LargeBinary(16), nullable=False, unique=True),
        Column("key_id", sa.LargeBinary(16), nullable=False),
        Column("segment_id", sa.LargeBinary(16), nullable=False),
        Column("record_offset", sa.BigInteger, nullable=False),
        Column("record_bytes", sa.BigInteger, nullable=False),
        Column("record_kind", sa.SmallInteger, nullable=False, server_default="1"),
        Column("plaintext_bytes", sa.BigInteger, nullable=False),
        Column("part10_bytes", sa.BigInteger, nullable=False),
        Column("dataset_offset", sa.BigInteger, nullable=False),
        Column("sha256", sa.LargeBinary(32), nullable=False),
        Column("leaf", sa.BigInteger, nullable=False),
    ]


# --- catalog -----------------------------------------------------------------------------------------------------------------------

archive_state = Table(
    "archive_state",
    metadata,
    Column("name", sa.Text, primary_key=True),
    Column("value", sa.Text, nullable=False),
)

datastore = Table(
    "datastore",
    metadata,
    _id(),
    Column("uid", sa.LargeBinary(16), nullable=False, unique=True),  # stands in every record's header
    Column("name", sa.Text, nullable=False, unique=True),
    Column("created_at", Instant, nullable=False),
)

patient = Table(
    "patient",
    metadata,
    _id(),
    Column("datastore_id", ForeignKey("datastore.id"), nullable=False),
    _text("issuer"),
    _text("patient_id"),  # (0010,0020) stripped; of a synthetic patient a random word no data set can hold
    Column("synthetic", sa.Boolean, nullable=False, server_default=sa.false()),
    _text("patient_name"),
    _text("patient_birth_date"),
    _text("patient_sex"),
    Column("created_at", Instant, nullable=False),
    UniqueConstraint("datastore_id", "issuer", "patient_id", "synthetic"),
)

study = Table(
    "study",
    metadata,
    _id(),
    Column("datastore_id", ForeignKey("datastore.id"), nullable=False),
    Column("patient_pk", ForeignKey("patient.id"), nullable=False, index=True),
    _text("study_instance_uid"),
    Column("key_id", sa.LargeBinary(16), nullable=False),
    # the patient as this study's first instance names it
    _text("patient_name"),
    _text("patient_name_folded"),  # " alphabetic = ideographic = phonetic " folded, see dicom/matching.py
    _text("patient_id"),
    _text("issuer_of_patient_id"),
    _text("patient_birth_date"),
    _text("patient_sex"),
    _text("study_date"),
    _text("study_time"),
    _text("accession_number"),
    _text("study_id"),
    _text("study_description"),
    _text("study_description_folded"),
    _text("referring_physician_name"),
    _text("referring_physician_name_folded"),
    *_attributes(),  # of patient and study level
    Column("n_series", sa.Integer, nullable=False, server_default="0"),  # live only
    Column("n_instances", sa.Integer, nullable=False, server_default="0"),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    UniqueConstraint("datastore_id", "study_instance_uid"),
    Index("ix_study_date", "datastore_id", "study_date", "id"),
    Index("ix_study_patient_id", "datastore_id", "patient_id"),
    Index("ix_study_accession", "datastore_id", "accession_number"),
    Index("ix_study_name", "datastore_id", "patient_name_folded"),
)

series = Table(
    "series",
    metadata,
    _id(),
    Column("datastore_id", ForeignKey("datastore.id"), nullable=False),
    Column("patient_pk", ForeignKey("patient.id"), nullable=False, index=True),
    Column("study_pk", ForeignKey("study.id"), nullable=False, index=True),
    _text("study_date"),
    Column("department_id", sa.BigInteger, nullable=True),
    Column("restricted", sa.Boolean, nullable=False, server_default=sa.false()),
    _text("series_instance_uid"),
    _text("modality"),
    Column("series_number", sa.BigInteger, nullable=True),
    _text("series_description"),
    _text("series_description_folded"),
    _text("body_part_examined"),
    _text("performed_procedure_step_start_date"),
    _text("performed_procedure_step_start_time"),
    *_attributes(),
    Column("n_instances", sa.Integer, nullable=False, server_default="0"),  # live only
    Column("generation", sa.BigInteger, nullable=False, server_default="0"),  # grows with every instance added or removed
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    UniqueConstraint("datastore_id", "series_instance_uid"),
    Index("ix_series_modality", "datastore_id", "modality", "study_date"),
)

instance = Table(
    "instance",
    metadata,
    _id(),
    Column("datastore_id", ForeignKey("datastore.id"), nullable=False),
    Column("study_pk", ForeignKey("study.id"), nullable=False, index=True),
    Column("series_pk", ForeignKey("series.id"), nullable=False, index=True),
    _text("sop_instance_uid"),
    _text("sop_class_uid"),
    _text("transfer_syntax_uid"),
    Column("instance_number", sa.BigInteger, nullable=True),
    Column("rows", sa.Integer, nullable=True),
    Column("columns", sa.Integer, nullable=True),
    Column("bits_allocated", sa.Integer, nullable=True),
    Column("number_of_frames", sa.Integer, nullable=True),
    *_attributes(),
    *_location(),
    Column("rejected_at", Instant, nullable=True),  # not NULL: rejected, restorable, invisible
    Column("rejected_by", sa.BigInteger, nullable=True),
    _text("rejected_reason"),
    Column("stored_at", Instant, nullable=False),
    UniqueConstraint("datastore_id", "sop_instance_uid"),
    Index("ix_instance_segment", "segment_id", "record_offset"),
)

held = Table(
    "held",
    metadata,
    _id(),
    Column("datastore_id", ForeignKey("datastore.id"), nullable=False),
    Column("kind", sa.Text, nullable=False),  # held (identity contradicts) | conflict (same UID, other bytes) | quarantine (not indexable)
    _text("reason"),
    _text("study_instance_uid"),
    _text("series_instance_uid"),
    _text("sop_instance_uid"),
    _text("sop_class_uid"),
    _text("transfer_syntax_uid"),
    _text("patient_id"),
    _text("issuer_of_patient_id"),
    _text("patient_name"),
    *_location(),
    Column("state", sa.Text, nullable=False, server_default="open"),  # open | accepted | rejected
    Column("decided_by", sa.BigInteger, nullable=True),
    Column("decided_at", Instant, nullable=True),
    Column("created_at", Instant, nullable=False),
    UniqueConstraint("datastore_id", "sop_instance_uid", "sha256"),
)

segment = Table(
    "segment",
    metadata,
    Column("id", sa.LargeBinary(16), primary_key=True),
    Column("name", sa.Text, nullable=False, unique=True),
    Column("state", sa.Text, nullable=False),  # open | closed
    Column("replay_from", sa.BigInteger, nullable=False),  # below it every record has committed or failed for good
    Column("used", sa.BigInteger, nullable=False, server_default="0"),  # set when closed
    Column("sha256", sa.LargeBinary(32), nullable=True),  # of the closed file, set by the background worker
    Column("created_at", Instant, nullable=False),
    Column("closed_at", Instant, nullable=True),
)

series_pack = Table(
    "series_pack",
    metadata,
    Column("series_pk", ForeignKey("series.id", ondelete="CASCADE"), primary_key=True),
    Column("generation", sa.BigInteger, nullable=False),
    Column("object_id", sa.LargeBinary(16), nullable=False),
    Column("key_id", sa.LargeBinary(16), nullable=False),
    Column("length", sa.BigInteger, nullable=False),
    Column("etag", sa.Text, nullable=False),
)

# --- access ------------------------------------------------------------------------------------------------------------------------

principal = Table(
    "principal",
    metadata,
    _id(),
    Column("kind", sa.Text, nullable=False),  # user | service | device | group | console
    Column("name", sa.Text, nullable=False, unique=True),
    _text("full_name"),
    _text("email"),
    Column("enabled", sa.Boolean, nullable=False, server_default=sa.true()),
    Column("created_at", Instant, nullable=False),
    Column("disabled_at", Instant, nullable=True),
    Column("removed_at", Instant, nullable=True),  # a removed principal's name is freed by renaming; its id stays in the ledger
    Column("security_epoch", sa.Integer, nullable=False, server_default="0"),  # raised to end every session at once
)

membership = Table(
    "membership",
    metadata,
    _id(),
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
    _id(),
    Column("name", sa.Text, nullable=False, unique=True),
    Column("permissions", sa.BigInteger, nullable=False),
    Column("builtin", sa.Boolean, nullable=False, server_default=sa.false()),
    Column("created_at", Instant, nullable=False),
)

role_assignment = Table(
    "role_assignment",
    metadata,
    _id(),
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
    _id(),
    Column("datastore_id", ForeignKey("datastore.id"), nullable=False),
    Column("subject_id", ForeignKey("principal.id"), nullable=False),
    Column("effect", sa.SmallInteger, nullable=False),  # 1 allow, 0 deny
    Column("hard", sa.Boolean, nullable=False, server_default=sa.false()),
    Column("role_id", ForeignKey("role.id"), nullable=True),
    Column("permissions", sa.BigInteger, nullable=False),  # resolved copy of role.permissions
    Column("scope_key", sa.BigInteger, nullable=False),  # 0 archive; id*4+1 patient; id*4+2 study; id*4+3 series
    _text("modality"),  # empty: any
    Column("department_id", sa.BigInteger, nullable=True),
    _text("study_date_from"),  # inclusive, YYYYMMDD; empty: open
    _text("study_date_to"),
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
    _text("reason"),
    Column("created_at", Instant, nullable=False),
    Index("ix_grants_subject", "subject_id", "scope_key"),
    Index("ix_grants_scope", "scope_key", "subject_id"),
)

boundary = Table(
    "boundary",
    metadata,
    _id(),
    Column("owner_id", ForeignKey("principal.id"), nullable=False),
    _text("label"),
    Column("not_after", Instant, nullable=False),
)

boundary_item = Table(
    "boundary_item",
    metadata,
    _id(),
    Column("boundary_id", ForeignKey("boundary.id"), nullable=False),
    Column("permissions", sa.BigInteger, nullable=False),
    Column("scope_key", sa.BigInteger, nullable=False),
    Index("ix_boundary_item_scope", "boundary_id", "scope_key"),
)

session = Table(
    "session",
    metadata,
    _id(),
    Column("token_sha256", sa.LargeBinary(32), nullable=False, unique=True),
    Column("principal_id", ForeignKey("principal.id"), nullable=False, index=True),
    Column("epoch", sa.Integer, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("last_seen_at", Instant, nullable=False),
    Column("idle_until", Instant, nullable=False),
    Column("absolute_until", Instant, nullable=False),
    Column("revoked_at", Instant, nullable=True),
    _text("address"),
    _text("user_agent"),
)

api_token = Table(
    "api_token",
    metadata,
    _id(),
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
)

credential = Table(
    "credential",
    metadata,
    _id(),
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
    _id(),
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
    _id(),
    Column("principal_id", ForeignKey("principal.id"), nullable=False, unique=True),
    Column("datastore_id", ForeignKey("datastore.id"), nullable=False),
    Column("name", sa.Text, nullable=False, unique=True),
    Column("certificate_sha256", sa.LargeBinary(32), nullable=True, unique=True),  # NULL: plain, by network and AE title
    Column("certificate_not_after", Instant, nullable=True),
    _text("issuer_of_patient_id"),
    _text("host"),
    Column("port", sa.Integer, nullable=True),
    Column("tls", sa.Boolean, nullable=False, server_default=sa.true()),
    Column("max_associations", sa.Integer, nullable=True),
    Column("enabled", sa.Boolean, nullable=False, server_default=sa.true()),
    Column("created_at", Instant, nullable=False),
    Column("last_seen_at", Instant, nullable=True),
)

peer_ae_title = Table(
    "peer_ae_title",
    metadata,
    _id(),
    Column("peer_id", ForeignKey("peer.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("ae_title", sa.Text, nullable=False),
    UniqueConstraint("peer_id", "ae_title"),
)

peer_network = Table(
    "peer_network",
    metadata,
    _id(),
    Column("peer_id", ForeignKey("peer.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("network", sa.Text, nullable=False),  # CIDR
    UniqueConstraint("peer_id", "network"),
)

pending_peer = Table(
    "pending_peer",
    metadata,
    _id(),
    Column("calling_ae_title", sa.Text, nullable=False),
    Column("address", sa.Text, nullable=False),
    _text("certificate_sha256"),  # hex; empty on the plain listener
    _text("certificate_pem"),
    _text("called_ae_title"),
    _text("reason"),
    Column("attempts", sa.Integer, nullable=False, server_default="1"),
    Column("first_seen_at", Instant, nullable=False),
    Column("last_seen_at", Instant, nullable=False),
    UniqueConstraint("calling_ae_title", "address", "certificate_sha256"),
)

association_slot = Table(
    "association_slot",
    metadata,
    _id(),
    Column("peer_id", sa.BigInteger, nullable=False, index=True),
    Column("worker", sa.Text, nullable=False, index=True),  # "<pid>-<start time>" of the process that holds it
    Column("opened_at", Instant, nullable=False),
)

# --- ledger ------------------------------------------------------------------------------------------------------------------------

ledger_leaf = Table(
    "ledger_leaf",
    metadata,
    Column("n", sa.BigInteger, primary_key=True, autoincrement=False),  # 0, 1, 2 … without a gap
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
    Column("body", sa.LargeBinary, nullable=True),  # salt and canonical JSON, sealed; NULL: erased
)

audit_object = Table(
    "audit_object",
    metadata,
    _id(),
    Column("n", ForeignKey("audit_event.n"), nullable=False, index=True),
    Column("ref", sa.LargeBinary(32), nullable=False, index=True),  # keyed pseudonym of a patient, study or series
)

statement = Table(
    "statement",
    metadata,
    Column("object_id", sa.LargeBinary(16), primary_key=True),
    Column("leaf", sa.BigInteger, nullable=False, index=True),
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

# --- jobs --------------------------------------------------------------------------------------------------------------------------

job = Table(
    "job",
    metadata,
    _id(),
    Column("kind", sa.Text, nullable=False),
    Column("state", sa.Text, nullable=False),  # queued | running | done | failed | interrupted
    Column("subject_id", sa.BigInteger, nullable=True),
    Column("arguments", sa.JSON, nullable=False),
    Column("progress", sa.JSON, nullable=False),
    Column("attempts", sa.Integer, nullable=False, server_default="0"),
    Column("run_at", Instant, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("finished_at", Instant, nullable=True),
    _text("worker"),
    Index("ix_job_queue", "state", "run_at"),
)

job_item = Table(
    "job_item",
    metadata,
    _id(),
    Column("job_id", ForeignKey("job.id"), nullable=False),
    Column("name", sa.Text, nullable=False),  # for an import: path, or "zip path!member"
    Column("outcome", sa.Text, nullable=False),
    _text("reason"),
    UniqueConstraint("job_id", "name"),
)

# --- keystore ----------------------------------------------------------------------------------------------------------------------

data_key = Table(
    "data_key",
    keystore_metadata,
    Column("key_id", sa.LargeBinary(16), primary_key=True),
    Column("datastore", sa.LargeBinary(16), nullable=False),
    Column("study_ref", sa.LargeBinary(32), nullable=False),  # keyed pseudonym of the StudyInstanceUID
    Column("wrapped", sa.LargeBinary, nullable=False),  # overwritten when shredded
    Column("kek_id", sa.LargeBinary(16), nullable=False, index=True),
    Column("kcv", sa.LargeBinary(8), nullable=False),
    Column("state", sa.Text, nullable=False),  # active | retiring | shredded
    Column("created_at", Instant, nullable=False),
    Column("shredded_at", Instant, nullable=True),
    Column("shred_reason", sa.Text, nullable=False, server_default=""),
    Index(
        "uq_data_key_active",
        "datastore",
        "study_ref",
        unique=True,
        sqlite_where=sa.text("state = 'active'"),
        postgresql_where=sa.text("state = 'active'"),
    ),
)

anchor = Table(
    "anchor",
    keystore_metadata,
    Column("name", sa.Text, primary_key=True),  # checkpoint
    Column("size", sa.BigInteger, nullable=False),
    Column("note", sa.LargeBinary, nullable=False),
)

# --- text search over patient names ------------------------------------------------------------------------------------------------
# rowid = study.id. FTS5's secure-delete keeps removed names out of the file's free space; SQLCipher encrypts the rest.

NAME_INDEX_SQLITE = (
    "CREATE VIRTUAL TABLE study_name_fts USING fts5(folded, tokenize='trigram')",
    "INSERT INTO study_name_fts(study_name_fts, rank) VALUES ('secure-delete', 1)",
)
NAME_INDEX_POSTGRESQL = (
    "CREATE EXTENSION IF NOT EXISTS pg_trgm",
    "CREATE INDEX ix_study_name_trgm ON study USING gin (patient_name_folded gin_trgm_ops)",
)
for _statement in NAME_INDEX_SQLITE:
    sa.event.listen(metadata, "after_create", sa.DDL(_statement).execute_if(dialect="sqlite"))  # type: ignore[no-untyped-call]
for _statement in NAME_INDEX_POSTGRESQL:
    sa.event.listen(metadata, "after_create", sa.DDL(_statement).execute_if(dialect="postgresql"))  # type: ignore[no-untyped-call]

study_name_fts = sa.table("study_name_fts", sa.column("rowid", sa.BigInteger), sa.column("folded", sa.Text))
