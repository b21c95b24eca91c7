"""Second factors as rows: added, shown to work, taken at a sign-in, removed. Secrets are sealed with whose they are."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import sqlalchemy as sa

from archive.access import recovery, totp
from archive.db.tables import factor
from archive.errors import InvalidRequest, NotFound
from archive.keys import sealing
from archive.keys.keyring import Keyring

Kind = Literal["totp", "passkey"]
MOST = 10
LABEL_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Factor:
    """A second factor; `confirmed_at` None: begun, and not shown to work yet."""

    id: int
    principal_id: int
    kind: str
    label: str
    sealed: bytes
    last_step: int
    sign_count: int
    created_at: datetime
    confirmed_at: datetime | None
    last_used_at: datetime | None


_COLUMNS = [factor.c[name] for name in Factor.__dataclass_fields__]


def of(tx: sa.Connection, principal_id: int) -> list[Factor]:
    """Return the confirmed factors of a principal."""
    return _rows(tx, factor.c.principal_id == principal_id, factor.c.confirmed_at.is_not(None))


def begun(tx: sa.Connection, principal_id: int, factor_id: int) -> Factor:
    """Return a factor of a principal, confirmed or not.

    Raises:
        NotFound.
    """
    found = _rows(tx, factor.c.principal_id == principal_id, factor.c.id == factor_id)
    if not found:
        message = "there is no such factor"
        raise NotFound(message, remedy="list what there is first")
    return found[0]


def add_totp(tx: sa.Connection, keyring: Keyring, principal_id: int, *, label: str, at: datetime) -> tuple[int, bytes]:
    """Begin an authenticator and return its id and secret; one that was begun before and never confirmed goes.

    Raises:
        InvalidRequest: there are too many.
    """
    tx.execute(sa.delete(factor).where(factor.c.principal_id == principal_id, factor.c.confirmed_at.is_(None)))
    secret = totp.new_secret()
    return _add(tx, keyring, principal_id, "totp", secret, label or "Authenticator app", at), secret


def add_passkey(
    tx: sa.Connection, keyring: Keyring, principal_id: int, *, credential_id: bytes, public_key: bytes, sign_count: int, label: str,
    at: datetime,
) -> int:
    """Keep a passkey that was just shown to work, and return its id.

    Raises:
        InvalidRequest: it is there already, or there are too many.
    """
    digest = hashlib.sha256(credential_id).digest()
    if tx.execute(sa.select(factor.c.id).where(factor.c.credential_sha256 == digest)).first() is not None:
        message = "that passkey is there already"
        raise InvalidRequest(message, remedy="use another device or key")
    key = _add(
        tx, keyring, principal_id, "passkey", len(credential_id).to_bytes(2, "big") + credential_id + public_key, label or "Passkey", at,
    )
    tx.execute(sa.update(factor).where(factor.c.id == key).values(
        credential_sha256=digest, sign_count=sign_count, confirmed_at=at
    ))
    return key


def _add(tx: sa.Connection, keyring: Keyring, principal_id: int, kind: Kind, secret: bytes, label: str, at: datetime) -> int:
    label = " ".join(label.split())[:LABEL_CHARACTERS]
    if len(_rows(tx, factor.c.principal_id == principal_id)) >= MOST:
        message = f"there are {MOST} factors already"
        raise InvalidRequest(message, remedy="remove one that is not used any more")
    sealed = keyring.seal("signin/factor", secret, _aad(principal_id, kind))
    made = tx.execute(sa.insert(factor).values(principal_id=principal_id, kind=kind, label=label, sealed=sealed, created_at=at))
    assert made.inserted_primary_key is not None
    return int(made.inserted_primary_key[0])


def confirm(tx: sa.Connection, keyring: Keyring, found: Factor, typed: str, *, at: datetime, now: datetime) -> bool:
    """Let an authenticator count from now on, when the code shows that it works; `now` is the machine's clock, which codes go by."""
    secret = opened(keyring, found)
    step = None if secret is None else totp.matching(secret, plain(typed), at=now, after=found.last_step)
    if step is None:
        return False
    tx.execute(sa.update(factor).where(factor.c.id == found.id).values(confirmed_at=at, last_step=step, last_used_at=at))
    return True


def take(tx: sa.Connection, keyring: Keyring, principal_id: int, typed: str, *, at: datetime, now: datetime) -> Factor | None:
    """Take a code of an authenticator; each counts once, whoever comes first; `now` is the machine's clock, which codes go by."""
    for found in of(tx, principal_id):
        secret = opened(keyring, found) if found.kind == "totp" else None
        step = None if secret is None else totp.matching(secret, plain(typed), at=now, after=found.last_step)
        if step is None:
            continue
        mine = sa.and_(factor.c.id == found.id, factor.c.last_step < step)
        if tx.execute(sa.update(factor).where(mine).values(last_step=step, last_used_at=at)).rowcount == 1:
            return found
    return None


def passkey(tx: sa.Connection, credential_id: bytes) -> Factor | None:
    """Return the passkey of a credential id."""
    found = _rows(tx, factor.c.credential_sha256 == hashlib.sha256(credential_id).digest(), factor.c.kind == "passkey")
    return found[0] if found else None


def public_key(keyring: Keyring, found: Factor) -> tuple[bytes, bytes] | None:
    """Return credential id and public key of a passkey; None where the row was changed."""
    both = opened(keyring, found)
    if both is None:
        return None
    end = 2 + int.from_bytes(both[:2], "big")
    return both[2:end], both[end:]


def used(tx: sa.Connection, factor_id: int, *, sign_count: int, at: datetime) -> None:
    """Note the use of a passkey."""
    tx.execute(sa.update(factor).where(factor.c.id == factor_id).values(sign_count=sign_count, last_used_at=at))


def remove(tx: sa.Connection, factor_id: int) -> None:
    """Take a factor away."""
    tx.execute(sa.delete(factor).where(factor.c.id == factor_id))


def clear(tx: sa.Connection, principal_id: int) -> int:
    """Take every factor and recovery code of a principal away; return how many factors there were."""
    recovery.clear(tx, principal_id)
    return int(tx.execute(sa.delete(factor).where(factor.c.principal_id == principal_id)).rowcount)


def opened(keyring: Keyring, found: Factor) -> bytes | None:
    """Return a factor's secret; None where the row was changed: it lets nobody in."""
    try:
        return keyring.unseal("signin/factor", found.sealed, _aad(found.principal_id, found.kind))
    except sealing.WrongKey:
        return None


def seal_anew(tx: sa.Connection, keyring: Keyring) -> list[int]:
    """Seal every factor under the pepper that is to come, and return whose they are; what does not open stays as it is."""
    changed = []
    for found in _rows(tx):
        secret = opened(keyring, found)
        if secret is not None:
            sealed = keyring.seal_ahead("signin/factor", secret, _aad(found.principal_id, found.kind))
            tx.execute(sa.update(factor).where(factor.c.id == found.id).values(sealed=sealed))
            changed.append(found.principal_id)
    return sorted(set(changed))


def plain(typed: str) -> str:
    """Return a code as typed without its spaces."""
    return "".join(typed.split())


def _aad(principal_id: int, kind: str) -> bytes:
    return f"strongroom/v1/factor\0{kind}\0{principal_id}".encode()


def _rows(tx: sa.Connection, *which: sa.ColumnElement[bool]) -> list[Factor]:
    rows = tx.execute(sa.select(*_COLUMNS).where(*which).order_by(factor.c.id)).mappings()
    return [Factor(**{**row, "sealed": bytes(row["sealed"])}) for row in rows]
