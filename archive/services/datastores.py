"""Separate datastores: a name the outside knows, a key the tables use, an identifier every record is bound to."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

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
    row = tx.execute(_BY_NAME, {"name": name}).first()
    if row is None:
        message = "there is no such datastore"
        raise NotFound(message, remedy=f"name one that exists; the default is {DEFAULT}")
    return Datastore(row.id, row.uid, row.name)


_BY_NAME = sa.select(datastore.c.id, datastore.c.uid, datastore.c.name).where(datastore.c.name == sa.bindparam("name"))
