"""What a boundary is to name, as its maker says it: each found inside what the maker may search, absent and unseen alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from archive.access import grants, policy
from archive.access.permissions import Permission
from archive.access.policy import Scope
from archive.access.subject import Subject
from archive.db.tables import patient
from archive.errors import InvalidRequest, NotFound

MOST_NAMED = 1000


@dataclass(frozen=True, slots=True)
class Named:
    """Studies and series by UID and patients by PatientID, all of one datastore, and whole datastores; nothing: no boundary.

    `issuer` tells patients of the same PatientID apart.
    """

    studies: Sequence[str] = ()
    series: Sequence[str] = ()
    patients: Sequence[str] = ()
    datastores: Sequence[str] = ()
    datastore: str = "clinical"
    issuer: str | None = None


def scope_keys(tx: sa.Connection, subject: Subject, named: Named, *, at: datetime) -> list[int]:
    """Return what a boundary keeps of these, each once.

    Raises:
        NotFound: one that is not there, or that the subject may not search.
        InvalidRequest: too many, or a PatientID that several patients have whom the subject sees.
    """
    texts = (*named.studies, *named.series, *named.patients, *named.datastores, named.datastore, named.issuer or "")
    if any("\0" in text for text in texts):
        message = "nothing has such a name"
        raise NotFound(message, remedy="check what is named")
    if len(texts) > MOST_NAMED:
        message = f"a boundary names {MOST_NAMED} things at most"
        raise InvalidRequest(message, remedy="name patients or datastores in place of their studies")
    found = {_reached(tx, subject, name, at) * 4 for name in named.datastores}
    if named.studies or named.series or named.patients:
        store, scope = _reached(tx, subject, named.datastore, at), policy.scope_of(subject, Permission.SEARCH, at)
        found.update(grants.visible_key(tx, scope, store, "study", uid) for uid in named.studies)
        found.update(grants.visible_key(tx, scope, store, "series", uid) for uid in named.series)
        found.update(_patient(tx, scope, store, text, named.issuer) for text in named.patients)
    return sorted(found)


def _reached(tx: sa.Connection, subject: Subject, name: str, at: datetime) -> int:
    """A datastore in which the subject has no grant is not there."""
    found = policy.datastore_id(tx, name)
    if not policy.reaches(tx, subject, found, at):
        message = "there is no such datastore"
        raise NotFound(message, remedy="name one that exists; the default is clinical")
    return found


def _patient(tx: sa.Connection, scope: Scope, datastore_id: int, patient_id: str, issuer: str | None) -> int:
    p = patient.c
    query = sa.select(p.id).where(
        p.datastore_id == datastore_id, p.patient_id == patient_id.strip(), p.synthetic == sa.false(), scope.patient(patient)
    )
    if issuer is not None:
        query = query.where(p.issuer == issuer)
    found = scope.run(tx, query.limit(2)).scalars().all()
    if len(found) > 1:
        message = "several patients have that PatientID"
        raise InvalidRequest(message, remedy="name the issuer too")
    if not found:
        message = "there is no such patient"
        raise NotFound(message, remedy="check the PatientID and the datastore")
    return int(found[0]) * 4 + 1
