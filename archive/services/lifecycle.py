"""The archive's own events: it started, with which keys and configuration, and it stopped (PS3.15 A.5.3.1)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import sqlalchemy as sa

from archive import __version__
from archive.db.tables import archive_state
from archive.ledger.audit import Event, Kind
from archive.services.core import Core

CONFIGURATION = "configuration_sha256"


def started(core: Core) -> None:
    """Record the start, the keyring that was opened, and a configuration that is not the last one's.

    Raises:
        DatabaseUnavailable.
    """
    at = core.clock()
    digest = _configuration(core)
    with core.database.begin() as tx:
        core.ledger.record(tx, Event(Kind.STARTED, detail={"software": __version__}), at=at)
        opened = {"what": "keyring opened", "generation": core.keyring.generation}
        core.ledger.record(tx, Event(Kind.KEY_USED, detail=opened), at=at)
        known = tx.execute(sa.select(archive_state.c.value).where(archive_state.c.name == CONFIGURATION)).scalar()
        if known == digest:
            return
        if known is None:
            tx.execute(sa.insert(archive_state).values(name=CONFIGURATION, value=digest))
        else:
            tx.execute(sa.update(archive_state).where(archive_state.c.name == CONFIGURATION).values(value=digest))
        core.ledger.record(tx, Event(Kind.CONFIGURED, detail={"what": "configuration file", "sha256": digest}), at=at)


def stopped(core: Core) -> None:
    """Record that the archive was told to stop and has drained.

    Raises:
        DatabaseUnavailable.
    """
    with core.database.begin() as tx:
        core.ledger.record(tx, Event(Kind.STOPPED), at=core.clock())


def _configuration(core: Core) -> str:
    path = Path(core.config.path)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
