"""Scanned instances and sealed records made up for the catalog: nothing is read from a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access.permissions import OBJECT
from archive.access.subject import Subject
from archive.db.engine import Database
from archive.db.location import Location, RecordRef
from archive.db.tables import datastore, grants, principal
from archive.db.types import FOREVER
from archive.dicom.attributes import BY_KEYWORD
from archive.dicom.part10 import Scanned
from archive.index import catalog

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
KEY = b"k" * 16  # zeros would say that its study was purged


def elements(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """DICOM JSON of `{"PatientName": "Doe^John", "Rows": 512, "ImageType": ["A", "B"], "StudyID": ""}`."""
    found = {}
    for keyword, value in values.items():
        attribute = BY_KEYWORD[keyword]
        items = value if isinstance(value, list) else [value]
        if attribute.vr == "PN":
            groups = ("Alphabetic", "Ideographic", "Phonetic")
            items = [{group: text for group, text in zip(groups, item.split("="), strict=False) if text} or None for item in items]
        items = [item if item != "" else None for item in items]
        found[attribute.tag_hex] = {"vr": attribute.vr, "Value": items} if any(item is not None for item in items) else {"vr": attribute.vr}
    return found


def scanned(study: str = "1.1", series: str = "1.1.1", sop: str = "1.1.1.1", **values: Any) -> Scanned:
    """An instance with these UIDs and attributes."""
    return Scanned(
        sop_class_uid=values.pop("SOPClassUID", CT),
        sop_instance_uid=sop,
        study_instance_uid=study,
        series_instance_uid=series,
        transfer_syntax_uid=EXPLICIT_LE,
        dataset_offset=340,
        attributes=elements(values),
        findings=(),
        frames=None,
        preamble="zero",
    )


def entry(datastore_id: int, instance: Scanned, at: datetime, *, issuer: str = "", key_id: bytes = KEY) -> catalog.Entry:
    """The instance sealed in a record of its own."""
    ref = RecordRef(Location(bytes(16), 4096, 8192), key_id, os.urandom(16), bytes(16), 5000, 4000)
    return catalog.Entry(datastore_id, instance, ref, os.urandom(32), 7, at, issuer)


def add_datastore(database: Database, at: datetime, name: str = "clinical") -> int:
    """A datastore's id."""
    with database.begin() as tx:
        return int(tx.execute(sa.insert(datastore), {"uid": os.urandom(16), "name": name, "created_at": at}).inserted_primary_key[0])


def store(database: Database, datastore_id: int, at: datetime, *instances: Scanned, issuer: str = "") -> list[catalog.Inserted]:
    """Insert instances in one transaction."""
    with database.begin() as tx:
        return [catalog.insert(tx, entry(datastore_id, instance, at, issuer=issuer)) for instance in instances]


def add_user(database: Database, at: datetime, name: str = "reader") -> Subject:
    """A user without any grant."""
    with database.begin() as tx:
        row = {"kind": "user", "name": name, "created_at": at}
        return Subject(int(tx.execute(sa.insert(principal), row).inserted_primary_key[0]), name, "user", "web")


def grant(database: Database, datastore_id: int, subject: Subject, at: datetime, scope_key: int = 0, *, effect: int = 1) -> None:
    """Allow (or deny) the subject every object permission on a scope (0: the whole datastore)."""
    row = {
        "datastore_id": datastore_id, "subject_id": subject.principal_id, "effect": effect, "permissions": int(OBJECT),
        "scope_key": scope_key, "not_before": at, "not_after": FOREVER, "created_at": at,
    }  # fmt: skip
    with database.begin() as tx:
        tx.execute(sa.insert(grants), row)
