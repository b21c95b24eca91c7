"""One-time codes of share links: six digits under the pepper, few tries, a short life, few of them a day."""

from __future__ import annotations

import hmac
import re
import secrets
from datetime import datetime, timedelta

import sqlalchemy as sa

from archive.db.tables import share_code
from archive.errors import StateConflict
from archive.keys.keyring import Keyring

DIGITS = 6
TRIES = 5
MAILED_LASTS = timedelta(minutes=10)
BETWEEN, A_DAY = timedelta(minutes=1), 5
"""A code is mailed a minute after the one before at the earliest, and so often within a day."""
_FORM = re.compile(rf"[0-9]{{{DIGITS}}}")
_C = share_code.c


def draw(tx: sa.Connection, keyring: Keyring, share_id: int, *, at: datetime, not_after: datetime) -> str:
    """Draw a code in place of any other of the link, and return it."""
    code = f"{secrets.randbelow(10 ** DIGITS):0{DIGITS}}"
    tx.execute(sa.update(share_code).where(_C.share_id == share_id, _C.ended_at.is_(None)).values(ended_at=at))
    tx.execute(sa.insert(share_code).values(
        share_id=share_id, code_hmac=_mac(keyring, share_id, code), created_at=at, not_after=not_after, tries=0,
    ))
    return code


def may_mail(tx: sa.Connection, share_id: int, *, at: datetime) -> bool:
    """Whether another code may be mailed now."""
    query = sa.select(sa.func.count(), sa.func.max(_C.created_at)).where(_C.share_id == share_id, _within_a_day(at))
    count, last = tx.execute(query).one()
    return count < A_DAY and (last is None or at - last >= BETWEEN)


def forget(tx: sa.Connection, share_id: int, *, at: datetime) -> None:
    """End the link's code: it could not be mailed."""
    tx.execute(sa.update(share_code).where(_C.share_id == share_id, _C.ended_at.is_(None)).values(ended_at=at))


def take(tx: sa.Connection, keyring: Keyring, share_id: int, text: str, *, at: datetime) -> bool:
    """Use the link's code up; a wrong one costs a try, counted before it is looked at. The caller commits either way."""
    live = sa.and_(_C.share_id == share_id, _C.ended_at.is_(None), _C.not_after > at, _C.tries < TRIES)
    if not tx.execute(sa.update(share_code).where(live).values(tries=_C.tries + 1)).rowcount:
        return False
    row = tx.execute(sa.select(_C.id, _C.code_hmac).where(_C.share_id == share_id, _C.ended_at.is_(None))).one()
    code = re.sub(r"[\s-]", "", text)
    if not _FORM.fullmatch(code) or not hmac.compare_digest(_mac(keyring, share_id, code), bytes(row.code_hmac)):
        return False
    tx.execute(sa.update(share_code).where(_C.id == row.id).values(ended_at=at))
    return True


def waiting(tx: sa.Connection, share_id: int, *, at: datetime) -> bool:
    """Whether there is a code that still counts."""
    live = sa.and_(_C.share_id == share_id, _C.ended_at.is_(None), _C.not_after > at, _C.tries < TRIES)
    return tx.execute(sa.select(_C.id).where(live)).first() is not None


def require_rest(tx: sa.Connection, share_id: int, *, at: datetime) -> None:
    """Refuse to draw codes without end.

    Raises:
        StateConflict.
    """
    since = sa.select(sa.func.count()).select_from(share_code).where(_C.share_id == share_id, _within_a_day(at))
    if tx.execute(since).scalar_one() >= 2 * A_DAY:
        message = "that is enough codes of this link for a day"
        raise StateConflict(message, remedy="make a new link, or wait until tomorrow")


def _within_a_day(at: datetime) -> sa.ColumnElement[bool]:
    """What was drawn later than now was drawn by a clock that has been set back since: it counts only when that time has come."""
    return sa.and_(_C.created_at > at - timedelta(days=1), _C.created_at <= at + BETWEEN)


def _mac(keyring: Keyring, share_id: int, code: str) -> bytes:
    return keyring.pseudonym("share-code", f"{share_id}/{code}")
