"""The vocabulary of access: permission bits and the roles an archive starts with (docs/access.md)."""

from __future__ import annotations

from enum import IntFlag


class Permission(IntFlag):
    """One bit each; the numbers are stored and never change meaning."""

    NONE = 0
    SEARCH = 1 << 0
    METADATA = 1 << 1
    PIXELS = 1 << 2
    ORIGINAL = 1 << 3
    STORE = 1 << 4
    STORE_DERIVED = 1 << 5
    UPDATE = 1 << 6
    DELETE = 1 << 7
    PURGE = 1 << 8
    SHARE = 1 << 9
    DELEGATE = 1 << 10
    DEID_EXPORT = 1 << 11
    DEID_REIDENTIFY = 1 << 12
    SEND = 1 << 13
    RECEIVE = 1 << 14
    COMMIT = 1 << 15
    WORKLIST = 1 << 16
    MPPS = 1 << 17
    RESTRICTED = 1 << 18
    BREAK_GLASS = 1 << 19
    VERIFY = 1 << 20
    HOLD = 1 << 21
    AUDIT = 1 << 22
    USER_MANAGE = 1 << 23
    ROLE_MANAGE = 1 << 24
    PEER_MANAGE = 1 << 25
    KEY_MANAGE = 1 << 26
    CONFIGURE = 1 << 27
    JOB_MANAGE = 1 << 28
    STATS = 1 << 29
    PATIENT_MERGE = 1 << 30


P = Permission

OBJECT = (
    P.SEARCH | P.METADATA | P.PIXELS | P.ORIGINAL | P.UPDATE | P.DELETE | P.PURGE | P.SHARE | P.DELEGATE | P.DEID_EXPORT
    | P.DEID_REIDENTIFY | P.SEND | P.RECEIVE | P.RESTRICTED | P.VERIFY | P.HOLD
)
"""Permissions on objects: they come from grants only."""

FUNCTION = (
    P.STORE | P.STORE_DERIVED | P.COMMIT | P.WORKLIST | P.MPPS | P.BREAK_GLASS | P.AUDIT | P.USER_MANAGE | P.ROLE_MANAGE
    | P.PEER_MANAGE | P.KEY_MANAGE | P.CONFIGURE | P.JOB_MANAGE | P.STATS | P.PATIENT_MERGE
)
"""Permissions on functions: they come from role assignments only."""

ADMINISTRATIVE = (
    P.AUDIT | P.USER_MANAGE | P.ROLE_MANAGE | P.PEER_MANAGE | P.KEY_MANAGE | P.CONFIGURE | P.JOB_MANAGE | P.STATS | P.PATIENT_MERGE
)
"""Held by a token only when named at its making."""

_READ = P.SEARCH | P.METADATA | P.PIXELS

BUILTIN_ROLES: dict[str, Permission] = {
    "owner": FUNCTION | _READ | P.ORIGINAL | P.UPDATE | P.DELETE | P.PURGE | P.SHARE | P.DEID_EXPORT | P.SEND,
    "administrator": P.USER_MANAGE | P.PEER_MANAGE | P.CONFIGURE | P.JOB_MANAGE | P.STATS,
    "radiologist": _READ | P.ORIGINAL | P.STORE_DERIVED | P.SHARE | P.DELEGATE | P.SEND | P.WORKLIST | P.BREAK_GLASS,
    "referrer": _READ,
    "technologist": _READ | P.STORE | P.UPDATE | P.SEND | P.WORKLIST,
    "modality": P.STORE | P.COMMIT | P.WORKLIST | P.MPPS,
    "workstation": _READ | P.ORIGINAL | P.RECEIVE,
    "researcher": _READ | P.ORIGINAL,
    "data-manager": P.SEARCH | P.METADATA | P.UPDATE | P.DELETE | P.JOB_MANAGE | P.PATIENT_MERGE,
    "auditor": P.AUDIT | P.STATS,
    "security-officer": P.ROLE_MANAGE | P.KEY_MANAGE | P.CONFIGURE,
}
"""The roles that exist from the start (docs/access.md)."""
