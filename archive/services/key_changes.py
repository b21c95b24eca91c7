"""Keys that follow one another: signing and checkpoint keys announced by the old and the new one, peppers (docs/format.md 5).

Every step is durable before the next and may be done again, so that what a crash left half done is finished by the next start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import sqlalchemy as sa

from archive import locks
from archive.access import factors, recovery
from archive.access.subject import Subject
from archive.db.tables import datastore
from archive.errors import KeysUnavailable
from archive.keys.entries import SIGNING, Purpose
from archive.ledger import announcements, documents, nodes
from archive.ledger.announcements import ANNOUNCED, RETIRED
from archive.ledger.audit import Event, Kind, secret_digest
from archive.services import heads, index_key, key_record
from archive.services.core import Core
from archive.services.datastores import Datastore

log = logging.getLogger("archive.services")
Which = Literal["signing", "log", "pepper"]
PURPOSES: Final[dict[Which, tuple[Purpose, ...]]] = {"signing": ("instance",), "log": ("log", "log-pq"), "pepper": ("pepper",)}
Reload = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Rotated:
    """What took whose place: purpose, old id, new id; and by which event the change was announced."""

    keys: tuple[tuple[str, str, str], ...]
    event: int


@dataclass(frozen=True, slots=True)
class WrappedAnew:
    """How many data keys were wrapped anew and how many key-encryption keys destroyed; `behind` are the ids of those that do not open."""

    rewrapped: int
    destroyed: int
    behind: list[str]


def rotate(core: Core, subject: Subject | None, which: Which, *, reload: Reload = lambda: None) -> Rotated:
    """Put a new key in the place of one; what was begun before is brought to its end instead.

    `reload` makes every process take the keyring as it is now. Inside the lock of rotations.

    Raises:
        KeysUnavailable, DatabaseUnavailable, VaultUnavailable, LedgerBroken.
    """
    keyring, purposes = core.keyring, PURPOSES[which]
    keyring.refresh()
    begun = keyring.waiting()
    if not begun & set(purposes):
        keyring.prepare(purposes, at=core.clock())
    done = Rotated((), -1)
    if any(keyring.coming(purpose) for purpose in purposes):
        reload()  # whoever meets something of the new key knows it
        done = _announce(core, subject, which)
        heads.sign(core)  # what announces the change is signed by the old key
        with locks.alone(core.config.run_dir / "checkpoint.lock"):
            keyring.activate(purposes)
        reload()  # from here on nobody makes anything with the old one
    if which != "pepper":
        _retire(core, subject, purposes)
    return done


def finish(core: Core) -> list[str]:
    """Bring to their end the rotations that were cut short; return which. For the start, when nobody works yet.

    Where somebody rotates just now nothing was cut short, and who does may wait for this start.

    Raises:
        As rotate.
    """
    with locks.alone_if_free(core.config.run_dir / key_record.LOCK) as free:
        if not free:
            return []
        core.keyring.refresh()
        begun: list[Which] = [which for which, purposes in PURPOSES.items() if core.keyring.waiting() & set(purposes)]
        found: list[str] = [*begun]
        for which in begun:
            rotate(core, None, which)
            log.warning("a rotation of keys that was cut short is finished (%s)", which)
        if "index" in core.keyring.waiting():
            index_key.finish(core.config, core.keyring, core.clock())
            log.warning("a rotation of keys that was cut short is finished (index)")
            found.append("index")
        for place in _wrapped_under_old(core):
            made = wrap_anew(core, None, place)
            if made.behind:
                log.error("%d data keys do not open (V05): the key-encryption keys before stay ('archive key rotate')", len(made.behind))
                continue
            log.warning("a rotation of keys that was cut short is finished (kek)")
            found.append("kek")
    return found


def wrap_anew(
    core: Core, subject: Subject | None, place: Datastore, progress: Callable[[int], None] = lambda _done: None
) -> WrappedAnew:
    """Wrap every data key of a datastore under its newest key-encryption key, and destroy the others where nothing needs them.

    While one data key does not open, the others stay: what such a row is put back with may be under any of them. Every process that
    wraps holds the newest by now.

    Raises:
        KeysUnavailable, DatabaseUnavailable.
    """
    fresh = core.keyring.kek(place.uid)
    former = [kek.id for kek in core.keyring.keks() if kek.datastore == place.uid and kek.id != fresh.id]
    core.keystore.wrap_under(place.uid, fresh.id)
    rewrapped, destroyed = core.keystore.rewrap(place.uid, progress=progress), 0
    behind = core.keystore.behind(place.uid, former)
    for kek_id in former if not behind else ():
        if core.keystore.wrapped_under(kek_id):
            message = "data keys are still wrapped under the old key"
            raise KeysUnavailable(message, remedy="run 'archive key rotate' again")
        tell = key_record.telling(core, subject, "kek-destroyed", "key", datastore=place.name)
        core.keyring.destroy_kek(kek_id, at=core.clock(), tell=tell)
        destroyed += 1
    if subject is not None or rewrapped or destroyed:  # a start that could not do more than the one before it says nothing again
        detail = {"what": "kek-rotated", "datastore": place.name, "key": fresh.id.hex(), "rewrapped": rewrapped}
        if behind:
            detail["left"] = len(behind)
        with core.database.begin() as tx:
            key_record.record(core, tx, subject, core.keyring.held(), detail, outcome=8 if behind else 0)
    return WrappedAnew(rewrapped, destroyed, behind)


def _wrapped_under_old(core: Core) -> list[Datastore]:
    """Return the datastores whose key-encryption key has another before it that still opens something."""
    keks = core.keyring.keks()
    uids = {kek.datastore for kek in keks if not kek.active} & {kek.datastore for kek in keks if kek.active}
    with core.database.read() as tx:
        rows = tx.execute(sa.select(datastore).order_by(datastore.c.id)).all()
    return [Datastore(row.id, bytes(row.uid), row.name) for row in rows if bytes(row.uid) in uids]


def _announce(core: Core, subject: Subject | None, which: Which) -> Rotated:
    """Record the change, once; what it says is signed by the old key and the one that is to come."""
    keyring = core.keyring
    fresh = {purpose: keyring.coming(purpose) for purpose in PURPOSES[which]}
    keys = [[purpose, keyring.in_use(purpose).id.hex(), one.id.hex()] for purpose, one in fresh.items() if one is not None]
    said = tuple((one[0], one[1], one[2]) for one in keys)
    at = core.clock()
    with core.database.begin() as tx:
        before = _announced(core, tx, which, keys)
        if before is not None:
            return Rotated(said, before)
        detail: dict[str, Any] = {"what": ANNOUNCED, "keys": keys}
        digest = ""
        if which == "pepper":
            _seal_factors(core, tx, subject)
        else:
            envelope = announcements.written(keyring, [one[0] for one in keys], after=nodes.size(tx), at=at)
            detail["document"], digest = envelope, documents.digest(envelope).hex()
        held = keyring.held(activated=PURPOSES[which])
        return Rotated(said, key_record.record(core, tx, subject, held, detail, document=digest))


def _announced(core: Core, tx: sa.Connection, which: Which, keys: list[list[str]]) -> int | None:
    """Return the event that announced these keys, where a rotation that was cut short had come so far."""
    if which == "pepper":
        return _said(core, tx, ANNOUNCED, keys)
    for event in announcements.events(tx, core.keyring):
        if {(one.purpose, one.old, one.new) for one in event.changes} >= {tuple(one) for one in keys}:
            return event.n
    return None


def _said(core: Core, tx: sa.Connection, what: str, keys: list[Any]) -> int | None:
    """Return the event that says this of exactly these keys already."""
    found = key_record.said(core, tx, Kind.KEY_CHANGED)
    return next((n for n, detail in found if detail.get("what") == what and detail.get("keys") == keys), None)


def _seal_factors(core: Core, tx: sa.Connection, subject: Subject | None) -> None:
    """Seal second factors under the pepper to come; an event says what they are now."""
    for who in factors.seal_anew(tx, core.keyring):
        detail = {
            "what": "rebuilt", "id": who, "because": "the pepper was replaced",
            "factors": [[one.id, secret_digest(one.sealed), one.kind] for one in factors.of(tx, who)],
            "codes": [secret_digest(one) for one in recovery.kept(tx, who)],
        }
        core.ledger.record(tx, Event(Kind.FACTOR_CHANGED, subject=subject, detail=detail), at=core.clock())


def _retire(core: Core, subject: Subject | None, purposes: Sequence[Purpose]) -> None:
    """Say that the old keys sign no more, then destroy their private halves."""
    keyring = core.keyring
    old = [one["id"] for one in keyring.describe() if one["purpose"] in purposes and one["state"] == "retiring"]
    if not old or not set(purposes) <= set(SIGNING):
        return
    with locks.alone(core.config.run_dir / "checkpoint.lock"):
        with core.database.begin() as tx:
            if _said(core, tx, RETIRED, old) is None:
                key_record.record(core, tx, subject, keyring.held(), {"what": RETIRED, "keys": old})
        keyring.retire(purposes, at=core.clock())
