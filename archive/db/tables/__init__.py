"""Every table of the index database and of the keystore database.

Two MetaData: `metadata` (catalog, access, ledger, jobs) and `keystore_metadata` (data keys and anchors, in a database of its own so
that a backup of the index never holds a data key). Names: `id` is an internal key, `*_pk` refers to one, DICOM attributes carry their
standard name. Instants are aware UTC (types.Instant). Tables in PROTECTED are read and written only under a token (db/guard.py).
"""

from __future__ import annotations

from archive.db.tables.access import (
    api_token,
    association_slot,
    boundary,
    boundary_item,
    credential,
    grants,
    login_attempt,
    membership,
    peer,
    peer_ae_title,
    peer_network,
    pending_peer,
    principal,
    role,
    role_assignment,
    session,
)
from archive.db.tables.alerts import alert
from archive.db.tables.approvals import approval
from archive.db.tables.catalog import (
    NAME_INDEX_POSTGRESQL,
    NAME_INDEX_SQLITE,
    PROTECTED,
    SERIES_INDEX_SQLITE,
    archive_state,
    datastore,
    held,
    instance,
    patient,
    segment,
    series,
    series_pack,
    study,
    study_name_fts,
)
from archive.db.tables.columns import (
    CONVENTION,
    keystore_metadata,
    metadata,
)
from archive.db.tables.deliveries import (
    commitment,
    commitment_item,
    delivery,
    delivery_destination,
    forward_rule,
)
from archive.db.tables.derived import (
    TRIGGERS_POSTGRESQL,
    TRIGGERS_SQLITE,
    access_study,
)
from archive.db.tables.external import (
    external_identity,
    external_state,
)
from archive.db.tables.factors import (
    factor,
    passkey_challenge,
    recovery_code,
)
from archive.db.tables.jobs import (
    job,
    job_item,
)
from archive.db.tables.keystore import (
    anchor,
    data_key,
)
from archive.db.tables.ledger import (
    audit_event,
    audit_object,
    checkpoint,
    ledger_leaf,
    ledger_node,
    statement,
)
from archive.db.tables.oversight import (
    access_review,
    access_review_item,
    auto_rule,
    rule_grant,
)
from archive.db.tables.removal import (
    hold,
    purged,
    purged_key,
)
from archive.db.tables.requests import idempotent_request
from archive.db.tables.sharing import (
    album,
    album_grant,
    album_item,
    album_share,
    share_code,
    share_link,
    share_session,
)
from archive.db.tables.temporary import access_request, break_glass, grant_lineage
from archive.db.tables.witnesses import witness, witness_cosignature
from archive.db.tables.workitems import (
    ups_event,
    ups_subscriber,
    ups_subscription,
    webhook,
    workitem,
    workitem_study,
)
from archive.db.tables.worklist import (
    association_record,
    mpps,
    mpps_step,
    worklist_entry,
    worklist_station,
)

__all__ = [
    "CONVENTION",
    "NAME_INDEX_POSTGRESQL",
    "NAME_INDEX_SQLITE",
    "PROTECTED",
    "SERIES_INDEX_SQLITE",
    "TRIGGERS_POSTGRESQL",
    "TRIGGERS_SQLITE",
    "access_request",
    "access_review",
    "access_review_item",
    "access_study",
    "album",
    "album_grant",
    "album_item",
    "album_share",
    "alert",
    "anchor",
    "api_token",
    "approval",
    "archive_state",
    "association_record",
    "association_slot",
    "audit_event",
    "audit_object",
    "auto_rule",
    "boundary",
    "boundary_item",
    "break_glass",
    "checkpoint",
    "commitment",
    "commitment_item",
    "credential",
    "data_key",
    "datastore",
    "delivery",
    "delivery_destination",
    "external_identity",
    "external_state",
    "factor",
    "forward_rule",
    "grant_lineage",
    "grants",
    "held",
    "hold",
    "idempotent_request",
    "instance",
    "job",
    "job_item",
    "keystore_metadata",
    "ledger_leaf",
    "ledger_node",
    "login_attempt",
    "membership",
    "metadata",
    "mpps",
    "mpps_step",
    "passkey_challenge",
    "patient",
    "peer",
    "peer_ae_title",
    "peer_network",
    "pending_peer",
    "principal",
    "purged",
    "purged_key",
    "recovery_code",
    "role",
    "role_assignment",
    "rule_grant",
    "segment",
    "series",
    "series_pack",
    "session",
    "share_code",
    "share_link",
    "share_session",
    "statement",
    "study",
    "study_name_fts",
    "ups_event",
    "ups_subscriber",
    "ups_subscription",
    "webhook",
    "witness",
    "witness_cosignature",
    "workitem",
    "workitem_study",
    "worklist_entry",
    "worklist_station",
]
