"""What is recorded: the kinds of events, and the leaf and body of each.

Source: docs/format.md 6; PS3.15 A.5; PS3.16 CID 400 and 401.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, Literal

import msgspec

from archive.access.subject import Subject
from archive.errors import LedgerBroken
from archive.keys.keyring import Keyring
from archive.keys.sealing import format_instant

MAX_LEAF_BYTES = 2048
MAX_LEAF_OBJECTS = 16
Detail = dict[str, Any]
"""Strings, integers, booleans, and lists or string-keyed dicts of them; sealed, never in the leaf."""
Action = Literal["C", "R", "U", "D", "E"]
_ENCODE = msgspec.json.Encoder(order="sorted").encode


class Kind(Enum):
    """What happened: its name in leaves, its DICOM event id and type code, its action."""

    STORED = ("stored", "110104", "", "C")
    DUPLICATE = ("duplicate", "110104", "", "C")
    HELD = ("held", "110104", "", "C")
    CONFLICT = ("conflict", "110104", "", "C")
    QUARANTINED = ("quarantined", "110104", "", "C")
    REPLAYED = ("replayed", "110104", "", "C")
    IMPORTED = ("imported", "110107", "", "C")
    SEARCHED = ("searched", "110112", "", "E")
    READ = ("read", "110104", "", "R")
    SENT = ("sent", "110104", "", "R")
    EXPORTED = ("exported", "110106", "", "R")
    SHARED = ("shared", "110106", "", "C")
    SHARE_CHANGED = ("share-changed", "110106", "", "U")
    SHARE_OPENED = ("share-opened", "110114", "110122", "E")
    SHARE_CLOSED = ("share-closed", "110114", "110123", "E")
    ALBUM_CHANGED = ("album-changed", "110113", "110135", "U")
    COMMITTED = ("committed", "110103", "", "R")
    REJECTED = ("rejected", "110103", "", "D")
    RESTORED = ("restored", "110103", "", "U")
    RECONCILED = ("reconciled", "110110", "", "U")
    CORRECTED = ("corrected", "110103", "", "U")
    HOLD_ADDED = ("hold-added", "110103", "", "U")
    HOLD_REMOVED = ("hold-removed", "110103", "", "U")
    PURGED = ("purged", "110105", "", "D")
    SHREDDED = ("shredded", "110105", "", "D")
    WORKLIST_CHANGED = ("worklist-changed", "110109", "", "U")
    PROCEDURE_STEP = ("procedure-step", "110111", "", "U")
    WORKITEM_CHANGED = ("workitem-changed", "110103", "", "U")
    WORKITEM_WATCHED = ("workitem-watched", "110112", "", "E")
    WEBHOOK_CHANGED = ("webhook-changed", "110113", "110129", "U")
    DENIED = ("denied", "110113", "110147", "E")
    SIGNED_IN = ("signed-in", "110114", "110122", "E")
    SIGNED_OUT = ("signed-out", "110114", "110123", "E")
    SIGNIN_FAILED = ("signin-failed", "110114", "110122", "E")
    STEPPED_UP = ("stepped-up", "110114", "110122", "E")
    SESSION_ENDED = ("session-ended", "110114", "110123", "E")
    FACTOR_CHANGED = ("factor-changed", "110113", "110137", "U")
    ASSOCIATION_OPENED = ("association-opened", "110108", "", "E")
    ASSOCIATION_REJECTED = ("association-rejected", "110113", "110126", "E")
    GRANTED = ("granted", "110113", "110135", "C")
    REVOKED = ("revoked", "110113", "110135", "D")
    USER_CHANGED = ("user-changed", "110113", "110137", "U")
    RULE_CHANGED = ("rule-changed", "110113", "110135", "U")
    ACCESS_REVIEWED = ("access-reviewed", "110113", "110135", "U")
    APPROVAL = ("approval", "110113", "", "E")
    ROLE_CHANGED = ("role-changed", "110113", "110136", "U")
    TOKEN_CHANGED = ("token-changed", "110113", "110137", "U")
    PASSWORD_CHANGED = ("password-changed", "110113", "110137", "U")
    PEER_CHANGED = ("peer-changed", "110113", "110128", "U")
    CONFIGURED = ("configured", "110113", "110129", "U")
    KEY_USED = ("key-used", "110113", "110129", "E")
    KEY_CHANGED = ("key-changed", "110113", "110129", "U")
    STARTED = ("started", "110100", "110120", "E")
    STOPPED = ("stopped", "110100", "110121", "E")
    VERIFIED = ("verified", "110100", "110141", "E")
    REBUILT = ("rebuilt", "110100", "110141", "E")
    BACKED_UP = ("backed-up", "110106", "", "R")
    SEGMENT_CLOSED = ("segment-closed", "110100", "110141", "C")
    AUDIT_READ = ("audit-read", "110101", "", "R")
    CHECKPOINT_ACKNOWLEDGED = ("checkpoint-acknowledged", "110113", "110129", "E")
    ALERT = ("alert", "110113", "", "E")
    WITNESS = ("witness", "110113", "", "E")
    BREAK_GLASS_STARTED = ("break-glass-started", "110113", "110127", "E")
    BREAK_GLASS_STOPPED = ("break-glass-stopped", "110113", "110138", "E")
    BREAK_GLASS_REVIEWED = ("break-glass-reviewed", "110113", "", "U")
    ACCESS_REQUESTED = ("access-requested", "110113", "110135", "E")

    def __init__(self, label: str, event_id: str, type_code: str, action: Action) -> None:
        """Take apart the row above."""
        self.label = label
        self.event_id = event_id
        self.type_code = type_code
        self.action: Action = action
        self.event = f"{event_id}/{type_code}" if type_code else event_id


KINDS: dict[str, Kind] = {kind.label: kind for kind in Kind}


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """A patient by PatientID, a study or series by UID; kept in the sealed body, shown in the leaf as a pseudonym."""

    kind: Literal["patient", "study", "series"]
    value: str

    def pseudonym(self, keyring: Keyring) -> bytes:
        """Return what stands for it in leaves and in `audit_object`."""
        return keyring.pseudonym(f"ledger/{self.kind}", self.value)


@dataclass(frozen=True, slots=True)
class StoredRef:
    """The sealed record an event is about; the leaf commits to the signed statement inside it."""

    statement_sha256: bytes  # statements.digest(envelope)
    object_id: bytes
    record_bytes: int


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; `subject` None is the archive itself."""

    kind: Kind
    outcome: int = 0
    subject: Subject | None = None
    objects: tuple[ObjectRef, ...] = ()
    instances: int = 0
    bytes: int = 0
    detail: Detail = field(default_factory=dict)
    stored: StoredRef | None = None
    document: str = ""
    """Hex SHA-256 of the signed document in `detail`, where it carries one (docs/format.md 8.1)."""


def body_of(event: Event, at: datetime) -> bytes:
    """Return the canonical JSON that is sealed."""
    body: dict[str, Any] = {
        "kind": event.kind.label,
        "at": format_instant(at),
        "outcome": event.outcome,
        "objects": [[ref.kind, ref.value] for ref in event.objects],
        "instances": event.instances,
        "bytes": event.bytes,
        "detail": event.detail,
    }
    if event.subject is not None:
        body["subject"] = _subject(event.subject)
    return _ENCODE(body)


def _subject(subject: Subject) -> dict[str, Any]:
    who = subject.person
    known: dict[str, Any] = {
        "address": subject.address, "session": subject.session_id, "token": who.token_id, "peer": subject.peer_id,
        "association": subject.association, "user_agent": subject.user_agent[:256], "operator": subject.operator,
        "approved_by": None if subject.second is None else subject.second.principal_id,
        "share": subject.share_id, "share_session": subject.share_session_id, "recipient": subject.recipient,
        "through": "" if who is subject else subject.name,
    }
    return {
        "principal": who.principal_id, "name": who.name, "kind": who.kind, "via": subject.via,
        **{name: value for name, value in known.items() if value not in {None, ""}},
    }


def leaf_of(
    event: Event, n: int, at: datetime, *, refs: Sequence[bytes], commitment: bytes, keyring: Keyring
) -> bytes:
    """Return the canonical JSON of a leaf.

    Raises:
        LedgerBroken: longer than a leaf may be; a fault of the program.
    """
    leaf: dict[str, Any] = {
        "v": 1, "n": n, "t": format_instant(at), "k": event.kind.label, "ev": event.kind.event, "a": event.kind.action,
        "o": event.outcome, "c": commitment.hex(),
    }
    subject = event.subject
    if subject is not None:
        leaf["p"] = principal_pseudonym(keyring, subject.person.principal_id)
        session = _session(subject)
        if session:
            leaf["s"] = keyring.pseudonym("ledger/session", session)[:16].hex()
    if refs:
        leaf["ob"] = [ref.hex() for ref in refs[:MAX_LEAF_OBJECTS]]
        if len(refs) > MAX_LEAF_OBJECTS:
            leaf["om"] = digest_of(refs)
    if event.instances:
        leaf["i"] = event.instances
    if event.document:
        leaf["doc"] = event.document
    if event.stored is not None:
        leaf["stmt"] = event.stored.statement_sha256.hex()
        leaf["obj"] = event.stored.object_id.hex()
        leaf["len"] = event.stored.record_bytes
    data = _ENCODE(leaf)
    if len(data) > MAX_LEAF_BYTES:
        message = "a ledger leaf is longer than 2048 bytes"
        raise LedgerBroken(message, verdict="V11")
    return data


def digest_of(refs: Iterable[bytes]) -> str:
    """Return what a leaf with more objects than it may name says about all of them."""
    return hashlib.sha256(b"".join(refs)).hexdigest()


def secret_digest(kept: str | bytes) -> str:
    """Return how a body names what is kept of a secret: enough to compare, of no use to whoever reads the event."""
    return hashlib.sha256(kept.encode() if isinstance(kept, str) else kept).hexdigest()


def principal_pseudonym(keyring: Keyring, principal_id: int) -> str:
    """Return what stands for a principal in leaves."""
    return keyring.pseudonym("ledger/principal", str(principal_id))[:16].hex()


def _session(subject: Subject) -> str:
    if subject.share_session_id is not None:
        return f"share:{subject.share_session_id}"
    if subject.session_id is not None:
        return f"session:{subject.session_id}"
    if subject.token_id is not None:
        return f"token:{subject.token_id}"
    return subject.association
