"""The catalog: datastores, patients, studies, series, instances, what is held, segments and packs."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Index, Table, UniqueConstraint

from archive.db.tables.columns import id_column, metadata, text_column
from archive.db.types import Instant

PROTECTED = frozenset({"patient", "study", "series", "instance", "held", "series_pack", "study_name_fts", "access_study"})
"""Tables that hold what patients' images say; no statement touches them without a token."""


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


archive_state = Table(
    "archive_state",
    metadata,
    Column("name", sa.Text, primary_key=True),
    Column("value", sa.Text, nullable=False),
)

datastore = Table(
    "datastore",
    metadata,
    id_column(),
    Column("uid", sa.LargeBinary(16), nullable=False, unique=True),  # stands in every record's header
    Column("name", sa.Text, nullable=False, unique=True),
    Column("created_at", Instant, nullable=False),
)

patient = Table(
    "patient",
    metadata,
    id_column(),
    Column("datastore_id", ForeignKey("datastore.id"), nullable=False),
    text_column("issuer"),
    text_column("patient_id"),  # (0010,0020) stripped; of a synthetic patient a random word no data set can hold
    Column("synthetic", sa.Boolean, nullable=False, server_default=sa.false()),
    text_column("patient_name"),
    text_column("patient_birth_date"),
    text_column("patient_sex"),
    Column("created_at", Instant, nullable=False),
    UniqueConstraint("datastore_id", "issuer", "patient_id", "synthetic"),
)

study = Table(
    "study",
    metadata,
    id_column(),
    Column("datastore_id", ForeignKey("datastore.id"), nullable=False),
    Column("patient_pk", ForeignKey("patient.id"), nullable=False, index=True),
    text_column("study_instance_uid"),
    Column("key_id", sa.LargeBinary(16), nullable=False),
    # the patient as this study's first instance names it
    text_column("patient_name"),
    text_column("patient_name_folded"),  # " alphabetic = ideographic = phonetic " folded, see dicom/matching.py
    text_column("patient_id"),
    text_column("issuer_of_patient_id"),
    text_column("patient_birth_date"),
    text_column("patient_sex"),
    text_column("study_date"),
    text_column("study_time"),
    text_column("accession_number"),
    text_column("study_id"),
    text_column("study_description"),
    text_column("study_description_folded"),
    text_column("referring_physician_name"),
    text_column("referring_physician_name_folded"),
    *_attributes(),  # of patient and study level
    Column("n_series", sa.Integer, nullable=False, server_default="0"),  # live only
    Column("n_instances", sa.Integer, nullable=False, server_default="0"),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    UniqueConstraint("datastore_id", "study_instance_uid"),
    Index("ix_study_date", "datastore_id", "study_date", "study_time", "id"),
    Index("ix_study_order", "id", "datastore_id", "study_date", "study_time", "patient_name_folded"),
    Index("ix_study_patient_id", "datastore_id", "patient_id"),
    Index("ix_study_accession", "datastore_id", "accession_number"),
    Index("ix_study_name", "datastore_id", "patient_name_folded"),
)

series = Table(
    "series",
    metadata,
    id_column(),
    Column("datastore_id", ForeignKey("datastore.id"), nullable=False),
    Column("patient_pk", ForeignKey("patient.id"), nullable=False, index=True),
    Column("study_pk", ForeignKey("study.id"), nullable=False, index=True),
    text_column("study_date"),
    Column("department_id", sa.BigInteger, nullable=True),
    Column("restricted", sa.Boolean, nullable=False, server_default=sa.false()),
    text_column("series_instance_uid"),
    text_column("modality"),
    Column("series_number", sa.BigInteger, nullable=True),
    text_column("series_description"),
    text_column("series_description_folded"),
    text_column("body_part_examined"),
    text_column("performed_procedure_step_start_date"),
    text_column("performed_procedure_step_start_time"),
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
    id_column(),
    Column("datastore_id", ForeignKey("datastore.id"), nullable=False),
    Column("study_pk", ForeignKey("study.id"), nullable=False),  # no index: instances of a study are found through its series
    Column("series_pk", ForeignKey("series.id"), nullable=False, index=True),
    text_column("sop_instance_uid"),
    text_column("sop_class_uid"),
    text_column("transfer_syntax_uid"),
    Column("instance_number", sa.BigInteger, nullable=True),
    Column("rows", sa.Integer, nullable=True),
    Column("columns", sa.Integer, nullable=True),
    Column("bits_allocated", sa.Integer, nullable=True),
    Column("number_of_frames", sa.Integer, nullable=True),
    *_attributes(),
    *_location(),
    Column("rejected_at", Instant, nullable=True),  # not NULL: rejected, restorable, invisible
    Column("rejected_by", sa.BigInteger, nullable=True),
    text_column("rejected_reason"),
    Column("stored_at", Instant, nullable=False),
    UniqueConstraint("datastore_id", "sop_instance_uid"),
    Index("ix_instance_segment", "segment_id", "record_offset"),
)

held = Table(
    "held",
    metadata,
    id_column(),
    Column("datastore_id", ForeignKey("datastore.id"), nullable=False),
    Column("kind", sa.Text, nullable=False),  # held (identity contradicts) | conflict (same UID, other bytes) | quarantine (not indexable)
    text_column("reason"),
    text_column("study_instance_uid"),
    text_column("series_instance_uid"),
    text_column("sop_instance_uid"),
    text_column("sop_class_uid"),
    text_column("transfer_syntax_uid"),
    text_column("patient_id"),
    text_column("issuer_of_patient_id"),
    text_column("patient_name"),
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
    Column("used", sa.BigInteger, nullable=False, server_default="0"),  # set when closed; before, how far changes of state go
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

# rowid = study.id. FTS5's secure-delete keeps removed names out of the file's free space; SQLCipher encrypts the rest.

NAME_INDEX_SQLITE = (
    "CREATE VIRTUAL TABLE study_name_fts USING fts5(folded, tokenize='trigram')",
    "INSERT INTO study_name_fts(study_name_fts, rank) VALUES ('secure-delete', 1)",
)
NAME_INDEX_POSTGRESQL = (
    "CREATE EXTENSION IF NOT EXISTS pg_trgm",
    "CREATE INDEX ix_study_name_trgm ON study USING gin (patient_name_folded gin_trgm_ops)",
)
# All that the condition on series reads, without the row: in SQLCipher each page of rows is decrypted first. PostgreSQL would have to
# write every index of a series anew with each instance.
SERIES_INDEX_SQLITE = (
    (
        "CREATE INDEX ix_series_condition ON series"
        " (study_pk, n_instances, restricted, modality, patient_pk, datastore_id, study_date, department_id)"
    ),
)
for _statement in (*NAME_INDEX_SQLITE, *SERIES_INDEX_SQLITE):
    sa.event.listen(metadata, "after_create", sa.DDL(_statement).execute_if(dialect="sqlite"))  # type: ignore[no-untyped-call]
for _statement in NAME_INDEX_POSTGRESQL:
    sa.event.listen(metadata, "after_create", sa.DDL(_statement).execute_if(dialect="postgresql"))  # type: ignore[no-untyped-call]

study_name_fts = sa.table("study_name_fts", sa.column("rowid", sa.BigInteger), sa.column("folded", sa.Text))
