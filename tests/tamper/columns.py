"""Every column of every table that matters, edited by an insider: what verify says of it, or why it says nothing."""

# ruff: noqa: E501 # a table

from __future__ import annotations

import sqlalchemy as sa

from archive.db import tables
from archive.db.types import Instant

ROWS = {
    "datastore": "name = 'clinical'",
    "patient": "patient_id = 'P1'",
    "study": "study_instance_uid = '1.2.3'",
    "series": "series_instance_uid = '1.2.3.1'",
    "instance": "sop_instance_uid = '1.2.3.1.1'",
    "held": "sop_instance_uid = '1.2.3.1.7'",
    "segment": "state = 'closed'",
    "series_pack": "series_pk = (SELECT id FROM series WHERE series_instance_uid = '1.2.3.1')",
    "archive_state": "name = 'configuration_sha256'",
    "principal": "name = 'eve'",
    "membership": "group_id = (SELECT id FROM principal WHERE name = 'closed')",
    "role": "name = 'reader'",
    "role_assignment": "role_id = (SELECT id FROM role WHERE name = 'auditor')",
    "grants": "effect = 0",
    "boundary": "id = 1",
    "boundary_item": "boundary_id = 1",
    "session": "revoked_at IS NULL",
    "api_token": "boundary_id = 1",
    "credential": "principal_id = (SELECT id FROM principal WHERE name = 'eve')",
    "factor": "principal_id = (SELECT id FROM principal WHERE name = 'bob')",
    "recovery_code": "used_at IS NOT NULL",
    "external_identity": "subject = 'bob-elsewhere'",
    "peer": "name = 'CT1'",
    "peer_ae_title": "ae_title = 'CT1'",
    "peer_network": "network = '127.0.0.1/32'",
    "ledger_leaf": "n = 3",
    "ledger_node": "level = 1 AND position = 1",
    "audit_event": "n = 3",
    "audit_object": "n = (SELECT min(n) FROM audit_object) AND position = 0",
    "statement": "leaf = (SELECT leaf FROM instance WHERE sop_instance_uid = '1.2.3.1.1')",
    "checkpoint": "size = (SELECT max(size) FROM checkpoint)",
    "data_key": "key_id = (SELECT key_id FROM data_key ORDER BY key_id LIMIT 1)",
    "anchor": "name = 'checkpoint'",
    "witness": "name = 'nas'",
    "witness_cosignature": "witness = 'nas'",
}
"""The row that is edited, by table."""


SAID = {
    "datastore": {
        "V04 V12": "id",
        "V04": "uid",
        "V12": "name",
    },
    "patient": {
        "V10": "id datastore_id issuer patient_id synthetic",
    },
    "study": {
        "V10 V12": "id study_instance_uid",
        "V10": (
            "datastore_id patient_pk patient_name patient_name_folded patient_id issuer_of_patient_id patient_birth_date patient_sex "
            "study_date study_time accession_number study_id study_description study_description_folded referring_physician_name "
            "referring_physician_name_folded attributes normalised n_series n_instances"
        ),
    },
    "series": {
        "V10": (
            "id datastore_id patient_pk study_pk study_date department_id restricted series_instance_uid modality series_number "
            "series_description series_description_folded body_part_examined performed_procedure_step_start_date "
            "performed_procedure_step_start_time attributes normalised n_instances"
        ),
    },
    "instance": {
        "V04 V10": "datastore_id",
        "V10": (
            "study_pk series_pk sop_instance_uid sop_class_uid transfer_syntax_uid instance_number rows columns bits_allocated "
            "number_of_frames attributes normalised dataset_offset sha256"
        ),
        "V04 V10 V12": "object_id",
        "V05": "key_id",
        "V01": "segment_id",
        "V04": "record_offset record_kind plaintext_bytes part10_bytes",
        "V11": "record_bytes leaf",
        "V10 V12": "rejected_at",
    },
    "held": {
        "V04": "datastore_id record_offset record_kind plaintext_bytes part10_bytes",
        "V12": "kind state",
        "V10": (
            "study_instance_uid series_instance_uid sop_instance_uid sop_class_uid transfer_syntax_uid patient_id "
            "issuer_of_patient_id patient_name dataset_offset sha256"
        ),
        "V04 V12": "object_id",
        "V05": "key_id",
        "V01": "segment_id",
        "V11": "record_bytes",
        "V11 V12": "leaf",
    },
    "segment": {
        "V10": "id",
        "V01 V03 V10 V15": "name",
        "V03": "sha256",
    },
    "series_pack": {
        "V10": "etag",
    },
    "principal": {
        "V12": "id kind name enabled removed_at",
    },
    "membership": {
        "V12": "principal_id group_id not_before not_after",
    },
    "role": {
        "V12": "name permissions mfa_level idle_s max_session_s removed_at",
    },
    "role_assignment": {
        "V12": "principal_id role_id not_before not_after revoked_at",
    },
    "grants": {
        "V12": (
            "id datastore_id subject_id effect hard role_id permissions scope_key modality department_id study_date_from "
            "study_date_to not_before not_after revoked_at need_context kind depth_left parent_id"
        ),
    },
    "boundary": {
        "V12": "id owner_id not_after",
    },
    "boundary_item": {
        "V12": "boundary_id permissions scope_key",
    },
    "session": {
        "V12": "id token_sha256 principal_id auth_level authn_at idle_s",
    },
    "api_token": {
        "V12": "id secret_hmac principal_id boundary_id permissions not_after revoked_at parent_id networks",
    },
    "credential": {
        "V12": "principal_id kind data",
    },
    "factor": {
        "V12": "principal_id kind sealed",
    },
    "recovery_code": {
        "V12": "principal_id code_hmac",
    },
    "external_identity": {
        "V12": "principal_id issuer subject",
    },
    "peer": {
        "V12": (
            "id datastore_id name certificate_sha256 issuer_of_patient_id host port tls max_associations enabled principal_id "
            "character_set called_ae_strict private_sop_classes relational commitment_same_association "
            "modality_without_tls whole_worklist transfer_syntaxes"
        ),
    },
    "peer_ae_title": {
        "V12": "peer_id ae_title",
    },
    "peer_network": {
        "V12": "peer_id network",
    },
    "ledger_leaf": {
        "V11 V13": "n data hash",
    },
    "ledger_node": {
        "V13": "level position hash",
    },
    "audit_event": {
        "V11 V12 V13": "n",
        "V12": "at kind action outcome principal_id peer_id instances",
        "V12 V13": "body",
    },
    "audit_object": {
        "V12": "n position ref",
    },
    "statement": {
        "V11": "leaf",
        "V10 V11": "object_id envelope",
    },
    "checkpoint": {
        "V12 V13": "size",
        "V13": "root at note",
    },
    "data_key": {
        "V05": "key_id datastore wrapped kek_id kcv",
    },
    "anchor": {
        "V14": "name note",
    },
    "witness": {
        "V14": "name verifier_key",
    },
    "witness_cosignature": {
        "V14": "witness size root at line",
    },
}
"""What `verify` (standard) says of an edited column: by table, the codes and the columns."""

NOT_LOOKED_AT = {
    "a number of the row alone; nothing refers to it": (
        "instance.id held.id series_pack.series_pk membership.id role.id role_assignment.id boundary_item.id credential.id factor.id recovery_code.id external_identity.id "
        "peer_ae_title.id peer_network.id"
    ),
    "a date that decides nothing": (
        "datastore.created_at patient.created_at study.created_at study.updated_at series.created_at series.updated_at "
        "instance.stored_at held.decided_at held.created_at segment.created_at segment.closed_at principal.created_at "
        "principal.disabled_at role.created_at role_assignment.created_at grants.created_at session.created_at "
        "api_token.created_at credential.created_at factor.created_at factor.confirmed_at recovery_code.created_at recovery_code.used_at external_identity.bound_at peer.created_at data_key.created_at data_key.shredded_at"
    ),
    "who did it, and why, stands in the ledger": (
        "instance.rejected_by instance.rejected_reason held.reason held.decided_by membership.granted_by "
        "role_assignment.granted_by grants.revoked_by grants.granted_by grants.approved_by grants.reason "
        "api_token.created_by data_key.shred_reason"
    ),
    "shown to administrators only": (
        "principal.full_name principal.email role.builtin factor.label boundary.label api_token.label session.address session.user_agent "
        "peer.certificate_not_after"
    ),
    "read by nothing: the study's own columns are shown": "patient.patient_name patient.patient_birth_date patient.patient_sex",
    "moves with use": "session.last_seen_at session.idle_until api_token.last_used_at api_token.last_address peer.last_seen_at factor.last_used_at external_identity.last_used_at factor.last_step factor.sign_count",
    "can only end what it belongs to, and be asked for anew": "principal.security_epoch session.epoch session.absolute_until session.revoked_at api_token.prefix credential.must_change factor.credential_sha256",
    "a store to the study is refused; what is there opens by its own row": "study.key_id data_key.study_ref data_key.state",
    "a cache: what does not open or is of another generation is made again": "series.generation series_pack.generation series_pack.object_id series_pack.key_id series_pack.length",
    "the start looks at the files again and puts it right": "segment.state segment.replay_from segment.used archive_state.name archive_state.value",
    "the note beside it is signed, and counts": "anchor.size",
    "the witness itself tells when it is asked next": "witness.size witness.since witness.agreed_at witness.problem witness.told_silent_at",
}
"""Columns whose edit is no finding, by the reason."""


def table_of(name: str) -> sa.Table:
    """The table as the archive declares it."""
    return next(found for found in vars(tables).values() if isinstance(found, sa.Table) and found.name == name)


def edited(column: sa.Column[object]) -> str:
    """SQL that gives another value of the column's type, whatever was there."""
    name = f'"{column.name}"'
    kind = column.type
    if isinstance(kind, sa.JSON):
        return "json_set(coalesce(" + name + ", '{}'), '$.00080090', json('{\"vr\":\"PN\",\"Value\":[{\"Alphabetic\":\"Nobody\"}]}'))"
    if isinstance(kind, sa.LargeBinary):
        other = f"CAST(substr({name}, 1, length({name}) - 1) || X'5A' AS BLOB)"
        more = f"CAST(substr({name}, 1, length({name}) - 1) || X'A5' AS BLOB)"
        return f"CASE WHEN {name} IS NULL THEN zeroblob(32) WHEN substr({name}, -1) = X'5A' THEN {more} ELSE {other} END"
    if isinstance(kind, sa.Boolean):
        return f"coalesce(NOT {name}, 1)"
    if isinstance(kind, sa.Text):
        return f"coalesce({name}, '') || '9'"
    if isinstance(kind, Instant):
        return f"coalesce({name} - 86400000000, 0)"  # a day in microseconds
    return f"{name} + 1000000" if column.primary_key or column.unique else f"coalesce({name} + 1, 1)"


def expected() -> dict[tuple[str, str], str]:
    """The codes of every column, empty where there are none."""
    found = {(table, column): codes for table, by in SAID.items() for codes, names in by.items() for column in names.split()}
    for names in NOT_LOOKED_AT.values():
        for name in names.split():
            table, _, column = name.partition(".")
            assert (table, column) not in found
            found[table, column] = ""
    return found
