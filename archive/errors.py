"""Every error of the archive.

    ArchiveError
    ├── Rejected                 the request is at fault; repeating it does not help
    │   ├── InvalidInstance      a data set that is not an instance we can keep
    │   │   └── UnsupportedClass a SOP class or transfer syntax not taken
    │   ├── InvalidQuery         a key, value or parameter that cannot be matched
    │   ├── InvalidRequest       any other malformed request or argument
    │   ├── NotAcceptable        no representation the caller asked for can be made
    │   ├── InstanceConflict     same SOP Instance UID, other bytes
    │   └── StateConflict        what is asked does not fit the state the object is in
    ├── Denied                   who asks is not allowed; nothing about the object is revealed
    │   ├── Unauthenticated
    │   ├── Forbidden            a function the caller lacks
    │   └── AwaitsApproval       two people decide, and one has asked
    ├── NotFound                 absent, or outside the caller's scope: the same
    ├── Unavailable              the archive cannot now; repeating later may help
    │   ├── OutOfSpace           the disk's reserve is reached
    │   ├── VaultUnavailable     segments cannot be read or written
    │   ├── DatabaseUnavailable  index, ledger or keystore cannot be read or written
    │   │   └── CommitUncertain  a commit was sent and not answered
    │   ├── KeysUnavailable      the keyring cannot be opened
    │   └── ReadOnly             the archive runs read-only until a finding is acknowledged
    ├── IntegrityError           stored bytes are not what was stored
    │   ├── SealBroken           header, commitment or chunk does not authenticate
    │   ├── KeyShredded          the study's key was destroyed on purpose
    │   ├── DigestMismatch       SHA-256 differs from the signed statement
    │   └── LedgerBroken         a leaf, root, proof or checkpoint does not verify
    └── ConfigurationError       configuration or installation at fault

A message never holds an attribute of a data set, a UID of a stored object or a key. `remedy` says what to do next.
"""

from __future__ import annotations


class ArchiveError(Exception):
    """The root; `code` is stable and appears in answers, logs and reports."""

    code = "error"

    def __init__(self, message: str = "", *, remedy: str = "", verdict: str = "") -> None:
        """Keep what happened, what to do next, and for integrity errors the V-code (docs/format.md) in `verdict`."""
        super().__init__(message or self.code)
        self.message = message or self.code
        self.remedy = remedy
        self.verdict = verdict


class Rejected(ArchiveError):
    """The request is at fault."""

    code = "rejected"


class InvalidInstance(Rejected):
    """A data set that cannot be kept as an instance; `reason` is one of the words of docs/reasons in dicom.part10."""

    code = "invalid-instance"

    def __init__(self, message: str = "", *, reason: str = "cannot-understand", remedy: str = "") -> None:
        """`reason`: cannot-understand, bad-uid, missing-uid, uid-mismatch, too-large, too-deep, class-mismatch, wrong-study, no-meta."""
        super().__init__(message, remedy=remedy)
        self.reason = reason


class UnsupportedClass(InvalidInstance):
    """A SOP class or transfer syntax this archive does not take."""

    code = "unsupported-class"


class InvalidQuery(Rejected):
    """A key, value or parameter that cannot be matched."""

    code = "invalid-query"


class InvalidRequest(Rejected):
    """A malformed request or argument."""

    code = "invalid-request"


class NotAcceptable(Rejected):
    """No representation the caller asked for can be made; `reason` is one of the words of REFUSALS in dicom.layout, or empty."""

    code = "not-acceptable"

    def __init__(self, message: str = "", *, reason: str = "", remedy: str = "") -> None:
        """Keep the word for why pixels cannot be given in that form."""
        super().__init__(message, remedy=remedy)
        self.reason = reason


class InstanceConflict(Rejected):
    """The same SOP Instance UID is stored with other bytes."""

    code = "instance-conflict"


class StateConflict(Rejected):
    """What is asked does not fit the state the object is in; `status` is the code PS3.4 gives that."""

    code = "state-conflict"

    def __init__(self, message: str = "", *, status: int = 0, remedy: str = "") -> None:
        """Keep the status code."""
        super().__init__(message, remedy=remedy)
        self.status = status


class Denied(ArchiveError):
    """Who asks is not allowed."""

    code = "denied"


class Unauthenticated(Denied):
    """No valid credential."""

    code = "unauthenticated"


class Forbidden(Denied):
    """A function permission is lacking."""

    code = "forbidden"


class AwaitsApproval(Denied):
    """Nothing is done yet: two people decide about it, and the request `approval` waits for the second."""

    code = "awaits-approval"

    def __init__(self, message: str = "", *, approval: int = 0, remedy: str = "") -> None:
        """Keep the number of the request."""
        super().__init__(message, remedy=remedy)
        self.approval = approval


class NotFound(ArchiveError):
    """Absent, or outside the caller's scope; the two are never told apart."""

    code = "not-found"


class Unavailable(ArchiveError):
    """The archive cannot now."""

    code = "unavailable"


class OutOfSpace(Unavailable):
    """The disk is full or its reserve is reached."""

    code = "out-of-space"


class VaultUnavailable(Unavailable):
    """Segments cannot be read or written."""

    code = "vault-unavailable"


class DatabaseUnavailable(Unavailable):
    """Index, ledger or keystore cannot be read or written."""

    code = "database-unavailable"


class CommitUncertain(DatabaseUnavailable):
    """A commit was sent and not answered: it may have happened, so nothing that its rows would name may be destroyed."""


class KeysUnavailable(Unavailable):
    """The keyring cannot be opened."""

    code = "keys-unavailable"


class ReadOnly(Unavailable):
    """The archive runs read-only until a finding is acknowledged."""

    code = "read-only"


class IntegrityError(ArchiveError):
    """Stored bytes are not what was stored."""

    code = "integrity"


class SealBroken(IntegrityError):
    """A header, commitment or chunk does not authenticate."""

    code = "seal-broken"


class KeyShredded(IntegrityError):
    """The study's key was destroyed on purpose."""

    code = "key-shredded"


class DigestMismatch(IntegrityError):
    """SHA-256 differs from the signed statement."""

    code = "digest-mismatch"


class LedgerBroken(IntegrityError):
    """A leaf, root, proof or checkpoint does not verify."""

    code = "ledger-broken"


class ConfigurationError(ArchiveError):
    """Configuration or installation at fault."""

    code = "configuration"
