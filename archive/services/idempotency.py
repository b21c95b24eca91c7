"""Creating calls that may be sent again: the first is done and its answer kept for a day, the next with the same key gets that answer.

The answer may hold a secret that is told once, so it is sealed under the client's own key and the archive's pepper: neither the
database alone nor the archive alone opens it. Source: draft-ietf-httpapi-idempotency-key-header.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime, timedelta

import sqlalchemy as sa

from archive.access import policy
from archive.access.subject import Subject
from archive.db import upsert
from archive.db.tables import idempotent_request
from archive.errors import ArchiveError, CommitUncertain, InvalidRequest, StateConflict
from archive.keys.sealing import WrongKey, seal, unseal
from archive.services.core import Core

KEPT = timedelta(hours=24)
LONGEST_KEY = 255
_R = idempotent_request.c
_CONTEXT = b"strongroom/idempotent-answer/v1"


class Idempotency:
    """One call under one key of one caller."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core

    def run(self, subject: Subject, key: str, request: bytes, work: Callable[[], bytes]) -> tuple[bytes, bool]:
        """Return what `work` answered, now or when it was first asked with this key, and whether that was before.

        What fails is forgotten, so that it can be tried again under the same key; all but a commit that nobody answered.

        Raises:
            InvalidRequest: no key, or one that was given with another request.
            StateConflict: the first call is not done yet, or nobody knows whether it was.
        """
        if not 1 <= len(key) <= LONGEST_KEY or not key.isascii() or not key.isprintable():
            raise InvalidRequest(f"an Idempotency-Key has 1 to {LONGEST_KEY} printable characters", remedy="send a new UUID with each call")
        core = self._core
        who = _client(subject)
        mac = core.keyring.pseudonym("idempotency", f"{who}\0{key}")
        secret = core.keyring.pseudonym("idempotency-answer", f"{who}\0{key}")
        digest = hashlib.sha256(request).digest()
        kept = self._begin(subject, mac, digest, core.clock())
        if kept is not None:
            try:
                return unseal(secret, kept, _CONTEXT + digest), True
            except WrongKey as error:
                raise _unknown() from error
        mine = sa.and_(_R.principal_id == subject.principal_id, _R.key_hmac == mac)
        try:
            answer = work()
        except CommitUncertain:
            raise
        except ArchiveError:
            with core.database.begin() as tx:
                tx.execute(sa.delete(idempotent_request).where(mine))
            raise
        with core.database.begin() as tx:
            tx.execute(sa.update(idempotent_request).where(mine).values(sealed_answer=seal(secret, answer, _CONTEXT + digest)))
        return answer, False

    def _begin(self, subject: Subject, mac: bytes, digest: bytes, at: datetime) -> bytes | None:
        """Take the key, or return the answer that it has."""
        core = self._core
        core.require_writable()
        values = {"principal_id": subject.principal_id, "key_hmac": mac, "request_sha256": digest, "created_at": at}
        with core.database.begin() as tx:
            policy.require_live(tx, subject, at)
            tx.execute(sa.delete(idempotent_request).where(_R.key_hmac == mac, _R.created_at <= at - KEPT))
            made = tx.execute(upsert.insert(idempotent_request, sqlite=core.database.sqlite).values(values).on_conflict_do_nothing())
            if made.rowcount == 1:
                return None
            row = tx.execute(
                sa.select(_R.request_sha256, _R.sealed_answer).where(_R.principal_id == subject.principal_id, _R.key_hmac == mac)
            ).one()
        if bytes(row.request_sha256) != digest:
            raise InvalidRequest("that Idempotency-Key came with another request", remedy="send a new key with each call")
        if row.sealed_answer is None:
            raise _unknown()
        return bytes(row.sealed_answer)


def _client(subject: Subject) -> str:
    """A token or a link is a client of its own: what was told to another that acts for the same user is not for it."""
    if subject.token_id is None and subject.share_id is None:
        return str(subject.principal_id)
    return f"{subject.principal_id}/{subject.token_id or ''}/{subject.share_id or ''}"


def _unknown() -> StateConflict:
    return StateConflict(
        "the first call with that Idempotency-Key is not done, or nobody knows whether it was",
        remedy="wait a moment; then look whether what it makes is there before trying with a new key",
    )


def sweep(tx: sa.Connection, at: datetime) -> None:
    """Forget the calls whose time is over."""
    tx.execute(sa.delete(idempotent_request).where(_R.created_at <= at - KEPT))
