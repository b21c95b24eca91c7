"""Events found by what stands in their sealed bodies alone: the network somebody came from.

No column holds an address, sealed or not, so these events are opened one by one, so many at a time and never without end.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from archive.access import principals
from archive.db.tables import principal
from archive.errors import InvalidRequest, NotFound
from archive.ledger.log import AuditFilter, AuditRow, Ledger

AT_ONCE = 1000
MOST_OPENED = 50_000
"""Events looked at for one answer; it says where to go on."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
PEOPLE: tuple[principals.Kind, ...] = ("user", "service", "device", "console")


@dataclass(frozen=True, slots=True)
class Page:
    """Events, newest first, and the number to go on before; None when there are no more."""

    rows: list[AuditRow]
    before: int | None


def network(text: str) -> Network:
    """Return a network given as CIDR or as one address.

    Raises:
        InvalidRequest.
    """
    try:
        return ipaddress.ip_network(text.strip(), strict=False)
    except ValueError as error:
        message = "that is no network"
        raise InvalidRequest(message, remedy="write 10.0.3.0/24, 2001:db8::/32 or one address") from error


def person(tx: sa.Connection, ref: str) -> int:
    """Return whom a name or id means; somebody who was removed by id, or by the name the list of events shows (name/id).

    Raises:
        NotFound.
    """
    try:
        return int(principals.find(tx, ref, PEOPLE)["id"])
    except NotFound:
        word = ref.strip()
        wanted = principal.c.id == int(word) if word.isascii() and word.isdecimal() and len(word) < 19 else principal.c.name == word
        found = tx.execute(sa.select(principal.c.id).where(wanted, principal.c.kind.in_(PEOPLE))).scalar()
        if found is None:
            raise
        return int(found)


def find(ledger: Ledger, tx: sa.Connection, wanted: AuditFilter, inside: Network | None) -> Page:
    """Return the events that match and, when a network is given, came from there.

    Raises:
        LedgerBroken: a body was changed (V12).
    """
    if inside is None:
        rows = ledger.search(tx, wanted)
        return Page(rows, rows[-1].n if len(rows) == wanted.limit else None)
    found: list[AuditRow] = []
    before, opened = wanted.before, 0
    while opened < MOST_OPENED:
        rows = ledger.search(tx, replace(wanted, before=before, limit=AT_ONCE))
        opened += len(rows)
        for row in rows:
            before = row.n
            if came_from(row.body, inside):
                found.append(row)
                if len(found) == wanted.limit:
                    return Page(found, before)
        if len(rows) < AT_ONCE:
            return Page(found, None)
    return Page(found, before)


def came_from(body: dict[str, Any] | None, inside: Network) -> bool:
    """Whether an event says an address of that network: of who did it, or of whom it was refused."""
    said = body or {}
    for address in ((said.get("subject") or {}).get("address"), (said.get("detail") or {}).get("address")):
        try:
            one = ipaddress.ip_address(str(address or ""))
        except ValueError:
            continue
        mapped = one.ipv4_mapped if isinstance(one, ipaddress.IPv6Address) else None
        if (mapped or one) in inside:
            return True
    return False
