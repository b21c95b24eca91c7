"""The schema of a database: made by the migrations, refused when it is another one."""

from __future__ import annotations

from archive.db import guard
from archive.db.engine import Database
from archive.db.tables import keystore_metadata, metadata


def create_all(database: Database, *, keystore: bool = False) -> None:
    """Create every table at once, for tests; an archive gets its schema from the migrations."""
    with database.begin() as tx:
        tx = tx.execution_options(**{guard.OPTION: guard.Token("schema")})  # noqa: PLW2901 # the same connection under a token
        (keystore_metadata if keystore else metadata).create_all(tx)
