"""What is wrong for as long as it lasts, beside what happened once: looked at every minute, told once until it is acknowledged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from archive.config import Config
from archive.services import audit_feed
from archive.services.unreviewed import overdue


@dataclass(frozen=True, slots=True)
class Lasting:
    """A state somebody should look at; `about` tells two of one rule apart."""

    about: str
    detail: dict[str, Any] = field(default_factory=dict)
    principal_id: int | None = None


State = Callable[[sa.Connection, datetime, Config], Iterator[Lasting]]


def collector_away(tx: sa.Connection, at: datetime, config: Config) -> Iterator[Lasting]:
    """The syslog collector has taken nothing for an hour."""
    told = audit_feed.state(tx)
    if config.syslog.host and told is not None and told.failing_since is not None and at - told.failing_since > audit_feed.BEHIND:
        yield Lasting("syslog", {"since": told.failing_since.isoformat(), "problem": told.problem})


def unreviewed(tx: sa.Connection, at: datetime, _config: Config) -> Iterator[Lasting]:
    """A break-glass that nobody has reviewed for three days."""
    for row in overdue(tx, at):
        yield Lasting(f"break-glass {row.id}", {"break_glass": row.id, "since": row.started_at.isoformat()}, row.principal_id)


STATES: dict[str, tuple[Literal["warning", "urgent"], str, State]] = {
    "collector-away": ("warning", "the collector of audit messages has taken none for an hour", collector_away),
    "break-glass-unreviewed": ("urgent", "nobody has reviewed a break-glass for three days", unreviewed),
}
"""Name -> severity, what it means, what finds it."""
