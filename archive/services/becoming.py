"""Who may come in as another: what somebody has, or will have, guards their password, their identities and their certificate.

And who may let somebody come in anew: what hides from them guards the account that it hides from.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access import grants, policy, principals
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.services import arrival_rules


def given_to(tx: sa.Connection, principal_id: int, at: datetime) -> bool:
    """Whether grants show images to a principal, or to a group it is in, now or later, or a rule is to give it some."""
    return grants.coming(tx, principal_id, at=at) or arrival_rules.reach(tx, principal_id)


def refuse_into(tx: sa.Connection, subject: Subject, principal_id: int, at: datetime) -> None:
    """Who may become another needs what it takes to give away the grants that one has or will have.

    Raises:
        Forbidden.
    """
    if given_to(tx, principal_id, at):
        policy.require(tx, subject, Permission.ROLE_MANAGE, at)


def hides(tx: sa.Connection, principal_id: int, at: datetime) -> bool:
    """Whether a deny to a user or group counts now or later."""
    return any(row["effect"] == "deny" and row["state"] in ("active", "not yet") for row in grants.listed(tx, at=at, to=principal_id))


def refuse_anew(tx: sa.Connection, subject: Subject, row: dict[str, Any], at: datetime) -> None:
    """Who is denied something, and comes in as another user than before, is denied nothing: that takes what lifting a deny takes.

    Raises:
        Forbidden.
    """
    groups = [group["id"] for group in principals.groups_of(tx, row["id"]) if group["not_after"] > at]
    if any(hides(tx, one, at) for one in (row["id"], *groups)):
        policy.require(tx, subject, Permission.ROLE_MANAGE, at)
        grants.refuse_self(tx, subject, row["id"])


def refuse_besides(tx: sa.Connection, subject: Subject, principal_id: int, at: datetime) -> None:
    """Who is denied something, and says that another user is somebody elsewhere, may mean themselves: that takes the same.

    So does adding one whom a name or an address binds.

    Raises:
        Forbidden.
    """
    mine = [group["id"] for group in principals.groups_of(tx, subject.principal_id) if group["not_after"] > at]
    if principal_id != subject.principal_id and any(hides(tx, one, at) for one in (subject.principal_id, *mine)):
        policy.require(tx, subject, Permission.ROLE_MANAGE, at)
