"""Whether the archive can answer for one instance to one peer: it is there for that peer, and it is whole.

Source: PS3.4 J.3.2.1.2, PS3.3 C.14.1.1 (Failure Reason).
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from archive.access import policy
from archive.access.permissions import Permission
from archive.access.policy import scope_of
from archive.access.subject import Subject
from archive.db.tables import datastore, membership
from archive.errors import ArchiveError, Forbidden, IntegrityError, LedgerBroken, Unavailable
from archive.index import referenced
from archive.index.referenced import Held, Kept
from archive.ledger import statements
from archive.ledger.audit import Kind, ObjectRef
from archive.ledger.log import AuditFilter
from archive.services.core import Core

LOG = logging.getLogger("archive.services")

COMMITTED = 0
PROCESSING_FAILURE = 0x0110
NO_SUCH_INSTANCE = 0x0112
CLASS_INSTANCE_CONFLICT = 0x0119
RESOURCES = 0x0213
DUPLICATE_TRANSACTION = 0x0131
"""Failure Reason (0008,1197)."""

_EVENTS = 10_000


@dataclass(frozen=True, slots=True)
class Reference:
    """An instance as a peer refers to it."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found; study and digest of what is committed only."""

    reason: int
    study_instance_uid: str = ""
    sha256: bytes | None = None


class Checker:
    """Checks instances for one peer; used by one thread, for one transaction."""

    def __init__(self, core: Core, subject: Subject, datastore_id: int) -> None:
        """Find out who else the peer answers for: those it shares a group with."""
        self._core = core
        self._subject = subject
        self._place = datastore_id
        at = core.clock()
        self._keys = list(core.keyring.public_keys())
        self._sent: dict[str, dict[tuple[str, str], int]] = {}
        self._untold: set[str] = set()
        m, other = membership, membership.alias("other")
        with core.database.read() as tx:
            peers = tx.execute(
                sa.select(other.c.principal_id).select_from(m.join(other, other.c.group_id == m.c.group_id)).where(
                    m.c.principal_id == subject.principal_id,
                    *(condition for one in (m, other) for condition in (one.c.not_before <= at, one.c.not_after > at)),
                )
            ).scalars()
            self._own = {subject.principal_id, *peers}
            self._where = bytes(tx.execute(sa.select(datastore.c.uid).where(datastore.c.id == datastore_id)).scalar_one()).hex()

    def check(self, reference: Reference) -> Checked:
        """Look at one instance: is it there for this peer, of that class, and whole to the last byte?

        Raises:
            Unavailable: it cannot be said now.
        """
        core = self._core
        uid = reference.sop_instance_uid
        with core.database.read() as tx:
            try:
                policy.require_live(tx, self._subject, core.clock())
            except Forbidden:
                return Checked(NO_SUCH_INSTANCE)  # it is a peer no more
            held, found = self._kept(tx, uid)
        mine = [(kind, one) for kind, one in held.waiting if self._stored(one)]
        if any(kind != "held" for kind, _ in mine):
            return Checked(PROCESSING_FAILURE)  # it sent other bytes under this UID, and those are not what is kept
        if found is None or not self._known(found, uid):
            if not mine:
                return Checked(NO_SUCH_INSTANCE)
            found = mine[0][1]
        if self._sent_other_since(held, found, uid):
            return Checked(PROCESSING_FAILURE)  # as above, whatever was decided about them
        if found.sop_class_uid != reference.sop_class_uid:
            return Checked(CLASS_INSTANCE_CONFLICT)
        return Checked(COMMITTED, found.study_instance_uid, found.sha256) if self._sound(found, uid) else Checked(PROCESSING_FAILURE)

    def knows(self, sop_instance_uid: str) -> bool:
        """Whether there is such an instance for this peer, whole or not."""
        with self._core.database.read() as tx:
            held, found = self._kept(tx, sop_instance_uid)
        return any(self._stored(one) for _, one in held.waiting) or (found is not None and self._known(found, sop_instance_uid))

    def _kept(self, tx: sa.Connection, uid: str) -> tuple[Held, Kept | None]:
        """Return what is held under a UID, and what is live."""
        scope = scope_of(self._subject, Permission.METADATA, self._core.clock())
        return referenced.held_under(tx, policy.system("verify"), self._place, uid), referenced.live(tx, scope, self._place, uid)

    def _known(self, found: Kept, uid: str) -> bool:
        return found.visible or self._stored(found) or self._sent_again(found, uid)

    def _sound(self, found: Kept, uid: str) -> bool:
        try:
            if self._whole(found, uid):
                return True
            LOG.error("an instance cannot be committed: its bytes are not those that were signed")
        except Unavailable:
            raise
        except ArchiveError as error:
            LOG.error("an instance cannot be committed", extra={"error": error.code, "verdict": error.verdict})
        return False

    def _whole(self, found: Kept, uid: str) -> bool:
        """Decrypt it to its end, and compare row, sealed trailer and signed statement with what came out."""
        vault = self._core.vault
        sections = vault.sections(found.ref)
        digest = hashlib.sha256()
        for view in vault.read(found.ref):
            digest.update(view)
        said = statements.verify(sections.statement, self._keys)
        return (
            digest.digest() == found.sha256 == sections.sha256 and found.envelope == sections.statement
            and (said["sop"], said["cls"], said["study"], said["series"]) == (
                uid, found.sop_class_uid, found.study_instance_uid, found.series_instance_uid
            )
            and (said["sha256"], said["size"]) == (found.sha256.hex(), found.ref.part10_bytes)
        )

    def _stored(self, found: Kept) -> bool:
        """Whether this peer, or one it shares a group with, sent it."""
        return self._sender(found) in self._own

    def _sender(self, found: Kept) -> int | None:
        user: int | None = self._said(found).get("src", {}).get("user")
        return user

    def _came(self, found: Kept) -> int:
        """Return the event by which it came; before all others where it was sealed anew, for nothing tells that event any more."""
        return found.leaf if self._said(found).get("ver") == 1 else -1

    def _said(self, found: Kept) -> dict[str, Any]:
        """Return its signed statement; nothing where that does not verify."""
        if found.envelope is None:
            return {}
        try:
            return statements.verify(found.envelope, self._keys)
        except (IntegrityError, LedgerBroken):
            return {}

    def _sent_again(self, found: Kept, uid: str) -> bool:
        """Whether this peer sent the same bytes after somebody else had; others may have taken the place of what it sent."""
        # Events of earlier releases do not say which bytes.
        return not {(uid, found.sha256.hex()), (uid, "")}.isdisjoint(self._sendings(found.study_instance_uid))

    def _sent_other_since(self, held: Held, found: Kept, uid: str) -> bool:
        """Whether what the peer sent last under a UID are other bytes than these; of who sent nothing themselves, what their group did."""
        kept, sendings = found.sha256.hex(), self._sendings(found.study_instance_uid)
        if found.study_instance_uid in self._untold:
            return True  # it may have, and nothing tells any more
        for whose in ({self._subject.principal_id}, self._own):
            here = (found, *held.decided, *(one for _, one in held.waiting))
            sent = [(self._came(one), one.sha256.hex()) for one in here if self._sender(one) in whose]
            sent += [(n, digest or kept) for (which, digest), n in sendings.items() if which == uid]
            if sent:
                return max(sent)[1] != kept
        return False

    def _sendings(self, study: str) -> dict[tuple[str, str], int]:
        """Return what this peer sent that was there already, or was not let in: UID, and SHA-256, with the last event that says so."""
        if study not in self._sent:
            core, told = self._core, self._sent.setdefault(study, {})
            wanted = AuditFilter(
                principal_id=self._subject.principal_id, kinds=(Kind.DUPLICATE, Kind.HELD, Kind.CONFLICT), obj=ObjectRef("study", study),
                limit=_EVENTS,
            )
            try:
                with core.database.read() as tx:
                    rows = core.ledger.search(tx, wanted)
            except LedgerBroken as error:  # for good: verify tells where
                LOG.error("what was sent again is not told any more", extra={"error": error.code, "verdict": error.verdict})
                self._untold.add(study)
                rows = []
            for row in rows:
                said = {} if row.body is None else row.body["detail"]
                if "sop_instance_uid" in said and said.get("datastore", self._where) == self._where:
                    told.setdefault((str(said["sop_instance_uid"]), str(said.get("sha256", ""))), row.n)
        return self._sent[study]
