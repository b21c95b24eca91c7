"""Separate datastores: a name the outside knows, a key the tables use, an identifier every record is bound to."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from archive.access import policy
from archive.access.subject import Subject
from archive.db.prepared import Prepared
from archive.db.tables import datastore
from archive.errors import NotFound

DEFAULT = "clinical"


@dataclass(frozen=True, slots=True)
class Datastore:
    """One row of table datastore."""

    id: int
    uid: bytes
    name: str


def find(tx: sa.Connection, name: str) -> Datastore:
    """Return the datastore of that name.

    Raises:
        NotFound.
    """
    row = _BY_NAME.first(tx, {"name": name})
    if row is None:
        raise _absent()
    return Datastore(row.id, row.uid, row.name)


def asked_for(tx: sa.Connection, subject: Subject, name: str, at: datetime) -> Datastore:
    """Return the datastore a subject names: the default one, or one it has a grant in; any other is not there for it.

    The console may name every one, a peer comes with the one it is bound to.

    Raises:
        NotFound.
    """
    found = find(tx, name)
    if name != DEFAULT and subject.kind not in ("console", "device") and not policy.reaches(tx, subject, found.id, at):
        raise _absent()
    return found


def _absent() -> NotFound:
    message = "there is no such datastore"
    return NotFound(message, remedy=f"name one that exists; the default is {DEFAULT}")


_BY_NAME = Prepared(sa.select(datastore.c.id, datastore.c.uid, datastore.c.name).where(datastore.c.name == sa.bindparam("name")))
