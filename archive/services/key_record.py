"""What the ledger says of the archive's keys, and that it says of every change: its event comes first, with what the keyring will hold.

What was cut short between the two is told by the next change or start, and so is what changed without an event (docs/format.md 5).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import sqlalchemy as sa

from archive.access.subject import Subject
from archive.db.tables import audit_event
from archive.errors import ArchiveError
from archive.keys.held import Held
from archive.ledger import checkpoints
from archive.ledger.audit import Event, Kind
from archive.services.core import Core

LOCK = "rotate.lock"
FOUND = "found-changed"
_AT_ONCE = 50


def said(core: Core, tx: sa.Connection, *kinds: Kind) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and detail of events of these kinds, newest first; verification names those that do not open."""
    n = audit_event.c.n
    query = sa.select(n).where(audit_event.c.kind.in_([kind.label for kind in kinds])).order_by(n.desc()).limit(_AT_ONCE)
    numbers = tx.execute(query).scalars().all()
    while numbers:
        bodies = core.ledger.bodies(tx, numbers)
        yield from ((number, bodies[number]["detail"]) for number in numbers if number in bodies)
        numbers = tx.execute(query.where(n < numbers[-1])).scalars().all()


@contextmanager
def changing(core: Core) -> Iterator[None]:
    """Change the keyring as the only process that does; what it then holds otherwise than the ledger says is recorded at once.

    Raises:
        VaultUnavailable: the lock file cannot be written. KeysUnavailable, DatabaseUnavailable.
    """
    with checkpoints.sole_maker(core.config.run_dir / LOCK):
        noticed(core)
        try:
            yield
        except ArchiveError:
            with suppress(ArchiveError, sa.exc.SQLAlchemyError):  # else the next change or start does it
                noticed(core)
            raise


def record(
    core: Core, tx: sa.Connection, subject: Subject | None, held: Held, detail: dict[str, Any], *, document: str = "", outcome: int = 0
) -> int:
    """Record a change of keys that is about to be made, and what the keyring holds then; return the event's number.

    An archive that was rolled back says nothing of what it holds: it would count as known.
    """
    more = {} if core.read_only else {"holds": held}
    event = Event(Kind.KEY_CHANGED, outcome=outcome, subject=subject, detail={**detail, **more}, document=document)
    return core.ledger.record(tx, event, at=core.clock())


def known(core: Core, tx: sa.Connection) -> Held | None:
    """Return what the keyring holds by the newest event that says so; None in a log that is older than such events."""
    found = said(core, tx, Kind.KEY_USED, Kind.KEY_CHANGED)
    return next((detail["holds"] for _n, detail in found if "holds" in detail), None)


def noticed(core: Core, subject: Subject | None = None, *, reason: str = "") -> bool:
    """Record what the keyring holds otherwise than the ledger knows; return whether the ledger knows all of it now.

    Without a reason for it, nobody knows one. While a rotation waits for its end, nothing is compared.

    Raises:
        KeysUnavailable, DatabaseUnavailable.
    """
    keyring = core.keyring
    keyring.refresh()
    if core.read_only or not keyring.whole or keyring.waiting():
        return False
    now = keyring.held()
    with core.database.read() as tx:
        before = known(core, tx)
    if before is None or before == now:
        return True
    purposes = {one["id"]: one["purpose"] for one in keyring.describe()}
    detail: dict[str, Any] = {"what": FOUND, "reason": reason}
    for name in ("keys", "slots"):
        more, less = sorted(set(now[name]) - set(before[name])), sorted(set(before[name]) - set(now[name]))
        detail |= {f"{name}_added": more, f"{name}_gone": less}
    detail["purposes"] = sorted({purposes.get(one, "") for one in detail["keys_added"] + detail["keys_gone"]})
    with core.database.begin() as tx:
        record(core, tx, subject, now, detail, outcome=0 if reason else 4)
    return True


def opened(core: Core) -> dict[str, Any]:
    """Return what a start says of the keyring; what nobody recorded before is, unless somebody changes keys just now.

    Raises:
        VaultUnavailable, KeysUnavailable, DatabaseUnavailable.
    """
    with checkpoints.sole_maker_if_free(core.config.run_dir / LOCK) as free:
        complete = free and noticed(core)
    said = {"what": "keyring opened", "generation": core.keyring.generation}
    return {**said, "holds": core.keyring.held()} if complete else said
