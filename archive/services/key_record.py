"""What the ledger says of the archive's keys, and that it says of every change: its event comes first, with what the keyring will hold.

What was cut short between the two is told by the next change or start, and so is what changed without an event. Ledger and keystore
remember which keyring.json was the last: an older one in its place is told (docs/format.md 5).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any

import sqlalchemy as sa

from archive import locks
from archive.access.subject import Subject
from archive.db.tables import audit_event
from archive.errors import ArchiveError, KeysUnavailable
from archive.keys import keyring_file
from archive.keys.held import Held, Tell
from archive.ledger import checkpoints
from archive.ledger.audit import Event, Kind
from archive.services.acknowledged import acknowledged
from archive.services.core import Core

LOCK = "rotate.lock"
ANCHOR = "keyring"
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
    with locks.alone(core.config.run_dir / LOCK):
        noticed(core)
        try:
            yield
        except ArchiveError:
            with suppress(ArchiveError, sa.exc.SQLAlchemyError):  # else the next change or start does it
                noticed(core)
                _remember(core)
            raise
        with suppress(ArchiveError):  # the change is made, and recorded
            _remember(core)


def record(
    core: Core, tx: sa.Connection, subject: Subject | None, held: Held, detail: dict[str, Any], *, document: str = "", outcome: int = 0
) -> int:
    """Record a change of keys that is about to be made, and what the keyring holds then; return the event's number.

    An archive that was rolled back says nothing of what it holds: it would count as known.
    """
    more = {} if core.read_only else {"holds": held, **_which(core)}
    event = Event(Kind.KEY_CHANGED, outcome=outcome, subject=subject, detail={**detail, **more}, document=document)
    return core.ledger.record(tx, event, at=core.clock())


def telling(core: Core, subject: Subject | None, what: str, name: str, **more: Any) -> Tell:
    """Return what records a change of the keyring before it is made; where the event cannot be taken, nothing changes."""

    def tell(changed: str, held: Held) -> None:
        with core.database.begin() as tx:
            record(core, tx, subject, held, {"what": what, name: changed, **more})

    return tell


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
    with locks.alone_if_free(core.config.run_dir / LOCK) as free:
        complete = free and noticed(core)
        if free:
            _remember(core)
    said = {"what": "keyring opened", "generation": core.keyring.generation, **_which(core)}
    return {**said, "holds": core.keyring.held()} if complete else said


# --- an older one in its place --------------------------------------------------------------------------------------------------------


def contradiction(core: Core, tx: sa.Connection, given_up: frozenset[str]) -> str:
    """Return why keyring.json is not the newest that ledger and keystore know, or nothing; `given_up` are notes that count no more.

    Raises:
        DatabaseUnavailable.
    """
    # What is remembered is read before the file: one that is written meanwhile is newer.
    kept = core.keystore.anchor(ANCHOR)
    remembered: list[tuple[int, str]] = []
    if kept is not None and checkpoints.digest(kept.note) not in given_up:
        number, _, its = kept.note.decode("ascii", errors="replace").partition(" ")
        if not (number.isascii() and number.isdecimal() and len(number) < 19):
            return "what the keystore remembers of the keyring does not read"
        remembered.append((int(number), its))
    events = said(core, tx, Kind.KEY_USED, Kind.KEY_CHANGED, Kind.CHECKPOINT_ACKNOWLEDGED)
    last = [(one["generation"], one.get("mac", "")) for one in islice((one for _n, one in events if "generation" in one), 1)]
    remembered += last
    try:
        file = keyring_file.load(core.config.keys_dir / "keyring.json")
    except KeysUnavailable:
        return ""  # whoever opens it is told
    for generation, mac in remembered:
        if file.generation < generation:
            return f"keyring.json is an older copy, of generation {file.generation}: one of generation {generation} was in use"
        if file.generation == generation and mac not in ("", file.mac):
            return f"keyring.json is another of generation {generation} than was in use"
    if (file.generation, file.mac) not in last and checkpoints.digest(_note(file.generation, file.mac)) in given_up:
        return f"keyring.json is one of generation {file.generation} that was given up: another went on without it"
    return ""


def to_acknowledge(core: Core) -> tuple[list[bytes | None], dict[str, Any]]:
    """Return the note that an older keyring contradicts, and what an event says of the one that counts from it on.

    Raises:
        KeysUnavailable, DatabaseUnavailable.
    """
    kept = core.keystore.anchor(ANCHOR)
    file = keyring_file.load(core.config.keys_dir / "keyring.json")
    return [] if kept is None else [kept.note], {"generation": file.generation, "mac": file.mac}


def _which(core: Core) -> dict[str, Any]:
    """Return which keyring an event was written with, where that is known."""
    return {"generation": core.keyring.generation, "mac": core.keyring.mac} if core.keyring.mac else {}


def _note(generation: int, mac: str) -> bytes:
    return f"{generation} {mac}".encode()


def _remember(core: Core) -> None:
    """Let the keystore keep which keyring is the newest; a later one whose loss was acknowledged gives way."""
    keyring = core.keyring
    if core.read_only or not keyring.whole:
        return
    kept = core.keystore.anchor(ANCHOR)
    note = _note(keyring.generation, keyring.mac)
    if kept is not None and kept.note == note:
        return
    with core.database.read() as tx:
        lost = kept is not None and kept.size > keyring.generation and checkpoints.digest(kept.note) in acknowledged(core, tx)
    core.keystore.set_anchor(ANCHOR, keyring.generation, note, instead=kept.note if kept is not None and lost else None)
