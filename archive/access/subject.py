"""Who asks: the subject that every service takes first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from archive.access.permissions import Permission

Via = Literal["web", "token", "dimse", "console", "internal"]


@dataclass(frozen=True, slots=True)
class Subject:
    """A principal as it came in; what it may do is read from the tables at each statement, never kept here.

    `limit` bounds a token (every permission else), `boundary_id` names a token's objects. The SQL condition asks again whether the
    principal, session and token are still valid, so a Subject that outlives them sees nothing.
    """

    principal_id: int
    name: str
    kind: Literal["user", "service", "device", "console"]
    via: Via
    address: str = ""
    session_id: int | None = None
    token_id: int | None = None
    peer_id: int | None = None
    boundary_id: int | None = None
    limit: Permission | None = None
    context: int = 0
    association: str = ""
    user_agent: str = ""
    operator: str = ""  # the operating system's user behind the console
