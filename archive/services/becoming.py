"""Who may come in as another: what somebody has, or will have, guards their password, their identities and their certificate."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from archive.access import grants, policy
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
