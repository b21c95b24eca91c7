"""The password of a principal as a row: set, read, remade when its parameters are outdated."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from archive.access import passwords
from archive.db.tables import credential, principal


@dataclass(frozen=True, slots=True)
class Account:
    """A user who may sign in with a password."""

    principal_id: int
    name: str
    phc: str
    must_change: bool


def set_password(tx: sa.Connection, principal_id: int, password: str, *, name: str, must_change: bool, at: datetime) -> None:
    """Check and set a password; the earlier one counts no longer. Sessions are left to the caller.

    Raises:
        InvalidRequest: a weak password.
    """
    passwords.check_new(password, name=name)
    keep(tx, principal_id, passwords.seal(password), must_change=must_change, at=at)


def keep(tx: sa.Connection, principal_id: int, phc: str, *, must_change: bool, at: datetime) -> None:
    """Keep a PHC string as the principal's password."""
    c = credential.c
    tx.execute(sa.delete(credential).where(c.principal_id == principal_id, c.kind == "password"))
    tx.execute(sa.insert(credential).values(
        principal_id=principal_id, kind="password", data=phc, must_change=must_change, created_at=at
    ))


def remake(tx: sa.Connection, account: Account, phc: str) -> None:
    """Replace the PHC string of a password that did not change, unless it changed meanwhile."""
    c = credential.c
    tx.execute(
        sa.update(credential).where(c.principal_id == account.principal_id, c.kind == "password", c.data == account.phc).values(data=phc)
    )


def account(tx: sa.Connection, name: str) -> Account | None:
    """Return the enabled user of that name, if it has a password."""
    p, c = principal.c, credential.c
    query = (
        sa.select(p.id, p.name, c.data, c.must_change).join(credential, c.principal_id == p.id)
        .where(p.name == name, p.kind == "user", p.enabled == sa.true(), p.removed_at.is_(None), c.kind == "password")
    )
    row = tx.execute(query).one_or_none()
    return None if row is None else Account(row.id, row.name, row.data, row.must_change)


def account_of(tx: sa.Connection, principal_id: int) -> Account | None:
    """Return the enabled user of that id, if it has a password."""
    name = tx.execute(sa.select(principal.c.name).where(principal.c.id == principal_id)).scalar()
    return None if name is None else account(tx, name)
