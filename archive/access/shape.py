"""What a subject came in with, as the SQL condition has it: which clauses there are, and the parameters they hold."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy import BindParameter

from archive.db.types import to_micros


@dataclass(frozen=True, slots=True)
class Shape:
    """What a subject came in with: it decides which clauses the SQL has, `prefix` names their parameters.

    `tokens` counts the token and those it was made with, `boundaries` what binds the subject, whatever it came by.
    """

    session: bool = False
    tokens: int = 0
    boundaries: int = 0
    prefix: str = "scope"
    share: bool = False
    besides: Shape | None = None  # somebody else who must be allowed as well

    def me(self) -> BindParameter[int]:
        """The principal."""
        return sa.bindparam(f"{self.prefix}_me", type_=sa.BigInteger())

    def now(self) -> BindParameter[int]:
        """The instant asked about, as columns keep it: it stands in a statement twenty times, and `at` turns it into that once."""
        return sa.bindparam(f"{self.prefix}_now", type_=sa.BigInteger())

    def at(self, at: datetime) -> dict[str, int]:
        """Return the value of `now`.

        Raises:
            TypeError: a naive datetime, which would mean another instant on another machine.
        """
        if at.tzinfo is None:
            message = "a naive datetime reached the database"
            raise TypeError(message)
        return {f"{self.prefix}_now": to_micros(at)}

    def need(self) -> BindParameter[int]:
        """The permission bits wanted, all of them."""
        return sa.bindparam(f"{self.prefix}_need", type_=sa.BigInteger())

    def need_restricted(self) -> BindParameter[int]:
        """The bits wanted of a restricted series."""
        return sa.bindparam(f"{self.prefix}_need_restricted", type_=sa.BigInteger())

    def within(self) -> BindParameter[bool]:
        """Whether the caller's own bound holds every bit wanted."""
        return sa.bindparam(f"{self.prefix}_within", type_=sa.Boolean())

    def within_restricted(self) -> BindParameter[bool]:
        """The same for a restricted series."""
        return sa.bindparam(f"{self.prefix}_within_restricted", type_=sa.Boolean())

    def missing_context(self) -> BindParameter[int]:
        """The context bits this request lacks."""
        return sa.bindparam(f"{self.prefix}_missing_context", type_=sa.Integer())

    def session_id(self) -> BindParameter[int]:
        """The browser session, when the shape has one."""
        return sa.bindparam(f"{self.prefix}_session", type_=sa.BigInteger())

    def token_id(self) -> BindParameter[int]:
        """The API token, when the shape has one; those it was made with are found from it."""
        return sa.bindparam(f"{self.prefix}_token", type_=sa.BigInteger())

    def share_id(self) -> BindParameter[int]:
        """The share link, when the shape has one."""
        return sa.bindparam(f"{self.prefix}_share", type_=sa.BigInteger())

    def share_session_id(self) -> BindParameter[int]:
        """The session in which it was opened."""
        return sa.bindparam(f"{self.prefix}_share_session", type_=sa.BigInteger())

    def boundary_id(self, number: int) -> BindParameter[int]:
        """One of the boundaries, 0 the innermost."""
        return sa.bindparam(f"{self.prefix}_boundary_{number}", type_=sa.BigInteger())
