"""Who asks: the subject that every service takes first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from archive.access.permissions import Permission

Via = Literal["web", "token", "dimse", "console", "internal", "share"]


@dataclass(frozen=True, slots=True)
class Subject:
    """A principal as it came in; what it may do is read from the tables at each statement, never kept here.

    `limit` holds the permissions it has at most (None: every one), `boundary_ids` the boundaries that bind it, all of them at once, the
    innermost first: of a token its own and those of the tokens it was made with, `token_depth` in all. A share acts as its owner within a
    boundary and has no token. The SQL condition asks again whether principal, session, each token and boundary still count, so a
    Subject that outlives them sees nothing.

    `narrowed_by` is the user a device speaks for (PS3.7 D.3.3.7): both must be allowed, and what is done is that user's, by the device.
    """

    principal_id: int
    name: str
    kind: Literal["user", "service", "device", "console"]
    via: Via
    address: str = ""
    session_id: int | None = None
    token_id: int | None = None
    peer_id: int | None = None
    token_depth: int = 1  # how many tokens its token stands on, itself included
    boundary_ids: tuple[int, ...] = ()
    limit: Permission | None = None
    share_id: int | None = None  # somebody without an account, on behalf of the principal
    share_session_id: int | None = None
    recipient: str = ""  # of the share, as a pseudonym
    context: int = 0
    association: str = ""
    user_agent: str = ""
    operator: str = ""  # the operating system's user behind the console
    second: Subject | None = None  # who approved what it asked for, where two people decide
    narrowed_by: Subject | None = None

    @property
    def person(self) -> Subject:
        """Who answers for what is done: the user a device speaks for, else the subject itself."""
        return self.narrowed_by or self
