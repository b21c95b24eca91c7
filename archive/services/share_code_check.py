"""One-time codes of share links as the ledger's events say: each was drawn by one, and counts no longer, nor oftener, than that says.

Which digits a code has is in no event. A code that could not be mailed, or came too late, ends without one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from archive.access import share_codes
from archive.db.tables import share_code
from archive.ledger.audit import Kind
from archive.ledger.log import AuditFilter, AuditRow
from archive.services.core import Core
from archive.services.retrace import Found, bodies
from archive.services.webhook_check import LOST

KEPT = timedelta(days=29)
"""For so long at least no code is forgotten."""
RESTORED = "restored from a backup"
"""What an event `rebuilt` says of that: codes are not brought back, nor from a lost index."""


@dataclass(slots=True)
class _Drawn:
    at: datetime
    until: datetime
    mailed: bool
    tried: int = 0
    ended: bool = False  # used, revoked, or followed by another
    lost: bool = False


def coded(core: Core, tx: sa.Connection) -> Iterator[Found]:
    """Yield codes that no event drew, that are gone, count again or longer, or were tried oftener than they say."""
    rows = tx.execute(sa.select(share_code).order_by(share_code.c.id)).all()
    drawn = _drawn(core, tx)
    for row in rows:
        codes, link = drawn.get(row.share_id, []), f"a code of link {row.share_id}"
        place = next((place for place, one in enumerate(codes) if one.at == row.created_at), None)
        said = None if place is None else codes.pop(place)  # while the clock stands several are of one time, in order
        if said is None:
            yield "V12", f"{link} was drawn by no event", ""
            continue
        if row.not_after != said.until:
            yield "V12", f"{link} is not the one that was drawn", ""
        if row.ended_at is None and said.ended:
            yield "V12", f"{link} counts again", ""
        elif row.ended_at is None and row.tries != min(said.tried, share_codes.TRIES):
            yield "V12", f"{link} was tried otherwise than it says", ""
        elif row.ended_at is not None and not (said.ended or said.mailed or said.tried):
            yield "V12", f"{link} was ended by no event", ""
    since = core.clock() - KEPT
    for share_id, codes in drawn.items():
        for one in codes:
            if not one.lost and one.at > since:
                yield "V12", f"a code of link {share_id} is gone", ""


def _drawn(core: Core, tx: sa.Connection) -> dict[int, list[_Drawn]]:
    """Return the codes of each link in the order of the log, and what became of each."""
    drawn: dict[int, list[_Drawn]] = {}
    until: dict[int, datetime] = {}
    kinds = (Kind.SHARED, Kind.SHARE_CHANGED, Kind.SHARE_OPENED, Kind.REBUILT)
    for event in reversed(list(bodies(core, tx, AuditFilter(kinds=kinds)))):
        said = {} if event.body is None else event.body["detail"]
        what, link = said.get("what"), int(said.get("id", 0))
        if event.kind == Kind.REBUILT.label:
            for one in (one for codes in drawn.values() for one in codes) if what in (LOST, RESTORED) else ():
                one.lost = True
        elif event.kind == Kind.SHARE_OPENED.label and link in drawn:
            _tried(drawn[link][-1], event, said)
        elif what == "revoked" and link in drawn:
            drawn[link][-1].ended = True
        elif what == "made":
            until[link] = datetime.fromisoformat(said["until"])
            if said["code_by"] == "apart":
                _draw(drawn, link, _Drawn(event.at, until[link], mailed=False))
        elif what in ("code drawn", "code sent") and link in until:
            mailed = what == "code sent"
            end = min(event.at + share_codes.MAILED_LASTS, until[link]) if mailed else until[link]
            _draw(drawn, link, _Drawn(event.at, end, mailed))
    return drawn


def _draw(drawn: dict[int, list[_Drawn]], link: int, code: _Drawn) -> None:
    codes = drawn.setdefault(link, [])
    for one in codes[-1:]:
        one.ended = True
    codes.append(code)


def _tried(code: _Drawn, event: AuditRow, said: dict[str, Any]) -> None:
    if not code.ended and event.at < code.until:
        code.tried += 1
        code.ended = "session" in said
