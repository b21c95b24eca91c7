"""Recovery codes: ten, shown once, kept as HMAC under the pepper, each good for one sign-in without the other factor."""

from __future__ import annotations

import secrets
from datetime import datetime

import sqlalchemy as sa

from archive.db.tables import recovery_code
from archive.keys.keyring import Keyring

COUNT = 10
_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
_HALF = 6


def renew(tx: sa.Connection, keyring: Keyring, principal_id: int, *, at: datetime) -> list[str]:
    """Make new codes and return them; the earlier ones count no more."""
    clear(tx, principal_id)
    drawn = ["-".join("".join(secrets.choice(_LETTERS) for _ in range(_HALF)) for _ in range(2)) for _ in range(COUNT)]
    tx.execute(sa.insert(recovery_code), [
        {"principal_id": principal_id, "code_hmac": digest(keyring, principal_id, one), "created_at": at} for one in drawn
    ])
    return drawn


def take(tx: sa.Connection, keyring: Keyring, principal_id: int, typed: str, *, at: datetime) -> bytes | None:
    """Use a code up and return what is kept of it; None when it is none, or was used."""
    r = recovery_code.c
    for kept in keyring.pseudonyms("signin/recovery", f"{principal_id}:{_plain(typed)}"):
        mine = sa.and_(r.principal_id == principal_id, r.code_hmac == kept, r.used_at.is_(None))
        if tx.execute(sa.update(recovery_code).where(mine).values(used_at=at)).rowcount == 1:
            return kept
    return None


def left(tx: sa.Connection, principal_id: int) -> int:
    """Return how many codes are still good."""
    r = recovery_code.c
    query = sa.select(sa.func.count()).select_from(recovery_code).where(r.principal_id == principal_id, r.used_at.is_(None))
    return int(tx.execute(query).scalar_one())


def kept(tx: sa.Connection, principal_id: int) -> list[bytes]:
    """Return what is kept of every code, used ones too, in a fixed order."""
    r = recovery_code.c
    query = sa.select(r.code_hmac).where(r.principal_id == principal_id)
    return sorted(bytes(one) for one in tx.execute(query).scalars())


def clear(tx: sa.Connection, principal_id: int) -> None:
    """Take every code away."""
    tx.execute(sa.delete(recovery_code).where(recovery_code.c.principal_id == principal_id))


def digest(keyring: Keyring, principal_id: int, typed: str) -> bytes:
    """Return what is kept of a code; spaces, hyphens and capitals do not matter."""
    return keyring.pseudonym("signin/recovery", f"{principal_id}:{_plain(typed)}")


def _plain(typed: str) -> str:
    return "".join(character for character in typed.lower() if character in _LETTERS)
