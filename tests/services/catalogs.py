"""What an index holds, told without the numbers a rebuild gives anew: the oracle of rebuild, backup and restore."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from archive.access import policy
from archive.db.tables import (
    access_study,
    boundary_item,
    datastore,
    grants,
    held,
    instance,
    patient,
    segment,
    series,
    statement,
    study,
    study_name_fts,
)
from archive.node import Node
from archive.services import targets
from tests.services import archives

NUMBERS = {"id", "patient_pk", "study_pk", "series_pk", "datastore_id"}


def _rows(tx: sa.Connection, query: sa.Select[Any]) -> list[dict[str, Any]]:
    return [dict(row) for row in policy.run_as(tx, policy.system("verify"), query).mappings()]


def _told(row: dict[str, Any], *without: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in NUMBERS | set(without)}


def _unsaid(row: dict[str, Any], used: set[int]) -> list[str]:
    """A nameless patient has a random word; one that is only expected has no record that says when it came."""
    return (["patient_id"] if row["synthetic"] else []) + ([] if row["id"] in used else ["created_at"])


def catalog(node: Node, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Every column of patient, study, series, instance, held and statement, joined by identifiers; `without` leaves columns out."""
    with node.core.database.read() as tx:
        patients = {row["id"]: row for row in _rows(tx, sa.select(patient))}
        studies = {row["id"]: row for row in _rows(tx, sa.select(study))}
        serieses = {row["id"]: row for row in _rows(tx, sa.select(series))}
        named = {
            pk: ("nameless", "") if row["synthetic"] else (row["issuer"], row["patient_id"]) for pk, row in patients.items()
        }
        uid = {pk: row["study_instance_uid"] for pk, row in studies.items()}
        series_uid = {pk: row["series_instance_uid"] for pk, row in serieses.items()}
        used = {row["patient_pk"] for row in studies.values()}
        found: dict[str, Any] = {
            "patient": sorted(repr(_told(row, *_unsaid(row, used), *without)) for row in patients.values()),
            "study": {uid[pk]: (named[row["patient_pk"]], _told(row, *without)) for pk, row in studies.items()},
            "series": {
                series_uid[pk]: (uid[row["study_pk"]], named[row["patient_pk"]], _told(row, *without)) for pk, row in serieses.items()
            },
            "instance": {
                row["sop_instance_uid"]: (uid[row["study_pk"]], series_uid[row["series_pk"]], _told(row, *without))
                for row in _rows(tx, sa.select(instance))
            },
            "held": {row["object_id"]: _told(row, *without) for row in _rows(tx, sa.select(held))},
            "statement": {row["object_id"]: (row["leaf"], row["envelope"]) for row in _rows(tx, sa.select(statement))},
        }
        if tx.dialect.name == "sqlite":
            names = _rows(tx, sa.select(study_name_fts.c.rowid, study_name_fts.c.folded))
            found["names"] = {uid[row["rowid"]]: row["folded"] for row in names}
    return found


def access(node: Node) -> dict[str, Any]:
    """What every grant and boundary is about, and which studies each subject is led to."""
    with node.core.database.read() as tx:
        about = targets.captured(tx)
        studies = {row["id"]: row["study_instance_uid"] for row in _rows(tx, sa.select(study))}
        led = {(row["subject_id"], studies[row["study_pk"]]) for row in _rows(tx, sa.select(access_study))}
        kept = {row["id"]: {name: value for name, value in row.items() if name != "scope_key"} for row in _rows(tx, sa.select(grants))}
        stores = [(row["id"], row["uid"], row["name"]) for row in _rows(tx, sa.select(datastore))]
    return {"grants": kept, "about": about[grants], "bounds": about[boundary_item], "led": led, "datastores": stores}


def segments(node: Node) -> dict[str, Any]:
    """The rows of segments."""
    with node.core.database.read() as tx:
        return {row["name"]: row for row in _rows(tx, sa.select(segment))}


def visible(node: Node, name: str, *studies: str) -> dict[str, bytes]:
    """What a user reads of some studies, by SOP Instance UID."""
    subject = archives.user(node, name)
    found: dict[str, bytes] = {}
    for uid in studies:
        try:
            rows = node.retrieve.instances(subject, "clinical", uid)
        except Exception:  # noqa: BLE001 # nothing there for this one
            continue
        found |= {one.sop_instance_uid: b"".join(bytes(view) for view in node.retrieve.open(subject, one)) for one in rows}
    return found
