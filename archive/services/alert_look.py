"""What a rule of alerts looks at and what it answers: new events of the audit log, and what somebody should look at in them."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar, cast

import sqlalchemy as sa

from archive.ledger.audit import Kind
from archive.ledger.log import Ledger
from archive.sections import Alerts

SEEING = tuple(kind.label for kind in (Kind.READ, Kind.SENT, Kind.EXPORTED, Kind.SHARED))
"""The kinds of events by which somebody saw images."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Seen:
    """A new event, without its body."""

    n: int
    at: datetime
    kind: str
    outcome: int
    principal_id: int | None


@dataclass(frozen=True, slots=True)
class Found:
    """Something somebody should look at; `about` makes the next of its kind part of the same alert."""

    rule: str
    event: int
    about: str
    detail: dict[str, Any] = field(default_factory=dict)
    principal_id: int | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """What a rule may use; the archive's clock, by which events are, is ahead of the machine's by `ahead` while it stands."""

    tx: sa.Connection
    ledger: Ledger
    settings: Alerts
    events: Sequence[Seen]
    ahead: timedelta = timedelta(0)
    _kept: dict[Callable[[Look], Any], Any] = field(default_factory=dict)

    def of(self, *kinds: Kind) -> Iterator[Seen]:
        """Yield the new events of some kinds."""
        labels = {kind.label for kind in kinds}
        return (one for one in self.events if one.kind in labels)

    def body(self, n: int) -> dict[str, Any]:
        """Return what an event says; nothing where it was erased or does not open, which verify tells of."""
        return self.bodies([n]).get(n, {})

    def bodies(self, numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Return what several events say, without those of which `body` says nothing."""
        return self.ledger.bodies(self.tx, numbers)

    def once(self, ask: Callable[[Look], T]) -> T:
        """Return what `ask` answers to this look, worked out for the first rule that wants it."""
        if ask not in self._kept:
            self._kept[ask] = ask(self)
        return cast("T", self._kept[ask])

    def last_by_principal(self, labels: Sequence[str]) -> dict[int, Seen]:
        """Return the newest event of those kinds of each principal among the new ones."""
        return {one.principal_id: one for one in self.events if one.kind in labels and one.principal_id is not None}


Rule = Callable[[Look], Iterator[Found]]


def whence(body: dict[str, Any]) -> tuple[str, str, str]:
    """Return network (/24, /64), program and address of a sign-in."""
    who, said = body.get("subject") or {}, body.get("detail") or {}
    address = str(who.get("address") or said.get("address") or "")
    try:
        length = 24 if ipaddress.ip_address(address).version == 4 else 64
        network = str(ipaddress.ip_network(f"{address}/{length}", strict=False))
    except ValueError:
        network = address
    return network, str(who.get("user_agent") or said.get("user_agent") or ""), address
