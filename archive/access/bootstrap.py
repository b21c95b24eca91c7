"""What an archive has before anyone signs in: roles, the console, the default datastore, the first owner."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from archive.access import credentials, grants, passwords, principals, roles
from archive.access.grants import Terms
from archive.db.tables import datastore, principal
from archive.errors import InvalidRequest

DEFAULT_DATASTORE = "clinical"


@dataclass(frozen=True, slots=True)
class First:
    """What bootstrap made."""

    console_id: int
    owner_id: int
    datastore_id: int
    datastore_uid: bytes
    grant_id: int
    phc: str


def check_password(password: str | None, *, name: str = "") -> None:
    """Refuse a weak first password before anything is made; None means that one will be drawn.

    Raises:
        InvalidRequest.
    """
    if password is not None:
        passwords.check_new(password, name=name)


def bootstrap(
    tx: sa.Connection, *, at: datetime, admin: str, password: str, must_change: bool = False, datastore_uid: bytes | None = None
) -> First:
    """Make the roles, principal `console`, datastore `clinical` and the first owner with its one grant, `everything`.

    `datastore_uid` is given where there is a key for it already.

    The owner's function permissions come from the role's assignment; that it may read images is this grant, listed like any other.

    Raises:
        InvalidRequest: it was done before, or the name or password cannot be taken.
    """
    if tx.execute(sa.select(principal.c.id)).first() is not None:
        message = "the archive has its first users already"
        raise InvalidRequest(message, remedy="add more with 'archive user add'")
    known = roles.add_builtin(tx, at=at)
    console = principals.add(tx, "console", principals.CONSOLE, at=at, full_name="The command line")
    uid = datastore_uid or secrets.token_bytes(16)
    made = tx.execute(sa.insert(datastore).values(uid=uid, name=DEFAULT_DATASTORE, created_at=at))
    assert made.inserted_primary_key is not None
    datastore_id = int(made.inserted_primary_key[0])
    owner = principals.add(tx, "user", admin, at=at)
    check_password(password, name=admin)
    phc = passwords.seal(password)
    credentials.keep(tx, owner, phc, must_change=must_change, at=at)
    roles.assign(tx, owner, known["owner"], by=console, at=at)
    grant = grants.give(
        tx, to=owner, role_row=roles.find(tx, "owner"), datastore_id=datastore_id, scope_key=0,
        terms=Terms(not_before=at, reason="first owner"), by=console, at=at,
    )
    return First(console, owner, datastore_id, uid, grant, phc)


def console_id(tx: sa.Connection) -> int:
    """Return the id of principal `console`."""
    # The first, if somebody added another: verify tells of that one.
    return int(tx.execute(sa.select(sa.func.min(principal.c.id)).where(principal.c.kind == "console")).scalar_one())
